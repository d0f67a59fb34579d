"""Runs a detector over the samples of a shard: keeps the device busy, yields results in order.

Three kinds of threads share the work, and bounded numbers of pictures lie between them:

    the caller's    reads samples, batch by planned batch; labels and writes what comes out
    decoders        decode and resize, as Pillow leaves Python's lock to the others over both
    one detector's  transfers, runs the net, selects, makes arrays

What comes out depends on none of their speeds. Objects of a picture whose batch ran early wait for
their turn; pixels do not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from sharding.coordination.fatal_errors import ran_out_of_memory
from sharding.format.schema import Failure, Sample
from stages.detector.ops.resize import Prepared
from stages.distill.inference.batch_plan import plan_batches
from stages.distill.inference.decode import decode
from stages.distill.inference.failures import (
    check_device,
    failure,
    out_of_memory,
    teacher_failure,
)
from stages.distill.inference.oom_fallback import Keyed, OomFallback
from stages.distill.inference.stage_timer import DEVICE, Clock
from stages.distill.object_source import Detector
from stages.distill.shard_samples import ShardSamples
from stages.distill.text.caption_prompts import CaptionPrompts


@dataclass
class _Passing:
    """A picture on its way."""

    key: str
    prepared: Future[Prepared | Failure]
    seen: Future[np.ndarray | Failure] = field(default_factory=Future)


class InferencePipeline:
    """An ObjectSource made of a Detector, whose names and sizes it takes on.

    batch_size: the most pictures, of one canvas, that go into the detector at once. num_decoders:
    threads. log: gets a line when memory ran out. prompts: finds the phrases of captions that the
    detector is asked for, in the caller's thread; None where it is not asked. clock: its parts are
    "decode wait" (of the detector's thread) and "device".
    """

    def __init__(
        self,
        detector: Detector,
        *,
        batch_size: int,
        num_decoders: int,
        log: Callable[[str], None] = print,
        prompts: CaptionPrompts | None = None,
    ) -> None:
        self.prompts = prompts
        self._detector = detector
        self._detector_with_fallback = OomFallback(detector, log=log)
        self._batch_size, self._num_decoders = batch_size, num_decoders
        self._num_batches = self._num_pictures = 0
        self.clock = Clock()

    @property
    def label_names(self) -> Sequence[str]:
        """The detector's names of labels, by number."""
        return self._detector.label_names

    @property
    def attribute_names(self) -> Sequence[str]:
        """The detector's names of attributes, by number."""
        return self._detector.attribute_names

    @property
    def feature_size(self) -> int:
        """The length of an object's feature."""
        return self._detector.feature_size

    @property
    def num_top(self) -> int:
        """The length of a soft label."""
        return self._detector.num_top

    @property
    def fingerprint(self) -> str:
        """The detector's fingerprint."""
        return self._detector.fingerprint

    @property
    def most_ahead(self) -> int:
        """Pictures that are on their way at most, those apart whose batch has to run for a result
        that is due: two batches, and two for each decoder."""
        return 2 * (self._batch_size + self._num_decoders)

    def about_batches(self) -> str:
        """How full the batches were, for people."""
        mean = self._num_pictures / max(self._num_batches, 1)
        return f"{self._num_batches} batches of {mean:.2f} pictures, {self._batch_size} at most."

    def objects(self, samples: ShardSamples) -> Iterator[np.ndarray | Failure]:
        """As ObjectSource.objects. Its threads end with it, after the batch that is in the
        detector's hands."""
        sizes = [self._detector.canvas(entry.height, entry.width) for entry in samples.entries]
        planned = deque(plan_batches(sizes, most=self._batch_size))
        ahead: deque[list[int]] = deque()  # batches on their way that no result was due of yet
        line: dict[int, _Passing] = {}
        with (
            ThreadPoolExecutor(self._num_decoders, "boxless-decode") as decoders,
            ThreadPoolExecutor(1, "boxless-detect") as device,
        ):
            try:
                for place in range(len(samples)):
                    while planned and (
                        planned[0][0] == place
                        or sum(map(len, ahead)) + len(planned[0]) <= self.most_ahead
                    ):
                        ahead.append(planned.popleft())
                        batch = [self._start(samples[each], decoders) for each in ahead[-1]]
                        line.update(zip(ahead[-1], batch))
                        device.submit(self._look_at, batch)
                    if ahead and ahead[0][0] == place:
                        ahead.popleft()
                    yield line.pop(place).seen.result()
            finally:
                device.shutdown(wait=False, cancel_futures=True)
                decoders.shutdown(wait=False, cancel_futures=True)

    def _start(self, sample: Sample, decoders: ThreadPoolExecutor) -> _Passing:
        return _Passing(
            sample.key, decoders.submit(self._prepare, sample, self._prompts_of(sample))
        )

    def _prompts_of(self, sample: Sample) -> tuple[str, ...]:
        return () if self.prompts is None else self.prompts.of(sample.info["captions"])

    def _prepare(self, sample: Sample, prompts: tuple[str, ...]) -> Prepared | Failure:
        """In a decoder's thread: what the detector takes, or why there is none."""
        try:
            picture = decode(sample)
        except Exception as error:  # Pillow raises nearly everything on broken bytes
            if ran_out_of_memory(error):
                return out_of_memory(sample.key, "decode")
            return failure(sample.key, "decode", error)
        try:
            return self._detector.prepare(picture)._replace(prompts=prompts)
        except Exception as error:
            if ran_out_of_memory(error):
                return out_of_memory(sample.key, "prepare")
            check_device(sample.key, error)
            return teacher_failure(sample.key, "prepare", error)

    def _look_at(self, batch: Sequence[_Passing]) -> None:
        """In the detector's thread: the objects of a planned batch, without pictures that could not
        be prepared. Where a decoded picture has another canvas than its manifest says, it goes with
        others of its own."""
        of_canvas: dict[tuple[int, int], list[tuple[_Passing, Prepared]]] = {}
        for passing in batch:
            try:
                with self.clock.during("decode wait"):
                    prepared = passing.prepared.result()
            except BaseException as error:  # for the caller, who waits for this picture
                passing.seen.set_exception(error)
                continue
            if isinstance(prepared, Failure):
                passing.seen.set_result(prepared)
                continue
            canvas = self._detector.canvas(prepared.height, prepared.width)
            of_canvas.setdefault(canvas, []).append((passing, prepared))
        for part in of_canvas.values():
            self._look(part)

    def _look(self, batch: list[tuple[_Passing, Prepared]]) -> None:
        """In the detector's thread: the objects of a batch, or what the caller is to raise."""
        self._num_batches += 1
        self._num_pictures += len(batch)
        try:
            with self.clock.during(DEVICE):
                results = self._detector_with_fallback.detect(
                    [Keyed(passing.key, prepared) for passing, prepared in batch]
                )
        except BaseException as error:
            for passing, _ in batch:
                passing.seen.set_exception(error)
            return
        for (passing, _), result in zip(batch, results):
            passing.seen.set_result(result)
