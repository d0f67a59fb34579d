"""Micro-batches that are copied one ahead of the network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pretrain_fixtures import random_batch

from stages.training.device_prefetch import DevicePrefetcher

GPU = torch.device("cuda", 0)


@dataclass
class Pixels:
    """A batch whose one tensor is a name; it notes what is done with it."""

    name: str
    done: list[str]

    def map_tensors(self, function: Callable[[Any], Any]) -> Pixels:
        return Pixels(name=str(function(self)), done=self.done)

    def to(self, device: torch.device) -> Pixels:
        self.done.append(f"copy {self.name}")
        return Pixels(name=f"{self.name} there", done=self.done)

    def record_stream(self, stream: Any) -> None:
        self.done.append(f"{self.name} used on {stream.name}")

    def __str__(self) -> str:
        return self.name


@dataclass
class Stream:
    """A stream that notes which others it waits for."""

    name: str
    done: list[str]

    def wait_stream(self, other: Stream) -> None:
        self.done.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What copies ask of CUDA, in order, with streams that only note it."""
    notes: list[str] = []

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        notes.append(f"on {stream.name}:")
        yield
        notes.append("back")

    def pinned(pixels: Pixels) -> str:
        notes.append(f"pin {pixels.name}")
        return f"pinned {pixels.name}"

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side", notes))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("main", notes))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    return notes


def test_a_copy_runs_on_its_own_stream_before_it_is_used(done: list[str]) -> None:
    """Oracle: the order by CUDA's rules: pin, copy on the side stream, let the main stream wait for
    it, tell the allocator who reads the memory; the next copy begins before the first is done with,
    and one that was not begun is made when it is taken."""
    copies, first, second = DevicePrefetcher(GPU), Pixels("a", done), Pixels("b", done)
    copies.start(first)
    assert done == ["pin a", "on side:", "copy pinned a", "back"]
    done.clear()
    copies.take(first)
    assert done == ["main waits for side", "pinned a there used on main"]
    done.clear()
    copies.start(second)
    assert "main waits for side" not in done
    copies.take(second)
    done.clear()
    copies.take(first)
    assert done[0] == "pin a" and done[-2] == "main waits for side"
    copies.start(first)
    done.clear()
    copies.take(second)
    assert done[:3] == ["pin b", "on side:", "copy pinned b"]


def test_on_a_processor_nothing_is_copied() -> None:
    """Oracle: the same tensors, whether a copy was begun or not."""
    copies, batch = DevicePrefetcher(torch.device("cpu")), random_batch(0)
    copies.start(batch)
    assert copies.take(batch).pixels is batch.pixels


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_copies_are_equal_on_a_gpu() -> None:
    """Six batches in turn, the next one begun while one is computed with. Oracle: their own
    tensors."""
    copies, batches = DevicePrefetcher(GPU), [random_batch(seed) for seed in range(6)]
    copies.start(batches[0])
    for place, batch in enumerate(batches):
        there = copies.take(batch)
        sums = torch.stack([there.feature.double().sum() for _ in range(200)])
        if place + 1 < len(batches):
            copies.start(batches[place + 1])
        del there
        torch.testing.assert_close(sums[-1].cpu(), batch.feature.double().sum())
