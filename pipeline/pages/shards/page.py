"""The HTML page of `boxless view`: one file that needs no network, and works without scripts.

Each picture has its objects beside it and its captions; pointing at an object anywhere
shows it everywhere (page.js).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from pipeline import __version__
from pipeline.pages.document import document
from pipeline.pages.histograms import count_bins, histogram, ranked, score_bins
from pipeline.pages.html import Part, h, html_text, shortened
from pipeline.pages.palette import COLOURS
from pipeline.pages.sections import count, figure_list, missing, table
from pipeline.pages.shards.counts import Counts, Losses, commonest
from pipeline.pages.shards.phrases import caption_line, heat_table
from pipeline.pages.shards.picture_svg import NUM_TAGGED, colour_class, drawing
from pipeline.pages.shards.sample_view import Mark, Scene
from pipeline.pages.shards.shard_browser import Broken, ShardBrowser
from pipeline.pages.shards.summary_text import (
    head_line,
    objects_in_words,
    pictures,
    reasons,
    shard_figures,
    title,
)

LONGEST_PX = 640
"""The longest side of the pictures in the page."""

_MOST_LABELS = 8
_MOST_CAPTIONS = 5
_MOST_FAILURES = 40
_LIKELY = 0.05
_STYLE = Path(__file__).with_name("page.css")
_SCRIPT = Path(__file__).with_name("page.js")


def page_text(
    browser: ShardBrowser, shown: Sequence[Scene | Broken], counts: Counts, losses: Losses
) -> str:
    """The page as an HTML document."""
    several = len(browser.entries) > 1
    articles = [
        _broken(one, several) if isinstance(one, Broken) else _article(one, several)
        for one in shown
    ]
    body = h(
        "body",
        _header(browser, counts, losses),
        h("main", _note(shown), *articles),
        h("footer", h("p", f"Written by Boxless {__version__} from {browser.where}.")),
    )
    colours = "".join(f".k{place}{{--k:{colour}}}" for place, colour in enumerate(COLOURS))
    style = _STYLE.read_text("utf-8") + colours
    script = _SCRIPT.read_text("utf-8")
    return html_text(
        document(f"{title(browser)} · Boxless", body, style="\n" + style, script=script)
    )


def _header(browser: ShardBrowser, counts: Counts, losses: Losses) -> Element:
    return h(
        "header",
        h("p", {"class": "brand"}, "Boxless look"),
        h("h1", title(browser)),
        h("p", {"class": "lead"}, head_line(browser, counts)),
        *(missing(word) for word in browser.words),
        figure_list(shard_figures(browser, counts, losses)),
        _charts(counts),
        _losses(losses),
    )


def _charts(counts: Counts) -> Element | None:
    """Objects a picture, scores, commonest labels; nothing for shards where no object is known."""
    if not counts.a_picture:
        return None
    bins = count_bins(counts.a_picture)
    step = int(bins[1].start) if len(bins) > 1 else 1
    charts = [
        histogram("Objects a picture", bins, unit="pictures", end=step * len(bins)),
        histogram("Scores", score_bins(counts.scores.tolist()), unit="objects", end=1)
        if counts.scores.any()
        else None,
        ranked("Commonest labels", commonest(counts.labels, _MOST_LABELS), total=counts.num_objects)
        if counts.labels
        else None,
    ]
    return h("div", {"class": "columns"}, *charts)


def _losses(losses: Losses) -> Element | None:
    """Failures with their reasons, folded when they are many, and what was dropped inside."""
    if not losses.num_failed and not losses.notes:
        return None
    failed = "; ".join(f"{reason} ({count(n)})" for reason, n in reasons(losses).most_common(4))
    parts = [f"{count(losses.num_failed)} failed: {failed}"] if losses.failures else []
    if losses.notes:
        parts.append(f"Notes on pictures that were kept: {count(len(losses.notes))}")
    said = h("summary", shortened(". ".join(parts) or f"{count(losses.num_failed)} failed"))
    rows: list[list[Part]] = [
        [one.key, kind, shortened(one.reason)]
        for kind, ones in (("failed", losses.failures), ("note", losses.notes))
        for one in ones[:_MOST_FAILURES]
    ]
    left = losses.num_unread + sum(
        max(0, len(ones) - _MOST_FAILURES) for ones in (losses.failures, losses.notes)
    )
    rest = h("p", {"class": "note"}, f"And {count(left)} more.") if left else None
    whole = table("Failures and notes of the manifests", ("Key", "What", "Why"), rows)
    return h("details", {"class": "losses"}, said, whole if rows else None, rest)


def _note(shown: Sequence[Scene | Broken]) -> Element:
    """How to read the pictures."""
    scenes = [one for one in shown if isinstance(one, Scene)]
    parts = [f"{pictures(len(shown)).capitalize()}."]
    if any(scene.has_objects for scene in scenes):
        parts.append(
            "Numbers are the rows of the objects array, by falling score; beside each name are the "
            "best classes of its soft label, and its score. Open a row for their names."
        )
    elif any(scene.marks for scene in scenes):
        parts.append("These shards have no objects of a teacher: the boxes are the true ones.")
    if any(len(scene.marks) > NUM_TAGGED for scene in scenes):
        parts.append(f"Boxes after the first {NUM_TAGGED} are faint until you point at them.")
    if any(scene.truth for scene in scenes):
        parts.append("Dotted: true boxes; a cross: no true object of that label is there.")
    if any(_has_phrases(scene) for scene in scenes if scene.has_objects):
        parts.append(
            "A phrase has the colour and number of the most similar object, with the similarity and "
            "the number of objects that are as similar; a dotted one is similar to none."
        )
    elif any(_has_phrases(scene) for scene in scenes):
        parts.append("A phrase has the colour and number of the object that it means.")
    return h("p", {"class": "note"}, " ".join(parts))


def _has_phrases(scene: Scene) -> bool:
    return any(caption.phrases for caption in scene.captions)


def _heading(key: str, shard: str | None, facts: Sequence[str]) -> Element:
    said = " · ".join([*facts, *([shard] if shard else [])])
    return h("h2", h("span", key), h("small", said))


def _broken(broken: Broken, several: bool) -> Element:
    reason = h("p", shortened(broken.reason))
    return h(
        "article",
        {"class": "broken"},
        _heading(broken.key, broken.shard if several else None, ["cannot be shown"]),
        h("div", {"class": "wreck"}, h("b", "Damaged"), reason),
    )


def _article(scene: Scene, several: bool) -> Element:
    facts = [f"{scene.picture.width} × {scene.picture.height} px", objects_in_words(scene)]
    words = [h("p", {"class": "odd"}, word) for word in scene.words]
    return h(
        "article",
        _heading(scene.key, scene.shard if several else None, facts),
        h("figure", drawing(scene)),
        h("div", {"class": "beside"}, *words, _rows(scene)),
        h("div", {"class": "said"}, *_captions(scene), heat_table(scene)),
    )


def _captions(scene: Scene) -> list[Element]:
    if not scene.captions:
        return [h("p", {"class": "note"}, "No captions.")]
    lines = [caption_line(caption) for caption in scene.captions[:_MOST_CAPTIONS]]
    if (left := len(scene.captions) - _MOST_CAPTIONS) > 0:
        lines.append(h("p", {"class": "note"}, f"And {count(left)} more."))
    return lines


def _rows(scene: Scene) -> Element:
    """The objects one below the other."""
    if not scene.marks:
        said = "No objects." if scene.has_objects else "No objects are annotated here."
        return h("p", {"class": "note"}, said)
    rows = [_row(mark) for mark in scene.marks]
    attributes = {"class": "rows", "tabindex": "0", "aria-label": "Objects"}
    return h("ol", attributes, *rows)


def _row(mark: Mark) -> Element:
    attributes = {"class": colour_class(mark.number), "data-o": mark.number}
    number = h("i", str(mark.number))
    if mark.score is None:
        return h("li", attributes, h("div", number, _called(mark)))
    score = h("b", {"class": "score"}, f"{100 * mark.score:.0f}", h("small", " %"))
    line = h("summary", number, _called(mark), _soft_columns(mark), score)
    names = [
        h(
            "li",
            {"style": f"--p:{100 * value:.0f}%"},
            h("span", {"dir": "auto"}, name),
            h("small", _fine_percent(value)),
        )
        for name, value in mark.soft
    ]
    box = ", ".join(f"{side:.0f}" for side in mark.box)
    return h(
        "li",
        attributes,
        h("details", line, h("ol", {"class": "soft"}, *names), h("small", f"box {box}")),
    )


def _called(mark: Mark) -> Element:
    """Label, its synonyms, attribute with its score, and a cross where it is wrong."""
    first, comma, rest = mark.label.partition(",")
    synonyms = h("small", f", {rest.replace(',', ', ')}") if comma else None
    attribute = None
    if mark.attribute:
        share = (
            h("small", f" {_fine_percent(mark.attribute_score)}")
            if (mark.attribute_score is not None)
            else None
        )
        attribute = h("em", " · ", mark.attribute.replace(",", ", "), share)
    wrong = h("b", {"class": "bad", "title": "no true object of that label is there"}, " ✗")
    return h(
        "span",
        {"class": "called", "dir": "auto"},
        h("b", first),
        synonyms,
        attribute,
        wrong if mark.true is False else None,
        _doubts(mark),
    )


def _doubts(mark: Mark) -> Element | None:
    """The other classes that it may well be."""
    likely = [
        f"{name.split(',')[0]} {_fine_percent(value)}"
        for name, value in mark.soft
        if name != mark.label and value >= _LIKELY
    ]
    return h("small", {"class": "or"}, f"or {', '.join(likely[:2])}") if likely else None


def _soft_columns(mark: Mark) -> Element:
    """The soft label's best classes as tiny columns, for the eye only."""
    path = "".join(
        f"M{6 * place} 14v-{max(0.5, 14 * min(value, 1.0)):.1f}h5V14z"
        for place, (_, value) in enumerate(mark.soft)
    )
    return h(
        "svg",
        {"class": "soft", "viewBox": "0 0 30 14", "aria-hidden": "true"},
        h("path", {"d": path}),
    )


def _fine_percent(share: float) -> str:
    return (
        f"{100 * share:.0f}\N{NO-BREAK SPACE}%"
        if share >= 0.0995 or share == 0
        else (f"{100 * share:.1f}\N{NO-BREAK SPACE}%")
    )
