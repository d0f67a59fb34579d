"""TF32: whether NVIDIA's GPUs (since Ampere) may use it for products of float32 tensors.

TF32 rounds what is multiplied to 10 bits of mantissa, as many as float16 has, keeps the range of
float32 and adds up in float32. PyTorch's own default is TF32 in convolutions and not in matrix
products.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from boxless.errors import BoxlessError

TF32 = "tf32"
"""The precision's name in a recipe."""


@contextlib.contextmanager
def allow_tf32(is_allowed: bool) -> Iterator[None]:
    """Inside, matrix products and convolutions of float32 tensors are TF32, or full float32.

    The setting is the process's, not the thread's. By PyTorch's older functions, after which its
    older and newer ones can both be read; after the newer ones (`fp32_precision`) some libraries'
    reads of the older ones raise errors.
    """
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if is_allowed else "highest")
    cudnn.allow_tf32 = is_allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32 = before[1]


def check_tf32(field: str, precision: str) -> None:
    """Raises BoxlessError where `precision`, of the recipe's `field`, is tf32 and this process's
    device has none."""
    if precision == TF32 and not torch.cuda.is_tf32_supported():
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        raise BoxlessError(
            f"{field}: got tf32 on a {device} that has none, expected fp32 there; NVIDIA's GPUs have "
            "tf32 since Ampere (A100)"
        )
