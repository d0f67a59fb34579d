"""The share of pretraining's time that was useful, from records of launcher and ranks."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from launch.events import read_events
from launch.paths import JobPaths
from pipeline.runner.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """share: useful steps times the median time of a step, over the time since the first start
    (0 to 1). restarts: in an allocation. starts: of the job. lost_seconds: by cause."""

    share: float
    wall_seconds: float
    starts: int
    restarts: int
    lost_seconds: dict[str, float] = field(default_factory=dict)


def read_goodput(run: RunFolder) -> Goodput | None:
    """Of the run's pretraining; None before its first reported step.

    Events of the first node alone are counted: all nodes record the same restarts.
    """
    events = read_events(JobPaths(run.logs("pretrain")).events)
    events = [event for event in events if event.get("node") == 0]
    lines = _metrics(run)
    if not events or not lines:
        return None
    ended = events[-1]["event"] in ("end", "failure", "stop")
    until = events[-1]["time_seconds"] if ended else time.time()
    wall = max(until - events[0]["time_seconds"], 1e-9)
    step_seconds = statistics.median(line["step_seconds"] for line in lines)
    return Goodput(
        share=min(1.0, lines[-1]["step"] * step_seconds / wall),
        wall_seconds=wall,
        starts=sum(event["event"] == "start" for event in events),
        restarts=sum(event["event"] == "restart" for event in events),
        lost_seconds=_lost_seconds(events),
    )


def _lost_seconds(events: list[dict[str, Any]]) -> dict[str, float]:
    """By cause: restarts in an allocation, the time between two starts, and each start's until its
    first step."""
    lost: dict[str, float] = {}
    started_at, last = 0.0, None
    for event in events:
        kind, at = event["event"], event["time_seconds"]
        cause, seconds = "", 0.0
        if kind == "recovered":
            cause, seconds = event["cause"], event["lost_seconds"]
            started_at += seconds  # of restarts before the first step: counted once
        elif kind == "first step":
            cause, seconds = "starting, up to the first step", at - started_at
        elif kind == "start":
            started_at = at
            if last is not None:
                cause, seconds = _between_starts(last), at - last["time_seconds"]
        if cause:
            lost[cause] = lost.get(cause, 0.0) + seconds
        last = event
    return lost


def _between_starts(last: dict[str, Any]) -> str:
    """Why a start's last event was its last."""
    if last["event"] == "stop":
        return "between starts, after a signal: the time limit, preemption, a cancel, a lost node"
    if last["event"] == "failure":
        return f"between starts, after a failure: {last.get('cause', 'unknown')}"
    if last["event"] == "end":
        return "between starts, after an end"
    return "between starts, after the loss of the first node or its agent"


def goodput_lines(goodput: Goodput) -> list[str]:
    """For people: one line, and one for each cause of lost time."""
    wall = goodput.wall_seconds
    lines = [
        f"goodput {goodput.share:.0%} of {wall:.0f} s since the first start; starts "
        f"{goodput.starts}, restarts {goodput.restarts}"
    ]
    causes = sorted(goodput.lost_seconds.items(), key=lambda item: -item[1])
    return lines + [f"  lost {seconds:.0f} s: {cause[:120]}" for cause, seconds in causes[:5]]


def _metrics(run: RunFolder) -> list[dict[str, float]]:
    lines = []
    try:
        texts = (run.pretrain / "metrics.jsonl").read_text("utf-8").splitlines()
    except OSError:
        return []
    for text in texts:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if "step" in line and "step_seconds" in line:
            lines.append(line)
    return lines
