"""What the report shows of a student's inside. Oracles: the figures that went in, pixels of the
patches, and which words are drawn."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_runs import HOSTILE, empty_run, inside_examples, whole_run
from student_folders import TINY, student_folder
from view_shards import ABOUT, info, sample

from pipeline.pages.html import html_text
from pipeline.pages.report.galleries.attention import attention_section, most_looking
from pipeline.pages.report.galleries.captions import captions_section
from pipeline.pages.report.galleries.codebook import codes_section, strip_of
from pipeline.pages.sections import Section
from pipeline.pages.thumbnails import Pictures
from pipeline.runner.run_folder import RunFolder
from sharding.format.catalog import write_catalog
from sharding.format.schema import Sample
from sharding.writing.shard_writer import write_shard
from stages.student.vision.neck_config import DictionaryConfig, SohoNeckConfig
from stages.transfer.config import EvaluateConfig
from stages.transfer.evaluation.evaluate import evaluate


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return whole_run(tmp_path_factory.mktemp("run"))


def said(section: Section | None) -> str:
    assert section is not None
    return html_text(section.element()).replace("\N{NO-BREAK SPACE}", " ")


def test_the_words_that_look_most_are_drawn_in_order(run: RunFolder) -> None:
    """Of seven words with shares 0 to 0.6 the last five, in the order of the caption; [CLS]
    first. Phrases are left to the section that knows whether they are hit."""
    words = inside_examples()["attention"][0]["words"]
    assert [word["start"] for word in most_looking(words[::-1])] == [2, 3, 4, 5, 6]
    page = said(attention_section(run, Pictures(run)))
    assert page.count("<figure") == 6 and "fits the picture: 87.3 %" in page
    shares = [f"{10 * n}.0 % on the picture" for n in (2, 3, 4, 5, 6)]
    places = [page.index(share) for share in (">the pair<", *(f">{s}<" for s in shares))]
    assert places == sorted(places) and "by its meaning" not in page


def test_phrases_are_drawn_where_nobody_knows_the_truth(run: RunFolder) -> None:
    path = run.transfer / "evaluate" / "examples.json"
    kept = path.read_text()
    path.write_text(json.dumps({**json.loads(kept), "grounding": []}))
    page = said(attention_section(run, Pictures(run)))
    path.write_text(kept)
    assert page.count("<figure") == 7 and "by its meaning" in page


def test_captions_right_and_wrong(run: RunFolder) -> None:
    """One of five is right for the first picture; for the second none, so that a sixth says where
    the right one stands, shortened."""
    page = said(captions_section(run, Pictures(run)))
    assert page.count("✓") == 1 + 1 and page.count("✗") == 4 + 5
    assert "at place 8" in page and "x" * 321 not in page
    assert HOSTILE not in page and "&lt;script&gt;" in page


def test_figures_of_the_codes(run: RunFolder) -> None:
    """48 cells took 4 of 6 codes; code 2 has 30 of them, 62.5 %."""
    page = said(codes_section(run, Pictures(run)))
    for words in (
        "<dd>6</dd>",
        "<dd>4</dd>",
        "<dd>48</dd>",
        "<dd>2.93</dd>",
        "<dd>2</dd>",
        "at the end of training: 1, 3.",
        "No held-out cell is assigned to 1, 5.",
        "30 cells, 62.5 %",
        "10 cells, 20.8 %",
        "not readable",
    ):
        assert words in page, words
    assert page.count("<img") == 1


def test_patches_show_the_cell_and_half_a_cell_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a picture of four squares of one colour each. Around the cell of the upper left one
    is a quarter of a patch outside at the left and top, and of its neighbours at the right."""
    picture = Image.new("RGB", (40, 40), (255, 0, 0))
    picture.paste((0, 0, 255), (20, 0, 40, 40))
    out = io.BytesIO()
    picture.save(out, "PNG")
    found = Sample(key="a", image=out.getvalue(), extension="png", info={"captions": []})
    monkeypatch.setattr(Pictures, "find", lambda self, key: found if key == "a" else None)
    pictures = Pictures(RunFolder("/nowhere"))  # type: ignore[arg-type]
    patch = {"key": "a", "box": [0, 0, 20, 20]}
    strip = strip_of([patch, {**patch, "key": "gone"}, patch], pictures)
    assert strip is not None and strip.size == (56 + 3 + 56, 56)
    tile = np.asarray(strip)[:, :56]
    assert tile[5, 5].tolist() == [128, 128, 128]  # outside
    assert tile[28, 28].tolist() == [255, 0, 0] and tile[28, 20].tolist() == [255, 0, 0]
    assert tile[28, 48].tolist() == [0, 0, 255]  # the neighbour
    assert tile[28, 12].tolist() == [255, 255, 255]  # the frame
    assert strip_of([{**patch, "key": "gone"}], pictures) is None


def test_what_evaluate_leaves_can_be_drawn(tmp_path: Path) -> None:
    """The stage itself, on a student with a dictionary and pictures of which one has no caption:
    every section is drawn, with a patch of each code at least."""
    config = DictionaryConfig(num_codes=4, start="random")
    student = student_folder(tmp_path / "s", replace(TINY, neck=SohoNeckConfig(dictionary=config)))
    run = empty_run(tmp_path / "run")
    samples = [sample("bare", info=info(captions=[], phrases=[])), sample("a"), sample("b")]
    write_shard(run.objects / "heldout-000000.tar", samples, fingerprint={})
    splits = {"heldout-000000.tar": "heldout"}
    write_catalog(run.objects, kind="objects", splits=splits, metadata=ABOUT)
    evaluate(
        EvaluateConfig(),
        samples=run.objects,
        teacher=None,
        student=student,
        out=run.transfer / "evaluate",
    )
    pictures = Pictures(run)
    # Two pictures; of each [CLS], five words, and three phrases, as nobody knows the truth.
    assert said(attention_section(run, pictures)).count("<figure") == 2 * (1 + 5 + 3)
    assert said(captions_section(run, pictures)).count("<figure") == 2
    page = said(codes_section(run, pictures))
    assert page.count("<img") >= 1 and "not readable" not in page


def test_a_run_without_them_has_no_such_sections(run: RunFolder) -> None:
    path = run.transfer / "evaluate" / "examples.json"
    kept = path.read_text()
    for text in ("{}", '{"codes": null, "attention": [], "captions": null}'):
        path.write_text(text)
        pictures = Pictures(run)
        assert codes_section(run, pictures) is None
        assert attention_section(run, pictures) is None
        assert captions_section(run, pictures) is None
    path.write_text(kept)
