"""From samples to a batch: captions, objects, phrases, masks, and what only position decides."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from pretrain_fixtures import (
    FEATURE_SIZE,
    TINY,
    tiny_student,
    toy_collate,
    toy_samples,
    toy_tokenizer,
    with_boxes,
    write_objects,
)

from sharding.format.resize import Resize
from sharding.format.schema import Sample, object_dtype
from sharding.reading.dataset_source import DatasetSource
from stages.pretrain.config import PretrainConfig
from stages.pretrain.data.batch import Batch
from stages.pretrain.data.batch_source import open_stream
from stages.pretrain.model import PretrainModel, make_objectives
from stages.pretrain.objectives.config import ItmConfig, PraConfig, RegionConfig
from stages.pretrain.objectives.objective import Objective
from stages.student.vision.grid import region_weights

SAMPLES = toy_samples(24, 6)


def _objectives(config: PretrainConfig) -> list[Objective]:
    return [objective for _, objective in make_objectives(config).values()]


def _with_info(sample: Sample, **info: Any) -> Sample:
    return replace(sample, info={**sample.info, **info})


def test_objects_are_stacked_with_padding() -> None:
    """Oracle: each sample's own array, row by row; label -1 and nothing else beyond it."""
    samples = [SAMPLES[0], with_boxes(SAMPLES[1], []), SAMPLES[2]]
    batch = toy_collate()(0, samples)
    for n, sample in enumerate(samples):
        assert sample.objects is not None
        rows = len(sample.objects)
        for name in ("score", "label", "feature", "top_label", "top_score"):
            got = getattr(batch, name)[n, :rows].numpy()
            assert got == pytest.approx(sample.objects[name].astype(got.dtype)), name
        assert (batch.label[n, rows:] == -1).all() and not batch.regions[n, rows:].any()
        assert batch.regions[n, :rows].any(dim=-1).all()
    assert batch.feature.shape[2] == FEATURE_SIZE and batch.keys == [s.key for s in samples]


def test_a_single_object_comes_in_whole() -> None:
    """Oracle: the array itself. A field of one row may have strides that PyTorch refuses, where
    the row's bytes are no multiple of the field's."""
    sample = SAMPLES[0]
    wide = object_dtype(feature_size=5, num_top=3, attributes=False)
    assert wide.itemsize % 4
    objects = np.zeros(1, wide)
    objects["box"], objects["label"], objects["top_label"] = (0, 0, 9, 9), 2, (2, 0, 1)
    objects["feature"] = np.arange(5)
    info = {**sample.info, "phrases": [[] for _ in sample.info["captions"]]}
    one = np.frombuffer(objects.tobytes() * 2, wide)[1:]
    batch = toy_collate()(0, [replace(sample, objects=one, info=info)])
    assert batch.label.tolist() == [[2]]
    assert batch.top_label.tolist() == [[[2, 0, 1]]]
    assert batch.feature.tolist() == [[[0, 1, 2, 3, 4]]]


def test_objects_and_phrases_are_those_of_each_picture_and_caption() -> None:
    """Oracle: loops over pictures and phrases; among them a picture without objects, and captions
    of other lengths."""
    first, *others = toy_samples(4, 1)
    samples = [with_boxes(first, []), *others]
    collate = toy_collate(captions_per_picture=2)
    batch = collate(3, samples)
    texts = [sample.info["captions"] for sample in samples]
    row = 0
    for n, sample in enumerate(samples):
        assert sample.objects is not None
        num, objects = len(sample.objects), sample.objects
        assert (batch.label[n, num:] == -1).all() and not batch.feature[n, num:].any()
        scale = batch.sizes_px[n].numpy() / [sample.info["height"], sample.info["width"]]
        boxes = torch.from_numpy(objects["box"] * np.float32([scale[1], scale[0]] * 2))
        grid = [side // 16 for side in batch.pixels.shape[2:]]
        assert torch.equal(batch.regions[n, :num], region_weights(boxes, *grid, 16))
        for name in ("score", "label", "top_label", "top_score", "feature"):
            expected = objects[name].astype(np.float64)
            assert (getattr(batch, name)[n, :num].numpy() == expected).all()
        for _ in range(2):
            text = collate.tokenizer.decode(batch.tokens[row], skip_special_tokens=True)
            (caption,) = {
                c for c, one in enumerate(texts[n]) if one.lower().split() == text.split()
            }
            offsets = collate.tokenizer(texts[n][caption], return_offsets_mapping=True)
            for p, phrase in enumerate(sample.info["phrases"][caption]):
                spans = offsets["offset_mapping"]
                pieces = [s < phrase["end"] and e > phrase["start"] for s, e in spans]
                pieces += [False] * (batch.phrases.shape[2] - len(pieces))
                assert batch.phrases[row, p].tolist() == pieces
                similarity = torch.tensor(phrase["similarity"])
                assert torch.equal(batch.similarity[row, p, :num], similarity)
                assert not batch.similarity[row, p, num:].any()
            row += 1
    assert row == len(batch.tokens)


def test_boxes_follow_the_resizing() -> None:
    """Oracle: the 96 px scene is seen at 32 px, 2 x 2 cells of 16: a box over the right half of
    the original covers the right cells, whatever else."""
    batch = toy_collate()(0, [with_boxes(SAMPLES[0], [[48, 0, 96, 96], [0, 0, 96, 47]])])
    assert batch.regions[0].tolist() == [[0, 0.5, 0, 0.5], [0.5, 0.5, 0, 0]]


def test_regions_are_as_the_recipe_says() -> None:
    """Oracle: by hand. A box over the left cells and a quarter of the right ones' width: by centres
    it has the left ones; by any overlap all, and by overlap the right ones a quarter as much."""
    sample = [with_boxes(SAMPLES[0], [[0, 0, 60, 96]])]
    every = RegionConfig(min_overlap=0.0)
    weighed = RegionConfig(min_overlap=0.0, pooling="overlap")
    for regions, wanted in (
        (RegionConfig(), [0.5, 0, 0.5, 0]),
        (every, [0.25] * 4),
        (weighed, [0.4, 0.1, 0.4, 0.1]),
    ):
        assert toy_collate(regions=regions)(0, sample).regions[0, 0].tolist() == pytest.approx(
            wanted
        )
    with pytest.raises(ValueError, match="regions.min_overlap: got 2.0"):
        RegionConfig(min_overlap=2.0)


def test_phrases_cover_the_pieces_of_their_words() -> None:
    """Oracle: the pieces of a phrase, decoded, are the phrase; similarities stand in their row."""
    tokenizer, batch = toy_tokenizer(), toy_collate()(0, SAMPLES[:5])
    pairs = [(s, c) for s in SAMPLES[:5] for c in range(4)]
    for b, (sample, caption) in enumerate(pairs):
        phrases = sample.info["phrases"][caption]
        for p, phrase in enumerate(phrases):
            pieces = batch.tokens[b][batch.phrases[b, p]]
            assert tokenizer.decode(pieces) == phrase["text"]
            similarity = phrase["similarity"]
            assert batch.similarity[b, p, : len(similarity)].tolist() == pytest.approx(similarity)
        assert not batch.phrases[b, len(phrases) :].any()


def test_a_phrase_that_is_cut_off_is_padding() -> None:
    """Oracle: with room for [CLS], four pieces and [SEP] the first phrase is at most four pieces
    and later ones are none; special pieces never belong to a phrase."""
    batch = toy_collate(max_tokens=6)(0, SAMPLES[:4])
    assert batch.tokens.shape[1] == 6
    assert batch.phrases[:, 0].any(dim=-1).all() and not batch.phrases[:, 2].any()
    assert not (batch.phrases & ~batch.ordinary[:, None]).any()


def test_captions_without_phrases_and_no_objects_at_all_run_through() -> None:
    """Oracle: a finite loss with a gradient, of all objectives, on the barest samples."""
    bare = [
        _with_info(replace(s, objects=s.objects[:0]), phrases=[[] for _ in s.info["captions"]])
        for s in SAMPLES[:2]
        if s.objects is not None
    ]
    for region in ("object", "cell"):
        config = PretrainConfig(pra=PraConfig(region=region))
        batch = toy_collate(objectives=_objectives(config))(0, bare)
        model = PretrainModel(tiny_student(), make_objectives(config))
        loss, scores = model(batch)
        loss.backward()
        assert scores["omvm"].loss.item() == scores["pra"].loss.item() == 0
        assert scores["mlm"].loss.item() > 0 and scores["itm"].loss.item() > 0
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_boxes_that_stick_out_keep_the_loss_finite() -> None:
    """Oracle: boxes of a foreign teacher, beyond the picture or without area on its edge, in a
    batch with a larger picture: their cells are cells of the picture, and the loss is finite."""
    wide = io.BytesIO()
    Image.new("RGB", (96, 48)).save(wide, "PNG")
    samples = [
        with_boxes(SAMPLES[0], [[60, 60, 300, 300], [96, 96, 96, 96]]),
        with_boxes(replace(_with_info(SAMPLES[1], height=48), image=wide.getvalue()), []),
    ]
    config = PretrainConfig(itm=ItmConfig(weight=0))
    batch = toy_collate(objectives=_objectives(config))(0, samples)
    student = tiny_student()
    inside = student.encode_image(batch.pixels, batch.sizes_px).inside
    assert inside.sum(dim=1).tolist() == [4, 8] and not (batch.regions * ~inside[:, None]).any()
    assert batch.regions[0, :2].any(dim=-1).all()
    loss, _ = PretrainModel(student, make_objectives(config))(batch)
    assert loss.isfinite()


def test_captions_are_drawn_without_repeats_and_all_used_over_time() -> None:
    """Oracle: 2 of 4, distinct, in order; over 60 positions every caption comes up about half the
    time; with room for all, all come once."""
    tokenizer, counts = toy_tokenizer(), np.zeros(4)
    sample = _with_info(SAMPLES[0], captions=["red", "green", "purple", "white"], phrases=[[]] * 4)
    words = [tokenizer(text)["input_ids"][1] for text in sample.info["captions"]]
    for position in range(60):
        batch = toy_collate(captions_per_picture=2)(position, [sample])
        rows = [words.index(piece) for piece in batch.tokens[:, 1].tolist()]
        assert rows == sorted(set(rows)) and len(rows) == 2
        counts[rows] += 1
    assert (counts > 15).all(), counts
    assert toy_collate()(0, [sample]).tokens[:, 1].tolist() == words


def test_false_sentences_come_in_as_not_matched() -> None:
    """Oracle: the source's own truth; all true where it says nothing."""
    truths = [True, False, True, False]
    sample = _with_info(SAMPLES[0], truth={**SAMPLES[0].info["truth"], "captions": truths})
    assert toy_collate()(0, [sample]).matched.tolist() == truths
    assert toy_collate()(0, [SAMPLES[0]]).matched.all()


def test_position_and_seed_decide_everything_random() -> None:
    """Oracle: equal tensors for the same (seed, position), others for another of either."""
    config = PretrainConfig()

    def make(seed: int, position: int) -> Batch:
        return toy_collate(objectives=_objectives(config), seed=seed, captions_per_picture=2)(
            position, SAMPLES[:6]
        )

    first = make(0, 5)
    for name, value in vars(make(0, 5)).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(first, name)), name
    for other in (make(1, 5), make(0, 6)):
        assert not torch.equal(first.matched, other.matched) or not torch.equal(
            first.mlm_labels, other.mlm_labels
        )


def test_masks_do_not_show_which_pairs_are_negative() -> None:
    """Oracle: over 60 batches the shares of [MASK] among pieces and of masked cells are the same
    for mismatched and matched pairs within four standard errors (of pairs, as pieces of one are
    drawn together)."""
    collate = toy_collate(objectives=_objectives(PretrainConfig()))
    mask_id = toy_tokenizer().mask_token_id
    pieces: list[torch.Tensor] = []
    cells: list[torch.Tensor] = []
    matched: list[torch.Tensor] = []
    for position in range(60):
        start = position % 20
        batch = collate(position, SAMPLES[start : start + 8])
        hidden = (batch.tokens == mask_id).float().sum(dim=1)
        pieces.append(hidden / batch.ordinary.float().sum(dim=1))
        cells.append(batch.masked_cells.float().mean(dim=1))
        matched.append(batch.matched)
    own = torch.cat(matched)
    assert 0.4 < own.float().mean() < 0.6
    for parts in (pieces, cells):
        values = torch.cat(parts)
        a, b = values[own], values[~own]
        error = (a.var() / len(a) + b.var() / len(b)).sqrt()
        assert values.mean() > 0.05 and (a.mean() - b.mean()).abs() < 4 * error


def test_an_image_shard_is_refused() -> None:
    """Oracle: ValueError with the key, not an AttributeError."""
    with pytest.raises(ValueError, match=f"{SAMPLES[0].key}.*image shard"):
        toy_collate()(0, [replace(SAMPLES[0], objects=None)])


def test_the_sum_of_weighted_losses() -> None:
    """Oracle: the losses of the four objectives, added up here by the recipe's weights."""
    config = PretrainConfig()
    objectives = make_objectives(config)
    weighted = {name: (w + i, o) for i, (name, (w, o)) in enumerate(objectives.items())}
    batch = toy_collate(objectives=_objectives(config))(0, SAMPLES[:4])
    loss, scores = PretrainModel(tiny_student(), weighted)(batch)
    assert loss.item() == pytest.approx(
        sum((i + 1) * s.loss.item() for i, s in enumerate(scores.values())), rel=1e-5
    )
    assert list(scores) == ["itm", "mlm", "omvm", "pra"]


@pytest.mark.parametrize("group_by", ["none", "resized"])
def test_any_pictures_share_micro_batches_where_the_recipe_says_so(
    group_by: Literal["none", "resized"], tmp_path: Path
) -> None:
    """Oracle: counting. With no groups every micro-batch of an epoch but the last is full; groups
    of two sizes leave more of them that are not. Either way each sample comes once."""
    samples = [
        replace(sample, info={**sample.info, "width": sample.info["width"] * (1 + number % 2)})
        for number, sample in enumerate(toy_samples(24, 6))
    ]
    folder = write_objects(tmp_path, samples)
    config = PretrainConfig(micro_batch_size=5, group_by=group_by)
    stream = open_stream(
        [DatasetSource(folder=folder)],
        config,
        seed=0,
        resize=Resize(shorter_px=TINY.shorter_px, longer_px=TINY.longer_px),
        shape_step_px=16,
    )
    sizes = [len(stream.plan[position].samples) for position in range(stream.num_micro_batches)]
    assert sum(sizes) == 24
    assert (sorted(sizes) == [4, 5, 5, 5, 5]) == (group_by == "none")
