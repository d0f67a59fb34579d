"""The contrastive head's start by canonical correlation analysis."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pretrain_fixtures import TINY, random_batch, tiny_student
from torch.nn import functional as F

from sharding.format.schema import ShardError
from sharding.order.turns import Turn
from sharding.tools.verify import Fault
from stages.pretrain.cca import PairStatistics, start_by_cca
from stages.pretrain.config import PretrainConfig
from stages.pretrain.data.collate import Collate
from stages.pretrain.objectives.config import ItcConfig
from stages.pretrain.run import check_start, start_from_data
from stages.student.config import StudentConfig
from stages.student.vision.neck_config import SohoNeckConfig
from stages.training.data_loader import LoadedBatch
from stages.training.engine import join_ranks
from stages.training.monitoring.stopping import Stopped, Watch


def _pairs(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [num, 6] and texts [num, 4] that share two directions, beside noise."""
    draws = torch.Generator().manual_seed(0)
    shared = torch.randn(num, 2, generator=draws, dtype=torch.float64)
    sides = []
    for width in (6, 4):
        mixed = shared @ torch.randn(2, width, generator=draws, dtype=torch.float64)
        noise = torch.randn(num, width, generator=draws, dtype=torch.float64)
        sides.append(mixed + noise + 3)
    return sides[0], sides[1]


def _solved(x: torch.Tensor, y: torch.Tensor, size: int, ridge: float = 1e-9):
    statistics = PairStatistics(x.shape[1], y.shape[1])
    for part in range(0, len(x), 7):  # in pieces, as batches come
        statistics.add(x[part : part + 7], y[part : part + 7])
    return statistics.solve(ridge=ridge, size=size)


def test_the_directions_are_canonical() -> None:
    """Oracle: the definition. With next to no ridge, both sides' directions are uncorrelated among
    themselves and across, but for each direction's own correlation s, and variances are s: each
    side is weighed by the root of s. The correlations are those of scikit-free algebra: the
    singular values of Qx' Qy, the orthonormal bases of the centred data (Bjorck and Golub 1973)."""
    x, y = _pairs(500)
    start = _solved(x, y, size=3)
    u = x @ start.project + start.project_bias
    v = y @ start.text + start.text_bias
    bases = [torch.linalg.qr(side - side.mean(0)).Q for side in (x, y)]
    s = torch.linalg.svdvals(bases[0].T @ bases[1])[:3]
    torch.testing.assert_close(u.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-8)
    torch.testing.assert_close(v.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-8)
    for left, right, wanted in ((u, u, s), (v, v, s), (u, v, s**2)):
        torch.testing.assert_close(left.T @ right / len(x), wanted.diag(), rtol=1e-5, atol=1e-6)


def test_a_ridge_is_that_many_mean_variances() -> None:
    """Oracle: the definition with the ridge: S = root(Cxx + a I)^-1 Cxy root(Cyy + b I)^-1 has the
    singular values s, and projected covariances with the ridges are diagonal, s."""
    x, y = _pairs(200)
    start = _solved(x, y, size=2, ridge=0.5)
    for side, directions in ((x, start.project), (y, start.text)):
        covariance = torch.cov(side.T, correction=0)
        ridged = covariance + 0.5 * covariance.diagonal().mean() * torch.eye(len(covariance))
        got = directions.T @ ridged @ directions
        torch.testing.assert_close(got, got.diagonal().diag(), rtol=0, atol=1e-8)
        assert (got.diagonal() < 1).all() and got[0, 0] > got[1, 1]


def test_sources_of_other_scales_have_ridges_of_their_own() -> None:
    """Oracle: the same analysis of pictures whose sources were brought to one mean variance by
    hand. Scales of the sources then change no vector, which they do without."""
    x, y = _pairs(200)
    scale = torch.tensor([100.0] * 2 + [0.01] * 4).double()
    parts = x.split([2, 4], dim=1)
    even = torch.cat([part / part.var(0, correction=0).mean().sqrt() for part in parts], dim=1)

    def correlated(x: torch.Tensor, x_parts: list[int] | None) -> torch.Tensor:
        statistics = PairStatistics(6, 4)
        statistics.add(x, y)
        start = statistics.solve(ridge=0.5, size=2, x_parts=x_parts)
        return (x @ start.project + start.project_bias) @ start.text.T

    wanted = correlated(even, None)
    torch.testing.assert_close(correlated(x * scale, [2, 4]), wanted)
    assert not torch.allclose(correlated(x * scale, None), wanted)


def test_too_many_directions_are_named() -> None:
    """Oracle: 4 is the smaller side's width."""
    x, y = _pairs(20)
    with pytest.raises(ValueError, match="5 directions, expected 2 pairs or more and at most 4"):
        _solved(x, y, size=5)


@pytest.mark.parametrize("cell_stages", [(-1,), (-2, -1)])
def test_a_student_starts_with_what_the_analysis_says(cell_stages: tuple[int, ...]) -> None:
    """Oracle: the analysis of features and texts taken by hand from the student itself, before the
    start; vectors of the student after it are unit vectors along the canonical directions."""
    config = replace(
        TINY,
        num_layers=2,
        hidden_size=8,
        ffn_size=8,
        itc_size=3,
        itc_pooling="mean",
        itc_text_layers=(0, -1),
        pra_size=4,
        dropout=0.1,
        cell_stages=cell_stages,
    )
    student = tiny_student(config)
    batches = [random_batch(seed, pictures=6, captions=2) for seed in range(4)]
    for batch in batches:
        batch.pixels = torch.randn_like(batch.pixels)
    student.eval()
    x, y = [], []
    with torch.no_grad():
        for batch in batches:
            maps: list[torch.Tensor] = []
            hook = student.grid.project.register_forward_pre_hook(lambda _, v: maps.append(v[0]))
            cells = student.encode_image(batch.pixels, batch.sizes_px)
            hook.remove()
            inside = cells.inside.view(-1, 1, cells.rows, cells.columns)
            x.append(((maps[0] * inside).sum((2, 3)) / inside.sum((2, 3)))[batch.picture])
            real = (batch.texts != student.pad_id)[..., None]
            layers = student.encode_texts(batch.texts)
            assert layers.shape[-1] == 16
            torch.testing.assert_close(
                layers[..., :8] * real, student.embeddings(batch.texts) * real
            )
            y.append((layers * real).sum(1) / real.sum(1))
        kept = torch.cat([batch.is_true for batch in batches])
        all_x, all_y = torch.cat(x)[kept].double(), torch.cat(y)[kept].double()
        statistics = PairStatistics(all_x.shape[1], all_y.shape[1])
        statistics.add(all_x, all_y)
        widths = [student.config.resnet["hidden_sizes"][stage] for stage in cell_stages]
        start = statistics.solve(ridge=0.3, size=8, x_parts=widths)
        student.train()
        start_by_cca(student, batches, ridge=0.3, device=torch.device("cpu"))
        assert student.training
        student.eval()
        cells = student.encode_image(batches[0].pixels, batches[0].sizes_px)
        pictures = student.embed_pictures(cells)[batches[0].picture]
        texts = student.embed_texts(batches[0].texts)
    left = x[0].double() @ start.project + start.project_bias
    right = y[0].double() @ start.text + start.text_bias
    # Directions are known but for their sign, which both sides share.
    wanted = F.normalize(left[:, :3], dim=-1) @ F.normalize(right[:, :3], dim=-1).T
    torch.testing.assert_close(pictures @ texts.T, wanted.float(), rtol=1e-3, atol=1e-3)
    centred = y[0].double()[:, 8:] - all_y.mean(0)[8:]
    wanted = left[:, :4] @ (centred @ start.text[8:, :4]).T
    align, own = student.align_head, cells.features[:, 0]
    phrases = align.phrase(y[0][:, 8:])
    torch.testing.assert_close(
        align.region(left.float()) @ phrases.T, wanted.float(), rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(align.region(own), own[:, :4])


@pytest.mark.parametrize(
    "student, named",
    [
        (StudentConfig(itc_size=8), "itc_pooling attention"),
        (StudentConfig(itc_size=8, itc_pooling="mean"), "published weights of both"),
        (StudentConfig(itc_size=8, itc_pooling="mean", neck=SohoNeckConfig()), "neck.kind soho"),
    ],
)
def test_a_start_that_cannot_be_is_refused(student: StudentConfig, named: str) -> None:
    """Oracle: what the analysis needs, as the recipe's field says."""
    config = PretrainConfig(itc=ItcConfig(weight=1, start="cca"))
    with pytest.raises(ValueError, match=named):
        check_start(config, student)


def test_a_stop_ends_the_pass_over_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: of a hundred batches the one at whose reading SIGTERM came is the last."""
    read: list[int] = []

    class Signalling:
        def __init__(self, stream: Any, collate: Any) -> None: ...

        def __getitem__(self, turn: Turn) -> LoadedBatch:
            read.append(turn.position)
            if len(read) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return LoadedBatch(turn=turn, batch=random_batch(0, pictures=2))

    monkeypatch.setattr("stages.pretrain.run.Batches", Signalling)
    with pytest.raises(Stopped, match="before the first step"):
        _start_over(100, monkeypatch)
    assert read == [0, 1]


def test_a_sample_that_cannot_be_had_stops_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the error names tar and key, as it does in training. Without it a pass over nothing
    but broken pictures said that it got 0 pairs."""
    fault = Fault(tar="train-000.tar", key="dog", cause="broken picture")

    class Broken:
        def __init__(self, stream: Any, collate: Any) -> None: ...

        def __getitem__(self, turn: Turn) -> LoadedBatch:
            return LoadedBatch(turn=turn, batch=None, faults=(fault,))

    monkeypatch.setattr("stages.pretrain.run.Batches", Broken)
    with pytest.raises(ShardError, match="train-000.tar: sample dog: broken"):
        _start_over(3, monkeypatch)


def _start_over(num_micro_batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`start_from_data` of a tiny student on so many micro-batches of the `Batches` that a test has
    put into `stages.pretrain.run`."""
    monkeypatch.setattr("stages.pretrain.run.replace", lambda collate, **_: collate)
    stream: Any = SimpleNamespace(num_micro_batches=num_micro_batches)
    join_ranks()
    with Watch() as watch:
        start_from_data(
            tiny_student(replace(TINY, itc_size=3, itc_pooling="mean")),
            stream,
            Collate.__new__(Collate),
            watch,
            PretrainConfig(),
            cache=None,
            text_cache=None,
        )
