"""Statements about toy scenes in the layouts of NLVR2, NLVR and SNLI-VE."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.transfer.toy_tasks.scene import (
    COLORS,
    IMAGES,
    NUM_WORDS,
    Scene,
    absent_thing,
    random_of,
    write_lines,
    write_picture,
)


def write_nlvr2(scenes: Sequence[Scene], folder: Path, split: str) -> dict[str, Any]:
    """Pairs of consecutive scenes, with a sentence that is true of one pair and false of
    another."""
    rows = []
    name = "train" if split == "train" else "dev"
    for pair, (left, right) in enumerate(zip(scenes, scenes[1:])):
        for n, scene in enumerate((left, right)):
            write_picture(scene, folder / IMAGES / f"{name}-{pair}-0-img{n}.png")
        rng = random_of(left, "nlvr2")
        for sentence, (text, is_true) in enumerate(
            (_shared(left, right, rng), _shown(left, right, rng))
        ):
            row = {"identifier": f"{name}-{pair}-0-{sentence}", "sentence": text}
            rows.append({**row, "label": str(is_true)})
    return {split: write_lines(folder / f"{name}.json", rows)}


def _shared(left: Scene, right: Scene, rng: random.Random) -> tuple[str, bool]:
    """A shape that both scenes have, or that one of them has; half of each where there are both."""
    one, other = ({name.split()[1] for name in scene.names} for scene in (left, right))
    shapes = {True: sorted(one & other), False: sorted(one ^ other)}
    is_true = rng.random() < 0.5
    if not shapes[is_true]:
        is_true = not is_true
    return f"There is a {rng.choice(shapes[is_true])} in both pictures.", is_true


def _shown(left: Scene, right: Scene, rng: random.Random) -> tuple[str, bool]:
    """A thing that one of the scenes has, or one in another color."""
    names = left.names + right.names
    thing = rng.choice(names)
    if rng.random() < 0.5:
        colors = [c for c in COLORS if f"{c} {thing.split()[1]}" not in names]
        thing = f"{rng.choice(colors)} {thing.split()[1]}"
    return f"One of the pictures shows a {thing}.", thing in names


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
