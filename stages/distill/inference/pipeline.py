"""Runs a detector over a stream of samples: keeps the device busy, and yields results in order.

Three kinds of threads share the work, and bounded numbers of pictures lie between them:

    the caller's    reads samples, well ahead of the results; labels and writes what comes out
    decoders        decode and resize, as Pillow leaves Python's lock to the others over both
    one detector's  transfers, runs the net, selects, makes arrays

What comes out depends on none of their speeds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from sharding.format.schema import Failure, Sample
from stages.detector.ops.resize import Prepared
from stages.distill.inference.batches import Batches
from stages.distill.inference.decode import decode
from stages.distill.inference.failures import (
    check_device,
    failure,
    out_of_memory,
    ran_out,
    teacher_failure,
)
from stages.distill.inference.oom_fallback import Keyed, OomFallback
from stages.distill.inference.stage_timer import DEVICE, Clock
from stages.distill.object_source import Detector
from stages.distill.text.caption_prompts import CaptionPrompts

NUM_BATCHES_SEARCHED = 4
"""A picture waits for others of its size while so many batches of pictures go by."""


@dataclass
class _Passing:
    """A picture on its way; `number` is its place in the line."""

    number: int
    key: str
    prepared: Future[Prepared | Failure]
    seen: Future[np.ndarray | Failure] = field(default_factory=Future)


class InferencePipeline:
    """An ObjectSource made of a Detector, whose names and sizes it takes on.

    batch_size: the most pictures, of one size, that go into the detector at once. num_decoders:
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
        self._window = 1 if batch_size == 1 else NUM_BATCHES_SEARCHED * batch_size
        self.clock = Clock()

    @property
    def label_names(self) -> Sequence[str]:
        return self._detector.label_names

    @property
    def attribute_names(self) -> Sequence[str]:
        return self._detector.attribute_names

    @property
    def feature_size(self) -> int:
        return self._detector.feature_size

    @property
    def num_top(self) -> int:
        return self._detector.num_top

    @property
    def fingerprint(self) -> str:
        return self._detector.fingerprint

    @property
    def most_passing(self) -> int:
        """Pictures that are on their way at most: those that wait for others of their size, a
        batch in the detector's hands, and two for each decoder."""
        return self._window + self._batch_size + 2 * self._num_decoders

    def objects(self, samples: Iterable[Sample]) -> Iterator[np.ndarray | Failure]:
        """As ObjectSource.see. Its threads end with it, after the batch that is in the
        detector's hands."""
        rest = iter(samples)
        line: deque[_Passing] = deque()
        batches: Batches[tuple[_Passing, Prepared]] = Batches(
            most=self._batch_size, window=self._window
        )
        number, has_more = 0, True
        with (
            ThreadPoolExecutor(self._num_decoders, "boxless-decode") as decoders,
            ThreadPoolExecutor(1, "boxless-detect") as device,
        ):
            try:
                while True:
                    while has_more and len(line) < self.most_passing:
                        sample = next(rest, None)
                        if sample is None:
                            has_more = False
                            device.submit(self._look_at_rest, batches)
                            break
                        passing = _Passing(
                            number,
                            sample.key,
                            decoders.submit(self._prepare, sample, self._prompts_of(sample)),
                        )
                        line.append(passing)
                        device.submit(self._take, passing, batches)
                        number += 1
                    if not line:
                        return
                    yield line.popleft().seen.result()
            finally:
                device.shutdown(wait=False, cancel_futures=True)
                decoders.shutdown(wait=False, cancel_futures=True)

    def _prompts_of(self, sample: Sample) -> tuple[str, ...]:
        return () if self.prompts is None else self.prompts.of(sample.info["captions"])

    def _prepare(self, sample: Sample, prompts: tuple[str, ...]) -> Prepared | Failure:
        """In a decoder's thread: what the detector takes, or why there is none."""
        try:
            picture = decode(sample)
        except Exception as error:  # Pillow raises nearly everything on broken bytes
            if ran_out(error):
                return out_of_memory(sample.key, "decode")
            return failure(sample.key, "decode", error)
        try:
            return self._detector.prepare(picture)._replace(prompts=prompts)
        except Exception as error:
            if ran_out(error):
                return out_of_memory(sample.key, "prepare")
            check_device(sample.key, error)
            return teacher_failure(sample.key, "prepare", error)

    def _take(self, passing: _Passing, batches: Batches[tuple[_Passing, Prepared]]) -> None:
        """In the detector's thread: the next picture of the line, and the batches due with it."""
        try:
            with self.clock.during("decode wait"):
                prepared = passing.prepared.result()
            if isinstance(prepared, Failure):
                passing.seen.set_result(prepared)
                due = batches.passed(passing.number)
            else:
                due = batches.add(passing.number, prepared.size, (passing, prepared))
        except BaseException as error:  # for the caller, who waits for this picture
            passing.seen.set_exception(error)
            return
        for batch in due:
            self._look(batch)

    def _look_at_rest(self, batches: Batches[tuple[_Passing, Prepared]]) -> None:
        for batch in batches.remaining():
            self._look(batch)

    def _look(self, batch: list[tuple[_Passing, Prepared]]) -> None:
        """In the detector's thread: the objects of a batch, or what the caller is to raise."""
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
