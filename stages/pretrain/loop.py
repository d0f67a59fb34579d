"""The training loop: steps from where the last checkpoint was, reports and checkpoints on the way.

Reached from `stages.pretrain.run`, on every rank.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sharding.format.schema import ShardError
from sharding.reading.watchdog import StallWatch
from stages.pretrain.batch import Batch
from stages.pretrain.config import PretrainConfig
from stages.pretrain.data import Batches, LoadedBatch
from stages.pretrain.skipped_samples import Skipped
from stages.progress import Progress
from stages.training.engine import save_checkpoint
from stages.training.gradient_norms import GradientNorms, loss_scale
from stages.training.metrics import MetricAccumulator, MetricsLog
from stages.training.schedule import rate_factor
from stages.training.stopping import Stopped, Watch

NOTICES = "notices.log"


class Loop:
    """One rank's training. `state` counts finished steps and has the position after them, and the
    samples that all ranks have skipped."""

    def __init__(
        self,
        engine: Any,
        batches: Batches,
        config: PretrainConfig,
        *,
        seed: int,
        state: dict[str, int],
        out: Path,
        watch: Watch,
        device: torch.device,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        self.engine, self.config, self.seed, self.device = engine, config, seed, device
        self.state, self.out, self.watch, self.on_step = state, out, watch, on_step
        out.mkdir(parents=True, exist_ok=True)
        self.rank = torch.distributed.get_rank()
        self.world_size = torch.distributed.get_world_size()
        self.stream = batches.stream
        self.stalls = StallWatch(
            self.stream.board, after_seconds=config.data.stall_seconds, log=self._say
        )
        loader = batches.loader(config, state["position"], self.rank, self.world_size)
        self.deliveries = self.stalls.watched(loader)
        self.skipped = Skipped(config.data, state["skipped"], self._say)
        self.last_batch: Batch | None = None
        self.log = MetricsLog(out, step=state["step"]) if self.rank == 0 else None
        self.gradients = GradientNorms(engine, engine.module.student)
        self.norms: dict[str, float] = {}
        self.tally, self.waited_seconds = MetricAccumulator(), 0.0
        self.reported_step, self.reported_at = state["step"], time.monotonic()

    def run(self) -> None:
        """Steps to the recipe's end, a checkpoint every so many and at the last.

        Raises Stopped, after a checkpoint, when a rank was told to stop, and FloatingPointError,
        on every rank, when a loss is not finite on any.
        """
        config, state = self.config, self.state
        self.engine.train()
        with (
            self.stalls,
            Progress(
                "pretrain",
                total=config.num_steps,
                unit="steps",
                start=state["step"],
                show=self.rank == 0,
            ) as progress,
        ):
            while state["step"] < config.num_steps:
                self.step()
                if self.on_step is not None:
                    self.on_step(state["step"])
                is_last = state["step"] == config.num_steps
                if self._is_reported(state["step"]):
                    self.report(progress)
                ended = self.watch.everywhere(self.device)
                if ended or is_last or state["step"] % config.checkpoint_steps == 0:
                    self.save()
                if ended and not is_last:
                    raise Stopped(f"stopped at step {state['step']} of {config.num_steps}, saved")
        if self.log:
            self.log.close()

    def step(self) -> None:
        """One optimizer step, over as many micro-batches as are this rank's share of it.

        In fp16 DeepSpeed leaves the weights, on all ranks, where a scaled gradient overflows, and
        halves the scale. Such a step counts: its samples are seen, and the schedule is of samples.
        """
        factor = rate_factor(self.state["step"], self.config)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = factor * group["peak_lr"]
        num_turns = self.engine.gradient_accumulation_steps()
        for turn in range(num_turns):
            asked = time.monotonic()
            delivery = next(self.deliveries)
            self.waited_seconds += time.monotonic() - asked
            self.skipped.add(delivery)
            batch, counts = self._batch_of(delivery)
            torch.manual_seed(self.seed * 1_000_003 + delivery.turn.position)
            loss, scores = self.engine(batch.to(self.device), counts)
            self.watch.note(loss, scores, batch.keys)
            self.engine.backward(loss * self._weight if counts else loss * 0.0)
            if turn == num_turns - 1:
                self.watch.finite(self.state["step"] + 1)
                if self._is_reported(self.state["step"] + 1):
                    self.norms = self.gradients.norms()
            self.engine.step()
            self.tally.add(loss, scores, counts=counts)
        self.engine.module.end_step()
        self.state["step"] += 1
        self.state["position"] += self.config.micro_batches_per_step

    def save(self) -> None:
        """A checkpoint of this step. A collective."""
        state = {
            "step": self.state["step"],
            "skipped": self.state["skipped"],
            "data": self.stream.state(self.state["position"]),
        }
        save_checkpoint(self.engine, self.out, state, self.config.keep_checkpoints)

    def _is_reported(self, step: int) -> bool:
        """Whether `step`, counted from 1, has a line of metrics."""
        return step == self.config.num_steps or step % self.config.log_steps == 0

    @property
    def _weight(self) -> float:
        """Of a turn's loss: DeepSpeed divides by all turns of a step, padding too."""
        num_turns = self.engine.gradient_accumulation_steps() * self.world_size
        return num_turns / self.config.micro_batches_per_step

    def _batch_of(self, delivery: LoadedBatch) -> tuple[Batch, bool]:
        """The batch to go through, and whether it counts. Where nothing of a turn could be read the
        last batch is gone through again for nothing, as every rank has to."""
        if delivery.batch is not None:
            self.last_batch = delivery.batch
            return delivery.batch, not delivery.turn.is_padding
        if self.last_batch is None:
            raise ShardError(
                f"position {delivery.turn.position}: no sample of this rank's first micro-batch "
                f"could be read; {delivery.faults[0].cause}"
            )
        return self.last_batch, False

    def _say(self, text: str) -> None:
        """To this rank's own log, and to the notices of all ranks, which `boxless status` shows."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} rank {self.rank}: {text}"
        print(f"pretrain: {line}", flush=True)
        with open(self.out / NOTICES, "a", encoding="utf-8") as notices:
            notices.write(line + "\n")

    def report(self, progress: Progress) -> None:
        """A line of metrics over the steps since the last one. A collective.

        Raises ShardError on every rank when more samples were skipped than the recipe allows.
        """
        state, config = self.state, self.config
        state["skipped"] = self.skipped.everywhere(self.device)
        num_steps = state["step"] - self.reported_step
        seconds = time.monotonic() - self.reported_at
        pictures = config.micro_batch_size * config.micro_batches_per_step
        line = {
            "step": state["step"],
            "epoch": self.stream.plan.epochs(state["position"])[0],
            "pictures": state["position"] * config.micro_batch_size,
            "step_seconds": seconds / num_steps,
            "pictures_per_second": pictures * num_steps / seconds,
            "data_wait_share": self.waited_seconds / seconds,
            "lr_factor": rate_factor(state["step"] - 1, config),
            "skipped": state["skipped"],
            **self.norms,
            **self.tally.take(),
        }
        if self.engine.fp16_enabled():
            line["loss_scale"] = loss_scale(self.engine)
            line["overflow_steps"] = self.engine.skipped_steps
        self.waited_seconds = 0.0
        self.reported_step, self.reported_at = state["step"], time.monotonic()
        if self.log:
            self.log.write(line)
        figures = {"pictures/s": line["pictures_per_second"], "loss": line["loss"]}
        progress.advance(num_steps, **figures)
