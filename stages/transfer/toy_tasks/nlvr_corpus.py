"""The corpus NLVR's own layout, made again from image shards that hold its samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boxless.errors import BoxlessError
from sharding.format.schema import Sample
from stages.transfer.toy_tasks.scene import IMAGES, write_lines

DIRECTORY = "0"


def is_of_nlvr(sample: Sample) -> bool:
    """Whether a sample says if its sentence is true, in which order of which example's boxes."""
    truth = sample.info.get("truth", {}).get("captions")
    return truth is not None and {"identifier", "order"} <= sample.info.keys()


def write_nlvr_corpus(samples: Sequence[Sample], folder: Path, split: str) -> dict[str, Any]:
    """SPLIT.json and images/0/SPLIT-IDENTIFIER-ORDER.png.

    Orders are numbered again from 0, and examples of another of the corpus's splits are
    distinguished by it ("dev.7-0"), as two splits number alike. Raises ValueError where examples
    differ in the number of their orders, or a sample is not of the corpus.
    """
    name = "train" if split == "train" else "dev"
    rows: dict[str, dict[str, Any]] = {}
    orders: dict[str, int] = {}
    for sample in samples:
        if not is_of_nlvr(sample):
            raise BoxlessError(f"{sample.key}: got a sample without NLVR's fields, expected NLVR's")
        identifier = f"{sample.info.get('corpus_split', '')}.{sample.info['identifier']}"
        order = orders.get(identifier, 0)
        orders[identifier] = order + 1
        path = folder / IMAGES / DIRECTORY / f"{name}-{identifier}-{order}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.image)
        rows[identifier] = {
            "identifier": identifier,
            "directory": DIRECTORY,
            "sentence": sample.info["captions"][0],
            "label": str(bool(sample.info["truth"]["captions"][0])).lower(),
        }
    if len(set(orders.values())) > 1:
        raise BoxlessError(
            f"{folder}: got {min(orders.values())} to {max(orders.values())} orders of an example, "
            "expected the same number of each; ingest again those that failed (boxless retry)"
        )
    lines = write_lines(folder / f"{name}.json", list(rows.values()))
    return {split: lines, "nlvr_num_orders": max(orders.values())}
