"""Padding never changes a score: a pair alone, or beside larger pictures and longer texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from pretrain_fixtures import TINY, tiny_student
from transformers import ResNetConfig

from stages.pretrain.objectives.mvm import code_logits
from stages.student.config import StudentConfig
from stages.student.network import Student
from stages.student.vision.grid import Grid, cells_inside
from stages.student.vision.image_transforms import stack_pictures
from stages.student.vision.neck_config import DictionaryConfig, SohoNeckConfig

SIZES = ((27, 41), (64, 33), (32, 48), (50, 64), (64, 64))
TEXTS = ([2, 7, 3], [2, 7, 8, 9, 10, 11, 12, 3], [2, 9, 9, 3], [2, 5, 6, 8, 3], [2, 11, 3])
NECK = SohoNeckConfig(dictionary=DictionaryConfig(num_codes=8))
STUDENTS = {
    "plain": TINY,
    "bottleneck": replace(TINY, block="bottleneck", widths=(8, 12, 16), depths=(1, 2, 1)),
    "soho": replace(TINY, neck=NECK),
    "soho, edges dropped": replace(TINY, neck=replace(NECK, drop_edge=True)),
    "soho as released": replace(TINY, neck=replace(NECK, keep_padding_blank=False)),
}


def _student(config: StudentConfig) -> Student:
    student = tiny_student(config)
    if student.dictionary:
        torch.nn.init.normal_(student.dictionary.codes)
        student.dictionary.started.fill_(True)
    # Sine positions and a type are louder than the cells of random weights; let these be heard.
    for name, weight in student.named_parameters():
        if name.endswith(("normalization.bias", "project.bias")):
            torch.nn.init.normal_(weight)
    return student


def _arrays() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size, 3)).astype(np.uint8) for size in SIZES]


def _logits(student: Student, rows: list[int]) -> Iterator[dict[str, torch.Tensor]]:
    """What every head says of the pairs of these rows, in one batch; padding is cut off."""
    pictures = stack_pictures([_arrays()[n] for n in rows], multiple_px=student.grid.pad_px)
    texts = [torch.tensor(TEXTS[n]) for n in rows]
    tokens = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    cells = student.encode_image(pictures.pixels, pictures.sizes_px)
    hidden = student.fuse(cells, picture=torch.arange(len(rows)), input_ids=tokens)
    label, feature = student.object_head(hidden.cells)
    aligned = student.align_head(hidden.text, hidden.cells)
    for n, text in enumerate(texts):
        own, length = cells.inside[n], len(text)
        yield {
            "cells": cells.features[n, own],
            "itm": student.itm_head(hidden.text[n, 0]),
            "mlm": student.mlm_head(hidden.text[n, :length], student.word_embeddings),
            "object label": label[n, own],
            "object feature": feature[n, own],
            "align": aligned[n, :length, own],
            **(
                {"mvm": code_logits(hidden.cells[n, own], student.dictionary)}
                if student.dictionary
                else {}
            ),
        }


@torch.no_grad()
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 5e-6), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("name", STUDENTS)
def test_a_pair_alone_and_among_larger_ones(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    """Oracle: the logits of every head for the pair alone. Tolerance: that share of the largest
    logit of a head. The released way must break it, or the test would see nothing."""
    student = _student(STUDENTS[name]).to(dtype)
    every = range(len(SIZES))
    alone = [next(_logits(student, [n])) for n in every]
    worst: dict[str, float] = {}
    for rows in (list(every), [0, 0], [3, 1], [2, 0, 4]):
        for n, among in zip(rows, _logits(student, rows)):
            for head, wanted in alone[n].items():
                assert among[head].shape == wanted.shape, (head, rows, n)
                off = (among[head] - wanted).abs().max() / wanted.abs().max()
                worst[head] = max(worst.get(head, 0.0), float(off))
    if name == "soho as released":
        assert max(worst.values()) > 3 * tolerance, worst
    else:
        assert max(worst.values()) < tolerance, worst


def test_gradients_are_those_of_pictures_alone() -> None:
    """Oracle: sum of the gradients of each pair alone, of all weights, BatchNorms frozen. Loss: the
    logits of all heads, weighted by fixed noise."""
    student = _student(STUDENTS["soho"])

    def loss(logits: dict[str, torch.Tensor]) -> torch.Tensor:
        noise = torch.Generator().manual_seed(0)
        weighted = [(x * torch.randn(x.shape, generator=noise)).sum() for x in logits.values()]
        return torch.stack(weighted).sum()

    def gradients(batches: list[list[int]]) -> dict[str, torch.Tensor]:
        student.zero_grad()
        for rows in batches:
            torch.stack([loss(logits) for logits in _logits(student, rows)]).sum().backward()
        return {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}

    alone, together = gradients([[0], [1], [2], [3]]), gradients([[0, 1, 2, 3]])
    assert alone.keys() == together.keys()
    assert "grid.resnet.embedder.embedder.convolution.weight" in alone
    for name, wanted in alone.items():
        if name.endswith("key.bias"):
            continue  # softmax is blind to it: its gradient is rounding alone
        torch.testing.assert_close(
            together[name], wanted, rtol=1e-4, atol=float(wanted.abs().max()) * 1e-4, msg=name
        )


@pytest.mark.parametrize(
    "resnet",
    [
        ResNetConfig(
            embedding_size=4, hidden_sizes=[4, 8, 8, 12], depths=[1, 2, 1, 1], layer_type="basic"
        ),
        ResNetConfig(
            embedding_size=4,
            hidden_sizes=[8, 8, 16],
            depths=[2, 1, 1],
            downsample_in_bottleneck=True,
        ),
        ResNetConfig(
            embedding_size=4, hidden_sizes=[8, 16], depths=[1, 2], downsample_in_first_stage=True
        ),
    ],
    ids=["basic", "stride first", "first stage halves"],
)
@torch.no_grad()
def test_every_kind_of_resnet(resnet: ResNetConfig) -> None:
    """Oracle: the grid of a picture alone, for pictures of one cell and of odd sizes; where all
    pictures fill the tensor, transformers' own ResNet."""
    torch.manual_seed(0)
    grid = Grid(resnet, 8).eval()
    for name, value in [*grid.named_parameters(), *grid.named_buffers()]:
        if "normalization" in name and value.is_floating_point():
            value.uniform_(0.3, 1.5)
    side = grid.pad_px
    sizes = [(1, 1), (side, side + 1), (2 * side - 1, side), (3 * side, 2 * side)]
    random = np.random.default_rng(0)
    arrays = [random.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]
    batch = stack_pictures(arrays, multiple_px=side)
    among = grid(batch.pixels, batch.sizes_px)
    for n, array in enumerate(arrays):
        one = stack_pictures([array], multiple_px=side)
        alone = grid(one.pixels, one.sizes_px)[0]
        own = among[n, : alone.shape[0], : alone.shape[1]]
        torch.testing.assert_close(own, alone, rtol=1e-5, atol=1e-5)
        theirs = grid.project(grid.pool(grid.resnet(one.pixels).last_hidden_state))
        # Ours has each BatchNorm in the weights of its convolution.
        torch.testing.assert_close(alone, theirs[0].permute(1, 2, 0), rtol=1e-5, atol=1e-5)


def test_what_lies_in_the_padding_is_not_seen() -> None:
    """Oracle: the grid with zeros there, though the caller left noise beyond the canvas; the
    caller's tensor stays as it was."""
    student = _student(TINY)
    sizes = torch.tensor([[30, 40], [64, 64]])
    pixels = torch.randn(2, 3, 64, 64)
    blank = pixels.clone()
    blank[0, :, 32:], blank[0, :, :, 48:] = 0, 0
    before = pixels.clone()
    with torch.no_grad():
        noisy, wanted = (student.encode_image(p, sizes) for p in (pixels, blank))
    assert torch.equal(noisy.features, wanted.features) and torch.equal(pixels, before)


def test_cells_of_a_dropped_edge_are_nobodys() -> None:
    """Oracle: by hand, cells of 16 px, canvases in multiples of 8: 40 px are two and a half cells,
    of which pooling alone leaves two; 41 to 48 px are three. Without dropping 40 px are three."""
    sizes = torch.tensor([[40, 41]])
    got = cells_inside(sizes, 3, 4, cell_px=16, pad_px=8).view(3, 4).int().tolist()
    assert got == [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    got = cells_inside(sizes, 3, 4, cell_px=16, pad_px=16).view(3, 4).int().tolist()
    assert got == [[1, 1, 1, 0]] * 3


def test_an_activation_for_which_zero_is_not_nothing() -> None:
    """Oracle: ValueError; max pooling would take a zero beyond the picture for more than -1."""
    with pytest.raises(ValueError, match="hidden_act: got gelu, expected relu"):
        Grid(ResNetConfig(hidden_act="gelu"), 8)
