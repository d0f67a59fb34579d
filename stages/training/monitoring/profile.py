"""Profiles some training steps with PyTorch's profiler."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

FOLDER = "profile"


class StepProfile:
    """Records the steps from the first to the last of `steps` into `out`/profile/rank-R.json.gz, in
    the format of Chrome's tracing, which Perfetto reads. `steps` is empty for none. A run that
    starts again between the two records the rest of them."""

    def __init__(self, out: Path, steps: Sequence[int], rank: int) -> None:
        self._path = out / FOLDER / f"rank-{rank}.json.gz"
        self._steps = range(steps[0], steps[1] + 1) if steps else range(0)
        self._profile: profile | None = None

    @contextlib.contextmanager
    def of_step(self, step: int) -> Iterator[None]:
        """Around `step`, counted from 1."""
        if step in self._steps and self._profile is None:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities)
            self._profile.start()
        yield
        if self._profile is not None and step + 1 not in self._steps:
            self._profile.stop()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._profile.export_chrome_trace(str(self._path))
            self._profile = None
