"""Plain values become checked dataclasses. Oracle: small dataclasses of the test's own, for which
the right value or the right complaint is plain."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.recipe.dataclass_values import RecipeError, build, plain
from pipeline.recipe.recipe import load_recipe
from pipeline.recipe.yaml_format import read_yaml, write_yaml


@dataclass(frozen=True, kw_only=True)
class Net:
    widths: tuple[int, ...] = (32, 64)
    betas: tuple[float, float] = (0.9, 0.98)
    block: Literal["basic", "bottleneck"] = "basic"
    weights: str | None = None

    def __post_init__(self) -> None:
        if not self.widths:
            raise ValueError("widths: got none, expected one or more")


@dataclass(frozen=True, kw_only=True)
class Training:
    num_steps: int
    rate: float = 0.1
    flip: bool = True
    net: Net = field(default_factory=Net)
    other: Net | None = None
    by_name: dict[str, Net] = field(default_factory=dict)
    several: tuple[Net, ...] = ()

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}; expected 1 or more.")
        if self.rate == 13:
            raise ValueError("an unlucky rate")


def test_every_shape_of_field() -> None:
    """Nested, optional, by name and in lists: each from plain values to its own type."""
    values = {
        "num_steps": 5,
        "rate": 1,
        "net": {"widths": [1, 2, 3], "betas": [0, 1]},
        "other": {"block": "bottleneck"},
        "by_name": {"a": {"weights": "w"}},
        "several": [{}, {"widths": [9]}],
    }
    built = build(Training, values)
    assert built == Training(
        num_steps=5,
        rate=1.0,
        net=Net(widths=(1, 2, 3), betas=(0.0, 1.0)),
        other=Net(block="bottleneck"),
        by_name={"a": Net(weights="w")},
        several=(Net(), Net(widths=(9,))),
    )
    assert type(built.rate) is float and type(built.net.betas[0]) is float


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_step": 5}, ["num_step is not a key", "num_steps", "Did you mean 'num_steps'?"]),
        ({"num_steps": 5, "net": {"width": [1]}}, ["net.width is not a key", "widths, betas"]),
        ({}, ["num_steps is missing", "a whole number"]),
        ({"num_steps": "3"}, ['num_steps is "3"', "a whole number"]),
        ({"num_steps": 3.0}, ["num_steps is 3.0", "a whole number"]),
        ({"num_steps": True}, ["num_steps is true", "a whole number"]),
        ({"num_steps": 3, "flip": 1}, ["flip is 1", "true or false"]),
        ({"num_steps": 3, "rate": "fast"}, ['rate is "fast"', "a number"]),
        ({"num_steps": 3, "net": 7}, ["net is 7", "a mapping with the keys widths"]),
        ({"num_steps": 3, "net": {"widths": 7}}, ["net.widths is 7", "a list, each item a whole"]),
        ({"num_steps": 3, "net": {"betas": [1]}}, ["net.betas is [1]", "a list of 2"]),
        ({"num_steps": 3, "net": {"block": "x"}}, ['net.block is "x"', 'one of "basic"']),
        ({"num_steps": 3, "net": {"weights": 4}}, ["net.weights is 4", "text or null"]),
        ({"num_steps": 3, "several": [{}, {"a": 1}]}, ["several[1].a is not a key"]),
        ({"num_steps": 3, "by_name": {"x": {"a": 1}}}, ["by_name.x.a is not a key"]),
        ([1], ["the recipe is [1]", "a mapping"]),
    ],
)
def test_what_is_wrong_is_named(values: Any, words: list[str]) -> None:
    """The dotted path, what was got, what is expected: all three in one message."""
    with pytest.raises(RecipeError) as caught:
        build(Training, values)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_steps": 0}, "training.num_steps is 0; expected 1 or more."),
        ({"num_steps": 1, "rate": 13}, "training: an unlucky rate"),
        (
            {"num_steps": 1, "net": {"widths": []}},
            "training.net.widths: got none, expected one or more",
        ),
    ],
)
def test_checks_of_the_dataclass_get_their_path(values: Any, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build(Training, values, "training")
    assert str(caught.value) == message


def test_a_check_that_names_part_of_the_path_is_not_given_it_twice() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Weight:
        weight: float

        def __post_init__(self) -> None:
            raise ValueError(f"pra.weight: got {self.weight}")

    with pytest.raises(RecipeError, match=r"^pretrain\.pra\.weight: got -1\.0$"):
        build(Weight, {"weight": -1}, "pretrain.pra")


texts = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], include_characters="\n"))
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
trees = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=12
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(tree=trees)
def test_what_is_written_is_read_back(tree: Any) -> None:
    """YAML of any plain values reads back as the same values of the same types."""
    back = read_yaml(write_yaml(tree))
    assert back == tree and repr(back) == repr(tree)


def test_dataclasses_round_trip() -> None:
    built = Training(num_steps=4, other=Net(widths=(1,)), by_name={"b": Net()}, several=(Net(),))
    assert build(Training, read_yaml(write_yaml(plain(built)))) == built


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1_000", 1000),
        ("010", 10),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("null", None),
        ("", None),
        ("[1, 2.5]", [1, 2.5]),
        (".inf", float("inf")),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    """Oracle: the core schema of YAML 1.2, whose numbers and words these are."""
    assert read_yaml(text) == value and type(read_yaml(text)) is type(value)


def test_a_key_that_is_a_list_is_refused() -> None:
    with pytest.raises(yaml.YAMLError, match="unhashable key"):
        read_yaml("? [a]\n: 1\n")


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(Exception, match="'a' is given twice"):
        read_yaml("a: 1\nb: 2\na: 3\n")


@pytest.mark.parametrize(
    "setting", ["seed", "ingest.shard_size", "pretrain.micro_batch_size", "pretrain.lr_cnn"]
)
def test_an_integer_of_more_than_64_bits_is_refused(setting: str) -> None:
    """Arrays, files and C count with 64 bits; later it would be an OverflowError."""
    with pytest.raises(RecipeError, match=f"{setting} is 1180591620717411303424; expected a whole"):
        load_recipe("toy", [f"{setting}={2**70}"])


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e400"])
@pytest.mark.parametrize(
    "field", ["pretrain.pra.min_similarity", "pretrain.pra.weight", "teach.learning_rate"]
)
def test_a_number_that_is_not_finite_is_refused(field: str, value: str) -> None:
    """Oracle: by hand, the path and what was expected; NaN is below no bound and above none."""
    with pytest.raises(RecipeError, match=f"^{field} is -?(NaN|Infinity); expected a number"):
        load_recipe("toy-tiny", [f"{field}={value}"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("pretrain.pra.min_similarity=1.01", "got 1.01, expected a cosine, -1 to 1, or null"),
        ("pretrain.pra.min_similarity=-2", "got -2.0, expected a cosine"),
        (
            "pretrain.data.sources=[{folder: a, weight: 99999999}, {folder: b, weight: 2}]",
            "weights whose sum is 100000001, expected at most 100000000; .*divide all",
        ),
        ("pretrain.data.sources=[{folder: a, weight: 0}]", "weight: got 0, expected at least 1"),
    ],
)
def test_extremes_that_train_nothing_or_fill_the_memory_are_refused(
    setting: str, message: str
) -> None:
    """Oracle: by hand; a cycle of weighted sources lies in memory, 8 bytes a position."""
    with pytest.raises(RecipeError, match=message):
        load_recipe("toy-tiny", [setting])
