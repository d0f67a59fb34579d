"""Is the sentence true of the picture? Some of the student's answers, where it learned to tell.

Reads transfer/truth/ (NLVR); without it there is no section.
"""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element

from pipeline.pages.html import h, shortened
from pipeline.pages.report.sections import Section, count, figure_list, missing, percent
from pipeline.pages.thumbnails import Pictures, thumbnail
from pipeline.runner.run_files import number, read_lines, read_object
from pipeline.runner.run_folder import RunFolder

_LONGEST_PX = 400
_NUM_EACH = 4


def truth_section(run: RunFolder, pictures: Pictures) -> Section | None:
    """The figures and some answers; None where the run has no such task."""
    entry = read_object(run.transfer / "truth" / "scores.json").get("truth_accuracy")
    if not isinstance(entry, dict) or (value := number(entry.get("value"))) is None:
        return None
    figures = [("right on held-out sentences", percent(value))]
    if (chance := number(entry.get("chance"))) is not None:
        figures.append(("the commoner answer, always", percent(chance)))
    for name, said in (("num", "held-out pairs"), ("num_train", "pairs to learn from")):
        if (pairs := number(entry.get(name))) is not None:
            figures.append((said, count(int(pairs))))
    lines = read_lines(run.transfer / "truth" / "predictions.jsonl")
    answers = [_answer(line, pictures) for line in chosen(lines)]
    shown = h("div", {"class": "answers"}, *answers)
    if not answers:
        shown = missing("Its single answers are not there.")
    content = (figure_list(figures), shown)
    return Section(name="truth", title="True or false?", content=content)


def chosen(predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first right and the first wrong answers, each about another sentence."""
    found: list[dict[str, Any]] = []
    for is_right in (True, False):
        sentences: dict[str, dict[str, Any]] = {}
        for line in predictions:
            if _is_right(line) == is_right:
                sentences.setdefault(line["sentence"], line)
        found += list(sentences.values())[:_NUM_EACH]
    return found


def _is_right(line: dict[str, Any]) -> bool:
    return (line["probability"] > 0.5) == line["true"]


def _answer(line: dict[str, Any], pictures: Pictures) -> Element:
    sample = pictures.find(line["key"])
    small = thumbnail(sample.image, longest_px=_LONGEST_PX) if sample else None
    shown = h("span", {"class": "lost"}, "not readable")
    if small:
        size = {"width": small.width, "height": small.height, "loading": "lazy"}
        shown = h("img", {"src": small.uri, "alt": "The picture the sentence is about", **size})
    says = f"says {'true' if line['probability'] > 0.5 else 'false'}"
    sure = max(line["probability"], 1 - line["probability"])
    verdict = h("b", {"class": "good"}, f"✓ {says}, rightly")
    if not _is_right(line):
        verdict = h("b", {"class": "bad"}, f"✗ {says}, wrongly")
    text = h("bdi", "“", shortened(line["sentence"]), "” ")
    return h("figure", shown, h("figcaption", text, verdict, f" ({percent(sure)} sure)"))
