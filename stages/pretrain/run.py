"""`boxless pretrain`: trains a student on object shards. One rank of it.

The order of samples is arithmetic on a position (`sharding.order.order`), the position is in
the checkpoint, and everything random comes from (seed, position): a run that was stopped continues
as if it had not been.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from boxless.errors import BoxlessError
from sharding.format.resize import Resize
from sharding.order.turns import Turn
from sharding.reading.dataset_source import DatasetSource, OpenSource, open_source
from sharding.reading.stream import ShardStream
from stages.pretrain.caches.cnn_cache import CnnCache
from stages.pretrain.caches.disk_cache import DiskCache, maps_name, texts_name
from stages.pretrain.caches.text_cache import TextCache
from stages.pretrain.cca import start_by_cca
from stages.pretrain.config import PretrainConfig
from stages.pretrain.data.batch import Batch
from stages.pretrain.data.batch_source import (
    Batches,
    about_of,
    make_tokenizer,
    open_stream,
    sources_of,
)
from stages.pretrain.data.caption_groups import count_captions, num_visits
from stages.pretrain.data.collate import Collate
from stages.pretrain.fill_query_bank import fill_query_bank, training_pairs
from stages.pretrain.model import PretrainModel, make_objectives
from stages.pretrain.momentum_contrast import MomentumContrast
from stages.pretrain.optimizer import freeze, make_optimizer
from stages.pretrain.validation import HeldOut, heldout_batches
from stages.pretrain.weight_ema import WeightEma
from stages.progress import Progress
from stages.student.build import make_student
from stages.student.config import StudentConfig
from stages.student.network import Student
from stages.training.checkpoints.save_and_load import has_checkpoint
from stages.training.engine import choose_precision, current_device, join_ranks, make_engine
from stages.training.loop import Loop, Validation
from stages.training.monitoring.skipped_samples import FaultPolicy, SkippedSamples
from stages.training.monitoring.stopping import Watch
from stages.training.student_folder import save_student

TOKENIZER = "tokenizer"
BEST = "best"
"""Folder of the student that did best on held-out pictures."""
ALL_CAPTIONS = sys.maxsize


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
        config = choose_precision(config)
        check_batch_norm(student, world_size, current_device())
        check_start(config, student)
        sources = sources_of(objects, config)
        opened = [open_source(source, cache=None) for source in sources]
        tokenizer = make_tokenizer(student, opened, out / TOKENIZER)
        torch.manual_seed(seed)
        net = _new_student(student, tokenizer, about_of(opened))
        check_cache(config, net)
        collate = _collate(config, student, net, tokenizer, seed)
        visits = _num_visits(config, opened, out)
        stream, open_older = _open_streams(config, student, net, sources, visits, seed)
        cache = _cnn_cache(config, net, collate)
        texts = _text_cache(config, net)
        if cache and not config.num_workers:  # workers have no part in this process's cache
            collate = replace(collate, is_cached=cache.__contains__)
        if config.itc.weight and config.itc.start == "cca" and not has_checkpoint(out):
            start_from_data(net, stream, collate, watch, config, cache=cache, text_cache=texts)
            _store(cache, texts)
        model = _make_model(net, config, cache, texts)
        collate = replace(
            collate, objectives=[one for _, one in model.objectives.values()], fusing=model.fusing
        )
        engine = make_engine(model, make_optimizer(net, config), config, world_size)

        def save(folder: Path) -> None:
            if config.itc.weight:
                _fill_query_bank(model, stream, collate, student.itc_bank_size)
            averaged = model.average.state() if model.average else None
            save_student(engine, net, tokenizer, folder, config.save_precision, instead=averaged)

        def save_best(step: int) -> None:
            save(out / BEST)

        heldout: Sequence[Batch] = ()
        if config.validate_pictures:
            heldout = heldout_batches(
                sources, config, collate, seed=seed, shape_step_px=_shape_step_px(net, student)
            )
        Loop(
            engine,
            Batches(stream, collate, open_older),
            config,
            title="pretrain",
            seed=seed,
            out=out,
            watch=watch,
            device=current_device(),
            on_step=on_step,
            validation=_validation(model, heldout, save_best),
            faults=_fault_policy(config),
            counts_flops=cache is None and texts is None,
        ).run()
        save(student_out)
        _store(cache, texts)


def _open_streams(
    config: PretrainConfig,
    student: StudentConfig,
    net: Student,
    sources: Sequence[DatasetSource],
    visits: list[np.ndarray] | None,
    seed: int,
) -> tuple[ShardStream, Callable[[], ShardStream]]:
    """The training shards in this version's order, and a function that opens them in the order of
    versions before 0.2, for their checkpoints."""
    open_ordered = functools.partial(
        open_stream,
        sources,
        num_visits=visits,
        seed=seed,
        resize=Resize(shorter_px=student.shorter_px, longer_px=student.longer_px),
    )
    open_older = functools.partial(
        open_ordered, replace(config, group_by="original"), shape_step_px=2 * net.grid.cell_px
    )
    return open_ordered(config, shape_step_px=_shape_step_px(net, student)), open_older


def _shape_step_px(net: Student, student: StudentConfig) -> int:
    """Pixels between the shapes of pictures that are put in one micro-batch. Finer steps pad less,
    but leave more groups with a batch that is not full."""
    return 2 * net.grid.cell_px // student.cell_pooling


def _make_model(
    net: Student, config: PretrainConfig, cache: CnnCache | None, texts: TextCache | None
) -> PretrainModel:
    """The module that is trained: what the recipe freezes learns nothing from here on."""
    freeze(net, config)
    if cache and "projection" in config.frozen:
        cache.keep_features()
    average = _average(net, config)
    momentum = MomentumContrast(net, config.itc) if config.itc.has_momentum else None
    model = PretrainModel(net, make_objectives(config), average, cache, texts, momentum)
    net.config.objectives = list(model.objectives)
    return model


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


def check_cache(config: PretrainConfig, net: Student) -> None:
    """Raises ValueError for a cache of what a CNN gives that learns."""
    learns = any(parameter.requires_grad for parameter in net.grid.resnet.parameters())
    if config.cnn_cache_mib and (learns or net.grid.batch_norm != "frozen"):
        raise BoxlessError(
            f"pretrain.cnn_cache_mib: got {config.cnn_cache_mib} with student.frozen_stages "
            f"{net.grid.frozen_stages} and student.batch_norm {net.grid.batch_norm}, expected all "
            "stages frozen and frozen; 0 for no cache"
        )


def check_start(config: PretrainConfig, student: StudentConfig) -> None:
    """Raises ValueError where the contrastive head cannot start as the recipe says."""
    if not config.itc.weight or config.itc.start == "random":
        return
    if student.itc_pooling != "mean" or student.neck.kind != "plain" or not student.itc_size:
        raise BoxlessError(
            f"pretrain.itc.start: got cca with student.itc_pooling {student.itc_pooling}, "
            f"student.neck.kind {student.neck.kind} and student.itc_size {student.itc_size}, "
            "expected mean, plain and a size above 0: the analysis is of linear maps alone"
        )
    if (
        max(student.itc_size, student.pra_size) > student.hidden_size
        and not student.pretrained_text
    ):
        raise BoxlessError(
            f"pretrain.itc.start: got cca with student.itc_size {student.itc_size} and "
            f"student.pra_size {student.pra_size}, expected at most the cells' width"
        )
    if not student.pretrained_cnn or not student.pretrained_text:
        raise BoxlessError(
            f"pretrain.itc.start: got cca with student.pretrained_cnn {student.pretrained_cnn} and "
            f"student.pretrained_text {student.pretrained_text}, expected published weights of "
            "both: outputs of random networks do not correlate"
        )


def start_from_data(
    net: Student,
    stream: ShardStream,
    collate: Collate,
    watch: Watch,
    config: PretrainConfig,
    *,
    cache: CnnCache | None,
    text_cache: TextCache | None,
) -> None:
    """One pass over the training pictures, with all of their captions, shared out to the ranks, for
    `start_by_cca`. A collective. Raises Stopped, on every rank, where one was asked to stop: it
    leaves its pass, the others at the end of theirs. Raises ShardError for a sample that cannot be
    read where `data.on_fault` is stop; where it is skip, training names it."""
    skipped = SkippedSamples(
        _fault_policy(config), 0, lambda text: None, section=PretrainConfig.section
    )
    source = Batches(stream, _all_captions(collate))
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    own = range(rank, stream.num_micro_batches, world_size)

    def batches() -> Iterator[Batch]:
        with Progress("start by cca", total=len(own), unit="batches", show=rank == 0) as progress:
            for position in own:
                if watch.is_signalled:
                    break
                loaded = source[Turn(position=position, is_padding=False)]
                skipped.add(loaded)
                if loaded.batch is not None:
                    yield loaded.batch
                progress.advance()
        watch.stop_before_training("the start by cca", current_device())

    start_by_cca(
        net,
        batches(),
        ridge=config.itc.cca_ridge,
        device=current_device(),
        cache=cache,
        text_cache=text_cache,
    )


def _all_captions(collate: Collate) -> Collate:
    return replace(collate, captions_per_picture=ALL_CAPTIONS, visits_caption_groups=False)


def _num_visits(
    config: PretrainConfig, opened: Sequence[OpenSource], out: Path
) -> list[np.ndarray] | None:
    """How often an epoch visits each picture of each source; None for once each."""
    if config.visits != "caption_groups":
        return None
    counts = count_captions(opened, out)
    return [num_visits(captions, config.captions_per_picture) for captions in counts]


def _fill_query_bank(
    model: PretrainModel, stream: ShardStream, collate: Collate, bank_size: int
) -> None:
    if bank_size:
        is_first = torch.distributed.get_rank() == 0
        pairs = training_pairs(stream, collate, bank_size, show=is_first)
        fill_query_bank(model, pairs, current_device())


def _fault_policy(config: PretrainConfig) -> FaultPolicy:
    return FaultPolicy(
        on_fault=config.data.on_fault,
        max_skipped=config.data.max_skipped,
        stall_seconds=config.data.stall_seconds,
    )


def _validation(
    model: PretrainModel, heldout: Sequence[Batch], save: Callable[[int], None]
) -> Validation | None:
    """What is measured on held-out batches during training; None where there are none."""
    if not heldout:
        return None
    retrieves = "itc" in model.objectives
    return Validation(
        run=HeldOut(model, heldout, current_device()).run,
        best="r1" if retrieves else "loss",
        higher_is_better=retrieves,
        save_best=save,
    )


def _average(net: Student, config: PretrainConfig) -> WeightEma | None:
    if config.average_samples is None:
        return None
    return WeightEma(
        net,
        horizon=config.average_samples,
        samples_per_step=config.micro_batch_size * config.micro_batches_per_step,
    )


def _cnn_cache(config: PretrainConfig, net: Student, collate: Collate) -> CnnCache | None:
    if not config.cnn_cache_mib:
        return None
    stored = None
    if config.cnn_cache_folder is not None:
        folder = Path(config.cnn_cache_folder) / maps_name(net, collate.view_settings)
        stored = DiskCache(folder)
    return CnnCache(config.cnn_cache_mib * 2**20, stored)


def _text_cache(config: PretrainConfig, net: Student) -> TextCache | None:
    if not config.text_cache_mib:
        return None
    stored = None
    if config.text_cache_folder is not None:
        stored = DiskCache(Path(config.text_cache_folder) / texts_name(net))
    return TextCache(config.text_cache_mib * 2**20, stored)


def _store(maps: CnnCache | None, texts: TextCache | None) -> None:
    for cache in (maps, texts):
        if cache:
            cache.store()


def _collate(
    config: PretrainConfig,
    student: StudentConfig,
    net: Student,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
) -> Collate:
    """Without objectives: these are known when the model is."""
    grid = net.grid
    return Collate(
        tokenizer=tokenizer,
        objectives=(),
        seed=seed,
        captions_per_picture=config.captions_per_picture,
        max_tokens=student.max_tokens,
        shorter_px=student.shorter_px,
        longer_px=student.longer_px,
        cell_px=grid.cell_px,
        pad_px=grid.pad_px,
        regions=config.regions,
        augment=config.augment,
        visits_caption_groups=config.visits == "caption_groups",
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
