"""JSON of other programs: what Python's reader would drop without a word is named."""

from __future__ import annotations

import json

import pytest

from stages.json_text import RepeatedKeyError, parse_json

TWICE = """{
  "a": {"x": 1, "[{": ":,"},
  "b": [{"x": 1}, {"x": 2},
        {"x": 3, "y": "\\"x\\": 4",
         "\\u0078": 4}]
}"""


def test_a_key_with_two_values_is_named_with_its_line() -> None:
    """Oracle: by hand; keys of other objects, braces in texts and escaped quotes count for
    nothing, and an escaped key is the key that it spells."""
    for text in (TWICE, TWICE.encode(), TWICE.encode("utf-16")):
        with pytest.raises(RepeatedKeyError, match="line 5: key 'x' comes twice") as error:
            parse_json(text)
        assert (error.value.key, error.value.line) == ("x", 5)
    with pytest.raises(
        ValueError, match="^key 'a' comes twice in an object, with different values"
    ):
        parse_json('{"a": 1, "a": 2}')


def test_all_else_is_as_python_reads_it() -> None:
    """Oracle: `json.loads`; a key that has the same value twice loses nothing."""
    for text in ('{"a": 1, "a": 1}', '[{"a": {}}, {"a": {}}]', "3", '"x"'):
        assert parse_json(text) == json.loads(text)
    text = '{"a": 1, "a": 1, "b": NaN}'
    assert repr(parse_json(text)) == repr(json.loads(text))
    hooks = {"object_hook": len, "parse_constant": str.lower}
    assert parse_json('[{"a": 1}, NaN]', **hooks) == [1, "nan"]  # type: ignore[arg-type]
    for text in ("", "{", '{"a": 1,}', "[" * 100_000):
        with pytest.raises((json.JSONDecodeError, RecursionError)):
            parse_json(text)
