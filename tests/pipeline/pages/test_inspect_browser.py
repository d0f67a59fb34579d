"""The page of `boxless inspect` in headless Chromium. Oracle: the browser's own layout, its
console, and how dark each cell is after a word is pointed at. Skipped where no Chromium is
installed."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, measure
from report_runs import HOSTILE
from student_folders import TEXT, picture_file, student_folder

from pipeline.cli.main import main

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

# Word 3 is pointed at and left, clicked, the arrow key pressed on it, another map chosen.
POINTED = """page => {
  const article = page.querySelector("article"), view = page.defaultView;
  const button = number => article.querySelector(`button[data-e="${number}"]`);
  const dark = name => [...article.querySelectorAll(`.${name} rect`)]
    .map(cell => Number(cell.getAttribute("fill-opacity")));
  const event = (part, kind, more) => part.dispatchEvent(
    new view.PointerEvent(kind, {bubbles: true, ...more}));
  const state = () => ({attends: dark("attends"), means: dark("means"),
    on: [...article.querySelectorAll(".on")].map(e => `${e.localName} ${e.dataset.e}`),
    pressed: [...article.querySelectorAll("[aria-pressed=true]")].map(e => e.dataset.e),
    status: article.querySelector(".status").textContent});
  const found = {start: state()};
  event(button(3), "pointerover");
  found.over = state();
  event(button(3), "pointerout");
  found.out = state();
  button(3).click();
  found.kept = state();
  button(3).focus();
  button(3).dispatchEvent(new view.KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
  found.focus = page.activeElement.dataset.e;
  const select = article.querySelector("select");
  select.value = "4";
  select.dispatchEvent(new view.Event("change", {bubbles: true}));
  found.mapped = state();
  return found;
}"""


def page_of(tmp_path: Path, *texts: str) -> str:
    student, out = student_folder(tmp_path / "student"), tmp_path / "page.html"
    asked = ["inspect", str(student), "--out", str(out)]
    asked += ["--picture", str(picture_file(tmp_path / "picture.png"))]
    for text in texts:
        asked += ["--text", text]
    assert main(asked) == 0
    return out.read_text("utf-8")


@pytest.mark.parametrize("width, is_dark", [(390, True), (1280, False)])
def test_page_fits(tmp_path: Path, width: int, is_dark: bool) -> None:
    """With hostile and very long words too."""
    page = page_of(tmp_path, TEXT, HOSTILE, "x" * 200 + " circle " * 30)
    found, said = measure(page, tmp_path, width=width, is_dark=is_dark)
    assert found["wide"] <= 0 and found["outside"] == []
    assert found["ground"] == ("rgb(18, 19, 24)" if is_dark else "rgb(247, 247, 245)")
    assert "CONSOLE" not in said


def test_words_light_their_cells(tmp_path: Path) -> None:
    """Oracle: the bytes in the page: a cell is darkened by 0.78 of what it lacks of 255."""
    page = page_of(tmp_path, TEXT)
    found, said = measure(page, tmp_path, width=1280, asked=POINTED)
    assert "CONSOLE" not in said
    asked = found["asked"]
    num_entries = int(re.search(r'data-entries="(\d+)"', page)[1])  # type: ignore[index]
    maps, meaning = (
        np.frombuffer(base64.b64decode(re.search(rf'data-{n}="(.*?)"', page)[1]), np.uint8).reshape(
            -1, num_entries, 6
        )
        for n in ("maps", "meaning")  # type: ignore[index]
    )

    def check(state: dict, kind: int, entry: int) -> None:
        wanted = 0.78 * (1 - maps[kind, entry] / 255)
        np.testing.assert_allclose(state["attends"], wanted, atol=1e-3)
        meant = meaning[0, entry] if meaning[0, entry].any() else np.full(6, 255)
        np.testing.assert_allclose(state["means"], 0.78 * (1 - meant / 255), atol=1e-3)
        assert state["on"][0] == f"button {entry}"

    check(asked["start"], 0, 0)
    check(asked["over"], 0, 3)
    check(asked["out"], 0, 0)
    check(asked["kept"], 0, 3)
    assert asked["over"]["pressed"] == ["0"] and asked["kept"]["pressed"] == ["3"]
    assert asked["over"]["on"] == ["button 3", "li 3"]
    assert asked["focus"] == "4"
    check(asked["mapped"], 4, 3)
    assert asked["mapped"]["status"].startswith("circle, layer 2, mean of heads: ")
