"""Untrusted bytes, by hypothesis: each reader gives a valid result or refuses them, in bounds.

The longer search, guided by coverage, is tests.fuzz.fuzz_readers.
"""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharding.format.schema import ShardError
from tests.fuzz.readers import JSONS, READERS, REFUSALS, TARS, repaired, seeds

# Seeds have up to 31 kB; what a reader takes for them, and for what is made of them, stays below.
MAX_MEMORY_BYTES = 12 << 20
HOW = ("flip", "cut", "end", "double", "overwrite", "insert", "field")
VALUES = (
    b"77777777777",
    b"00000001000",
    b"\x80" + b"\xff" * 10,
    b"a\nb",
    b"../b",
    b"1",
    b"x",
    b"L",
)
FIELDS = (0, 100, 124, 148, 156, 257, 345)  # of a tar's header
QUICKLY = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([-1, 1 << 31, 1 << 63, 10**400, "\ud800", "../x", "a\nb", "a" * 200]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=6,
)


def _check(reader: str, data: bytes, folder: Path) -> None:
    """The oracle of all tests here: what readers assert, REFUSALS, and tracemalloc's peak."""
    tracemalloc.start()
    try:
        READERS[reader](data, folder)
    except REFUSALS as error:
        assert len(str(error)) < MAX_MEMORY_BYTES
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MAX_MEMORY_BYTES


@st.composite
def _mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` with bits flipped, pieces cut out, doubled, overwritten or put in, a few times."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(out)))
        until = min(len(out), at + draw(st.sampled_from([1, 2, 8, 100, 512, 2000, 1 << 20])))
        how = draw(st.sampled_from(HOW))
        if how == "flip" and at < len(out):
            out[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del out[at:until]
        elif how == "end":
            del out[at:]
        elif how == "double":
            out[at:at] = out[at:until][:4096]
        elif how == "overwrite":
            out[at:until] = draw(st.binary(max_size=64))
        elif how == "insert":
            out[at:at] = draw(st.binary(max_size=600))
        elif how == "field":
            at = at // 512 * 512 + draw(st.sampled_from(FIELDS))
            new = draw(st.sampled_from(VALUES))
            out[at : at + len(new)] = new
    return bytes(out)


def _inner(draw: st.DrawFn, tree: Any) -> Any:
    """`tree`, something in it replaced, left out or added."""
    if not isinstance(tree, (dict, list)) or not tree or draw(st.integers(0, 3)) == 0:
        return draw(ANY_JSON)
    if isinstance(tree, list):
        place = draw(st.integers(0, len(tree) - 1))
        more = draw(st.sampled_from([0, 1, 2]))
        return [*tree[:place], *[_inner(draw, tree[place])] * more, *tree[place + 1 :]]
    name = draw(st.sampled_from(sorted(tree)))
    changed = {**tree, name: _inner(draw, tree[name])}
    if draw(st.integers(0, 5)) == 0:
        del changed[name]
        changed[draw(st.text(max_size=9))] = tree[name]
    return changed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where readers that want files have them."""
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def sound(folder: Path) -> dict[str, list[bytes]]:
    """What each reader begins from."""
    return {reader: seeds(reader, folder) for reader in READERS}


@pytest.mark.parametrize("reader", READERS)
def test_sound_bytes_are_read(folder: Path, sound: dict[str, list[bytes]], reader: str) -> None:
    """Oracle: no reader refuses what the code has written, else the tests below test nothing."""
    for data in sound[reader]:
        READERS[reader](data, folder)
        assert reader not in TARS or repaired(data) == data


@pytest.mark.parametrize("reader", READERS)
@QUICKLY
@given(choice=st.data())
def test_mutated_bytes_are_refused_or_sound(
    folder: Path, sound: dict[str, list[bytes]], reader: str, choice: st.DataObject
) -> None:
    """Oracle: _check, on tars with true checksums as well as with wrong ones."""
    data = choice.draw(_mutated(choice.draw(st.sampled_from(sound[reader]))))
    _check(
        reader, repaired(data) if reader in TARS and choice.draw(st.booleans()) else data, folder
    )


@pytest.mark.parametrize("reader", JSONS)
@QUICKLY
@given(choice=st.data())
def test_any_json_is_refused_or_sound(
    folder: Path, sound: dict[str, list[bytes]], reader: str, choice: st.DataObject
) -> None:
    """Oracle: _check, on well-formed JSON of which a part is anything at all."""
    tree = json.loads(choice.draw(st.sampled_from(sound[reader])))
    for _ in range(choice.draw(st.integers(1, 3))):
        tree = _inner(choice.draw, tree)
    _check(reader, json.dumps(tree).encode(), folder)


@pytest.mark.parametrize("reader", JSONS)
@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"schema": ' + b"9" * 5000 + b"}",
        b"",
        b"\xff\xfe{}",
        b'{"a": NaN}',
        b'"\\ud800"',
    ],
    ids=["deep list", "deep object", "long number", "empty", "utf-16", "nan", "surrogate"],
)
def test_hostile_json_is_refused(folder: Path, reader: str, data: bytes) -> None:
    """Oracle: _check; and none of these is sound, but for a NaN in the json of a sample."""
    _check(reader, data, folder)
    if reader != "info" or not data.startswith(b'{"a": NaN'):
        with pytest.raises(ShardError):
            READERS[reader](data, folder)
