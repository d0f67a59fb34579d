"""The flow of pictures through a detector: order, bounds, failures, memory, threads."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from distill_fakes import POISON, FakeTeacher, picture_bytes, shard_of, source_of

from sharding.coordination.fatal_errors import ran_out_of_memory
from sharding.format.manifest import SampleEntry
from sharding.format.schema import Failure, Sample
from stages.detector.device import pick_device
from stages.detector.ops.resize import Prepared
from stages.distill.inference import pipeline as flow_file
from stages.distill.inference.batch_plan import plan_batches
from stages.distill.inference.decode import decode
from stages.distill.inference.failures import TeacherFailure
from stages.distill.inference.stage_timer import Clock


def samples_of(num: int, *, seed: int = 0) -> list[Sample]:
    """Noise of a few sizes, so that some share one."""
    random = np.random.default_rng(seed)
    samples = []
    for number in range(num):
        height, width = (int(side) for side in random.choice([8, 9, 10], 2))
        pixels = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
        samples.append(sample_of(f"s{number}", pixels))
    return samples


def sample_of(key: str, pixels: np.ndarray) -> Sample:
    info = {"captions": [], "width": pixels.shape[1], "height": pixels.shape[0]}
    return Sample(key=key, image=picture_bytes(pixels, "png"), extension="png", info=info)


def alone(samples: list[Sample]) -> list[bytes]:
    return [FakeTeacher().look(decode(sample).numpy()).tobytes() for sample in samples]


def bytes_of(results: list[np.ndarray | Failure]) -> list[bytes]:
    assert all(isinstance(result, np.ndarray) for result in results), results
    return [result.tobytes() for result in results if isinstance(result, np.ndarray)]


class NarrowTeacher(FakeTeacher):
    """Has memory for `most` pixels at a time."""

    def __init__(self, most: int, error: Exception | None = None) -> None:
        super().__init__()
        self.most = most
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    def detect(self, prepared: list[Prepared]) -> list[np.ndarray]:
        if sum(picture.size[0] * picture.size[1] for picture in prepared) > self.most:
            raise self.error
        return super().detect(prepared)


@pytest.mark.parametrize("batch_size, num_decoders", list(itertools.product([1, 2, 7, 32], [1, 3])))
def test_results_are_those_of_each_alone_in_order(batch_size: int, num_decoders: int) -> None:
    """Oracle: the fake teacher on each picture, one after the other; batches are of one size and
    no larger than told, and every picture is looked at once."""
    samples, sizes = samples_of(60), []

    class Watching(FakeTeacher):
        def detect(self, prepared: list[Prepared]) -> list[np.ndarray]:
            sizes.append({picture.size for picture in prepared})
            return super().detect(prepared)

    teacher = Watching()
    object_source = source_of(teacher, batch_size=batch_size, num_decoders=num_decoders)
    assert bytes_of(list(object_source.objects(shard_of(samples)))) == alone(samples)
    assert max(teacher.batch_sizes) <= batch_size and sum(teacher.batch_sizes) == 60
    assert max(map(len, sizes)) == 1
    assert batch_size == 1 or max(teacher.batch_sizes) > 1
    assert list(object_source.objects(shard_of([]))) == []


def test_batches_are_planned_over_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: by hand, a batch is 2: each size's pictures in pairs, however far apart they are;
    batches in the order of their first. In pieces of 5 no batch reaches over a border."""
    sizes = [(height, 1) for height in (1, 2, 1, 3, 1, 2, 2, 1)]
    assert plan_batches(sizes, most=2) == [[0, 2], [1, 5], [3], [4, 7], [6]]
    assert plan_batches(sizes, most=1) == [[place] for place in range(8)]
    assert plan_batches(sizes, most=8) == [[0, 2, 4, 7], [1, 5, 6], [3]]
    assert plan_batches([], most=2) == []
    monkeypatch.setattr("stages.distill.inference.batch_plan.MOST_PLANNED", 5)
    assert plan_batches(sizes, most=2) == [[0, 2], [1], [3], [4], [5, 6], [7]]


def test_far_pictures_of_a_size_run_together() -> None:
    """Oracle: of 60 pictures of 9 sizes, batches of 4, each size leaves at most one batch that is
    not full, and results come in the order of the shard."""
    samples, teacher = samples_of(60), FakeTeacher()
    assert bytes_of(list(source_of(teacher, batch_size=4).objects(shard_of(samples)))) == alone(
        samples
    )
    sizes = Counter((one.info["height"], one.info["width"]) for one in samples)
    assert len(teacher.batch_sizes) == sum(-(-num // 4) for num in sizes.values())


def test_a_picture_of_another_size_than_its_manifest_says_runs_apart() -> None:
    """Oracle: by hand: of three said to be of one size, the one that is not goes alone."""
    samples = samples_of(1) * 3
    samples[1] = sample_of("other", np.ones((5, 5, 3), np.uint8))
    samples = [replace(sample, key=f"s{i}") for i, sample in enumerate(samples)]
    shard = shard_of(samples)
    shard = replace(shard, entries=[replace(one, width=8, height=8) for one in shard.entries])
    teacher = FakeTeacher()
    assert bytes_of(list(source_of(teacher, batch_size=4).objects(shard))) == alone(samples)
    assert sorted(teacher.batch_sizes) == [1, 2]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_pictures_on_their_way_are_bounded(batch_size: int) -> None:
    """Oracle: a count of the samples read and not yet given out, without those of batches that had
    to run for a result, while a slow consumer and a slow teacher each hold the others up; the most
    is what the flow says of itself, and it is reached."""
    samples, read = samples_of(80), set[str]()
    shard = shard_of(samples)
    places = {sample.key: place for place, sample in enumerate(samples)}
    sizes = [(one.height, one.width) for one in shard.entries]
    batch_of = {p: batch for batch in plan_batches(sizes, most=batch_size) for p in batch}

    def reading(entry: SampleEntry) -> Sample:
        read.add(entry.key)
        return shard.read(entry)

    flow, most = source_of(FakeTeacher(), batch_size=batch_size, num_decoders=2), 0
    for number, _ in enumerate(flow.objects(replace(shard, read=reading))):
        most = max(most, sum(batch_of[places[key]][0] > number for key in read))
        time.sleep(0.001)
    assert flow.most_ahead - batch_size <= most <= flow.most_ahead == 2 * (batch_size + 2)


def test_a_picture_among_broken_ones_waits_for_no_other() -> None:
    """Oracle: it comes out though all that are on their way with it are broken."""
    good, *broken = samples_of(61)
    broken = [replace(sample, image=b"no picture") for sample in broken]
    results: list[np.ndarray | Failure] = []
    flow = source_of(FakeTeacher(), batch_size=4)
    seeing = threading.Thread(
        target=lambda: results.extend(flow.objects(shard_of([good, *broken]))), daemon=True
    )
    seeing.start()
    seeing.join(30)
    assert [isinstance(result, Failure) for result in results] == [False] + [True] * 60


def test_stages_overlap() -> None:
    """Oracle: three threads that each wait for the others, at a barrier: while a picture is with
    the detector another one is decoded and a third with the consumer."""
    barrier = threading.Barrier(3, timeout=30)

    class Meeting(FakeTeacher):
        num_prepared = 0

        def prepare(self, picture: torch.Tensor) -> Prepared:
            self.num_prepared += 1
            if self.num_prepared == 4:
                barrier.wait()
            return super().prepare(picture)

        def detect(self, prepared: list[Prepared]) -> list[np.ndarray]:
            if len(self.batch_sizes) == 2:
                barrier.wait()
            return super().detect(prepared)

    for number, _ in enumerate(
        source_of(Meeting(), batch_size=1, num_decoders=1).objects(shard_of(samples_of(8)))
    ):
        if number == 1:
            barrier.wait()


def test_memory_that_ran_out_halves_the_batch(capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: a teacher with room for 3 pictures of 8 x 8; batches of 8 become 4, then 2, later
    ones begin at 2, one line is said, and the objects are those of each alone."""
    random = np.random.default_rng(0)
    samples = [
        sample_of(f"s{i}", random.integers(0, 256, (8, 8, 3)).astype(np.uint8)) for i in range(24)
    ]
    teacher = NarrowTeacher(3 * 64)
    assert bytes_of(list(source_of(teacher, batch_size=8).objects(shard_of(samples)))) == alone(
        samples
    )
    assert teacher.batch_sizes == [2] * 12
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Memory ran out with 8 pictures of 8 x 8 pixels at once")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_a_picture_too_large_is_recorded_and_leaves_the_batches_as_they_are(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: room for 8 small pictures but for none of the large one's pixels. The reason is the
    same in every run: no numbers of bytes."""
    small = [replace(sample, key=f"x{sample.key}") for sample in same_size(16)]
    large = sample_of("large", np.full((40, 40, 3), 3, np.uint8))
    samples = [*small[:5], large, *small[5:]]
    teacher = NarrowTeacher(8 * 64, error)
    assert ran_out_of_memory(error)
    results = list(source_of(teacher, batch_size=8).objects(shard_of(samples)))
    reason = "detect: memory ran out on this picture alone"
    assert results.pop(5) == TeacherFailure(key="large", reason=reason, ran_out=True)
    assert bytes_of(results) == alone(small)
    assert max(teacher.batch_sizes) == 8
    assert not capsys.readouterr().out


def same_size(num: int) -> list[Sample]:
    random = np.random.default_rng(1)
    return [
        sample_of(f"s{i}", random.integers(0, 256, (8, 8, 3)).astype(np.uint8)) for i in range(num)
    ]


def test_a_bad_picture_takes_no_other_of_its_batch_along() -> None:
    """Oracle: the poisoned one alone fails, with the first line of the error and no address."""
    samples = same_size(6)
    samples[2] = sample_of("bad", np.full((8, 8, 3), POISON, np.uint8))
    teacher = FakeTeacher()
    results = list(source_of(teacher, batch_size=6).objects(shard_of(samples)))
    bad = results.pop(2)
    assert bad == TeacherFailure(key="bad", reason="detect: RuntimeError: cannot look at")
    assert isinstance(bad, TeacherFailure) and isinstance(bad.error, RuntimeError)
    assert bytes_of(results) == alone([*samples[:2], *samples[3:]])
    assert teacher.batch_sizes == [6, *[1] * 6]


def test_what_cannot_be_prepared_is_the_teachers_failure() -> None:
    class Clumsy(FakeTeacher):
        def prepare(self, picture: torch.Tensor) -> Prepared:
            raise KeyError("scale")

    samples = samples_of(2)
    samples[0] = replace(samples[0], image=b"no picture")
    undecoded, unprepared = source_of(Clumsy()).objects(shard_of(samples))
    assert isinstance(undecoded, Failure) and not isinstance(undecoded, TeacherFailure)
    assert unprepared == TeacherFailure(key="s1", reason="prepare: KeyError: 'scale'")


class Interrupted(BaseException):
    """Nothing that a detector may be forgiven."""


@pytest.mark.parametrize("raises", ["decode", "prepare", "detect"])
def test_what_is_raised_in_a_thread_is_raised_here(
    raises: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise Interrupted

    teacher = FakeTeacher()
    if raises == "decode":
        monkeypatch.setattr(flow_file, "decode", broken)
    else:
        monkeypatch.setattr(teacher, raises, broken)
    with pytest.raises(Interrupted):
        list(source_of(teacher, batch_size=2).objects(shard_of(samples_of(30))))
    assert_no_threads()


def test_what_reading_raises_is_raised_and_ends_the_threads() -> None:
    shard = shard_of(samples_of(30))

    def reading(entry: SampleEntry) -> Sample:
        if entry.key == "s9":
            raise OSError("disk")
        return shard.read(entry)

    with pytest.raises(OSError, match="disk"):
        list(source_of(FakeTeacher()).objects(replace(shard, read=reading)))
    assert_no_threads()


def test_closed_early_it_leaves_no_threads_and_no_work() -> None:
    """Oracle: the threads of the process; and that of all that was on its way, the teacher looked
    at nothing but the picture that it had in its hands."""
    may_end = threading.Event()

    class Slow(FakeTeacher):
        def detect(self, prepared: list[Prepared]) -> list[np.ndarray]:
            assert not self.batch_sizes or may_end.wait(30)
            return super().detect(prepared)

    teacher = Slow()
    results = source_of(teacher, batch_size=1).objects(shard_of(samples_of(50)))
    next(results)
    threading.Timer(0.2, may_end.set).start()
    results.close()  # type: ignore[attr-defined]
    assert_no_threads()
    assert len(teacher.batch_sizes) <= 2


def assert_no_threads() -> None:
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("boxless-")], names


def test_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a time of ours. The outer part is counted without what its inner part took."""
    now = [10.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = Clock()
    with clock.during("write", without="label"):
        now[0] += 1
        with clock.during("label"):
            now[0] += 2
        now[0] += 4
    assert (clock.seconds("write"), clock.seconds("label"), clock.passed()) == (5, 2, 7)
    assert clock.share("label") == pytest.approx(2 / 7)
    clock.start()
    now[0] += 3
    assert (clock.seconds("write"), clock.passed()) == (0, 3)


def test_grey_pictures_are_decoded_to_three_equal_channels() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    pixels = decode(sample_of("grey", grey))
    assert pixels.dtype == torch.uint8
    assert pixels.tolist() == np.repeat(grey[:, :, None], 3, 2).tolist()


@pytest.mark.parametrize("rank, device", [(None, "cuda:0"), ("0", "cuda:0"), ("6", "cuda:2")])
def test_each_process_of_a_node_has_a_gpu_of_its_own(
    rank: str | None, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: by hand, of 4 GPUs; and the CPU where there is none."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert str(pick_device()) == device
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert str(pick_device()) == "cpu"
