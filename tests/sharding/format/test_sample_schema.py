"""Tests of sharding.format.schema: keys, samples and the objects array."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sharding.format.schema import (
    Sample,
    ShardError,
    check_key,
    check_objects,
    check_sample,
    decode_objects,
    encode_objects,
    object_dtype,
)

DTYPE = object_dtype(feature_size=16, num_top=5, attributes=True)


def _array(num_objects: int = 3) -> np.ndarray:
    array = np.zeros(num_objects, DTYPE)
    array["score"] = np.linspace(0.9, 0.1, num_objects)
    array["box"] = [1, 2, 3, 4]
    return array


def test_the_dtype_is_exactly_the_one_of_the_design() -> None:
    """Oracle: the design's list of fields, and packed."""
    fields = [
        ("box", "<f4", (4,)),
        ("score", "<f2"),
        ("label", "<i4"),
        ("feature", "<f2", (16,)),
        ("top_label", "<i4", (5,)),
        ("top_score", "<f2", (5,)),
    ]
    assert object_dtype(feature_size=16, num_top=5, attributes=False).descr == fields
    assert DTYPE.descr == [*fields, ("attribute", "<i4"), ("attribute_score", "<f2")]
    assert DTYPE.itemsize == 16 + 2 + 4 + 32 + 20 + 10 + 4 + 2
    for sizes in ((0, 1), (1, 0)):
        with pytest.raises(ShardError):
            object_dtype(feature_size=sizes[0], num_top=sizes[1], attributes=True)


@pytest.mark.parametrize("num_objects", [0, 1, 7])
def test_objects_come_back_from_us_and_from_numpy(num_objects: int) -> None:
    """Oracle: the array itself; numpy.load without pickles reads the same."""
    array = _array(num_objects)
    array["feature"] = np.arange(16)
    data = encode_objects(array)
    ours = decode_objects(data)
    numpys = np.load(io.BytesIO(data), allow_pickle=False)
    assert ours.dtype == numpys.dtype == DTYPE
    assert ours.tobytes() == numpys.tobytes() == array.tobytes()
    assert ours.flags.writeable and ours.flags.owndata


def _changed(field: str, value: Any) -> np.ndarray:
    array = _array()
    array[field][1] = value
    return array


def _retyped(change: Callable[[list[Any]], list[Any]], **settings: Any) -> np.ndarray:
    return np.zeros(3, np.dtype(change(list(DTYPE.descr)), **settings))


@pytest.mark.parametrize(
    "array",
    [
        _array().reshape(1, 3),
        np.zeros(3, "<f4"),
        [1, 2],
        _retyped(
            lambda fields: [(name, kind.replace("<", ">"), *shape) for name, kind, *shape in fields]
        ),
        _retyped(lambda fields: fields[::-1]),
        _retyped(lambda fields: fields + [("more", "<i4")]),
        _retyped(lambda fields: fields[:-1]),
        _retyped(lambda fields: fields[1:]),
        _retyped(lambda fields: [("box", "<f8", (4,))] + fields[1:]),
        _retyped(lambda fields: fields, align=True),
        _retyped(lambda fields: fields[:5] + [("top_score", "<f2", (4,))] + fields[6:]),
        _changed("box", [0, 0, np.nan, 1]),
        _changed("box", [5, 0, 4, 1]),
        _changed("box", [0, 5, 1, 4]),
        _changed("score", 0.95),
        _changed("score", np.nan),
        _changed("feature", np.inf),
        _changed("top_score", np.nan),
        _changed("attribute_score", -np.inf),
    ],
    ids=lambda array: str(getattr(array, "dtype", "list"))[:40],
)
def test_other_arrays_are_refused(array: Any) -> None:
    """Oracle: each array breaks one rule of the schema; the sound one passes."""
    check_objects(_array())
    with pytest.raises(ShardError, match="^objects: got .* expected"):
        check_objects(array)
    with pytest.raises(ShardError):
        encode_objects(array)


def _npy(array: np.ndarray, **settings: Any) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, **settings)
    return out.getvalue()


def _npz() -> bytes:
    out = io.BytesIO()
    np.savez(out, a=_array())
    return out.getvalue()


GOOD = encode_objects(_array())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:-1],
        GOOD + b"\0",
        GOOD[:20],
        GOOD.replace(b"(3,)", b"(4,)"),
        GOOD.replace(b"'shape': (3,), }          ", b"'shape': (99999999999,), }"),
        GOOD.replace(b"(3,)", b"(-3)"),
        GOOD.replace(b"'<f4'", b"'O'  "),
        GOOD.replace(b"{'descr'", b"{" + 8 * b"["),
        _npy(_array(), version=(2, 0)),
        _npy(np.array([{}]), allow_pickle=True),
        _npy(np.zeros((3, 1), DTYPE)),
        pickle.dumps(_array()),
        _npz(),
    ],
    ids=range(14),
)
def test_other_bytes_are_refused(data: bytes) -> None:
    """Oracle: damaged, hostile or foreign bytes; none is unpickled, none allocates its claim."""
    assert data != GOOD
    with pytest.raises(ShardError):
        decode_objects(data)


@pytest.mark.parametrize("key", ["a", "0_-", "x" * 80, "COCO_train2014_000000123456", "a:b,c(1)"])
def test_sound_keys_pass(key: str) -> None:
    """Oracle: printable ASCII without space, dot, slash; at most 80 bytes."""
    check_key(key)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "a.b",
        "a/b",
        "a\\b",
        "a b",
        "a\n",
        "a\0",
        "é",
        "x" * 81,
        "..",
        None,
        b"a",
        "\x7f",
    ],
)
def test_unsound_keys_are_refused(key: Any) -> None:
    """Oracle: each breaks a rule of check_key."""
    with pytest.raises(ShardError, match="^key: got"):
        check_key(key)


@pytest.mark.parametrize(
    "change",
    [
        {"key": "a.b"},
        {"extension": "jpeg"},
        {"image": b""},
        {"image": "text"},
        {"info": {"captions": [], "width": 1}},
        {"info": {"captions": [], "width": 1, "height": 0}},
        {"info": {"captions": [], "width": 1.0, "height": 1}},
        {"info": {"width": 1, "height": 1}},
        {"info": {"captions": "text", "width": 1, "height": 1}},
        {"info": {"captions": [None], "width": 1, "height": 1}},
    ],
    ids=str,
)
def test_unsound_samples_are_refused(
    make_sample: Callable[..., Sample], change: dict[str, Any]
) -> None:
    """Oracle: a sound sample with one field broken."""
    sample = make_sample(1)
    check_sample(sample)
    with pytest.raises(ShardError):
        check_sample(replace(sample, **change))
