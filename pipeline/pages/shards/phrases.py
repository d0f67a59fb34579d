"""Captions with their phrases in the colours of the most similar objects."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from pipeline.pages.html import Part, h, shortened
from pipeline.pages.shards.picture_svg import colour_class
from pipeline.pages.shards.sample_view import Caption, Phrase, Scene

_MOST_COLUMNS, _MOST_ROWS = 9, 12
_LONGEST_CAPTION = 320


def caption_line(caption: Caption) -> Element:
    """The caption, each phrase underlined, with the numbers of its objects and the similarity."""
    text = caption.text
    parts: list[Part] = []
    at = 0
    for phrase in caption.phrases:
        if phrase.end > _LONGEST_CAPTION:
            break
        parts += [text[at : phrase.start], _phrase(phrase, text[phrase.start : phrase.end])]
        at = phrase.end
    parts.append(text[at:] if len(text) <= _LONGEST_CAPTION else text[at:_LONGEST_CAPTION] + "…")
    return h("p", {"class": "caption", "dir": "auto"}, *parts)


def _phrase(phrase: Phrase, text: str) -> Element:
    if not phrase.numbers:
        return h("span", {"class": "phrase none", "title": "like none of the objects"}, text)
    numbers = " ".join(map(str, phrase.numbers))
    said = str(phrase.numbers[0])
    if len(phrase.numbers) > 1:  # equally like it
        said += f" +{len(phrase.numbers) - 1}"
    share = h("small", similarity(phrase.similarity)) if phrase.similarity is not None else None
    whom = h("sup", h("i", said), share)
    kind = f"phrase {colour_class(phrase.numbers[0])}"
    return h("span", {"class": kind, "data-o": numbers}, h("span", text), whom)


def similarity(value: float) -> str:
    """ ".71", "1" or "0", as short as may be."""
    if value <= 0:
        return "0"
    return "1" if value >= 0.995 else f"{value:.2f}"[1:]


def heat_table(scene: Scene) -> Element | None:
    """Phrases by objects, darker where they are more alike; None where none is like any."""
    every = _rows(scene.captions)
    if not every:
        return None
    columns = _columns(every)
    rows = [(text, phrase) for text, phrase in every if phrase.numbers[0] in columns][:_MOST_ROWS]
    heads = [
        h(
            "th",
            {
                "scope": "col",
                "data-o": number,
                "class": colour_class(number),
                "title": scene.marks[number - 1].name,
            },
            h("i", str(number)),
        )
        for number in columns
    ]
    body = [
        h(
            "tr",
            h("th", {"scope": "row", "dir": "auto"}, shortened(text)),
            *(_cell(phrase.similarities[number - 1]) for number in columns),
        )
        for text, phrase in rows
    ]
    said = "Similarity of phrases and objects, 0 to 1"
    whole = h(
        "table",
        h("caption", {"class": "unseen"}, said),
        h("thead", h("tr", h("td", {"class": "corner"}, "phrase × object"), *heads)),
        h("tbody", *body),
    )
    attributes = {"class": "alike scrolls", "tabindex": "0", "role": "region", "aria-label": said}
    return h("div", attributes, whole, _rest(every, rows, columns))


def _rows(captions: Sequence[Caption]) -> list[tuple[str, Phrase]]:
    """Each phrase that is like some object, once, however often it is said."""
    found: dict[str, Phrase] = {}
    for caption in captions:
        for phrase in caption.phrases:
            if phrase.similarities and phrase.numbers:
                found.setdefault(caption.text[phrase.start : phrase.end], phrase)
    return list(found.items())


def _columns(rows: Sequence[tuple[str, Phrase]]) -> list[int]:
    """The numbers of objects to compare with: the nearest one of each phrase, then what is like
    any of them most."""
    nearest = list(dict.fromkeys(phrase.numbers[0] for _, phrase in rows))
    best: dict[int, float] = {}
    for _, phrase in rows:
        for number, value in enumerate(phrase.similarities, start=1):
            if value > 0:
                best[number] = max(value, best.get(number, 0.0))
    others = sorted(best.keys() - set(nearest), key=lambda number: (-best[number], number))
    return sorted([*nearest, *others][:_MOST_COLUMNS])


def _cell(value: float) -> Element:
    if value <= 0:
        return h("td")
    share = min(value, 1.0)
    return h("td", {"style": f"--s:{100 * share:.0f}%"}, similarity(value))


def _rest(
    every: Sequence[tuple[str, Phrase]], rows: Sequence[tuple[str, Phrase]], columns: Sequence[int]
) -> Element | None:
    """A word on what the table leaves out."""
    like = {
        number
        for _, phrase in every
        for number, value in enumerate(phrase.similarities, start=1)
        if value > 0
    }
    said = []
    if len(every) > len(rows):
        said.append(f"{len(every) - len(rows)} phrases")
    if len(like) > len(columns):
        said.append(f"{len(like) - len(columns)} objects that are like some phrase")
    return h("p", {"class": "note"}, f"Not here: {' and '.join(said)}.") if said else None
