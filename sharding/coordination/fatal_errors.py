"""Errors that are no fault of a shard or a picture: the device, the disk or the memory fails, and
whatever follows in this process would fail alike.

Errors of CUDA stay until the process ends, and come later than what caused them, so nothing that
was computed around one may be written. They are known by type name and text, as PyTorch raises
them in several ways; this module needs no PyTorch.
"""

from __future__ import annotations

_DEVICE_TYPES = ("AcceleratorError", "DeferredCudaCallError", "DistBackendError")
_DEVICE_WORDS = (
    "CUDA error",
    "CUDA driver error",
    "HIP error",
    "cudaError",
    "cuda runtime error",
    "device-side assert",
    "CUBLAS_STATUS",
    "CUDNN_STATUS",
    "CUFFT",
    "CUSOLVER",
    "CUSPARSE",
    "NCCL error",
)
_MEMORY_WORDS = ("can't allocate memory", "out of memory", "ALLOC_FAILED")


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether memory, of the machine or of its device, was too small."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(one in str(error) for one in _MEMORY_WORDS)


def is_device_error(error: BaseException) -> bool:
    """Whether the device is broken for this process. Memory of the device that ran out is no such
    error: the next, smaller batch may fit."""
    if ran_out_of_memory(error):
        return False
    if any(kind.__name__ in _DEVICE_TYPES for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(one in str(error) for one in _DEVICE_WORDS)


def ends_worker(error: BaseException) -> bool:
    """Whether an error is no fault of the shard, so that the next one would fail alike."""
    return isinstance(error, OSError) or ran_out_of_memory(error) or is_device_error(error)
