"""Small sets of shards, and the damages to apply to them."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from sharding.format.catalog import NAME, read_catalog, write_catalog
from sharding.format.manifest import SampleEntry, manifest_path, manifest_sha256, read_manifest
from sharding.format.schema import JSON, OBJECTS, Sample, object_dtype
from sharding.reading.sample_reader import OpenTar, iterate, read_payloads
from sharding.writing.atomic import write_json
from sharding.writing.shard_writer import write_shard

NUM_SHARDS, NUM_SAMPLES = 3, 6  # samples of a shard
DAMAGED, NEXT = "train-000001.tar", "train-000002.tar"
NUM_WHOLE = 3  # samples of the damaged shard before the damage
SLOW_SECONDS = 0.35
GO = "go"  # the file that ends a stall
BLOCK = tarfile.BLOCKSIZE
Samples = dict[str, dict[str, bytes]]


@dataclass(frozen=True)
class Damage:
    """A damage: its name, what does it to a folder, and whether that is while samples are read.

    far: a URL scheme by which ours reads the folder late, and a command that webdataset runs for
    the same end.
    """

    name: str
    do: Callable[[Path], object] = lambda folder: None
    during: bool = False
    far: tuple[str, str] | None = None


def make_set(folder: Path) -> None:
    """Three shards of six samples with small pictures and objects, and their catalog."""
    random = np.random.default_rng(0)
    splits = {}
    for shard in range(NUM_SHARDS):
        name = f"train-{shard:06d}.tar"
        samples = [_sample(shard * NUM_SAMPLES + i, random) for i in range(NUM_SAMPLES)]
        write_shard(folder / name, samples, fingerprint={"made by": "benchmarks.sharding.damages"})
        splits[name] = "train"
    write_catalog(folder, kind="objects", splits=splits, metadata={})


def truth_of(folder: Path) -> Samples:
    """{key: {extension: payload}} of an undamaged set."""
    return {
        entry.key: read_payloads(OpenTar(tar), entry)
        for tar in sorted(folder.glob("*.tar"))
        for entry in read_manifest(tar).samples
    }


def _sample(number: int, random: np.random.Generator) -> Sample:
    objects = np.zeros(2, object_dtype(feature_size=16, num_top=2, attributes=False))
    objects["score"] = 0.9, 0.8
    objects["feature"] = random.standard_normal((2, 16))
    picture = io.BytesIO()
    pixels = random.integers(0, 255, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).save(picture, "JPEG", quality=90)
    info = {
        "captions": [f"a picture, number {number}"],
        "width": 32,
        "height": 24,
        "image_id": number,
    }
    return Sample(
        key=f"picture-{number:03d}",
        image=picture.getvalue(),
        extension="jpg",
        info=info,
        objects=objects,
    )


def _entry(folder: Path) -> SampleEntry:
    """The sample at which the damaged shard is damaged."""
    return read_manifest(folder / DAMAGED).samples[NUM_WHOLE]


def _cut(extension: str, shift: int) -> Callable[[Path], None]:
    """Cuts the shard `shift` bytes from where a member's data begin."""

    def do(folder: Path) -> None:
        os.truncate(folder / DAMAGED, _entry(folder).members[extension][0] + shift)

    return do


def _flip(extension: str, shift: int) -> Callable[[Path], None]:
    """Flips a bit `shift` bytes from where a member's data begin."""

    def do(folder: Path) -> None:
        data = bytearray((folder / DAMAGED).read_bytes())
        data[_entry(folder).members[extension][0] + shift] ^= 1
        (folder / DAMAGED).write_bytes(data)

    return do


def _cut_before_the_same_key(folder: Path) -> None:
    """The shard ends inside the objects of a sample; the next one begins with objects of its
    name."""
    entry, tar = _entry(folder), folder / NEXT
    other = read_manifest(tar).samples[0].members[OBJECTS]
    payload = OpenTar(tar).read(*other)
    header = tarfile.TarInfo(f"{entry.key}.{OBJECTS}")
    header.size = len(payload)
    member = header.tobuf(tarfile.USTAR_FORMAT) + payload + bytes(-len(payload) % BLOCK)
    tar.write_bytes(member + tar.read_bytes())
    _cut(OBJECTS, 40)(folder)


def _older_manifest(folder: Path) -> None:
    """The tar is a newer one, a sample shorter; manifest and catalog are still of the older."""
    manifest = manifest_path(folder / DAMAGED).read_bytes()
    write_shard(folder / DAMAGED, list(iterate(folder / DAMAGED))[:-1], fingerprint={})
    manifest_path(folder / DAMAGED).write_bytes(manifest)


def _older_tar(folder: Path) -> None:
    """The tar is an older one of the same size, whose captions were written otherwise."""
    data = (folder / DAMAGED).read_bytes()
    (folder / DAMAGED).write_bytes(data.replace(b"a picture", b"A PICTURE"))


def _same_key_in_two_shards(folder: Path) -> None:
    """Both are intact in themselves, and so is the catalog, but for a key (write_catalog refuses
    it)."""
    key = read_manifest(folder / "train-000000.tar").samples[0].key
    first, *others = iterate(folder / DAMAGED)
    write_shard(folder / DAMAGED, [replace(first, key=key), *others], fingerprint={})
    catalog = read_catalog(folder)
    shards = [vars(shard) for shard in catalog.shards]
    shards[1]["manifest_sha256"] = manifest_sha256(folder / DAMAGED)
    write_json(folder / NAME, {**json.loads((folder / NAME).read_text()), "shards": shards})


def _garbage(folder: Path) -> None:
    with open(folder / DAMAGED, "ab") as out:
        out.write(b"not a header" * BLOCK)


def _delete(folder: Path) -> None:
    (folder / DAMAGED).unlink()


def _delete_with_manifest(folder: Path) -> None:
    _delete(folder)
    manifest_path(folder / DAMAGED).unlink()


def _delete_manifest(folder: Path) -> None:
    manifest_path(folder / DAMAGED).unlink()


class _Slow(LocalFileSystem):
    """A file system that answers late for one tar."""

    protocol = "slow"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.partition("://")[2] or path)

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        """As the local one, later."""
        if path.endswith(DAMAGED):
            self._wait(Path(path).parent)
        return super().cat_file(path, *args, **kwargs)

    def _wait(self, folder: Path) -> None:
        time.sleep(SLOW_SECONDS)


class _Stalled(_Slow):
    """A file system that does not answer for one tar until its folder has a file GO."""

    protocol = "stalled"

    def _wait(self, folder: Path) -> None:
        while not (folder / GO).exists():
            time.sleep(0.02)


def register_file_systems() -> None:
    """Has fsspec know slow:// and stalled://."""
    for file_system in (_Slow, _Stalled):
        fsspec.register_implementation(file_system.protocol, file_system, clobber=True)


DAMAGES = (
    Damage("cut at a member boundary", _cut("jpg", -BLOCK)),
    Damage("cut between the members of a sample", _cut(OBJECTS, -BLOCK)),
    Damage("cut inside data, the next shard begins with the same key", _cut_before_the_same_key),
    Damage("a header destroyed", _flip(JSON, -BLOCK)),
    Damage("one bit flipped in a picture", _flip("jpg", 700)),
    Damage("one bit flipped in a json", _flip(JSON, 16)),
    Damage("one bit flipped in objects", _flip(OBJECTS, 300)),
    Damage("manifest missing", _delete_manifest),
    Damage("manifest of an older tar", _older_manifest),
    Damage("manifest newer than its tar, of the same size", _older_tar),
    Damage("the same key in two shards", _same_key_in_two_shards),
    Damage("a shard deleted while it is read", _delete, during=True),
    Damage("the catalog lists a shard that is missing", _delete_with_manifest),
    Damage("garbage behind the end of a tar", _garbage),
    Damage(
        "a store that stalls", far=("stalled", f"until [ -e {{folder}}/{GO} ]; do sleep 0.05; done")
    ),
    Damage("a store that is slow", far=("slow", f"sleep {SLOW_SECONDS}")),
)
