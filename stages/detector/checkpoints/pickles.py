"""Reads pickles of other projects without running any of their code.

What a file can make the reader allocate is bounded by its size: a limited number of instructions
(`pickle_machine`), no bytes that the file does not have, no container deeper than MAX_DEPTH, none
that holds itself.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np

from stages.detector.checkpoints.checkpoint_error import CheckpointError
from stages.detector.checkpoints.pickle_machine import HINT, PickleMachine
from stages.detector.checkpoints.pickled_arrays import Array

MAX_DEPTH = 32


def read_pickle(path: Path) -> Any:
    """What the pickle in file `path` holds, as `loads` gives it.

    Raises CheckpointError naming the file; OSError where it cannot be opened.
    """
    with open(path, "rb") as file:
        if file.seek(0, 2) == 0:
            raise CheckpointError(f"{path}: got an empty file, expected a pickle; fetch it again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(data, str(path))


def loads(data: bytes, *, where: str) -> Any:
    """What the pickle `data` holds: dict, list, tuple, str, bytes, numbers, bool, None, arrays.

    Arrays and torch's tensors become numpy arrays (own memory, native byte order, C order; arrays
    of objects keep their shape), numpy's numbers stay numpy's, an OrderedDict becomes a dict, and
    text that Python 2 wrote is read as latin1. `where` begins the messages. Raises CheckpointError
    for anything else, for a pickle that is cut off, and for what follows after its end.
    """
    return _read(data, where)


def _read(data: bytes | mmap.mmap, where: str) -> Any:
    try:
        return _plain(PickleMachine(data).run(), num_bytes=len(data))
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error
    # What an invalid program meets: an empty stack, a memo without it, wrong numbers of arguments,
    # text that is none. RuntimeError is torch's, of a tensor that does not fit its storage.
    except (
        LookupError,
        TypeError,
        ValueError,
        ArithmeticError,
        MemoryError,
        RuntimeError,
    ) as error:
        words = f"{type(error).__name__}: {error}"[:300]
        raise CheckpointError(
            f"{where}: got no valid pickle of arrays ({words}); {HINT}"
        ) from error


def _plain(value: Any, *, num_bytes: int) -> Any:
    """A copy of `value`, of a pickle of `num_bytes`, in which stand-ins have become arrays.

    Raises CheckpointError for what is not plain, too deep (as what holds itself is), or much larger
    than the pickle (as few values shared many times are).
    """
    left = {"values": 10_000 + 16 * num_bytes, "bytes": 2 * num_bytes}

    def copy(value: Any, depth: int) -> Any:
        left["values"] -= 1
        if depth > MAX_DEPTH or left["values"] < 0:
            raise CheckpointError(
                f"got containers more than {MAX_DEPTH} deep or much larger than the file, expected "
                f"a dict of arrays; {HINT}"
            )
        if type(value) is dict:
            return {key: copy(item, depth + 1) for key, item in value.items()}
        if type(value) is list:
            return [copy(item, depth + 1) for item in value]
        if type(value) is tuple:
            return tuple([copy(item, depth + 1) for item in value])
        if type(value) is Array:
            return array(value, depth)
        if value is None or isinstance(value, (bool, int, float, str, bytes, np.generic)):
            return value
        raise CheckpointError(f"got a {type(value).__name__}, expected arrays and numbers; {HINT}")

    def array(stand_in: Array, depth: int) -> np.ndarray:
        if stand_in.items is not None:
            objects = np.empty(len(stand_in.items), object)
            for index, item in enumerate(stand_in.items):
                objects[index] = copy(item, depth + 1)
            return objects.reshape(stand_in.shape)
        if stand_in.value is None:
            raise CheckpointError(f"got an array without its numbers; {HINT}")
        left["bytes"] -= stand_in.value.nbytes
        if left["bytes"] < 0:
            raise CheckpointError(f"got more numbers than the file has bytes; {HINT}")
        return stand_in.value

    return copy(value, 0)
