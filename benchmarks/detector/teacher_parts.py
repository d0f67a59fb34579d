"""Parts of the full-size teacher beside plain implementations: ratios within one run.

    python -m benchmarks.detector.teacher_parts [--device cpu] [--threads 0] [--repeats 5]
        [--seed 0]
        [--clock wall]

Sizes are those of a 600 x 1000 picture: a map of 38 x 63 cells of stride 16, 1000 proposals, 1600
labels. Every part is run beside plain implementations, in turn, so that a busy machine slows all;
printed are the least milliseconds of each and how many times as long as ours it took, after a check
that all answers agree. torchvision's operators are among them where torchvision is
installed and works. `--device cuda` needs a GPU.
"""

from __future__ import annotations

import argparse
import importlib
import math
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from benchmarks.clocks import CLOCKS, Clock, seconds
from stages.detector.model.postprocess import best_surviving_scores, candidates, detections
from stages.detector.net_config import ChoiceConfig
from stages.detector.ops.boxes import decode, iou
from stages.detector.ops.nms import nms
from stages.detector.ops.roi_align import roi_align
from stages.detector.ops.roi_pool import roi_pool

HEIGHT_PX, WIDTH_PX, STRIDE_PX = 600, 1000, 16
NUM_LABELS = 1600
Variants = dict[str, Callable[[], Tensor]]


def main() -> None:
    """Run every part and print a line a variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves PyTorch's choice")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    device, ops = torch.device(options.device), find_torchvision_ops()
    for title, variants in (
        ("RoIAlign, 1000 boxes, 14 x 14 bins, 1024 channels", align_variants(1024, 1, ops, device)),
        (
            "RoIAlign, 1000 boxes, every other of 14 x 14 bins, 2560 channels",
            align_variants(2560, 2, ops, device),
        ),
        ("RoIPool, 300 boxes, 14 x 14 bins, 1024 channels", pool_variants(ops, device)),
        ("NMS 0.7, 1000 of 6000 boxes, few overlap", nms_variants(6000, 0.35, ops, device)),
        ("NMS 0.7, 1000 of 12000 boxes, few overlap", nms_variants(12000, 0.35, ops, device)),
        ("NMS 0.7, 1000 of 12000 boxes, most overlap", nms_variants(12000, 0.12, ops, device)),
        ("bottom-up attention's scores, 300 proposals", score_variants(ops, device)),
        ("detections, 1000 proposals, above 0.05", detection_variants(ops, device)),
    ):
        compare(title, variants, options.repeats, CLOCKS[options.clock])


def find_torchvision_ops() -> ModuleType | None:
    """`torchvision.ops` where it works with this torch, else None."""
    try:
        return importlib.import_module("torchvision.ops")
    except (ImportError, RuntimeError, OSError):  # one built for another torch fails in any way
        return None


def compare(title: str, variants: Variants, num_repeats: int, clock: Clock) -> None:
    """Print the time of each variant; the first is ours, and the others must agree with it."""
    print(title)
    answers = {name: variant() for name, variant in variants.items()}
    ours = next(iter(variants))
    for name, answer in answers.items():
        torch.testing.assert_close(answer, answers[ours], atol=1e-4, rtol=1e-4, msg=name)
    del answers
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(num_repeats):
        for name, variant in variants.items():
            taken[name].append(seconds(variant, clock))
    least = {name: min(some) for name, some in taken.items()}
    for name, some in least.items():
        print(f"  {name:38}{some * 1000:9.1f} ms{some / least[ours]:8.1f} x")


def proposals(num: int) -> Tensor:
    """Boxes [num, 4] of sides spread evenly over the scales, within the picture."""
    picture = torch.tensor([WIDTH_PX, HEIGHT_PX], dtype=torch.float)
    sides = torch.exp(math.log(20) + torch.rand(num, 2) * math.log(600 / 20))
    sides = torch.minimum(sides, picture)
    corner = torch.rand(num, 2) * (picture - sides)
    return torch.cat([corner, corner + sides], 1)


def clustered(num: int, num_clusters: int, spread: float) -> Tensor:
    """Boxes [num, 4] around `num_clusters` others, moved by `spread` of their sides."""
    middle = proposals(num_clusters)[torch.randint(0, num_clusters, (num,))]
    sides = middle[:, 2:] - middle[:, :2]
    centers = (middle[:, :2] + middle[:, 2:]) / 2 + torch.randn(num, 2) * sides * spread
    sides = sides * torch.exp(torch.randn(num, 2) * spread)
    return torch.cat([centers - sides / 2, centers + sides / 2], 1)


def feature_map(num_channels: int, device: torch.device) -> Tensor:
    """A map [1, C, 38, 63], channels last, as our nets have it."""
    shape = (1, num_channels, -(-HEIGHT_PX // STRIDE_PX), -(-WIDTH_PX // STRIDE_PX))
    return torch.randn(shape).contiguous(memory_format=torch.channels_last).to(device)


def align_variants(
    num_channels: int, bin_step: int, ops: ModuleType | None, device: torch.device
) -> Variants:
    """RoIAlign with as many samples as a bin spans cells."""
    feature, boxes = feature_map(num_channels, device), proposals(1000).to(device)
    index = torch.zeros(len(boxes), dtype=torch.long, device=device)
    variants: Variants = {
        "ours": lambda: roi_align(
            feature,
            boxes,
            index,
            stride=STRIDE_PX,
            num_bins=14,
            sampling_ratio=0,
            bin_step=bin_step,
        )
    }
    if bin_step == 1:
        variants["cells looked up sample by sample"] = lambda: _align_by_samples(feature, boxes)
    if ops is not None:
        with_index = torch.cat([index[:, None], boxes], 1)
        variants["torchvision"] = lambda: ops.roi_align(
            feature, with_index, (14, 14), 1 / STRIDE_PX, 0, aligned=True
        )[:, :, ::bin_step, ::bin_step]
    return variants


def _align_by_samples(feature: Tensor, boxes: Tensor) -> Tensor:
    """RoIAlign a box at a time: its samples by grid_sample, then their means."""
    height, width = feature.shape[2:]
    cells = boxes / STRIDE_PX - 0.5
    pooled = []
    for left, top, right, bottom in cells.tolist():
        across, down = math.ceil((right - left) / 14), math.ceil((bottom - top) / 14)
        x = left + (torch.arange(14 * across, device=boxes.device) + 0.5) * (
            (right - left) / 14 / across
        )
        y = top + (torch.arange(14 * down, device=boxes.device) + 0.5) * (
            (bottom - top) / 14 / down
        )
        # In grid_sample's numbers -1 and 1 are the middles of the first and the last cell.
        y, x = torch.meshgrid(
            y.clamp(0, height - 1) * 2 / (height - 1) - 1,
            x.clamp(0, width - 1) * 2 / (width - 1) - 1,
            indexing="ij",
        )
        samples = torch.nn.functional.grid_sample(
            feature, torch.stack([x, y], -1)[None], align_corners=True
        )
        pooled.append(torch.nn.functional.avg_pool2d(samples, (down, across)))
    return torch.cat(pooled)


def pool_variants(ops: ModuleType | None, device: torch.device) -> Variants:
    """RoIPool as Caffe's nets have it."""
    feature, boxes = feature_map(1024, device), proposals(300).to(device)
    index = torch.zeros(len(boxes), dtype=torch.long, device=device)
    variants: Variants = {
        "ours": lambda: roi_pool(feature, boxes, index, stride=STRIDE_PX, num_bins=14)
    }
    if ops is not None:
        with_index = torch.cat([index[:, None], boxes], 1)
        variants["torchvision"] = lambda: ops.roi_pool(feature, with_index, (14, 14), 1 / STRIDE_PX)
    return variants


def nms_variants(
    num_boxes: int, spread: float, ops: ModuleType | None, device: torch.device
) -> Variants:
    """The suppression of proposals; the fewer remain, the longer is the search for 1000."""
    boxes, scores = clustered(num_boxes, 100, spread).to(device), torch.randn(num_boxes).to(device)
    groups = torch.zeros(num_boxes, dtype=torch.long, device=device)
    variants: Variants = {
        "ours": lambda: nms(boxes, scores, groups, threshold=0.7, max_kept=1000),
        "a loop over kept boxes": lambda: _nms_by_loop(boxes, scores, 0.7)[:1000],
    }
    if ops is not None:
        variants["torchvision"] = lambda: ops.nms(boxes, scores, 0.7)[:1000]
    return variants


def _nms_by_loop(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    order = scores.argsort(descending=True)
    kept: list[Tensor] = []
    while len(order) > 0 and len(kept) < 1000:
        kept.append(order[0])
        overlap = iou(boxes[order[:1]], boxes[order[1:]])[0]
        order = order[1:][overlap <= threshold]
    return torch.stack(kept)


def made_up_probabilities(num_proposals: int) -> Tensor:
    """Probabilities [P, 1600], most of them next to nothing, as trained nets give them."""
    like = 3.6 * torch.randn(60, NUM_LABELS)[torch.randint(0, 60, (num_proposals,))]
    return (like + 1.2 * torch.randn(num_proposals, NUM_LABELS)).softmax(1)


def score_variants(ops: ModuleType | None, device: torch.device) -> Variants:
    """Each of 300 proposals' best score among the labels in which it survives."""
    boxes, scores = clustered(300, 60, 0.2).to(device), made_up_probabilities(300).to(device)

    def label_by_label(suppress: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        best = scores.new_zeros(len(scores))
        for column in scores.T.contiguous():
            kept = suppress(boxes, column)
            best[kept] = torch.maximum(best[kept], column[kept])
        return best * (best >= 0.2)

    # Boxes a pixel wider and compared by >= are ours; torchvision's are neither.
    wider = boxes + boxes.new_tensor([0, 0, 1, 1])
    variants: Variants = {
        "ours, all that reach 0.2": lambda: best_surviving_scores(
            boxes, scores, iou=0.3, floor=0.2
        ),
        "ours, all": lambda: (lambda best: best * (best >= 0.2))(
            best_surviving_scores(boxes, scores, iou=0.3)
        ),
    }
    if ops is not None:
        variants["torchvision, label by label"] = lambda: label_by_label(
            lambda _, column: ops.nms(wider, column, 0.3)
        )
    return variants


def detection_variants(ops: ModuleType | None, device: torch.device) -> Variants:
    """detectron2's choice of 100 among 1000 proposals, each with a box a label, regressed."""
    proposed, scores = clustered(1000, 60, 0.2).to(device), made_up_probabilities(1000).to(device)
    deltas = (torch.randn(1000, NUM_LABELS, 4) / 2).to(device)
    weights = (10.0, 10.0, 5.0, 5.0)
    choice = ChoiceConfig(score_threshold=0.05, iou=0.5, max_objects=100)

    def ours() -> Tensor:
        proposal, label = candidates(scores, choice)
        boxes = decode(proposed[proposal], deltas[proposal, label], weights)
        return proposal[detections(boxes, scores[proposal, label], label, choice)]

    variants: Variants = {"ours": ours}
    if ops is not None:

        def by_torchvision() -> Tensor:
            boxes = decode(proposed, deltas.flatten(1), weights).view(deltas.shape)
            proposal, label = torch.nonzero(scores > choice.score_threshold, as_tuple=True)
            some, some_scores = boxes[proposal, label], scores[proposal, label]
            return proposal[ops.batched_nms(some, some_scores, label, 0.5)[:100]]

        variants["all boxes, torchvision's batched_nms"] = by_torchvision
    return variants


if __name__ == "__main__":
    main()
