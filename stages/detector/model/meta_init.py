"""Builds nets without initialising weights that a file will replace.

Seventy million random numbers take seconds. On torch's "meta" device nothing takes time, but to
fill a tensor there, or to give it memory afterwards, torch imports its compiler first, which takes
longer still; so neither is done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Layers made in this block have parameters without memory, on the "meta" device.

    The global random state is not touched.
    """
    with torch.device("meta"), _Unfilled():
        yield


def put_weights(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Gives a net made by `shapes_only` its weights, in memory of channels last as FasterRCNN has
    them. Raises RuntimeError, of torch, where names or shapes do not fit."""
    net.load_state_dict(weights, assign=True)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class _Unfilled(TorchFunctionMode):
    """Leaves out what torch.nn.init does."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function in _FILLERS or getattr(function, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return function(*args, **(kwargs or {}))


# The functions of torch.nn.init come to a mode as themselves, or as the method that they call.
_FILLERS = {torch.Tensor.normal_, torch.Tensor.uniform_}
