"""cuDNN's own choice of an algorithm for each convolution, by trying them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def cudnn_benchmark(enabled: bool) -> Iterator[None]:
    """Inside, whether cuDNN tries its algorithms at the first convolution of each shape and takes
    the fastest; outside it is as before."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark
    cudnn.benchmark = enabled
    try:
        yield
    finally:
        cudnn.benchmark = before
