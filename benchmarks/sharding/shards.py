"""How fast shards are written and read: ours, stock webdataset, Energon and mosaic streaming.

    python -m benchmarks.sharding.shards [--samples 400] [--rounds 5] [--folders /dev/shm /tmp]

One run, the same samples for all: 36 objects with 2048 half-precision features each, a JPEG of
about 100 kB that decodes, a small json. Every round runs all variants one after the other, in one
process; the first round is dropped. Printed are medians, and of the rounds' ratios the median and
the spread. What every reader gives is compared with what was written before it is timed.

- Writing, in each of the folders: ours makes checksums, manifests and a catalog, and syncs every
  file before it gets its name; a second thread hashes. Stock leaves its tars to the kernel, unless
  the line says "synced".
- Reading, pictures still encoded: ours in the stream's shuffled order, opened again each time, each
  sample checked by CRC-32. Stock in the order of the tars, unchecked. Energon and mosaic shuffled,
  unchecked, opened beforehand.
- End to end, to padded tensors, through Pillow and one collate for all, and our time's shares.
- The same in two workers of PyTorch's DataLoader, which live on between rounds; and there without
  the pictures, which take most of it.

What is read lies in the first folder and in the page cache.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import hashlib
import io
import os
import pkgutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.sharding.shard_formats import (
    DTYPE,
    FIELDS,
    MICRO_BATCH_SIZE,
    NUM_OBJECTS,
    SAMPLES_A_SHARD,
    Reader,
    Row,
    as_npy_a_field,
    as_one_npy,
    fields_of,
    make_samples,
    open_energon,
    open_mosaic,
    open_ours,
    open_stock,
    read_ours,
    read_stock,
    rows_of,
    write_mosaic,
    write_ours,
    write_stock,
)
from sharding.format.schema import Sample

T = TypeVar("T")
Batch = dict[str, torch.Tensor]

# The folders under each root, and what the tables call what is in them.
OURS, ONE_NPY, NPY_A_FIELD, MOSAIC = "ours", "one-npy", "npy-a-field", "mosaic"
NAMES = {
    OURS: "ours",
    ONE_NPY: "webdataset, one npy",
    NPY_A_FIELD: "webdataset, an npy a field",
    MOSAIC: "mosaic streaming",
}
ENERGON = "Energon, one npy"
HOW_TO_INSTALL = {
    ENERGON: "pip install megatron-energon",
    NAMES[MOSAIC]: "pip install mosaicml-streaming, and the torchvision that goes with your torch",
}
WRITE_WANTED, READ_WANTED = 3, 5
NUM_WORKERS = 2
MEMORY = Path("/dev/shm")
# Where our reading does what, in the order in which a sample passes.
PARTS = {
    "read": "sharding.reading.sample_reader.OpenTar.read_into",
    "check": "sharding.reading.local_store.check_crc32",
    "json": "sharding.reading.sample_reader._parse",
    "objects": "sharding.reading.sample_reader._objects",
}


@dataclass(frozen=True)
class Variant:
    """One implementation. wanted: how many times as fast as it ours has to be."""

    name: str
    run: Callable[[], object]
    wanted: int | None = None


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folders",
        type=Path,
        nargs="+",
        default=[*([MEMORY] if MEMORY.is_dir() else []), Path(tempfile.gettempdir())],
    )
    options = parser.parse_args()
    if options.samples < NUM_WORKERS * SAMPLES_A_SHARD:
        parser.error(
            f"--samples: got {options.samples}, expected a shard of {SAMPLES_A_SHARD} for "
            f"each of {NUM_WORKERS} workers, or webdataset stops"
        )
    torch.set_num_threads(1)
    samples = make_samples(options.samples, options.seed)
    bench = Bench(samples, options.rounds)
    print(bench.describe())
    with contextlib.ExitStack() as stack:
        roots = [
            Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
            for folder in options.folders
        ]
        for root in roots:
            bench.compare(f"Writing, in {root.parent}", writing_variants(root, samples))
        bench.compare("Reading and decoding objects and json", reading_variants(roots[0], samples))
        bench.compare("End to end, pictures decoded", end_to_end_variants(roots[0]))
        bench.show_shares(roots[0] / OURS)
        for title, batch in (("pictures decoded", whole_batch), ("objects alone", objects_batch)):
            variants = worker_variants(roots[0], batch)
            bench.compare(f"End to end in {NUM_WORKERS} workers, {title}", variants)


class Bench:
    """Times variants of going through `samples`, in rounds."""

    def __init__(self, samples: Sequence[Sample], rounds: int) -> None:
        self.num_samples, self.rounds = len(samples), rounds
        self.picture_bytes = statistics.mean(len(sample.image) for sample in samples)
        self.objects_bytes = NUM_OBJECTS * DTYPE.itemsize

    def describe(self) -> str:
        """What is measured, in a line."""
        return (
            f"{self.num_samples} samples of a JPEG of {self.picture_bytes / 1e3:.0f} kB and "
            f"{self.objects_bytes / 1e3:.0f} kB of objects; {self.rounds} rounds; "
            f"{os.cpu_count()} cores"
        )

    def compare(self, title: str, variants: Sequence[Variant]) -> None:
        """Prints a table of variants, the first of which is ours."""
        _time_all(variants)
        rounds = [_time_all(variants) for _ in range(self.rounds)]
        print(f"\n{title}\n{'':32}samples/s    MB/s   ours is as many times as fast")
        for variant, seconds in zip(variants, zip(*rounds)):
            rate = self.num_samples / statistics.median(seconds)
            megabytes = rate * (self.picture_bytes + self.objects_bytes) / 1e6
            ratios = [theirs / ours[0] for theirs, ours in zip(seconds, rounds)]
            wanted = f", at least {variant.wanted} expected" if variant.wanted else ""
            ratio = f"{_spread(ratios)}{wanted}" if variant is not variants[0] else ""
            print(f"  {variant.name:30}{rate:9,.0f}{megabytes:8,.0f}   {ratio}".rstrip())

    def show_shares(self, folder: Path) -> None:
        """Prints where the time of our end-to-end reading goes."""
        rounds = [_time_parts(folder) for _ in range(self.rounds + 1)][1:]
        print(f"\nOurs, end to end, where the time goes\n{'':24}us a sample   % of all")
        for part in rounds[0]:
            micros = statistics.median(times[part] for times in rounds) / self.num_samples * 1e6
            shares = [100 * times[part] / sum(times.values()) for times in rounds]
            print(f"  {part:22}{micros:11,.1f}   {_spread(shares)}")


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):5.2f} ({min(values):.2f} to {max(values):.2f})"


def _time_all(variants: Sequence[Variant]) -> list[float]:
    """Seconds of each variant, one after the other."""
    return [_seconds(variant.run) for variant in variants]


def _seconds(run: Callable[[], object]) -> float:
    # What an earlier variant left behind, in Python and on its way to the disk, is not this one's.
    gc.collect()
    os.sync()
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def writing_variants(root: Path, samples: Sequence[Sample]) -> list[Variant]:
    """Variants to write the samples into folders under `root`."""
    for name in (OURS, ONE_NPY, NPY_A_FIELD):
        (root / name).mkdir()
    one_npy = [as_one_npy(sample) for sample in samples]
    npy_a_field = [as_npy_a_field(sample) for sample in samples]

    def stock(name: str, members: Sequence[dict[str, Any]], synced: bool = False) -> None:
        write_stock(root / name, members, synced=synced)

    variants = [
        Variant(NAMES[OURS], functools.partial(write_ours, root / OURS, samples)),
        Variant(
            f"{NAMES[ONE_NPY]}, synced", functools.partial(stock, ONE_NPY, one_npy, synced=True)
        ),
        Variant(NAMES[ONE_NPY], functools.partial(stock, ONE_NPY, one_npy), WRITE_WANTED),
        Variant(
            NAMES[NPY_A_FIELD], functools.partial(stock, NPY_A_FIELD, npy_a_field), WRITE_WANTED
        ),
        Variant("SHA-256 of it alone", functools.partial(hash_all, samples)),
    ]
    write = functools.partial(write_mosaic, root / MOSAIC, samples)
    if is_installed(NAMES[MOSAIC], write):
        variants.append(Variant(NAMES[MOSAIC], write))
    return variants


def hash_all(samples: Sequence[Sample]) -> None:
    """The part of our writing that no writer without a checksum has."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(sample.image)
        digest.update(np.ascontiguousarray(sample.objects).view(np.uint8).data)


def is_installed(name: str, use: Callable[[], object]) -> bool:
    """Whether `use` finds what it imports; says so if not."""
    try:
        use()
    except ImportError as error:
        print(f"{name} is left out: {error}; {HOW_TO_INSTALL[name]}")
        return False
    return True


def reading_variants(root: Path, samples: Sequence[Sample]) -> list[Variant]:
    """Variants to read what writing_variants wrote; each is checked first."""
    readers: list[tuple[str, Reader, int | None]] = [
        (NAMES[OURS], functools.partial(read_ours, root / OURS), None),
        (NAMES[ONE_NPY], functools.partial(read_stock, root / ONE_NPY), READ_WANTED),
        (NAMES[NPY_A_FIELD], functools.partial(read_stock, root / NPY_A_FIELD), READ_WANTED),
    ]
    for name, open_other in (
        (ENERGON, functools.partial(open_energon, root / ONE_NPY, len(samples))),
        (NAMES[MOSAIC], functools.partial(open_mosaic, root / MOSAIC)),
    ):
        opened: list[Reader] = []
        if is_installed(name, lambda: opened.append(open_other())):
            readers.append((name, opened[0], None))
    for _, read, _ in readers:
        check_same(read(), samples)
    return [
        Variant(name, functools.partial(go_through, read), wanted) for name, read, wanted in readers
    ]


def check_same(rows: Iterable[Row], samples: Sequence[Sample]) -> None:
    """AssertionError unless `rows` are all the samples, once each and the same to the bit."""
    left = {sample.key: sample for sample in samples}
    for row in rows:
        sample = left.pop(row.key)
        assert (row.picture, row.info) == (sample.image, sample.info), row.key
        expected = fields_of(sample.objects)
        for name in FIELDS:
            assert np.array_equal(row.objects[name], expected[name]), (row.key, name)
    assert not left, f"{len(left)} samples missing"


def go_through(read: Reader) -> None:
    """Reads all and keeps nothing."""
    for _ in read():
        pass


def end_to_end_variants(root: Path) -> list[Variant]:
    """Variants from shards to batches of tensors, pictures decoded, in this process."""

    def ours() -> None:
        stream = open_ours(root / OURS)
        for position in range(stream.num_micro_batches):
            whole_batch(rows_of(stream[position]))

    def stock(name: str) -> None:
        for _ in open_stock(root / name).batched(MICRO_BATCH_SIZE, collation_fn=whole_batch):
            pass

    return [
        Variant(NAMES[OURS], ours),
        *(Variant(NAMES[name], functools.partial(stock, name)) for name in (ONE_NPY, NPY_A_FIELD)),
    ]


def worker_variants(root: Path, batch: Callable[[Sequence[Row]], Batch]) -> list[Variant]:
    """Variants from shards to batches of tensors in workers, which wait for the next round."""
    settings: dict[str, Any] = {
        "batch_size": None,
        "num_workers": NUM_WORKERS,
        "persistent_workers": True,
    }
    stream = open_ours(root / OURS)
    loaders = {
        OURS: DataLoader(
            stream,
            sampler=range(stream.num_micro_batches),
            collate_fn=lambda samples: batch(rows_of(samples)),
            **settings,
        )
    }
    for name in (ONE_NPY, NPY_A_FIELD):
        batches = open_stock(root / name).batched(MICRO_BATCH_SIZE, collation_fn=batch)
        loaders[name] = DataLoader(batches, **settings)
    return [
        Variant(NAMES[name], functools.partial(go_through, loader.__iter__))
        for name, loader in loaders.items()
    ]


def whole_batch(rows: Sequence[Row]) -> Batch:
    """Pixels uint8 [N, H, W, 3] and the padded objects."""
    return collate(rows, [decode_picture(row.picture) for row in rows])


def objects_batch(rows: Sequence[Row]) -> Batch:
    """The padded objects."""
    return collate(rows, [])


def decode_picture(data: bytes) -> np.ndarray:
    """Pixels uint8 [H, W, 3] of a JPEG."""
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


def collate(rows: Sequence[Row], pictures: Sequence[np.ndarray]) -> Batch:
    """Every field of the objects [N, O, ...], O the most that a row has; pixels if there are."""
    counts = [len(row.objects["score"]) for row in rows]
    batch = {"num_objects": torch.tensor(counts)}
    for name in FIELDS:
        dtype, shape = DTYPE[name].base, DTYPE[name].shape
        padded = np.zeros((len(rows), max(counts), *shape), dtype)
        for row, count, place in zip(rows, counts, padded):
            place[:count] = row.objects[name]
        batch[name] = torch.from_numpy(padded)
    if pictures:
        batch["pixels"] = torch.from_numpy(np.stack(pictures))
    return batch


def _time_parts(folder: Path) -> dict[str, float]:
    """Seconds of each part of our end-to-end reading over all samples."""
    parts = dict.fromkeys([*PARTS, "JPEG decode", "collate"], 0.0)

    def timed(part: str, function: Callable[..., T]) -> Callable[..., T]:
        def run(*values: Any) -> T:
            began = time.perf_counter()
            try:
                return function(*values)
            finally:
                parts[part] += time.perf_counter() - began

        return run

    decode, put = timed("JPEG decode", decode_picture), timed("collate", collate)
    with contextlib.ExitStack() as stack:
        for part, name in PARTS.items():
            stack.enter_context(mock.patch(name, timed(part, pkgutil.resolve_name(name))))
        began = time.perf_counter()
        stream = open_ours(folder)
        for position in range(stream.num_micro_batches):
            rows = rows_of(stream[position])
            put(rows, [decode(row.picture) for row in rows])
        seconds = time.perf_counter() - began
    return {**parts, "order and all else": seconds - sum(parts.values())}


if __name__ == "__main__":
    main()
