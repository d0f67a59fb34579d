"""The full-size teacher beside detectron2: seconds a picture, part by part, and the work done.

    python -m benchmarks.detector.teacher [--models R101-C4 R50-FPN] [--rounds 5] [--threads 0]
        [--device cpu] [--precision fp32] [--pictures 1] [--photograph FILE] [--clock wall]

Both nets have the same weights, 1600 classes and 1000 proposals, take the same photograph as
resized bytes, and give the same arrays, which is checked first. They take turns within a round;
printed are medians over the rounds, and of the rounds' ratios the median and the spread. Then one
more picture is timed part by part, each beside its arithmetic: multiplications and additions
counted by torch, against what this machine reaches in the same run on plain large ones. Without
detectron2, which is an optional package, ours alone.

On a machine that others use, take --clock cpu --threads 1 (`clocks.py`).

In "fp32" pictures run one by one in either; --precision bf16 with --pictures N is a batch of ours
beside detectron2 in single precision, whose objects agree only nearly and are not compared.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import matplotlib.cbook
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.clocks import CLOCKS, Clock, seconds
from benchmarks.detector.detector_weights import make_weights
from stages.detector.checkpoints.families import DETECTRON2
from stages.detector.checkpoints.weights import num_names, read_net
from stages.detector.detectron2_config import Detectron2Config
from stages.detector.model import faster_rcnn
from stages.detector.model import res5_head as res5
from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.model.rpn import ProposalNetwork
from stages.detector.ops import pooler
from stages.detector.predictor import Teacher
from stages.distill.object_source import Detector

NUM_LABELS = 1600
REST = "the rest"


class Model(NamedTuple):
    """A net to time and the size of its pictures."""

    depth: int
    has_pyramid: bool
    shorter_px: int
    longer_px: int


MODELS = {
    "R101-C4": Model(101, False, 600, 1000),
    "R50-C4": Model(50, False, 600, 1000),
    "R50-FPN": Model(50, True, 800, 1333),
    "R101-FPN": Model(101, True, 800, 1333),
}


def main() -> None:
    """Time every model asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["R101-C4", "R50-FPN"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves PyTorch's choice")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--pictures", type=int, default=1, help="at once, in bf16")
    parser.add_argument("--photograph", type=Path, help="else one that comes with matplotlib")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device, clock = torch.device(options.device), CLOCKS[options.clock]
    picture = read_photograph(options.photograph)
    peaks = measure_peaks(device, clock)
    print(
        f"{options.device}, {torch.get_num_threads()} threads, seconds of the {options.clock} "
        f"clock, torch {torch.__version__}; "
        + ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in peaks.items())
    )
    for name in options.models:
        print(f"\n{name}, a picture of {picture.shape[0]} x {picture.shape[1]} pixels")
        ours, theirs = make_detectors(MODELS[name], picture, device)
        if theirs is None:
            print("detectron2 is not importable here: ours alone")
        elif options.precision == "fp32":
            check_same(ours, theirs, picture)
        ours = ours.with_settings(precision=options.precision)
        time_both(ours, theirs, picture, options.rounds, options.pictures, clock)
        peak = max(peaks.values())
        show_parts("ours", ours, our_parts(ours.model), picture, peak, clock)
        if theirs is not None:
            parts = their_parts(theirs._net.model)
            show_parts("detectron2", theirs, parts, picture, peak, clock)


def read_photograph(path: Path | None) -> Tensor:
    """A photograph, uint8 RGB [480, 640, 3]."""
    with contextlib.ExitStack() as stack:
        file = path or stack.enter_context(matplotlib.cbook.get_sample_data("grace_hopper.jpg"))
        image = stack.enter_context(Image.open(file)).convert("RGB")
        side = min(image.width, image.height * 4 // 3)
        image = image.crop((0, 0, side, side * 3 // 4)).resize((640, 480))
        return torch.from_numpy(np.array(image))


def make_detectors(
    model: Model, picture: Tensor, device: torch.device
) -> tuple[Teacher, Any | None]:
    """Our teacher, and detectron2's where it is importable, of the same weights."""
    weights = make_weights(
        picture, depth=model.depth, has_pyramid=model.has_pyramid, num_labels=NUM_LABELS
    )
    family = dataclasses.replace(
        DETECTRON2,
        picture=dataclasses.replace(
            DETECTRON2.picture, shorter_px=model.shorter_px, longer_px=model.longer_px
        ),
    )
    config, state = read_net(weights, family)
    labels, attributes = num_names(config, state)
    net = FasterRCNN(config, num_labels=labels, num_attributes=attributes)
    net.load_state_dict(state)
    names = [str(number) for number in range(labels)]
    ours = Teacher(net.to(device), label_names=names, attribute_names=[], fingerprint="ours")
    if importlib.util.find_spec("detectron2") is None:
        return ours, None
    return ours, make_theirs(model, weights, names, device)


def make_theirs(
    model: Model, weights: dict[str, np.ndarray], names: list[str], device: torch.device
) -> Detector:
    """detectron2's own net as a teacher."""
    from stages.detector.detectron2_net import zoo_folder
    from stages.detector.detectron2_teacher import load_detectron2

    kind = "FPN" if model.has_pyramid else "C4"
    base = zoo_folder() / f"COCO-Detection/faster_rcnn_R_{model.depth}_{kind}_3x.yaml"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.yaml").write_text(
            f"_BASE_: {base}\n"
            f"MODEL: {{ROI_HEADS: {{NUM_CLASSES: {NUM_LABELS}}}}}\n"
            f"INPUT: {{MIN_SIZE_TEST: {model.shorter_px}, MAX_SIZE_TEST: {model.longer_px}}}\n"
        )
        (folder / "labels.txt").write_text("\n".join(names))
        torch.save(
            {name: torch.from_numpy(array) for name, array in weights.items()},
            folder / "weights.pth",
        )
        return load_detectron2(
            Detectron2Config(
                config_file=str(folder / "config.yaml"),
                weights=str(folder / "weights.pth"),
                labels=str(folder / "labels.txt"),
            ),
            device,
        )


def check_same(ours: Detector, theirs: Detector, picture: Tensor) -> None:
    """Stops unless both find the same objects; prints how near they are.

    Of objects that score alike the order may differ, so each is compared with the nearest of its
    label.
    """
    (some,) = ours.detect([ours.prepare(picture)])
    (other,) = theirs.detect([theirs.prepare(picture)])
    apart = np.abs(other["box"][:, None] - some["box"]).max(2)
    apart[other["label"][:, None] != some["label"]] = np.inf
    row = apart.argmin(1)
    assert len(some) == len(other) and sorted(row) == list(range(len(row))), "not the same objects"
    size = np.abs(other["feature"].astype(np.float32)).max(1, keepdims=True)
    feature = (np.abs(some["feature"][row].astype(np.float32) - other["feature"]) / size).max()
    print(
        f"the same {len(row)} objects: boxes within {apart.min(1).max():.1e} px, scores within "
        f"{np.abs(some['score'][row] - other['score']).max():.1e}, features within {feature:.1e} "
        "of their size (in half precision)"
    )
    assert apart.min(1).max() < 0.05 and feature < 2e-3


def time_both(
    ours: Detector,
    theirs: Detector | None,
    picture: Tensor,
    num_rounds: int,
    num_pictures: int,
    clock: Clock,
) -> None:
    """Prints seconds a picture of each and the ratio."""
    rounds: dict[str, list[float]] = defaultdict(list)
    for round_number in range(num_rounds + 1):  # the first is for warming up
        for name, detector, count in (("ours", ours, num_pictures), ("detectron2", theirs, 1)):
            if detector is not None:
                prepared = [detector.prepare(picture)] * count
                taken = seconds(lambda: detector.detect(prepared), clock) / count
                if round_number > 0:
                    rounds[name].append(taken)
    for name, times in rounds.items():
        print(
            f"  {name:12} {statistics.median(times):.3f} s a picture "
            f"({min(times):.3f} to {max(times):.3f})"
        )
    if theirs is not None:
        ratios = sorted(a / b for a, b in zip(rounds["detectron2"], rounds["ours"]))
        print(
            f"  detectron2 takes {statistics.median(ratios):.2f} times as long "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


class Part(NamedTuple):
    """A function of a module or class, to be replaced by one that is timed."""

    owner: Any
    name: str
    part: str


def our_parts(model: FasterRCNN) -> list[Part]:
    """Where our time goes, in order; what runs inside of another is its own part."""
    return [
        Part(model.backbone, "forward", "backbone"),
        Part(model.proposal_network, "forward", "proposals, net"),
        Part(ProposalNetwork, "propose", "proposals, choice"),
        Part(model.box_head, "forward", "box head"),
        Part(res5, "roi_align", "RoIAlign"),
        Part(pooler, "roi_align", "RoIAlign"),
        Part(model.box_predictor, "forward", "predictor"),
        Part(faster_rcnn, "detections_of_pictures", "objects, choice"),
    ]


def their_parts(model: Any) -> list[Part]:
    """The same of detectron2."""
    from detectron2.modeling.roi_heads import fast_rcnn

    heads = model.roi_heads
    is_c4 = hasattr(heads, "res5")
    return [
        Part(model.backbone, "forward", "backbone"),
        Part(model.proposal_generator.rpn_head, "forward", "proposals, net"),
        Part(model.proposal_generator, "predict_proposals", "proposals, choice"),
        Part(heads.res5 if is_c4 else heads.box_head, "forward", "box head"),
        Part(heads.pooler if is_c4 else heads.box_pooler, "forward", "RoIAlign"),
        Part(heads.box_predictor, "forward", "predictor"),
        Part(fast_rcnn, "fast_rcnn_inference", "objects, choice"),
    ]


def show_parts(
    name: str, detector: Detector, parts: Sequence[Part], picture: Tensor, peak: float, clock: Clock
) -> None:
    """Prints seconds and arithmetic of each part of one picture, and how near `peak` (floating
    point operations a second) it comes."""
    prepared = [detector.prepare(picture)]
    detector.detect(prepared)
    with stopwatch(parts, clock) as spent:
        taken = seconds(lambda: detector.detect(prepared), clock)
    with FlopCounterMode(display=False) as counter:
        with stopwatch(parts, counter.get_total_flops) as flops:
            detector.detect(prepared)
    whole = counter.get_total_flops()
    print(
        f"  {name}: {whole / 1e9:.0f} GFLOP, {whole / peak:.3f} s at the peak, took {taken:.3f} s"
    )
    for part in [*dict.fromkeys(part.part for part in parts), REST]:
        one = taken - sum(spent.values()) if part == REST else spent[part]
        work = whole - sum(flops.values()) if part == REST else flops[part]
        print(f"    {part:20} {one:7.3f} s {work / 1e9:8.1f} GFLOP {work / peak / one:5.0%} of it")


@contextlib.contextmanager
def stopwatch(parts: Sequence[Part], now: Callable[[], float]) -> Iterator[dict[str, float]]:
    """Counts what passes of `now` in each part, without the parts that run inside of it."""
    passed: dict[str, float] = defaultdict(float)
    inside: list[float] = []  # of each open part: what passed in parts inside of it

    def timed(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            began = now()
            inside.append(0.0)
            result = function(*given, **named)
            whole = now() - began
            passed[part] += whole - inside.pop()
            if inside:
                inside[-1] += whole
            return result

        return run

    with contextlib.ExitStack() as stack:
        for owner, name, part in parts:
            stack.enter_context(mock.patch.object(owner, name, timed(getattr(owner, name), part)))
        yield passed


def measure_peaks(device: torch.device, clock: Clock) -> dict[str, float]:
    """Floating point operations a second of a large product and of convolutions like the nets'."""
    square = torch.randn(2048, 2048, device=device)
    feature = torch.randn(64, 512, 14, 14, device=device).to(memory_format=torch.channels_last)
    weight = torch.randn(512, 512, 3, 3, device=device).to(memory_format=torch.channels_last)
    variants = {
        "matrix product": (lambda: square @ square, 2 * 2048**3),
        "3x3 convolution": (
            lambda: functional.conv2d(feature, weight, padding=1),
            2 * 64 * 14 * 14 * 512 * 512 * 9,
        ),
    }
    return {
        name: work / min(seconds(variant, clock) for _ in range(8))
        for name, (variant, work) in variants.items()
    }


if __name__ == "__main__":
    main()
