"""Settings of every training: length, batch, schedule, engine, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from boxless.errors import BoxlessError

PRECISIONS = ("fp32", "tf32", "auto", "autocast-bf16", "autocast-fp16", "bf16", "fp16")
SCALED = ("autocast-fp16", "fp16")
"""Precisions whose losses are scaled."""
APEX_NAMES = ("apex-o1", "apex", "o1", "amp")
APEX = (
    "precision: got {got}, expected one of {choices}. apex removed its amp in May 2025 and "
    "DeepSpeed 0.19.8 takes it no longer. autocast-fp16 is what O1 meant: float32 weights, fp16 by "
    "operator, loss scaling; autocast-bf16 needs no scaling, on GPUs that have bf16"
)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of `stages.training.loop`; pretraining and finetuning add their own."""

    section: ClassVar[str] = "training"
    """The recipe's key, for messages."""

    num_steps: int = 900
    """Optimizer steps."""
    micro_batch_size: int = 16
    """Samples a forward pass; the unit of the sample order."""
    micro_batches_per_step: int = 2
    """Micro-batches a step over all ranks; ranks and accumulation share them, so the step is the
    same whatever the number of ranks. One that does not divide it has turns that count nothing."""
    num_workers: int = 0
    """Processes a rank that read and decode; 0 does it in the rank itself."""
    warmup: float = 0.1
    """Share of the steps in which the rates rise to their peaks."""
    warmup_from: float = 0.0
    """Share of the peaks at which they start to rise (SOHO's code: a third)."""
    schedule: str = "cosine"
    """`cosine` to a fiftieth of the peak, `linear` to 0, or `steps`: a tenth at each of
    `decay_at`."""
    decay_at: tuple[float, ...] = (0.625, 0.875)
    """Shares of the steps at which `steps` decays (SOHO: epochs 25 and 35 of 40)."""
    clip_norm: float = 5.0
    """Largest gradient norm; longer gradients are scaled to it."""
    max_nonfinite_steps: int = 3
    """Steps in a row whose gradient is not finite (each leaves the weights and is logged) after
    which the run stops."""
    zero_stage: int = 1
    """DeepSpeed ZeRO: what ranks share out; 0 nothing, 1 optimizer states, 2 gradients too, 3
    weights too."""
    precision: str = "fp32"
    """`fp32`; `tf32`, float32 with products in TF32 (NVIDIA's GPUs since Ampere); `autocast-bf16`,
    float32 weights and gradients with convolutions and matrix products in bf16 (for GPUs, and
    processors with AVX-512 BF16 or AMX: slower on others); `autocast-fp16`, the same in fp16 with
    dynamic loss scaling, for GPUs without bf16 (V100, T4); `bf16`; or `fp16` with dynamic loss
    scaling (both with 16-bit weights, float32 ones in the optimizer). `auto` is autocast-bf16 on
    GPUs that have bf16 and fp32 elsewhere; its checkpoints continue on either."""
    cudnn_benchmark: bool = False
    """Whether cuDNN tries its algorithms at the first convolution of each shape and keeps the
    fastest; for GPUs, where pictures have few sizes. Another start may choose others, and a run
    that continues then differs in last digits."""
    accumulate_precision: str = "fp32"
    """Of gradients summed over micro-batches and ranks in bf16: `fp32`, or `training`, bf16
    itself."""
    save_precision: str = "fp32"
    """Of the weights in the student folder: `fp32`, the optimizer's own, or `training`, those of
    `precision`."""
    checkpoint_activations: tuple[str, ...] = ()
    """`cnn`, `transformer` or both: layers that run again in the backward pass, to save memory."""
    ds_config: str | None = None
    """A JSON file of DeepSpeed's settings; it must not contradict the recipe."""
    checkpoint_steps: int = 100
    """Steps from one checkpoint to the next."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    log_steps: int = 10
    """Steps from one line of metrics to the next."""
    wandb_project: str | None = None
    """Project of Weights & Biases that metrics are logged to as well, where the package wandb is
    installed (its WANDB_MODE=offline keeps them here); null for none."""
    profile_steps: tuple[int, ...] = ()
    """First and last step that PyTorch's profiler records, say `[20, 22]`; none for no profile."""
    peak_tflops: float | None = None
    """What a device computes at most in `precision`, in 10^12 operations a second, for `mfu` in the
    metrics; null: known by a GPU's name, or not at all."""
    validate_steps: int | None = None
    """Steps from one validation to the next; null validates after each epoch."""

    def __post_init__(self) -> None:
        for name in (
            "num_steps",
            "micro_batch_size",
            "micro_batches_per_step",
            "max_nonfinite_steps",
            "checkpoint_steps",
            "keep_checkpoints",
            "log_steps",
        ):
            if getattr(self, name) < 1:
                raise BoxlessError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.validate_steps is not None and self.validate_steps < 1:
            raise BoxlessError(
                f"validate_steps: got {self.validate_steps}, expected at least 1, or null"
            )
        if self.profile_steps and not (
            len(self.profile_steps) == 2 and 1 <= self.profile_steps[0] <= self.profile_steps[1]
        ):
            raise BoxlessError(
                f"profile_steps: got {list(self.profile_steps)}, expected the first and the last "
                "step, counted from 1, or none"
            )
        if self.peak_tflops is not None and not self.peak_tflops > 0:
            raise BoxlessError(f"peak_tflops: got {self.peak_tflops}, expected above 0, or null")
        if self.num_workers < 0:
            raise BoxlessError(f"num_workers: got {self.num_workers}, expected 0 or more")
        if self.precision.lower() in APEX_NAMES:
            raise BoxlessError(APEX.format(got=self.precision, choices=", ".join(PRECISIONS)))
        check_choice("schedule", self.schedule, ("cosine", "linear", "steps"))
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("accumulate_precision", self.accumulate_precision, ("fp32", "training"))
        check_choice("save_precision", self.save_precision, ("fp32", "training"))
        check_choice("zero_stage", self.zero_stage, (0, 1, 2, 3))
        for part in self.checkpoint_activations:
            check_choice("checkpoint_activations", part, ("cnn", "transformer"))
        if self.precision in SCALED and not self.zero_stage:
            # DeepSpeed 0.19.8 then divides gradients by a scale that it has not put on the loss
            # (fp16), or keeps no scale in its checkpoints (autocast).
            raise BoxlessError(
                f"precision: got {self.precision} with zero_stage 0, expected zero_stage 1, 2 or 3: "
                "DeepSpeed scales the loss under ZeRO only"
            )
        for name in ("warmup", "warmup_from"):
            check_share(name, getattr(self, name))

    @property
    def solved_at_start(self) -> frozenset[str]:
        """Objectives that the first weights solve already: that their losses do not fall means
        nothing."""
        return frozenset()


def check_share(name: str, value: float) -> None:
    """Raises ValueError unless 0 <= value <= 1."""
    if not 0 <= value <= 1:
        raise BoxlessError(f"{name}: got {value}, expected between 0 and 1")


def check_weight(name: str, value: float) -> None:
    """Raises ValueError below 0."""
    if value < 0:
        raise BoxlessError(f"{name}: got {value}, expected 0 or more")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raises ValueError where `value` is none of `choices`."""
    if value not in choices:
        raise BoxlessError(f"{name}: got {value!r}, expected one of {', '.join(map(str, choices))}")
