"""Random views: boxes, phrases and captions go where the pixels go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pretrain_fixtures import toy_collate, toy_samples

from stages.pretrain.data.augmentation import (
    View,
    draw_view,
    swap_sides,
    view_boxes,
    view_picture,
    view_sample,
)
from stages.pretrain.data.collate import Collate
from stages.pretrain.data_config import AugmentConfig
from stages.pretrain.objectives.config import RegionConfig

PLAIN: dict[str, Any] = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0}


def _phrase(caption: str, text: str) -> dict[str, Any]:
    start = caption.index(text)
    return {"text": text, "start": start, "end": start + len(text), "similarity": [1.0]}


def test_boxes_go_where_the_pixels_go() -> None:
    """Oracle: a white rectangle on black is found again in the view's pixels, to two pixels (the
    resizing blurs its edge), for random crops, mirrored or not."""
    random = np.random.default_rng(0)
    config = AugmentConfig(min_area=0.5, mirror=0.5)
    for _ in range(30):
        box = np.array([[30, 20, 60, 44]], dtype=np.float32)
        pixels = np.zeros((80, 120, 3), np.uint8)
        pixels[20:44, 30:60] = 255
        view = draw_view(config, 120, 80, random)
        seen = view_picture(view, Image.fromarray(pixels), (240, 160))[..., 0] > 127
        left, top, right, bottom = view.box
        got = view_boxes(view, box)[0] * np.array([240 / (right - left), 160 / (bottom - top)] * 2)
        if not seen.any():
            assert got[0] >= got[2] - 2 or got[1] >= got[3] - 2
            continue
        rows, columns = seen.any(axis=1).nonzero()[0], seen.any(axis=0).nonzero()[0]
        wanted = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(got, wanted, atol=2)


def test_crops_keep_to_their_area_and_proportions() -> None:
    """Oracle: shares and proportions of 300 crops lie within the settings, to the rounding, fill
    their range and lie within the picture."""
    random = np.random.default_rng(1)
    config = AugmentConfig(min_area=0.4, max_stretch=1.5)
    shares = []
    for _ in range(300):
        left, top, right, bottom = draw_view(config, 200, 100, random).box
        assert 0 <= left < right <= 200 and 0 <= top < bottom <= 100
        shares.append((right - left) * (bottom - top) / 20_000)
        assert 2 / 1.5 - 0.05 <= (right - left) / (bottom - top) <= 2 * 1.5 + 0.05
    assert min(shares) >= 0.39 and min(shares) < 0.45 and max(shares) > 0.9


def test_left_and_right_change_places_with_their_phrases() -> None:
    """Oracle: the sentence written by hand; each phrase's span still reads its own words."""
    caption = "Left of a copyright sign, the right dog bites a LEFT hand"
    phrases = [_phrase(caption, text) for text in ("a copyright sign", "the right dog")]
    phrases.append(_phrase(caption, "a LEFT hand"))
    swapped, moved = swap_sides(caption, phrases)
    assert swapped == "Right of a copyright sign, the left dog bites a RIGHT hand"
    assert [p["text"] for p in moved] == ["a copyright sign", "the left dog", "a RIGHT hand"]
    assert all(swapped[p["start"] : p["end"]] == p["text"] for p in moved)
    assert swap_sides(swapped, moved) == (caption, phrases)


def test_objects_that_a_crop_leaves_out_go_with_their_similarities() -> None:
    """Oracle: by hand. A crop of the left half: of the first box all is left, of the second a
    quarter, of the third nothing; with at least 0.3 only the first stays."""
    sample = toy_samples(24, 6)[0]
    assert sample.objects is not None
    width, height = sample.info["width"], sample.info["height"]
    objects = np.repeat(sample.objects[:1], 3)
    half = width // 2
    objects["box"] = [[0, 0, 8, 8], [half - 4, 0, half + 12, 8], [half, 0, half + 8, 8]]
    objects["label"] = [0, 1, 2]
    caption = "a dog on the left"
    info = {
        **sample.info,
        "captions": [caption],
        "phrases": [[{**_phrase(caption, "a dog"), "similarity": [0.1, 0.2, 0.3]}]],
    }
    view = View(box=(0, 0, half, height), is_mirrored=True, **PLAIN)
    seen = view_sample(view, replace(sample, objects=objects, info=info), 0.3)
    assert seen.objects is not None and seen.objects["label"].tolist() == [0]
    assert seen.objects["box"].tolist() == [[half - 8, 0, half, 8]]
    assert seen.info["phrases"][0][0]["similarity"] == [0.1]
    assert seen.info["captions"] == ["a dog on the right"]
    assert (seen.info["width"], seen.info["height"]) == (half, height)
    assert objects["box"][0].tolist() == [0, 0, 8, 8]


def _collate(augment: AugmentConfig) -> Collate:
    regions = RegionConfig(min_overlap=0.0, pooling="overlap")
    return toy_collate(objectives=[], regions=regions, augment=augment)


def test_a_batch_of_views_depends_on_seed_position_and_key_alone() -> None:
    """Oracle: the same pixels again, whatever else is in the batch; others at another position."""
    collate = _collate(AugmentConfig(min_area=0.5, mirror=0.5, colour=0.3))
    samples = toy_samples(24, 6)[:4]
    first = collate(3, samples)
    assert torch.equal(first.pixels, collate(3, samples).pixels)
    assert torch.equal(first.pixels[1:3], collate(3, samples[1:3]).pixels)
    assert not torch.equal(first.pixels, collate(4, samples).pixels)


def test_a_mirrored_batch_has_mirrored_pixels_and_regions() -> None:
    """Oracle: the plain batch with its columns turned round."""
    samples = toy_samples(24, 6)[:4]
    plain, mirrored = (_collate(AugmentConfig(mirror=share))(0, samples) for share in (0.0, 1.0))
    torch.testing.assert_close(mirrored.pixels, plain.pixels.flip(3))
    regions = plain.regions.unflatten(-1, (2, 2)).flip(-1).flatten(-2)
    torch.testing.assert_close(mirrored.regions, regions, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "field, value", [("min_area", 0.0), ("mirror", 1.5), ("colour", 1.0), ("max_stretch", 0.5)]
)
def test_settings_out_of_range_are_refused(field: str, value: float) -> None:
    """Oracle: the error names the field."""
    with pytest.raises(ValueError, match=f"augment.{field}"):
        AugmentConfig(**{field: value})


def test_a_share_of_each_pictures_views_is_mirrored() -> None:
    """Oracle: the share. Of two views that come again exactly one is mirrored, for every picture; a
    draw of its own for each view would leave half of the pictures with two views alike."""
    collate = _collate(AugmentConfig(mirror=0.5, num_views=2))
    plain = _collate(AugmentConfig())
    samples = toy_samples(24, 6)[:4]
    seen: dict[str, set[bytes]] = {sample.key: set() for sample in samples}
    for position in range(12):
        for sample in samples:
            seen[sample.key].add(collate.decode(position, sample).pixels.tobytes())
    for sample in samples:
        array = plain.decode(0, sample)[1]
        assert seen[sample.key] == {array.tobytes(), array[:, ::-1].tobytes()}


def test_cached_pictures_are_not_decoded() -> None:
    """Oracle: the same batch but for its pixels, of pictures whose bytes end after the header,
    which cannot be decoded."""
    collate = _collate(AugmentConfig(mirror=0.5, num_views=2))
    samples = toy_samples(24, 6)[:4]
    wanted = collate(3, samples)
    cut = [replace(sample, image=sample.image[:-20]) for sample in samples]
    got = replace(collate, is_cached=lambda view: True)(3, cut)
    assert torch.equal(got.sizes_px, wanted.sizes_px)
    assert torch.equal(got.regions, wanted.regions) and torch.equal(got.tokens, wanted.tokens)
    assert got.pixels.shape == wanted.pixels.shape and not got.pixels.any()
    with pytest.raises(ValueError):
        collate(3, cut)
