"""The toy data set: what is drawn, said and true of it."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from stages.ingest.sources.source import Picture
from stages.ingest.sources.toy import COLOURS, GAP_PX, SHAPES, SIDE_PX, SIZES_PX, ToySource

PHRASE = rf"(?:a|the) (?:(small|large) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
CAPTION = re.compile(f"{PHRASE} (left of|right of|above|below) {PHRASE}(?: and {PHRASE})?")


@pytest.fixture(scope="module")
def world() -> list[Picture]:
    """400 scenes of one seed."""
    source = ToySource(num_train=300, num_heldout=100, seed=3)
    pictures = [p for p in source.pictures() if isinstance(p, Picture)]
    assert len(pictures) == 400
    return pictures


def _truth(picture: Picture) -> dict:
    assert picture.truth is not None
    return picture.truth


def test_the_same_seed_gives_the_same_bytes(world: list[Picture]) -> None:
    """Oracle: a second world of the seed, however many train scenes it has; another seed's."""
    again = ToySource(num_train=20, num_heldout=100, seed=3).pictures()[:120]
    other = ToySource(num_train=20, num_heldout=100, seed=4).pictures()[:120]
    by_key = {p.key: p for p in world}
    for a, b in zip(again, other):
        assert isinstance(a, Picture) and isinstance(b, Picture)
        mine = by_key[a.key]
        assert (a.captions, a.truth) == (mine.captions, mine.truth)
    for a, b in list(zip(again, other))[::10]:
        assert isinstance(a, Picture) and isinstance(b, Picture)
        assert a.read() == by_key[a.key].read() != b.read()


def test_the_fingerprint_tells_worlds_apart() -> None:
    """Oracle: equal settings, equal print; any other, another."""
    settings = [(10, 5, 0), (10, 5, 1), (10, 6, 0), (11, 5, 0)]
    prints = [
        ToySource(num_train=a, num_heldout=b, seed=c).fingerprint()
        for a, b, c in [*settings, settings[0]]
    ]
    assert len(set(prints)) == 4 and prints[0] == prints[-1]


def test_the_splits_share_no_scene(world: list[Picture]) -> None:
    """Oracle: the sets of (shape, colour, size told by the box) and the bytes of the pictures."""
    kinds: dict[str, set] = {"train": set(), "heldout": set()}
    drawn: dict[str, set] = {"train": set(), "heldout": set()}
    for picture in world:
        truth = _truth(picture)
        sizes = [_size(box) for box in truth["boxes"]]
        kinds[picture.split].add(frozenset(zip(truth["labels"], truth["attributes"], sizes)))
        drawn[picture.split].add(picture.read())
    assert not kinds["train"] & kinds["heldout"] and not drawn["train"] & drawn["heldout"]
    assert len({p.key for p in world}) == len(world)


def _size(box: list[float]) -> str:
    return next(n for n, (least, most) in SIZES_PX.items() if least <= box[2] - box[0] <= most)


def test_boxes_lie_inside_and_apart(world: list[Picture]) -> None:
    """Oracle: plain comparisons of every two boxes; two to five objects, no two of one shape and
    colour, so that a phrase means one of them."""
    for picture in world:
        truth = _truth(picture)
        boxes = np.array(truth["boxes"])
        assert 2 <= len(boxes) <= 5
        assert (boxes >= 0).all() and (boxes <= SIDE_PX).all()
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                gaps = np.concatenate([a[:2] - b[2:], b[:2] - a[2:]])
                assert gaps.max() >= GAP_PX
        assert len(set(zip(truth["labels"], truth["attributes"]))) == len(boxes)


def test_captions_are_true_and_phrases_name_their_objects(world: list[Picture]) -> None:
    """Oracle: every caption is read back by a regular expression, each phrase's words looked up
    in the truth of the object it claims, and the relation measured between the boxes' middles."""
    for picture in world:
        truth = _truth(picture)
        assert len(picture.captions) == len(truth["phrases"]) == 4
        for caption, phrases in zip(picture.captions, truth["phrases"]):
            match = CAPTION.fullmatch(caption)
            assert match, caption
            groups = match.groups()
            words = [groups[0:3], groups[4:7], groups[7:10]][: len(phrases)]
            assert len(phrases) == min(3, len(truth["boxes"]))
            assert len({tuple(p["objects"]) for p in phrases}) == len(phrases)
            for (size, colour, shape), phrase in zip(words, phrases):
                (row,), text = phrase["objects"], caption[phrase["start"] : phrase["end"]]
                assert re.fullmatch(PHRASE, text), text
                assert (shape, colour) == (truth["labels"][row], truth["attributes"][row])
                assert text.endswith(f"{colour} {shape}")
                assert size in (None, _size(truth["boxes"][row]))
            _check_relation(groups[3], *(truth["boxes"][p["objects"][0]] for p in phrases[:2]))


def _check_relation(relation: str, a: list[float], b: list[float]) -> None:
    dx, dy = (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2
    right = {"left of": dx < 0, "right of": dx > 0, "above": dy < 0, "below": dy > 0}[relation]
    across = relation.endswith("of")
    assert right and (abs(dx) > abs(dy) if across else abs(dy) >= abs(dx)), (relation, dx, dy)


def test_every_object_is_drawn_in_its_colour_and_in_its_box(world: list[Picture]) -> None:
    """Oracle: pixels. In its box a tenth or more is within 30 of the object's colour, and more of
    it than of any other."""
    for picture in world[::20]:
        pixels = np.asarray(Image.open(io.BytesIO(picture.read()))).astype(int)
        assert pixels.shape == (SIDE_PX, SIDE_PX, 3)
        truth = _truth(picture)
        for box, colour in zip(truth["boxes"], truth["attributes"]):
            x0, y0, x1, y1 = map(int, box)
            part = pixels[y0:y1, x0:x1]
            near = {
                name: (np.abs(part - value).max(axis=-1) < 30).mean()
                for name, value in COLOURS.items()
            }
            assert near[colour] > 0.1 and max(near, key=lambda n: near[n]) == colour, near


def test_every_word_of_the_world_occurs(world: list[Picture]) -> None:
    """Oracle: all shapes, colours, sizes and relations are in 400 scenes; captions of a scene
    differ more often than not."""
    text = " ".join(caption for p in world for caption in p.captions)
    for word in (*SHAPES, *COLOURS, *SIZES_PX, "left of", "right of", "above", "below", " and "):
        assert word in text, word
    assert np.mean([len(set(p.captions)) > 2 for p in world]) > 0.9
