"""HTML as a tree of elements, so that text of a corpus can never become markup.

The tree is the standard library's; its serialiser escapes whatever is text or an attribute's
value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Union
from xml.etree.ElementTree import Element, tostring

Part = Union[Mapping[str, object], Element, str, None]

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f\ufffe\uffff]")
_LONGEST_TEXT = 320


def h(tag: str, *parts: Part) -> Element:
    """An element: mappings among `parts` are attributes, the rest is its content in order.

    None is left out, as part and as an attribute's value.
    """
    element = Element(tag)
    for part in parts:
        if isinstance(part, str):
            _append_text(element, _clean(part))
        elif isinstance(part, Element):
            element.append(part)
        elif part is not None:
            for name, value in part.items():
                if value is not None:
                    element.set(name, _clean(str(value)))
    return element


def html_text(root: Element) -> str:
    """The tree as an HTML document."""
    return "<!doctype html>\n" + tostring(root, encoding="unicode", method="html") + "\n"


def shortened(text: str) -> str:
    """A caption as it is shown: some corpora have whole pages where a sentence should be."""
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"


def _append_text(element: Element, text: str) -> None:
    if len(element):
        element[-1].tail = (element[-1].tail or "") + text
    else:
        element.text = (element.text or "") + text


def _clean(text: str) -> str:
    """JSON may hold half a character (a lone surrogate) and control codes; HTML may not."""
    return _CONTROLS.sub("\ufffd", text.encode("utf-8", "replace").decode("utf-8"))
