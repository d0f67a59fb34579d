"""All readers of untrusted bytes, a function each, and valid bytes to begin from.

A reader may raise REFUSALS and nothing else; what it accepts has to hold what it promises, which
the functions here assert.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from sharding.format.catalog import parse_catalog, write_catalog
from sharding.format.image_size import picture_size
from sharding.format.manifest import SampleEntry, manifest_bytes, manifest_path, parse_manifest
from sharding.format.schema import (
    Failure,
    Note,
    Sample,
    ShardError,
    check_objects,
    decode_objects,
    encode_objects,
    object_dtype,
)
from sharding.format.shapes import parse_shapes
from sharding.format.tar_scan import scan
from sharding.reading.sample_reader import OpenTar, iterate, make_sample, read_entry
from sharding.tools.index import index_tar
from sharding.tools.repair import repair
from sharding.tools.verify import verify_shard
from sharding.writing.atomic import canonical_json
from sharding.writing.shard_writer import write_shard
from stages.detector.checkpoints.checkpoint_error import CheckpointError
from stages.detector.checkpoints.pickles import loads

Read = Callable[[bytes, Path], object]
TAR = "train-000000.tar"
NUM_SAMPLES = 3
REFUSALS = (ShardError, CheckpointError)


def read_scan(data: bytes, folder: Path) -> None:
    """The walk over headers; every member lies in the tar."""

    def read(offset: int, num_bytes: int) -> bytes:
        assert 0 <= offset <= offset + num_bytes <= len(data)
        return data[offset : offset + num_bytes]

    for member in scan(read, len(data)):
        assert member.offset + member.num_bytes <= len(data)
        assert "\n" not in member.name and ".." not in member.name.split("/")


def read_index(data: bytes, folder: Path) -> None:
    """A manifest for a tar; it reads back, and every sample of it can be read."""
    tar = folder / TAR
    tar.write_bytes(data)
    manifest = index_tar(tar)
    assert parse_manifest(manifest_bytes(manifest), tar) == manifest
    for entry in manifest.samples:
        read_entry(OpenTar(tar), entry)


def read_manifest(data: bytes, folder: Path) -> None:
    """A manifest file; what is accepted can be written again, as the same."""
    manifest = parse_manifest(data, Path(TAR))
    assert parse_manifest(manifest_bytes(manifest), Path(TAR)) == manifest


def read_places(data: bytes, folder: Path) -> None:
    """A manifest beside a tar that it may not fit; verifying and repairing never raise."""
    tar = _folder_of_one(folder)
    manifest_path(tar).write_bytes(data)
    verify_shard(tar, full=True)
    repair(folder, dry_run=True)
    for sample in iterate(tar):
        assert isinstance(sample.info, dict)


def read_samples(data: bytes, folder: Path) -> None:
    """A tar that may not fit its manifest, its CRC-32 not asked; verifying never raises."""
    tar = _folder_of_one(folder)
    tar.write_bytes(data)
    verify_shard(tar, full=True)
    repair(folder, dry_run=True)
    manifest = parse_manifest(manifest_path(tar).read_bytes(), tar)
    for entry in manifest.samples:
        try:
            read_entry(OpenTar(tar), entry, check=False)
        except ShardError:
            continue


def read_catalog(data: bytes, folder: Path) -> None:
    """catalog.json; the tars it names stay in their folder."""
    catalog = parse_catalog(data, "catalog.json")
    assert all((folder / shard.tar).parent == folder for shard in catalog.shards)


def read_shapes(data: bytes, folder: Path) -> None:
    """catalog.shapes.npy, with its own SHA-256."""
    sha256 = hashlib.sha256(data).hexdigest()
    shapes = parse_shapes(data, num_samples=NUM_SAMPLES, sha256=sha256, where="shapes")
    assert shapes.shape == (NUM_SAMPLES, 2)


def read_objects(data: bytes, folder: Path) -> None:
    """An objects array; what is sound is written again as the same."""
    array = decode_objects(data)
    assert array.nbytes <= len(data)
    check_objects(array)
    np.testing.assert_array_equal(decode_objects(encode_objects(array)), array)


def read_info(data: bytes, folder: Path) -> None:
    """The json of a sample, whoever wrote it; ours is canonical json again."""
    members = {"jpg": np.empty(0, np.uint8), "json": np.frombuffer(data, np.uint8)}
    entry = SampleEntry("key", 4, 3, 0, {"jpg": (512, 0), "json": (1024, len(data))})
    sample = make_sample(members, entry)
    assert {"captions", "width", "height"} <= sample.info.keys()


def read_picture(data: bytes, folder: Path) -> None:
    """A picture's header; Pillow, where it opens the picture too, sees the same size."""
    size = picture_size(data)
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as picture:
            seen = picture.size
    # Pillow may refuse, in any of its ways, what a look at the header lets pass.
    except Exception:
        return
    assert seen == size, f"Pillow sees {seen}, picture_size {size}"


def read_pickle(data: bytes, folder: Path) -> None:
    """A checkpoint of arrays, or the info of old features; what is accepted can be pickled."""
    pickle.dumps(loads(data, where="pickle"))


READERS: dict[str, Read] = {
    "scan": read_scan,
    "index": read_index,
    "manifest": read_manifest,
    "places": read_places,
    "samples": read_samples,
    "catalog": read_catalog,
    "shapes": read_shapes,
    "objects": read_objects,
    "info": read_info,
    "picture": read_picture,
    "pickle": read_pickle,
}
TARS = ("scan", "index", "samples")
JSONS = ("manifest", "places", "catalog", "info")


def seeds(reader: str, folder: Path) -> list[bytes]:
    """Sound bytes for a reader, made by the code that writes them, in `folder`."""
    tar = _folder_of_one(folder)
    infos: list[dict] = [{"captions": ["ü"], "width": 4, "height": 3}, {"caption": "a", "key": 1}]
    of_reader: dict[str, Callable[[], list[bytes]]] = {
        "scan": lambda: [tar.read_bytes(), *map(_foreign_tar, FORMATS)],
        "index": lambda: [tar.read_bytes(), *map(_foreign_tar, FORMATS)],
        "manifest": lambda: [manifest_path(tar).read_bytes()],
        "places": lambda: [manifest_path(tar).read_bytes()],
        "samples": lambda: [tar.read_bytes()],
        "catalog": lambda: [(folder / "catalog.json").read_bytes()],
        "shapes": lambda: [(folder / "catalog.shapes.npy").read_bytes()],
        "objects": lambda: [encode_objects(_objects(num, bool(num % 2))) for num in range(3)],
        "info": lambda: [canonical_json(info) for info in infos],
        "picture": lambda: [_picture(kind) for kind in ("JPEG", "PNG", "WEBP")],
        "pickle": lambda: [pickle.dumps(_checkpoint(), protocol) for protocol in range(6)],
    }
    return of_reader[reader]()


FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    0.5,
    1e400,
    1 << 31,
    1 << 63,
    10**400,
    "",
    "a\nb",
    "../x",
    "\ud800",
    "é" * 9,
    [],
    {},
    [0, 1],
    {"a": [1]},
)


def repaired(data: bytes) -> bytes:
    """A tar with true checksums in all that look like headers, so that readers see further in."""
    repaired = bytearray(data)
    for start in range(0, len(data) - 511, 512):
        header = repaired[start : start + 512]
        if header[257:262] == b"ustar":
            header[148:156] = b" " * 8
            repaired[start + 148 : start + 156] = b"%06o\0 " % sum(header)
    return bytes(repaired)


def changed(data: bytes, random: Random) -> bytes:
    """JSON with a value somewhere in it replaced by another kind, left out or doubled; other bytes
    as they are."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return data
    *_, (parent, name) = [(None, None), *_walk(tree, random)]
    if parent is None:
        return data
    how = random.randrange(4)
    if how == 0:
        del parent[name]
    elif how == 1 and isinstance(parent, list):
        parent.append(parent[name])
    else:
        parent[name] = random.choice(ODD)
    return json.dumps(tree).encode()


def _walk(tree: Any, random: Random) -> Iterator[tuple[Any, Any]]:
    """(container, index or name) on a random way into a tree."""
    while isinstance(tree, (dict, list)) and tree:
        name = random.choice(sorted(tree) if isinstance(tree, dict) else range(len(tree)))
        yield tree, name
        if random.randrange(4) == 0:
            return
        tree = tree[name]


def _folder_of_one(folder: Path) -> Path:
    """A shard in `folder` and its catalog, made where they are not there; tar and manifest
    sound."""
    kept = folder / "kept"
    if not kept.exists():
        kept.mkdir(parents=True)
        infos = [
            {"captions": [f"número {index}"], "width": 12, "height": 9, "image_id": index}
            for index in range(NUM_SAMPLES)
        ]
        write_shard(
            kept / TAR,
            [
                *(
                    Sample(
                        key=f"picture-{index}",
                        image=_picture("JPEG"),
                        extension="jpg",
                        info=info,
                        objects=_objects(index, True),
                    )
                    for index, info in enumerate(infos)
                ),
                Failure(key="broken", reason="no picture"),
                Note(key="picture-0", reason="empty caption"),
            ],
            fingerprint={"stage": "1"},
        )
        write_catalog(kept, kind="objects", splits={TAR: "train"}, metadata={"label_names": ["a"]})
    for path in kept.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder / TAR


def _objects(num_objects: int, attributes: bool) -> np.ndarray:
    array = np.zeros(num_objects, object_dtype(feature_size=4, num_top=2, attributes=attributes))
    array["score"] = np.linspace(0.9, 0.1, num_objects)
    return array


def _checkpoint() -> dict[str, Any]:
    weights = {"a.weight": np.zeros((2, 3), np.float32), "a.bias": np.ones(2, ">f8")}
    info = {"image_id": "a", "num_boxes": np.int64(2), "names": ["é", b"x", None, 1.5]}
    return {"model": weights, "info": np.array(info, object), "numbers": (1, -1, 2**70, True)}


def _picture(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (12, 9), (200, 10, 30)).save(out, kind)
    return out.getvalue()


def _foreign_tar(tar_format: int) -> bytes:
    """What img2dataset and others write: folders, long names, txt, WebP, a failed input, a
    pickle."""
    long = "" if tar_format == tarfile.USTAR_FORMAT else "ü" * 60
    failed = json.dumps({"status": "failed_to_download", "error_message": "404"}).encode()
    info = json.dumps({"caption": "a cat", "url": "http://x/y.jpg", "width": 12}).encode()
    members = {
        f"00000/a{long}.jpg": _picture("JPEG"),
        f"00000/a{long}.txt": b"a cat",
        f"00000/a{long}.json": info,
        "b.json": failed,
        "c.webp": _picture("WEBP"),
        "c.cls": b"1",
        "c.pyd": b"cos\nsystem\n",
        "c.txt": b"x",
        "d.seg.png": b"p",
        "README": b"x",
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as tar:
        for name, payload in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(payload)
            header.mtime = 1.5 if tar_format == tarfile.PAX_FORMAT else 1
            tar.addfile(header, io.BytesIO(payload))
    return out.getvalue()
