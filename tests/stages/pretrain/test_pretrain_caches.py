"""Caches of what frozen networks give, and the views that they rest on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretrain_fixtures import TINY, random_batch, tiny_student

from stages.pretrain.caches.cnn_cache import CnnCache
from stages.pretrain.caches.disk_cache import DiskCache, maps_name, texts_name
from stages.pretrain.caches.text_cache import TextCache
from stages.pretrain.config import PretrainConfig
from stages.pretrain.data.batch import Batch
from stages.pretrain.data_config import AugmentConfig
from stages.pretrain.objectives.config import ItcConfig
from stages.pretrain.run import check_cache
from stages.student.network import Student

FROZEN = replace(
    TINY, frozen_stages=2, batch_norm="frozen", cell_pooling=1, itc_text_layers=(0, -1)
)


def _batch(rows: list[int]) -> Batch:
    """Some of four pictures of unlike sizes, padded to 48 x 64 pixels."""
    batch = random_batch(1, pictures=4, captions=2)
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch.pixels.shape, generator=draws)
    sizes = torch.tensor([[48, 64], [32, 64], [48, 33], [20, 20]])
    return replace(
        batch,
        views=[batch.views[row] for row in rows],
        pixels=pixels[rows],
        sizes_px=sizes[rows],
    )


@pytest.mark.parametrize("cell_stages", [(-1,), (-2, -1)])
def test_maps_are_those_of_the_cnn(
    monkeypatch: pytest.MonkeyPatch, cell_stages: tuple[int, ...]
) -> None:
    """Oracle: the CNN, run on each batch; to 16 bits' rounding. What came before is not computed
    again: of the second batch one picture is new."""
    student = tiny_student(replace(FROZEN, cell_stages=cell_stages)).eval()
    cache = CnnCache(2**20)
    computed: list[int] = []
    maps = student.encode_maps

    def counted(pixels: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        computed.append(len(pixels))
        return maps(pixels, sizes)

    monkeypatch.setattr(student, "encode_maps", counted)
    for rows in ([0, 1, 2], [2, 3, 1], [3, 0, 2]):
        batch = _batch(rows)
        got = cache.maps(student, batch)
        wanted = maps(batch.pixels, batch.sizes_px)
        torch.testing.assert_close(got, wanted, rtol=2e-3, atol=2e-3)
        seen = student.encode_image(batch.pixels, batch.sizes_px, maps=got).features
        own = student.encode_image(batch.pixels, batch.sizes_px)
        torch.testing.assert_close(seen[own.inside], own.features[own.inside], rtol=0, atol=2e-2)
    assert computed == [3, 1]


def test_the_disk_cache_serve_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the CNN, which the second start does not run for known views. A file cut short is
    left out, and its maps are computed again."""
    student = tiny_student(FROZEN).eval()
    maps = student.encode_maps
    batches = [_batch([0, 1]), _batch([2, 3])]
    wanted = [maps(batch.pixels, batch.sizes_px) for batch in batches]
    first = CnnCache(2**20, DiskCache(tmp_path))
    for batch in batches:
        first.maps(student, batch)
        first.store()
    first.store()
    assert len(list(tmp_path.iterdir())) == 2
    computed: list[int] = []

    def counted(pixels: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        computed.append(len(pixels))
        return maps(pixels, sizes)

    monkeypatch.setattr(student, "encode_maps", counted)
    for limit in (2**20, 0):
        second = CnnCache(limit, DiskCache(tmp_path))
        assert all(view in second for batch in batches for view in batch.views)
        for batch, right in zip(batches, wanted):
            torch.testing.assert_close(second.maps(student, batch), right, rtol=2e-3, atol=2e-3)
    assert not computed
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    third = CnnCache(2**20, DiskCache(tmp_path))
    third.maps(student, batches[0])
    assert computed == [2]


def test_the_disk_cache_are_of_one_cnn_and_one_way_to_see() -> None:
    """Oracle: names differ where weights, stages or what is seen differ, and only there."""
    student, other = tiny_student(FROZEN), tiny_student(FROZEN)
    view_settings = {"shorter_px": 48, "augment": None}
    name = maps_name(student, view_settings)
    other.load_state_dict(student.state_dict())
    assert maps_name(other, dict(reversed(view_settings.items()))) == name
    assert maps_name(student, {**view_settings, "shorter_px": 64}) != name
    of_two = tiny_student(replace(FROZEN, cell_stages=(-2, -1)))
    of_two.grid.resnet.load_state_dict(student.grid.resnet.state_dict())
    assert maps_name(of_two, view_settings) != name
    with torch.no_grad():
        next(other.grid.resnet.parameters()).view(-1)[0] += 1
    assert maps_name(other, view_settings) != name


def test_a_full_cache_computes_anew() -> None:
    """Oracle: the CNN. There is room for nothing."""
    student = tiny_student(FROZEN).eval()
    batch, cache = _batch([0, 3]), CnnCache(8)
    for _ in range(2):
        wanted = student.encode_maps(batch.pixels, batch.sizes_px)
        torch.testing.assert_close(cache.maps(student, batch), wanted)


def _assert_encodes(student: Student, cache: TextCache, tokens: torch.Tensor) -> None:
    student.eval()
    wanted = student.encode_texts(tokens)
    student.train()
    got = cache.encode(student, tokens)
    torch.testing.assert_close(got, wanted, rtol=2e-3, atol=2e-3)
    assert student.fusion.training


def test_encodings_are_those_of_the_student_without_dropout() -> None:
    """Oracle: the student in evaluation mode, on texts known, new and of other padding."""
    student, cache = tiny_student(replace(FROZEN, dropout=0.3)), TextCache(2**20)
    tokens = random_batch(2, pictures=4).texts
    _assert_encodes(student, cache, tokens[:4])
    _assert_encodes(student, cache, tokens)
    _assert_encodes(student, cache, torch.nn.functional.pad(tokens[:3], (0, 2)))
    _assert_encodes(student, TextCache(0), tokens)


def test_stored_texts_serve_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the encoder, which the second start does not run for known texts. The folder's name
    is another one where weights or layers are."""
    student = tiny_student(FROZEN).eval()
    tokens = random_batch(2, pictures=4).texts
    wanted = student.encode_texts(tokens)
    first = TextCache(2**20, DiskCache(tmp_path))
    first.encode(student, tokens[:5])
    first.store()
    first.encode(student, tokens)
    first.store()
    first.store()
    assert len(list(tmp_path.iterdir())) == 2
    name = texts_name(student)
    assert texts_name(tiny_student(replace(FROZEN, itc_text_layers=(-1,)))) != name
    with torch.no_grad():
        student.embeddings.LayerNorm.bias += 1
    assert texts_name(student) != name
    monkeypatch.setattr(student, "encode_texts", None)
    for limit in (2**20, 0):
        second = TextCache(limit, DiskCache(tmp_path))
        torch.testing.assert_close(second.encode(student, tokens), wanted, rtol=2e-3, atol=2e-3)


def test_texts_of_like_length_together_are_the_same() -> None:
    """Oracle: each text alone; there are more than go together."""
    student = tiny_student(FROZEN).eval()
    tokens = torch.cat([random_batch(seed, pictures=8).texts for seed in range(5)])
    assert len(tokens) == 80
    alone = torch.cat([student.encode_texts(row[None]) for row in tokens])
    torch.testing.assert_close(student.encode_texts(tokens), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "student, refused",
    [(FROZEN, False), (replace(FROZEN, frozen_stages=1), True), (TINY, True)],
)
def test_a_cache_of_a_cnn_that_learns_is_refused(student, refused: bool) -> None:
    """Oracle: what the field says."""
    config, net = PretrainConfig(cnn_cache_mib=1), tiny_student(student)
    if not refused:
        return check_cache(config, net)
    with pytest.raises(ValueError, match="expected all stages frozen"):
        check_cache(config, net)


def test_settings_that_do_not_go_together_are_refused() -> None:
    """Oracle: what the fields say: new views never come again, and texts are kept of frozen
    layers."""
    with pytest.raises(ValueError, match="cnn_cache_mib: got 1 with augment.num_views None"):
        PretrainConfig(cnn_cache_mib=1, augment=AugmentConfig(mirror=0.5))
    PretrainConfig(cnn_cache_mib=1, augment=AugmentConfig(mirror=0.5, num_views=2))
    with pytest.raises(ValueError, match="cnn_cache_folder: got maps with cnn_cache_mib 0"):
        PretrainConfig(cnn_cache_folder="maps")
    with pytest.raises(ValueError, match="text_cache_folder: got texts with text_cache_mib 0"):
        PretrainConfig(text_cache_folder="texts")
    with pytest.raises(ValueError, match="text and fusion frozen"):
        PretrainConfig(text_cache_mib=1, frozen=("text",), itc=ItcConfig(weight=1))
