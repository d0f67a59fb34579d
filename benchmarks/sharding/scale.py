"""What sets of thousands and of a million shards cost: start, seek, memory, and each sample.

    python -m benchmarks.sharding.scale [--shards 420 4200 42000 1000000] [--folder DIR]

For each number of shards, of 1000 samples each, a catalog and its shapes are written into a folder
(4 GB for a million shards; no tars and no manifests, which a start does not read), and a fresh
process opens a ShardStream on it, as training does. Printed are

    start     seconds from ShardStream(...) to its being open: catalog, shapes, order; and how many
              of them the processor worked, which a busy machine does not change
    seek      seconds to the first micro-batch in the middle of epoch 1000
    us a sample   processor time of going through 20,000 micro-batches at the beginning, in the
              middle and at the end of epoch 1000: which samples they are made of, not reading them
    own MB    memory of the process's own, the most that was met, without what was there before
              (Python and torch); mapped MB: of the file of shapes, shared by all processes and
              given back when memory is short; process MB: all that the process ever had at once,
              Python, torch and mapped files too
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from sharding.format import catalog as catalogs
from sharding.format import shapes as shapes_files
from sharding.format.shapes import write_shapes
from sharding.reading.dataset_source import DatasetSource
from sharding.reading.stream import ShardStream

SAMPLES_A_SHARD, SHARDS_A_BLOCK = 1000, 10
MICRO_BATCH_SIZE, EPOCH, NUM_TIMED = 32, 1000, 20_000


def main() -> None:
    """Print a line for each number of shards."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, nargs="+", default=[420, 4200, 42_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where to make the sets; default: temporary")
    parser.add_argument("--measure", type=Path, help="measure the set in this folder, print JSON")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    print(
        "    shards       samples  start s  (worked)   seek s  us a sample: first, middle, last"
        "  own MB  mapped MB  process MB"
    )
    for num_shards in options.shards:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            make_set(Path(folder), num_shards)
            command = [sys.executable, "-m", "benchmarks.sharding.scale", "--measure", folder]
            got = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        costs = "".join(f"{cost:8.2f}" for cost in got["us_a_sample"])
        print(
            f"{num_shards:10,}{num_shards * SAMPLES_A_SHARD:14,}{got['start_s']:9.2f}"
            f"{got['worked_s']:10.2f}{got['seek_s']:9.3f}{costs:>36}{got['own_mb']:8.0f}"
            f"{got['mapped_mb']:11.0f}{got['process_mb']:12.0f}",
            flush=True,
        )


def make_set(folder: Path, num_shards: int) -> None:
    """Catalog and shapes of `num_shards` (rounded down to tens): most samples of few shapes, and a
    tenth of any, so that groups are many and some are rare.
    """
    rng = np.random.default_rng(0)
    num = SHARDS_A_BLOCK * SAMPLES_A_SHARD
    often = np.array([(640, 480), (480, 640), (640, 427), (427, 640), (500, 375), (375, 500)])
    shapes = often[rng.integers(0, len(often), num)]
    shapes[::10] = rng.integers(200, 1025, (num // 10, 2))
    num_blocks = num_shards // SHARDS_A_BLOCK
    sha256 = write_shapes(folder / shapes_files.NAME, [shapes.astype(np.uint16)] * num_blocks)
    shards = [
        {
            "tar": f"train-{shard:07d}.tar",
            "split": "train",
            "bytes": 10**8 + shard,
            "manifest_sha256": f"{shard:064x}",
            "num_input": SAMPLES_A_SHARD,
            "num_ok": SAMPLES_A_SHARD,
            "num_failed": 0,
        }
        for shard in range(num_blocks * SHARDS_A_BLOCK)
    ]
    raw = {
        "schema": catalogs.SCHEMA,
        "kind": "objects",
        "about": {},
        "shapes_sha256": sha256,
        "shards": shards,
    }
    (folder / catalogs.NAME).write_text(json.dumps(raw))


def measure(folder: Path) -> dict[str, float | list[float]]:
    """What the set in `folder` costs this process."""
    before = _memory_mb()["RssAnon"]
    watch = _Watch()
    began, worked = time.perf_counter(), time.process_time()
    stream = ShardStream(
        [DatasetSource(folder)],
        seed=0,
        micro_batch_size=MICRO_BATCH_SIZE,
        window_num_shards=16,
        shape_step_px=64,
    )
    start_s, worked_s = time.perf_counter() - began, time.process_time() - worked
    an_epoch = stream.num_micro_batches
    first = EPOCH * an_epoch
    began = time.perf_counter()
    stream.plan[first + an_epoch // 2]
    seek_s = time.perf_counter() - began
    num = min(NUM_TIMED, an_epoch // 3)
    us_a_sample = []
    for position in (first, first + an_epoch // 2, first + an_epoch - num):
        stream.plan[position]
        began = time.process_time()
        num_samples = sum(len(stream.plan[position + i].samples) for i in range(num))
        us_a_sample.append((time.process_time() - began) / num_samples * 1e6)
    return {
        "start_s": start_s,
        "worked_s": worked_s,
        "seek_s": seek_s,
        "us_a_sample": us_a_sample,
        "own_mb": watch.stop() - before,
        "mapped_mb": _memory_mb()["RssFile"],
        "process_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


class _Watch:
    """The most memory of its own that the process has had, looked at a hundred times a second."""

    def __init__(self) -> None:
        self._most = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(0.01):
            self._most = max(self._most, _memory_mb()["RssAnon"])

    def stop(self) -> float:
        """Ends the watch; the most, MB."""
        self._over.set()
        self._thread.join()
        return max(self._most, _memory_mb()["RssAnon"])


def _memory_mb() -> dict[str, float]:
    """RssAnon and RssFile of this process, from /proc."""
    fields = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) / 1000 for row in fields if row[0].startswith("Rss")}


if __name__ == "__main__":
    main()
