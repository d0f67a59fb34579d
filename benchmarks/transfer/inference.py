"""Time from one picture and one text to a match score: by a detector's regions, and end to end.

    python -m benchmarks.transfer.inference [--rounds 3] [--threads 2] [--proposals 1000 300]
        [--regions 36] [--photograph FILE] [--size full|tiny]

SOHO's headline (arXiv 2104.03135): ten times faster than region-based inference. Here the regions
are those of our teacher, R101-C4 with 1600 classes, and go with a text of 16 pieces through a
12-layer Transformer of width 768; the students are ResNet-101 with 12 layers and ResNet-18 with 3,
of the same Transformer layers, each as it is and with its CNN through torch.compile
(`Grid.compile_for_scoring`). Same JPEG, same 600 x 800 pixels, one picture at a time, single
precision; weights are made up, which changes no kernel. All take turns within a round; printed are
medians of the clock and of all threads (CPU), the parts of one more pass, and the ratio, which
hangs on the number of proposals: 1000 are detectron2's, 300 the first bottom-up attention's.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder

from benchmarks.clocks import wall_clock
from benchmarks.detector.detector_weights import make_weights
from benchmarks.detector.teacher import Part, measure_peaks, our_parts, read_photograph, stopwatch
from benchmarks.training.soho_step import RES18, SIZES, Took, measured
from stages.detector.checkpoints.families import VG_D2
from stages.detector.checkpoints.weights import num_names, read_net
from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.predictor import Teacher
from stages.student.build import make_student
from stages.student.config import StudentConfig
from stages.student.network import Student
from stages.student.vision.image_transforms import load_picture, stack_pictures

CPU = torch.device("cpu")
NUM_TOKENS, VOCAB_SIZE = 16, 30_522
PICTURE_PX = {"shorter_px": 600, "longer_px": 1000}
BOX_SIZE = 7
"""Numbers of a region's location, as UNITER's (arXiv 1909.11740): corners, sides, area."""


class Size(NamedTuple):
    """The detector's depth, stem width and labels; the Transformer; the students by name."""

    depth: int
    width: int
    num_labels: int
    bert: BertConfig
    students: dict[str, StudentConfig]


SIZES_BY_NAME = {
    "full": Size(
        101,
        64,
        1600,
        BertConfig(num_hidden_layers=12, vocab_size=VOCAB_SIZE),
        {
            "student R101 + 12": dataclasses.replace(SIZES["r101"].student, **PICTURE_PX),
            "student R18 + 3": dataclasses.replace(RES18, **PICTURE_PX),
        },
    ),
    "tiny": Size(
        50,
        8,
        6,
        BertConfig(
            num_hidden_layers=2,
            hidden_size=32,
            num_attention_heads=2,
            intermediate_size=64,
            vocab_size=VOCAB_SIZE,
        ),
        {"student tiny": SIZES["tiny"].student},
    ),
}


class RegionModel(nn.Module):
    """Regions and a text through one Transformer to two logits, as UNITER and its like do."""

    def __init__(self, bert: BertConfig, feature_size: int) -> None:
        super().__init__()
        bert._attn_implementation = "sdpa"
        self.words = nn.Embedding(bert.vocab_size, bert.hidden_size)
        self.features = nn.Linear(feature_size, bert.hidden_size)
        self.places = nn.Linear(BOX_SIZE, bert.hidden_size)
        self.fusion = BertEncoder(bert)
        self.match = nn.Linear(bert.hidden_size, 2)

    def forward(
        self, tokens: torch.Tensor, features: torch.Tensor, boxes: torch.Tensor
    ) -> torch.Tensor:
        """tokens [1, T], features [R, F], boxes [R, 4] as parts of the picture -> logits [1, 2]."""
        sides = boxes[:, 2:] - boxes[:, :2]
        places = torch.cat([boxes, sides, sides.prod(1, keepdim=True)], dim=1)
        regions = self.features(features) + self.places(places)
        hidden = torch.cat([self.words(tokens), regions[None]], dim=1)
        return self.match(self.fusion(hidden).last_hidden_state[:, 0])


class ByRegions:
    """JPEG, detector, the best regions, Transformer."""

    def __init__(
        self, size: Size, picture: torch.Tensor, num_proposals: int, num_regions: int
    ) -> None:
        weights = make_weights(
            picture,
            depth=size.depth,
            has_pyramid=False,
            num_labels=size.num_labels,
            width=size.width,
        )
        family = dataclasses.replace(
            VG_D2, proposals=dataclasses.replace(VG_D2.proposals, num_proposals=num_proposals)
        )
        config, state = read_net(weights, family)
        labels, attributes = num_names(config, state)
        net = FasterRCNN(config, num_labels=labels, num_attributes=attributes)
        net.load_state_dict(state)
        self.teacher = Teacher(
            net,
            label_names=[str(n) for n in range(labels)],
            attribute_names=[],
            fingerprint="made up",
        )
        self.fusion = RegionModel(size.bert, self.teacher.feature_size).eval()
        self.num_regions = num_regions
        self.num_found = 0

    def decode(self, jpeg: bytes) -> torch.Tensor:
        """To uint8 RGB [H, W, 3]."""
        with Image.open(io.BytesIO(jpeg)) as image:
            return torch.from_numpy(np.array(image.convert("RGB")))

    def score(self, jpeg: bytes, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [1, 2]."""
        picture = self.decode(jpeg)
        (found,) = self.teacher.detect([self.teacher.prepare(picture)])
        found = found[: self.num_regions]
        self.num_found = len(found)
        height, width = picture.shape[:2]
        boxes = torch.from_numpy(found["box"] / np.array([width, height] * 2, np.float32))
        return self.fusion(tokens, torch.from_numpy(found["feature"].astype(np.float32)), boxes)

    def parts(self) -> list[Part]:
        """Where its time goes."""
        return [
            Part(self, "decode", "decode"),
            Part(self.teacher, "prepare", "resize"),
            *our_parts(self.teacher.model),
            Part(self.fusion, "forward", "Transformer"),
        ]


class EndToEnd:
    """JPEG, CNN, Transformer: of its last layer only what the score is read from."""

    def __init__(self, config: StudentConfig, *, is_compiled: bool = False) -> None:
        self.config, self.is_compiled = config, is_compiled
        self.student: Student = make_student(
            config, vocab_size=VOCAB_SIZE, pad_id=0, label_names=["thing"], feature_size=8
        ).eval()
        if is_compiled:
            self.student.grid.compile_for_scoring()

    def load(self, jpeg: bytes) -> np.ndarray:
        """Decode and resize: uint8 [H, W, 3]."""
        return load_picture(
            jpeg, shorter_px=self.config.shorter_px, longer_px=self.config.longer_px
        )

    def score(self, jpeg: bytes, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [1, 2]."""
        student = self.student
        pictures = stack_pictures([self.load(jpeg)], multiple_px=student.grid.pad_px)
        cells = student.encode_image(pictures.pixels, pictures.sizes_px)
        return student.match(cells, picture=torch.zeros(1, dtype=torch.long), input_ids=tokens)

    def parts(self) -> list[Part]:
        """Where its time goes."""
        return [
            Part(self, "load", "decode, resize"),
            Part(self.student, "encode_image", "CNN and neck"),
            Part(self.student, "match", "Transformer"),
        ]


def main() -> None:
    """Time every variant, and show the parts of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--proposals", type=int, nargs="+", default=[1000, 300])
    parser.add_argument("--regions", type=int, default=36)
    parser.add_argument("--photograph", type=Path, help="else one that comes with matplotlib")
    parser.add_argument("--size", choices=SIZES_BY_NAME, default="full")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    size, picture = SIZES_BY_NAME[options.size], read_photograph(options.photograph)
    file = io.BytesIO()
    Image.fromarray(picture.numpy()).save(file, "JPEG", quality=90)
    tokens = torch.randint(200, VOCAB_SIZE, (1, NUM_TOKENS))
    variants: dict[str, ByRegions | EndToEnd] = {
        f"{number} proposals": ByRegions(size, picture, number, options.regions)
        for number in options.proposals
    }
    for name, config in size.students.items():
        variants[name] = EndToEnd(config)
        variants[f"{name}, compiled"] = EndToEnd(config, is_compiled=True)
    print(f"CPU, {options.threads} threads, torch {torch.__version__}, {options.rounds} rounds")
    with torch.inference_mode():
        show_ratios(
            variants, lambda variant: variant.score(file.getvalue(), tokens), options.rounds
        )
        peak = max(measure_peaks(CPU, wall_clock).values())
        for name, variant in variants.items():
            show_parts(name, variant, lambda: variant.score(file.getvalue(), tokens), peak)


def show_ratios(
    variants: dict[str, ByRegions | EndToEnd],
    run: Callable[[ByRegions | EndToEnd], object],
    num_rounds: int,
) -> None:
    """Prints medians, and of each student how many times as long each detector takes."""
    took: dict[str, list[Took]] = {name: [] for name in variants}
    for number in range(num_rounds + 1):  # the first is for warming up
        for name, variant in variants.items():
            seconds = measured(lambda: run(variant), CPU)
            if number:
                took[name].append(seconds)
    for name, all_took in took.items():
        clock, cpu = (statistics.median(one[i] for one in all_took) for i in (0, 1))
        print(f"{name:29} {clock:7.2f} s, CPU {cpu:7.2f} s")
        for other, variant in variants.items():
            if isinstance(variant, ByRegions) and not isinstance(variants[name], ByRegions):
                ratios = [
                    sorted(a[i] / b[i] for a, b in zip(took[other], all_took)) for i in (0, 1)
                ]
                print(
                    f"    {other} take "
                    + ", ".join(
                        f"{statistics.median(all_of):.1f} ({all_of[0]:.1f} to {all_of[-1]:.1f})"
                        for all_of in ratios
                    )
                    + " times as long (clock, CPU)"
                )


def show_parts(
    name: str, variant: ByRegions | EndToEnd, run: Callable[[], object], peak: float
) -> None:
    """Prints where one pass goes, in seconds of all threads, and its arithmetic beside `peak`
    (floating point operations a second); what is compiled does the same arithmetic."""
    with stopwatch(variant.parts(), time.process_time) as seconds:
        whole = measured(run, CPU).cpu
    found = f", {variant.num_found} regions" if isinstance(variant, ByRegions) else ""
    print(f"{name}{found}: CPU {whole:.2f} s")
    if isinstance(variant, ByRegions) or not variant.is_compiled:
        with FlopCounterMode(display=False) as counter:
            run()
        work = counter.get_total_flops()
        print(
            f"    seconds of the clock for {work / 1e9:.0f} GFLOP at this machine's peak, "
            f"{peak / 1e9:.0f} GFLOP/s: {work / peak:.2f}"
        )
    for part, one in [*seconds.items(), ("the rest", whole - sum(seconds.values()))]:
        print(f"    {part:20} {one:7.3f} s {one / whole:5.0%}")


if __name__ == "__main__":
    main()
