"""The pretraining run: object shards in, a student folder out. One rank of it.

The order of samples is arithmetic on a position (`sharding.order.order`), the position stands in
the checkpoint, and everything random comes from (seed, position): a run that was stopped goes on
as if it had not been.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from boxless.errors import BoxlessError
from sharding.format.resize import Resize
from sharding.reading.dataset_source import open_source
from stages.pretrain.collate import Collate
from stages.pretrain.config import PretrainConfig
from stages.pretrain.data import (
    Batches,
    about_of,
    make_tokenizer,
    open_stream,
    sources_of,
)
from stages.pretrain.model import PretrainModel, make_objectives
from stages.pretrain.optimizer import freeze, make_optimizer
from stages.student.build import make_student
from stages.student.config import StudentConfig
from stages.student.network import Student
from stages.training.engine import check_precision, current_device, join_ranks, make_engine
from stages.training.loop import Loop
from stages.training.skipped_samples import FaultPolicy
from stages.training.stopping import Watch
from stages.training.student_folder import save_student

TOKENIZER = "tokenizer"


def pretrain(
    config: PretrainConfig,
    *,
    student: StudentConfig,
    seed: int,
    objects: Path,
    out: Path,
    student_out: Path,
    on_step: Callable[[int], None] | None = None,
) -> None:
    """Train from the last checkpoint in `out`, or from the start, and save the student.
    ``on_step`` is called after each step with the number of steps done.

    Raises ValueError on shards or settings that do not fit, `Stopped` (after a checkpoint) on
    SIGTERM or SIGINT, DivergenceError on every rank when a loss is not finite on any.
    """
    with Watch() as watch:
        join_ranks()
        world_size = torch.distributed.get_world_size()
        check_precision(config)
        check_batch_norm(student, world_size, current_device())
        sources = sources_of(objects, config)
        opened = [open_source(source, cache=None) for source in sources]
        tokenizer = make_tokenizer(student, opened, out / TOKENIZER)
        torch.manual_seed(seed)
        net = _new_student(student, tokenizer, about_of(opened))
        freeze(net, config)
        model = PretrainModel(net, make_objectives(config))
        engine = make_engine(model, make_optimizer(net, config), config, world_size)
        collate = _collate(config, student, model, tokenizer, seed)
        stream = open_stream(
            sources,
            config,
            seed=seed,
            resize=Resize(shorter_px=student.shorter_px, longer_px=student.longer_px),
            # Finer steps pad less, but leave more groups with a batch that is not full.
            shape_step_px=2 * net.grid.cell_px // student.cell_pooling,
        )
        Loop(
            engine,
            Batches(stream, collate),
            config,
            title="pretrain",
            seed=seed,
            out=out,
            watch=watch,
            device=current_device(),
            on_step=on_step,
            faults=FaultPolicy(
                on_fault=config.data.on_fault,
                max_skipped=config.data.max_skipped,
                stall_seconds=config.data.stall_seconds,
            ),
        ).run()
        save_student(engine, net, tokenizer, student_out, config.save_precision)


def check_batch_norm(student: StudentConfig, world_size: int, device: torch.device) -> None:
    """Raises ValueError for a BatchNorm over several ranks where PyTorch has none."""
    norms = {"student.batch_norm": student.batch_norm}
    if student.neck.kind == "soho":
        norms["student.neck.batch_norm"] = student.neck.batch_norm
    for name, policy in norms.items():
        if policy == "sync" and world_size > 1 and device.type == "cpu":
            raise BoxlessError(
                f"{name}: got sync on {world_size} ranks of CPUs, expected local there: PyTorch "
                "has it on GPUs only"
            )


def _collate(
    config: PretrainConfig,
    student: StudentConfig,
    model: PretrainModel,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
) -> Collate:
    grid = model.student.grid
    return Collate(
        tokenizer=tokenizer,
        objectives=[objective for _, objective in model.objectives.values()],
        seed=seed,
        captions_per_picture=config.captions_per_picture,
        max_tokens=student.max_tokens,
        shorter_px=student.shorter_px,
        longer_px=student.longer_px,
        cell_px=grid.cell_px,
        pad_px=grid.pad_px,
        regions=config.regions,
        augment=config.augment,
    )


def _new_student(
    student: StudentConfig, tokenizer: PreTrainedTokenizerFast, about: dict[str, Any]
) -> Student:
    return make_student(
        student,
        vocab_size=len(tokenizer),
        pad_id=tokenizer.pad_token_id,
        label_names=about["label_names"],
        feature_size=about["feature_size"],
    )
