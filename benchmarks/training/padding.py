"""The cost of padding that changes no score: the CNN on a padded batch, both ways in one run.

    python -m benchmarks.training.padding [--cnn resnet-18] [--rounds 5]

Two pictures share a tensor of 448 x 512 pixels; one fills 320 of its rows. Each round runs the CNN
forward and backward with its maps kept at zero beyond the smaller picture, and without, one after
the other, on one thread; CPU seconds are counted, so that other work on the machine matters little.
Printed are the medians, the median of the rounds' ratios with its spread, and how far the smaller
picture's cells are from those that it has alone, as a share of their largest value.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from stages.student.config import StudentConfig
from stages.student.vision.grid import Grid
from stages.student.vision.resnet import DEPTHS, resnet_config

WIDTH_PX, HEIGHT_PX, SMALLER_PX, HIDDEN_SIZE = 512, 448, 320, 768


def main() -> None:
    """Print the cost and what it buys."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cnn", choices=DEPTHS, default="resnet-18")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    grid = Grid(resnet_config(StudentConfig(cnn=options.cnn)), HIDDEN_SIZE)
    for name, value in grid.named_parameters():
        if name.endswith("normalization.bias"):
            torch.nn.init.normal_(value, std=0.5)  # a new BatchNorm's shift is zero, which hides it
    pixels = torch.randn(2, 3, HEIGHT_PX, WIDTH_PX)
    pixels[1, :, SMALLER_PX:] = 0
    sizes = torch.tensor([[HEIGHT_PX, WIDTH_PX], [SMALLER_PX, WIDTH_PX]])
    times = [
        (_seconds(grid, pixels, sizes), _seconds(grid, pixels, None)) for _ in range(options.rounds)
    ]
    ratios = sorted(kept / plain for kept, plain in times)
    print(
        f"{options.cnn}: kept {statistics.median(a for a, _ in times):.2f} s  plain "
        f"{statistics.median(b for _, b in times):.2f} s  ratio {statistics.median(ratios):.3f} "
        f"({ratios[0]:.3f} to {ratios[-1]:.3f})"
    )
    for way, found in (("kept", sizes), ("plain", None)):
        print(f"{way}: cells off by {_off(grid.eval(), pixels, found):.1e} of their largest value")


def _seconds(grid: Grid, pixels: torch.Tensor, sizes: torch.Tensor | None) -> float:
    began = time.process_time()
    grid(pixels, sizes).square().mean().backward()
    return time.process_time() - began


@torch.no_grad()
def _off(grid: Grid, pixels: torch.Tensor, sizes: torch.Tensor | None) -> float:
    alone = grid(pixels[1:, :, :SMALLER_PX])[0]
    among = grid(pixels, sizes)[1, : alone.shape[0]]
    return float((among - alone).abs().max() / alone.abs().max())


if __name__ == "__main__":
    main()
