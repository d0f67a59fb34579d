"""SOHO's neck: masks and positions by hand, sizes of the recipes, saving, and what padding does.

That it gives the numbers of the released model is tested in test_soho_golden.py."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretrain_fixtures import TINY, tiny_student

from pipeline.recipe.recipe import load_recipe
from stages.pretrain.config import PretrainConfig
from stages.pretrain.optimizer import make_optimizer
from stages.student.build import make_student
from stages.student.checkpoints.soho import official_name, write_soho_checkpoint
from stages.student.network import Student
from stages.student.vision.neck_config import DictionaryConfig, SohoNeckConfig
from stages.student.vision.soho_neck import cells_inside_released, padding_aware_positions

SOHO = replace(TINY, neck=SohoNeckConfig(dictionary=DictionaryConfig(num_codes=12)))
TOKENS = torch.tensor([[2, 7, 8, 9, 3]])


def _started(seed: int = 0) -> Student:
    student = tiny_student(SOHO, seed=seed)
    assert student.dictionary is not None
    student.dictionary.started.fill_(True)
    return student


@pytest.mark.parametrize(
    "size_px, padded_px, rows, columns, seen",
    [
        ((800, 600), (800, 608), 12, 9, 84),  # of 108: two columns of an upright picture lost
        ((1000, 600), (1024, 608), 16, 9, 96),  # of 144
        ((600, 800), (608, 1024), 9, 16, 144),  # of which 27 are padding
    ],
)
def test_the_released_mask_by_known_counts(
    size_px: tuple[int, int], padded_px: tuple[int, int], rows: int, columns: int, seen: int
) -> None:
    """Oracle: what the released code attends, counted when it was run."""
    inside = cells_inside_released(torch.tensor([size_px]), rows, columns, padded_px[0])
    assert int(inside.sum()) == seen


def test_positions_by_hand() -> None:
    """Oracle: 8 channels, 2 x 3 cells of which the last column is padding: rows at pi and 2 pi,
    columns at pi, 2 pi and 2 pi, in padded columns rows at 0; rates 1 and 1/100."""
    inside = torch.tensor([[[True, True, False], [True, True, False]]])
    got = padding_aware_positions(inside, 8)[0].view(2, 3, 8)
    for r, row in enumerate(got):
        for c, channels in enumerate(row):
            y = 0.0 if c == 2 else (r + 1) * math.pi
            x = min(c + 1, 2) * math.pi
            wanted = [f(v / d) for v in (y, x) for d in (1, 100) for f in (math.sin, math.cos)]
            assert channels.tolist() == pytest.approx(wanted, abs=1e-4)


@torch.no_grad()
def test_padding_moves_neither_positions_nor_codes() -> None:
    """Oracle: a picture of 2 x 2 cells alone, and the same among wider padding, whose cells no code
    learns from: the same cells, codes and text where the picture is."""
    student = _started()
    pixels = torch.randn(1, 3, 32, 32)
    wide = torch.nn.functional.pad(pixels, (0, 32, 0, 16))
    size = torch.tensor([[32, 32]])
    seen, padded = (student.encode_image(p, size) for p in (pixels, wide))
    assert int(padded.inside.sum()) == 4
    # Pixels beyond the edge are zero either way, but the CNN's own padding is zero after its
    # BatchNorm and that of the canvas is not: cells at the edge see the difference. Not ours here.
    own = replace(padded, features=torch.zeros_like(padded.features))
    own.features[padded.inside] = seen.features[0]
    picture = torch.tensor([0])
    one = student.fuse(seen, picture=picture, input_ids=TOKENS)
    two = student.fuse(own, picture=picture, input_ids=TOKENS)
    torch.testing.assert_close(one.text, two.text, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.cells[0], two.cells[padded.inside], rtol=1e-4, atol=1e-5)
    assert student.neck is not None
    weights = student.neck._weights(padded.inside, torch.tensor([4]))
    assert torch.equal(weights > 0, padded.inside) and weights.max() == 1


def test_a_saved_student_comes_back_with_its_dictionary(tmp_path: Path) -> None:
    """Oracle: bits of weights and buffers, and the config of the neck; written as the released
    checkpoint only where it is built as SOHO's."""
    student = _started()
    student.save_pretrained(tmp_path / "student")
    again = Student.from_pretrained(tmp_path / "student").eval()
    mine, other = student.state_dict(), again.state_dict()
    assert mine.keys() == other.keys() and "neck.dictionary.codes" in mine
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert again.neck is not None and again.neck.config == SOHO.neck
    for built, words in ((student, "mlm_head.bias|itm_head.pool"), (tiny_student(), "neck.kind")):
        with pytest.raises(ValueError, match=words):
            write_soho_checkpoint(built, tmp_path / "out.pth")


def test_frozen_stages_are_in_no_group_and_stay_in_evaluation() -> None:
    """Oracle: names; the running statistics of frozen BatchNorms do not move in training."""
    student = tiny_student(replace(SOHO, frozen_stages=1))
    frozen = {id(p) for p in student.grid.resnet.embedder.parameters()}
    frozen |= {id(p) for p in student.grid.resnet.encoder.stages[0].parameters()}
    groups = make_optimizer(student, PretrainConfig()).param_groups
    grouped = [id(p) for group in groups for p in group["params"]]
    assert not frozen & set(grouped)
    assert len(grouped) == len(list(student.parameters())) - len(frozen)
    before = {name: value.clone() for name, value in student.named_buffers()}
    student.train().encode_image(torch.randn(2, 3, 32, 32), torch.tensor([[32, 32]] * 2))
    for name, value in student.named_buffers():
        if "running_mean" in name:
            is_frozen = "embedder" in name or "stages.0" in name
            assert torch.equal(value, before[name]) == is_frozen, name


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"frozen_stages": 3}, "frozen_stages: got 3"),
        ({"soho_checkpoint": "x.pth"}, "soho_checkpoint: got x.pth"),
    ],
)
def test_settings_that_cannot_be(fields: dict, words: str) -> None:
    """Oracle: ValueError naming the field."""
    with pytest.raises(ValueError, match=words):
        replace(TINY, **fields)


@pytest.mark.parametrize("name, layers, blocks", [("soho-res18", 3, 8), ("soho-r101", 12, 33)])
def test_the_papers_sizes(name: str, layers: int, blocks: int) -> None:
    """Oracle: the recipes' students on the meta device: depth, cells of 64 pixels, dictionary of
    2048 x 768; every weight of soho-res18 has a name in the released checkpoint."""
    paths = ["ingest.root=/data", "ingest.captions=/data/c.json"]
    nulls = ["student.pretrained_cnn=null", "student.pretrained_text=null"]
    config = load_recipe(name, paths + nulls).student
    with torch.device("meta"):
        student = make_student(
            config, vocab_size=30522, pad_id=0, label_names=["thing"], feature_size=8
        )
    assert len(student.fusion.layer) == layers and student.grid.cell_px == 64
    assert sum(len(stage.layers) for stage in student.grid.resnet.encoder.stages) == blocks
    assert student.dictionary is not None and student.dictionary.codes.shape == (2048, 768)
    assert student.grid.pad_px == (32 if name == "soho-res18" else 64)
    if name == "soho-res18":
        official = [official_name(own) for own in student.state_dict()]
        assert len([found for found in official if found]) == 179 + 16
