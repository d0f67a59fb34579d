"""The samples in docs/formats.md, made by the code that writes the files.

python -m docs.generate.format_samples     # prints them; --write puts them into the page
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from sharding.coordination.claims import Worker
from sharding.coordination.work_queue import FOLDER
from sharding.format.catalog import write_catalog
from sharding.format.schema import Failure, Sample, object_dtype
from sharding.reading.dataset_source import DatasetSource
from sharding.reading.stream import ShardStream
from sharding.writing.shard_writer import write_shard

PAGE = Path(__file__).resolve().parents[1] / "formats.md"
_BLOCK = r"(<!-- sample: {name} -->\n```json\n).*?(\n```)"
_TAR = "train-000000.tar"


def format_samples() -> dict[str, Any]:
    """{name of file_schemas.FILES: content of such a file}, of one tiny object shard."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        sample = _sample()
        fingerprint = {"stage": "distill", "teacher": "0" * 16}
        with Worker(out, {_TAR: 2}, {_TAR: fingerprint}, log=lambda line: None) as worker:
            for claim in worker.claims():
                with claim:
                    results = [sample, Failure(key="0002", reason="truncated JPEG")]
                    write_shard(out / claim.tar, claim.track(results), fingerprint=fingerprint)
                    plan = _read(out / FOLDER / "plan.json")
                    record = _read(next((out / FOLDER).glob("worker-*")))
        metadata = {"label_names": ["dog"]}
        write_catalog(out, kind="objects", splits={_TAR: "train"}, metadata=metadata)
        return {
            "sample": sample.info,
            "manifest": _read(out / f"{_TAR}.json"),
            "catalog": _read(out / "catalog.json"),
            "plan": plan,
            "worker": record | _WORKER,
            "state": _stream(out).state(1),
        }


_WORKER = {"host": "node1", "pid": 4711, "machine": "node1 5b0c", "token": "9f3a"}
_WORKER |= {"counter": 17, "tar_seconds": 80.5, "num_done": 1, "rate": 6.2}
"""What differs from one run to the next."""


def page_with_samples(text: str) -> str:
    """The page with its samples replaced by those of `format_samples`."""
    for name, content in format_samples().items():
        block = re.compile(_BLOCK.format(name=name), re.S)
        shown = json.dumps(content, indent=1, ensure_ascii=False)
        shown = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", shown)
        text, num = block.subn(lambda match: match[1] + shown + match[2], text)
        if num != 1:
            raise ValueError(f"sample {name}: got {num} blocks in {PAGE}, expected one")
    return text


def _sample() -> Sample:
    phrase = {"text": "a dog", "start": 0, "end": 5, "similarity": [1.0]}
    info = {"captions": ["a dog"], "width": 4, "height": 2, "image_id": 1, "source": "example"}
    objects = np.zeros(1, object_dtype(feature_size=2, num_top=1, attributes=False))
    objects["box"] = (0, 0, 4, 2)
    return Sample(
        key="0001",
        image=_png(4, 2),
        extension="png",
        info={**info, "phrases": [[phrase]]},
        objects=objects,
    )


def _png(width: int, height: int) -> bytes:
    """A black PNG without compression, so that its bytes depend on no library's version."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = bytes(height * (width + 1))
    stored = b"\x01" + struct.pack("<HH", len(rows), 0xFFFF - len(rows)) + rows
    data = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(rows))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def _stream(out: Path) -> ShardStream:
    return ShardStream(
        [DatasetSource(str(out))], seed=0, micro_batch_size=1, window_num_shards=1, shape_step_px=64
    )


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes().rstrip(b"\0 \n"))


def main() -> None:
    """Print the samples, or write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put them into docs/formats.md")
    if parser.parse_args().write:
        PAGE.write_text(page_with_samples(PAGE.read_text("utf-8")), "utf-8")
    else:
        print(json.dumps(format_samples(), indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
