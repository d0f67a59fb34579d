"""Statements about NLVR's scenes with their truth, from a grammar (ours).

The corpus has few sentences for what they ask of a network: to count, in each box and over boxes,
things with a colour, a shape and a place. Its `structured_rep` says what is where, so that more
statements can be made of its training pictures, each with its truth.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boxless.errors import BoxlessError
from stages.annotations.nlvr import COLORS

SHAPES = ("square", "circle", "triangle")
NUM_BOXES = 3
BOX_PX = 100
BLOCK_PX = 20
NUM_TRIES = 40
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven")


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A coloured shape; x and y of its top left corner in its box, pixels."""

    color: str
    shape: str
    x: float
    y: float
    size: float

    def touches(self) -> tuple[bool, bool, bool, bool]:
        """Which sides of its box it touches: left, top, right, bottom."""
        far = BOX_PX - self.size
        return self.x <= 0, self.y <= 0, self.x >= far, self.y >= far


Box = tuple[Thing, ...]
Scene = tuple[Box, ...]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A noun, what follows it, and what it is true of: things or boxes."""

    noun: str
    rest: str
    holds: Callable[[Any], bool]

    def words(self, *, is_plural: bool) -> str:
        """The noun in singular or plural, and what follows it."""
        ending = ("es" if self.noun.endswith("x") else "s") if is_plural else ""
        return f"{self.noun}{ending} {self.rest}".strip()


Statement = tuple[str, bool]


def scene_of(boxes: Sequence[Sequence[Mapping[str, Any]]]) -> Scene:
    """The scene of a `structured_rep`, three boxes, not all of them empty. Raises ValueError where
    it is none."""
    try:
        scene = tuple(
            tuple(
                Thing(
                    color=COLORS[thing["color"]],
                    shape=SHAPES[SHAPES.index(thing["type"])],
                    x=float(thing["x_loc"]),
                    y=float(thing["y_loc"]),
                    size=float(thing["size"]),
                )
                for thing in box
            )
            for box in boxes
        )
    except (KeyError, TypeError) as error:
        raise BoxlessError(f"no scene of NLVR: {type(error).__name__} {error}") from None
    if len(scene) != NUM_BOXES or not any(scene):
        raise BoxlessError(f"no scene of NLVR: got {len(scene)} boxes, expected three with things")
    return scene


def statements(scene: Scene, number: int, rng: random.Random) -> list[Statement]:
    """So many statements about a scene, true and false ones in turn: those of a pair are of one
    rule of the grammar, so that the rule does not give the truth away."""
    made: list[Statement] = []
    rules = TOWER_RULES if all(map(is_tower, scene)) else SCATTER_RULES
    weights = [weight for _, weight in rules]
    while len(made) < number:
        [(rule, _)] = rng.choices(rules, weights)
        made += _pair(rule, scene, rng)
    return made[:number]


def _pair(rule: Rule, scene: Scene, rng: random.Random) -> list[Statement]:
    """A true statement and a false one by a rule, or none where only one kind is found."""
    found: dict[bool, str] = {}
    for _ in range(NUM_TRIES):
        text, truth = rule(scene, rng)
        found.setdefault(truth, " ".join(text.split()))
        if len(found) == 2:
            return [(found[True], True), (found[False], False)]
    return []


def is_tower(box: Box) -> bool:
    """Whether the things of a box are blocks one on the other."""
    return bool(box) and all(t.shape == "square" and t.size == BLOCK_PX and t.x == 40 for t in box)


def colors_upwards(box: Box) -> list[str]:
    """Colours of a tower's blocks, from its base."""
    return [thing.color for thing in sorted(box, key=lambda thing: -thing.y)]


def _counted(kind: Kind, found: int, rng: random.Random) -> Statement:
    """There are exactly two of a kind, or the like, where there are `found`: the number that is
    said is near it, so that the number alone does not give the truth away."""
    number = max(1, min(found + rng.choice((-1, 0, 0, 1)), len(NUMBERS) - 1))
    word = rng.choice((NUMBERS[number], str(number)))
    many = number > 1
    start = "there are" if many else "there is"
    words, is_plural, truth = rng.choice(
        (
            ("there is a", False, found >= 1),
            (f"{start} {word}", many, found == number),
            (f"{start} exactly {word}", many, found == number),
            (f"{start} only {word}", many, found == number),
            (f"{start} at least {word}", many, found >= number),
            ("there is no", False, found == 0),
        )
    )
    return f"{words} {kind.words(is_plural=is_plural)}", truth


def _amount(rng: random.Random, most: int) -> tuple[str, bool, Callable[[int], bool]]:
    """ "at least two": the words, whether a plural follows, and whether a number is that."""
    number = rng.randint(1, most)
    word = rng.choice((NUMBERS[number], str(number)))
    how = rng.choice(("", "only", "exactly", "at least"))
    holds = (lambda n: n >= number) if how == "at least" else (lambda n: n == number)
    return f"{how} {word}", number > 1, holds


def _color(rng: random.Random) -> str:
    return rng.choice([*COLORS.values()])


def _thing(rng: random.Random, nouns: Sequence[str]) -> Kind:
    """A thing of a colour, a shape, or both. `nouns`: shapes, and words for any of them."""
    noun = rng.choice(nouns)
    color = _color(rng) if noun not in SHAPES or rng.random() < 0.7 else None
    return Kind(
        noun=f"{color or ''} {noun}".strip(),
        rest="",
        holds=lambda t: (color in (None, t.color)) and (noun not in SHAPES or t.shape == noun),
    )


SCATTERED = (*SHAPES, "item", "object")
BLOCKS = ("block",)


def _nouns(scene: Scene) -> Sequence[str]:
    return BLOCKS if all(map(is_tower, scene)) else SCATTERED


def _tower(rng: random.Random) -> Kind:
    """A tower with a block of a colour somewhere, or so many blocks."""
    color, other = _color(rng), _color(rng)
    end = rng.choice(("top", "base"))
    place = -1 if end == "top" else 0
    words, is_plural, holds = _amount(rng, 4)
    of_color, many, amount = _amount(rng, 3)
    have = rng.choice(("with", "which has", "having"))
    on = rng.choice(("over", "above", "on", "on top of"))
    rest, test = rng.choice(
        (
            (f"{have} a {color} block at the {end}", lambda t: t[place] == color),
            (f"{have} a {color} block at the {end}", lambda t: t[place] == color),
            (f"{have} a {color} {end}", lambda t: t[place] == color),
            (
                f"{have} a {color} block {on} a {other} block",
                lambda t: (other, color) in zip(t, t[1:]),
            ),
            (f"{have} {words} block{'s' * is_plural}", lambda t: holds(len(t))),
            (f"{have} {of_color} {color} block{'s' * many}", lambda t: amount(t.count(color))),
            (f"{have} only {color} blocks", lambda t: set(t) == {color}),
            (f"{have} only {color} and {other} blocks", lambda t: set(t) == {color, other}),
            (f"{have} only one color", lambda t: len(set(t)) == 1),
        )
    )
    return Kind(noun="tower", rest=rest, holds=lambda box: test(colors_upwards(box)))


def _box(rng: random.Random, nouns: Sequence[str]) -> Kind:
    """A box with so many things, or colours."""
    color, other = _color(rng), _color(rng)
    words, many, amount = _amount(rng, 5)
    few, several, holds = _amount(rng, 2)
    thing, second = _thing(rng, nouns), _thing(rng, nouns)
    num_colors = rng.randint(1, 3)
    colors = ("only one color", "2 different colors", "all 3 different colors")[num_colors - 1]
    rest, test = rng.choice(
        (
            (f"with {words} item{'s' * many}", lambda b: amount(len(b))),
            (
                f"with {few} {thing.words(is_plural=several)}",
                lambda b: holds(sum(map(thing.holds, b))),
            ),
            (f"with items of {colors}", lambda b: len({t.color for t in b}) == num_colors),
            (
                f"with only {color} and {other} items",
                lambda b: {t.color for t in b} == {color, other},
            ),
            (
                f"with a {thing.words(is_plural=False)} and a {second.words(is_plural=False)}",
                lambda b: any(map(thing.holds, b)) and any(map(second.holds, b)),
            ),
        )
    )
    return Kind(noun=rng.choice(("box", "grey box")), rest=rest, holds=test)


PLACES: tuple[tuple[str, Callable[[tuple[bool, ...]], bool]], ...] = (
    ("the edge", any),
    ("any edge", any),
    ("the wall", any),
    ("the side", any),
    ("the corner", lambda sides: (sides[0] or sides[2]) and (sides[1] or sides[3])),
    ("a corner of a box", lambda sides: (sides[0] or sides[2]) and (sides[1] or sides[3])),
    ("the bottom of a box", lambda sides: sides[3]),
    ("the base", lambda sides: sides[3]),
    ("right wall of a box", lambda sides: sides[2]),
)


def count_towers(scene: Scene, rng: random.Random) -> Statement:
    """There are two towers with a black block at the top."""
    kind = _tower(rng)
    return _counted(kind, sum(map(kind.holds, scene)), rng)


def count_ends(scene: Scene, rng: random.Random) -> Statement:
    """There is a blue block as the base of a tower with at least two blocks."""
    end, color = rng.choice(("top", "base")), _color(rng)
    place = -1 if end == "top" else 0
    words, is_plural, holds = _amount(rng, 4)
    says_height = rng.random() < 0.5
    rest = f"as the {end} of a tower"
    if says_height:
        rest += f" with {words} block{'s' * is_plural}"
    kind = Kind(
        noun=f"{color} block",
        rest=rest,
        holds=lambda b: colors_upwards(b)[place] == color and (not says_height or holds(len(b))),
    )
    return _counted(kind, sum(map(kind.holds, scene)), rng)


def count_stacked(scene: Scene, rng: random.Random) -> Statement:
    """There is a yellow block on a blue block."""
    color, other = _color(rng), _color(rng)
    found = sum(
        [*zip(tower, tower[1:])].count((other, color)) for tower in map(colors_upwards, scene)
    )
    on = rng.choice(("on", "above", "over"))
    kind = Kind(noun=f"{color} block", rest=f"{on} a {other} block", holds=bool)
    return _counted(kind, found, rng)


def of_the_tower(scene: Scene, rng: random.Random) -> Statement:
    """The tower with four blocks has a black block at the top."""
    heights = [len(box) for box in scene]
    single = [height for height in heights if heights.count(height) == 1]
    if not single:
        return count_towers(scene, rng)
    height = rng.choice(single)
    tower = colors_upwards(scene[heights.index(height)])
    end, color = rng.choice(("top", "base")), _color(rng)
    blocks = f"{rng.choice((NUMBERS[height], str(height)))} block{'s' * (height > 1)}"
    text = rng.choice(
        (
            f"the tower with {blocks} has a {color} block at the {end}",
            f"the {end} of the {blocks} tower is {color}",
        )
    )
    return text, tower[-1 if end == "top" else 0] == color


def count_things(scene: Scene, rng: random.Random) -> Statement:
    """There are 2 black circles."""
    kind = _thing(rng, _nouns(scene))
    return _counted(kind, sum(kind.holds(thing) for box in scene for thing in box), rng)


def count_touching(scene: Scene, rng: random.Random) -> Statement:
    """There is exactly one black triangle not touching any edge."""
    thing = _thing(rng, _nouns(scene))
    place, is_there = rng.choice(PLACES)
    negated = is_there is any and rng.random() < 0.35
    how = "not" if negated else rng.choice(("", "closely"))
    kind = Kind(
        noun=thing.noun,
        rest=f"{how} touching {place}",
        holds=lambda t: thing.holds(t) and is_there(t.touches()) != negated,
    )
    return _counted(kind, sum(kind.holds(thing) for box in scene for thing in box), rng)


def count_boxes(scene: Scene, rng: random.Random) -> Statement:
    """There is a box with 3 items of all 3 different colors."""
    kind = _box(rng, _nouns(scene))
    return _counted(kind, sum(map(kind.holds, scene)), rng)


def each_box(scene: Scene, rng: random.Random) -> Statement:
    """Each box has at least one yellow item."""
    thing = _thing(rng, _nouns(scene))
    number = rng.randint(1, 2)
    words = f"{rng.choice((NUMBERS[number], str(number)))} {thing.words(is_plural=number > 1)}"
    all_of = "all 3 towers have" if all(map(is_tower, scene)) else "each box has"
    text = rng.choice((f"{all_of} at least {words}", f"there is at least {words} in each box"))
    return text, all(sum(map(thing.holds, box)) >= number for box in scene)


def one_of_the_boxes(scene: Scene, rng: random.Random) -> Statement:
    """One of the grey boxes contains exactly four objects."""
    number = rng.randint(1, 7 if _nouns(scene) is SCATTERED else 4)
    word = rng.choice((NUMBERS[number], str(number)))
    box = rng.choice(("one of the grey square", "one of the grey box"))
    text = f"{box} {rng.choice(('has', 'contains'))} exactly {word} object{'s' * (number > 1)}"
    return text, any(len(things) == number for things in scene)


Rule = Callable[[Scene, random.Random], Statement]
TOWER_RULES: tuple[tuple[Rule, float], ...] = (
    (count_towers, 5),
    (count_ends, 2),
    (count_stacked, 2),
    (of_the_tower, 1),
    (count_things, 1),
    (count_boxes, 1),
    (each_box, 0.7),
    (one_of_the_boxes, 0.3),
)
SCATTER_RULES: tuple[tuple[Rule, float], ...] = (
    (count_touching, 4),
    (count_boxes, 3),
    (count_things, 1),
    (each_box, 1),
    (one_of_the_boxes, 1),
)
