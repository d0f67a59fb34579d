"""The pretraining run: object shards in, a student folder out. One rank of it.

Reached through `boxless pretrain`, which starts this on every rank. The order of samples is
arithmetic on a position (`sharding.order.order`), the position stands in the checkpoint, and everything
random comes from (seed, position): a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch
from transformers import PreTrainedTokenizerFast

from sharding.reading.dataset_source import open_source
from sharding.reading.stream import ShardStream
from stages.pretrain.collate import Collate
from stages.pretrain.config import PretrainConfig
from stages.pretrain.data import (
    Batches,
    about_of,
    make_tokenizer,
    open_stream,
    sources_of,
)
from stages.pretrain.loop import Loop
from stages.pretrain.model import PretrainModel, make_objectives
from stages.pretrain.student_weights import save_student
from stages.student.build import make_student
from stages.student.config import StudentConfig
from stages.student.network import Student
from stages.training.engine import check_device, join_ranks, load_checkpoint, make_engine
from stages.training.optimizer import freeze
from stages.training.stopping import Watch

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
    SIGTERM or SIGINT, FloatingPointError on every rank when a loss is not finite on any.
    """
    watch = Watch()
    join_ranks()
    check_device(config, student, torch.distributed.get_world_size())
    sources = sources_of(objects, config)
    opened = [open_source(source, cache=None) for source in sources]
    tokenizer = make_tokenizer(student, opened, out / TOKENIZER)
    torch.manual_seed(seed)
    net = _new_student(student, tokenizer, about_of(opened))
    freeze(net, config)
    model = PretrainModel(net, make_objectives(config))
    engine = make_engine(model, config, torch.distributed.get_world_size())
    collate = Collate(
        tokenizer=tokenizer,
        objectives=[objective for _, objective in model.objectives.values()],
        seed=seed,
        captions_per_picture=config.captions_per_picture,
        max_tokens=student.max_tokens,
        shorter_px=student.shorter_px,
        longer_px=student.longer_px,
        cell_px=net.grid.cell_px,
        pad_px=net.grid.pad_px,
        regions=config.regions,
        augment=config.augment,
    )
    stream = open_stream(sources, config, seed=seed, cell_px=net.grid.cell_px)
    Loop(
        engine,
        Batches(stream, collate),
        config,
        seed=seed,
        state=_state(load_checkpoint(engine, out), stream),
        out=out,
        watch=watch,
        on_step=on_step,
        device=torch.device(deepspeed.accelerator.get_accelerator().current_device_name()),
    ).run()
    save_student(engine, net, tokenizer, student_out, config.save_precision)


def _state(saved: dict[str, Any] | None, stream: ShardStream) -> dict[str, int]:
    """Where to go on: steps done, the next position, samples skipped so far.

    Raises ShardError when the checkpoint was trained on other data or in another order.
    """
    if saved is None:
        return {"step": 0, "position": 0, "skipped": 0}
    position = stream.position(saved["data"])
    return {"step": saved["step"], "position": position, "skipped": saved["skipped"]}


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
