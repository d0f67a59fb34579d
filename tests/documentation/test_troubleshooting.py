"""Messages in docs/troubleshooting.md. Oracle: the strings of the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _strings() -> Iterator[str]:
    """Every string of the code; the values in f-strings are left out."""
    for folder in ("pipeline", "stages", "sharding", "launch"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    texts = [part.value for part in node.values if isinstance(part, ast.Constant)]
                    yield "\0".join(map(str, texts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_every_message_of_the_page_is_in_the_code() -> None:
    """Each piece between two `...` of ten characters or more stands in some string; symptoms
    that other programs print are outside of tables of messages."""
    page = (ROOT / "docs/troubleshooting.md").read_text("utf-8").split("## Environment")[0]
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.M)
    assert len(messages) > 30
    code = "\n".join(_strings())
    for message in messages:
        pieces = [piece.strip(" ();,.:") for piece in message.split("...")]
        long = [piece for piece in pieces if len(piece) >= 10]
        assert long, message
        missing = [piece for piece in long if piece not in code]
        assert not missing, f"{message}: change docs/troubleshooting.md with the message: {missing}"
