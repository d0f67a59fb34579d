"""How drills count samples over restarts. Oracle: turns written down by hand."""

from __future__ import annotations

from typing import Any

from benchmarks.launch.recorded_pretraining import count_samples


def turn(start: int, launch: str, position: int, *keys: str) -> dict[str, Any]:
    return {"start": start, "launch": launch, "world": 1, "position": position, "keys": keys}


def count(turns: list[dict[str, Any]]) -> dict[str, int]:
    """Two epochs of two positions, two positions a step."""
    return count_samples(turns, num_positions=4, num_an_epoch=2, per_step=2)


def calm() -> list[dict[str, Any]]:
    return [turn(0, "a", p, k) for p, k in enumerate(["x", "y", "y", "x"])]


def test_a_calm_run() -> None:
    zeros = {"lost": 0, "repeated": 0, "missing": 0, "doubled": 0, "undone": 0}
    assert count(calm()) == zeros | {"samples": 2}


def test_what_was_undone_counts_once() -> None:
    """Killed in the second step, after the checkpoint of the first; the next start is killed too,
    before a checkpoint, and the one after it does the step. Turns read ahead do not count."""
    turns = [
        turn(0, "a", 0, "x"), turn(0, "a", 1, "y"), turn(0, "a", 2, "y"),
        turn(1, "b", 2, "y"), turn(1, "b", 3, "x"), turn(1, "b", 4, "x"),
        turn(1, "c", 2, "y"), turn(1, "c", 3, "x"), turn(1, "c", 4, "x"),
    ]  # fmt: skip
    found = count(turns)
    assert [found[key] for key in ("lost", "repeated", "missing", "doubled")] == [0, 0, 0, 0]
    assert found["undone"] == 5


def test_what_is_wrong_is_seen() -> None:
    lost = count(calm()[:3])
    assert (lost["missing"], lost["lost"], lost["doubled"]) == (1, 1, 0)
    twice = count([*calm(), turn(0, "a", 3, "x")])
    assert (twice["doubled"], twice["repeated"], twice["missing"]) == (1, 1, 0)
