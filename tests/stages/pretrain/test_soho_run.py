"""SOHO's pretraining under real DeepSpeed: one dictionary on all ranks, whatever their number,
their precision, and whoever stops them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretrain_fixtures import TINY, read_lines
from pretrain_ranks import SHORT_RUN, Ranks, toy_ranks
from safetensors.torch import load_file
from soho_golden import released_neck

from stages.pretrain.objectives.config import MvmConfig, OmvmConfig, PraConfig
from stages.student.network import Student
from stages.student.vision.neck_config import DictionaryConfig, SohoNeckConfig

STUDENT = replace(
    TINY,
    dropout=0.1,
    frozen_stages=1,
    neck=SohoNeckConfig(dictionary=DictionaryConfig(num_codes=12, decay=0.8, revive_after_steps=2)),
)
RELEASED = replace(
    STUDENT,
    mlm_head="tied",
    itm_head="linear",
    neck=released_neck(num_codes=12),
)
RUN = replace(
    SHORT_RUN,
    omvm=OmvmConfig(weight=0.0),
    pra=PraConfig(weight=0.0),
    mvm=MvmConfig(weight=1.0, probability=1.0),
)
DICTIONARY = "neck.dictionary."


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Runs over 14 train scenes in three shards."""
    yield from toy_ranks(tmp_path_factory, STUDENT)


@pytest.fixture(scope="module")
def undisturbed(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on two ranks that nobody disturbed."""
    root = tmp_path_factory.mktemp("undisturbed")
    assert ranks(RUN, root, world_size=2) == ["done", "done"]
    return root


def _weights(root: Path) -> dict[str, torch.Tensor]:
    return load_file(root / "student" / "model.safetensors")


def _codes(root: Path, rank: int) -> list[str]:
    """The digest of the codebook after each step."""
    return [line["codes"] for line in read_lines(root / f"codes-{rank}.jsonl")]


def test_two_ranks_have_one_dictionary(undisturbed: Path) -> None:
    """Oracle: bits, step by step; it moves in every step. Its figures are in the metrics."""
    mine, theirs = (_codes(undisturbed, rank) for rank in (0, 1))
    assert mine == theirs and len(mine) == len(set(mine)) == RUN.num_steps
    lines = read_lines(undisturbed / "pretrain" / "metrics.jsonl")
    assert "mvm/perplexity" not in lines[0]
    for line in lines[1:]:
        assert 1 <= line["mvm/perplexity"] < 12.001 and 0 <= line["mvm/dead_codes"] <= 12
        assert 0 < line["mvm/loss"] < 50 and 0 <= line["mvm/accuracy"] <= 1
    assert list((undisturbed / "pretrain" / "tensorboard").iterdir())


def test_frozen_stages_stay_as_they_were(undisturbed: Path, ranks: Ranks, tmp_path: Path) -> None:
    """Oracle: bits of the first stage and the stem after one step and after six, statistics too;
    the second stage moves."""
    assert ranks(replace(RUN, num_steps=1), tmp_path, world_size=1) == ["done"]
    one, six = _weights(tmp_path), _weights(undisturbed)
    for name in one:
        if name.startswith(("grid.resnet.embedder", "grid.resnet.encoder.stages.0")):
            assert torch.equal(one[name], six[name]), name
    moved = "grid.resnet.encoder.stages.1.layers.0.layer.0.convolution.weight"
    assert not torch.equal(one[moved], six[moved])


def test_one_rank_learns_the_dictionary_of_two(
    ranks: Ranks, undisturbed: Path, tmp_path: Path
) -> None:
    """Oracle: two ranks with the same global batch. One that accumulates has the same codes but
    for the order of sums: at the start, in the averages, and where unused codes return."""
    assert ranks(RUN, tmp_path, world_size=1) == ["done"]
    mine, theirs = _weights(tmp_path), _weights(undisturbed)
    for name in mine:
        if name.startswith(DICTIONARY):
            torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=1e-4, msg=name)
    one, two = (read_lines(r / "pretrain" / "metrics.jsonl") for r in (tmp_path, undisturbed))
    for a, b in zip(one, two):
        for name in ("loss", "mvm/loss", "mvm/perplexity", "mvm/dead_codes", "mvm/hidden_cells"):
            assert (name in a) == (name in b)
            assert a.get(name, 0.0) == pytest.approx(b.get(name, 0.0), rel=1e-3), name


def test_a_turn_that_counts_nothing_teaches_no_code(ranks: Ranks, tmp_path: Path) -> None:
    """Oracle: one rank. Three micro-batches a step leave the second of two ranks one turn too many,
    whose cells must move no code. Ours has the same codes, also where ranks have several turns
    each; the released one moves codes in every forward pass, so only their cells can be counted."""
    config = replace(RUN, micro_batches_per_step=3)
    for name, runs in (("ours", ranks), ("released", ranks.with_student(RELEASED))):
        one, two = tmp_path / f"{name}-1", tmp_path / f"{name}-2"
        assert runs(config, one, world_size=1) == ["done"]
        assert runs(config, two, world_size=2) == ["done", "done"]
        assert _codes(two, 0) == _codes(two, 1)
        mine, theirs = _weights(one), _weights(two)
        counted = mine[f"{DICTIONARY}num_seen"].sum()
        assert counted == theirs[f"{DICTIONARY}num_seen"].sum() > 0
        if name == "ours":
            codes = f"{DICTIONARY}codes"
            torch.testing.assert_close(mine[codes], theirs[codes], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("step", [1, 4])
def test_killed_and_started_again(
    ranks: Ranks, undisturbed: Path, tmp_path: Path, step: int
) -> None:
    """Oracle: the undisturbed run, bit for bit, the dictionary with it; SIGKILL strikes before any
    checkpoint (and before the dictionary has started), or after some."""
    assert ranks(RUN, tmp_path, world_size=2, spoil="kill", step=step)[1] == "signal 9"
    assert ranks(RUN, tmp_path, world_size=2) == ["done", "done"]
    mine, theirs = _weights(tmp_path), _weights(undisturbed)
    assert not [name for name in mine if not torch.equal(mine[name], theirs[name])]


@pytest.mark.parametrize("way", ["ours", "released"])
def test_half_precision_leaves_the_dictionary_whole(ranks: Ranks, tmp_path: Path, way: str) -> None:
    """Oracle: dtypes. Under DeepSpeed's bf16 the network is bfloat16, on disk and after loading;
    codes, sums and counts are float32 and hold values that bfloat16 has not."""
    runs = ranks.with_student(RELEASED) if way == "released" else ranks
    config = replace(RUN, precision="bf16", save_precision="training", num_steps=4)
    assert runs(config, tmp_path, world_size=2) == ["done", "done"]
    assert _codes(tmp_path, 0) == _codes(tmp_path, 1)
    saved = _weights(tmp_path)
    loaded = Student.from_pretrained(tmp_path / "student").eval()
    for weights in (saved, loaded.state_dict()):
        assert weights["neck.code_line.weight"].dtype == torch.bfloat16
        for name in ("codes", "sums", "counts"):
            value = weights[DICTIONARY + name]
            assert value.dtype == torch.float32
            assert torch.equal(value, saved[DICTIONARY + name])
            assert not torch.equal(value, value.bfloat16().float())
        assert weights[f"{DICTIONARY}started"]
    with torch.no_grad():
        cells = loaded.encode_image(torch.zeros(1, 3, 32, 32), torch.tensor([[32, 32]]))
        hidden = loaded.fuse(cells, picture=torch.tensor([0]), input_ids=torch.tensor([[2, 7, 3]]))
    assert hidden.text.dtype == torch.bfloat16 and hidden.text.isfinite().all()
