"""Pretraining under real DeepSpeed on one and two ranks: the same run however it is cut up."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretrain_fixtures import SHARD_SIZE, TINY, read_lines, toy_samples, write_objects
from pretrain_ranks import SHORT_RUN, Ranks, toy_ranks
from safetensors.torch import load_file

from sharding.format.manifest import read_manifest
from stages.pretrain.data_config import DataConfig, SourceConfig
from stages.pretrain.objectives.config import ItcConfig
from stages.student.network import Student
from stages.student.text.tokenizer import load_tokenizer
from stages.training.data_loader import LONGEST_TMPDIR, load_batches

NUM_TRAIN = 2 * SHARD_SIZE + 2
RUN = SHORT_RUN
DONE = ["done", "done"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Runs over 14 train scenes in three shards, with dropout, so that its draws are tested."""
    yield from toy_ranks(tmp_path_factory, replace(TINY, dropout=0.1))


@pytest.fixture(scope="module")
def undisturbed(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on two ranks that nobody disturbed."""
    root = tmp_path_factory.mktemp("undisturbed")
    assert ranks(RUN, root, world_size=2) == DONE
    return root


def _weights(root: Path) -> dict[str, torch.Tensor]:
    return load_file(root / "student" / "model.safetensors")


def _assert_same_run(root: Path, other: Path) -> None:
    """Bit-equal weights and statistics, every step once in the metrics, with equal losses."""
    mine, theirs = _weights(root), _weights(other)
    assert mine.keys() == theirs.keys()
    different = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    assert not different
    lines = read_lines(root / "pretrain" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, RUN.num_steps + 1))
    for line, other_line in zip(lines, read_lines(other / "pretrain" / "metrics.jsonl")):
        for name in ("loss", "omvm/loss", "mlm/accuracy", "grad_norm", "lr_factor"):
            assert line.get(name) == other_line.get(name), (line["step"], name)


def _trace(root: Path, world_size: int) -> list[tuple[int, tuple[str, ...]]]:
    return sorted(
        (line["position"], tuple(line["keys"]))
        for rank in range(world_size)
        for line in read_lines(root / f"trace-{rank}.jsonl")
    )


def test_the_student_folder_and_the_metrics(undisturbed: Path) -> None:
    """Oracle: the design's layout; every step once; what a step has seen is arithmetic (2 micro-
    batches of at most 3 pictures, 14 pictures are 5 micro-batches an epoch)."""
    files = {p.name for p in (undisturbed / "student").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    student = Student.from_pretrained(undisturbed / "student")
    assert len(load_tokenizer(undisturbed / "student")) == student.config.bert["vocab_size"]
    lines = read_lines(undisturbed / "pretrain" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["pictures"] for line in lines] == [6, 12, 18, 24, 30, 36]
    assert lines[-1]["epoch"] == pytest.approx(12 / 5)
    for name in ("loss", "mlm/loss", "itm/loss", "omvm/loss", "pra/loss", "grad_norm"):
        assert all(0 < line[name] < 100 for line in lines if name in line), name
    assert sum("pra/accuracy" in line for line in lines) >= 4
    assert list((undisturbed / "pretrain" / "tensorboard").iterdir())


def test_ranks_start_without_the_compiler(undisturbed: Path) -> None:
    """Oracle: the modules of a rank at its end; PyTorch's compiler, which DeepSpeed would import
    with its own optimizer, takes seconds."""
    for rank in range(2):
        modules = (undisturbed / f"modules-{rank}").read_text().split()
        assert "deepspeed.runtime.zero.muon.original_muon" in modules
        assert "torch._inductor.compile_fx" not in modules


def test_every_sample_once_an_epoch(undisturbed: Path) -> None:
    """Oracle: the keys of the split; positions 0 to 11 once, epochs of 5 hold each key once."""
    trace = _trace(undisturbed, 2)
    assert [position for position, _ in trace] == list(range(12))
    wanted = sorted(s.key for s in toy_samples(NUM_TRAIN, 4) if "-train-" in s.key)
    for epoch in range(2):
        keys = [key for _, own in trace[5 * epoch : 5 * epoch + 5] for key in own]
        assert sorted(keys) == wanted


def test_one_rank_does_what_two_do(ranks: Ranks, undisturbed: Path, tmp_path: Path) -> None:
    """Oracle: two ranks. One rank that accumulates sees the same keys at the same positions and
    ends with the same weights but for the order of sums; the loss of each step is the same. What
    differs is known: BatchNorm's running statistics move once a micro-batch on one rank, and once a
    step, by the mean of two, on two."""
    assert ranks(RUN, tmp_path, world_size=1) == ["done"]
    assert _trace(tmp_path, 1) == _trace(undisturbed, 2)
    mine, theirs = _weights(tmp_path), _weights(undisturbed)
    for name in mine:
        if "running_" not in name and not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=2e-5, msg=name)
    counts = {int(w[name]) for w in (mine,) for name in w if name.endswith("num_batches_tracked")}
    assert counts == {12}
    one, two = (read_lines(r / "pretrain" / "metrics.jsonl") for r in (tmp_path, undisturbed))
    for a, b in zip(one, two):
        for name in ("loss", "pra/loss", "itm/accuracy", "grad_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-3), name


@pytest.mark.parametrize("stage", [0, 2])
def test_every_zero_stage_trains_the_same(
    ranks: Ranks, undisturbed: Path, tmp_path: Path, stage: int
) -> None:
    """Oracle: the run with stage 1, but for the order of sums. Reading in a worker process changes
    nothing either, so one of them does."""
    config = replace(RUN, zero_stage=stage, num_workers=stage // 2)
    assert ranks(config, tmp_path, world_size=2) == DONE
    mine, theirs = _weights(tmp_path), _weights(undisturbed)
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=2e-5, msg=name)


def test_a_run_in_half_precision_leaves_a_student_that_sees(ranks: Ranks, tmp_path: Path) -> None:
    """Oracle: bfloat16 weights on disk that load and give finite scores to plain pixels."""
    config = replace(RUN, precision="bf16", save_precision="training", num_steps=2)
    assert ranks(config, tmp_path, world_size=2) == DONE
    student = Student.from_pretrained(tmp_path / "student").eval()
    with torch.no_grad():
        cells = student.encode_image(torch.zeros(1, 3, 32, 32), torch.tensor([[32, 32]]))
        hidden = student.fuse(cells, picture=torch.tensor([0]), input_ids=torch.tensor([[2, 7, 3]]))
        assert student.itm_head(hidden.text[:, 0]).isfinite().all()


def test_a_folder_too_long_for_sockets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: binding a socket in a folder of that length works, in one a character longer not."""
    for num_characters, fits in ((LONGEST_TMPDIR, True), (LONGEST_TMPDIR + 1, False)):
        folder = Path("/tmp/" + "x" * (num_characters - 5)) / "pymp-12345678"
        folder.mkdir(parents=True)
        try:
            with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as fails:
                if not fits:
                    fails.enter_context(pytest.raises(OSError, match="too long"))
                listener.bind(str(folder / "listener-12345678"))
        finally:
            shutil.rmtree(folder.parent)
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * (LONGEST_TMPDIR - 4))
    with pytest.raises(ValueError, match="TMPDIR: got /tmp/xxx"):
        load_batches(None, replace(RUN, num_workers=1), 0, 0, 1)  # type: ignore


@pytest.mark.parametrize("step", [1, 4])
def test_killed_and_started_again(
    ranks: Ranks, undisturbed: Path, tmp_path: Path, step: int
) -> None:
    """Oracle: the undisturbed run, bit for bit. SIGKILL strikes before any checkpoint, or two
    steps' work after one."""
    killed = ranks(RUN, tmp_path, world_size=2, spoil="kill", step=step)
    assert killed[1] == "signal 9" and killed[0] != "done"
    assert not (tmp_path / "student").exists()
    assert ranks(RUN, tmp_path, world_size=2) == DONE
    _assert_same_run(tmp_path, undisturbed)


def test_the_queue_and_the_momentum_copy_go_on(ranks: Ranks, tmp_path: Path) -> None:
    """Oracle: two ranks that nobody disturbed. Killed, when the queue has turned over, and started
    again they end with the same bits; one rank has the same losses but for the order of sums."""
    own = ranks.with_student(replace(TINY, dropout=0.1, itc_size=8))
    itc = ItcConfig(weight=1, queue_size=8, soft_targets=0.4, soft_targets_steps=2)
    config = replace(RUN, num_steps=4, itc=itc)
    assert own(config, tmp_path / "whole", world_size=2) == DONE
    assert own(config, tmp_path / "killed", world_size=2, spoil="kill", step=4) != DONE
    assert own(config, tmp_path / "killed", world_size=2) == DONE
    mine, theirs = _weights(tmp_path / "killed"), _weights(tmp_path / "whole")
    assert not [name for name in mine if not torch.equal(mine[name], theirs[name])]
    assert own(config, tmp_path / "one", world_size=1) == ["done"]
    one, two = (read_lines(tmp_path / n / "pretrain/metrics.jsonl") for n in ("one", "whole"))
    for a, b in zip(one, two, strict=True):
        assert a["itc/loss"] == pytest.approx(b["itc/loss"], rel=1e-3)


def test_told_to_stop_and_started_again(ranks: Ranks, undisturbed: Path, tmp_path: Path) -> None:
    """Oracle: the undisturbed run, bit for bit; one rank has SIGTERM, all stop after the step, and
    no micro-batch is seen twice."""
    stopped = ranks(RUN, tmp_path, world_size=2, spoil="term", step=3)
    assert stopped == ["Stopped: stopped at step 3 of 6, saved"] * 2
    assert ranks(RUN, tmp_path, world_size=2) == DONE
    _assert_same_run(tmp_path, undisturbed)
    assert _trace(tmp_path, 2) == _trace(undisturbed, 2)


def test_saved_batch_norm_statistics_are_the_mean_over_ranks(ranks: Ranks, tmp_path: Path) -> None:
    """Oracle: each rank's statistics before they are averaged, over two steps without learning, of
    which the saved ones are the mean; by the law of moving averages, those of a second step began
    from the mean of the first."""
    config = replace(RUN, num_steps=2, lr_transformer=1e-12, lr_cnn=1e-12)
    assert ranks(config, tmp_path, world_size=2) == DONE
    first, second = (torch.load(tmp_path / f"statistics-{rank}.pt") for rank in range(2))
    assert any(not torch.equal(first[name], second[name]) for name in first)
    saved = _weights(tmp_path)
    for name in first:
        mean = (first[name] + second[name]) / 2
        torch.testing.assert_close(saved[name.removeprefix("student.")], mean, msg=name)


def test_killed_while_saving_then_stopped_earlier(
    ranks: Ranks, undisturbed: Path, tmp_path: Path
) -> None:
    """Oracle: the undisturbed run, bit for bit. A checkpoint of step 4 that nothing names is left;
    the next start continues from 2, is stopped at 3, and must keep 3, not the orphan, though only
    one is kept."""
    config = replace(RUN, keep_checkpoints=1)
    killed = ranks(config, tmp_path, world_size=2, spoil="kill-saving", step=4)
    assert killed[0] == "signal 9" and killed[1] != "done"
    assert (tmp_path / "pretrain" / "latest").read_text().strip() == "step-00000002"
    assert (tmp_path / "pretrain" / "step-00000004").is_dir()
    stopped = ranks(config, tmp_path, world_size=2, spoil="term", step=3)
    assert stopped[0].startswith("Stopped")
    assert (tmp_path / "pretrain" / "step-00000003").is_dir()
    assert ranks(config, tmp_path, world_size=2) == DONE
    _assert_same_run(tmp_path, undisturbed)
    assert [p.name for p in (tmp_path / "pretrain").glob("step-*")] == ["step-00000006"]


def test_a_loss_that_is_no_number_stops_all_ranks_before_the_optimizer(
    ranks: Ranks, undisturbed: Path, tmp_path: Path
) -> None:
    """Oracle: both ranks name step, rank, objective and keys of the one that has it; step 5 stands
    nowhere, and without the fault the run continues to the undisturbed end, bit for bit."""
    first, last = ranks(RUN, tmp_path, world_size=2, spoil="nan", step=5)
    assert first == last
    reported = "DivergenceError: step 5: the loss is not finite. rank 1: itm nan, mlm "
    keys = read_lines(tmp_path / "trace-1.jsonl")[-1]["keys"]
    assert last.startswith(reported) and f"on {', '.join(keys)}. No optimizer stepped" in last
    assert "rank 0" not in last
    steps = [line["step"] for line in read_lines(tmp_path / "pretrain" / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4]
    assert ranks(RUN, tmp_path, world_size=2) == DONE
    _assert_same_run(tmp_path, undisturbed)


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "fp32"), (1, "bf16")])
def test_gradients_that_are_not_finite_leave_the_weights_and_stop_the_run(
    ranks: Ranks, tmp_path: Path, stage: int, precision: str
) -> None:
    """Oracle: one such step is logged with its keys and counted, and the run ends with finite
    weights; three in a row stop it, with the keys, and its checkpoints are of before."""
    config = replace(RUN, zero_stage=stage, precision=precision)
    once, always = tmp_path / "once", tmp_path / "always"
    assert ranks(config, once, world_size=1, spoil="gradient", step=3) == ["done"]
    assert all(w.isfinite().all() for w in _weights(once).values() if w.is_floating_point())
    lines = read_lines(once / "pretrain" / "metrics.jsonl")
    assert [line["nonfinite_steps"] for line in lines] == [0, 0, 1, 1, 1, 1]
    keys = [key for line in read_lines(once / "trace-0.jsonl")[4:6] for key in line["keys"]]
    (notice,) = (once / "pretrain" / "notices.log").read_text().splitlines()
    assert f"step 3: a gradient is not finite, on {', '.join(keys)}" in notice
    (outcome,) = ranks(config, always, world_size=1, spoil="gradients", step=3)
    assert outcome.startswith("DivergenceError: step 5: for 3 steps in a row a gradient is not")
    assert (always / "pretrain" / "latest").read_text().strip() == "step-00000004"


def test_a_loss_that_is_no_number_early_in_a_step(ranks: Ranks, tmp_path: Path) -> None:
    """Oracle: of the rank's two turns of the step the first is named, not the second; no metrics of
    that step."""
    config = replace(RUN, micro_batches_per_step=4)
    first, last = ranks(config, tmp_path, world_size=2, spoil="nan", step=3)
    keys, others = (line["keys"] for line in read_lines(tmp_path / "trace-1.jsonl")[-2:])
    assert first == last and f"on {', '.join(keys)}. No optimizer stepped" in last
    assert not any(f" {key}," in last or f" {key}." in last for key in set(others) - set(keys))
    assert len(read_lines(tmp_path / "pretrain" / "metrics.jsonl")) == 2


def test_ranks_that_cannot_share_a_step_evenly(ranks: Ranks, tmp_path: Path) -> None:
    """Oracle: one rank with three micro-batches a step. Two ranks see the same keys at the same
    positions, once, and end with its weights but for the order of sums: the turn that fills the
    second rank's round counts nothing."""
    config = replace(RUN, micro_batches_per_step=3)
    one, two = tmp_path / "one", tmp_path / "two"
    assert ranks(config, one, world_size=1) == ["done"]
    assert ranks(config, two, world_size=2) == DONE
    assert _trace(two, 2) == _trace(one, 1)
    assert [position for position, _ in _trace(one, 1)] == list(range(18))
    _assert_close_runs(two, one)


@pytest.mark.parametrize("stage", [0, 1])
def test_killed_and_continued_on_other_numbers_of_ranks(
    ranks: Ranks, undisturbed: Path, tmp_path: Path, stage: int
) -> None:
    """Oracle: the undisturbed run on two ranks. Killed on two, continued and killed on one, ended
    on three, which two micro-batches a step leave one turn without; weights, optimizer states and
    position go along, or the losses of the last steps would be others."""
    config = replace(RUN, zero_stage=stage)
    assert "signal 9" in ranks(config, tmp_path, world_size=2, spoil="kill", step=3)
    assert ranks(config, tmp_path, world_size=1, spoil="kill", step=5) == ["signal 9"]
    assert ranks(config, tmp_path, world_size=3) == ["done"] * 3
    _assert_close_runs(tmp_path, undisturbed)


def _assert_close_runs(root: Path, other: Path) -> None:
    """The same weights and losses but for the order of sums. BatchNorm's running statistics move
    once a micro-batch of a rank, so they are left out."""
    mine, theirs = _weights(root), _weights(other)
    for name in mine:
        if "running_" not in name and not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=3e-5, msg=name)
    lines, others = (read_lines(r / "pretrain" / "metrics.jsonl") for r in (root, other))
    assert [line["step"] for line in lines] == [line["step"] for line in others]
    for line, other_line in zip(lines, others):
        assert line["loss"] == pytest.approx(other_line["loss"], rel=1e-4), line["step"]


def _damage(objects: Path, copy: Path) -> str:
    """A copy of the shards in which one sample has a flipped bit; its key."""
    shutil.copytree(objects, copy)
    tar = copy / "train-000001.tar"
    entry = read_manifest(tar).samples[2]
    with tar.open("rb+") as file:
        file.seek(entry.members["jpg"][0] + 100)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    return entry.key


def test_a_damaged_sample_stops_the_run(ranks: Ranks, tmp_path: Path) -> None:
    """Oracle: the error names shard, key and cause, and what to do."""
    key = _damage(ranks.objects, tmp_path / "objects")
    source = SourceConfig(folder=str(tmp_path / "objects"))
    config = replace(RUN, data=DataConfig(sources=(source,)))
    (outcome,) = ranks(config, tmp_path / "run", world_size=1)
    assert outcome.startswith("ShardError: ") and "train-000001.tar" in outcome
    assert key in outcome and "CRC-32" in outcome and "on_fault=skip" in outcome


def test_a_picture_that_cannot_be_decoded_is_named(ranks: Ranks, tmp_path: Path) -> None:
    """Oracle: sound bytes of no picture, as in a tar that others wrote: shard, key and cause."""
    samples = toy_samples(NUM_TRAIN, 4)
    odd = next(n for n, sample in enumerate(samples) if "-train-" in sample.key)
    broken = replace(samples[odd], image=b"no picture")
    write_objects(tmp_path / "objects", [*samples[:odd], broken, *samples[odd + 1 :]])
    source = SourceConfig(folder=str(tmp_path / "objects"))
    config = replace(RUN, data=DataConfig(sources=(source,)))
    (outcome,) = ranks(config, tmp_path / "run", world_size=1)
    named = f"{tmp_path / 'objects'}/train-000000.tar: sample {broken.key}: got ShardError (picture: got"
    assert outcome.startswith(f"ShardError: {named}")


@pytest.mark.parametrize(("max_skipped", "ends"), [(3, True), (1, False)])
def test_a_damaged_sample_is_skipped_and_counted(
    ranks: Ranks, tmp_path: Path, max_skipped: int, ends: bool
) -> None:
    """Oracle: three epochs of 5 positions hold the damaged sample three times; every other sample
    is trained on once an epoch; beyond the budget all ranks stop."""
    key = _damage(ranks.objects, tmp_path / "objects")
    source = SourceConfig(folder=str(tmp_path / "objects"))
    data = DataConfig(sources=(source,), on_fault="skip", max_skipped=max_skipped)
    config = replace(RUN, data=data, num_steps=5, micro_batches_per_step=3)
    outcomes = ranks(config, tmp_path / "run", world_size=2)
    trace = _trace(tmp_path / "run", 2)
    epochs = [[k for p, keys in trace for k in keys if p // 5 == epoch] for epoch in range(3)]
    if not ends:
        assert all(o.startswith("ShardError: skipped 2 samples, expected at") for o in outcomes)
        return
    assert outcomes == DONE
    for keys in epochs:
        assert len(keys) == len(set(keys)) == NUM_TRAIN - 1 and key not in keys
    skipped = [line["skipped"] for line in read_lines(tmp_path / "run/pretrain/metrics.jsonl")]
    assert skipped == sorted(skipped) and skipped[-1] == 3
    said = "".join((tmp_path / "run" / f"log-{rank}").read_text() for rank in range(2))
    assert said.count(f"sample {key}: got CRC-32") == 3
    notices = (tmp_path / "run" / "pretrain" / "notices.log").read_text().splitlines()
    assert len(notices) == 3 and all(f"sample {key}: got CRC-32" in line for line in notices)


class Evil:
    """Unpickled it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["torch", "plain"])
def test_a_hostile_checkpoint_is_refused(
    ranks: Ranks, undisturbed: Path, tmp_path: Path, kind: str
) -> None:
    """Oracle: the file that the pickle would write is not there, and the run ends in an error."""
    shutil.copytree(undisturbed / "pretrain", tmp_path / "pretrain")
    written = tmp_path / "written"
    for path in (tmp_path / "pretrain" / "step-00000006").iterdir():
        if kind == "torch":
            torch.save({"module": Evil(written)}, path)
        else:
            path.write_bytes(pickle.dumps({"module": Evil(written)}))
    outcomes = ranks(RUN, tmp_path, world_size=2)
    assert not written.exists()
    assert all("Unpickling" in o or "weights_only" in o.lower() for o in outcomes), outcomes


def test_a_finished_run_only_saves_its_student_again(
    ranks: Ranks, undisturbed: Path, tmp_path: Path
) -> None:
    """Oracle: the last step has a checkpoint, so not a single micro-batch is seen again."""
    shutil.copytree(undisturbed / "pretrain", tmp_path / "pretrain")
    assert ranks(RUN, tmp_path, world_size=2) == DONE
    assert _trace(tmp_path, 2) == []
    _assert_same_run(tmp_path, undisturbed)


def test_odd_numbers_of_steps(ranks: Ranks, tmp_path: Path) -> None:
    """Oracle: 5 steps, checkpoints every 3, lines every 2: lines at 2, 4 and the last, checkpoints
    at 3 and the end, and progress that ends at 5 of 5 though it was stopped at 1."""
    config = replace(RUN, num_steps=5, checkpoint_steps=3, log_steps=2)
    ranks(config, tmp_path, world_size=1, spoil="term", step=1)
    assert ranks(config, tmp_path, world_size=1) == ["done"]
    lines = read_lines(tmp_path / "pretrain" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert (tmp_path / "pretrain" / "latest").read_text().strip() == "step-00000005"
    said = [t for t in (tmp_path / "log-0").read_text().splitlines() if t.startswith("pretrain: ")]
    assert said[-1].startswith("pretrain: 5/5 steps")


def test_a_cut_metrics_line_is_dropped(tmp_path: Path) -> None:
    """Oracle: lines up to the step, without what a kill cut and what came after a checkpoint."""
    from stages.training.monitoring.metrics import MetricsLog, read_metrics

    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in (1, 2, 3)) + '{"step": 4, "lo')
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]
    log = MetricsLog(tmp_path, step=2)
    log.write({"step": 3, "loss": 0.5})
    log.close()
    assert read_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 0.5}]
