"""Decodes arrays from base64, JSON lists and .npz files that are not trusted.

Nothing is unpickled by numpy; an array takes no more memory than its bytes in the file account for.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import zipfile
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from stages.distill.precomputed.formats.record import RowError

MAX_MEMBER_BYTES = 1 << 28
"""A member of a .npz beyond this is no picture's: 300 proposals of 2048 values are 2.5 MB."""
NUMBERS = "biuf"


def from_base64(field: bytes | str, *, dtype: str, shape: tuple[int, ...], name: str) -> np.ndarray:
    """An array of `dtype` and `shape` from base64; a last side of -1 takes what is there.

    Raises RowError naming the field for wrong base64 and for another number of bytes. What Python 3
    writes where a script of Python 2 meant text, b'...', is taken as that text.
    """
    raw = field.encode("ascii", "replace") if isinstance(field, str) else field
    if raw[:2] in (b"b'", b'b"') and raw[-1:] == raw[1:2]:
        raw = raw[2:-1]
    try:
        data = base64.b64decode(raw, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RowError(f"{name}: wrong base64 ({error})") from None
    if shape[-1] == -1:
        row_bytes = math.prod(shape[:-1]) * np.dtype(dtype).itemsize
        shape = (*shape[:-1], len(data) // row_bytes if row_bytes else 0)
    return array_of(data, np.dtype(dtype), shape, name)


def read_npz(
    data: bytes, wanted: Collection[str], *, read_object: Mapping[str, Callable[[bytes], Any]] = {}
) -> dict[str, Any]:
    """Those of the arrays `wanted` that the .npz file `data` has.

    read_object: what reads the pickle of an array of objects, by the array's name; other arrays of
    objects raise RowError, as anything does that is not valid.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {member.filename: member for member in archive.infolist()}
            found = {}
            for name in wanted:
                member = members.get(f"{name}.npy")
                if member is None:
                    continue
                if member.file_size > MAX_MEMBER_BYTES:
                    raise RowError(f"{name}: {member.file_size} bytes, more than any picture's")
                found[name] = read_npy(archive.read(member), name, read_object.get(name))
            return found
    except RowError:
        raise
    except Exception as error:  # zipfile raises nearly everything on broken bytes
        raise RowError(f"no valid .npz ({type(error).__name__}: {_first_line(error)})") from None


def read_npy(data: bytes, name: str, read_object: Callable[[bytes], Any] | None) -> Any:
    """The array in the bytes of a .npy file, or what `read_object` makes of a pickled one."""
    source = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(source)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, is_fortran, dtype = read_header(source)
    except Exception as error:  # a hostile header fails numpy's parser in many ways
        raise RowError(f"{name}: no .npy header ({_first_line(error)})") from None
    rest = data[source.tell() :]
    if dtype.hasobject:
        if read_object is None or shape != ():
            raise RowError(f"{name}: an array of objects {shape}, expected numbers")
        return read_object(rest)
    return array_of(rest, dtype, shape, name, order="F" if is_fortran else "C")


def array_of(
    data: bytes, dtype: np.dtype, shape: tuple[int, ...], name: str, *, order: str = "C"
) -> np.ndarray:
    """`data` as an array; RowError unless it is just as long as numbers of that shape are."""
    if dtype.kind not in NUMBERS:
        raise RowError(f"{name}: dtype {dtype}, expected numbers")
    num_bytes = dtype.itemsize
    for size in shape:
        if type(size) is not int or size < 0:
            raise RowError(f"{name}: shape {shape!r}, expected whole numbers")
        num_bytes *= size
    if num_bytes != len(data):
        raise RowError(f"{name}: {len(data)} bytes, expected {num_bytes} of {dtype} {shape}")
    flat = np.frombuffer(data, dtype)
    return flat.reshape(shape[::-1]).T if order == "F" else flat.reshape(shape)


def numbers(values: list[Any], shape: tuple[int, ...], name: str) -> np.ndarray:
    """float64 of `shape` from lists of JSON; RowError where it is something else."""
    try:
        array = np.array(values, object).reshape(shape) if values else np.zeros(shape)
        if not all(type(value) in (int, float) for value in array.flat):
            raise ValueError
        return array.astype(np.float64)
    except (ValueError, TypeError, OverflowError):
        expected = " x ".join(map(str, shape))
        raise RowError(f"{name}: {str(values)[:60]}, expected {expected} numbers") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no message"])[0][:120]
