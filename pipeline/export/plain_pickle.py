"""Writes pickles of plain values and arrays, for a tool that reads nothing else."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

_PROTOCOL = 4  # the highest that every Python 3.4 and later reads


class _PlainPickler(pickle.Pickler):
    """Arrays as `numpy.ndarray(shape, dtype, bytearray)`: NumPy's own way names modules that moved
    between its versions 1 and 2, so that neither could read all pickles of the other."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return np.ndarray, (value.shape, value.dtype.str, bytearray(value.tobytes()))
        if isinstance(value, type) and value in (np.ndarray, bytearray):
            return NotImplemented
        raise TypeError(f"got a {type(value).__name__}, expected plain values and arrays")


def pickled(value: Any) -> bytes:
    """`value`, of dicts, lists, tuples, texts, numbers and arrays, as a pickle of protocol 4."""
    out = io.BytesIO()
    _PlainPickler(out, protocol=_PROTOCOL).dump(value)
    return out.getvalue()
