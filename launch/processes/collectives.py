"""Compares the last collectives of the ranks, from PyTorch's flight recorder. The rank whose
numbers are behind is the one that is waited for.

https://docs.pytorch.org/tutorials/unstable/flight_recorder_tutorial.html
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from launch.paths import JobPaths

_NUM_LAST = 5


def last_collectives() -> list[str]:
    """A line each, the newest last: ``collective 17 of default_pg: gloo:all_reduce of [[3]], begun
    41 s ago``. None where this process is in no group, or its PyTorch records nothing."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized():
        return []
    try:
        entries = json.loads(_dump(distributed))["entries"]
        return [_line(entry) for entry in entries[-_NUM_LAST:]]
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
        return []  # a PyTorch with other words for it


def flight_recorder_variables(paths: JobPaths) -> dict[str, str]:
    """Variables of the ranks by which NCCL, when it gives up a collective, leaves its whole record
    in the log folder, for ``torchfrtrace``."""
    place = str(paths.flight_records.resolve())
    return {
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_DUMP_TEMP_FILE": place,
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": place,  # its name before PyTorch 2.9
    }


def _dump(distributed: Any) -> bytes:
    """The record as JSON; NCCL keeps one of its own."""
    import torch

    recorders: Any = torch._C._distributed_c10d  # which functions it has depends on the build
    if "nccl" in str(distributed.get_backend()):
        return bytes(recorders._dump_nccl_trace_json())
    return bytes(recorders._dump_fr_trace_json())


def _line(entry: dict[str, Any]) -> str:
    seconds = time.time() - entry["time_created_ns"] / 1e9
    group = entry["process_group"][-1]
    return (
        f"collective {entry['collective_seq_id']} of {group}: {entry['profiling_name']} of "
        f"{entry['input_sizes']}, begun {seconds:.0f} s ago"
    )
