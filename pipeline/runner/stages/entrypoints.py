"""Calls each stage with its part of the recipe and its folders."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.recipe.recipe import Recipe
from pipeline.runner.run_folder import RunFolder
from stages.transfer.config import ALL


@dataclass(frozen=True, kw_only=True)
class RankContext:
    """Which rank of how many runs the stage; ``on_step`` receives the number of steps done."""

    rank: int
    world_size: int
    on_step: Callable[[int], None]


def _ingest(recipe: Recipe, run: RunFolder, context: RankContext) -> None:
    from stages.ingest.run import ingest
    from stages.sigterm import exit_at_sigterm

    exit_at_sigterm()
    ingest(recipe.ingest, seed=recipe.seed, out=run.images, show=context.rank == 0)


def _teach(recipe: Recipe, run: RunFolder, context: RankContext) -> None:
    from stages.detector.training.train import teach

    teach(recipe.teach, seed=recipe.seed, images=run.images, out=run.teacher)


def _distill(recipe: Recipe, run: RunFolder, context: RankContext) -> None:
    from stages.distill.make_object_source import make_object_source
    from stages.distill.run import distill
    from stages.sigterm import exit_at_sigterm

    exit_at_sigterm()
    distill(
        recipe.distill,
        images=run.images,
        object_source=make_object_source(recipe.distill, run.teacher, run.images),
        out=run.objects,
        show=context.rank == 0,
    )


def _pretrain(recipe: Recipe, run: RunFolder, context: RankContext) -> None:
    from stages.pretrain.run import pretrain

    with _ending_when_stopped("pretrain", context.rank):
        pretrain(
            recipe.pretrain,
            student=recipe.student,
            seed=recipe.seed,
            objects=run.objects,
            out=run.pretrain,
            student_out=run.student,
            on_step=context.on_step,
        )


@contextmanager
def _ending_when_stopped(stage: str, rank: int) -> Iterator[None]:
    """Leave by a signal's exit status where training was stopped by one."""
    from stages.training.monitoring.stopping import Stopped

    try:
        yield
    except Stopped as stopped:
        if rank == 0:
            print(f"{stage}: {stopped}", flush=True)
        sys.exit(128 + signal.SIGTERM)


def _finetune(recipe: Recipe, run: RunFolder, context: RankContext) -> None:
    config = recipe.finetune
    images, student, out = run.images, run.student, run.transfer / str(config.task)
    seed, on_step = recipe.seed, context.on_step
    with _ending_when_stopped("finetune", context.rank):
        if config.task == ALL:
            from stages.transfer.finetuning.finetune_all import finetune_all

            finetune_all(
                config, seed=seed, images=images, student=student, out=out, on_step=on_step
            )
        else:
            from stages.transfer.finetuning.finetune_task import finetune_task

            finetune_task(
                config, seed=seed, images=images, student=student, out=out, on_step=on_step
            )


def _evaluate(recipe: Recipe, run: RunFolder, context: RankContext) -> None:
    from stages.transfer.evaluation.evaluate import evaluate

    own = recipe.evaluate.student is None
    has_teacher = own and recipe.distill.teacher == "run"
    evaluate(
        recipe.evaluate,
        samples=run.objects if own else run.images,
        teacher=run.teacher if has_teacher else None,
        student=Path(recipe.evaluate.student or run.student),
        out=run.transfer / recipe.evaluate.folder_name,
    )


CALLS: dict[str, Callable[[Recipe, RunFolder, RankContext], None]] = {
    "ingest": _ingest,
    "teach": _teach,
    "distill": _distill,
    "pretrain": _pretrain,
    "finetune": _finetune,
    "evaluate": _evaluate,
}
