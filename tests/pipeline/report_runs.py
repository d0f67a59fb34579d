"""Run folders for tests of the report: real shards and records with made-up scores and curves."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.recipe.recipe import dump_recipe, load_recipe
from pipeline.runner.run_folder import RunFolder
from pipeline.runner.stages.stage_graph import stages_of
from pipeline.runner.stages.state import StageRecord, write_done
from sharding.format.catalog import write_catalog
from sharding.format.schema import Failure, Note, Sample, object_dtype
from sharding.writing.atomic import write_json, write_text
from sharding.writing.shard_writer import write_shard

HOSTILE = "<script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)>\"'&amp; \x07"
"""A caption that would load and run something, were it ever taken for markup."""
ABOUT = {"label_names": ["circle", "<b>star</b>"], "attribute_names": ["red", "blue"]}
SECTIONS = ["scores", "timeline", "data", "teacher", "learning", "heat", "gallery", "recipe"]


def picture(width: int = 60, height: int = 40, *, orientation: int | None = None) -> bytes:
    """A JPEG of two colours, with that EXIF orientation."""
    image = Image.new("RGB", (width, height), "white")
    image.paste((200, 30, 30), (0, 0, width // 2, height // 2))
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    out = io.BytesIO()
    image.save(out, "JPEG", exif=exif)
    return out.getvalue()


def objects() -> np.ndarray:
    """Three rows; the second is at the first one's place."""
    array = np.zeros(3, dtype=object_dtype(feature_size=2, num_top=2, attributes=True))
    array["box"] = [[0, 0, 30, 20], [1, 0, 30, 20], [30, 20, 58, 38]]
    array["score"] = [0.9, 0.8, 0.6]
    array["label"] = [0, 1, 1]
    array["attribute"] = [0, 0, 1]
    return array


def empty_run(root: Path, **changes: Any) -> RunFolder:
    """A run of which nothing ran yet."""
    run = RunFolder(root)
    run.make()
    recipe = replace(load_recipe("toy"), description=HOSTILE.strip("\x07"), **changes)
    write_text(run.recipe, dump_recipe(recipe))
    return run


def whole_run(root: Path) -> RunFolder:
    """A run at its end, with hostile captions, an ablation and a truth task."""
    run = empty_run(root)
    for index, kind in enumerate(stages_of(load_recipe(run.recipe))):
        record = StageRecord(stage=kind.name, shaped_by={}, seconds=10.0 + index, finished="now")
        write_done(run, kind, record)
    shards(run.images, "images")
    shards(run.objects, "objects")
    metrics(run)
    scores(run)
    examples(run)
    extras(run)
    return run


def shards(folder: Path, kind: str, *, width: int = 60) -> None:
    """A train tar with failures, and a held-out one of eight pictures of `width` x 40 pixels."""
    truth = {"boxes": [[0, 0, 30, 20]], "labels": ["circle"], "attributes": ["red"]}
    for split, number in (("train", 2), ("heldout", 8)):
        samples: list[Sample | Failure | Note] = []
        for index in range(number):
            info = {"captions": [HOSTILE, "two"], "width": width, "height": 40, "truth": truth}
            samples.append(
                Sample(
                    key=f"{split}-{index}",
                    image=picture(width),
                    extension="jpg",
                    info={**info, "image_id": str(index), "source": "test"},
                    objects=objects() if kind == "objects" else None,
                )
            )
        if split == "train":
            samples += [Failure(key="broken", reason=f"broken picture: {HOSTILE}")]
            samples += [Note(key="train-0", reason="empty caption")]
        write_shard(folder / f"{split}-000000.tar", samples, fingerprint={})
    splits = {"train-000000.tar": "train", "heldout-000000.tar": "heldout"}
    write_catalog(folder, kind=kind, splits=splits, metadata=ABOUT)


def metrics(run: RunFolder) -> None:
    """Curves of teach and pretrain; the last line of pretrain's was cut by a kill."""
    steps = range(10, 400, 10)
    learned = [
        {
            "step": s,
            "epoch": s / 60,
            "pictures": 32 * s,
            "step_seconds": 0.3,
            "loss": 9 / s,
            "pictures_per_second": 96.0,
            "itm/loss": 7 / s,
            "itm/accuracy": 1 - 5 / s,
        }
        for s in steps
    ]
    taught = [{"step": s, "objectness": 3 / s, "label": 4 / s} for s in steps]
    text = "".join(json.dumps(line) + "\n" for line in learned)
    write_text(run.pretrain / "metrics.jsonl", text + '{"step": 400, "lo')
    write_text(run.teacher / "metrics.jsonl", "".join(json.dumps(t) + "\n" for t in taught))


def scores(run: RunFolder) -> None:
    """Scores of the teacher and of the student."""
    write_json(
        run.teacher / "scores.json",
        {
            "ap50": {"value": 0.912, "chance": None},
            "ap50_by_label": {HOSTILE: 0.5, "ring": 0.9},
            "num_objects": 866,
            "num_pictures": 256,
            "seconds": 184.1,
        },
    )
    write_json(
        run.transfer / "evaluate" / "scores.json",
        {
            "image_to_text_r1": {"value": 0.605, "chance": 0.005, "num": 200},
            "text_to_image_r10": {"value": 0.96, "chance": 0.05, "num": 200},
            "text_to_image_r5": {"value": 0.92, "chance": 0.025, "num": 200},
            "teacher_ap50": {"value": 0.912, "chance": 0.0},
        },
    )


def examples(run: RunFolder) -> None:
    """One text found at once, one whose right picture is not among the five; two phrases."""
    five = [{"key": f"heldout-{n}", "score": 5.0 - n} for n in range(5)]
    phrase = {
        "caption": HOSTILE,
        "text": "<script>",
        "box": [0, 0, 30, 20],
        "point": [8, 8],
        "hit": True,
        "heat": [0.5, 0.2, 0.0, 0.1, 0.1, 0.1],
        "rows": 2,
        "columns": 3,
        "cell_px": [20.0, 20.0],
    }
    write_json(
        run.transfer / "evaluate" / "examples.json",
        {
            "retrieval": [
                {"text": HOSTILE, "right": "heldout-0", "rank": 1, "pictures": five},
                {"text": "x" * 5000, "right": "heldout-7", "rank": 8, "pictures": five},
            ],
            "grounding": [{"key": "heldout-0", "phrases": [phrase, {**phrase, "hit": False}]}],
            **inside_examples(),
        },
    )


def inside_examples() -> dict[str, Any]:
    """Attention of a caption, captions of a picture (one rightly, one that comes at place 8), and
    a dictionary of six codes of which one was never taken and two are dead."""
    heat = [0.5, 0.1, 0.1, 0.1, 0.1, 0.1]
    words = [{"start": n, "end": n + 3, "share": n / 10, "heat": heat} for n in range(7)]
    texts = [{"text": f"text {n}", "score": 5.0 - n, "right": False} for n in range(5)]
    right = {"text": HOSTILE, "score": 6.0, "right": True}
    return {
        "attention": [
            {
                "key": "heldout-0",
                "caption": HOSTILE,
                "match": 0.873,
                "rows": 2,
                "columns": 3,
                "cell_px": [20.0, 20.0],
                "whole": heat,
                "words": words,
                "phrases": [{"start": 0, "end": 8, "heat": heat}],
            }
        ],
        "captions": [
            {"key": "heldout-1", "rank": 1, "right": HOSTILE, "texts": [right, *texts[:4]]},
            {"key": "heldout-2", "rank": 8, "right": "x" * 5000, "texts": texts},
        ],
        "codes": {
            "counts": [10, 0, 30, 5, 3, 0],
            "perplexity": 2.93,
            "dead": [1, 3],
            "shown": [
                {
                    "code": 2,
                    "patches": [
                        {"key": "heldout-0", "box": [0, 0, 20, 20]},
                        {"key": "heldout-1", "box": [40, 20, 60, 40]},
                    ],
                },
                {"code": 0, "patches": [{"key": "gone", "box": [0, 0, 20, 20]}]},
            ],
        },
    }


def extras(run: RunFolder) -> None:
    """What only some runs have: an ablation of two seeds, and the task nlvr."""
    reached = {"plain": (0.3, 0.2), "soho": (0.32, 0.25), "kdvlp": (0.6, 0.64), "both": (0.58, 0.7)}
    own = {
        variant: {
            str(seed): {"image_to_text_r1": value, "object_label": value / 2}
            for seed, value in enumerate(values)
        }
        for variant, values in reached.items()
    }
    write_json(
        run.root / "ablation.json",
        {"steps": 900, "variants": own, "chance": {"image_to_text_r1": 0.005, "object_label": 0.1}},
    )
    folder = run.transfer / "nlvr"
    write_json(
        folder / "scores.json", {"nlvr_accuracy": {"value": 0.71, "chance": 0.55, "num": 300}}
    )
    answers = [
        {"id": "7-0", "images": [str(folder / "gone.png")], "text": HOSTILE, "said": "True",
         "truth": truth, "right": float(truth == "True"), "confidence": 0.8}
        for truth in ("True", "False")
    ]  # fmt: skip
    bins = [{"num": 2, "confidence": 0.8, "right": 0.5}, {"num": 1, "confidence": 0.95, "right": 1}]
    write_json(
        folder / "outcomes.json",
        {"calibration": bins, "expected_calibration_error": 0.22, "examples": answers},
    )
