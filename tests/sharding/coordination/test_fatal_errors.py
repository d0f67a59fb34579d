"""Errors that are no fault of a shard: those of the device, of the disk and of the memory."""

from __future__ import annotations

import pytest
import torch

from sharding.coordination.fatal_errors import ends_worker, is_device_error
from sharding.format.schema import ShardError

TAIL = "\nCUDA kernel errors might be asynchronously reported at some other API call"


@pytest.mark.parametrize(
    ("error", "is_of_device", "is_end"),
    [
        (torch.AcceleratorError(f"CUDA error: an illegal memory access{TAIL}"), True, True),
        (torch.AcceleratorError(f"CUDA error: device-side assert triggered{TAIL}"), True, True),
        (torch.AcceleratorError("HIP error: invalid device function"), True, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling gemm"), True, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True, True),
        (torch.distributed.DistBackendError("NCCL error in: x.cpp:1, unhandled"), True, True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False, True),
        (torch.AcceleratorError(f"CUDA error: out of memory{TAIL}"), False, True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), False, True),
        (MemoryError(), False, True),
        (OSError(28, "No space left on device"), False, True),
        (RuntimeError("cannot look at it"), False, False),
        (ShardError("caption: got 'CUDA error: why'"), False, False),
    ],
)
def test_errors_of_the_device_are_told_from_those_of_a_shard(
    error: Exception, is_of_device: bool, is_end: bool
) -> None:
    """Oracle: the types that PyTorch raises, with its words. Memory of a device that ran out may do
    for the next batch, but is no fault of a shard either."""
    assert (is_device_error(error), ends_worker(error)) == (is_of_device, is_end)
