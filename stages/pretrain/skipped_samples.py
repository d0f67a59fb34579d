"""Samples that could not be had: stop, or skip and count, as the recipe says.

Reached from `stages.pretrain.loop`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from sharding.format.schema import ShardError
from stages.pretrain.data import LoadedBatch
from stages.pretrain.data_config import DataConfig


class Skipped:
    """Counts what was skipped, over all ranks and earlier starts; `num_before` is of those."""

    def __init__(self, config: DataConfig, num_before: int, say: Callable[[str], object]) -> None:
        self._config, self._num_before, self._say = config, num_before, say
        self._num_here = 0

    def add(self, delivery: LoadedBatch) -> None:
        """Names each fault of a turn that counts; ShardError where the recipe says stop."""
        if delivery.turn.is_padding:
            return
        for fault in delivery.faults:
            text = f"{fault.tar}: sample {fault.key}: {fault.cause}"
            if self._config.on_fault == "stop":
                raise ShardError(
                    f"{text}. No step was taken with it; the last checkpoint is sound. Mend the "
                    "shard (boxless verify, boxless repair), or set pretrain.data.on_fault=skip"
                )
            self._say(f"skipped, at position {delivery.turn.position}: {text}")
            self._num_here += 1

    def everywhere(self, device: torch.device) -> int:
        """How many samples all ranks have skipped. A collective; ShardError on every rank when
        they are more than `max_skipped`."""
        num = torch.tensor(self._num_here, device=device)
        torch.distributed.all_reduce(num)
        total = self._num_before + int(num)
        if total > self._config.max_skipped:
            raise ShardError(
                f"skipped {total} samples, expected at most {self._config.max_skipped} "
                "(pretrain.data.max_skipped); mend the shards (boxless verify, boxless repair)"
            )
        return total
