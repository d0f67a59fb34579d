"""YAML as recipes mean it: YAML 1.2 scalars, and a key given twice is an error.

PyYAML reads YAML 1.1, where ``1e-4`` is text, ``no`` is false and ``12:30`` is 750. An author who
writes ``learning_rate: 1e-4`` means a number, so recipes are read with YAML 1.2's scalars instead.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

# (tag, how such a scalar looks, the characters it can begin with): the YAML 1.2 core schema, and
# underscores between digits, which keep large counts readable.
_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    """Reads with those scalars alone, and refuses a key that is given twice."""

    yaml_implicit_resolvers: dict[Any, Any] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        return int(str(self.construct_scalar(node)).replace("_", ""))  # 010 is ten, not octal


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_decimal)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would take for something else; paragraphs stand as such."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = "|" if "\n" in text else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    def represent_items(self, items: list[Any]) -> yaml.SequenceNode:
        flat = not any(isinstance(item, (list, dict)) for item in items)
        return self.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flat)


_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_representer(list, _Dumper.represent_items)
for _tag, _pattern, _first in _SCALARS:
    for _reads_or_writes in (_Loader, _Dumper):
        _reads_or_writes.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
        )


def read_yaml(text: str) -> Any:
    """Plain Python values of one YAML document. Raises yaml.YAMLError with line and column."""
    return yaml.load(text, Loader=_Loader)  # a SafeLoader: plain values, no objects


def write_yaml(value: Any) -> str:
    """YAML text that ``read_yaml`` turns back into the same plain values, keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
