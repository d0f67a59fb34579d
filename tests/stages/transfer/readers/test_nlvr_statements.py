"""Generated statements about NLVR's scenes: their truth, and what a text alone says of it."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.transfer.readers.nlvr import read_nlvr
from stages.transfer.readers.nlvr_statements import Scene, colors_upwards, scene_of, statements
from stages.transfer.readers.records import ReaderError

NUMBERS = {"a": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7}


def _block(color: str, level: int) -> dict:
    return {"color": color, "type": "square", "size": 20, "x_loc": 40, "y_loc": 80 - 21 * level}


BLUE = "#0099ff"
TOWERS = [
    [_block("Black", 0), _block("Yellow", 1)],
    [_block(BLUE, 0)],
    [_block("Yellow", 2), _block("Black", 0), _block("Black", 1)],
]
SCATTERED = [
    [{"color": "Black", "type": "circle", "size": 30, "x_loc": 0, "y_loc": 50},
     {"color": "Yellow", "type": "triangle", "size": 10, "x_loc": 90, "y_loc": 90}],
    [{"color": BLUE, "type": "square", "size": 20, "x_loc": 30, "y_loc": 30}],
    [{"color": "Black", "type": "square", "size": 20, "x_loc": 50, "y_loc": 80},
     {"color": "Black", "type": "circle", "size": 10, "x_loc": 20, "y_loc": 5}],
]  # fmt: skip


def _said(words: str) -> Callable[[int], bool]:
    """What "exactly two" and the like ask of a number."""
    how, _, word = words.strip().rpartition(" ")
    if word == "no":
        return lambda n: n == 0
    number = NUMBERS[word] if word in NUMBERS else int(word)
    return (lambda n: n >= number) if how == "at least" or word == "a" else lambda n: n == number


def _count(pattern: str, text: str, found: Callable[[re.Match[str]], int]) -> bool | None:
    match = re.fullmatch(
        rf"there (?:is|are) (?P<count>(?:exactly |only |at least )?[a-z0-9]+) {pattern}", text
    )
    return None if match is None else _said(match["count"])(found(match))


def _of_towers(text: str) -> bool | None:
    """The truth of some kinds of statements about TOWERS, by hand."""
    have = "(?:with|which has|having)"
    tops, bases = Counter(yellow=2, blue=1), Counter(black=2, blue=1)
    checks = (
        _count(rf"towers? {have} a (\w+) block at the top", text, lambda m: tops[m[2]]),
        _count(rf"towers? {have} a (\w+) block at the base", text, lambda m: bases[m[2]]),
        _count(r"(black|yellow|blue) blocks?", text, lambda m: Counter(
            black=3, yellow=2, blue=1)[m[2]]),
        _count(r"(\w+) blocks? (?:on|above|over) a (\w+) block", text, lambda m: Counter(
            {("yellow", "black"): 2, ("black", "black"): 1})[(m[2], m[3])]),
    )  # fmt: skip
    return next((check for check in checks if check is not None), None)


def _of_scattered(text: str) -> bool | None:
    """The same of SCATTERED: circle and triangle touch edges, and the square of the last box."""
    things = ("black circle", "yellow triangle", "blue square", "black square", "black circle")
    touches = (True, True, False, True, False)
    at_edge = r"(?:the edge|any edge|the wall|the side)"
    checks = (
        _count(r"((?:black|blue|yellow) (?:circle|square|triangle))s?", text, lambda m: things.count(m[2])),
        _count(rf"((?:black|blue|yellow) (?:circle|square|triangle))s? (not )?(?:closely )?touching {at_edge}", text,
               lambda m: sum(t == m[2] and at != bool(m[3]) for t, at in zip(things, touches))),
    )  # fmt: skip
    return next((check for check in checks if check is not None), None)


@pytest.mark.parametrize("boxes, truth_of", [(TOWERS, _of_towers), (SCATTERED, _of_scattered)])
def test_statements_have_their_truth(
    boxes: list[list[dict]], truth_of: Callable[[str], bool | None]
) -> None:
    """Oracle: patterns of some kinds of statements, the numbers counted by hand; as many statements
    are true as false."""
    made = statements(scene_of(boxes), 600, random.Random(1))
    checked = Counter()
    for text, truth in made:
        expected = truth_of(text)
        if expected is not None:
            assert truth == expected, text
            checked[truth] += 1
    assert min(checked[True], checked[False]) > 25
    assert sum(truth for _, truth in made) == 300


def test_the_same_seed_gives_the_same_statements() -> None:
    """Oracle: another draw from the same seed, and one from another."""
    scene: Scene = scene_of(SCATTERED)
    one, again, other = (statements(scene, 8, random.Random(seed)) for seed in ("a", "a", "b"))
    assert one == again != other and len(one) == 8


def test_towers_are_read_from_their_base() -> None:
    """Oracle: by hand, whatever the order in the file."""
    assert [colors_upwards(box) for box in scene_of(TOWERS)] == [
        ["black", "yellow"], ["blue"], ["black", "black", "yellow"]
    ]  # fmt: skip


def _file(folder: Path, **fields: object) -> Path:
    row = {"identifier": "7-0", "directory": "3", "sentence": "It is.", "label": "true",
           "structured_rep": TOWERS, **fields}  # fmt: skip
    (folder / "3").mkdir(exist_ok=True)
    for order in range(2):
        (folder / "3" / f"train-7-0-{order}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    path = folder / "train.json"
    path.write_text(json.dumps(row) + "\n")
    return path


def test_statements_stand_beside_the_sentence(tmp_path: Path) -> None:
    """Oracle: by hand: of each picture its sentence and three statements, each once."""
    path = _file(tmp_path)
    found = read_nlvr(path, tmp_path, split="train", num_orders=2, num_statements=3).examples
    assert [example.id for example in found] == [
        f"7-0-{order}{end}" for order in (0, 1) for end in ("", "-s0", "-s1", "-s2")
    ]
    assert [example.texts for example in found[::4]] == [("It is.",)] * 2
    assert {example.label for example in found} == {"True", "False"}
    assert len({example.images for example in found}) == 2


@pytest.mark.parametrize(
    "rep",
    [None, [], [[], []], [[{}]] * 3, {"a": 1}, "towers", [[{**TOWERS[0][0], "size": "x"}]] * 3],
)
def test_a_scene_that_cannot_be_read_is_named(rep: object, tmp_path: Path) -> None:
    """Oracle: file, line and field."""
    path = _file(tmp_path, structured_rep=rep)
    assert read_nlvr(path, tmp_path, split="train", num_orders=1).examples
    with pytest.raises(ReaderError, match=r"train\.json:1: structured_rep: got"):
        read_nlvr(path, tmp_path, split="train", num_orders=1, num_statements=2)
