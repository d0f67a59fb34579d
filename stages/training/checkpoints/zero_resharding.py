"""Reshards a ZeRO checkpoint for another number of ranks.

ZeRO 1 and 2 lay the parameters of a group one after the
other in one flat tensor, pad it, and give each rank an equal part; ZeRO 3 cuts each parameter so,
and lays a rank's parts of a group one after the other. Weights in fp32 and optimizer states are cut
alike. DeepSpeed reads the parts back only on as many ranks as wrote them, so here they are joined,
the padding dropped, and this rank's new part cut out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from deepspeed.checkpoint.constants import (
    BASE_OPTIMIZER_STATE,
    FP32_FLAT_GROUPS,
    FROZEN_PARAM_FRAGMENTS,
    OPTIMIZER_STATE_DICT,
    PARAM_ALIGNMENT_PADDINGS,
    SINGLE_PARTITION_OF_FP32_GROUPS,
)

from boxless.errors import BoxlessError

PART = "*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
MODEL_PART = "zero_pp_rank_{rank}_mp_rank_00_model_states.pt"
"""Of ZeRO 3 only."""


def num_parts(folder: Path) -> int:
    """How many ranks wrote ZeRO's parts of the checkpoint in `folder`; 0 without ZeRO."""
    return len(list(folder.glob(PART.format(rank="*"))))


def load_parts(engine: Any, folder: Path) -> None:
    """Give this rank its part of weights and optimizer states, from all parts in `folder`.

    Raises FileNotFoundError where a part is missing, ValueError where parts cannot be cut again.
    """
    parts = [_read(engine, folder, rank) for rank in range(num_parts(folder))]
    optimizer, rank = engine.optimizer, torch.distributed.get_rank()
    if SINGLE_PARTITION_OF_FP32_GROUPS not in parts[0]:
        raise BoxlessError(
            f"{folder}: got a checkpoint of {len(parts)} ranks that sum gradients in fp32 "
            "(data_types.grad_accum_dtype of a ds_config), expected to continue with as many; others "
            "cannot read it"
        )
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


def load_whole_parts(engine: Any, folder: Path) -> dict[str, Any]:
    """ZeRO 3: give this rank its part of all that `folder` holds; the state saved with it.

    Raises FileNotFoundError where a part is missing, ValueError where its groups are others.
    """
    num_old, optimizer = num_parts(folder), engine.optimizer
    parts = [_read(engine, folder, rank) for rank in range(num_old)]
    models = [
        engine.checkpoint_engine.load(str(folder / MODEL_PART.format(rank=rank)), "cpu")
        for rank in range(num_old)
    ]
    sizes = [[p.ds_numel for p in group] for group in optimizer.fp16_groups]
    if len(sizes) != len(parts[0][FP32_FLAT_GROUPS]):
        raise BoxlessError(
            f"{folder}: got {len(parts[0][FP32_FLAT_GROUPS])} groups of weights, expected "
            f"{len(sizes)}; continue on {num_old} ranks, or with a larger "
            "zero_optimization.sub_group_size"
        )
    own, states = dict(parts[0]), {}
    for group, numels in enumerate(sizes):
        of_parts = [part[OPTIMIZER_STATE_DICT]["state"].get(group, {}) for part in parts]
        states[group] = {
            name: recut([state[name] for state in of_parts], numels) for name in of_parts[0]
        }
    own[OPTIMIZER_STATE_DICT] = {**own[OPTIMIZER_STATE_DICT], "state": states}
    own[FP32_FLAT_GROUPS] = [
        recut([part[FP32_FLAT_GROUPS][group] for part in parts], numels)
        for group, numels in enumerate(sizes)
    ]
    optimizer.checkpoint_event_prologue()
    # It looks only at the place of its own rank.
    optimizer.load_state_dict([own] * (torch.distributed.get_rank() + 1))
    _load_frozen(engine, [model[FROZEN_PARAM_FRAGMENTS] or {} for model in models])
    for name, buffer in engine.module.named_buffers():
        if name in models[0]["module"]:
            buffer.copy_(models[0]["module"][name])
    optimizer.checkpoint_event_epilogue()
    engine.global_steps = models[0]["global_steps"]
    engine.skipped_steps = models[0]["skipped_steps"]
    return models[0]


def recut(parts: list[torch.Tensor], numels: list[int]) -> torch.Tensor:
    """This rank's part of parameters with `numels` elements, from the parts of all ranks, each the
    parameters' parts one after the other. A count (0-dimensional) is the same in all parts."""
    if parts[0].dim() == 0:
        return parts[0]
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    old_sizes = [-(-numel // len(parts)) for numel in numels]
    pieces = zip(*(part.split(old_sizes) for part in parts))
    return torch.cat(
        [
            cut(list(of_ranks), rank, -(-numel // world_size), numel)
            for numel, of_ranks in zip(numels, pieces)
        ]
    )


def _load_frozen(engine: Any, parts: list[dict[str, torch.Tensor]]) -> None:
    """Weights that the optimizer does not hold, from each rank's pieces of them by name."""
    for name, parameter in engine.module.named_parameters():
        if name in parts[0]:
            pieces = [part[name].flatten() for part in parts]
            parameter.ds_tensor.copy_(recut(pieces, [parameter.ds_numel]))


def cut(parts: list[torch.Tensor], rank: int, num_own: int, num_elements: int) -> torch.Tensor:
    """The part of `rank`, `num_own` elements of the `num_elements` that `parts` hold, in order,
    before their padding; padded with zeros. A count (0-dimensional) is the same in all parts."""
    if parts[0].dim() == 0:
        return parts[0]
    flat = torch.cat(parts)[:num_elements]
    own = flat[rank * num_own : (rank + 1) * num_own]
    return torch.nn.functional.pad(own, (0, num_own - len(own)))


def _read(engine: Any, folder: Path, rank: int) -> dict[str, Any]:
    found = list(folder.glob(PART.format(rank=rank)))
    if not found:
        raise FileNotFoundError(f"{folder}: got no part of rank {rank}, expected ZeRO's file of it")
    return engine.checkpoint_engine.load(str(found[0]), map_location="cpu")[OPTIMIZER_STATE_DICT]
