"""`boxless view`. Oracle: the standard library's HTML parser, Pillow's pixels, and what went into
the shards."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import re
import struct
import warnings
import zlib
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image, ImageColor
from report_runs import HOSTILE
from view_shards import ABOUT, CAPTION, GREEN, folder_of, info, objects, picture, sample

from pipeline.cli.main import main
from pipeline.pages.histograms import count_bins
from pipeline.pages.object_names import names_of
from pipeline.pages.palette import COLOURS
from pipeline.pages.shards.counts import Counts
from pipeline.pages.shards.sample_view import scene_of
from pipeline.pages.shards.shard_browser import Whole, open_browser
from sharding.format.manifest import read_manifest
from sharding.format.schema import Failure, Note, ShardError

TAR = "train-000000.tar"


class Page(HTMLParser):
    """Tags with their attributes, the text outside of styles, and the script."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = self.script = ""
        self._inside = ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.script += data
        elif self._inside != "style":
            self.text += data

    def of(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        """Attributes of all elements of that tag and those attributes, "_" for "-"."""
        own = {name.rstrip("_").replace("_", "-"): value for name, value in wanted.items()}
        return [found for name, found in self.tags if name == tag and own.items() <= found.items()]


def page_of(tmp_path: Path, shard: Path | str, *options: str) -> Page:
    """The page that the command writes."""
    out = tmp_path / "look.html"
    assert main(["view", str(shard), "--out", str(out), *options]) == 0
    return Page(out)


def sheet_of(tmp_path: Path, shard: Path, *options: str) -> np.ndarray:
    """The pixels [H, W, 3] of the sheet that the command writes."""
    out = tmp_path / "look.png"
    assert main(["view", str(shard), "--out", str(out), *options]) == 0
    with Image.open(out) as sheet:
        return np.asarray(sheet.convert("RGB"))


def extent(sheet: np.ndarray, colour: tuple[int, ...]) -> tuple[int, int, int, int]:
    """First column, first row, last column and last row with pixels of exactly that colour."""
    rows, columns = np.nonzero((sheet == np.array(colour)).all(axis=-1))
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


# What the page says.


def test_page_says_all_of_a_sample(tmp_path: Path) -> None:
    """Names, attributes, scores, soft label, similarities: those of view_shards, in words."""
    page = page_of(tmp_path, folder_of(tmp_path / "shards", [sample("one")]) / TAR)
    said = page.text.replace("\N{NO-BREAK SPACE}", " ")
    for words in (
        "one",
        "200 × 100 px",
        "2 objects",
        "circle",
        "traffic light, stop light",
        "red 75 %",
        "or traffic light 25 %, moon 6.2 %",
        "69 %",
        "box 20, 30, 80, 90",
        "3 labels",
        "features of 2 numbers",
        "66.7 %",
    ):  # of the phrases are like some
        assert words in said, words
    assert "90 %" in said and "80 %" in said
    assert "navy" not in said  # the first object's attribute is negative: the teacher saw none


def test_boxes_are_in_pixels_of_the_original(tmp_path: Path) -> None:
    """The drawing's coordinates are the picture's, however small the picture in it is."""
    boxes = [[100.0, 250.0, 1900.0, 950.5], [3.0, 4.0, 5.0, 6.0]]
    wide = sample("wide", image=picture(2000, 1000), info=info(2000, 1000), objects=objects(boxes))
    page = page_of(tmp_path, folder_of(tmp_path / "shards", [wide]) / TAR)
    assert page.of("svg", viewbox="0 0 2000 1000")
    assert page.of("rect", class_="f", x="100.0", y="250.0", width="1800.0", height="700.5")
    assert page.of("rect", class_="f", x="3.0", y="4.0", width="2.0", height="2.0")
    (shown,) = page.of("image")
    small = Image.open(io.BytesIO(base64.b64decode(shown["href"].partition(",")[2])))
    assert (shown["width"], shown["height"]) == ("2000", "1000") and small.size == (640, 320)


def test_phrases_have_the_colours_of_their_objects(tmp_path: Path) -> None:
    """Similarity .71 to object 1, 1 to object 2, none: read off view_shards.info."""
    page = page_of(tmp_path, folder_of(tmp_path / "shards", [sample("one")]) / TAR)
    first, second, third = [
        found for _, found in page.tags if found.get("class", "").startswith("phrase")
    ]
    assert (first["class"], first["data-o"]) == ("phrase k0", "1")
    assert (second["class"], second["data-o"]) == ("phrase k1", "2")
    assert third["class"] == "phrase none" and "data-o" not in third
    assert "a red circle1.71 by the traffic light21 under clouds" in page.text
    cells = [found["style"] for found in page.of("td") if "style" in found]
    assert cells == ["--s:71%", "--s:25%", "--s:100%"]
    colours = Path(tmp_path / "look.html").read_text("utf-8")
    assert all(f".k{place}{{--k:{colour}}}" in colours for place, colour in enumerate(COLOURS))


def test_equally_like_objects_are_all_pointed_at(tmp_path: Path) -> None:
    phrase = {"text": "", "start": 0, "end": 12, "similarity": [0.5, 0.5]}
    one = sample("one", info=info(phrases=[[phrase]]))
    page = page_of(tmp_path, folder_of(tmp_path / "shards", [one]) / TAR)
    assert page.of("span", class_="phrase k0", data_o="1 2")
    assert "a red circle1 +1.50" in page.text


def test_page_runs_one_script_and_loads_nothing(tmp_path: Path) -> None:
    """The policy allows the script by the hash of what stands in the page, and data: pictures."""
    page = page_of(tmp_path, folder_of(tmp_path / "shards", [sample("one")]))
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    (policy,) = [found["content"] for found in page.of("meta") if "http-equiv" in found]
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    assert len(page.of("script")) == 1
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed", "base"}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "url(" not in (tmp_path / "look.html").read_text("utf-8").partition("</style>")[0]


def test_hostile_texts_stay_text(tmp_path: Path) -> None:
    """Captions, names and reasons that are markup come back from the parser as text, in page and
    sheet; those with half a character or control codes can be written."""
    about = {"label_names": [HOSTILE] * 3, "attribute_names": [HOSTILE, "</style>"]}
    phrase = {"text": HOSTILE, "start": 0, "end": 30, "similarity": [1.0, 0.0]}
    reported = info(captions=[HOSTILE, "\x00\x1b[2J \u202e </script>"], phrases=[[phrase], []])
    reported["truth"] = {"boxes": [[1, 2, 3, 4]], "labels": [HOSTILE], "attributes": [HOSTILE]}
    failed = [Failure(key="<b>", reason=HOSTILE.strip("\x07")), Note(key="one", reason="<i>")]
    folder = folder_of(
        tmp_path / "shards", [sample("<svg>&amp;\"'", info=reported), *failed], about=about
    )
    page = page_of(tmp_path, folder)
    assert page.text.count("<script>alert('x')</script>") >= 5
    assert "<svg>&amp;\"'" in page.text and "\x00" not in page.text and "\x1b" not in page.text
    tags = {tag for tag, _ in page.tags}
    assert len(page.of("script")) == 1 and "img" not in tags and "b" in tags
    assert all("evil" not in found.get("href", "") for _, found in page.tags)
    assert not any(name.startswith("on") for _, found in page.tags for name in found)
    sheet_of(tmp_path, folder)


def test_figures_and_failures(tmp_path: Path) -> None:
    """Of 5 inputs 2 failed; of the 3 pictures one has no objects."""
    failed = [
        Failure(key="bad", reason="broken picture: truncated"),
        Failure(key="worse", reason="broken picture: no header"),
        Note(key="a", reason="empty caption"),
    ]
    blind = sample("c", objects=objects([]), info=info(phrases=[[]]))
    samples = [sample("a"), sample("b"), blind]
    page = page_of(tmp_path, folder_of(tmp_path / "shards", [*samples, *failed]))
    for words in (
        "pictures in5",
        "kept3",
        "failed2",
        "without objects1",
        "objects a picture1.3",
        "broken picture (2)",
        "worse",
        "no header",
        "empty caption",
        "no objects",
    ):
        assert words in page.text, words
    assert "3 pictures" in page.text


def test_weak_objects_are_left_out(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "shards", [sample("one")])
    page = page_of(tmp_path, folder, "--min-score", "0.85")
    assert "1 object (1 weaker left out)" in page.text and "objects a picture1.0" in page.text
    assert len(page.of("rect", class_="f")) == 1
    # Its best object is not there any more, so the second one's phrase is like the first.
    assert page.of("span", class_="phrase k0", data_o="1")
    assert not page.of("span", class_="phrase k1", data_o="2")


def test_true_objects_are_drawn_and_wrong_ones_crossed(tmp_path: Path) -> None:
    """The first object is at a true circle; the second one's label is not there."""
    truth = {"boxes": [[21, 31, 80, 90]], "labels": ["circle"], "attributes": ["red"]}
    page = page_of(
        tmp_path, folder_of(tmp_path / "shards", [sample("one", info=info(truth=truth))])
    )
    assert len(page.of("rect", class_="true", x="21.0", y="31.0")) == 1
    assert page.text.count("✗") == 1


def test_image_shards_show_what_is_known(tmp_path: Path) -> None:
    """True boxes and phrases where there are some, captions alone where there are none."""
    truth = {
        "boxes": [[20, 30, 80, 90]],
        "labels": ["circle"],
        "attributes": ["red"],
        "phrases": [[{"start": 0, "end": 12, "object": 0}]],
    }
    known = info(truth=truth)
    unknown = info()
    for reported in (known, unknown):
        del reported["phrases"]
    samples = [sample("known", info=known), sample("unknown", info=unknown)]
    blind = [dataclasses.replace(one, objects=None) for one in samples]
    folder = folder_of(tmp_path / "shards", blind, kind="images")
    page = page_of(tmp_path, folder)
    assert "1 true object" in page.text and "No objects are annotated here" in page.text
    assert page.of("span", class_="phrase k0", data_o="1") and CAPTION in page.text
    assert len(page.of("rect", class_="f")) == 1
    sheet = sheet_of(tmp_path, folder)
    assert (sheet == np.array(ImageColor.getrgb(COLOURS[0]))).all(axis=-1).any()


# The contact sheet.


@pytest.mark.parametrize("size", [(200, 100), (800, 400), (100, 300)])
def test_boxes_of_the_sheet_are_at_their_pixels(tmp_path: Path, size: tuple[int, int]) -> None:
    """The picture is one colour, so its place on the sheet is where that is; a box's colour must
    reach from where arithmetic puts its edges, to a pixel. Tags stand above, so not its top."""
    width, height = size
    box = [0.25 * width, 0.5 * height, 0.75 * width, 0.9 * height]
    one = sample(
        "one",
        image=picture(*size),
        info=info(*size, captions=[], phrases=[]),
        objects=objects([box]),
    )
    sheet = sheet_of(tmp_path, folder_of(tmp_path / "shards", [one]))
    x0, y0, x1, y1 = extent(sheet, GREEN)
    scale = (x1 - x0 + 1) / width
    inside = sheet[y0 : y1 + 1, x0 : x1 + 1]
    left, _, right, low = extent(inside, ImageColor.getrgb(COLOURS[0]))
    assert scale == pytest.approx((y1 - y0 + 1) / height, rel=0.01)
    assert left == pytest.approx(box[0] * scale, abs=1)
    assert right == pytest.approx(box[2] * scale, abs=1)
    assert low == pytest.approx(box[3] * scale, abs=1)
    middle = inside[round(0.7 * height * scale)]
    edges = np.nonzero((middle == np.array(ImageColor.getrgb(COLOURS[0]))).all(axis=-1))[0]
    assert edges.min() == left and edges.max() == right and len(edges) == 4


def test_sheet_has_a_tile_a_picture(tmp_path: Path) -> None:
    """Six pictures in rows of four: as many separate stretches of the pictures' colour."""
    reported = info(captions=[], phrases=[])
    plain = [sample(f"s{number}", objects=objects([]), info=reported) for number in range(6)]
    sheet = sheet_of(tmp_path, folder_of(tmp_path / "shards", plain))
    is_ground = (sheet == np.array(GREEN)).all(axis=-1)
    starts = np.diff(is_ground.any(axis=1).astype(int)) == 1
    assert starts.sum() == 2
    first_row = is_ground[np.nonzero(starts)[0][0] + 5]
    assert (np.diff(first_row.astype(int)) == 1).sum() == 4


# Which samples.


def test_samples_are_spread_evenly_over_all_shards(tmp_path: Path) -> None:
    """10 of 5 + 15 + 20: every fourth."""
    numbers = iter(range(40))
    sizes = (5, 15, 20)
    folder = folder_of(
        tmp_path / "shards",
        *([sample(f"s{next(numbers):02}") for _ in range(size)] for size in sizes),
    )
    browser = open_browser(str(folder))
    shown = [found.sample.key for found in browser.read(browser.spread(10))]  # type: ignore[union-attr]
    assert shown == [f"s{number:02}" for number in range(0, 40, 4)]
    assert len(browser.spread(100)) == 40 and len(set(browser.spread(100))) == 40


def test_keys_and_patterns_choose(tmp_path: Path) -> None:
    first = [sample(key) for key in ("cat-1", "cat-2", "dog-1")]
    folder = folder_of(tmp_path / "shards", first, [sample("dog-2"), sample("cat[1]")])
    keys = re.compile(r"<h2><span>(.*?)</span>")
    for wanted, expected in (
        (["dog-2"], ["dog-2"]),
        (["dog-*", "cat-2"], ["cat-2", "dog-1", "dog-2"]),
        (["cat[1]"], ["cat[1]"]),  # a key as it is goes before a pattern
        (["cat-[1]"], ["cat-1"]),
    ):
        options = [word for key in wanted for word in ("--key", key)]
        page_of(tmp_path, folder, *options)
        assert keys.findall((tmp_path / "look.html").read_text("utf-8")) == expected
    assert len(page_of(tmp_path, folder, "--key", "*", "--num", "2").of("article")) == 2


def test_url_of_a_tar_and_of_a_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "shards", [sample("one")], [sample("two")])
    far = fsspec.filesystem("memory")
    for path in folder.iterdir():
        far.pipe_file(f"/look/{path.name}", path.read_bytes())
    assert len(page_of(tmp_path, "memory://look").of("article")) == 2
    page = page_of(tmp_path, f"memory://look/{TAR}")
    assert len(page.of("article")) == 1 and "traffic light" in page.text


# What is not as it should be.


def test_without_a_catalog_classes_go_by_number(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "shards", [sample("one")])
    (folder / "catalog.json").unlink()
    for shard in (folder, folder / TAR):
        page = page_of(tmp_path, shard)
        assert "class 0" in page.text and "classes are shown by number" in page.text
        assert "circle" not in page.text.replace(CAPTION, "").replace("a red circle", "")


@pytest.mark.parametrize(
    "about", [{"label_names": 7}, {"label_names": [1, 2]}, {"label_names": ["a"]}]
)
def test_names_that_do_not_fit(tmp_path: Path, about: dict[str, Any]) -> None:
    page = page_of(tmp_path, folder_of(tmp_path / "shards", [sample("one")], about=about))
    assert "class 1" in page.text


def test_damaged_sample_is_a_tile_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A byte of the second of three is turned: CRC-32 finds it, the others are shown."""
    folder = folder_of(tmp_path / "shards", [sample("a"), sample("b"), sample("c")])
    offset, length = read_manifest(folder / TAR).samples[1].members["objects.npy"]
    data = bytearray((folder / TAR).read_bytes())
    data[offset + length - 1] ^= 0xFF
    (folder / TAR).write_bytes(data)
    page = page_of(tmp_path, folder / TAR)
    assert len(page.of("article")) == 3 and len(page.of("article", class_="broken")) == 1
    assert "got CRC-32" in page.text and "damaged1" in page.text
    assert "3 pictures, 1 of them damaged" in capsys.readouterr().out
    sheet_of(tmp_path, folder / TAR)


def huge_png(side: int) -> bytes:
    """A PNG of side x side pixels in its header, with no pixels behind."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", b""),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (huge_png(30_000), "DecompressionBombError"),
        (b"no picture", "UnidentifiedImageError"),
        (picture()[:90], "expected one that Pillow decodes"),
    ],
)
def test_picture_that_cannot_be_decoded(tmp_path: Path, image: bytes, reason: str) -> None:
    """It is a tile with the reason; a bomb is not blown up."""
    samples = [sample("one", image=image), sample("two")]
    page = page_of(tmp_path, folder_of(tmp_path / "shards", samples))
    assert len(page.of("article")) == 2 and len(page.of("article", class_="broken")) == 1
    assert reason in page.text


def test_large_picture_is_drawn_small(tmp_path: Path) -> None:
    """100 million pixels, of which Pillow warns: drawn all the same, with boxes in its pixels."""
    out = io.BytesIO()
    Image.new("L", (12_500, 8_000), 90).save(out, "JPEG")
    large = sample(
        "large",
        image=out.getvalue(),
        extension="jpg",
        info=info(12_500, 8_000),
        objects=objects([[1000, 2000, 9000, 7000]]),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = page_of(tmp_path, folder_of(tmp_path / "shards", [large]))
    assert page.of("svg", viewbox="0 0 12500 8000") and not page.of("article", class_="broken")
    assert page.of("rect", class_="f", x="1000.0", width="8000.0")
    assert (tmp_path / "look.html").stat().st_size < 100_000


@pytest.mark.parametrize(
    "phrases",
    [
        7,
        [],
        [7],
        [[7]],
        [[{}]],
        [[{"start": 0, "end": 3, "similarity": [1.0]}]],
        [[{"start": 0, "end": 3, "similarity": [1.0, "x"]}]],
        [[{"start": 0, "end": 3, "similarity": [1.0, float("nan")]}]],
        [[{"start": "0", "end": 3, "similarity": [1.0, 0.0]}]],
    ],
)
def test_phrases_that_do_not_fit_are_left_out(phrases: object) -> None:
    """Whatever is not as distill writes it costs the phrases alone."""
    odd = sample("one", info=info(phrases=phrases))
    scene = scene_of(Whole(odd, TAR), names_of(ABOUT), min_score=0, longest_px=640)
    assert len(scene.marks) == 2 and scene.captions[0].phrases == ()
    assert any("Phrases are left out" in word for word in scene.words)


def test_objects_that_are_not_finite_are_not_drawn() -> None:
    """As another's writer may leave them; our own refuses to write them."""
    odd = sample("one")
    assert odd.objects is not None
    odd.objects["box"][0, 0] = np.nan
    with pytest.raises(ShardError, match="box that is not finite"):
        scene_of(Whole(odd, TAR), names_of(ABOUT), min_score=0, longest_px=640)
    counts = Counts(names_of(ABOUT), min_score=0)
    counts.add(Whole(odd, TAR))
    assert counts.num_broken == 1 and counts.num_pictures == counts.num_objects == 0


def test_boxes_beyond_the_picture_and_sizes_that_differ_are_reported(tmp_path: Path) -> None:
    """As after a teacher that counted in pixels of a resized picture."""
    odd = sample("odd", info=info(400, 200), objects=objects([[0, 0, 390, 90], [1, 1, 5, 5]]))
    page = page_of(tmp_path, folder_of(tmp_path / "shards", [odd]))
    assert "The json says 400 × 200 pixels, the picture has 200 × 100" in page.text
    assert "1 of 2 boxes reach beyond the picture's edge" in page.text
    assert page.of("rect", class_="f", width="200.0")


def test_very_many_objects_and_captions_are_bounded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, (1000, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 50, (1000, 2))], axis=1)
    reported = info(captions=["x" * 100_000] * 50, phrases=[[]] * 50)
    folder = folder_of(tmp_path / "shards", [sample("one", info=reported, objects=objects(boxes))])
    page = page_of(tmp_path, folder)
    assert "The first 300 of 1000 objects are drawn" in page.text
    assert len(page.of("rect", class_="f")) == 300 and "And 45 more" in page.text
    assert (tmp_path / "look.html").stat().st_size < 500_000
    sheet_of(tmp_path, folder)


def test_page_of_noisy_pictures_of_100_objects_stays_small(tmp_path: Path) -> None:
    """Noise is what JPEG is worst at. 24 pictures shall take at most five million bytes; six, then,
    a quarter of that."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 400, (100, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 200, (100, 2))], axis=1)
    out = io.BytesIO()
    noise = rng.integers(0, 256, (600, 800, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, "JPEG", quality=70)
    phrase = {"text": "", "start": 0, "end": 12, "similarity": [0.5] * 100}
    reported = info(800, 600, captions=[CAPTION] * 5, phrases=[[phrase]] * 5)
    one = {"image": out.getvalue(), "extension": "jpg", "info": reported, "objects": objects(boxes)}
    page_of(tmp_path, folder_of(tmp_path / "shards", [sample(f"s{n}", **one) for n in range(6)]))
    assert 500_000 < (tmp_path / "look.html").stat().st_size < 1_250_000


def test_empty_shard(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "shards", [Failure(key="bad", reason="broken picture")])
    page = page_of(tmp_path, folder / TAR)
    assert "0 pictures" in page.text and "broken picture" in page.text
    sheet_of(tmp_path, folder / TAR)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.tar"], "got no file or folder there"),
        (["FOLDER/catalog.json"], "got no .tar"),
        (["EMPTY"], "got no shard with a manifest"),
        (["RUN"], "did you mean"),
        (["EMPTY/../bare.tar"], "boxless index"),
        (["FOLDER", "--key", "cat-11"], "the nearest are 'cat-1', 'cat-2'"),
        (["FOLDER", "--key", "bird-*"], "got 'bird-*', expected one of the 3 keys"),
        (["FOLDER", "--num", "0"], "num: got 0, expected 1 to 500"),
        (["FOLDER", "--min-score", "2"], "min_score: got 2.0, expected 0 to 1"),
        (["FOLDER", "--min-score", "nan"], "min_score: got nan"),
        (["FOLDER", "--out", "x.pdf"], "out: got 'x.pdf', expected a name that ends in .html or"),
        (["FOLDER", "--out", "no/where.html"], "expected a folder that exists"),
        (["FOLDER", "--out", "FOLDER.html"], "expected a file's name"),
        (["zip://a.zip"], "reads through something else"),
        (["memory://nothing/at/all"], "expected the catalog of a folder"),
    ],
)
def test_what_cannot_be_is_reported_in_words(
    tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, the words, no traceback, and no file."""
    folder = folder_of(tmp_path / "FOLDER", [sample(key) for key in ("cat-1", "cat-2", "dog-1")])
    folder_of(tmp_path / "RUN" / "objects", [sample("one")])
    for name in ("EMPTY", "FOLDER.html"):
        (tmp_path / name).mkdir()
    (tmp_path / "bare.tar").write_bytes((folder / TAR).read_bytes())
    shard, *options = [
        word if "://" in word else re.sub("^(FOLDER|EMPTY|RUN)", f"{tmp_path}/\\1", word)
        for word in arguments
    ]
    out = [] if "--out" in options else ["--out", str(tmp_path / "look.html")]
    assert main(["view", shard, *options, *out]) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
    assert not (tmp_path / "look.html").exists()


@pytest.mark.parametrize(
    ("times", "columns"),
    [
        ({}, [("0", 0)]),
        ({0: 2, 3: 1}, [("0", 2), ("1", 0), ("2", 0), ("3", 1)]),
        (
            {0: 1, 47: 1},
            [("0 to 1", 1), *[(f"{n} to {n + 1}", 0) for n in range(2, 46, 2)], ("46 to 47", 1)],
        ),
    ],
)
def test_columns_count_every_number_once(
    times: dict[int, int], columns: list[tuple[str, int]]
) -> None:
    assert [(one.name, one.number) for one in count_bins(Counter(times))] == columns


def test_another_catalog_beside_a_tar_is_reported(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "shards", [sample("one")])
    catalog = json.loads((folder / "catalog.json").read_text())
    catalog["shards"][0]["manifest_sha256"] = "0" * 64
    (folder / "catalog.json").write_text(json.dumps(catalog))
    assert "knows another shard of this name" in page_of(tmp_path, folder / TAR).text
    page = page_of(tmp_path, folder)  # a folder's readers refuse such a shard
    assert len(page.of("article", class_="broken")) == 1
    assert ABOUT["num_top"] == 3 and "written again since" in page.text
