"""What a GPU computes at most, by its name: dense matrix products, from its maker's data sheet."""

from __future__ import annotations

import re

import torch

PRODUCTS = {"fp32": "fp32", "tf32": "tf32"}
"""What a precision multiplies in, 16 bits where nothing is given here."""
PEAKS: dict[str, dict[str, float]] = {
    "H100 NVL": {"16 bits": 835.0, "tf32": 417.5, "fp32": 60.0},
    "H100 PCIe": {"16 bits": 756.0, "tf32": 378.0, "fp32": 51.0},
    "H100": {"16 bits": 989.4, "tf32": 494.7, "fp32": 66.9},
    "H200 NVL": {"16 bits": 835.5, "tf32": 417.5, "fp32": 60.0},
    "H200": {"16 bits": 989.4, "tf32": 494.7, "fp32": 66.9},
    "B200": {"16 bits": 2250.0, "tf32": 1125.0, "fp32": 75.0},
    "A100": {"16 bits": 312.0, "tf32": 156.0, "fp32": 19.5},
    "A10": {"16 bits": 125.0, "tf32": 62.5, "fp32": 31.2},
    "L40S": {"16 bits": 362.0, "tf32": 183.0, "fp32": 91.6},
    "L4": {"16 bits": 121.0, "tf32": 60.0, "fp32": 30.3},
    "V100-PCIE": {"16 bits": 112.0, "fp32": 14.0},
    "V100": {"16 bits": 125.0, "fp32": 15.7},
    "T4": {"16 bits": 65.0, "fp32": 8.1},
    "MI300X": {"16 bits": 1307.4, "tf32": 653.7, "fp32": 163.4},
}
"""10^12 operations a second, without sparsity; of names that one begins with another, the longer
first."""


def peak_tflops(device: torch.device, precision: str) -> float | None:
    """Of `device` in a recipe's `precision`, in 10^12 operations a second; None where its name is
    not known, and for processors."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device), precision)


def peak_of(name: str, precision: str) -> float | None:
    """The same by the device's name."""
    for model, peaks in PEAKS.items():
        if re.search(rf"\b{model}\b", name):
            return peaks.get(PRODUCTS.get(precision, "16 bits"))
    return None
