"""The training loop: steps from where the last checkpoint was, reports, checkpoints and validations
on the way. `stages.training` describes what it is given."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sharding.format.schema import ShardError
from sharding.reading.watchdog import StallWatch
from stages.progress import Progress
from stages.student.vision.batch_norm import average_statistics
from stages.tf32 import TF32, allow_tf32
from stages.training.checkpoints.save_and_load import load_checkpoint, save_checkpoint
from stages.training.config import TrainingConfig
from stages.training.cudnn_benchmark import cudnn_benchmark
from stages.training.data_loader import (
    BatchSource,
    LoadedBatch,
    load_batches,
    named_killed_workers,
    received,
)
from stages.training.device_prefetch import DevicePrefetcher
from stages.training.loss_scaling import is_lowest, loss_scale, scales_losses
from stages.training.monitoring.gradient_norms import GradientNorms
from stages.training.monitoring.metrics import METRICS, MetricAccumulator, MetricsLog, read_metrics
from stages.training.monitoring.profile import StepProfile
from stages.training.monitoring.skipped_samples import FaultPolicy, SkippedSamples
from stages.training.monitoring.step_flops import StepFlops
from stages.training.monitoring.stopping import DivergenceError, Stopped, Watch, of_all_ranks
from stages.training.monitoring.stuck_objectives import passes_due_step, stuck_objectives
from stages.training.schedule import rate_factor
from stages.training.training_state import TrainingState

NOTICES = "notices.log"


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What a run is measured by on the way, every `validate_steps` steps and at the end.

    run: step -> values by name; a collective, with the module in evaluation mode. They are in the
        metrics as `validation/NAME`.
    best: the value by which one step is better than another; None for none.
    save_best: called with the step, on every rank, when its value is the best so far.
    """

    run: Callable[[int], Mapping[str, float]]
    best: str | None = None
    higher_is_better: bool = True
    save_best: Callable[[int], None] | None = None


class Loop:
    """One rank's training, from the last checkpoint in `out` on.

    engine: of `stages.training.engine.make_engine`, around the module to train. title: of the
    progress bar and of log lines. seed: each micro-batch's random draws come from it and from the
    position. on_step: called after each step with the number of steps done. counts_flops: False
    where a cache spares some micro-batches parts of the network. Raises ValueError where the
    checkpoint is of another order of samples.
    """

    def __init__(
        self,
        engine: Any,
        source: BatchSource,
        config: TrainingConfig,
        *,
        title: str,
        seed: int,
        out: Path,
        watch: Watch,
        device: torch.device,
        faults: FaultPolicy = FaultPolicy(),
        validation: Validation | None = None,
        on_step: Callable[[int], None] | None = None,
        counts_flops: bool = True,
    ) -> None:
        self.engine, self.source, self.config = engine, source, config
        self.title, self.seed, self.device = title, seed, device
        self.out, self.watch, self.validation, self.on_step = out, watch, validation, on_step
        out.mkdir(parents=True, exist_ok=True)
        self.rank = torch.distributed.get_rank()
        self.world_size = torch.distributed.get_world_size()
        self.state = TrainingState.of_saved(load_checkpoint(engine, out), source)
        self.stalls = StallWatch(source.board, after_seconds=faults.stall_seconds, log=self._log)
        self.loader = load_batches(source, config, self.state.position, self.rank, self.world_size)
        self.skipped = SkippedSamples(
            faults, self.state.skipped_samples, self._log, section=config.section
        )
        self.last_batch: Any = None
        self.prefetcher = DevicePrefetcher(device)
        self.log = (
            MetricsLog(
                out,
                step=self.state.step - (self.state.unvalidated is not None),
                title=title,
                wandb_project=config.wandb_project,
            )
            if self.rank == 0
            else None
        )
        self.gradients = GradientNorms(engine, engine.module)
        self.norms: dict[str, float] = {}
        self.metrics, self.waited_seconds = MetricAccumulator(), 0.0
        self.nonfinite_in_a_row = 0
        self.is_signalled = False
        self.reported_step, self.reported_at = self.state.step, time.monotonic()
        cell_px = engine.module.student.grid.cell_px
        self.flops = StepFlops(config, cell_px=cell_px, device=device) if counts_flops else None
        self.profile = StepProfile(out, config.profile_steps, self.rank)

    def run(self) -> None:
        """Steps to the recipe's end, a checkpoint every so many and at the last.

        Raises Stopped, after a checkpoint, when a rank got a signal, and DivergenceError,
        on every rank, when a loss is not finite on any, or gradients are not for too many steps.
        """
        config, state = self.config, self.state
        self.engine.train()
        self.batches = self.stalls.watched(received(self.loader, config.section))
        with (
            named_killed_workers(config.section),
            self.stalls,
            allow_tf32(config.precision == TF32),
            cudnn_benchmark(config.cudnn_benchmark),
            Progress(
                self.title,
                total=config.num_steps,
                unit="steps",
                start=state.step,
                show=self.rank == 0,
            ) as progress,
        ):
            try:
                if state.unvalidated is not None:
                    values = self.validate() if self.validation else {}
                    self.log_line({**state.unvalidated, **values})
                while state.step < config.num_steps:
                    with self.profile.of_step(state.step + 1):
                        self.step()
                    if self.on_step is not None:
                        self.on_step(state.step)
                    self.finish_step(progress)
            finally:
                self.batches.close()
        if self.log:
            self.log.close()

    def finish_step(self, progress: Progress) -> None:
        """Report, checkpoint and validation of the step that is done, where they are due.

        The checkpoint comes first, so that a run that ends while it validates continues with that.
        Raises Stopped when a rank got a signal. A collective.
        """
        config, step = self.config, self.state.step
        is_last, is_validated = step == config.num_steps, self._is_validated(step)
        line = self.report(progress) if self._is_reported(step) else None
        self.state.unvalidated = line if is_validated else None
        is_due = is_last or is_validated or step % config.checkpoint_steps == 0
        if self.is_signalled or is_due:
            self.save()
        is_stopped = self.is_signalled and not is_last
        if line is not None and not (is_stopped and is_validated):
            self.log_line({**line, **(self.validate() if is_validated else {})})
        if is_stopped:
            raise Stopped(f"stopped at step {step} of {config.num_steps}, saved")

    def step(self) -> None:
        """One optimizer step, over as many micro-batches as are this rank's share of it.

        A step whose gradients are not finite leaves the weights, on all ranks (in float16 DeepSpeed
        sees to that, and halves the scale). It counts: its samples are seen, and the schedule is of
        samples.
        """
        factor = rate_factor(self.state.step, self.config)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = factor * group["peak_lr"]
        num_turns, num_skipped = (
            self.engine.gradient_accumulation_steps(),
            self.engine.skipped_steps,
        )
        is_scale_lowest = is_lowest(self.engine)
        keys: list[str] = []
        # All of them first: their numbers of labels are needed for the first one's loss.
        all_loaded = [self._next_batch() for _ in range(num_turns)]
        batches = [self._batch_of(loaded) for loaded in all_loaded]
        self.prefetcher.start(batches[0][0])
        self.engine.module.begin_step(
            [batch for batch, is_valid in batches if is_valid], self.config.micro_batches_per_step
        )
        for turn, (loaded, (batch, is_valid)) in enumerate(zip(all_loaded, batches)):
            torch.manual_seed(self.seed * 1_000_003 + loaded.turn.position)
            with self._counted(batch, is_valid):
                loss, outputs = self.engine(self.prefetcher.take(batch), is_valid)
                if turn + 1 < num_turns:
                    self.prefetcher.start(batches[turn + 1][0])
                self.watch.note(loss, outputs, batch.keys)
                self.engine.backward(loss * self._weight if is_valid else loss * 0.0)
            if turn == num_turns - 1:
                keys = self._before_step()
            self.engine.step()
            self.metrics.add(loss, outputs, is_valid=is_valid)
        # At every step, so that a checkpoint, which holds one rank's, holds what all ranks have.
        average_statistics(self.engine.module)
        is_skipped = self.engine.skipped_steps > num_skipped
        is_overflow = scales_losses(self.engine) and not is_scale_lowest
        if self.engine.basic_optimizer.is_held or (is_skipped and not is_overflow):
            self._note_nonfinite(self.state.step + 1, keys)
        else:
            self.nonfinite_in_a_row = 0
        self.engine.module.end_step()
        self.state.step += 1
        self.state.position += self.config.micro_batches_per_step

    def _counted(self, batch: Any, is_valid: bool) -> contextlib.AbstractContextManager[None]:
        """Around both passes of a micro-batch."""
        if self.flops is None:
            return contextlib.nullcontext()
        return self.flops.of_micro_batch(batch, is_valid=is_valid)

    def _next_batch(self) -> LoadedBatch:
        asked = time.monotonic()
        with self.watch.waiting_for_data():
            loaded = next(self.batches)
        self.waited_seconds += time.monotonic() - asked
        self.skipped.add(loaded)
        return loaded

    def _before_step(self) -> list[str]:
        """Agree with the other ranks on signals, losses and gradients: the keys of this rank's
        samples in the step. A collective; DivergenceError on every rank where a loss is not
        finite on any."""
        step = self.state.step + 1
        squares = self.gradients.squares()
        # Overflow is how a scale is found; DeepSpeed sees to it.
        is_left_to_it = squares is None or scales_losses(self.engine)
        agreement, keys = self.watch.agree(
            step, None if squares is None or is_left_to_it else squares.sum()
        )
        self.is_signalled |= agreement.is_signalled
        self.engine.basic_optimizer.is_held = not agreement.is_finite
        if self._is_reported(step):
            self.norms = self.gradients.norms(squares)
        return keys

    def _note_nonfinite(self, step: int, keys: list[str]) -> None:
        """Log a step that left the weights. A collective; DivergenceError on every rank after
        `max_nonfinite_steps` in a row."""
        self.state.nonfinite_steps += 1
        self.nonfinite_in_a_row += 1
        text = f"step {step}: a gradient is not finite, on {', '.join(keys)}"
        if self.nonfinite_in_a_row < self.config.max_nonfinite_steps:
            self._log(f"{text}. The weights stay as they are")
            return
        raise DivergenceError(
            f"step {step}: for {self.nonfinite_in_a_row} steps in a row a gradient is not finite. "
            f"This one is of {of_all_ranks(', '.join(keys))}. No weight was changed by them; the "
            "last checkpoint is intact. Try a lower rate, a precision of more range, or look at "
            "these samples"
        )

    def save(self) -> None:
        """A checkpoint of this step. A collective."""
        state = self.state.as_saved(self.source)
        save_checkpoint(self.engine, self.out, state, self.config.keep_checkpoints)

    def validate(self) -> dict[str, float]:
        """The values of the validation, and the best kept. A collective."""
        assert self.validation is not None, "asked for by _is_validated"
        self.engine.eval()
        values = dict(self.validation.run(self.state.step))
        if self.validation.best is not None:
            value = values[self.validation.best]
            if self._is_better(value, higher=self.validation.higher_is_better):
                self.state.best = value
                if self.validation.save_best:
                    self.validation.save_best(self.state.step)
        self.engine.train()
        return {f"validation/{name}": float(value) for name, value in values.items()}

    def _is_better(self, value: float, *, higher: bool) -> bool:
        """Than the best so far. The first is, and every number is better than NaN."""
        best = self.state.best
        if best is None or math.isnan(best):
            return best is None or not math.isnan(value)
        return value > best if higher else value < best

    def _is_reported(self, step: int) -> bool:
        """Whether `step`, counted from 1, has a line of metrics."""
        return (
            step == self.config.num_steps
            or step % self.config.log_steps == 0
            or self._is_validated(step)
        )

    def _is_validated(self, step: int) -> bool:
        """Whether a validation follows `step`, counted from 1: the last one and each
        `validate_steps`-th, or each that ends an epoch."""
        if self.validation is None:
            return False
        if step == self.config.num_steps:
            return True
        if self.config.validate_steps is not None:
            return step % self.config.validate_steps == 0
        before, after = (
            int(self.source.epochs(number * self.config.micro_batches_per_step))
            for number in (step - 1, step)
        )
        return after > before

    @property
    def _weight(self) -> float:
        """Of a turn's loss: DeepSpeed divides by all turns of a step, padding too."""
        num_turns = self.engine.gradient_accumulation_steps() * self.world_size
        return num_turns / self.config.micro_batches_per_step

    def _batch_of(self, loaded: LoadedBatch) -> tuple[Any, bool]:
        """The batch to go through, and whether it counts. Where nothing of a turn could be read the
        last batch is gone through again for nothing, as every rank has to."""
        if loaded.batch is not None:
            self.last_batch = loaded.batch
            return loaded.batch, not loaded.turn.is_padding
        if self.last_batch is None:
            raise ShardError(
                f"position {loaded.turn.position}: no sample of this rank's first micro-batch "
                f"could be read; {loaded.faults[0].cause}"
            )
        return self.last_batch, False

    def _log(self, text: str) -> None:
        """To this rank's own log, and to the notices of all ranks, which `boxless status` shows."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} rank {self.rank}: {text}"
        print(f"{self.title}: {line}", flush=True)
        with open(self.out / NOTICES, "a", encoding="utf-8") as notices:
            notices.write(line + "\n")

    def report(self, progress: Progress) -> dict[str, float]:
        """A line of metrics over the steps since the last one. A collective.

        Raises ShardError on every rank when more samples were skipped than the recipe allows.
        """
        state, config = self.state, self.config
        state.skipped_samples = self.skipped.of_all_ranks(self.device)
        num_steps = state.step - self.reported_step
        seconds = time.monotonic() - self.reported_at
        pictures = config.micro_batch_size * config.micro_batches_per_step
        line = {
            "step": state.step,
            "epoch": self.source.epochs(state.position),
            "pictures": state.position * config.micro_batch_size,
            "step_seconds": seconds / num_steps,
            "pictures_per_second": pictures * num_steps / seconds,
            "data_wait_share": self.waited_seconds / seconds,
            "lr_factor": rate_factor(state.step - 1, config),
            "skipped": state.skipped_samples,
            "nonfinite_steps": state.nonfinite_steps,
            **(self.flops.take(seconds) if self.flops else {}),
            **self.norms,
            **self.metrics.take(),
        }
        if scales_losses(self.engine):
            line["loss_scale"] = loss_scale(self.engine)
            line["overflow_steps"] = self.engine.skipped_steps
        figures = {"pictures/s": line["pictures_per_second"], "loss": line["loss"]}
        progress.advance(num_steps, **figures)
        return line

    def log_line(self, line: Mapping[str, float]) -> None:
        """Write a line of metrics; what comes after it counts to the next one."""
        previous, step = self.reported_step, int(line["step"])
        self.waited_seconds = 0.0
        self.reported_step, self.reported_at = step, time.monotonic()
        if self.log:
            self.log.write(dict(line))
            if passes_due_step(previous, step, self.config.num_steps):
                lines = read_metrics(self.out / METRICS)
                for sentence in stuck_objectives(lines, self.config.solved_at_start):
                    self._log(f"{sentence} of {self.config.num_steps}")
