"""DeepSpeed around the model: its settings, and checkpoints that survive kill -9.

Reached from `stages.pretrain.run`. DeepSpeed's own `latest` file is not used: it is written in
place. Ours is written after every rank's files are on disk, by rename.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from sharding.atomic import write_text
from stages.pretrain.config import PretrainConfig
from stages.pretrain.elastic import load_parts, num_parts
from stages.pretrain.model import PretrainModel
from stages.pretrain.optimizer import make_optimizer

LATEST = "latest"
STATE = ("step", "skipped", "data")
"""What a checkpoint says beside the weights: steps done, samples skipped, `Stream.state`."""
SHARED_MEMORY_OP = "deepspeed_shm_comm"


class SafeCheckpointEngine(TorchCheckpointEngine):
    """DeepSpeed's checkpoint files, synced to disk, and read without running any pickled code."""

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        """Write beside, sync, rename."""
        beside = f"{path}.tmp"
        with open(beside, "wb") as file:
            torch.save(state_dict, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)

    def load(self, path: str, map_location: Any = None) -> dict[str, Any]:
        """Tensors, containers and the three plain DeepSpeed classes that its states hold."""
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            return torch.load(path, map_location=map_location, weights_only=True)


def join_ranks() -> None:
    """Start the process group: NCCL on GPUs, gloo on CPUs.

    On CPUs DeepSpeed would first compile an all-reduce for inference, a minute of a C++ compiler
    that a newcomer may not have; training never calls it.
    """
    deepspeed.ops.__compatible_ops__[SHARED_MEMORY_OP] = False
    # It warns of any optimizer but its own; AdamwSgd's parity with PyTorch's is tested.
    deepspeed.utils.logger.setLevel(logging.ERROR)
    deepspeed.init_distributed(verbose=False)


def make_engine(model: PretrainModel, config: PretrainConfig, world_size: int) -> Any:
    """The DeepSpeed engine (deepspeed.DeepSpeedEngine, which has no types)."""
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=make_optimizer(model.student, config),
        config=engine_settings(config, world_size),
    )
    engine.checkpoint_engine = SafeCheckpointEngine()
    return engine


def engine_settings(config: PretrainConfig, world_size: int) -> dict[str, Any]:
    """What `ds_config.json` would hold, from the recipe.

    Every rank takes the same number of turns a step; where the ranks do not share its micro-batches
    evenly, some turns count nothing (`sharding.order.turns`, `turn_weight`).
    """
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": -(-config.micro_batches_per_step // world_size),
        "gradient_clipping": config.clip_norm,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": config.precision == "bf16"},
        "steps_per_print": 10**9,
    }


def save_checkpoint(engine: Any, folder: Path, state: dict[str, Any], keep: int) -> None:
    """Every rank writes its part; then `latest` names the new one; then old ones go."""
    tag = f"step-{state['step']:08d}"
    if torch.distributed.get_rank() == 0 and (folder / tag).exists():
        # Half of a save that was killed, perhaps by more ranks than there are now.
        shutil.rmtree(folder / tag)
    torch.distributed.barrier()
    engine.save_checkpoint(str(folder), tag=tag, client_state=state, save_latest=False)
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        write_text(folder / LATEST, tag)
        # A later one is half of a save that was killed: it must not count among the kept.
        saved = sorted(path for path in folder.glob("step-*") if path.name <= tag)
        for old in saved[:-keep]:
            shutil.rmtree(old)
    torch.distributed.barrier()


def load_checkpoint(engine: Any, folder: Path) -> dict[str, Any] | None:
    """Bring back weights and optimizer; the state given to `save_checkpoint`, None at the start.

    The checkpoint may be of another number of ranks. Raises ValueError when it cannot be read.
    """
    if not (folder / LATEST).exists():
        return None
    tag = (folder / LATEST).read_text().strip()
    is_cut_otherwise = num_parts(folder / tag) not in (0, torch.distributed.get_world_size())
    path, state = engine.load_checkpoint(
        str(folder), tag=tag, load_module_only=is_cut_otherwise
    )
    if path is None:
        raise ValueError(
            f"{folder / tag}: got no checkpoint that DeepSpeed can read, expected the one that "
            f"{folder / LATEST} names; remove the pretrain folder to start anew"
        )
    if is_cut_otherwise:
        load_parts(engine, folder / tag)
        engine.global_steps, engine.skipped_steps = state["global_steps"], state["skipped_steps"]
    if "data" not in state:
        raise ValueError(
            f"{folder / tag}: got a checkpoint of an older Boxless, expected one that knows its "
            "data; remove the pretrain folder to start anew"
        )
    return {name: state[name] for name in STATE}
