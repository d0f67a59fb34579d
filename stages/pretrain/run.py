"""The pretraining run: object shards in, a student folder out. One rank of it.

Reached through `boxless pretrain`, which starts this on every rank. The order of samples is
arithmetic on a position (`sharding.order`), the position stands in the checkpoint, and everything
random comes from (seed, position): a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast

from sharding.catalog import read_catalog
from sharding.read import iterate
from sharding.stream import Stream, positions
from stages.pretrain.batch import Batch, Collate
from stages.pretrain.config import PretrainConfig
from stages.pretrain.engine import join_ranks, load_checkpoint, make_engine, save_checkpoint
from stages.pretrain.metrics import MetricsLog, Tally
from stages.pretrain.model import PretrainModel, make_objectives
from stages.pretrain.schedule import rate_factor
from stages.pretrain.stopping import Stopped, Watch
from stages.folders import replace_folder
from stages.progress import Progress
from stages.student.config import StudentConfig
from stages.student.network import Student, make_student
from stages.student.tokenizer import load_tokenizer, train_tokenizer

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
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    device = torch.device(deepspeed.accelerator.get_accelerator().current_device_name())
    tokenizer = _tokenizer(student, objects, out / TOKENIZER, rank)
    torch.manual_seed(seed)
    net = _new_student(student, tokenizer, objects)
    model = PretrainModel(net, make_objectives(config))
    engine = make_engine(model, config, world_size)
    state = load_checkpoint(engine, out) or {"step": 0, "position": 0}
    batches = Batches(
        Stream(
            objects,
            "train",
            seed=seed,
            micro_batch_size=config.micro_batch_size,
            window_num_shards=config.window_num_shards,
            shape_step_px=_shape_step_px(net),
        ),
        Collate(
            tokenizer=tokenizer,
            objectives=[objective for _, objective in model.objectives.values()],
            seed=seed,
            captions_per_picture=config.captions_per_picture,
            max_tokens=student.max_tokens,
            shorter_px=student.shorter_px,
            longer_px=student.longer_px,
            cell_px=net.grid.cell_px,
        ),
    )
    _train(engine, batches, config, seed, out, state, watch, device)
    if rank == 0:
        _save(net, tokenizer, student_out)
    torch.distributed.barrier()


def _train(
    engine: Any,
    batches: Batches,
    config: PretrainConfig,
    seed: int,
    out: Path,
    state: dict[str, int],
    watch: Watch,
    device: torch.device,
) -> None:
    """Steps until `num_steps`, a checkpoint every so many and at the end."""
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    loader = iter(batches.loader(config, state["position"], rank, world_size))
    log = MetricsLog(out, step=state["step"]) if rank == 0 else None
    tally, began, waited, reported = Tally(), time.monotonic(), 0.0, state["step"]
    engine.train()
    with Progress(
        "pretrain", total=config.num_steps, unit="steps", start=state["step"], show=rank == 0
    ) as progress:
        while state["step"] < config.num_steps:
            factor = rate_factor(state["step"], config)
            for group in engine.optimizer.param_groups:
                group["lr"] = factor * group["peak_lr"]
            waited += _step(engine, loader, config, seed, state, watch, tally, device)
            state["step"] += 1
            state["position"] += config.micro_batches_per_step
            is_last = state["step"] == config.num_steps
            if is_last or state["step"] % config.log_steps == 0:
                num_steps = state["step"] - reported
                seconds = (time.monotonic() - began) / num_steps
                pictures = config.micro_batch_size * config.micro_batches_per_step
                line = {
                    "step": state["step"],
                    "epoch": state["position"] / batches.stream.num_micro_batches,
                    "pictures": state["position"] * config.micro_batch_size,
                    "step_seconds": seconds,
                    "pictures_per_second": pictures / seconds,
                    "data_wait_share": waited / (seconds * num_steps),
                    "lr_factor": factor,
                    "grad_norm": float(engine.get_global_grad_norm() or 0.0),
                    **tally.take(),
                }
                began, waited, reported = time.monotonic(), 0.0, state["step"]
                if log:
                    log.write(line)
                figures = {"pictures/s": line["pictures_per_second"], "loss": line["loss"]}
                progress.advance(num_steps, **figures)
            ended = watch.everywhere(device)
            if ended or is_last or state["step"] % config.checkpoint_steps == 0:
                save_checkpoint(engine, out, state, config.keep_checkpoints)
            if ended and not is_last:
                raise Stopped(f"stopped at step {state['step']} of {config.num_steps}, saved")
    if log:
        log.close()


def _step(
    engine: Any,
    loader: Iterator[tuple[int, Batch]],
    config: PretrainConfig,
    seed: int,
    state: dict[str, int],
    watch: Watch,
    tally: Tally,
    device: torch.device,
) -> float:
    """One optimizer step, over as many micro-batches as this rank has; seconds waited for data."""
    waited = 0.0
    for _ in range(engine.gradient_accumulation_steps()):
        asked = time.monotonic()
        position, batch = next(loader)
        waited += time.monotonic() - asked
        torch.manual_seed(seed * 1_000_003 + position)
        loss, scores = engine(batch.to(device))
        watch.finite(loss, scores, batch.keys, state["step"] + 1)
        engine.backward(loss)
        engine.step()
        tally.add(loss, scores)
    return waited


class Batches(Dataset[tuple[int, Batch]]):
    """`batches[position]` is (position, its batch), masked and ready."""

    def __init__(self, stream: Stream, collate: Collate) -> None:
        self.stream, self.collate = stream, collate

    def __getitem__(self, position: int) -> tuple[int, Batch]:
        """Read, decode, collate and mask the samples of `position`."""
        return position, self.collate(position, self.stream[position])

    def loader(
        self, config: PretrainConfig, start: int, rank: int, world_size: int
    ) -> DataLoader[tuple[int, Batch]]:
        """This rank's share of the positions from `start` to the end of the run, in order."""
        end = config.num_steps * config.micro_batches_per_step
        return DataLoader(
            self,
            batch_size=None,
            sampler=_Positions(start, rank, world_size, end),
            num_workers=config.num_workers,
        )


class _Positions:
    """An iterable of positions that can be asked again (DataLoader's samplers must be)."""

    def __init__(self, start: int, rank: int, world_size: int, end: int) -> None:
        self._arguments = (start, rank, world_size, end)

    def __iter__(self) -> Iterator[int]:
        return positions(*self._arguments)


def _tokenizer(
    student: StudentConfig, objects: Path, folder: Path, rank: int
) -> PreTrainedTokenizerFast:
    """The published tokenizer, or one trained on the train captions, by rank 0 for all."""
    if student.pretrained_text:
        return load_tokenizer(student.pretrained_text)
    if rank == 0 and not (folder / "tokenizer.json").exists():
        catalog = read_catalog(objects)
        captions = [
            caption
            for tar in catalog.tars(objects, "train")
            for sample in iterate(tar)
            for caption in sample.info["captions"]
        ]
        replace_folder(
            folder, train_tokenizer(captions, vocab_size=student.vocab_size).save_pretrained
        )
    torch.distributed.barrier()
    return load_tokenizer(folder)


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


def _shape_step_px(net: Student) -> int:
    """Pictures whose sides round up to the same multiple of this share micro-batches."""
    return 2 * net.grid.cell_px


def _save(net: Student, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """The student folder in Hugging Face's layout, complete or not there at all."""

    def write(temporary: str) -> None:
        net.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)

    replace_folder(folder, write)
