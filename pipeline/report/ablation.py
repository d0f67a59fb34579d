"""Does distillation pay? Every seed of both variants, each score on an axis from 0 to 100 %.

Reached from `pipeline.report.page`. Reads ablation.json of the run; without it there is no section.
"""

from __future__ import annotations

import statistics
from typing import Any
from xml.etree.ElementTree import Element

from pipeline.report.markup import Part, h
from pipeline.report.scores import place_of_score, score_name
from pipeline.report.sections import Section, count, percent, table
from pipeline.report.traces import number, read_object
from pipeline.run_folder import RunFolder

_SAID = {"distilled": "with the teacher", "plain": "without"}


def ablation_section(run: RunFolder) -> Section | None:
    """Dots and the table; None where nobody ran the comparison."""
    found = read_object(run.root / "ablation.json")
    variants = found.get("variants")
    if not isinstance(variants, dict) or not variants:
        return None
    chance = found.get("chance") if isinstance(found.get("chance"), dict) else {}
    keys = sorted(
        {key for seeds in variants.values() for own in seeds.values() for key in own},
        key=place_of_score,
    )
    values = {key: {name: _values(seeds, key) for name, seeds in variants.items()} for key in keys}
    steps = number(found.get("steps"))
    num_seeds = max(len(seeds) for seeds in variants.values())
    note = (
        f"The same student, the same data and the same {count(int(steps)) if steps else ''} steps, "
        f"{num_seeds} seeds each: once with the objectives that the teacher makes possible (omvm "
        "and pra), once without. A dot is a seed; the thin line is chance."
    )
    legend = h("ul", {"class": "legend"}, *(
        h("li", h("i", {"class": f"dot v{n}"}), _SAID.get(name, name))
        for n, name in enumerate(variants)
    ))
    rows = [_dots(key, values[key], number((chance or {}).get(key))) for key in keys]
    axis = h("li", {"class": "axis", "aria-hidden": "true"}, h("span"), h("span", *(
        h("small", {"style": f"left:{share}%"}, f"{share} %") for share in (0, 25, 50, 75, 100)
    )))
    return Section(
        name="ablation",
        title="Does distillation pay?",
        content=(
            h("p", {"class": "note"}, note),
            legend,
            h("ul", {"class": "dots"}, *rows, axis),
            _table(values, list(variants), chance or {}),
        ),
    )


def _values(seeds: dict[str, dict[str, Any]], key: str) -> list[float]:
    found = (number(scores.get(key)) for scores in seeds.values())
    return [value for value in found if value is not None]


def _dots(key: str, variants: dict[str, list[float]], chance: float | None) -> Element:
    said = "; ".join(
        f"{_SAID.get(name, name)}: {', '.join(percent(value) for value in values)}"
        for name, values in variants.items()
    )
    marks = [
        h("i", {"class": f"dot v{n}", "style": f"left:{100 * value:.1f}%", "title": percent(value)})
        for n, values in enumerate(variants.values())
        for value in values
    ]
    line = h("i", {"class": "chance", "style": f"left:{100 * chance:.1f}%"}) if chance else None
    track = h("span", {"class": "track", "role": "img", "aria-label": said}, line, *marks)
    return h("li", h("span", score_name(key)), track)


def _table(
    values: dict[str, dict[str, list[float]]], variants: list[str], chance: dict[str, Any]
) -> Element:
    rows: list[list[Part]] = []
    for key, by_variant in values.items():
        base = number(chance.get(key))
        cells: list[Part] = [_mean_and_range(by_variant[name]) for name in variants]
        rows.append([score_name(key), *cells, percent(base) if base is not None else "–"])
    head = ("Mean (lowest to highest)", *(_SAID.get(name, name) for name in variants), "Chance")
    return table("Scores with and without the teacher", head, rows)


def _mean_and_range(values: list[float]) -> Element:
    if not values:
        return h("span", "–")
    low, high = percent(min(values)), percent(max(values))
    return h("span", h("b", percent(statistics.fmean(values))), " ", h("small", f"{low} to {high}"))
