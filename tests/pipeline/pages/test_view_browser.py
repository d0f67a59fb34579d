"""The page of `boxless view` in headless Chromium. Oracle: the browser's own layout, its console,
and what is marked after it is pointed at. Skipped where no Chromium is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, measure
from report_runs import HOSTILE
from view_shards import folder_of, info, objects, picture, sample

from pipeline.cli.main import main

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

# Tags are asked where the browser draws them, letters and all.
TAGS = """page => {
  const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top
    || b.bottom <= a.top;
  const met = [];
  let number = 0;
  for (const drawing of page.querySelectorAll("figure svg")) {
    const all = [...drawing.querySelectorAll("g:not(.weak) > text.tag")];
    const places = all.map(tag => tag.getBoundingClientRect());
    const edge = drawing.getBoundingClientRect();
    number += all.length;
    places.forEach((one, i) => {
      if (one.left < edge.left - 1 || one.right > edge.right + 1) met.push(all[i].textContent);
      places.slice(0, i).forEach(other => apart(one, other) || met.push(all[i].textContent));
    });
  }
  return {met, number};
}"""
POINTED = """page => {
  const article = page.querySelector("article"), marked = () =>
    [...article.querySelectorAll(".on")].map(e => `${e.localName} ${e.dataset.o}`).sort();
  const event = (kind, part, more) => part.dispatchEvent(
    new page.defaultView.PointerEvent(kind, {bubbles: true, ...more}));
  const row = article.querySelector(".rows > li[data-o='2']"), found = {};
  event("pointerover", row);
  found.over = marked();
  found.picked = article.classList.contains("picked");
  event("pointerout", row, {relatedTarget: page.body});
  found.out = marked();
  event("click", article.querySelector("g[data-o='1'] .f"));
  event("pointerover", row);
  event("pointerout", row, {relatedTarget: page.body});
  found.kept = marked();
  event("click", article.querySelector("g[data-o='1'] .f"));
  found.again = marked();
  return found;
}"""


def page_of(tmp_path: Path) -> str:
    """Many objects with long and hostile names, wide and high pictures, a long caption."""
    rng = np.random.default_rng(0)
    about = {
        "label_names": ["traffic light,stop light,signal", HOSTILE, "x" * 60],
        "attribute_names": ["light brown,tan", "metallic"],
    }
    samples = [sample("plain")]
    for number, (wide, high, most) in enumerate([(640, 480, 100), (1600, 300, 9), (300, 900, 10)]):
        corners = rng.uniform(0, 0.8, (most, 2))
        sizes = rng.uniform(0.05, 0.3, (most, 2))
        boxes = np.concatenate([corners, np.minimum(corners + sizes, 1)], axis=1)
        phrase = {"text": "", "start": 0, "end": 30, "similarity": [0.5] * most}
        reported = info(wide, high, captions=[HOSTILE, "word " * 200], phrases=[[phrase], []])
        samples.append(
            sample(
                f"{'k' * 70}-{number}",
                image=picture(wide, high),
                info=reported,
                objects=objects(boxes * [wide, high, wide, high]),
            )
        )
    folder = folder_of(tmp_path / "shards", samples, about=about)
    out = tmp_path / "look.html"
    assert main(["view", str(folder), "--out", str(out)]) == 0
    return out.read_text("utf-8")


@pytest.mark.parametrize("width, is_dark", [(390, True), (1280, False)])
def test_page_fits_and_no_tag_lies_over_another(tmp_path: Path, width: int, is_dark: bool) -> None:
    """2 + 16 + 9 + 10 objects have tags, unless there is no room for one."""
    found, said = measure(page_of(tmp_path), tmp_path, width=width, is_dark=is_dark, asked=TAGS)
    assert found["wide"] <= 0 and found["outside"] == []
    assert found["asked"]["met"] == [] and 32 <= found["asked"]["number"] <= 37
    assert found["ground"] == ("rgb(18, 19, 24)" if is_dark else "rgb(247, 247, 245)")
    assert "CONSOLE" not in said


def test_pointing_at_an_object_marks_it_everywhere(tmp_path: Path) -> None:
    """Object 2: box, tag, row, its phrase, its column; a click on box 1 keeps it, another not."""
    found, said = measure(page_of(tmp_path), tmp_path, width=1280, asked=POINTED)
    asked = found["asked"]
    assert asked["over"] == ["g 2", "g 2", "li 2", "span 2", "th 2"] and asked["picked"]
    assert asked["out"] == []
    assert asked["kept"] == ["g 1", "g 1", "li 1", "span 1", "th 1"]
    assert asked["again"] == [] and "CONSOLE" not in said
