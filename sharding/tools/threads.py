"""Maps a function over shards in several threads, for reading and hashing.

Threads serve, as reading, SHA-256 and CRC-32 leave Python's lock to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

NUM_THREADS = 4
NUM_JOBS_AHEAD = 64  # handed to the threads at a time: a million shards fit in no queue


def map_in_threads(function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
    """function(job) of every job, in their order; what it raises is raised here."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for first in range(0, len(jobs), NUM_JOBS_AHEAD):
            yield from pool.map(function, jobs[first : first + NUM_JOBS_AHEAD])
