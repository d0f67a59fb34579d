"""The student's weights in one piece, and the student folder they are saved to.

Reached from `stages.pretrain.run`. ZeRO 3 leaves each rank a piece of every weight, and any 16-bit
training keeps float32 weights in the optimizer, cut by ZeRO as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from transformers import PreTrainedTokenizerFast

from stages.folders import replace_folder
from stages.student.network import Student, StudentNetConfig
from stages.student.processor import StudentProcessor


def save_student(
    engine: Any, student: Student, tokenizer: PreTrainedTokenizerFast, folder: Path, precision: str
) -> None:
    """Rank 0 writes the folder in Hugging Face's layout, complete or not at all. A collective.

    `precision` "training": weights as the network has them; "fp32": the optimizer's.
    """
    state = whole_weights(engine, student, precision)
    if torch.distributed.get_rank() == 0:
        # A student that no rank has a hand in, whatever DeepSpeed made of ours.
        assert isinstance(student.config, StudentNetConfig)
        with torch.device("meta"):
            whole = Student(student.config)
        whole.load_state_dict(state, assign=True)

        def write(temporary: str) -> None:
            whole.save_pretrained(temporary)
            StudentProcessor.of(whole, tokenizer).save_pretrained(temporary)

        replace_folder(folder, write)
    torch.distributed.barrier()


@torch.no_grad()
def whole_weights(engine: Any, student: Student, precision: str) -> dict[str, torch.Tensor]:
    """The student's state, weight by weight in the memory of rank 0; empty elsewhere. A
    collective."""
    own = _own_masters(engine)
    is_cut = engine.zero_optimization_partition_weights()
    state: dict[str, torch.Tensor] = {}
    for name, tensor in student.state_dict(keep_vars=True).items():
        whole = None
        if precision == "fp32" and isinstance(tensor, torch.nn.Parameter):
            whole = own.get(id(tensor))
            if whole is None and tensor.requires_grad:
                whole = safe_get_full_fp32_param(tensor)
        if whole is None:
            cut = [tensor] if is_cut and isinstance(tensor, torch.nn.Parameter) else []
            with deepspeed.zero.GatheredParameters(cut, enabled=bool(cut)):
                whole = tensor.detach().to("cpu", copy=True)
        if precision == "fp32" and whole.is_floating_point():
            whole = whole.float()
        if torch.distributed.get_rank() == 0:
            state[name] = whole.cpu()
    return state


def _own_masters(engine: Any) -> dict[int, torch.Tensor]:
    """The float32 weights of 16-bit training without ZeRO, by the id of the network's weight."""
    optimizer = engine.optimizer
    if not hasattr(optimizer, "fp32_groups") or engine.zero_optimization():
        return {}
    return {
        id(short): whole
        for shorts, wholes in zip(optimizer.fp16_groups, optimizer.fp32_groups)
        for short, whole in zip(shorts, wholes)
    }
