"""Questions about toy scenes in the layout of VQA 2.0, and multiple choice in that of VCR."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sharding.writing.atomic import write_text
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

COCO_SPLITS = {"train": "train2014", "heldout": "val2014"}
NUM_QUESTIONS = 4


def write_vqa(scenes: Sequence[Scene], folder: Path, split: str) -> dict[str, Any]:
    """Ten answers a question, of which one in a third of the questions is another."""
    coco = COCO_SPLITS[split]
    questions, annotations = [], []
    for scene in scenes:
        write_picture(scene, folder / IMAGES / f"COCO_{coco}_{scene.number:012d}.jpg")
        rng = random_of(scene, "vqa")
        for n in range(NUM_QUESTIONS):
            text, answer, kind, other = _question(scene, rng, n)
            question_id = scene.number * NUM_QUESTIONS + n
            num_others = rng.choice((0, 0, 1))
            said = [other] * num_others + [answer] * (10 - num_others)
            questions.append(
                {"question_id": question_id, "image_id": scene.number, "question": text}
            )
            annotations.append(
                {
                    "question_id": question_id,
                    "image_id": scene.number,
                    "question_type": " ".join(text.split()[:2]).lower(),
                    "answer_type": kind,
                    "multiple_choice_answer": answer,
                    "answers": [
                        {"answer": a, "answer_confidence": "yes", "answer_id": i + 1}
                        for i, a in enumerate(said)
                    ],
                }
            )
    paths = {
        split: folder / f"v2_OpenEnded_mscoco_{coco}_questions.json",
        f"{split}_annotations": folder / f"v2_mscoco_{coco}_annotations.json",
    }
    write_text(paths[split], json.dumps({"questions": questions}))
    write_text(paths[f"{split}_annotations"], json.dumps({"annotations": annotations}))
    return {key: str(path) for key, path in paths.items()}


def _question(scene: Scene, rng: random.Random, n: int) -> tuple[str, str, str, str]:
    """Text, answer, answer type, and what some people say instead: a color, a count, and one
    question to say yes to and one to say no to in each scene, so that neither answer is the
    commoner."""
    shapes = [shape for _, shape, _ in scene.objects]
    unique = [thing for thing in scene.objects if shapes.count(thing[1]) == 1]
    if n == 0 and unique:
        color, shape, _ = rng.choice(unique)
        return f"What color is the {shape}?", color, "other", rng.choice(COLORS)
    if n <= 1:
        count = NUM_WORDS[len(shapes)]
        return "How many things are there?", count, "number", rng.choice(NUM_WORDS)
    if n == 2:
        return f"Is there a {rng.choice(scene.names)}?", "yes", "yes/no", "no"
    return f"Is there a {absent_thing(scene, rng)}?", "no", "yes/no", "yes"


def write_vcr(scenes: Sequence[Scene], folder: Path, split: str) -> dict[str, Any]:
    """Which color has a tagged thing? The rationale says what it is near to: of four things one is
    in the picture, the others are its shape in other colors."""
    rows = []
    for scene in scenes:
        shapes = [shape for _, shape, _ in scene.objects]
        rng = random_of(scene, "vcr")
        unique = [i for i, shape in enumerate(shapes) if shapes.count(shape) == 1]
        if not unique:
            continue
        name = f"toy/{scene.number}.jpg"
        write_picture(scene, folder / IMAGES / name)
        row = rng.choice(unique)
        color, shape, _ = scene.objects[row]
        answers = _choices(color, COLORS, rng)
        other = rng.choice([i for i in range(len(shapes)) if i != row])
        other_color, other_shape, _ = scene.objects[other]
        here = {c for c, s, _ in scene.objects if s == other_shape}
        absent = [c for c in COLORS if c not in here]
        colors = _choices(other_color, [other_color, *absent], rng)
        metadata = {
            "boxes": [[*b, 1.0] for _, _, b in scene.objects],
            "names": ["person"] * len(shapes),
            "segms": [[] for _ in shapes],
        }
        write_text(folder / IMAGES / f"toy/{scene.number}.json", json.dumps(metadata))
        rows.append(
            {
                "annot_id": f"{split}-{scene.number}",
                "img_fn": name,
                "metadata_fn": f"toy/{scene.number}.json",
                "objects": ["person"] * len(shapes),
                "question": ["Which", "color", "has", [row], "the", shape, "?"],
                "answer_choices": [[[row], "is", "a", answer, shape, "."] for answer in answers],
                "rationale_choices": [
                    [[row], "is", "near", "a", said, other_shape, "."] for said in colors
                ],
                "answer_label": answers.index(color),
                "rationale_label": colors.index(other_color),
            }
        )
    return {split: write_lines(folder / f"{split}.jsonl", rows)}


def _choices(right: str, pool: Sequence[str], rng: random.Random) -> list[str]:
    choices = [right, *rng.sample([item for item in pool if item != right], 3)]
    rng.shuffle(choices)
    return choices
