"""From pixels to cells: ResNet, 2x2 pooling, 1x1 projection, 2-D sine positions.

The grid of SOHO (arXiv 2104.03135, section 3.1) and KD-VLP (arXiv 2109.10504): one cell for 64 x
64 pixels with a full ResNet; fewer stages give finer cells.
Letters: N pictures, R rows and S columns of the grid, C = R x S cells, D hidden size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import ResNetConfig, ResNetModel
from transformers.models.resnet.modeling_resnet import (
    ResNetBasicLayer,
    ResNetBottleNeckLayer,
    ResNetConvLayer,
    ResNetStage,
)

from boxless.errors import BoxlessError
from stages.student.vision.batch_norm import Policy, replace_batch_norms
from stages.student.vision.padding import Canvases, canvas_px


class Grid(nn.Module):
    """Pictures in, a row of cells each out.

    `frozen_stages` and `batch_norm` as in StudentConfig; `bias` False where a BatchNorm follows.
    Pictures are to be padded to multiples of `pad_px`; with `drop_edge` that is the CNN's stride,
    not the cell's. `pooling` is the side of the max pooling after the CNN, 1 for none. `stages`,
    from the end and with -1 last, are those whose outputs are a cell's channels, side by side.
    Raises ValueError on another activation than ReLU: max pooling reads the zeros beyond a picture.
    """

    def __init__(
        self,
        resnet: ResNetConfig,
        hidden_size: int,
        *,
        frozen_stages: int = 0,
        batch_norm: Policy = "local",
        bias: bool = True,
        drop_edge: bool = False,
        pooling: int = 2,
        stages: Sequence[int] = (-1,),
    ) -> None:
        super().__init__()
        if resnet.hidden_act != "relu":
            raise BoxlessError(f"resnet.hidden_act: got {resnet.hidden_act}, expected relu")
        self.resnet = ResNetModel(resnet)
        replace_batch_norms(self.resnet, batch_norm)
        for block in self._blocks():
            # What calls a block (hooks, activation checkpointing) continues to call it.
            block.forward = functools.partial(_residual, block)
        self.pool = nn.MaxPool2d(pooling)
        self.stages = tuple(stages)
        widths = list(resnet.hidden_sizes or ())
        self.stage_widths = [widths[stage] for stage in self.stages]
        self.project = nn.Conv2d(sum(self.stage_widths), hidden_size, 1, bias=bias)
        self.cell_px = cell_size_px(resnet, pooling)
        self.pad_px = self.cell_px // pooling if drop_edge else self.cell_px
        self.frozen_stages, self.batch_norm = frozen_stages, batch_norm
        self._compiled: Callable[..., torch.Tensor] | None = None
        for part in self._frozen():
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> Grid:
        """As everywhere, but frozen parts stay in evaluation mode. Training ends what
        `compile_for_scoring` began."""
        super().train(mode)
        if mode:
            self._compiled = None
        for part in self._frozen():
            part.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        frozen: list[nn.Module] = []
        if self.frozen_stages:
            frozen += [self.resnet.embedder, *self.resnet.encoder.stages[: self.frozen_stages]]
        if self.batch_norm == "frozen":
            frozen += [m for m in self.resnet.modules() if isinstance(m, _BatchNorm)]
        return frozen

    def _blocks(self) -> Iterator[nn.Module]:
        for stage in self.resnet.encoder.stages:
            yield from _blocks_of(stage)

    def forward(
        self,
        pixels: torch.Tensor,
        sizes_px: torch.Tensor | None = None,
        fills_canvas: bool | None = None,
    ) -> torch.Tensor:
        """pixels [N, 3, H, W], H and W multiples of `pad_px` -> features [N, R, S, D].

        With sizes_px [N, 2], height and width before padding, a picture has the cells that it has
        alone, whatever else is in the batch. Without, all of the tensor is taken for picture.
        fills_canvas: whether every picture's canvas is the tensor; None to look.
        A BatchNorm that learns takes its statistics from all places, those beyond canvases too.
        """
        pixels, canvases = self._cut(pixels, sizes_px, fills_canvas)
        if self._compiled and not canvases:
            return self._compiled(pixels)
        return self._features(pixels, canvases)

    def maps(self, pixels: torch.Tensor, sizes_px: torch.Tensor | None = None) -> torch.Tensor:
        """What the CNN makes of pictures as in `forward`, pooled, before the projection to cells:
        [N, X, R, S]."""
        return self._maps(*self._cut(pixels, sizes_px))

    def cells_of(self, maps: torch.Tensor) -> torch.Tensor:
        """`forward`'s features [N, R, S, D] from `maps` [N, X, R, S]."""
        return self.project(maps).permute(0, 2, 3, 1)

    def _cut(
        self,
        pixels: torch.Tensor,
        sizes_px: torch.Tensor | None,
        fills_canvas: bool | None = None,
    ) -> tuple[torch.Tensor, Canvases | None]:
        """The pixels with zeros beyond each picture's canvas, and canvases unless all are full."""
        canvases = None
        if sizes_px is not None:
            height, width = pixels.shape[2:]
            canvases = Canvases(
                sizes_px,
                height_px=height,
                width_px=width,
                pad_px=self.pad_px,
                all_full=fills_canvas,
            )
            if canvases.all_full:
                canvases = None
            else:
                pixels = pixels * canvases.inside(height, width)
        return pixels, canvases

    def compile_for_scoring(self) -> None:
        """Let `torch.compile` run the CNN from here on.

        For a student that only answers, without gradients: weights are laid out once, and what
        follows a convolution is done within it (docs/speed.md). The first picture waits for the
        compiler, and so do the first ones of another height, width and number, a few times in all.
        A batch of unlike canvases takes the plain way. The weights must not change from here on;
        `train()` goes back to the plain way, and a copy has not left it. Raises RuntimeError in
        training.
        """
        if self.training:
            raise RuntimeError("compile_for_scoring: got a CNN in training, call eval() first")
        compiled = torch.compile(self._features)

        def run(pixels: torch.Tensor) -> torch.Tensor:
            # As an option of torch.compile it comes too late: tracing reads it first.
            with torch._inductor.config.patch(freezing=True), torch.no_grad():
                return compiled(pixels)

        self._compiled = run

    def __getstate__(self) -> dict[str, Any]:
        """What a copy, or a pickle for another process, begins with."""
        return {**self.__dict__, "_compiled": None}

    def _features(self, pixels: torch.Tensor, canvases: Canvases | None = None) -> torch.Tensor:
        return self.cells_of(self._maps(pixels, canvases))

    def _maps(self, pixels: torch.Tensor, canvases: Canvases | None = None) -> torch.Tensor:
        stem = self.resnet.embedder
        x = stem.pooler(_convolve(stem.embedder, _laid_out(pixels, stem), canvases))
        x = canvases.keep(x) if canvases else x
        outputs = []
        for stage in self.resnet.encoder.stages:
            for block in _blocks_of(stage):
                x = block(_laid_out(x, block), canvases)
            outputs.append(x)
        # Every stage halves the map of the one before.
        taken = [F.avg_pool2d(outputs[n], 2 ** (-1 - n)) if n < -1 else x for n in self.stages]
        return self.pool(torch.cat(taken, dim=1) if len(taken) > 1 else x)


def _blocks_of(stage: nn.Module) -> nn.Sequential:
    assert isinstance(stage, ResNetStage)
    return stage.layers


def _laid_out(x: torch.Tensor, part: nn.Module) -> torch.Tensor:
    """x [N, D, H, W] in the memory format in which `part` runs fastest: channels last.

    On a CPU that is left to parts that do not learn: there BatchNorm over channels last adds up its
    statistics one by one, a hundred times less exactly.
    """
    last = x.is_cuda or not part.training
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _convolve(layer: nn.Module, x: torch.Tensor, canvases: Canvases | None) -> torch.Tensor:
    """`layer(x)` of a ResNetConvLayer, zero beyond the canvases."""
    assert isinstance(layer, ResNetConvLayer)
    x = _normalised(layer, x)
    return (canvases.keep(x) if canvases else x).relu_()


def _normalised(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Convolution and BatchNorm of a ResNetConvLayer or ResNetShortCut; as one convolution, with
    the normalisation in its weights, where nothing learns."""
    convolution, norm = layer.convolution, layer.normalization
    if norm.training or (torch.is_grad_enabled() and convolution.weight.requires_grad):
        return norm(convolution(x))
    scale = norm.weight.float() * (norm.running_var + norm.eps).rsqrt()
    weight = (convolution.weight * scale[:, None, None, None]).to(x.dtype)
    bias = (norm.bias.float() - norm.running_mean * scale).to(x.dtype)
    return F.conv2d(x, weight, bias, convolution.stride, convolution.padding)


def _residual(block: nn.Module, x: torch.Tensor, canvases: Canvases | None = None) -> torch.Tensor:
    """`block(x)` of a basic or bottleneck block, zero beyond the canvases."""
    assert isinstance(block, (ResNetBasicLayer, ResNetBottleNeckLayer))
    *layers, last = block.layer
    changed = x
    for layer in layers:
        changed = _convolve(layer, changed, canvases)
    changed = _normalised(last, changed)
    is_same = isinstance(block.shortcut, nn.Identity)
    changed += x if is_same else _normalised(block.shortcut, x)
    return (canvases.keep(changed) if canvases else changed).relu_()


def cell_size_px(resnet: ResNetConfig, pooling: int = 2) -> int:
    """Side of a cell in pixels of the resized picture: the CNN's stride times the pooling."""
    first = 2 if resnet.downsample_in_first_stage else 1
    return 4 * first * 2 ** (len(resnet.depths or ()) - 1) * pooling


def cells_inside(
    sizes_px: torch.Tensor, rows: int, columns: int, *, cell_px: int, pad_px: int
) -> torch.Tensor:
    """Which cells a picture has of its own: [N, 2] height, width -> bool [N, C].

    Those that lie wholly in its canvas. Where pictures are padded to whole cells that is every cell
    whose first pixel lies in the picture. Rows and columns have their own sizes (SOHO's released
    code uses the height for both).
    """
    own = canvas_px(sizes_px, pad_px) // cell_px
    down = torch.arange(rows, device=sizes_px.device) < own[:, :1]
    across = torch.arange(columns, device=sizes_px.device) < own[:, 1:]
    return (down[:, :, None] & across[:, None, :]).flatten(1)


def cells_of_boxes(
    boxes: torch.Tensor,
    rows: int,
    columns: int,
    cell_px: int,
    min_overlap: float | None = None,
) -> torch.Tensor:
    """Box to grid: boxes [O, 4], xyxy in pixels of the resized picture -> bool [O, C].

    A cell belongs to a box that covers at least `min_overlap` of it, and any of it with 0; with
    None, to one that holds its centre. A box that has no cell so gets that in which its own centre
    lies, so that every object has at least one (ours: neither paper says).
    """
    if min_overlap is None:
        x = (torch.arange(columns) + 0.5) * cell_px
        y = (torch.arange(rows) + 0.5) * cell_px
        in_x = (x >= boxes[:, 0:1]) & (x < boxes[:, 2:3])
        in_y = (y >= boxes[:, 1:2]) & (y < boxes[:, 3:4])
        cells = (in_y[:, :, None] & in_x[:, None, :]).flatten(1)
    else:
        covered = covered_shares(boxes, rows, columns, cell_px)
        cells = (covered > 0) & (covered >= min_overlap)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 / cell_px
    column = centre[:, 0].long().clamp(0, columns - 1)
    row = centre[:, 1].long().clamp(0, rows - 1)
    own = nn.functional.one_hot(row * columns + column, rows * columns).bool()
    return torch.where(cells.any(dim=1, keepdim=True), cells, own)


def covered_shares(boxes: torch.Tensor, rows: int, columns: int, cell_px: int) -> torch.Tensor:
    """What share of each cell lies in each box: boxes [O, 4] as above -> float [O, C], 0 to 1."""

    def lengths(low: torch.Tensor, high: torch.Tensor, num_cells: int) -> torch.Tensor:
        start = torch.arange(num_cells) * cell_px
        return (high.clamp(max=start + cell_px) - low.maximum(start)).clamp(min=0) / cell_px

    across = lengths(boxes[:, 0:1], boxes[:, 2:3], columns)
    down = lengths(boxes[:, 1:2], boxes[:, 3:4], rows)
    return (down[:, :, None] * across[:, None, :]).flatten(1)


def region_weights(
    boxes: torch.Tensor,
    rows: int,
    columns: int,
    cell_px: int,
    *,
    min_overlap: float | None = None,
    pooling: Literal["mean", "overlap"] = "mean",
) -> torch.Tensor:
    """What each cell counts in each object: float [O, C], 0 outside of its cells, sum 1 a row.

    The cells are those of `cells_of_boxes`. With pooling `mean` all of them count the same, with
    `overlap` as much as the box covers of them, which is RoIAlign's mean with cells that are
    constant inside.
    """
    cells = cells_of_boxes(boxes, rows, columns, cell_px, min_overlap).float()
    if pooling == "overlap":
        covered = cells * covered_shares(boxes, rows, columns, cell_px)
        cells = torch.where(covered.any(dim=1, keepdim=True), covered, cells)
    return cells / cells.sum(dim=1, keepdim=True)


def sine_positions(
    rows: int, columns: int, hidden_size: int, device: torch.device | None = None
) -> torch.Tensor:
    """2-D sine position embedding of DETR (arXiv 2005.12872): float [C, D].

    The first half of the channels codes the row, the second the column, each as sine and cosine
    pairs of wavelengths 2 pi to 20 pi thousand, in cells.
    """
    quarter = hidden_size // 4
    rate = torch.exp(-math.log(10_000) * torch.arange(quarter, device=device) / quarter)
    angles = [torch.arange(n, device=device)[:, None] * rate for n in (rows, columns)]
    row, column = (torch.cat([a.sin(), a.cos()], dim=1) for a in angles)
    return torch.cat(
        [
            row[:, None, :].expand(rows, columns, 2 * quarter),
            column[None, :, :].expand(rows, columns, 2 * quarter),
        ],
        dim=2,
    ).flatten(0, 1)
