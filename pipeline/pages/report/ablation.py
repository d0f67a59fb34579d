"""The report's ablation: scores of every seed and variant, each on an axis to 100 %.

Reads ablation.json of the run; without it there is no section.
"""

from __future__ import annotations

import statistics
from typing import Any
from xml.etree.ElementTree import Element

from pipeline.pages.html import Part, h
from pipeline.pages.report.scores import place_of_score, score_name
from pipeline.pages.sections import Section, count, percent, table
from pipeline.runner.run_files import number, read_object
from pipeline.runner.run_folder import RunFolder

_SAID = {
    "plain": "plain: mlm and itm alone",
    "soho": "soho: with a visual dictionary (mvm)",
    "kdvlp": "kdvlp: with the teacher's objects (omvm, pra)",
    "both": "both: dictionary and objects",
}
_LANE_PX, _MARGIN_PX = 15, 4


def ablation_section(run: RunFolder) -> Section | None:
    """Dots and the table; None without a comparison."""
    found = read_object(run.root / "ablation.json")
    variants = found.get("variants")
    if not isinstance(variants, dict) or not variants:
        return None
    variants = dict(sorted(variants.items(), key=lambda named: _place(named[0])))
    chance = found.get("chance") if isinstance(found.get("chance"), dict) else {}
    keys = sorted(
        {key for seeds in variants.values() for own in seeds.values() for key in own},
        key=place_of_score,
    )
    values = {key: {name: _values(seeds, key) for name, seeds in variants.items()} for key in keys}
    legend = h(
        "ul",
        {"class": "legend"},
        *(
            h("li", h("i", {"class": f"dot v{n}"}), _SAID.get(name, name))
            for n, name in enumerate(variants)
        ),
    )
    rows = [_dots(key, values[key], number((chance or {}).get(key))) for key in keys]
    axis = h(
        "li",
        {"class": "axis", "aria-hidden": "true"},
        h("span"),
        h(
            "span",
            *(
                h("small", {"style": f"left:{share}%"}, f"{share} %")
                for share in (0, 25, 50, 75, 100)
            ),
        ),
    )
    num_seeds = max(len(seeds) for seeds in variants.values())
    return Section(
        name="ablation",
        title="Ablation",
        content=(
            h("p", {"class": "note"}, _note(number(found.get("steps")), num_seeds)),
            legend,
            h("ul", {"class": "dots"}, *rows, axis),
            _table(values, list(variants), chance or {}),
        ),
    )


def _place(name: str) -> int:
    """So that variants come in the order of `_SAID`, those of other versions last."""
    return list(_SAID).index(name) if name in _SAID else len(_SAID)


def _note(steps: float | None, num_seeds: int) -> str:
    trained = f"the same {count(int(steps))} steps" if steps else "the same steps"
    return (
        f"The same student, the same data and {trained}, {num_seeds} seeds each; the objectives "
        "differ. A dot is a seed, a row of dots a variant, in the order of the legend; the thin "
        "line is chance. Grounding and labels are trained with objects only: without them these "
        "scores are near chance."
    )


def _values(seeds: dict[str, dict[str, Any]], key: str) -> list[float]:
    found = (number(scores.get(key)) for scores in seeds.values())
    return [value for value in found if value is not None]


def _dots(key: str, variants: dict[str, list[float]], chance: float | None) -> Element:
    said = "; ".join(
        f"{name}: {', '.join(percent(value) for value in values)}"
        for name, values in variants.items()
    )
    marks = [
        _dot(lane, value, f"{name}: {percent(value)}")
        for lane, (name, values) in enumerate(variants.items())
        for value in values
    ]
    line = h("i", {"class": "chance", "style": f"left:{100 * chance:.1f}%"}) if chance else None
    height = 2 * _MARGIN_PX + _LANE_PX * len(variants)
    attributes = {"role": "img", "aria-label": said, "style": f"height:{height}px"}
    track = h("span", {"class": "track", **attributes}, line, *marks)
    return h("li", h("span", score_name(key)), track)


def _dot(lane: int, value: float, said: str) -> Element:
    top = _MARGIN_PX + _LANE_PX * lane
    style = f"left:{100 * value:.1f}%;top:{top}px"
    return h("i", {"class": f"dot v{lane}", "style": style, "title": said})


def _table(
    values: dict[str, dict[str, list[float]]], variants: list[str], chance: dict[str, Any]
) -> Element:
    rows: list[list[Part]] = []
    for key, by_variant in values.items():
        base = number(chance.get(key))
        cells: list[Part] = [_mean_and_range(by_variant[name]) for name in variants]
        rows.append([score_name(key), *cells, percent(base) if base is not None else "–"])
    head = ("Mean (lowest to highest)", *variants, "chance")
    return table("Scores of every variant", head, rows)


def _mean_and_range(values: list[float]) -> Element:
    if not values:
        return h("span", "–")
    low, high = percent(min(values)), percent(max(values))
    return h("span", h("b", percent(statistics.fmean(values))), " ", h("small", f"{low} to {high}"))
