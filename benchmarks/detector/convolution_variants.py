"""Variants of the full-size teacher's convolutions: memory layout, bfloat16, compilation.

    python -m benchmarks.detector.convolution_variants [--device cpu] [--depth 101] [--repeats 3]
        [--threads 0]
        [--clock wall]

Two bodies of a C4 net with random weights: the backbone on one picture of 600 x 800 pixels, and
the last blocks of res5 on 128 boxes. Each runs as the teacher runs it in "fp32" (channels last),
channels first, through torch.compile (for this one shape; another shape compiles again) and in
bfloat16. Variants take turns; printed are the least milliseconds of each, how many times as long as
ours it took, how far its answer is from ours, of the largest, and the seconds that compiling took.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.clocks import CLOCKS, Clock, seconds
from stages.detector.model.res5_head import BLOCK_BOXES_CPU
from stages.detector.model.resnet import RES5, ResNet, build_stage
from stages.detector.net_config import ResNetConfig
from stages.detector.predictor import in_precision

NUM_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
OURS = "ours: fp32, channels last"


class Variant(NamedTuple):
    """How a body is run; `precision` as in `detect.in_precision`."""

    name: str
    precision: str
    run: Callable[[Tensor], Tensor]
    given: Tensor


def main() -> None:
    """Time every variant of both bodies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--depth", type=int, choices=NUM_BLOCKS, default=101)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves PyTorch's choice")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device, clock = torch.device(options.device), CLOCKS[options.clock]
    config = ResNetConfig(num_blocks=NUM_BLOCKS[options.depth])
    width, hidden = config.stage_widths[RES5], config.stage_widths[RES5 - 1]
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    trunk = ResNet(config, num_stages=RES5)
    compare(
        f"backbone of R{options.depth}-C4, {hidden} channels out, 600 x 800 pixels",
        nn.Sequential(trunk.stem, *(trunk.get_submodule(name) for name in trunk.names)),
        torch.randn(1, 3, 600, 800),
        device,
        options.repeats,
        clock,
    )
    compare(
        f"res5 after its first block, {BLOCK_BOXES_CPU} boxes",
        build_stage(config, RES5)[1:],
        torch.randn(BLOCK_BOXES_CPU, width, 7, 7),
        device,
        options.repeats,
        clock,
    )


@torch.no_grad()
def compare(
    title: str, body: nn.Module, given: Tensor, device: torch.device, num_repeats: int, clock: Clock
) -> None:
    """Print the time of each variant of `body` on `given`."""
    print(title)
    body, given = small_branches(body.eval()).to(device), given.to(device)
    last = copy.deepcopy(body).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    given_last = given.contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(last, dynamic=False)
    variants = [
        Variant(OURS, "fp32", last, given_last),
        Variant("channels first", "fp32", body, given),
        Variant("torch.compile", "fp32", compiled, given_last),
        Variant("bfloat16", "bf16", last, given_last),
    ]
    answers: dict[str, Tensor] = {}

    def look(variant: Variant) -> None:
        with in_precision(variant.precision, device):
            answers[variant.name] = variant.run(variant.given).float()

    first = {variant.name: seconds(lambda: look(variant), clock) for variant in variants}
    taken: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for _ in range(num_repeats):
        for variant in variants:
            taken[variant.name].append(seconds(lambda: look(variant), clock))
    expected = answers[OURS]
    least = {name: min(some) for name, some in taken.items()}
    for name, answer in answers.items():
        gap = float((answer - expected).abs().max() / expected.abs().max())
        once = f", {first[name]:.1f} s at first" if "compile" in name else ""
        print(
            f"  {name:28}{least[name] * 1000:9.1f} ms{least[name] / least[OURS]:7.2f} x, "
            f"off by {gap:.1e}{once}"
        )


def small_branches(body: nn.Module) -> nn.Module:
    """`body` with the last convolution of each branch made small, so that sums do not grow."""
    for name, layer in body.named_modules():
        if name.endswith("conv3"):
            assert isinstance(layer, nn.Conv2d)
            layer.weight.data *= 0.1
    return body


if __name__ == "__main__":
    main()
