"""Loss curves of one training, cut up in many ways: ZeRO, precision, accumulation, ranks.

    make curves, or python -m benchmarks.training.loss_curves [--steps 12] [--only NAME ...]

A tiny student with a visual dictionary learns from toy scenes that no teacher has labelled (so MLM,
ITM and MVM), on CPUs. Printed for each kind are the largest differences of loss and of the
gradient's norm from the first kind's, step by step and relative, and whether each is within its
tolerance; if one is not, the exit status is 1. In all but the last kinds the step has the same four
micro-batches. Those have others of as many samples, so that BatchNorm, mismatched captions and
masks differ: what is compared then is the mean loss of each third of the run, beside how far other
seeds are apart. Where more than the order of sums differs the student has no dictionary, and is
compared with the first that has none: with one, cells between two codes take the other, and curves
part as those of other seeds do.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.training.elastic_training import STUDENT, make_objects, train
from stages.pretrain.config import PretrainConfig
from stages.pretrain.objectives.config import MvmConfig
from stages.student.vision.neck_config import DictionaryConfig, PlainNeckConfig, SohoNeckConfig
from stages.training.monitoring.metrics import read_metrics

ROUNDING, HALF, OTHER_BATCHES = 1e-5, 2e-2, 1e-1
"""Tolerances of losses: sums in another order; bfloat16's 8 bits; other micro-batches."""
NORM_FACTOR = 5
"""How much wider the tolerance of the gradient's norm is."""
CUT_ALL = {
    "zero_optimization": {
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": 1000,
    }
}
"""Left alone, ZeRO 3 keeps weights as small as these whole on every rank."""
WITH_CODES = replace(
    STUDENT,
    dropout=0.1,
    neck=SohoNeckConfig(dictionary=DictionaryConfig(num_codes=16, decay=0.9)),
)
Curve = list[dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A way to run the training, and how near it has to come."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    world_size: int = 2
    seed: int = 0
    has_codes: bool = True
    """Whether the student has a dictionary."""
    tolerance: float | None = ROUNDING
    """None: shown only."""
    thirds: bool = False
    """Whether means of thirds are compared, not steps."""


def kinds() -> list[Kind]:
    """The first with a dictionary, and the first without, are what the others are compared with."""
    zero_3 = {"zero_stage": 3}
    checkpointing = {"checkpoint_activations": ("cnn", "transformer")}
    return [
        Kind(name="ZeRO 1, fp32, 2 ranks, accumulation 2"),
        Kind(name="ZeRO 0", settings={"zero_stage": 0}),
        Kind(name="ZeRO 2", settings={"zero_stage": 2}),
        Kind(name="ZeRO 3", settings=zero_3),
        Kind(name="ZeRO 3, activation checkpointing", settings=zero_3 | checkpointing),
        Kind(name="1 rank, accumulation 4", world_size=1),
        Kind(name="4 ranks, accumulation 1", world_size=4),
        Kind(name="4 ranks, ZeRO 3", settings=zero_3, world_size=4),
        Kind(name="no dictionary: ZeRO 1, fp32, 2 ranks, accumulation 2", has_codes=False),
        *[
            Kind(
                name=f"ZeRO {stage}, bf16",
                settings={"zero_stage": stage, "precision": "bf16"},
                has_codes=False,
                tolerance=HALF,
            )
            for stage in (0, 1, 2, 3)
        ],
        *[
            Kind(
                name=f"2 ranks, accumulation {turns}, micro-batches of {16 // turns}",
                settings={"micro_batch_size": 16 // turns, "micro_batches_per_step": 2 * turns},
                has_codes=False,
                tolerance=OTHER_BATCHES,
                thirds=True,
            )
            for turns in (1, 4)
        ],
        *[
            Kind(
                name=f"fp32 with seed {seed}",
                seed=seed,
                has_codes=False,
                tolerance=None,
                thirds=True,
            )
            for seed in (1, 2)
        ],
    ]


def firsts_of(every: Sequence[Kind]) -> dict[bool, Kind]:
    """What kinds with a dictionary, and kinds without, are compared with."""
    return {kind.has_codes: kind for kind in reversed(every)}


def main() -> int:
    """Run every kind and print the table; 1 if one left its tolerance."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="beside first ones")
    options = parser.parse_args()
    every = kinds()
    firsts = firsts_of(every).values()
    chosen = [k for k in every if k in firsts or not options.only or k.name in options.only]
    curves = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        settings = root / "ds_config.json"
        settings.write_text(json.dumps(CUT_ALL))
        objects = make_objects(root)
        for number, kind in enumerate(chosen):
            config = replace(configured(options.steps), **kind.settings, ds_config=str(settings))
            student = WITH_CODES
            if not kind.has_codes:
                config = replace(config, mvm=MvmConfig(weight=0.0))
                student = replace(WITH_CODES, neck=PlainNeckConfig())
            run = root / str(number)
            train(config, objects, run, kind.world_size, student=student, seed=kind.seed)
            curves[kind.name] = read_metrics(run / "pretrain" / "metrics.jsonl")
            print(f"{kind.name}: last loss {curves[kind.name][-1]['loss']:.4f}", flush=True)
    return show(chosen, curves, options.steps)


def configured(num_steps: int) -> PretrainConfig:
    """32 pictures a step."""
    return PretrainConfig(
        num_steps=num_steps,
        micro_batch_size=8,
        micro_batches_per_step=4,
        captions_per_picture=2,
        checkpoint_steps=num_steps,
        log_steps=1,
        lr_transformer=1e-3,
        lr_cnn=0.01,
        mvm=MvmConfig(weight=1.0, probability=1.0),
    )


def show(chosen: Sequence[Kind], curves: dict[str, Curve], num_steps: int) -> int:
    """Print the table; 1 if a kind left its tolerance, or had another learning rate."""
    table = Table(title=f"{num_steps} steps of 32 pictures: differences from {chosen[0].name}")
    for column in ("", "loss", "norm of the gradient", "tolerance", "within"):
        table.add_column(column)
    failed, firsts = False, firsts_of(chosen)
    for kind in chosen:
        if kind in firsts.values():
            continue
        curve, first = curves[kind.name], curves[firsts[kind.has_codes].name]
        same_rates = [a["lr_factor"] for a in curve] == [b["lr_factor"] for b in first]
        loss = difference(curve, first, "loss", thirds=kind.thirds)
        norm = difference(curve, first, "grad_norm", thirds=kind.thirds)
        is_within = same_rates and (
            kind.tolerance is None
            or loss <= kind.tolerance
            and (kind.thirds or norm <= NORM_FACTOR * kind.tolerance)
        )
        failed |= not is_within
        reported = "thirds" if kind.thirds else "steps"
        wanted = "" if kind.tolerance is None else f"{kind.tolerance:.0e} ({reported})"
        verdict = "" if kind.tolerance is None else "yes" if is_within else "NO"
        table.add_row(kind.name, f"{loss:.1e}", f"{norm:.1e}", wanted, verdict)
    Console(width=110).print(table)
    return int(failed)


def difference(curve: Curve, other: Curve, name: str, *, thirds: bool) -> float:
    """The largest of steps, or of the means of thirds of the run, relative to `other`."""
    assert [line["step"] for line in curve] == [line["step"] for line in other]
    mine, theirs = ([line[name] for line in lines] for lines in (curve, other))
    if thirds:
        size = -(-len(mine) // 3)
        starts = range(0, len(mine), size)
        mine, theirs = ([fmean(v[s : s + size]) for s in starts] for v in (mine, theirs))
    return max(abs(a / b - 1) for a, b in zip(mine, theirs))


if __name__ == "__main__":
    sys.exit(main())
