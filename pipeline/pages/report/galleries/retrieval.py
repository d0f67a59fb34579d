"""Gallery of text-to-image retrieval: the five pictures ranked first, right and wrong.

Reads `retrieval` of transfer/evaluate/examples.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

from pipeline.pages.html import h, shortened
from pipeline.pages.sections import Section, count, missing
from pipeline.pages.thumbnails import Pictures, grid_class, thumbnail
from pipeline.runner.run_files import read_object
from pipeline.runner.run_folder import RunFolder

_LONGEST_PX = 200
_NUM_RIGHT, _NUM_WRONG = 4, 4
_NUM_BEST = 5


def gallery_section(run: RunFolder, pictures: Pictures) -> Section:
    """Some texts that it got right and some that it got wrong; a word before evaluate ran."""
    examples = read_object(run.transfer / "evaluate" / "examples.json").get("retrieval") or []
    if not examples:
        empty = missing("No gallery yet: evaluate has not finished.")
        return Section(name="gallery", title="Text-to-image retrieval", content=(empty,))
    note = (
        "The student ranks all held-out pictures by how well they match a text; these are the "
        "first five. Green frame: the picture that the text was written for. "
        "First some texts whose picture is ranked first, then some whose picture is not."
    )
    queries = [_query(example, pictures) for example in chosen(examples)]
    grid = h("div", {"class": grid_class("queries", pictures)}, *queries)
    content = (h("p", {"class": "note"}, note), grid)
    return Section(name="gallery", title="Text-to-image retrieval", content=content)


def chosen(examples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first right ones and the first wrong ones; more of one where the other is short."""
    right = [example for example in examples if example["rank"] == 1]
    wrong = [example for example in examples if example["rank"] != 1]
    num_right = max(_NUM_RIGHT, _NUM_RIGHT + _NUM_WRONG - len(wrong))
    num_wrong = max(_NUM_WRONG, _NUM_RIGHT + _NUM_WRONG - len(right))
    return right[:num_right] + wrong[:num_wrong]


def _query(example: dict[str, Any], pictures: Pictures) -> Element:
    rank = int(example["rank"])
    best = [entry["key"] for entry in example["pictures"][:_NUM_BEST]]
    items = [
        _picture(key, str(place), key == example["right"], pictures)
        for place, key in enumerate(best, start=1)
    ]
    if example["right"] not in best:
        items.append(_picture(example["right"], count(rank), True, pictures))
    verdict = h("b", {"class": "good"}, "✓ found at once")
    if rank != 1:
        verdict = h("b", {"class": "bad"}, f"✗ the right one comes at place {count(rank)}")
    return h(
        "article",
        h("h3", h("bdi", "“", shortened(example["text"]), "”")),
        h("p", {"class": "verdict"}, verdict),
        h("ol", {"class": "ranks"}, *items),
    )


def _picture(key: str, place: str, is_right: bool, pictures: Pictures) -> Element:
    sample = pictures.find(key)
    small = thumbnail(sample.image, longest_px=_LONGEST_PX) if sample else None
    said = f"Place {place}: {'the right picture' if is_right else 'a wrong picture'}"
    shown = h("span", {"class": "lost"}, "not readable")
    if sample and small:
        captions = sample.info["captions"]
        seen = f". {shortened(captions[0])}" if captions else ""
        size = {"width": small.width, "height": small.height, "loading": "lazy"}
        shown = h("img", {"src": small.uri, "alt": said + seen, **size})
    return h("li", {"class": "right" if is_right else None}, shown, h("small", place))
