"""Initialises DeepSpeed: process group, device checks, the engine."""

from __future__ import annotations

import glob
import importlib
import logging
import os
from dataclasses import replace
from typing import Any, TypeVar

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime import compiler
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.engine import BFLOAT16, ZERO_OPTIMIZATION, DeepSpeedEngine
from torch import nn

from boxless.errors import BoxlessError
from stages.student.activation_checkpointing import checkpoint_activations
from stages.student.network import Student
from stages.tf32 import check_tf32
from stages.training.checkpoints.verified_files import SafeCheckpointEngine
from stages.training.config import TrainingConfig
from stages.training.ds_config import engine_settings
from stages.training.loss_scaling import set_loss_scaler
from stages.training.optimizer import AdamwSgd

Config = TypeVar("Config", bound=TrainingConfig)
SHARED_MEMORY_OP = "deepspeed_shm_comm"


class Engine(DeepSpeedEngine):
    """DeepSpeed's engine, with checkpoints in folders of any name, and with gradients of bf16 added
    up in float32 by the same optimizer as all others, whose checkpoints can be cut again."""

    def _do_optimizer_sanity_check(self, basic_optimizer: Any) -> Any:
        wrapper = super()._do_optimizer_sanity_check(basic_optimizer)
        return ZERO_OPTIMIZATION if wrapper == BFLOAT16 else wrapper

    def _get_all_ckpt_names(self, checkpoints_path: str, tag: str) -> list[str]:
        """It looks for files by a pattern; a run folder may have `[`, `*` or `?` in its name."""
        return super()._get_all_ckpt_names(glob.escape(checkpoints_path), tag)


def _import_muon_uncompiled() -> None:
    """Under ZeRO DeepSpeed imports its Muon to see that our optimizer is another, and Muon's
    decorators import PyTorch's compiler: seconds of every rank's start, for functions that are
    never called. So they are imported here, unchanged."""
    compiled = compiler.compile
    compiler.compile = lambda *_, **__: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = compiled


def join_ranks() -> None:
    """Start the process group: NCCL on GPUs, gloo on CPUs. A process that no launcher started is a
    group of its own.

    On CPUs DeepSpeed would first compile an all-reduce for inference, a minute of a C++ compiler
    that a newcomer may not have; training never calls it.
    """
    deepspeed.ops.__compatible_ops__[SHARED_MEMORY_OP] = False
    # It warns of any optimizer but its own; AdamwSgd's parity with PyTorch's is tested.
    deepspeed.utils.logger.setLevel(logging.ERROR)
    if "RANK" not in os.environ:
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed's engine asks for it
    if "RANK" not in os.environ and not torch.distributed.is_initialized():
        backend = get_accelerator().communication_backend_name()
        alone = torch.distributed.HashStore()
        torch.distributed.init_process_group(
            "gloo" if get_accelerator().device_name() == "cpu" else backend,
            store=alone,
            rank=0,
            world_size=1,
        )
    deepspeed.init_distributed(verbose=False)


def current_device() -> torch.device:
    """The device of this rank."""
    return torch.device(get_accelerator().current_device_name())


def choose_precision(config: Config) -> Config:
    """The config with the precision that this rank's device gets where the recipe says `auto`.

    Raises ValueError where the recipe asks for fp16 or tf32 on a device that has none.
    """
    accelerator = get_accelerator()
    check_tf32(f"{config.section}.precision", config.precision)
    if config.precision == "auto":
        chosen = "autocast-bf16" if _has_bf16(accelerator) else "fp32"
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            name = accelerator.device_name()
            print(f"{config.section}.precision: auto is {chosen} on this {name}", flush=True)
        return replace(config, precision=chosen)
    if config.precision == "fp16" and not accelerator.is_fp16_supported():
        raise BoxlessError(
            f"{config.section}.precision: got fp16 on a {accelerator.device_name()} that has none, "
            "expected bf16 or fp32"
        )
    return config


def _has_bf16(accelerator: Any) -> bool:
    """Whether a GPU computes in bf16. PyTorch emulates it on older ones (V100, T4), slowly, and by
    default counts that too."""
    if accelerator.device_name() == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return accelerator.device_name() != "cpu" and accelerator.is_bf16_supported()


def make_engine(
    module: nn.Module, optimizer: AdamwSgd, config: TrainingConfig, world_size: int
) -> Engine:
    """The engine around `module`, whose `student` checkpoints activations as the recipe says.

    The full module is made on every rank and only then partitioned by ZeRO 3: the largest is below
    a gigabyte, and one that starts from published weights is then the same on all ranks.
    """
    assert isinstance(module.student, Student)
    checkpoint_activations(module.student, config.checkpoint_activations)
    settings = engine_settings(config, world_size)
    _import_muon_uncompiled()
    engine = Engine(
        args=None,
        model=module,
        optimizer=optimizer,
        config=settings,
        config_class=DeepSpeedConfig(settings),
    )
    engine.checkpoint_engine = SafeCheckpointEngine()
    set_loss_scaler(engine)
    return engine
