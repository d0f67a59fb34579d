"""Old features written by hand to their public layouts, and the pictures that they are of.

Every layout is made of the same `Seen`, so that a test's oracle is the numbers that went in.
Writers follow the sources named in the docstrings of `stages.distill.precomputed`.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
from distill_fakes import picture_bytes

from sharding.format.schema import Sample

LABELS = ("yolk", "goal", "traffic light,stop light", "street sign", "macaroni")
ATTRIBUTES = ("gray,grey", "tall", "wooden")
SIZE = 6


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a detector saw in a picture of `width` x `height`, N objects in no order."""

    id: str
    width: int
    height: int
    boxes: np.ndarray  # f4 [N, 4]
    features: np.ndarray  # f4 [N, SIZE]
    probabilities: np.ndarray  # f4 [N, len(LABELS)], the rest to 1 is the background's
    attribute_probabilities: np.ndarray  # f4 [N, len(ATTRIBUTES)]

    @property
    def labels(self) -> np.ndarray:
        return self.probabilities.argmax(1)

    @property
    def scores(self) -> np.ndarray:
        return self.probabilities.max(1)

    @property
    def attributes(self) -> np.ndarray:
        return self.attribute_probabilities.argmax(1)

    @property
    def attribute_scores(self) -> np.ndarray:
        return self.attribute_probabilities.max(1)


def look(identity: str, random: np.random.Generator, num: int | None = None) -> Seen:
    """What a detector might have seen."""
    num = int(random.integers(1, 6)) if num is None else num
    width, height = (int(side) for side in random.integers(20, 60, 2))
    corners = np.sort(random.random((num, 2, 2)), axis=1) * (width, height)
    return Seen(
        id=identity,
        width=width,
        height=height,
        boxes=corners.reshape(num, 4).astype(np.float32),
        features=random.standard_normal((num, SIZE)).astype(np.float32),
        probabilities=random.dirichlet(np.ones(len(LABELS) + 1), num)[:, 1:].astype(np.float32),
        attribute_probabilities=random.dirichlet(np.ones(len(ATTRIBUTES)), num).astype(np.float32),
    )


def look_at(ids: Sequence[str], seed: int = 0) -> list[Seen]:
    random = np.random.default_rng(seed)
    return [look(identity, random) for identity in ids]


def sample_of(seen: Seen, *, key: str = "", **info: Any) -> Sample:
    """A sample of an image shard whose picture was looked at."""
    pixels = np.full((seen.height, seen.width, 3), 127, np.uint8)
    said = {
        "captions": ["a tall yolk beside a stop light"],
        "width": seen.width,
        "height": seen.height,
        "image_id": seen.id,
        "source": "t",
        **info,
    }
    return Sample(
        key=key or f"k-{seen.id}", image=picture_bytes(pixels, "png"), extension="png", info=said
    )


def write_names(folder: Path) -> dict[str, str]:
    """objects_vocab.txt and attributes_vocab.txt, as the recipe's `labels` and `attributes`."""
    for name, names in (("objects", LABELS), ("attributes", ATTRIBUTES)):
        (folder / f"{name}_vocab.txt").write_text("\n".join(names) + "\n", "utf-8")
    return {
        "labels": str(folder / "objects_vocab.txt"),
        "attributes": str(folder / "attributes_vocab.txt"),
    }


def write_labelmap(path: Path) -> str:
    """VinVL's VG-SGG-dicts-vgoi6-clipped.json in small."""
    path.write_text(
        json.dumps(
            {
                "label_to_idx": {name: i for i, name in enumerate(LABELS, 1)},
                "attribute_to_idx": {name: i for i, name in enumerate(ATTRIBUTES, 1)},
                "predicate_to_idx": {"on": 1},
            }
        )
    )
    return str(path)


def base64_of(array: np.ndarray, dtype: str) -> bytes:
    return base64.b64encode(np.ascontiguousarray(array, dtype).tobytes())


def lxmert_row(seen: Seen) -> bytes:
    """img_id, img_h, img_w, objects_id, objects_conf, attrs_id, attrs_conf, num_boxes, boxes,
    features; rows end as the csv module ends them."""
    return (
        b"\t".join(
            [
                seen.id.encode(),
                b"%d" % seen.height,
                b"%d" % seen.width,
                base64_of(seen.labels, "<i8"),
                base64_of(seen.scores, "<f4"),
                base64_of(seen.attributes, "<i8"),
                base64_of(seen.attribute_scores, "<f4"),
                b"%d" % len(seen.boxes),
                base64_of(seen.boxes, "<f4"),
                base64_of(seen.features, "<f4"),
            ]
        )
        + b"\r\n"
    )


def butd_row(seen: Seen) -> bytes:
    """image_id, image_w, image_h, num_boxes, boxes, features."""
    return (
        b"\t".join(
            [
                seen.id.encode(),
                b"%d" % seen.width,
                b"%d" % seen.height,
                b"%d" % len(seen.boxes),
                base64_of(seen.boxes, "<f4"),
                base64_of(seen.features, "<f4"),
            ]
        )
        + b"\r\n"
    )


def vinvl_objects(seen: Seen, *, features: bool) -> list[dict[str, Any]]:
    """The objects of scene_graph_benchmark's convert_predictions_to_tsv, classes by name."""
    objects: list[dict[str, Any]] = []
    for row in range(len(seen.boxes)):
        item = {
            "rect": seen.boxes[row].tolist(),
            "bbox_id": row,
            "class": LABELS[seen.labels[row]],
            "conf": float(seen.scores[row]),
            "attributes": list(ATTRIBUTES),
            "attr_scores": seen.attribute_probabilities[row].tolist(),
        }
        if features:
            everything = np.concatenate([[0.01], seen.probabilities[row]])
            item["feature"] = base64_of(seen.features[row], "<f4").decode()
            item["scores_all"] = base64_of(everything, "<f4").decode()
        objects.append(item)
    return objects


def scene_graph_row(seen: Seen) -> bytes:
    said = {"objects": vinvl_objects(seen, features=True), "relations": None}
    return f"{seen.id}\t{json.dumps(said)}\n".encode()


def predictions_row(seen: Seen) -> bytes:
    """Oscar's predictions.tsv."""
    said = {
        "image_h": seen.height,
        "image_w": seen.width,
        "num_boxes": len(seen.boxes),
        "objects": vinvl_objects(seen, features=False),
    }
    return f"{seen.id}\t{json.dumps(said)}\n".encode()


def label_row(seen: Seen) -> bytes:
    """Oscar's label.tsv of captioning."""
    return f"{seen.id}\t{json.dumps(vinvl_objects(seen, features=False))}\n".encode()


def with_place(seen: Seen) -> np.ndarray:
    """[N, SIZE + 6]: Oscar's features end in x0/w, y0/h, x1/w, y1/h and the sides."""
    shares = seen.boxes / np.array([seen.width, seen.height] * 2, np.float32)
    return np.hstack([seen.features, shares, shares[:, 2:] - shares[:, :2]])


def oscar_row(seen: Seen) -> bytes:
    """features.tsv."""
    coded = base64_of(with_place(seen), "<f4")
    return b"%s\t%d\t%s\n" % (seen.id.encode(), len(seen.boxes), coded)


def oscar_caption_row(seen: Seen) -> bytes:
    """feature.tsv of captioning."""
    coded = base64_of(with_place(seen), "<f4").decode()
    said = {"num_boxes": len(seen.boxes), "features": coded}
    return f"{seen.id}\t{json.dumps(said)}\n".encode()


def npz_bytes(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def caffe_info(seen: Seen) -> dict[str, Any]:
    """The info of bottom-up-attention.pytorch in caffe's mode."""
    return {
        "image_id": seen.id,
        "image_h": seen.height,
        "image_w": seen.width,
        "num_boxes": len(seen.boxes),
        "objects_id": seen.labels,
        "objects_conf": seen.scores,
        "attrs_id": seen.attributes,
        "attrs_conf": seen.attribute_scores,
    }


def d2_info(seen: Seen) -> dict[str, Any]:
    """The info of d2's mode: the attributes are tensors."""
    return {
        "objects": seen.labels,
        "cls_prob": seen.probabilities,
        "attrs_id": torch.from_numpy(seen.attribute_probabilities),
        "attrs_scores": torch.zeros(7, len(ATTRIBUTES)),
    }


def butd_npz(seen: Seen, info: Any) -> bytes:
    """A file of either mode."""
    return npz_bytes(
        x=seen.features,
        bbox=seen.boxes,
        num_bbox=len(seen.boxes),
        image_h=seen.height,
        image_w=seen.width,
        info=info,
    )


def uniter_arrays(seen: Seen) -> dict[str, np.ndarray]:
    """What UNITER's extraction keeps of a picture, in half precision."""
    shares = seen.boxes / np.array([seen.width, seen.height] * 2, np.float32)
    background = 1 - seen.probabilities.sum(1, keepdims=True)
    arrays = {
        "norm_bb": np.hstack([shares, shares[:, 2:] - shares[:, :2]]),
        "features": seen.features,
        "conf": seen.scores[:, None],
        "soft_labels": np.hstack([background, seen.probabilities]),
    }
    return {name: array.astype(np.float16) for name, array in arrays.items()}


def uniter_npz(seen: Seen) -> bytes:
    """convert_imgdir.py's dumps_npz, which makes a member of np.load's argument."""
    return npz_bytes(**uniter_arrays(seen), **{"allow_pickle": np.array(True)})


def uniter_msgpack(seen: Seen) -> bytes:
    """convert_imgdir.py's dumps_msgpack with msgpack-numpy 0.4.8."""
    return msgpack.packb(
        {
            name: {
                b"nd": True,
                b"type": array.dtype.str,
                b"kind": b"",
                b"shape": array.shape,
                b"data": array.tobytes(),
            }
            for name, array in uniter_arrays(seen).items()
        },
        use_bin_type=True,
    )


def coco_entries(seen: Seen, *, features: bool = True) -> list[dict[str, Any]]:
    """COCO's results, categories from 1."""
    entries = []
    for row, (x0, y0, x1, y1) in enumerate(seen.boxes.astype(np.float64).tolist()):
        entry = {
            "image_id": int(seen.id) if seen.id.isdigit() else seen.id,
            "category_id": int(seen.labels[row]) + 1,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": float(seen.scores[row]),
        }
        if features:
            entry["feature"] = seen.features[row].tolist()
        entries.append(entry)
    return entries


def write_categories(path: Path) -> str:
    """An instances file of COCO, whose category ids have gaps there, not here."""
    categories = [{"id": i, "name": name} for i, name in enumerate(LABELS, 1)]
    path.write_text(json.dumps({"categories": categories, "images": [], "annotations": []}))
    return str(path)
