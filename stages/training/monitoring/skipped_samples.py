"""Skips and counts samples that cannot be read, or stops, as the recipe says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sharding.format.schema import ShardError
from sharding.reading.range_reader import NO_RANGES
from stages.training.data_loader import LoadedBatch


@dataclass(frozen=True, kw_only=True)
class FaultPolicy:
    """What happens when a sample cannot be read."""

    on_fault: str = "stop"
    """`stop` the run, or `skip` the sample, say so and count it."""
    max_skipped: int = 1000
    """Skipped samples after which the run stops all the same."""
    stall_seconds: float = 60.0
    """A rank that waits longer for data says which worker does what, on which shard."""


class SkippedSamples:
    """Counts what was skipped, over all ranks and earlier starts; `num_before` is of those."""

    def __init__(
        self, policy: FaultPolicy, num_before: int, log: Callable[[str], object], *, section: str
    ) -> None:
        self._policy, self._num_before, self._log = policy, num_before, log
        self._section, self._num_here = section, 0

    def add(self, loaded: LoadedBatch) -> None:
        """Names each fault of a turn that counts; ShardError where the recipe says stop."""
        if loaded.turn.is_padding:
            return
        for fault in loaded.faults:
            text = f"{fault.tar}: sample {fault.key}: {fault.cause}"
            if NO_RANGES in fault.cause:  # as for every other sample: there is nothing to skip to
                raise ShardError(
                    f"{text}. No step was taken with it; the last checkpoint is intact."
                )
            if self._policy.on_fault == "stop":
                raise ShardError(
                    f"{text}. No step was taken with it; the last checkpoint is intact. Repair the "
                    f"shard (boxless verify, boxless repair), or set {self._section}.data."
                    "on_fault=skip"
                )
            self._log(f"skipped, at position {loaded.turn.position}: {text}")
            self._num_here += 1

    def of_all_ranks(self, device: torch.device) -> int:
        """How many samples all ranks have skipped. A collective; ShardError on every rank when
        they are more than `max_skipped`."""
        num = torch.tensor(self._num_here, device=device)
        torch.distributed.all_reduce(num)
        total = self._num_before + int(num)
        if total > self._policy.max_skipped:
            raise ShardError(
                f"skipped {total} samples, expected at most {self._policy.max_skipped} "
                f"({self._section}.data.max_skipped); repair the shards (boxless verify, boxless "
                "repair)"
            )
        return total
