"""Saves a student folder during training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from stages.atomic_folder import replace_folder
from stages.student.network import Student
from stages.student.network_config import StudentNetConfig
from stages.student.processor import StudentProcessor
from stages.training.checkpoints.full_state_dict import full_state_dict
from stages.training.checkpoints.save_and_load import check_weights


def save_student(
    engine: Any,
    student: Student,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    precision: str,
    *,
    add: Callable[[Path], None] | None = None,
    instead: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Rank 0 writes the folder in Hugging Face's layout, complete or not at all. A collective.

    `precision` "training": weights as the network has them; "fp32": the optimizer's. `add` writes
    what else belongs into the folder (a task's head); `instead`, weights by name to save in place
    of the network's (an average of them).
    """
    check_weights(engine)
    state = full_state_dict(engine, student, precision)
    state.update(instead or {})
    if torch.distributed.get_rank() == 0:
        # A student that no rank has a hand in, whatever DeepSpeed made of ours.
        assert isinstance(student.config, StudentNetConfig)
        with torch.device("meta"):
            whole = Student(student.config)
        whole.load_state_dict(state, assign=True)

        def write(temporary: str) -> None:
            whole.save_pretrained(temporary)
            StudentProcessor.of(whole, tokenizer).save_pretrained(temporary)
            if add:
                add(Path(temporary))

        replace_folder(folder, write)
    torch.distributed.barrier()
