"""`boxless inspect`. Oracles: attention and heat worked out again, slowly, from the student; the
standard library's HTML parser."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from report_runs import HOSTILE
from student_folders import TEXT, picture_file, student_folder

from pipeline.cli.main import main
from pipeline.pages.student.example_view import View, kinds_of, view_of
from pipeline.pages.student.inputs import ExampleInputs, open_student
from stages.distill.text.phrases import LexiconChunker
from stages.picture import open_picture
from stages.student.attention_trace import trace_attention
from stages.student.heads import weighted_mean
from stages.student.vision.image_transforms import load_picture, stack_pictures
from stages.transfer.predictor import Predictor

CHUNKER = LexiconChunker(["circle", "square"], ["red", "blue"])


class Page(HTMLParser):
    """Articles, buttons, rows of guesses, and all tags."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self._inside not in ("style", "script"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return open_student(student_folder(tmp_path_factory.mktemp("student")))


def viewed(predictor: Predictor, tmp_path: Path, text: str) -> View:
    file = picture_file(tmp_path / "picture.png")
    (example,) = ExampleInputs(pictures=(file,), texts=(text,)).examples()
    return view_of(predictor, example, CHUNKER.chunk)


@torch.no_grad()
def test_maps_are_those_of_a_slow_way(predictor: Predictor, tmp_path: Path) -> None:
    """Oracle: layer by layer, head by head and word by word in loops; phrases as means of words;
    meaning as the cosine of means over the temperature, made a softmax by hand."""
    view = viewed(predictor, tmp_path, TEXT)
    student = predictor.student
    array = load_picture((tmp_path / "picture.png").read_bytes(), shorter_px=32, longer_px=64)
    pictures = stack_pictures([array], multiple_px=16)
    cells = student.encode_image(pictures.pixels, pictures.sizes_px)
    ids, _ = predictor.read([TEXT])
    picture = torch.zeros(1, dtype=torch.long)
    watched = trace_attention(student, cells, picture=picture, tokens=ids)
    num_text, num_cells = ids.shape[1], 6
    assert view.attention.shape == (1 + 2 * 3, 10 + 2, num_cells)
    tokens = predictor.tokenizer.convert_ids_to_tokens(ids[0].tolist())
    assert [entry.text for entry in view.entries[:10]] == tokens  # each word is one piece here
    assert [e.text for e in view.entries if e.is_phrase] == ["a red circle", "a blue square"]
    through = np.eye(num_text + num_cells)
    for layer in range(2):
        heads = watched.attention[0, layer].numpy()
        mean = (heads[0] + heads[1]) / 2
        through = (0.5 * mean + 0.5 * np.eye(len(mean))) @ through
        for place, wanted in enumerate((mean, heads[0], heads[1])):
            found = view.attention[1 + 3 * layer + place].numpy()
            np.testing.assert_allclose(found[:10], wanted[:10, num_text:], rtol=1e-4, atol=1e-6)
            circle = (wanted[1] + wanted[2] + wanted[3]) / 3
            np.testing.assert_allclose(found[10], circle[num_text:], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(view.attention[0, :10], through[:10, num_text:], rtol=1e-4)
    hidden = watched.hidden
    pieces = torch.zeros(1, 1, num_text)
    pieces[..., 1:4] = 1
    phrase = weighted_mean(pieces, hidden.text)[0, 0].numpy()
    scores = [
        phrase @ cell / np.linalg.norm(phrase) / np.linalg.norm(cell) / 0.1
        for cell in hidden.cells[0].numpy()
    ]
    heat = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(view.meaning[10], heat, rtol=1e-3)
    assert not view.meaning[0].any() and not view.meaning[9].any()  # [CLS], [SEP]
    torch.testing.assert_close(view.meaning[1:9].sum(dim=-1), torch.ones(8))


def test_a_picture_taken_sideways_is_turned(tmp_path: Path) -> None:
    """Oracle: a JPEG, red at its left, whose EXIF says that its left is the top (6: turn it by 90
    degrees clockwise): upright it is red at the top. Without EXIF the bytes stay as they are."""
    image = Image.new("RGB", (60, 40), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 30, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, more in (("turned", {"exif": exif}), ("plain", {})):
        file = tmp_path / f"{name}.jpg"
        image.save(file, "JPEG", **more)
        (example,) = ExampleInputs(pictures=(file,), texts=("x",)).examples()
        info = example.sample.info
        if name == "plain":
            assert example.sample.image == file.read_bytes() and info["width"] == 60
            continue
        seen = open_picture(example.sample.image)
        assert seen.size == (info["width"], info["height"]) == (40, 60)
        red, blue = seen.getpixel((20, 10)), seen.getpixel((20, 50))
        assert red[0] > 200 > 50 > red[2] and blue[2] > 200 > 50 > blue[0]


def test_names_of_the_maps() -> None:
    """Oracle: by hand, in the order of `View.attention`."""
    assert kinds_of(2, 1) == [
        "through all layers",
        "layer 1, mean of heads",
        "layer 1, head 1",
        "layer 2, mean of heads",
        "layer 2, head 1",
    ]


def test_the_page_holds_the_maps(predictor: Predictor, tmp_path: Path) -> None:
    """Oracle: bytes in the page, 255 at each map's brightest cell, in proportion elsewhere; a share
    is what the map adds up to; the first picture is darkened by the first map before any script
    runs."""
    student = student_folder(tmp_path / "student")
    file, out = picture_file(tmp_path / "picture.png"), tmp_path / "page.html"
    asked = ["inspect", str(student), "--picture", str(file), "--text", TEXT, "--out", str(out)]
    assert main(asked) == 0
    page = Page(out.read_text("utf-8"))
    (article,) = page.all("article")
    view = viewed(predictor, tmp_path, TEXT)
    num_words = 10
    num_entries = int(article["data-entries"] or 0)
    found = np.frombuffer(base64.b64decode(article["data-maps"] or ""), np.uint8)
    found = found.reshape(7, num_entries, 6)[:, :num_words]
    wanted = view.attention[:, :num_words].numpy()
    np.testing.assert_allclose(found / 255, wanted / wanted.max(-1, keepdims=True), atol=0.004)
    shares = np.array((article["data-shares"] or "").split(), float).reshape(7, num_entries)
    np.testing.assert_allclose(shares[:, :num_words], 100 * wanted.sum(-1), atol=0.51)
    rects = page.all("rect")
    dark = [float(rect["fill-opacity"] or 0) for rect in rects[:6]]
    first = wanted[0, 0] / wanted[0, 0].max()
    np.testing.assert_allclose(dark, 0.78 * (1 - first), atol=0.001)
    # 80 x 60 is seen at 43 x 32; a cell of 16 is 16 / 43 of 80 wide and half of 60 high.
    assert float(rects[1]["x"] or 0) == pytest.approx(16 * 80 / 43, abs=0.01)
    assert float(rects[3]["y"] or 0) == pytest.approx(30, abs=0.01)
    assert len(page.all("option")) == 7


def test_a_mask_is_asked_about(tmp_path: Path) -> None:
    """Its row is marked, and is neither right nor wrong."""
    student = student_folder(tmp_path / "student")
    file, out = picture_file(tmp_path / "picture.png"), tmp_path / "page.html"
    asked = ["inspect", str(student), "--picture", str(file), "--out", str(out)]
    assert main([*asked, "--text", "a [MASK] circle"]) == 0
    page = Page(out.read_text("utf-8"))
    rows = [row for row in page.all("li") if "data-e" in row]
    assert [row.get("class") for row in rows] == [None, "asked", None]
    assert page.text.count("✓") + page.text.count("✗") == 2


def test_a_text_stays_text_and_may_be_too_long(tmp_path: Path) -> None:
    """Oracle: the parser gives the text back as it was; nothing is loaded, and the only script is
    told by its hash."""
    student = student_folder(tmp_path / "student")
    file, out = picture_file(tmp_path / "picture.png"), tmp_path / "page.html"
    asked = ["inspect", str(student), "--picture", str(file), "--out", str(out)]
    assert main([*asked, "--text", HOSTILE, "--text", "circle " * 40, "--text", ""]) == 0
    text = out.read_text("utf-8")
    page = Page(text)
    assert len(page.all("article")) == 3 and len(page.all("script")) == 1
    assert page.text.count("its end was cut") == 2
    assert "script-src 'sha256-" in text and "<img src=http" not in text
    for tag, attributes in page.tags:
        source = attributes.get("src") or attributes.get("href") or "data:"
        assert source.startswith("data:")
        assert not any(name.startswith("on") for name in attributes)


@pytest.mark.parametrize(
    "changed, words",
    [
        (["--out", "page.png"], "ends in .html"),
        (["--out", "no/page.html"], "a folder that exists"),
        (["--picture", "gone.png", "--text", "x"], "gone.png: got FileNotFoundError"),
        (["--text", "x"], "expected --picture FILE"),
    ],
)
def test_errors_say_what_was_expected(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    changed: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["inspect", str(student_folder(tmp_path / "student"))]
    if "--out" in changed:
        asked += ["--picture", str(picture_file(tmp_path / "picture.png")), "--text", "x"]
    else:
        asked += ["--out", "page.html"]
    assert main([*asked, *changed]) == 2
    assert words in capsys.readouterr().err
