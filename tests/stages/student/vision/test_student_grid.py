"""Boxes to cells, padding, positions, and the pictures that come in."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pretrain_fixtures import TINY, tiny_student
from transformers import ResNetConfig

from sharding.format.resize import Resize
from stages.student.outputs import Cells
from stages.student.vision.grid import (
    Grid,
    cell_size_px,
    cells_inside,
    cells_of_boxes,
    covered_shares,
    region_weights,
    sine_positions,
)
from stages.student.vision.image_transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    load_picture,
    normalise,
    stack_bytes,
    stack_pictures,
)

TOKENS = torch.tensor([[2, 7, 8, 9, 3]])


def test_boxes_to_cells_by_hand() -> None:
    """Oracle: drawn on paper, a 2 x 3 grid of 10 px cells with centres at 5, 15, 25 and 5, 15."""
    boxes = {
        (0, 0, 30, 20): "111 111",
        (5, 5, 15, 15): "100 000",  # the left and upper edge belong to a box, the others do not
        (4.9, 0, 15.1, 16): "110 110",
        (6, 6, 14, 14): "100 000",  # holds no centre: the cell of its own centre (10, 10) ...
        (11, 11, 14, 14): "000 010",
        (28, 2, 30, 3): "001 000",
        (25, 15, 25, 15): "000 001",  # no area
        (90, 90, 95, 95): "000 001",  # beyond the grid: the nearest cell
    }
    got = cells_of_boxes(torch.tensor(list(boxes)), 2, 3, 10)
    for box, cells, wanted in zip(boxes, got.tolist(), boxes.values()):
        if box == (6, 6, 14, 14):
            wanted = "000 010"  # ... whose lower and right edges belong to the next
        assert cells == [c == "1" for c in wanted.replace(" ", "")], box


def test_boxes_to_cells_are_those_of_a_loop() -> None:
    """Oracle: the rule cell by cell in plain Python, on random boxes, some thin, some outside."""
    random = np.random.default_rng(0)
    corners = random.uniform(-10, 100, (200, 2, 2))
    corners[::3, 1] = corners[::3, 0] + random.uniform(0, 6, (67, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1).astype(np.float32)
    rows, columns, side = 5, 4, 16
    got = cells_of_boxes(torch.from_numpy(boxes), rows, columns, side)
    for box, cells in zip(boxes.tolist(), got.tolist()):
        wanted = [
            box[0] <= (c + 0.5) * side < box[2] and box[1] <= (r + 0.5) * side < box[3]
            for r in range(rows)
            for c in range(columns)
        ]
        if not any(wanted):
            c, r = (math.trunc((box[i] + box[i + 2]) / 2 / side) for i in (0, 1))
            c, r = min(max(c, 0), columns - 1), min(max(r, 0), rows - 1)
            wanted[r * columns + c] = True
        assert cells == wanted, box


def test_shares_of_cells_by_hand() -> None:
    """Oracle: drawn on paper, as above: a box from (5, 0) to (30, 14) covers half of the first
    column's width, and four tenths of the second row's height."""
    got = covered_shares(torch.tensor([[5.0, 0, 30, 14], [90, 90, 99, 99]]), 2, 3, 10)
    assert got[0].tolist() == pytest.approx([0.5, 1, 1, 0.2, 0.4, 0.4])
    assert not got[1].any()


def test_cells_by_overlap() -> None:
    """Oracle: by hand on the same box. Any overlap takes all six, half of a cell the first row,
    more than that two of it; a box that covers too little gets the cell of its own centre."""
    boxes = torch.tensor([[5.0, 0, 30, 14], [8, 8, 13, 13], [20, 10, 20, 10]])
    for least, wanted in (
        (0.0, ("111 111", "110 110", "000 001")),
        (0.5, ("111 000", "000 010", "000 001")),
        (0.6, ("011 000", "000 010", "000 001")),
    ):
        got = cells_of_boxes(boxes, 2, 3, 10, least)
        for cells, expected in zip(got.tolist(), wanted):
            assert cells == [c == "1" for c in expected.replace(" ", "")], (least, expected)


@pytest.mark.parametrize("pooling", ["mean", "overlap"])
@pytest.mark.parametrize("least", [None, 0.0, 0.7])
def test_weights_of_every_object_sum_to_one(least: float | None, pooling: Any) -> None:
    """Oracle: the sum, on random boxes, some outside."""
    boxes = torch.rand(50, 4, generator=torch.Generator().manual_seed(0)) * 40 - 5
    boxes[:, 2:] += boxes[:, :2]
    got = region_weights(boxes, 2, 3, 10, min_overlap=least, pooling=pooling)
    assert (got >= 0).all()
    torch.testing.assert_close(got.sum(dim=1), torch.ones(50))


def test_weights_of_cells() -> None:
    """Oracle: by hand. The mean gives every cell the same, whatever the box covers of it; by
    overlap each has its share of what is covered; without area the one cell has it all."""
    boxes = torch.tensor([[5.0, 0, 30, 14], [20, 10, 20, 10]])
    mean = region_weights(boxes, 2, 3, 10, min_overlap=0.0)
    assert mean.tolist() == [pytest.approx([1 / 6] * 6), [0, 0, 0, 0, 0, 1]]
    overlap = region_weights(boxes, 2, 3, 10, min_overlap=0.0, pooling="overlap")
    shares = [value / 3.5 for value in (0.5, 1, 1, 0.2, 0.4, 0.4)]
    assert overlap.tolist() == [pytest.approx(shares), [0, 0, 0, 0, 0, 1]]
    centre = region_weights(boxes, 2, 3, 10, pooling="overlap")
    assert centre[0].tolist() == pytest.approx([0.2, 0.4, 0.4, 0, 0, 0])


def test_no_boxes_no_cells() -> None:
    """Oracle: shapes."""
    assert cells_of_boxes(torch.zeros(0, 4), 2, 3, 10).shape == (0, 6)


@pytest.mark.parametrize(
    "height, width, wanted",
    [
        (48, 64, "1111 1111 1111"),
        (48, 33, "1110 1110 1110"),  # landscape grid, narrow picture: 33 px need three columns
        (32, 64, "1111 1111 0000"),
        (17, 16, "1000 1000 0000"),
        (1, 1, "1000 0000 0000"),
    ],
)
def test_cells_inside_by_hand(height: int, width: int, wanted: str) -> None:
    """Oracle: by hand on a 3 x 4 grid of 16 px cells; a cell counts from its first pixel on. Height
    and width have their own sizes (SOHO's code takes the height for both)."""
    got = cells_inside(torch.tensor([[height, width]]), 3, 4, cell_px=16, pad_px=16)[0]
    assert got.tolist() == [c == "1" for c in wanted.replace(" ", "")]


def test_portrait_and_landscape_in_one_batch() -> None:
    """Oracle: 20 x 40 and 40 x 20 pixels share a canvas of 48 x 48; each sees its own 2 x 3 and
    3 x 2 cells, and the padding is zero after normalisation."""
    white = np.full((20, 40, 3), 255, np.uint8)
    pictures = stack_pictures([white, white.transpose(1, 0, 2)], multiple_px=16)
    assert pictures.pixels.shape == (2, 3, 48, 48)
    assert pictures.sizes_px.tolist() == [[20, 40], [40, 20]]
    for pixels, (height, width) in zip(pictures.pixels, pictures.sizes_px.tolist()):
        for channel, mean, std in zip(pixels, IMAGENET_MEAN, IMAGENET_STD):
            assert channel[:height, :width].numpy() == pytest.approx((1 - mean) / std, rel=1e-5)
        assert not pixels[:, height:].any() and not pixels[:, :, width:].any()
    inside = cells_inside(pictures.sizes_px, 3, 3, cell_px=16, pad_px=16)
    assert inside.view(2, 3, 3).long().tolist() == [
        [[1, 1, 1], [1, 1, 1], [0, 0, 0]],
        [[1, 1, 0], [1, 1, 0], [1, 1, 0]],
    ]


def test_bytes_are_normalised_on_the_way_to_the_cnn() -> None:
    """Oracle: one picture at a time, (x / 255 - mean) / std by numpy, to the bit, and the cells of
    pixels that were normalised before."""
    random = np.random.default_rng(0)
    shapes = [(20, 40, 3), (33, 17, 3)]
    arrays = [random.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    pictures = stack_bytes(arrays, multiple_px=16)
    assert pictures.pixels.dtype == torch.uint8
    normalised = normalise(pictures.pixels, pictures.sizes_px)
    mean, std = (np.array(values, np.float32) for values in (IMAGENET_MEAN, IMAGENET_STD))
    for pixels, array in zip(normalised, arrays):
        wanted = np.zeros((48, 48, 3), np.float32)
        wanted[: array.shape[0], : array.shape[1]] = (array.astype(np.float32) / 255 - mean) / std
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), wanted)
    student = tiny_student()
    cells, same = (
        student.encode_image(p, pictures.sizes_px) for p in (pictures.pixels, normalised)
    )
    assert torch.equal(cells.features, same.features)


@pytest.mark.parametrize(
    "size, wanted",
    [
        ((800, 600), (800, 600)),
        ((400, 300), (800, 600)),
        ((1000, 300), (1000, 300)),
        ((2000, 600), (1000, 300)),
        ((600, 2000), (300, 1000)),
        ((5000, 1), (1000, 1)),
    ],
)
def test_resizing_by_hand(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Oracle: shorter side 600, unless the longer would exceed 1000; never below a pixel."""
    assert Resize(shorter_px=600, longer_px=1000).size(*size) == wanted


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "RGB"])
def test_pictures_of_any_mode_come_as_rgb(mode: str) -> None:
    """Oracle: a grey picture, saved without loss in each mode, comes back grey, resized 2 to 1."""
    data = io.BytesIO()
    Image.new("L", (40, 20), 100).convert(mode).save(data, "PNG")
    array = load_picture(data.getvalue(), shorter_px=10, longer_px=99)
    assert array.shape == (10, 20, 3) and array.dtype == np.uint8
    assert np.abs(array.astype(int) - 100).max() <= 1


@pytest.mark.parametrize(
    "stages, first, wanted", [(4, False, 64), (3, False, 32), (2, False, 16), (1, True, 16)]
)
def test_a_cell_is_the_stride_times_the_pooling(stages: int, first: bool, wanted: int) -> None:
    """Oracle: 4 (stem) x 2 for every stage after the first (and for it, if asked) x 2 (pooling);
    the network's output has that many cells."""
    config = ResNetConfig(
        embedding_size=4,
        hidden_sizes=[4] * stages,
        depths=[1] * stages,
        layer_type="basic",
        downsample_in_first_stage=first,
    )
    assert cell_size_px(config) == wanted
    with torch.no_grad():
        assert Grid(config, 8)(torch.zeros(1, 3, 2 * wanted, 3 * wanted)).shape == (1, 2, 3, 8)
    fine = Grid(config, 8, pooling=1)
    assert fine.cell_px == fine.pad_px == wanted // 2
    with torch.no_grad():
        assert fine(torch.zeros(1, 3, 2 * wanted, 3 * wanted)).shape == (1, 4, 6, 8)


def test_sine_positions_by_hand() -> None:
    """Oracle: DETR's formula entry by entry: sine, then cosine, of row / 10000^(i / quarter), then
    the same of the column. So no two cells are alike."""
    got = sine_positions(3, 4, 16)
    for r in range(3):
        for c in range(4):
            angles = [n / 10_000 ** (i / 4) for n in (r, c) for i in range(4)]
            row, column = angles[:4], angles[4:]
            wanted = [f(a) for part in (row, column) for f in (math.sin, math.cos) for a in part]
            assert got[4 * r + c].tolist() == pytest.approx(wanted, abs=1e-6)
    distances = torch.cdist(got, got) + 9 * torch.eye(12)
    assert distances.min() > 0.1


@torch.no_grad()
def _seen(*arrays: np.ndarray) -> tuple[Cells, torch.Tensor]:
    """The cells of some pictures, and the first one's match with a text."""
    student = tiny_student()
    pictures = stack_pictures(arrays, multiple_px=student.grid.cell_px)
    cells = student.encode_image(pictures.pixels, pictures.sizes_px)
    hidden = student.fuse(cells, picture=torch.tensor([0]), input_ids=TOKENS)
    return cells, student.itm_head(hidden.text[:, 0])


def _noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_a_picture_alone_is_the_same_among_others_of_its_size() -> None:
    """Oracle: the cells and the score of the picture alone."""
    alone, score = _seen(_noise(27, 41))
    among, same = _seen(_noise(27, 41), _noise(27, 41, 1), _noise(30, 44, 2))
    torch.testing.assert_close(among.features[0], alone.features[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(same, score, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_padding_is_not_attended_to() -> None:
    """Oracle: whatever stands in cells of the padding, and however far a text is padded, the
    outputs at pieces and at cells inside stay the same."""
    student = tiny_student()
    inside = torch.tensor([[True, True, True, False, False, False]])
    features = torch.randn(1, 6, TINY.hidden_size)
    outputs = []
    for noise, num_pads in ((0.0, 0), (50.0, 0), (50.0, 6)):
        noisy = torch.where(inside[..., None], features, noise * torch.randn_like(features))
        tokens = torch.nn.functional.pad(TOKENS, (0, num_pads), value=student.pad_id)
        cells = Cells(features=noisy, inside=inside, rows=2, columns=3)
        hidden = student.fuse(cells, picture=torch.tensor([0]), input_ids=tokens)
        outputs.append(torch.cat([hidden.text[:, :5], hidden.cells[:, :3]], dim=1))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(outputs[2], outputs[0], rtol=1e-5, atol=1e-6)
