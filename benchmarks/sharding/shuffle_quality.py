"""How well samples are mixed: several windows of ours, webdataset's buffers, a full permutation.

    python -m benchmarks.sharding.shuffle_quality [--shards 600] [--windows 8 16 64] [--out FOLDER]

A set of so many shards of 1000 samples, by its catalog alone; eight ranks of four workers, 32
samples a micro-batch, webdataset's shuffle buffer of 1000 samples. `boxless shuffle-quality FOLDER`
does it for shards of your own; what the figures mean is in
`sharding.order.shuffle_quality.ShuffleQuality`.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.sharding.scale import make_set
from sharding.order.shuffle_quality import lines, measure
from sharding.order.shuffle_simulation import ShuffleConfig


def main() -> None:
    """Print a table, and draw a picture for each window if a folder is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=600)
    parser.add_argument("--windows", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        make_set(Path(folder), options.shards)
        for window in options.windows:
            config = ShuffleConfig(window_num_shards=window)
            picture = options.out / f"shuffle-{window}.png" if options.out else None
            ours, *others = measure(Path(folder), config, picture=picture)
            found.append(replace(ours, name=f"window {window}"))
    print("\n".join(lines([*found, *others])))


if __name__ == "__main__":
    main()
