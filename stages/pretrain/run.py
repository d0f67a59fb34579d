"""The pretraining run: object shards in, a student folder out. One rank of it.

Reached through `boxless pretrain`, which starts this on every rank. The order of samples is
arithmetic on a position (`sharding.order`), the position stands in the checkpoint, and everything
random comes from (seed, position): a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

from pathlib import Path

import deepspeed
import torch
from transformers import PreTrainedTokenizerFast

from sharding.catalog import read_catalog
from stages.folders import replace_folder
from stages.pretrain.collate import Collate
from stages.pretrain.config import PretrainConfig
from stages.pretrain.data import Batches, make_tokenizer, open_stream
from stages.pretrain.engine import join_ranks, load_checkpoint, make_engine
from stages.pretrain.loop import Loop
from stages.pretrain.model import PretrainModel, make_objectives
from stages.pretrain.stopping import Watch
from stages.student.config import StudentConfig
from stages.student.network import Student, make_student

TOKENIZER = "tokenizer"


def pretrain(
    config: PretrainConfig,
    *,
    student: StudentConfig,
    seed: int,
    objects: Path,
    out: Path,
    student_out: Path,
) -> None:
    """Train from the last checkpoint in `out`, or from the start, and save the student.

    Raises ValueError on shards or settings that do not fit, `Stopped` (after a checkpoint) on
    SIGTERM or SIGINT, FloatingPointError on every rank when a loss is not finite on any.
    """
    watch = Watch()
    join_ranks()
    tokenizer = make_tokenizer(student, objects, out / TOKENIZER)
    torch.manual_seed(seed)
    net = _new_student(student, tokenizer, objects)
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
    )
    stream = open_stream(objects, config, seed=seed, cell_px=net.grid.cell_px)
    Loop(
        engine,
        Batches(stream, collate),
        config,
        seed=seed,
        state=load_checkpoint(engine, out) or {"step": 0, "position": 0},
        out=out,
        watch=watch,
        device=torch.device(deepspeed.accelerator.get_accelerator().current_device_name()),
    ).run()
    if torch.distributed.get_rank() == 0:
        _save(net, tokenizer, student_out)
    torch.distributed.barrier()


def _new_student(
    student: StudentConfig, tokenizer: PreTrainedTokenizerFast, objects: Path
) -> Student:
    about = read_catalog(objects).about
    return make_student(
        student,
        vocab_size=len(tokenizer),
        pad_id=tokenizer.pad_token_id,
        label_names=about["label_names"],
        feature_size=about["feature_size"],
    )


def _save(net: Student, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """The student folder in Hugging Face's layout, complete or not there at all."""

    def write(temporary: str) -> None:
        net.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)

    replace_folder(folder, write)
