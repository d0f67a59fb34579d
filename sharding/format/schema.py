"""The sample: its key, its picture, its json and the teacher's objects array.

The objects array is one structured numpy array, a row an object (design: little-endian, rows by
falling score):

    box              f4[4]  x0, y0, x1, y1 in pixels of the original picture
    score            f2     of the object's own label
    label            i4     object class, background excluded, 0-based
    feature          f2[D]  the teacher's feature of the box
    top_label        i4[K]  the soft label: the K best classes ...
    top_score        f2[K]  ... and their probabilities, no background class
    attribute        i4     ) only where the teacher has attributes
    attribute_score  f2     )
"""

from __future__ import annotations

import functools
import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from boxless.errors import BoxlessError

IMAGE_EXTENSIONS = ("jpg", "png", "webp")
JSON = "json"
OBJECTS = "objects.npy"
KEY_MAX_BYTES = 80  # with the longest extension still inside a tar header's 100 bytes
KEY = re.compile(rf"[!-~]{{1,{KEY_MAX_BYTES}}}")


class ShardError(BoxlessError):
    """A shard, manifest, catalog or sample is not what it must be; the text says which and why."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture with its captions, and the teacher's objects once they are known.

    key: names the sample in the whole data set, see check_key.
    image: the original bytes of the picture.
    extension: "jpg", "png" or "webp".
    info: the content of KEY.json: captions (list of str), width and height in pixels, image_id,
        source and the source's fields; object shards add phrases.
    objects: array of object_dtype [O], or None in an image shard.
    """

    key: str
    image: bytes
    extension: str
    info: dict[str, Any]
    objects: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class EncodedSample:
    """A sample as its encoded members, to go from one shard into another as they are.

    key, width, height: as in its manifest. payloads: {extension: bytes} in the order of the tar.
    """

    key: str
    width: int
    height: int
    payloads: dict[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An input that gave no sample: its key (as far as it had one) and the reason, for people."""

    key: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something dropped inside a sample that is kept, such as an empty caption."""

    key: str
    reason: str


def check_key(key: str) -> None:
    """ShardError unless `key` is 1 to 80 printable ASCII characters, none of them space . / or \\.

    A dot would end the key early for webdataset, which splits a member's name at its first dot.
    """
    if not isinstance(key, str) or not KEY.fullmatch(key) or set(key) & set("./\\"):
        raise ShardError(
            f"key: got {key!r}, expected 1 to {KEY_MAX_BYTES} printable ASCII characters without"
            " spaces, dots and slashes; derive another key from the source's name"
        )


def check_sample(sample: Sample) -> None:
    """ShardError unless `sample` may go into a shard (the objects are checked as encoded)."""
    check_key(sample.key)
    where = f"sample {sample.key}"
    if sample.extension not in IMAGE_EXTENSIONS:
        raise ShardError(
            f"{where}: extension: got {sample.extension!r}, expected one of {IMAGE_EXTENSIONS}"
        )
    if not isinstance(sample.image, bytes) or not sample.image:
        raise ShardError(f"{where}: image: got nothing, expected the bytes of a picture")
    for side in ("width", "height"):
        size = sample.info.get(side)
        if type(size) is not int or size < 1:
            raise ShardError(f"{where}: info.{side}: got {size!r}, expected pixels, an int >= 1")
    captions = sample.info.get("captions")
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise ShardError(f"{where}: info.captions: got {captions!r}, expected a list of str")


def object_dtype(*, feature_size: int, num_top: int, attributes: bool) -> np.dtype:
    """The dtype of an objects array: D = feature_size, K = num_top, attributes or not."""
    if feature_size < 1 or num_top < 1:
        raise ShardError(
            f"feature_size, num_top: got {feature_size}, {num_top}, expected both at least 1"
        )
    fields: list[Any] = [
        ("box", "<f4", (4,)),
        ("score", "<f2"),
        ("label", "<i4"),
        ("feature", "<f2", (feature_size,)),
        ("top_label", "<i4", (num_top,)),
        ("top_score", "<f2", (num_top,)),
    ]
    if attributes:
        fields += [("attribute", "<i4"), ("attribute_score", "<f2")]
    return np.dtype(fields)


def _check_dtype(dtype: np.dtype) -> None:
    """ShardError unless `dtype` is object_dtype of some sizes."""
    names = dtype.names or ()
    shapes = [dtype[name].shape for name in ("feature", "top_label") if name in names]
    if len(shapes) == 2 and all(len(shape) == 1 and shape[0] > 0 for shape in shapes):
        (feature_size,), (num_top,) = shapes
        expected = object_dtype(
            feature_size=feature_size, num_top=num_top, attributes="attribute" in names
        )
        if dtype == expected and dtype.itemsize == expected.itemsize:
            return
    raise ShardError(
        f"objects: got dtype {dtype}, expected the fields of sharding.format.schema.object_dtype, "
        "in their order, little-endian and packed"
    )


def check_objects(array: np.ndarray) -> None:
    """ShardError unless `array` [O] is of object_dtype, in order and finite.

    Boxes must be finite with x0 <= x1 and y0 <= y1, features and scores of every kind finite (half
    precision overflows above 65504), rows by falling score.
    """
    if not isinstance(array, np.ndarray) or array.ndim != 1:
        raise ShardError(f"objects: got {type(array).__name__}, expected a 1-d structured array")
    _check_dtype(array.dtype)
    if not np.isfinite(array["box"]).all():
        raise ShardError("objects: got a box that is not finite, expected finite numbers")
    halves = ("score", "feature", "top_score", "attribute_score")
    for field in [name for name in halves if name in (array.dtype.names or ())]:
        # numpy looks at half precision one by one. As whole numbers, the bits of infinities and
        # NaNs are the largest of their sign.
        bits = array[field]
        if bits.view("<i2").max(initial=0) >= 0x7C00 or bits.view("<u2").max(initial=0) >= 0xFC00:
            raise ShardError(f"objects: got a {field} that is not finite, expected finite numbers")
    box = array["box"]
    if (box[:, :2] > box[:, 2:]).any():
        raise ShardError("objects: got a box with x1 < x0 or y1 < y0, expected x0, y0, x1, y1")
    if (array["score"][:-1] < array["score"][1:]).any():
        raise ShardError("objects: got a score above the one before it, expected falling scores")


def encode_objects(array: np.ndarray) -> bytes:
    """The bytes of KEY.objects.npy; ShardError unless check_objects passes."""
    check_objects(array)
    rows = np.ascontiguousarray(array).view(np.uint8).data
    return b"".join((_npy_header(array.dtype, len(array)), rows))


@functools.lru_cache(maxsize=256)
def _npy_header(dtype: np.dtype, num_rows: int) -> bytes:
    """What numpy.save writes before the rows; it takes longer to spell than a picture's rows."""
    out = io.BytesIO()
    described = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (num_rows,),
    }
    np.lib.format.write_array_header_1_0(out, described)
    return out.getvalue()


def decode_objects(data: bytes) -> np.ndarray:
    """The objects array [O] in the bytes of a .npy file.

    Only arrays of object_dtype are read, nothing is unpickled, and nothing is allocated beyond the
    length of `data` whatever its header claims; ShardError otherwise. Values are not checked:
    see check_objects.
    """
    source = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(source)
        if version != (1, 0):
            raise BoxlessError(f"format version {version}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(source)
    # A hostile header can make numpy's parser fail in more ways than ValueError.
    except Exception as error:
        raise ShardError(f"objects: got no .npy header of version 1.0 ({error})") from error
    _check_dtype(dtype)
    payload = len(data) - source.tell()
    if len(shape) != 1 or shape[0] * dtype.itemsize != payload:
        raise ShardError(
            f"objects: got shape {shape} of {dtype.itemsize} bytes a row over {payload} bytes, "
            "expected one row an object and nothing after the rows"
        )
    # A copy, for an array that owns its memory and can be written to (torch requires that).
    return np.frombuffer(data, dtype=dtype, offset=source.tell()).copy()
