"""How busy extraction keeps the device: the pipeline beside a plain sequential loop.

    python -m benchmarks.detector.extraction [--pictures 240] [--device-ms 20] [--decoders 2]
        [--rounds 3]

Both variants run all of `boxless distill`: reading, decoding, resizing, looking, selecting,
phrases, writing with checksums. The sequential loop looks at a picture only when the one before is
written, as most public extraction scripts do. Variants take turns within a round; printed are
medians over the rounds, and where the pipeline's time went. What both write is compared first.

- photographs: 480 x 640 pixels in JPEG, resized to 600 x 800; 5 captions each, found by the
  lexicon; 36 objects with 2048 features. The device is a pretended one: a sleep of so many
  milliseconds a picture, which like a real one leaves the CPU to others.
- toy: toy scenes and its net, with random weights, on this machine's CPU. Here nothing
  can be gained but by a second core, as the device is the CPU itself.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sharding.format.catalog import write_catalog
from sharding.format.schema import Failure, Sample, object_dtype
from sharding.writing.atomic import sha256_file
from sharding.writing.shard_writer import write_shard
from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.net_config import PictureConfig, TeacherConfig
from stages.detector.ops.resize import Prepared, prepare, resized_size
from stages.detector.predictor import Teacher
from stages.distill.config import DistillConfig
from stages.distill.inference.decode import decode
from stages.distill.inference.pipeline import InferencePipeline
from stages.distill.inference.stage_timer import DEVICE
from stages.distill.object_source import Detector
from stages.distill.run import distill
from stages.distill.shard_samples import ShardSamples
from stages.ingest.config import IngestConfig
from stages.ingest.run import ingest

CAPTIONS = [
    "a red circle above two light blue squares",
    "the big blue dog and a horse on a table",
    "an old man holds a green box near the white house",
    "two small dogs under a yellow car",
    "a woman with a black star",
]
LABELS = "circle square dog horse table man box house car woman star".split()
ATTRIBUTES = "red light blue big old green white small yellow black".split()
NUM_OBJECTS, FEATURE_SIZE, NUM_TOP = 36, 2048, 5
PICTURE = PictureConfig(shorter_px=600, longer_px=1000)
CONFIG = DistillConfig(phrases="lexicon", num_threads=1)


class SleepingDetector:
    """Sees the same objects in every picture, after a sleep."""

    label_names, attribute_names = LABELS, ATTRIBUTES
    feature_size, num_top = FEATURE_SIZE, NUM_TOP
    fingerprint = "sleeping"

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        random = np.random.default_rng(0)
        self._objects = np.zeros(
            NUM_OBJECTS, object_dtype(feature_size=FEATURE_SIZE, num_top=NUM_TOP, attributes=True)
        )
        self._objects["box"] = (0, 0, 100, 100)
        self._objects["score"] = np.linspace(0.9, 0.2, NUM_OBJECTS)
        self._objects["feature"] = random.random((NUM_OBJECTS, FEATURE_SIZE))
        self._objects["label"] = random.integers(0, len(LABELS), NUM_OBJECTS)
        self._objects["attribute"] = random.integers(0, len(ATTRIBUTES), NUM_OBJECTS)

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """As our own teachers do."""
        return resized_size((height, width), PICTURE)

    def prepare(self, picture: torch.Tensor) -> Prepared:
        """As our own teachers do."""
        return prepare(picture, PICTURE)

    def detect(self, prepared: list[Prepared]) -> list[np.ndarray]:
        """One array a picture."""
        time.sleep(self._seconds * len(prepared))
        return [self._objects for _ in prepared]


class OneAfterTheOther(InferencePipeline):
    """The sequential loop: every step of a picture in the caller's thread."""

    def objects(self, samples: ShardSamples) -> Iterator[np.ndarray | Failure]:
        """As ObjectSource.objects."""
        for place in range(len(samples)):
            sample = samples[place]
            picture = self._detector.prepare(decode(sample))
            with self.clock.during(DEVICE):
                (objects,) = self._detector.detect([picture])
            yield objects


def main() -> None:
    """Print both cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=240)
    parser.add_argument("--device-ms", type=float, default=20.0)
    parser.add_argument("--decoders", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photographs(root / "photographs", options.pictures)
        ingest(
            IngestConfig(source="toy", num_train=options.pictures, num_heldout=8),
            seed=0,
            out=root / "toy",
            show=False,
        )
        seconds = options.device_ms / 1000
        compare(root, "photographs", lambda: SleepingDetector(seconds), options)
        compare(root, "toy", toy_teacher, options)


def compare(
    root: Path, name: str, make: Callable[[], Detector], options: argparse.Namespace
) -> None:
    """Run both variants in turn, and print what they took."""
    variants: dict[str, type[InferencePipeline]] = {
        "one after the other": OneAfterTheOther,
        "flow": InferencePipeline,
    }
    rates: dict[str, list[float]] = {variant: [] for variant in variants}
    shares: dict[str, list[float]] = {variant: [] for variant in variants}
    trees = {}
    print(f"\n{name}")
    for number in range(options.rounds):
        for variant, kind in variants.items():
            object_source = kind(make(), batch_size=1, num_decoders=options.decoders)
            out = root / f"{name}-{variant}-{number}"
            catalog = distill(
                CONFIG, images=root / name, object_source=object_source, out=out, show=False
            )
            num_pictures = sum(shard.num_ok for shard in catalog.shards)
            rates[variant].append(num_pictures / object_source.clock.passed())
            shares[variant].append(object_source.clock.share(DEVICE))
            trees[variant] = {path.name: sha256_file(path) for path in out.iterdir()}
    assert trees["flow"] == trees["one after the other"], "the two variants wrote different shards"
    for variant in variants:
        print(
            f"  {variant:20} {statistics.median(rates[variant]):7.1f} pictures/s, device busy "
            f"{statistics.median(shares[variant]):4.0%}"
        )
    ratios = [flow / plain for flow, plain in zip(rates["flow"], rates["one after the other"])]
    print(f"  ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    parts = ("decode wait", DEVICE, "selection", "phrases", "write")
    print(
        "  the flow's last: "
        + ", ".join(f"{p} {object_source.clock.seconds(p):.2f} s" for p in parts)
    )


def write_photographs(folder: Path, num_pictures: int) -> None:
    """Two image shards of soft noise, about 100 kB a picture."""
    random = np.random.default_rng(0)
    samples = []
    for number in range(num_pictures):
        coarse = random.integers(0, 256, (60, 80, 3)).astype(np.uint8)
        image = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
        pixels = np.asarray(image).astype(np.int16) + random.integers(-12, 13, (480, 640, 3))
        out = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=85)
        info = {"captions": CAPTIONS, "width": 640, "height": 480, "image_id": f"p{number}"}
        samples.append(Sample(key=f"p{number}", image=out.getvalue(), extension="jpg", info=info))
    half = num_pictures // 2
    for number, some in enumerate((samples[:half], samples[half:])):
        write_shard(folder / f"train-{number:06d}.tar", some, fingerprint={"ingest": "noise"})
    write_catalog(
        folder,
        kind="images",
        splits={f"train-{number:06d}.tar": "train" for number in range(2)},
        metadata={"label_names": [], "attribute_names": [], "source": "noise"},
    )


def toy_teacher() -> Teacher:
    """The toy net, as initialised."""
    torch.manual_seed(0)
    model = FasterRCNN(TeacherConfig(), num_labels=len(LABELS), num_attributes=len(ATTRIBUTES))
    return Teacher(model, label_names=LABELS, attribute_names=ATTRIBUTES, fingerprint="toy")


if __name__ == "__main__":
    main()
