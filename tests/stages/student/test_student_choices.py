"""What KD-VLP leaves open of the student: what stands for a phrase, and for a masked cell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretrain_fixtures import TINY, tiny_student
from transformers import ResNetModel

from stages.student.network import Student

PIECES = torch.tensor([[[0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0]]]).bool()


def test_a_phrase_is_the_mean_of_its_pieces_or_the_last() -> None:
    """Oracle: by hand on pieces 0 to 4 whose vectors are 1, 2, 4, 8, 16; none give 0."""
    text = torch.tensor([1.0, 2, 4, 8, 16])[None, :, None]
    for pooling, wanted in (("mean", [3, 8, 13 / 3, 0]), ("last", [4, 8, 8, 0])):
        student = tiny_student(replace(TINY, phrase_pooling=pooling))
        got = student.pool_phrases(PIECES, text)[0, :, 0]
        assert got.tolist() == pytest.approx(wanted), pooling


def test_a_hidden_cell_is_a_learned_vector_or_zero(tmp_path: Path) -> None:
    """Oracle: a learned vector has a gradient where cells are masked, `zero` has none (so
    that it stays as it starts, at zero); the choice is kept with the student."""
    for kind in ("learned", "zero"):
        student = tiny_student(replace(TINY, visual_mask_embedding=kind))
        cells = student.encode_image(torch.randn(1, 3, 32, 32), torch.tensor([[32, 32]]))
        hidden = student.fuse(
            cells,
            picture=torch.tensor([0]),
            input_ids=torch.tensor([[2, 7, 3]]),
            masked_cells=torch.tensor([[True, False, False, False]]),
        )
        hidden.text.square().sum().backward()
        assert (student.visual_mask_embedding.grad is not None) == (kind == "learned")
        student.save_pretrained(tmp_path / kind)
        assert Student.from_pretrained(tmp_path / kind).config.visual_mask_embedding == kind


def test_cells_of_several_stages_are_the_stages_outputs(tmp_path: Path) -> None:
    """Oracle: transformers' own ResNet on a picture that fills its tensor; the output of the stage
    before the last, averaged in 2 x 2 places, beside the last one's, through the projection.
    Forward and gradient. The choice is kept with the student."""
    student = tiny_student(replace(TINY, cell_stages=(-2, -1), cell_pooling=1)).eval()
    pixels = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[32, 48]] * 2)
    net = ResNetModel(student.grid.resnet.config).eval()
    net.load_state_dict(student.grid.resnet.state_dict())
    before, last = net(pixels, output_hidden_states=True).hidden_states[-2:]
    n, width, rows, columns = before.shape
    halved = before.view(n, width, rows // 2, 2, columns // 2, 2).mean((3, 5))
    weight, bias = student.grid.project.weight[:, :, 0, 0], student.grid.project.bias
    wanted = torch.cat([halved, last], dim=1).flatten(2).transpose(1, 2) @ weight.T + bias
    got = student.encode_image(pixels, sizes).features
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    again = student.encode_image(pixels, sizes, maps=student.encode_maps(pixels, sizes)).features
    torch.testing.assert_close(again, got)
    probe = torch.randn_like(wanted)
    (wanted * probe).sum().backward()
    (got * probe).sum().backward()
    own = dict(student.grid.resnet.named_parameters())
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(own[name].grad, parameter.grad, rtol=1e-4, atol=1e-4)
    student.save_pretrained(tmp_path)
    loaded = Student.from_pretrained(tmp_path).eval()
    assert loaded.config.cell_stages == [-2, -1]
    torch.testing.assert_close(loaded.encode_image(pixels, sizes).features, got)


def test_cells_of_several_stages_know_no_other_picture() -> None:
    """Oracle: the picture alone. Beside a larger one, and padded, its cells are the same."""
    student = tiny_student(replace(TINY, cell_stages=(-2, -1), cell_pooling=1)).eval()
    pixels = torch.randn(2, 3, 48, 64)
    sizes = torch.tensor([[48, 64], [20, 30]])
    together = student.encode_image(pixels, sizes)
    alone = student.encode_image(pixels[1:, :, :32, :32], sizes[1:])
    got, wanted = (cells.features[-1][cells.inside[-1]] for cells in (together, alone))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("stages", [(), (-1, -2), (-3, -1), (-1, -1), (0, -1)])
def test_stages_that_are_not_there_are_named(stages: tuple[int, ...]) -> None:
    """Oracle: a CNN of two stages has -2 and -1, and -1 comes last."""
    with pytest.raises(ValueError, match="student.cell_stages: got .* from -2 to -1"):
        replace(TINY, cell_stages=stages)
