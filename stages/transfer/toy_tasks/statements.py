"""Statements about toy scenes in the layouts of NLVR2, NLVR and SNLI-VE."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from stages.transfer.toy_tasks.scene import (
    IMAGES,
    NUM_WORDS,
    Scene,
    absent_thing,
    random_of,
    write_lines,
    write_picture,
)

PAIRS_OF_SET = 4
Statement = Callable[[Scene, Scene], bool]
"""Whether a sentence is true of two scenes."""


def write_nlvr2(scenes: Sequence[Scene], folder: Path, split: str) -> dict[str, Any]:
    """Sets of four pairs of scenes. Two sentences are true of each pair, and each is judged beside
    another pair of its set of which it is false: both labels are as common, and a sentence alone
    says nothing."""
    rows = []
    name = "train" if split == "train" else "dev"
    pairs = list(zip(scenes[::2], scenes[1::2]))
    for number, start in enumerate(range(0, len(pairs), PAIRS_OF_SET)):
        of_set = pairs[start : start + PAIRS_OF_SET]
        for n, pair in enumerate(of_set):
            for side, scene in enumerate(pair):
                write_picture(scene, folder / IMAGES / f"{name}-{number}-{n}-img{side}.png")
        for sentence, (own, text, is_true_of) in enumerate(_sentences(of_set)):
            others = ((own + n) % len(of_set) for n in range(1, len(of_set)))
            other = next((n for n in others if not is_true_of(*of_set[n])), None)
            if other is not None:
                for n, label in ((own, True), (other, False)):
                    row = {"identifier": f"{name}-{number}-{n}-{sentence}", "sentence": text}
                    rows.append({**row, "label": str(label)})
    return {split: write_lines(folder / f"{name}.json", rows)}


def _sentences(pairs: Sequence[tuple[Scene, Scene]]) -> Iterator[tuple[int, str, Statement]]:
    """The pair that a sentence is about, the sentence, and what it is true of."""
    for n, pair in enumerate(pairs):
        rng = random_of(pair[0], "nlvr2")
        for made in (_in_both, _in_one):
            yield n, *made(*pair, rng)


def _in_both(left: Scene, right: Scene, rng: random.Random) -> tuple[str, Statement]:
    """A shape that both scenes have; where they share none, a thing of one of them."""
    shared = sorted(_shapes(left) & _shapes(right))
    if not shared:
        return _in_one(left, right, rng)
    shape = rng.choice(shared)
    return (
        f"There is a {shape} in both pictures.",
        lambda one, other: shape in _shapes(one) & _shapes(other),
    )


def _in_one(left: Scene, right: Scene, rng: random.Random) -> tuple[str, Statement]:
    """A thing that one of the scenes has."""
    thing = rng.choice(left.names + right.names)
    return (
        f"One of the pictures shows a {thing}.",
        lambda one, other: thing in one.names + other.names,
    )


def _shapes(scene: Scene) -> set[str]:
    return {shape for _, shape, _ in scene.objects}


def write_nlvr(scenes: Sequence[Scene], folder: Path, split: str) -> dict[str, Any]:
    """Two sentences a scene, one true and one false. Presentation, then example: "7-0", "7-1"."""
    rows = []
    name = "train" if split == "train" else "dev"
    for scene in scenes:
        rng = random_of(scene, "nlvr")
        for n, is_true in enumerate((True, False)):
            text = _about(scene, rng, is_true=is_true)
            identifier = f"{scene.number}-{n}"
            write_picture(scene, folder / IMAGES / "0" / f"{name}-{identifier}-0.png")
            rows.append(
                {
                    "identifier": identifier,
                    "directory": "0",
                    "sentence": text,
                    "label": str(is_true).lower(),
                }
            )
    return {split: write_lines(folder / f"{name}.json", rows), "nlvr_num_orders": 1}


def _about(scene: Scene, rng: random.Random, *, is_true: bool) -> str:
    """A sentence about one scene: how many things there are, or what is there."""
    number = len(scene.names)
    if rng.random() < 0.3:
        others = [n for n in range(2, len(NUM_WORDS)) if n != number]
        return f"There are {NUM_WORDS[number if is_true else rng.choice(others)]} things."
    return f"There is a {rng.choice(scene.names) if is_true else absent_thing(scene, rng)}."


def write_snli_ve(scenes: Sequence[Scene], folder: Path, split: str) -> dict[str, Any]:
    """One hypothesis a label; a neutral one says of a visible thing what cannot be seen."""
    rows = []
    for scene in scenes:
        name = write_picture(scene, folder / IMAGES / f"{scene.number}.jpg")
        rng = random_of(scene, "snli_ve")
        here, absent = rng.choice(scene.names), absent_thing(scene, rng)
        said = {
            "entailment": f"There is a {here}.",
            "contradiction": f"There is a {absent}.",
            "neutral": f"A {rng.choice((here, absent))} is heavy.",
        }
        for letter, (label, text) in zip("ecn", said.items()):
            rows.append(
                {
                    "Flickr30K_ID": str(scene.number),
                    "gold_label": label,
                    "pairID": f"{name}#0r1{letter}",
                    "sentence1": scene.sample.info["captions"][0],
                    "sentence2": text,
                }
            )
    return {split: write_lines(folder / f"snli_ve_{split}.jsonl", rows)}
