"""Exports examples for VL-InterpreT (arXiv 2203.17247), a viewer of attention and hidden states.

Its format is documented in IntelLabs/VL-InterpreT, 0f9d0bb: `app/database/db_example.py` (the
fields) and `app/database/database.py` (the store: an LMDB whose values are lz4 frames of msgpack,
in which an example is a pickle). VL-InterpreT adds t-SNE and its indices by itself
(`VliLmdb(...).preprocess()`). Letters: L layers, A heads, T word pieces, R rows and S columns of
the grid, D hidden size.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.export.plain_pickle import pickled
from pipeline.pages.student.inputs import Example, InputError
from sharding.writing.atomic import sync_folder
from stages.student.vision.image_transforms import load_picture
from stages.transfer.predictor import Predictor
from stages.transfer.probes.forward_trace import trace_forward

CELL_PX = 64
"""Side of a cell in the pictures written: VL-InterpreT enlarges its heat maps by this factor."""
_MAP_BYTES = 1 << 40  # address space that LMDB reserves, not disk


def write_database(out: Path, predictor: Predictor, examples: Iterable[Example]) -> int:
    """Write a new folder `out`, atomically; returns the number of examples.

    Raises InputError where a package is missing or there are no examples, and what reading the
    examples raises.
    """
    lmdb, lz4, msgpack = (_package(name) for name in ("lmdb", "lz4.frame", "msgpack"))
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    try:
        number = 0
        with lmdb.open(str(beside), map_size=_MAP_BYTES, lock=False) as environment:
            for number, example in enumerate(examples, start=1):
                found = example_of(predictor, example, number - 1)
                value = lz4.compress(msgpack.packb(pickled(found), use_bin_type=True))
                _put(environment, str(number - 1), value)
            # The viewer's own preparation counts the examples up from here.
            _put(environment, "n_examples", lz4.compress(msgpack.packb(0)))
        if not number:
            raise InputError("got no sample with a caption, expected at least one")
        os.chmod(beside, 0o755)
        os.rename(beside, out)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    sync_folder(out.parent)
    return number


def _put(environment: Any, key: str, value: bytes) -> None:
    with environment.begin(write=True) as transaction:
        transaction.put(key.encode(), value)


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(
            f"--to vl-interpret takes the package {name.partition('.')[0]}, and that cannot be "
            f"imported ({error}); install the extra: pip install 'boxless[interpret]'"
        ) from None


def example_of(predictor: Predictor, example: Example, number: int) -> dict[str, Any]:
    """One example in VL-InterpreT's format; arrays are float32 and uint8.

    `image` [64 R, 64 S, 3] is what the student saw, with its padding, enlarged so that a cell is 64
    pixels; `tokens` text first, then IMG_0 to IMG_(RS-1) row by row, with their `img_coords`
    (column, row); `attention` [L, A, T + RS, T + RS]; `hidden_states` [L + 1, T + RS, D];
    `accuracy`, where one knows whether the text is true: whether the student says so too.
    """
    inside = trace_forward(predictor, example.sample, example.text)
    rows, columns = inside.cells.rows, inside.cells.columns
    found: dict[str, Any] = {
        "ex_id": number,
        "image": picture_of_cells(predictor, example.sample.image, rows, columns),
        "tokens": inside.tokens + [f"IMG_{i}" for i in range(rows * columns)],
        "txt_len": len(inside.tokens),
        "img_coords": [(x, y) for y in range(rows) for x in range(columns)],
        "attention": inside.attention.numpy(),
        "hidden_states": inside.attention_trace.states[0].float().numpy(),
    }
    if example.is_true is not None:
        found["accuracy"] = (inside.match > 0.5) == example.is_true
    return found


def picture_of_cells(predictor: Predictor, data: bytes, rows: int, columns: int) -> np.ndarray:
    """The picture as the student saw it, black where it is padded: uint8 [64 R, 64 S, 3]."""
    config, side = predictor.student.config, predictor.student.grid.cell_px
    seen = load_picture(data, shorter_px=config.shorter_px, longer_px=config.longer_px)
    canvas = np.zeros((rows * side, columns * side, 3), dtype=np.uint8)
    # A student that drops an odd edge (neck.drop_edge) has fewer cells than its picture.
    height, width = min(len(canvas), len(seen)), min(canvas.shape[1], seen.shape[1])
    canvas[:height, :width] = seen[:height, :width]
    size = (columns * CELL_PX, rows * CELL_PX)
    return np.asarray(Image.fromarray(canvas).resize(size, Image.Resampling.BILINEAR))
