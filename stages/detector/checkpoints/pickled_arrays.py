"""Stand-ins for the functions of numpy and torch that a pickle of arrays calls.

No function of numpy's or torch's own unpickling is ever called: each stand-in checks what it was
given and builds a plain array out of bytes that the file really has.

The forms, read in numpy's and torch's sources: an array is `_reconstruct(ndarray, (0,), b"b")`
filled by a state (version, shape, dtype, is Fortran, bytes), or from protocol 5 on
`_frombuffer(bytes, dtype, shape, order)`; a dtype is `dtype("f4", False, True)` filled by a state
(version, byte order, ...); a tensor is `_rebuild_tensor_v2(storage, offset, size, stride, ...)`,
whose storage is a file of torch.save in bytes.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import torch

from boxless.errors import BoxlessError

_DTYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|c8|c16|[SU][1-9][0-9]{0,5}|O8?)")
_MAX_DIMENSIONS = 32
_LEGACY_PICKLES = 4  # magic number, version, machine, content
ZIP_HEAD = b"PK\x03\x04"  # torch.save since 1.6


class Dtype:
    """Stands for numpy.dtype: a plain one, of numbers, bool, text or (for containers) objects."""

    def __init__(self, name: object, align: object = False, copy: object = True) -> None:
        if not isinstance(name, str) or not _DTYPE.fullmatch(name):
            raise BoxlessError(f"a dtype {str(name)[:80]!r}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        """Sets the byte order; structured dtypes and those with metadata are refused."""
        _version, order, *parts = state
        if order not in ("<", ">", "=", "|") or any(part is not None for part in parts[:3]):
            raise BoxlessError("a dtype with fields")
        self.dtype = self.dtype.newbyteorder(order)


class Array:
    """Stands for numpy.ndarray, empty until it has its state.

    value: the array (own memory, native byte order, C order). Of objects: `items`, its elements,
    not looked at yet, and `shape`.
    """

    value: np.ndarray | None = None
    items: list[Any] | None = None
    shape: tuple[int, ...] = ()

    def __setstate__(self, state: Any) -> None:
        """Takes numpy's state: (version, shape, dtype, is Fortran, bytes or list of objects)."""
        _version, shape, dtype, is_fortran, data = state
        self.shape = checked_shape(shape)
        if not isinstance(dtype, Dtype):
            raise BoxlessError("an array without a dtype")
        if dtype.dtype.hasobject:
            if not isinstance(data, list) or len(data) != math.prod(self.shape) or is_fortran:
                raise BoxlessError(
                    f"an array of objects of shape {self.shape} with another number of items"
                )
            self.items = data
            return
        # Python 2's text is bytes: read as latin1, it goes back to what it was.
        raw = data.encode("latin1") if isinstance(data, str) else data
        self.value = _array(raw, dtype, self.shape, "F" if is_fortran else "C")


def _reconstruct(kind: object, shape: object, code: object) -> Array:
    """numpy's `_reconstruct`, of plain arrays alone: always empty until its state comes."""
    if kind is not Array:
        raise BoxlessError("an array of a subclass")
    return Array()


def _frombuffer(
    raw: object, dtype: object, shape: object, order: object, axes: object = None
) -> Array:
    """numpy's `_frombuffer` (protocol 5); axes: from numpy 2.3 on, for order "K"."""
    array = Array()
    if not isinstance(dtype, Dtype) or dtype.dtype.hasobject:
        raise BoxlessError("an array without a dtype")
    array.shape = checked_shape(shape)
    value = _array(raw, dtype, array.shape, "F" if order == "F" else "C")
    if order == "K" and axes is not None:
        value = np.asarray(value.transpose(checked_shape(axes)), order="C")
    array.value = value
    return array


def _scalar(dtype: object, raw: object = b"") -> Any:
    """numpy's `scalar`: one number or text of numpy's."""
    if not isinstance(dtype, Dtype) or dtype.dtype.hasobject:
        raise BoxlessError("a number without a dtype")
    if isinstance(raw, str):
        raw = raw.encode("latin1")
    return _array(raw, dtype, (1,), "C")[0]


def _array(raw: object, dtype: Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    if not isinstance(raw, bytes):
        raise BoxlessError(f"an array of {type(raw).__name__}, not of bytes")
    if math.prod(shape) * dtype.dtype.itemsize != len(raw):
        raise BoxlessError(f"an array {shape} of {dtype.dtype} in {len(raw)} bytes, another number")
    flat = np.frombuffer(raw, dtype.dtype).astype(dtype.dtype.newbyteorder("="))
    return np.asarray(flat.reshape(shape, order="F" if order == "F" else "C"), order="C")


def checked_shape(shape: object) -> tuple[int, ...]:
    """`shape` where it is a tuple of few numbers from 0 up; ValueError otherwise."""
    if (
        isinstance(shape, tuple)
        and len(shape) <= _MAX_DIMENSIONS
        and all(type(size) is int and 0 <= size < 1 << 62 for size in shape)
    ):
        return shape
    raise BoxlessError("an invalid shape")


def _encode(text: object, encoding: object = "") -> bytes:
    """`_codecs.encode`, by which Python 3 writes bytes in protocols 0 to 2."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise BoxlessError("bytes in another encoding than latin1")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """`bytes()`, by which protocols 0 to 2 write b""."""
    return b""


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    """collections.OrderedDict; Python 2 hands over pairs, Python 3 sets them afterwards."""
    return {checked_key(key): value for key, value in pairs}


def checked_key(key: object) -> Any:
    """`key` where it is plain; a tuple's hash would go as deep as a hostile file nests it."""
    if key is None or type(key) in (str, bytes, int, float, bool):
        return key
    raise BoxlessError(f"a key of type {type(key).__name__}")


def _storage_of_bytes(raw: object) -> torch.TypedStorage:
    """torch.storage._load_from_bytes: a storage in torch.save's format, onto the CPU."""
    if not isinstance(raw, bytes):
        raise BoxlessError("a tensor whose storage is not bytes")
    if raw.startswith(ZIP_HEAD):  # torch.save's older format is not compressed
        raise BoxlessError("a tensor whose storage is an archive, which torch does not write here")
    try:
        check_legacy(io.BytesIO(raw), len(raw))
        storage = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, as what is in there
        raise BoxlessError(f"a tensor whose storage torch cannot read: {error}") from error
    if not isinstance(storage, torch.TypedStorage):
        raise BoxlessError("a tensor whose storage is of another type")
    return storage


def _tensor(
    storage: object, offset: object, size: object, stride: object, *others: object
) -> Array:
    """torch._utils._rebuild_tensor (and _v2): a dense tensor inside its storage."""
    size, stride = checked_shape(size), checked_shape(stride)
    if not isinstance(storage, torch.TypedStorage) or type(offset) is not int:
        raise BoxlessError("a tensor without storage")
    check_extent(storage._untyped_storage.nbytes(), storage.dtype, offset, size, stride)
    tensor = torch.empty(0, dtype=storage.dtype).set_(
        storage._untyped_storage, offset, size, stride
    )
    array = Array()
    array.shape, array.value = size, tensor_array(tensor)
    return array


def check_legacy(file: BinaryIO, num_bytes: int) -> None:
    """ValueError where a file of torch.save's older format, of `num_bytes` and read from its start,
    says of a storage that it has more numbers than the file has bytes: torch takes the memory
    first."""
    for number in range(_LEGACY_PICKLES):
        for _, argument, _ in pickletools.genops(file):
            is_last = number == _LEGACY_PICKLES - 1
            if is_last and type(argument) is int and argument > num_bytes:
                raise BoxlessError(f"a storage of {argument} numbers, more than the file has")


def check_extent(
    num_bytes: int, dtype: torch.dtype, offset: int, size: Sequence[int], stride: Sequence[int]
) -> None:
    """ValueError where a tensor reaches beyond its storage of `num_bytes`: torch would make the
    storage as large as a file of a few bytes says."""
    if len(size) != len(stride) or offset < 0 or any(number < 0 for number in (*size, *stride)):
        raise BoxlessError(f"a tensor {tuple(size)} with the strides {tuple(stride)}")
    last = -1 if 0 in size else sum((n - 1) * step for n, step in zip(size, stride))
    if (offset + last + 1) * dtype.itemsize > num_bytes:
        raise BoxlessError(f"a tensor {tuple(size)} of more numbers than the file has")


def _parameter(tensor: object, *others: object) -> object:
    """torch._utils._rebuild_parameter: its tensor."""
    return tensor


def check_dense(tensor: torch.Tensor) -> None:
    """ValueError for a tensor that is not dense, not on the CPU, or has more elements than its
    storage: strides of 0 make terabytes out of four bytes as soon as it is copied."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise BoxlessError(f"a tensor {tensor.layout} on {tensor.device}, not a plain one")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise BoxlessError(f"a tensor {tuple(tensor.shape)} of more numbers than the file has")


def tensor_array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as an array in C order; bfloat16, which numpy lacks, as float32.

    Shares memory where it can. Raises ValueError as `check_dense`.
    """
    check_dense(tensor)
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return tensor.contiguous().numpy()


CALLABLES: Mapping[tuple[str, str], Callable[..., Any]] = {
    **{
        (module, "_reconstruct"): _reconstruct
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    },
    **{
        (module, "scalar"): _scalar
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    },
    **{
        (module, "_frombuffer"): _frombuffer
        for module in ("numpy.core.numeric", "numpy._core.numeric")
    },
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): Dtype,
    ("collections", "OrderedDict"): _ordered_dict,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("torch.storage", "_load_from_bytes"): _storage_of_bytes,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}
