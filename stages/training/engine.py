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
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from sharding.writing.atomic import write_text
from stages.pretrain.config import PretrainConfig
from stages.pretrain.model import PretrainModel
from stages.student.activation_checkpointing import checkpoint_activations
from stages.student.config import StudentConfig
from stages.training.apex_package import require_apex
from stages.training.ds_config import engine_settings
from stages.training.optimizer import make_optimizer
from stages.training.zero_resharding import load_parts, load_whole_parts, num_parts

LATEST = "latest"
STATE = ("step", "skipped", "data")
"""What a checkpoint says beside the weights: steps done, samples skipped, `Stream.state`."""
PLAIN_CLASSES = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
"""Of DeepSpeed, in its checkpoints: they hold numbers."""
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
        """Tensors, containers and DeepSpeed's `PLAIN_CLASSES`."""
        with torch.serialization.safe_globals(PLAIN_CLASSES):
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


def check_device(config: PretrainConfig, student: StudentConfig, world_size: int) -> None:
    """Raises ValueError where the recipe asks for what this device, or what is installed, has not:
    fp16, apex, a BatchNorm over several ranks."""
    accelerator = get_accelerator()
    device = accelerator.device_name()
    if config.precision == "fp16" and not accelerator.is_fp16_supported():
        raise ValueError(
            f"pretrain.precision: got fp16 on a {device} that has none, expected bf16 or fp32"
        )
    if config.precision == "apex-o1":
        require_apex()
    norms = {"student.batch_norm": student.batch_norm}
    if student.neck.kind == "soho":
        norms["student.neck.batch_norm"] = student.neck.batch_norm
    for name, policy in norms.items():
        if policy == "sync" and world_size > 1 and device == "cpu":
            raise ValueError(
                f"{name}: got sync on {world_size} ranks of CPUs, expected local there: PyTorch "
                "has it on GPUs only"
            )


def make_engine(model: PretrainModel, config: PretrainConfig, world_size: int) -> Any:
    """The DeepSpeed engine (deepspeed.DeepSpeedEngine, which has no types).

    The student is made whole on every rank and only then cut up by ZeRO 3: the largest is less than
    a gigabyte, and one that starts from published weights is then the same on all ranks.
    """
    checkpoint_activations(model.student, config.checkpoint_activations)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=make_optimizer(model.student, config),
        config=engine_settings(config, world_size),
    )
    engine.checkpoint_engine = SafeCheckpointEngine()
    return engine


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
    if is_cut_otherwise and engine.zero_optimization_partition_weights():
        return _known(load_whole_parts(engine, folder / tag), folder / tag)
    path, state = engine.load_checkpoint(str(folder), tag=tag, load_module_only=is_cut_otherwise)
    if path is None:
        raise ValueError(
            f"{folder / tag}: got no checkpoint that DeepSpeed can read, expected the one that "
            f"{folder / LATEST} names; remove the pretrain folder to start anew"
        )
    if is_cut_otherwise:
        load_parts(engine, folder / tag)
        engine.global_steps, engine.skipped_steps = state["global_steps"], state["skipped_steps"]
    return _known(state, folder / tag)


def _known(state: dict[str, Any], place: Path) -> dict[str, Any]:
    """`STATE` of what was saved."""
    if "data" not in state:
        raise ValueError(
            f"{place}: got a checkpoint of an older Boxless, expected one that knows its data; "
            "remove the pretrain folder to start anew"
        )
    return {name: state[name] for name in STATE}
