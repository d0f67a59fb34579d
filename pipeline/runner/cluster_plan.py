"""What a run on a cluster costs in time, storage, network and checkpoints, computed from the rates
that a small run of the same recipe measured.

Rates are those of one rank and are multiplied by the number of ranks: no loss by scaling is in
them. A measured run on the cluster's own nodes is therefore worth more than one on a laptop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from launch.paths import JobPaths
from pipeline.recipe.recipe import Recipe, load_recipe
from pipeline.runner.run_files import points, read_lines
from pipeline.runner.run_folder import RunError, RunFolder
from pipeline.runner.stages.stage_graph import stages_of
from pipeline.runner.stages.state import read_done
from pipeline.units import bytes_in_words, seconds_in_words
from sharding.format.catalog import read_catalog

STAGES = ("ingest", "distill", "pretrain")
GPU_HOURS_A_FAILURE = 7.9 * 1024
"""Mean time to failure of a job of 1,024 GPUs, as Meta measured it (arXiv 2410.21680), times their
number."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one run measured.

    rates: pictures a second of one rank, by stage. image_bytes, object_bytes: of shards, a picture.
    weight_bytes: of the student in float32. checkpoint_bytes: of one checkpoint.
    """

    rates: dict[str, float]
    image_bytes: float
    object_bytes: float
    weight_bytes: int
    checkpoint_bytes: int

    def with_pictures_of(self, num_bytes: float) -> Measured:
        """The same, but for pictures of another size; the rates stay."""
        more = num_bytes - self.image_bytes
        return replace(
            self, image_bytes=num_bytes, object_bytes=max(self.object_bytes + more, num_bytes)
        )


@dataclass(frozen=True, kw_only=True)
class ClusterPlan:
    """A run of ``num_pictures`` on ``nodes`` of ``procs_per_node`` ranks.

    epochs: how often pretraining sees each picture. micro_batch_size: samples a rank and step.
    checkpoint_steps: from one to the next. recovery_seconds: from a failure to the next step.
    """

    measured: Measured
    num_pictures: int
    nodes: int
    procs_per_node: int
    epochs: float
    micro_batch_size: int
    checkpoint_steps: int
    keep_checkpoints: int
    recovery_seconds: float = 120.0
    rates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("num_pictures", "nodes", "procs_per_node", "epochs", "recovery_seconds"):
            if getattr(self, name) <= 0:
                raise RunError(f"{name} is {getattr(self, name)}; expected more than 0.")
        for stage, rate in self.rates.items():
            if stage not in STAGES or rate <= 0:
                raise RunError(
                    f"the rate of {stage} is {rate}; expected pictures a second of one of "
                    f"{', '.join(STAGES)}, more than 0."
                )

    @property
    def num_ranks(self) -> int:
        """Of the whole job."""
        return self.nodes * self.procs_per_node

    def rate(self, stage: str) -> float:
        """Pictures a second of one rank: the one that was given, or the measured one."""
        return self.rates.get(stage, self.measured.rates[stage])

    def seconds(self, stage: str) -> float:
        """Of work, without starts and failures."""
        passes = self.epochs if stage == "pretrain" else 1.0
        return self.num_pictures * passes / (self.rate(stage) * self.num_ranks)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of pretraining, a micro-batch a rank each."""
        samples = self.num_pictures * self.epochs
        return math.ceil(samples / (self.micro_batch_size * self.num_ranks))

    @property
    def step_seconds(self) -> float:
        """Of one step."""
        return self.seconds("pretrain") / self.num_steps

    @property
    def hours_a_failure(self) -> float:
        """Mean time between failures of a job of so many GPUs."""
        return GPU_HOURS_A_FAILURE / self.num_ranks

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"{self.num_pictures:,} pictures on {self.nodes} nodes of {self.procs_per_node} ranks "
            f"({self.num_ranks}); rates scale without loss, which no cluster quite reaches",
            *self._stage_lines(),
            *self._storage_lines(),
            *self._network_lines(),
            *self._failure_lines(),
        ]

    def _stage_lines(self) -> list[str]:
        lines = []
        for stage in STAGES:
            origin = "given" if stage in self.rates else "measured"
            lines.append(
                f"{stage:9} {seconds_in_words(self.seconds(stage)):>12}  at "
                f"{self.rate(stage):.4g} pictures/s a rank ({origin})"
            )
        lines[-1] += (
            f": {self.epochs:g} epochs, {self.num_steps:,} steps of "
            f"{self.micro_batch_size * self.num_ranks:,} samples, {self.step_seconds:.3g} s each"
        )
        return lines

    def _storage_lines(self) -> list[str]:
        measured = self.measured
        images = measured.image_bytes * self.num_pictures
        objects = measured.object_bytes * self.num_pictures
        kept = measured.checkpoint_bytes * self.keep_checkpoints
        return [
            f"storage   image shards {bytes_in_words(images)} ({bytes_in_words(measured.image_bytes)} a picture), "
            f"object shards {bytes_in_words(objects)} ({bytes_in_words(measured.object_bytes)} a picture), "
            f"{self.keep_checkpoints} checkpoints {bytes_in_words(kept)}"
        ]

    def _network_lines(self) -> list[str]:
        ranks = self.num_ranks
        pictures = self.rate("pretrain") * self.procs_per_node
        reading = pictures * self.measured.object_bytes
        # A ring sends and receives 2 (n - 1) / n of the gradients a rank, float32 here.
        reduced = 2 * (ranks - 1) / ranks * self.measured.weight_bytes * self.procs_per_node
        return [
            f"network   pretraining reads {bytes_in_words(reading)}/s a node, {bytes_in_words(reading * self.nodes)}/s "
            f"in all; gradients {bytes_in_words(reduced)} a step and node, "
            f"{reduced * 8 / self.step_seconds / 1e9:.3g} Gbit/s when nothing hides them"
        ]

    def _failure_lines(self) -> list[str]:
        between = self.checkpoint_steps * self.step_seconds
        hours = self.seconds("pretrain") / 3600
        lost = between / 2 + self.recovery_seconds
        share = lost / 3600 / self.hours_a_failure
        return [
            f"checkpoints {bytes_in_words(self.measured.checkpoint_bytes)} every {self.checkpoint_steps} "
            f"steps, {seconds_in_words(between)}: "
            f"{bytes_in_words(self.measured.checkpoint_bytes / between)}/s on average",
            f"failures  one in {self.hours_a_failure:.1f} h of {ranks_in_words(self.num_ranks)} "
            f"(7.9 h of 1,024 GPUs), {hours / self.hours_a_failure:.1f} while pretraining; each "
            f"costs {seconds_in_words(lost)} ({self.recovery_seconds:g} s to start again, and half "
            f"of what is between checkpoints): {share:.2%} of the time",
        ]


def ranks_in_words(num_ranks: int) -> str:
    """``512 GPUs``."""
    return f"{num_ranks:,} GPU" + ("s" if num_ranks != 1 else "")


def measure(run: RunFolder) -> tuple[Recipe, Measured]:
    """The recipe of a finished run and what it measured. RunError where a stage is not complete."""
    recipe = load_recipe(run.recipe)
    seconds = {}
    for kind in stages_of(recipe):
        if kind.name in STAGES:
            record = read_done(run, kind)
            if record is None:
                raise RunError(
                    f"{kind.name} is not complete in {run.root}; expected a run whose ingest, "
                    f"distill and pretrain are, to measure: `boxless run` makes it."
                )
            seconds[kind.name] = record.seconds
    num_pictures = {
        folder: sum(shard.num_ok for shard in read_catalog(folder).shards)
        for folder in (run.images, run.objects)
    }
    sizes = {folder: sum(s.bytes for s in read_catalog(folder).shards) for folder in num_pictures}
    rates = {
        stage: num_pictures[folder] / max(seconds[stage], 1e-9) / _num_ranks(run, stage)
        for stage, folder in (("ingest", run.images), ("distill", run.objects))
    }
    rates["pretrain"] = _pretraining_rate(run) / _num_ranks(run, "pretrain")
    latest = run.pretrain / (run.pretrain / "latest").read_text().strip()
    return recipe, Measured(
        rates=rates,
        image_bytes=sizes[run.images] / num_pictures[run.images],
        object_bytes=sizes[run.objects] / num_pictures[run.objects],
        weight_bytes=_folder_bytes(run.student, "*.safetensors"),
        checkpoint_bytes=_folder_bytes(latest, "*"),
    )


def _num_ranks(run: RunFolder, stage: str) -> int:
    """Ranks that the stage had, by their logs."""
    folder = JobPaths(run.logs(stage)).folder
    return max(1, len(list(folder.glob("rank-*.log"))))


def _pretraining_rate(run: RunFolder) -> float:
    """Pictures a second of all ranks: the median of the reports."""
    reports = read_lines(run.pretrain / "metrics.jsonl")
    rates = [rate for _, rate in points(reports, "pictures_per_second")]
    if not rates:
        raise RunError(f"{run.pretrain}/metrics.jsonl has no pictures_per_second; expected some.")
    return sorted(rates)[len(rates) // 2]


def _folder_bytes(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())
