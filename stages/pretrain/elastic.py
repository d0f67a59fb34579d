"""ZeRO's parts of a checkpoint, cut anew for another number of ranks.

Reached from `stages.pretrain.engine`. ZeRO 1 and 2 lay the parameters of a group one after the
other in one flat tensor, pad it, and give each rank an equal part; weights in fp32 and optimizer
states alike. DeepSpeed reads the parts back only on as many ranks as wrote them, so here they are
joined, the padding dropped, and this rank's new part cut out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from deepspeed.checkpoint.constants import (
    BASE_OPTIMIZER_STATE,
    OPTIMIZER_STATE_DICT,
    PARAM_ALIGNMENT_PADDINGS,
    SINGLE_PARTITION_OF_FP32_GROUPS,
)

PART = "*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"


def num_parts(folder: Path) -> int:
    """How many ranks wrote ZeRO's parts of the checkpoint in `folder`; 0 without ZeRO."""
    return len(list(folder.glob(PART.format(rank="*"))))


def load_parts(engine: Any, folder: Path) -> None:
    """Give this rank its part of weights and optimizer states, from all parts in `folder`.

    Raises FileNotFoundError where a part is missing.
    """
    parts = [_read(engine, folder, rank) for rank in range(num_parts(folder))]
    optimizer, rank = engine.optimizer, torch.distributed.get_rank()
    own = dict(parts[0])
    own[PARAM_ALIGNMENT_PADDINGS] = optimizer.round_robin_bit16_padding
    weights, states = [], {}
    for group, flat in enumerate(optimizer.single_partition_of_fp32_groups):
        old = [part[SINGLE_PARTITION_OF_FP32_GROUPS][group] for part in parts]
        num_elements = sum(map(len, old))
        weights.append(cut(old, rank, len(flat), num_elements))
        (number,) = own[BASE_OPTIMIZER_STATE]["param_groups"][group]["params"]
        of_parts = [part[BASE_OPTIMIZER_STATE]["state"].get(number, {}) for part in parts]
        states[number] = {
            name: cut([state[name] for state in of_parts], rank, len(flat), num_elements)
            for name in of_parts[0]
        }
    own[SINGLE_PARTITION_OF_FP32_GROUPS] = weights
    own[BASE_OPTIMIZER_STATE] = {**own[BASE_OPTIMIZER_STATE], "state": states}
    # It looks only at the place of its own rank.
    optimizer.load_state_dict([own] * (rank + 1), load_from_fp32_weights=True)


def cut(
    parts: list[torch.Tensor], rank: int, num_own: int, num_elements: int
) -> torch.Tensor:
    """The part of `rank`, `num_own` elements of the `num_elements` that `parts` hold, in order,
    before their padding; padded with zeros. A count (0-dimensional) is the same in all parts."""
    if parts[0].dim() == 0:
        return parts[0]
    flat = torch.cat(parts)[:num_elements]
    own = flat[rank * num_own:(rank + 1) * num_own]
    return torch.nn.functional.pad(own, (0, num_own - len(own)))


def _read(engine: Any, folder: Path, rank: int) -> dict[str, Any]:
    found = list(folder.glob(PART.format(rank=rank)))
    if not found:
        raise FileNotFoundError(f"{folder}: got no part of rank {rank}, expected ZeRO's file of it")
    return engine.checkpoint_engine.load(str(found[0]), map_location="cpu")[OPTIMIZER_STATE_DICT]
