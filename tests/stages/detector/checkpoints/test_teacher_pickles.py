"""Untrusted pickles: Python's own machine is the oracle for those that are valid; all others are
refused by a CheckpointError, and a file that hostile ones would make is never there."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.detector.checkpoints.checkpoint_error import CheckpointError
from stages.detector.checkpoints.pickled_arrays import _storage_of_bytes
from stages.detector.checkpoints.pickles import loads, read_pickle
from stages.detector.checkpoints.torch_files import read_torch

PROTOCOLS = range(6)
MAX_MEMORY_BYTES = 2 << 20
FLOATS = np.arange(24, dtype="f4").reshape(2, 3, 4)
ARRAYS = {
    "floats": FLOATS,
    "fortran": np.asfortranarray(FLOATS),
    "swapped": FLOATS.transpose(2, 0, 1),
    "big endian": FLOATS.astype(">f8"),
    "half": FLOATS.astype("f2"),
    "none": np.zeros((0, 4)),
    "scalar": np.array(7, "i8"),
    "bool": np.array([True, False]),
    "bytes": np.array([b"ab", b"c"]),
    "text": np.array(["ab", "çd"]),
    "complex": np.array([1 + 2j]),
    "strided": FLOATS[:, ::2],
}


def same(got: Any, expected: Any) -> bool:
    """Equal, and of the same types, but that an OrderedDict came back as a dict."""
    if isinstance(expected, dict):
        return (
            type(got) is dict
            and list(got) == list(expected)
            and all(same(got[key], expected[key]) for key in expected)
        )
    if isinstance(expected, (list, tuple)):
        return (
            type(got) is type(expected)
            and len(got) == len(expected)
            and all(map(same, got, expected))
        )
    if isinstance(expected, torch.Tensor):
        expected = expected.detach().numpy()
    if isinstance(expected, np.ndarray):
        if expected.dtype.hasobject:
            return got.shape == expected.shape and all(map(same, got.flat, expected.flat))
        assert got.flags.writeable and got.flags.c_contiguous
        return (
            got.dtype == expected.dtype.newbyteorder("=")
            and got.shape == expected.shape
            and np.array_equal(got, expected)
        )
    return type(got) is type(expected) and got == expected


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_and_plain_values_come_back(protocol: int, tmp_path: Path) -> None:
    """Oracle: what was pickled, in every protocol; a file and bytes give the same."""
    value = {
        "model": OrderedDict(ARRAYS),
        "numbers": [0, -5, 255, 65536, 2**70, -(2**70), 1.5, -0.0],
        "others": (None, True, False, "", "é\n\\'", b"", b"\x00\xff", (), [], {}, (1,), [[2]]),
        "numpy": [np.float32(2.5), np.int64(-3), np.bool_(True), np.str_("é")],
        "shared": [FLOATS, FLOATS],
        3: "three",
        None: 1,
        b"raw": 2,
        2.5: 3,
    }
    data = pickle.dumps(value, protocol)
    assert same(loads(data, where="here"), value)
    (tmp_path / "x.pkl").write_bytes(data)
    assert same(read_pickle(tmp_path / "x.pkl"), value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_of_objects_and_tensors_come_back(protocol: int) -> None:
    """Oracle: what was pickled. This is what bottom-up attention's features carry as `info`: an
    array without dimensions that holds a dict, with torch's tensors in it."""
    tensor = torch.arange(12.0).reshape(3, 4).t()[1:]  # part of its storage, and not in order
    info = {
        "image_id": "a",
        "image_h": np.int64(4),
        "objects_id": np.array([3, 4]),
        "attrs": tensor,
        "weights": torch.nn.Parameter(torch.ones(2)),
    }
    for value in (np.array(info, object), np.array([[info, None], [1, "x"]], object)):
        assert same(loads(pickle.dumps(value, protocol), where="info"), value)


def test_bfloat16_is_widened() -> None:
    """Oracle: numpy has no bfloat16, and float32 holds all of its numbers."""
    got = loads(pickle.dumps(torch.tensor([1.5, -2.0], dtype=torch.bfloat16)), where="here")
    assert got.dtype == np.float32 and got.tolist() == [1.5, -2.0]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_names_of_numpy_1_are_known(protocol: int) -> None:
    """Oracle: the same arrays where the pickle names numpy.core instead of numpy._core."""
    data = pickle.dumps(FLOATS, protocol)
    for module in (b"numpy._core.multiarray", b"numpy._core.numeric"):
        old = module.replace(b"_core", b"core")
        data = data.replace(bytes([len(module)]) + module, bytes([len(old)]) + old)
        data = data.replace(b"c" + module, b"c" + old)
    assert b"numpy.core" in data and same(loads(data, where="here"), FLOATS)


def python_2(raw: bytes) -> tuple[bytes, bytes]:
    """{"a": an array of float32 in `raw`} as Python 2 pickled it, in protocols 2 and 0."""
    size, number = struct.pack("<I", len(raw)), len(raw) // 4
    binary = (
        b"\x80\x02}q\x00U\x01aq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\n"
        b"ndarray\nq\x03K\x00\x85U\x01b\x87Rq\x04(K\x01K%c\x85cnumpy\ndtype\nq\x05U\x02f4"
        b"K\x00K\x01\x87Rq\x06(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T%stbs." % (number, size + raw)
    )
    shown = repr(raw)[1:].encode()
    text = (
        b"(dp0\nS'a'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n"
        b"(I0\ntS'b'\ntRp4\n(I1\n(L%dL\ntcnumpy\ndtype\np5\n(S'f4'\nI0\nI1\ntRp6\n(I3\nS'<'\n"
        b"NNNI-1\nI-1\nI0\ntbI00\nS%s\ntbs." % (number, shown)
    )
    return binary, text


def test_what_python_2_wrote_is_read() -> None:
    """Oracle: Python's own machine with encoding="latin1" on the same bytes, which are all values
    that a byte can have, quotes, backslashes and line ends among them."""
    for data in python_2(bytes(range(256))):
        expected = pickle.loads(data, encoding="latin1")
        assert expected["a"].tobytes() == bytes(range(256))
        got = loads(data, where="here")
        assert list(got) == ["a"] and got["a"].tobytes() == expected["a"].tobytes()
        assert got["a"].dtype == np.float32


class Runs:
    """Pickled as a call; unpickled by Python, the call is made."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def hostile(marker: Path) -> dict[str, tuple[Any, str]]:
    """Values that make the file `marker` when Python unpickles them, and the name they ask for."""
    touch = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    return {
        "os.system": (Runs(os.system, touch), "posix.system"),
        "eval": (Runs(eval, code), "eval"),
        "exec": (Runs(exec, code), "exec"),
        "open": (Runs(open, str(marker), "w"), "open"),
        "getattr": (Runs(getattr, "x", "y"), "getattr"),
        "nested": ({"a": FLOATS, "b": [({"c": Runs(os.system, touch)},)]}, "system"),
        "in an array": (np.array({"a": Runs(os.system, touch)}, object), "system"),
        "a file of numpy's": (Runs(np.fromfile, str(marker)), "fromfile"),
        "numpy's load": (Runs(np.load, str(marker)), "load"),
        "torch.load": (Runs(torch.load, str(marker)), "load"),
        "a class": (Path(marker), "Path"),
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", list(hostile(Path("x"))))
def test_what_a_hostile_pickle_asks_for_is_named_and_not_run(
    kind: str, protocol: int, tmp_path: Path
) -> None:
    """Oracle: CheckpointError with the name, and no file."""
    value, name = hostile(tmp_path / "ran")[kind]
    data = pickle.dumps(value, protocol)
    with pytest.raises(CheckpointError, match=f"here: .*asks for .*{name}"):
        loads(data, where="here")
    assert not (tmp_path / "ran").exists()


def test_the_hostile_pickles_are_hostile(tmp_path: Path) -> None:
    """Oracle: Python's own machine makes the file, so the test above tests something."""
    for kind in ("os.system", "eval", "exec", "open", "nested", "in an array"):
        pickle.loads(pickle.dumps(hostile(tmp_path / "ran")[kind][0]))
        (tmp_path / "ran").unlink()


def test_a_hostile_file_within_a_tensor_is_not_run(tmp_path: Path) -> None:
    """Oracle: no file; a tensor's numbers are a file of torch.save within the pickle."""
    inner = (
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
        + pickle.dumps({}, 2)
        + pickle.dumps(Runs(os.system, f"touch {tmp_path / 'ran'}"), 2)
    )
    data = pickle.dumps(Runs(torch.storage._load_from_bytes, inner), 2)
    with pytest.raises(CheckpointError, match="torch cannot read"):
        loads(data, where="here")
    assert not (tmp_path / "ran").exists()


EMPTY_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
FLOAT32 = b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR"
BAD: dict[str, tuple[bytes, str]] = {
    "an old instance": (b"(S'true'\nios\nsystem\n.", "os.system"),
    "an old object": (b"(cos\nsystem\nS'true'\no.", "os.system"),
    "a name from the stack": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
    "a path of names": (b"\x80\x04\x8c\x05numpy\x8c\x0fcore.os.systemm\x93.", "numpy.core.os"),
    "a name that is no text": (b"\x80\x04]K\x01\x93.", "asks for"),
    "an extension": (b"\x80\x02\x82\x01.", "EXT1"),
    "a persistent id": (b"\x80\x02K\x01Q.", "BINPERSID"),
    "an outside buffer": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "a set": (b"\x80\x04\x8f.", "EMPTY_SET"),
    "a call of an array": (EMPTY_ARRAY + b")R.", "a call of Array"),
    "a call of text": (b"U\x01a)R.", "a call of str"),
    "a call of a dict's function": (b"cnumpy\nndarray\n)R(K\x01tR.", "a call of Array"),
    "a state for a dict": (b"}(K\x01tb.", "a dict with a state"),
    "an attribute": (EMPTY_ARRAY + b"}U\x05valueK\x01sb.", "with a state"),
    "a list as a key": (b"}]K\x01s.", "a key of type list"),
    "a deep tuple as a key": (b"})" + b"\x85" * 100_000 + b"K\x01s.", "a key of type tuple"),
    "a function as a value": (b"cnumpy\ndtype\n.", "got a type"),
    "a dtype as a value": (FLOAT32 + b".", "got a Dtype"),
    "an array without numbers": (EMPTY_ARRAY + b".", "without its numbers"),
    "another class of array": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(K\x00tU\x01btR.",
        "a subclass",
    ),
    "too few numbers": (
        EMPTY_ARRAY + b"(K\x01K\x09\x85" + FLOAT32 + b"\x89U\x04aaaatb.",
        "in 4 bytes",
    ),
    "too many numbers": (
        EMPTY_ARRAY + b"(K\x01K\x01\x85" + FLOAT32 + b"\x89U\x08aaaaaaaatb.",
        "in 8 bytes",
    ),
    "a huge shape": (
        EMPTY_ARRAY
        + b"(K\x01J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"
        + FLOAT32
        + b"\x89U\x04aaaatb.",
        "in 4 bytes",
    ),
    "a huge empty shape": (
        EMPTY_ARRAY
        + b"(K\x01(K\x00"
        + b"\x8a\x08"
        + b"\xff" * 7
        + b"\x3f" * 1
        + b"J\xff\xff\xff\x7ft"
        + FLOAT32
        + b"\x89U\x00tb.",
        "no valid pickle",
    ),
    "a negative shape": (
        EMPTY_ARRAY + b"(K\x01J\xff\xff\xff\xff\x85" + FLOAT32 + b"\x89U\x00tb.",
        "an invalid shape",
    ),
    "objects in bytes": (
        EMPTY_ARRAY + b"(K\x01K\x01\x85cnumpy\ndtype\n(U\x02O8K\x00K\x01tR\x89U\x08aaaaaaaatb.",
        "an array of objects",
    ),
    "a structured dtype": (b"cnumpy\ndtype\n(U\x02V8K\x00K\x01tR.", "a dtype 'V8'"),
    "an empty dtype": (b"cnumpy\ndtype\n(U\x02S0K\x00K\x01tR.", "a dtype 'S0'"),
    "another encoding": (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00hextR.", "latin1"),
    "a list that holds itself": (b"]q\x00h\x00a.", "containers more than"),
    "a dict that holds itself": (b"}q\x00K\x01h\x00s.", "containers more than"),
    "too deep": (b"]" * 50_000 + b"a" * 49_999 + b".", "containers more than"),
    "a bomb of few lists": (
        b"]q\x00"
        + b"]("
        + b"h\x00" * 10
        + b"eq\x00"
        + 28 * (b"](" + b"h\x00" * 10 + b"eq\x00")
        + b".",
        "containers more than",
    ),
    "a memo of gigabytes": (b"Nr\xff\xff\xff\xff.", "none"),
    "text of gigabytes": (b"T\xff\xff\xff\x7fabc.", "cut off"),
    "bytes of exabytes": (b"\x8e" + b"\xff" * 8 + b"abc.", "cut off"),
    "a bytearray of exabytes": (b"\x96" + b"\xff" * 7 + b"\x7fabc.", "cut off"),
    "a number of gigabytes": (b"\x8b\xff\xff\xff\x7f.", "cut off"),
    "a number of many digits": (b"L" + b"9" * 100_000 + b"L\n.", "100001 digits|100000 digits"),
    "a negative length": (b"T\xff\xff\xff\xff.", "-1 bytes"),
    "bytes repeatedly": (
        b"X\x00\x40\x00\x00" + b"a" * (1 << 14) + b"q\x00X\x06\x00\x00\x00"
        b"latin1q\x01" + b"c_codecs\nencode\nh\x00h\x01\x86R" * 100 + b".",
        "repeatedly",
    ),
    "nothing": (b"", "cut off"),
    "no stack": (b".", "no valid pickle"),
    "no memo": (b"h\x07.", "no valid pickle"),
    "no mark": (b"e.", "no valid pickle"),
    "another protocol": (b"\x80\x09N.", "protocol 9"),
    "more after its end": (b"N.N.", "2 bytes after"),
    "no instruction": (b"\xfe", "0xfe"),
    "a web page": (b"<!DOCTYPE html>\n", "0x3c"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_unsound_is_refused_in_bounds(kind: str) -> None:
    """Oracle: CheckpointError that says why and stays short, and the peak of tracemalloc; the one
    memo is no fault here, where it is a dict, and gives None."""
    data, reported = BAD[kind]
    tracemalloc.start()
    try:
        if kind == "a memo of gigabytes":
            assert loads(data, where="here") is None
        else:
            with pytest.raises(CheckpointError, match=f"here: .*({reported})") as error:
                loads(data, where="here")
            assert len(str(error.value)) < 1000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MAX_MEMORY_BYTES + 100 * len(data)


def test_an_endless_program_ends() -> None:
    """Oracle: CheckpointError; three million instructions fit in three megabytes."""
    with pytest.raises(CheckpointError, match="more than 2000000 instructions"):
        loads(b"N0" * 1_500_000 + b"N.", where="here")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_cut_off_anywhere_is_refused(protocol: int) -> None:
    """Oracle: CheckpointError for each beginning of a sound pickle."""
    data = pickle.dumps({"model": {"a": FLOATS, "b": np.float32(1)}, "n": [1, "x", b"y"]}, protocol)
    for num_bytes in range(len(data)):
        with pytest.raises(CheckpointError, match="here: "):
            loads(data[:num_bytes], where="here")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(choice=st.data())
def test_changed_bytes_are_refused_or_plain(choice: st.DataObject) -> None:
    """Oracle: CheckpointError, or a value that pickles of numpy's make too; never anything else."""
    sound = [
        pickle.dumps({"a": FLOATS[0], "o": np.array([{"b": 1}], object)}, protocol)
        for protocol in PROTOCOLS
    ] + list(python_2(b"\x00\x00\x80\x3f"))
    data = bytearray(choice.draw(st.sampled_from(sound)))
    for _ in range(choice.draw(st.integers(1, 4))):
        at = choice.draw(st.integers(0, len(data) - 1))
        if choice.draw(st.booleans()):
            data[at] = choice.draw(st.integers(0, 255))
        else:
            data[at:at] = data[at : at + choice.draw(st.integers(1, 40))]
    try:
        pickle.dumps(loads(bytes(data), where="here"))
    except CheckpointError as error:
        assert str(error).startswith("here: ")


def grown(tmp_path: Path, *, is_zip: bool) -> Path:
    """A file of torch.save of three numbers that says it has 2 ** 26 of them."""
    path = tmp_path / "small.pth"
    torch.save({"w": torch.zeros(3)}, path, _use_new_zipfile_serialization=is_zip)
    large = b"J" + struct.pack("<i", 1 << 26)
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        path.unlink()
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data.replace(b"K\x03\x85", large + b"\x85"))
    else:
        path.write_bytes(path.read_bytes().replace(b"K\x03", large))
    return path


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_file_of_torch_that_would_grow_is_refused_before_it_does(
    tmp_path: Path, is_zip: bool
) -> None:
    """Oracle: a message that says so; torch itself takes 256 MiB for either. A sound file of the
    same kind is read."""
    path = grown(tmp_path, is_zip=is_zip)
    with pytest.raises(CheckpointError, match="not resizable|more than the file has"):
        read_torch(path)
    torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=is_zip)
    assert read_torch(path)["w"].tolist() == [1, 1, 1]


def test_a_storage_in_an_archive_is_refused() -> None:
    """Oracle: the same; torch writes storages inside pickles without compression."""
    buffer = io.BytesIO()
    torch.save(torch.zeros(3), buffer)
    with pytest.raises(ValueError, match="archive"):
        _storage_of_bytes(buffer.getvalue())
