"""Checkpoints that survive kill -9 and can be continued on another number of ranks.

DeepSpeed's own `latest` file is not used: it is written in place. Ours is written after every
rank's files are on disk, by rename.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from boxless.errors import BoxlessError
from sharding.writing.atomic import write_text
from stages.training.checkpoints.pruning import remove_old_checkpoints
from stages.training.checkpoints.zero_resharding import load_parts, load_whole_parts, num_parts
from stages.training.loss_scaling import set_loss_scaler
from stages.training.monitoring.gradient_norms import are_weights_finite
from stages.training.monitoring.stopping import DivergenceError, any_rank

LATEST = "latest"


def check_weights(engine: Any) -> None:
    """Raises DivergenceError on every rank where a weight is not finite on any. A collective."""
    are_finite = are_weights_finite(engine.module)
    if any_rank(~are_finite, are_finite.device):
        raise DivergenceError(
            "got weights that are not finite, expected none: they are not saved, and the last "
            "checkpoint is intact. Try a lower rate, or a precision of more range"
        )


def save_checkpoint(engine: Any, folder: Path, state: dict[str, Any], keep: int) -> None:
    """Every rank writes its part; then `latest` names the new one; then old ones go.

    state: what `load_checkpoint` gives back; it has `step`, and `data`, the source's state. Raises
    DivergenceError, and saves nothing, where weights are not finite. A collective.
    """
    check_weights(engine)
    tag = f"step-{state['step']:08d}"
    if torch.distributed.get_rank() == 0 and (folder / tag).exists():
        # Half of a save that was killed, perhaps by more ranks than there are now.
        shutil.rmtree(folder / tag)
    torch.distributed.barrier()
    engine.save_checkpoint(str(folder), tag=tag, client_state=state, save_latest=False)
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        write_text(folder / LATEST, tag)
        remove_old_checkpoints(folder, newest=tag, keep=keep)
    torch.distributed.barrier()


def has_checkpoint(folder: Path) -> bool:
    """Whether `load_checkpoint` finds one."""
    return (folder / LATEST).exists()


def load_checkpoint(engine: Any, folder: Path) -> dict[str, Any] | None:
    """Bring back weights and optimizer; the state given to `save_checkpoint`, None at the start.

    The checkpoint may be of another number of ranks. Raises ValueError when it cannot be read.
    """
    if not has_checkpoint(folder):
        return None
    tag = (folder / LATEST).read_text().strip()
    num_saved = num_parts(folder / tag)
    if bool(num_saved) != bool(engine.zero_optimization()):
        raise BoxlessError(
            f"{folder / tag}: got a checkpoint made {'with' if num_saved else 'without'} ZeRO, "
            f"expected one made {'without' if num_saved else 'with'} it; continue with the zero_stage "
            "that it was made with (and accumulate_precision=training where that is bf16 of an "
            f"earlier Boxless without ZeRO), or remove the {folder.name} folder to start over"
        )
    is_cut_otherwise = num_saved not in (0, torch.distributed.get_world_size())
    if is_cut_otherwise and engine.zero_optimization_partition_weights():
        state = load_whole_parts(engine, folder / tag)
        set_loss_scaler(engine)
        return _known(state, folder / tag)
    path, state = engine.load_checkpoint(str(folder), tag=tag, load_module_only=is_cut_otherwise)
    if path is None:
        raise BoxlessError(
            f"{folder / tag}: got no checkpoint that DeepSpeed can read, expected the one that "
            f"{folder / LATEST} names; remove the {folder.name} folder to start over"
        )
    if is_cut_otherwise:
        load_parts(engine, folder / tag)
        engine.global_steps, engine.skipped_steps = state["global_steps"], state["skipped_steps"]
    set_loss_scaler(engine)
    return _known(state, folder / tag)


def _known(state: dict[str, Any], place: Path) -> dict[str, Any]:
    """What was saved, without what DeepSpeed keeps beside it."""
    if "data" not in state:
        raise BoxlessError(
            f"{place}: got a checkpoint of an older Boxless, expected one that knows its data; "
            f"remove the {place.parent.name} folder to start over"
        )
    return state
