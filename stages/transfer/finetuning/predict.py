"""Predicts a set of examples of a task, on any number of ranks, resumable.

The unit of work is a group: the examples of one set of pictures, for which the CNN runs once. What
is predicted of an example is the same to the last digit whatever examples are beside it in its
group, and on any number of ranks; no example is predicted twice.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.progress import Progress
from stages.transfer.example import Example, group_by_images

MAX_TEXTS = 64
"""Texts of one group at most: it bounds memory."""
Group = tuple[Example, ...]


def predict(
    examples: Sequence[Example],
    predict_one: Callable[[Group], Mapping[str, Any]],
    out: Path,
    *,
    rank: int = 0,
    world_size: int = 1,
    show: bool = True,
    max_texts: int = MAX_TEXTS,
) -> dict[str, Any] | None:
    """Predictions of all examples by id, in their order, once the last of them is there; None while
    other ranks still have to give theirs.

    Each rank appends what it has to a file of its own in `out`; groups that any file has, whole,
    are not done again. `out` must be of these examples and weights alone. max_texts: of one group.
    """
    out.mkdir(parents=True, exist_ok=True)
    done = read_partial(out)
    groups = group_by_images(examples, max_texts=max_texts)
    # Shares are of all groups, not of those that are missing: ranks may look at different times.
    own = groups[rank::world_size]
    missing = [g for g in own if not all(example.id in done for example in g)]
    name = f"{rank}-of-{world_size}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
    with (
        open(out / name, "w", encoding="utf-8") as part,
        Progress("predictions", total=len(own), unit="groups", show=show) as progress,
    ):
        progress.advance(len(own) - len(missing))
        for group in missing:
            for key, prediction in predict_one(group).items():
                part.write(json.dumps({"id": key, "prediction": prediction}) + "\n")
            part.flush()
            progress.advance()
    done = read_partial(out)
    if any(example.id not in done for example in examples):
        return None
    return {example.id: done[example.id] for example in examples}


def read_partial(out: Path) -> dict[str, Any]:
    """Predictions by id that lie in a folder; a line that a killed rank did not finish is not
    one."""
    found: dict[str, Any] = {}
    for path in sorted(out.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").split("\n"):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            found[entry["id"]] = entry["prediction"]
    return found
