"""The report's page as a document. Oracle: the standard library's HTML parser, and the figures that
went into the run folder."""

from __future__ import annotations

import base64
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from report_runs import SECTIONS, empty_run, examples, metrics, picture, shards, whole_run

from pipeline.cli.main import main
from pipeline.pages.charts import Series, line_chart, nice_ticks, thinned
from pipeline.pages.html import h, html_text
from pipeline.pages.report.page import write_report
from pipeline.pages.report.training_curves import learning_section
from pipeline.pages.thumbnails import Pictures, thumbnail
from pipeline.recipe.recipe import dump_recipe, load_recipe
from pipeline.runner.run_folder import RunError, RunFolder


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of styles."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self._inside != "style":
            self.text += data

    def sections(self) -> list[str | None]:
        return [attributes.get("id") for tag, attributes in self.tags if tag == "section"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return whole_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(run: RunFolder) -> Page:
    return Page(write_report(run))


def test_every_part_is_there_and_drawn(page: Page) -> None:
    assert page.sections() == [
        *SECTIONS[:6],
        "attention",
        "codes",
        "gallery",
        "captions",
        "tasks",
        "ablation",
        "recipe",
    ]
    assert "cannot be drawn" not in page.text
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert set(links) == {f"#{name}" for name in page.sections()}


@pytest.mark.parametrize(
    ("teacher", "words"), [("run", "A Faster R-CNN teacher"), ("truth", "The true boxes of")]
)
def test_the_lead_says_where_objects_come_from(teacher: str, words: str, tmp_path: Path) -> None:
    """Oracle: the recipe's distill.teacher."""
    run = empty_run(tmp_path)
    text = dump_recipe(load_recipe("toy", [f"distill.teacher={teacher}"]))
    run.recipe.write_text(text, "utf-8")
    assert words in Page(write_report(run)).text


def test_page_stands_alone(page: Page, run: RunFolder) -> None:
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed"}
    for tag, attributes in page.tags:
        if tag in ("img", "image"):
            source = attributes.get("src") or attributes.get("href") or ""
            kind, _, data = source.partition(";base64,")
            assert kind in ("data:image/jpeg", "data:image/png")
            Image.open(io.BytesIO(base64.b64decode(data))).load()
        assert not any(name.startswith("on") for name in attributes)
    style = (run.report / "index.html").read_text("utf-8").partition("<style>")[2]
    assert "url(" not in style.partition("</style>")[0] and "@import" not in style
    assert [path.name for path in run.report.iterdir()] == ["index.html"]


def test_pictures_and_charts_say_what_they_show(page: Page) -> None:
    for tag, attributes in page.tags:
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg":
            assert attributes["role"] == "img" and attributes["aria-label"]


def test_figures_are_those_of_the_run(page: Page) -> None:
    spaced = page.text.replace("\N{NO-BREAK SPACE}", " ")
    for said in (
        "60.5 %",
        "121 ×",
        "91.2 %",  # scores
        "In all 1 min 00 s of work",  # 10 + 11 + 12 + 13 + 14 seconds
        "62.0 %",
        "60.0 % to 64.0 %",  # the ablation's mean and range
        "right one comes at place 8",
        "71.0 %",
        "First some texts whose picture is ranked first",
        "empty caption",
        "broken picture",
        "and 1 more, not drawn",
        "held-out pictures256",
    ):
        assert said in spaced, said
    assert spaced.index("Text to picture, R@5") < spaced.index("Text to picture, R@10")


def test_captions_stay_text(page: Page) -> None:
    """Each hostile caption comes back from the parser as it was written, as text."""
    assert page.text.count("<script>alert('x')</script>") >= 4
    assert "\ufffd" in page.text and "\x07" not in page.text
    assert all("evil" not in (a.get("src") or "") for _, a in page.tags)
    assert "onerror" in page.text


def test_half_a_character_can_be_written() -> None:
    assert "?" in html_text(h("p", json.loads(r'"\ud800"')))


def test_run_of_which_nothing_ran(tmp_path: Path) -> None:
    page = Page(write_report(empty_run(tmp_path / "run")))
    assert page.sections() == SECTIONS
    assert "cannot be drawn" not in page.text
    assert "Remaining: ingest, teach, distill, pretrain, evaluate" in page.text


@pytest.mark.parametrize(
    "gone",
    [
        "objects",
        "images",
        "teacher",
        "pretrain",
        "transfer",
        "ablation.json",
        "transfer/evaluate/examples.json",
        "objects/heldout-000000.tar",
        "objects/heldout-000000.tar.json",
        "transfer/nlvr/outcomes.json",
    ],
)
def test_run_without_one_of_its_parts(run: RunFolder, tmp_path: Path, gone: str) -> None:
    half = RunFolder(shutil.copytree(run.root, tmp_path / "half"))
    path = half.root / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = Page(write_report(half))
    assert set(SECTIONS) <= set(page.sections())
    assert "cannot be drawn" not in page.text


def test_pretrain_under_way(tmp_path: Path) -> None:
    """Image shards only and curves so far: the cut last line does no harm."""
    run = empty_run(tmp_path / "run")
    shards(run.images, "images")
    metrics(run)
    page = Page(write_report(run))
    assert "distill has not finished" in page.text and "Total loss" in page.text
    assert "390" in page.text


@pytest.mark.parametrize(
    "damage",
    ["[1, 2", "[]", "\x00", '{"grounding": 3, "retrieval": [{}]}', '{"variants": {"plain": 3}}'],
)
def test_damaged_file_costs_its_own_part_only(tmp_path: Path, damage: str) -> None:
    run = empty_run(tmp_path / "run")
    shards(run.objects, "objects")
    examples(run)
    (run.transfer / "evaluate" / "examples.json").write_text(damage)
    (run.transfer / "evaluate" / "scores.json").write_text(damage)
    (run.root / "ablation.json").write_text(damage)
    page = Page(write_report(run))
    assert set(SECTIONS) <= set(page.sections())
    assert "red circle" in page.text


def test_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="recipe.yaml"):
        write_report(RunFolder(tmp_path))


def test_command_line_writes_the_same_page(run: RunFolder, capsys: pytest.CaptureFixture) -> None:
    before = write_report(run).read_bytes()
    assert main(["report", str(run.root)]) == 0
    assert (run.report / "index.html").read_bytes() == before
    assert "index.html" in capsys.readouterr().out


def test_pictures_are_shown_upright() -> None:
    """Boxes are on the upright picture: a telephone's is turned here, and not again by a
    browser."""
    small = thumbnail(picture(orientation=6), longest_px=200)
    assert small is not None and (small.width, small.height) == (40, 60)
    shown = Image.open(io.BytesIO(base64.b64decode(small.uri.partition(",")[2])))
    assert shown.size == (40, 60) and not shown.getexif()


def test_large_pictures_shrink_and_broken_ones_are_none() -> None:
    small = thumbnail(picture(3000, 1000), longest_px=200)
    assert small is not None and (small.width, small.height) == (3000, 1000)
    assert len(small.uri) < 10_000
    assert thumbnail(picture()[:200], longest_px=200) is None
    assert thumbnail(b"no picture", longest_px=200) is None


def test_wide_pictures_have_rows_of_their_own(run: RunFolder, tmp_path: Path) -> None:
    assert not Pictures(run).are_wide
    wide = empty_run(tmp_path / "run")
    shards(wide.images, "images", width=90)
    assert Pictures(wide).are_wide and Pictures(wide).find("heldout-3") is not None


@pytest.mark.parametrize(
    "end, ticks",
    [
        (0.0, [0, 1]),
        (1.0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (11.7, [0, 2.5, 5, 7.5, 10, 12.5]),
        (900, [0, 200, 400, 600, 800, 1000]),
        (0.0031, [0, 0.001, 0.002, 0.003, 0.004]),
    ],
)
def test_ticks_are_round_and_reach_the_end(end: float, ticks: list[float]) -> None:
    assert nice_ticks(end) == pytest.approx(ticks)


def test_long_curves_are_thinned_by_means() -> None:
    points = [(float(step), float(step % 2)) for step in range(1, 1001)]
    thin = thinned(points)
    assert len(thin) == 100 and thin[-1][0] == 1000
    assert all(value == 0.5 for _, value in thin)


def test_chart_of_one_point_and_of_none() -> None:
    line_chart("one", [Series(name="a", points=[(10, 0.0)])], y_label="")
    with pytest.raises(ValueError, match="no points"):
        line_chart("none", [Series(name="a", points=[])], y_label="")


def test_a_visual_dictionary_has_a_chart(tmp_path: Path) -> None:
    """Its figures are drawn where training reported them, and there is no chart where it did
    not."""
    for figures, drawn in (({"mvm/perplexity": 9.5, "mvm/dead_codes": 3.0}, True), ({}, False)):
        run = empty_run(tmp_path / str(drawn))
        run.pretrain.mkdir(parents=True, exist_ok=True)
        lines = [{"step": step, "loss": 1.0, "mvm/loss": 2.0, **figures} for step in (1, 2)]
        path = run.pretrain / "metrics.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        said = "".join(html_text(part) for part in learning_section(run).content)
        for words in ("Visual dictionary", "mvm perplexity", "mvm dead codes"):
            assert (words in said) == drawn


def test_held_out_pictures_have_charts_of_their_own(tmp_path: Path) -> None:
    """Oracle: the metrics' names; what was measured on held-out pictures is not among the curves of
    training, and there is no chart where nothing was."""
    for figures, drawn in (
        ({"validation/itc/loss": 2.0, "validation/picture_to_text_r1": 0.2}, True),
        ({}, False),
    ):
        run = empty_run(tmp_path / str(drawn))
        run.pretrain.mkdir(parents=True, exist_ok=True)
        lines = [{"step": step, "loss": 1.0, "itc/loss": 2.0, **figures} for step in (1, 2)]
        path = run.pretrain / "metrics.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        said = "".join(html_text(part) for part in learning_section(run).content)
        for words in ("Losses on held-out pictures", "Retrieval among held-out pictures, R@1"):
            assert (words in said) == drawn
        assert "validation" not in said
