"""Operators that code calls, and those whose result the host waits for on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = (
    "_local_scalar_dense",
    "nonzero",
    "is_nonzero",
    "item",
    "equal",
    "_unique2",
    "masked_select",
    "repeat_interleave",
)
"""Operators whose result, or whose result's size, the host has to know."""
COPIES = ("tolist", "cpu")
"""Copies to the host, which on a CPU call no operator."""


class _HostCopies(TorchFunctionMode):
    """Notes copies to the host among `reads`."""

    def __init__(self, reads: list[str]) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in COPIES:
            self._reads.append(func.__name__)
        return func(*args, **(kwargs or {}))


class OperatorCounts(TorchDispatchMode):
    """Counts in a `with` block. On a CPU as on a GPU, so that no GPU is needed to know how often
    one would be waited for; indexing by a mask is a read too, as its size is unknown before."""

    def __init__(self) -> None:
        super().__init__()
        self.num_operators = 0
        self.reads: list[str] = []
        self._copies = _HostCopies(self.reads)

    def __enter__(self) -> OperatorCounts:
        super().__enter__()
        self._copies.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._copies.__exit__(*error)
        super().__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        is_mask = name in ("index", "index_put", "index_put_") and any(
            one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]
        )
        self.num_operators += 1
        if name in READS or is_mask:
            self.reads.append(name)
        return func(*args, **(kwargs or {}))
