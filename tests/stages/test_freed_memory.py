"""Memory that is freed is used again. Oracle: the kernel's count of page faults of a process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

BLOCK = 48 * 1024 * 1024
PROGRAM = f"""
import resource
from stages.freed_memory import keep_freed_memory

if KEEP:
    keep_freed_memory()
bytearray({BLOCK})
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    bytearray({BLOCK})
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*, keep: bool) -> int:
    """Page faults of four blocks that are allocated and freed after a first one."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("KEEP", str(keep))],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_freed_block_is_used_again_without_page_faults() -> None:
    """glibc's default gives the block back each time; huge pages would make that 24 faults each."""
    assert faults(keep=True) < 20 < 4 * 24 <= faults(keep=False)
