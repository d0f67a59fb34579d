"""The toy world's downstream tasks, in the file layouts of the originals.

Made from image shards whose samples carry the truth about their scene (boxes, labels, attributes and
phrases, as stages.ingest's toy source writes them), so that the readers of the originals read them.
A scene's statements are a pure function of its key.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from sharding.format.schema import Sample
from sharding.writing.atomic import write_text
from stages.transfer.predictor import read_split
from stages.transfer.task_config import TaskDataConfig
from stages.true_phrases import object_rows

IMAGES = "images"
COCO_SPLITS = {"train": "train2014", "heldout": "val2014"}
NUM_QUESTIONS = 4
NUM_WORDS = ("zero", "one", "two", "three", "four", "five")


@dataclass(frozen=True)
class Scene:
    """A scene's key, caption and (color, shape, box) of each object."""

    number: int
    sample: Sample
    objects: tuple[tuple[str, str, tuple[float, ...]], ...]

    @property
    def names(self) -> list[str]:
        """ "red circle" of each object."""
        return [f"{color} {shape}" for color, shape, _ in self.objects]


def write_toy_task(task: str, images: Path, out: Path) -> TaskDataConfig:
    """Write the files of a task from image shards into `out`; where they are, as the recipe says it.

    Raises ValueError where the samples do not carry the truth about their scenes.
    """
    if task not in _WRITERS:
        raise ValueError(
            f"finetune.data.train: got null for the task {task}, expected its own files; the toy "
            f"world has {', '.join(_WRITERS)}"
        )
    values: dict[str, Any] = {}
    for split in ("train", "heldout"):
        scenes = [_scene(n, sample) for n, sample in enumerate(read_split(images, split))]
        folder = out / split
        (folder / IMAGES).mkdir(parents=True, exist_ok=True)
        values |= _WRITERS[task](scenes, folder, split)
        values[f"{split}_images"] = str(folder / IMAGES)
    if task == "retrieval":
        values |= {"train_splits": ("train",), "heldout_split": "test"}
    return TaskDataConfig(**values)


def _scene(number: int, sample: Sample) -> Scene:
    truth = sample.info.get("truth", {})
    if not {"boxes", "labels", "attributes", "phrases"} <= truth.keys():
        raise ValueError(
            f"finetune.data: got nothing and image shards without the truth about their scenes "
            f"({sample.key}); expected the task's own files (finetune.data.train, ...), or "
            "ingest.source toy"
        )
    objects = zip(truth["attributes"], truth["labels"], map(tuple, truth["boxes"]))
    return Scene(number, sample, tuple(objects))


def _random(scene: Scene, task: str) -> random.Random:
    digest = hashlib.sha256(f"{task}/{scene.sample.key}".encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "little"))


def _picture(scene: Scene, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(scene.sample.image)
    return path.name


def _lines(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _vqa(scenes: Sequence[Scene], folder: Path, split: str) -> dict[str, Any]:
    """Ten answers a question, of which up to three are another."""
    coco = COCO_SPLITS[split]
    questions, annotations = [], []
    for scene in scenes:
        _picture(scene, folder / IMAGES / f"COCO_{coco}_{scene.number:012d}.jpg")
        rng = _random(scene, "vqa")
        for n in range(NUM_QUESTIONS):
            text, answer, kind, other = _question(scene, rng, n)
            question_id = scene.number * NUM_QUESTIONS + n
            said = [other if i < rng.choice((0, 1, 3)) else answer for i in range(10)]
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
    """Text, answer, answer type, and what some people say instead."""
    shapes = [shape for _, shape, _ in scene.objects]
    color, shape, _ = rng.choice(scene.objects)
    if n == 0 and shapes.count(shape) == 1:
        return f"What color is the {shape}?", color, "other", rng.choice(_colors())
    if n == 1:
        count = NUM_WORDS[len(shapes)]
        return "How many things are there?", count, "number", rng.choice(NUM_WORDS)
    if rng.random() < 0.5:
        return f"Is there a {color} {shape}?", "yes", "yes/no", "no"
    absent = _absent(scene, rng)
    return f"Is there a {absent}?", "no", "yes/no", "yes"


def _colors() -> tuple[str, ...]:
    return ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")


def _absent(scene: Scene, rng: random.Random) -> str:
    """A color and shape that no object of the scene has together; the shape may be there."""
    while True:
        shape = rng.choice([s for _, s, _ in scene.objects])
        name = f"{rng.choice(_colors())} {shape}"
        if name not in scene.names:
            return name


def _nlvr2(scenes: Sequence[Scene], folder: Path, split: str) -> dict[str, Any]:
    """Pairs of consecutive scenes, with a sentence that is true of one pair and false of another."""
    rows = []
    name = "train" if split == "train" else "dev"
    for pair, (left, right) in enumerate(zip(scenes, scenes[1:])):
        for n, scene in enumerate((left, right)):
            _picture(scene, folder / IMAGES / f"{name}-{pair}-0-img{n}.png")
        rng = _random(left, "nlvr2")
        for sentence in range(2):
            thing = rng.choice(left.names)
            kind = thing.split()[1]
            is_true = any(kind in other for other in right.names)
            if sentence == 0:
                text = f"There is a {kind} in both pictures."
            else:
                wanted = rng.random() < 0.5
                thing = rng.choice(left.names + right.names) if wanted else _absent(left, rng)
                is_true = thing in left.names + right.names
                text = f"One of the pictures shows a {thing}."
            row = {"identifier": f"{name}-{pair}-0-{sentence}", "sentence": text}
            rows.append({**row, "label": str(is_true)})
    return {split: _lines(folder / f"{name}.json", rows)}


def _snli_ve(scenes: Sequence[Scene], folder: Path, split: str) -> dict[str, Any]:
    """One hypothesis a label; a neutral one says of a thing that is there what nobody can see."""
    rows = []
    for scene in scenes:
        name = _picture(scene, folder / IMAGES / f"{scene.number}.jpg")
        rng = _random(scene, "snli_ve")
        here, absent = rng.choice(scene.names), _absent(scene, rng)
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
    return {split: _lines(folder / f"snli_ve_{split}.jsonl", rows)}


def _vcr(scenes: Sequence[Scene], folder: Path, split: str) -> dict[str, Any]:
    """Which color has a tagged thing? Because it stands where, the rationale says."""
    rows = []
    for scene in scenes:
        shapes = [shape for _, shape, _ in scene.objects]
        rng = _random(scene, "vcr")
        unique = [i for i, shape in enumerate(shapes) if shapes.count(shape) == 1]
        if not unique:
            continue
        name = f"toy/{scene.number}.jpg"
        _picture(scene, folder / IMAGES / name)
        row = rng.choice(unique)
        color, shape, box = scene.objects[row]
        answers = _choices(color, _colors(), rng)
        places = _choices(
            _place(scene, box), ("top left", "top right", "bottom left", "bottom right"), rng
        )
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
                "answer_choices": [[[row], "is", answer, "."] for answer in answers],
                "rationale_choices": [
                    [[row], "the", shape, "is", "at", "the", *place.split(), "."]
                    for place in places
                ],
                "answer_label": answers.index(color),
                "rationale_label": places.index(_place(scene, box)),
            }
        )
    return {split: _lines(folder / f"{split}.jsonl", rows)}


def _choices(right: str, pool: Sequence[str], rng: random.Random) -> list[str]:
    choices = [right, *rng.sample([item for item in pool if item != right], 3)]
    rng.shuffle(choices)
    return choices


def _place(scene: Scene, box: tuple[float, ...]) -> str:
    width, height = scene.sample.info["width"], scene.sample.info["height"]
    row = "top" if box[1] + box[3] < height else "bottom"
    return f"{row} {'left' if box[0] + box[2] < width else 'right'}"


def _retrieval(scenes: Sequence[Scene], folder: Path, split: str) -> dict[str, Any]:
    """Karpathy's layout, a file a split."""
    images = []
    for scene in scenes:
        name = _picture(scene, folder / IMAGES / f"{scene.number}.jpg")
        captions = [{"raw": caption} for caption in scene.sample.info["captions"][:5]]
        images.append(
            {
                "filename": name,
                "split": "train" if split == "train" else "test",
                "sentences": captions,
            }
        )
    path = folder / "dataset_toy.json"
    write_text(path, json.dumps({"images": images, "dataset": "toy"}))
    return {split: str(path)}


def _grounding(scenes: Sequence[Scene], folder: Path, split: str) -> dict[str, Any]:
    """Flickr30k Entities' layout: the object's row is the phrase's chain."""
    for scene in scenes:
        info = scene.sample.info
        _picture(scene, folder / IMAGES / f"{scene.number}.jpg")
        lines = []
        for caption, phrases in zip(info["captions"], info["truth"]["phrases"]):
            marked, at = "", 0
            for phrase in phrases:
                row, start, end = object_rows(phrase)[0], phrase["start"], phrase["end"]
                marked += f"{caption[at:start]}[/EN#{row + 1}/other {caption[start:end]}]"
                at = end
            lines.append(marked + caption[at:])
        write_text(folder / "Sentences" / f"{scene.number}.txt", "\n".join(lines) + "\n")
        write_text(folder / "Annotations" / f"{scene.number}.xml", _annotation(scene))
    return {split: str(folder)}


def _annotation(scene: Scene) -> str:
    width, height = scene.sample.info["width"], scene.sample.info["height"]
    things = "".join(
        f"<object><name>{row + 1}</name><bndbox>"
        + "".join(
            f"<{edge}>{int(value) + (edge in ('xmin', 'ymin'))}</{edge}>"
            for edge, value in zip(("xmin", "ymin", "xmax", "ymax"), box)
        )
        + "</bndbox></object>"
        for row, (_, _, box) in enumerate(scene.objects)
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    name = escape(f"{scene.number}.jpg")
    return f"<annotation><filename>{name}</filename>{size}{things}</annotation>\n"


_WRITERS = {
    "vqa": _vqa,
    "nlvr2": _nlvr2,
    "snli_ve": _snli_ve,
    "vcr": _vcr,
    "retrieval": _retrieval,
    "grounding": _grounding,
}
