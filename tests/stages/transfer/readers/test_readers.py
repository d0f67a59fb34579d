"""Readers of the original annotation files: what they make of sound ones, and of every kind of
damage. Real files lie beside the project where they are at hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transfer_golden import GOLDEN, golden_json

from stages.annotations.flickr30k_entities import parse_caption
from stages.transfer.example import group_by_images
from stages.transfer.readers.flickr30k_entities import read_flickr30k_entities
from stages.transfer.readers.karpathy import read_karpathy
from stages.transfer.readers.nlvr import read_nlvr, read_nlvr2
from stages.transfer.readers.records import ReaderError, TaskData
from stages.transfer.readers.snli_ve import read_snli_ve
from stages.transfer.readers.vcr import read_vcr
from stages.transfer.readers.vqa import read_vqa

SHARED = Path(__file__).resolve().parents[4].parent / "shared"
MANY = 10**9
needs_photos = pytest.mark.skipif(not (SHARED / "photos").is_dir(), reason="no ../shared/photos")
needs_nlvr = pytest.mark.skipif(not (SHARED / "nlvr").is_dir(), reason="no ../shared/nlvr")


def _picture(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"\xff\xd8\xff")  # a JPEG begins so


def _lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SNLI = {"pairID": "1.jpg#0r1e", "Flickr30K_ID": "1", "sentence1": "A man.", "sentence2": "A person.",
        "gold_label": "entailment"}  # fmt: skip
NLVR2 = {"identifier": "dev-0-1-2", "sentence": "Two dogs.", "label": "True"}
VCR = {
    "annot_id": "val-0", "img_fn": "m/a.jpg", "metadata_fn": "m/a.json", "objects": ["person", "dog"],
    "question": ["Why", "is", [0], "?"], "answer_choices": [[[0, 1], "."]] * 4,
    "rationale_choices": [["So", "."]] * 4, "answer_label": 1, "rationale_label": 3,
}  # fmt: skip


def _snli(folder: Path, *rows: dict, **settings: Any) -> TaskData:
    _picture(folder, "1.jpg")
    return read_snli_ve(_lines(folder / "dev.jsonl", list(rows)), folder, **settings)


def _nlvr2(folder: Path, *rows: dict) -> TaskData:
    for n in (0, 1):
        _picture(folder, f"dev-0-1-img{n}.png")
    return read_nlvr2(_lines(folder / "dev.json", list(rows)), folder)


def _vcr(folder: Path, *rows: dict) -> TaskData:
    _picture(folder, "m/a.jpg")
    (folder / "m/a.json").write_text(
        json.dumps({"boxes": [[0] * 5] * 2, "names": ["person", "dog"]})
    )
    return read_vcr(_lines(folder / "val.jsonl", list(rows)), folder)


def test_snli_ve_by_both_spellings(tmp_path: Path) -> None:
    """Oracle: by hand; the premise is read only where asked for."""
    other = {**SNLI, "pairID": "b", "gold_label": "NEUTRAL"}
    other["Flikr30kID"] = other.pop("Flickr30K_ID") + ".jpg"
    data = _snli(tmp_path, SNLI, other, {**SNLI, "pairID": "c", "gold_label": "-"})
    assert [(e.id, e.label, e.images[0].name, e.texts) for e in data.examples] == [
        ("1.jpg#0r1e", "entailment", "1.jpg", ("A person.",)),
        ("b", "neutral", "1.jpg", ("A person.",)),
    ]
    assert data.dropped == {"no majority label": 1}
    [example] = _snli(tmp_path, SNLI, text_premise=True).examples
    assert example.texts == ((("question", "A man."), ("answer", "A person.")),)


def test_nlvr2_pairs(tmp_path: Path) -> None:
    """Oracle: by hand; labels as texts, booleans and lower case; hidden ones are None, of all
    lines or of none."""
    labels = ["True", False, "false", "TRUE"]
    rows = [
        {**NLVR2, "identifier": f"dev-0-1-{n}", "label": label} for n, label in enumerate(labels)
    ]
    data = _nlvr2(tmp_path, *rows)
    assert [e.label for e in data.examples] == ["True", "False", "False", "True"]
    hidden = [{**row, "label": None} for row in rows]
    assert {e.label for e in _nlvr2(tmp_path, *hidden).examples} == {None}
    with pytest.raises(ReaderError, match=r"dev\.json:4: got no label here and in 0 more of 4"):
        _nlvr2(tmp_path, *rows[:3], hidden[3])
    assert [i.name for i in data.examples[0].images] == ["dev-0-1-img0.png", "dev-0-1-img1.png"]
    assert len(group_by_images(data.examples, max_texts=3)) == 2


def test_vcr_texts_and_tags(tmp_path: Path) -> None:
    """Oracle: by hand: 4 answers, then 16 rationales after each answer; persons are tags, other
    objects their names."""
    [example] = _vcr(tmp_path, VCR).examples
    assert len(example.texts) == 20 and example.label == (1, 3)
    question, answer = ("question", "Why is [PERSON_0] ?"), ("answer", "[PERSON_0] and dog .")
    assert example.texts[0] == (question, answer)
    assert example.texts[4] == (question, answer, ("rationale", "So ."))
    test_row = {k: v for k, v in VCR.items() if not k.endswith("_label")}
    assert _vcr(tmp_path, test_row).examples[0].label is None


KARPATHY = {"filename": "a.jpg", "split": "test", "sentences": [{"raw": "A dog."}]}


def _karpathy(folder: Path, *images: Any) -> TaskData:
    _picture(folder, "a.jpg")
    (folder / "k.json").write_text(json.dumps({"images": images}))
    return read_karpathy(folder / "k.json", folder, splits=("test",))


def _nlvr(folder: Path, *rows: dict) -> TaskData:
    _picture(folder, "images/3/dev-7-0-0.png")
    path = _lines(folder / "dev.json", list(rows))
    return read_nlvr(path, folder / "images", split="dev", num_orders=1)


NLVR = {"identifier": "7-0", "directory": 3, "sentence": "A box.", "label": True}
XML = """<annotation><size><width>100</width><height>50</height></size>
<object><name>1</name><bndbox><xmin>1</xmin><ymin>11</ymin><xmax>50</xmax><ymax>{}</ymax></bndbox>
</object></annotation>"""


def _entities(folder: Path, sentence: str, edge: str = "50") -> TaskData:
    _picture(folder, "9.jpg")
    for name, text in (("Sentences/9.txt", sentence), ("Annotations/9.xml", XML.format(edge))):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return read_flickr30k_entities(folder, folder, ids=["9.jpg"])


def test_entities(tmp_path: Path) -> None:
    """Oracle: by hand; boxes are 1-based pixels of a picture of 100 x 50."""
    data = _entities(tmp_path, "[/EN#1/people A man] sees [/EN#0/notvisual it] .")
    [example] = data.examples
    assert example.label == [[0.0, 0.2, 0.5, 1.0]] and data.dropped == {"phrase without a box": 1}
    for sentence, edge, message in (
        ("[/EN#1/people A man] [/EN#2 x]", "50", r"Sentences/9\.txt:1: phrase: got"),
        ("[/EN#1/people A man]", "b", r"Annotations/9\.xml: box is not four numbers: object 0"),
    ):
        with pytest.raises(ReaderError, match=message):
            _entities(tmp_path, sentence, edge)


def test_a_png_that_is_a_jpeg_is_a_picture_and_a_page_is_none(tmp_path: Path) -> None:
    """Oracle: by hand: NLVR2 names JPEGs so; a page that a dead link gave, and an empty file, are
    named, and counted where that is allowed."""
    assert len(_nlvr2(tmp_path, NLVR2).examples) == 1
    for content, kind in ((b"<!DOCTYPE html>", "a web page"), (b"", "an empty file")):
        (tmp_path / "dev-0-1-img1.png").write_bytes(content)
        with pytest.raises(ReaderError, match=rf"dev\.json:1: .*img1\.png is not JPEG.*{kind}"):
            read_nlvr2(tmp_path / "dev.json", tmp_path)


def test_karpathy_pictures_lie_in_their_folder_or_in_one(tmp_path: Path) -> None:
    """Oracle: by hand."""
    [example] = _karpathy(tmp_path, {**KARPATHY, "filepath": "val2014"}).examples
    assert example.images == (tmp_path / "a.jpg",)
    _picture(tmp_path, "val2014/a.jpg")
    [example] = _karpathy(tmp_path, {**KARPATHY, "filepath": "val2014"}).examples
    assert example.images == (tmp_path / "val2014/a.jpg",)


def test_nlvr_numbers_as_texts(tmp_path: Path) -> None:
    """Oracle: by hand: a directory as a number, a label as a boolean."""
    [example] = _nlvr(tmp_path, NLVR).examples
    assert (example.id, example.label) == ("7-0-0", "True")


FAULTS: list[tuple[Callable[..., TaskData], list[dict], str]] = [
    (_snli, [SNLI, SNLI], r"dev\.jsonl:2: the id '1\.jpg#0r1e'"),
    (_snli, [{**SNLI, "gold_label": "maybe"}], r"jsonl:1: gold_label: got 'maybe', expected one of"),
    (_snli, [{k: v for k, v in SNLI.items() if k != "Flickr30K_ID"}],
     r"jsonl:1: Flickr30K_ID or Flikr30kID: missing"),
    (_snli, [{**SNLI, "sentence2": 3}], r"jsonl:1: sentence2: got 3, expected a text"),
    (_snli, [{**SNLI, "Flickr30K_ID": "7"}], r"1 examples have no picture.*7\.jpg is not there"),
    (_snli, [], "got no example"),
    (_nlvr2, [{**NLVR2, "identifier": "dev-0-1"}], r"dev\.json:1: identifier: got 'dev-0-1'"),
    (_nlvr2, [{**NLVR2, "label": "yes"}], r"dev\.json:1: label: got 'yes'"),
    (_vcr, [{**VCR, "question": [[5]]}], r"val\.jsonl:1: question: got \[5\], expected rows of the 2"),
    (_vcr, [{**VCR, "answer_choices": [["a"]]}], r"val\.jsonl:1: answer_choices: .* 4 choices"),
    (_vcr, [{**VCR, "answer_label": 4}], r"val\.jsonl:1: answer_label: got 4"),
    (_karpathy, [KARPATHY, KARPATHY], r"k\.json, images\[1\]: the id 'a\.jpg' is that of"),
    (_karpathy, [{"file_name": "a.jpg"}], r"images\[0\]: filename: got fields file_name, expected"),
    (_karpathy, ["a.jpg"], r"k\.json: images\[0\]: got 'a\.jpg', expected an object"),
    (_karpathy, [{**KARPATHY, "sentences": [{"tokens": []}]}], r"images\[0\]: sentences\[0\]: raw: got"),
    (_karpathy, [{**KARPATHY, "split": "train"}], "no picture of the splits test.*file has train"),
    (_nlvr, [NLVR, NLVR], r"dev\.json:2 \(order 0\): the id '7-0-0' is that of"),
    (_nlvr, [{**NLVR, "label": 2}], r"dev\.json:1: label: got 2, expected one of True, False"),
    (_nlvr, [{**NLVR, "directory": 4}], r"4/dev-7-0-0\.png is not there"),
    (_vcr, [VCR, VCR], r"val\.jsonl:2: the id 'val-0'"),
    (_vcr, [{**VCR, "objects": ["person"], "answer_choices": [["a"]] * 4}],
     r"a\.json: boxes: got 2, expected 1 entries"),
]  # fmt: skip


@pytest.mark.parametrize("read, rows, message", FAULTS)
def test_faults_are_named(
    read: Callable[..., TaskData], rows: list[dict], message: str, tmp_path: Path
) -> None:
    """Oracle: ReaderError with file, line, field, what was got and expected."""
    with pytest.raises(ReaderError, match=message):
        read(tmp_path, *rows)


def test_a_line_cut_short_is_named(tmp_path: Path) -> None:
    """Oracle: ReaderError with the line's number."""
    _lines(tmp_path / "a.jsonl", [SNLI])
    with open(tmp_path / "a.jsonl", "a") as out:
        out.write(json.dumps(SNLI)[:40])
    _picture(tmp_path, "1.jpg")
    with pytest.raises(ReaderError, match=r"a\.jsonl:2: not valid JSON"):
        read_snli_ve(tmp_path / "a.jsonl", tmp_path)


def test_missing_pictures_are_counted_where_allowed(tmp_path: Path) -> None:
    """Oracle: by hand; one may miss, two may not."""
    gone = [{**SNLI, "pairID": str(n), "Flickr30K_ID": "7"} for n in range(2)]
    data = _snli(tmp_path, SNLI, gone[0], max_missing=1)
    assert data.dropped == {"picture missing": 1} and len(data.examples) == 1
    with pytest.raises(ReaderError, match="2 examples have no picture, expected at most 1"):
        _snli(tmp_path, SNLI, *gone, max_missing=1)


def test_vqa_files(tmp_path: Path) -> None:
    """Oracle: the golden annotations: every question has its ten answers; a file without
    annotations is a test file; ids as texts are read as numbers; ids must agree."""
    annotations = golden_json("vqa_annotations.json")["annotations"]
    for annotation in annotations:
        _picture(tmp_path, f"COCO_val2014_{annotation['image_id']:012d}.jpg")
    data = read_vqa(_questions(tmp_path), GOLDEN / "vqa_annotations.json", tmp_path)
    assert len(data.examples) == 480
    assert all(len(e.label["answers"]) == 10 for e in data.examples)
    assert read_vqa(_questions(tmp_path), None, tmp_path).examples[0].label is None
    with pytest.raises(ReaderError, match="479 annotations are of no question"):
        read_vqa(_questions(tmp_path, most=1), GOLDEN / "vqa_annotations.json", tmp_path)


def _questions(folder: Path, most: int | None = None) -> Path:
    rows = [
        {"question_id": str(a["question_id"]), "image_id": a["image_id"], "question": "q?"}
        for a in golden_json("vqa_annotations.json")["annotations"][:most]
    ]
    (folder / "questions.json").write_text(json.dumps({"questions": rows}))
    return folder / "questions.json"


def test_a_sentence_of_entities() -> None:
    """Oracle: by hand; blanks around a caption are not of it."""
    caption = parse_caption("  [/EN#1/people A man] eats [/EN#2/other/scene it] . ")
    assert caption.text == "A man eats it ." and not caption.is_broken
    assert [(p.start, p.end, p.chain, p.types) for p in caption.phrases] == [
        (0, 5, "1", ("people",)),
        (11, 13, "2", ("other", "scene")),
    ]
    assert parse_caption("[/EN#1/people A man [eats").is_broken


@needs_photos
def test_photos() -> None:
    """Oracle: the numbers in its README: pictures, captions, phrases with boxes, entailment
    rows."""
    root = SHARED / "photos"
    images = root / "images" / "dev"
    assert len(read_snli_ve(root / "snli_ve_dev.jsonl", images).examples) == 726
    data = read_karpathy(root / "dataset_flickr8k.json", root / "images", splits=("val",))
    assert len(data.examples) == 400 and sum(len(e.texts) for e in data.examples) == 2000
    phrases = read_flickr30k_entities(root / "entities", images)
    assert len(phrases.examples) + phrases.dropped["phrase without a box"] == 6381
    assert len(phrases.examples) == 5334
    for example in phrases.examples:
        start, end = example.info["start"], example.info["end"]
        assert 0 <= start < end <= len(example.texts[0])
        assert all(0 <= x1 < x2 <= 1.01 for x1, _, x2, _ in example.label)


@needs_nlvr
def test_nlvr() -> None:
    """Oracle: 989 lines, the pictures that are there."""
    data = read_nlvr(
        SHARED / "nlvr/dev/dev.json", SHARED / "nlvr/dev/images", split="dev", max_missing=MANY
    )
    assert len(data.examples) + data.dropped.get("picture missing", 0) == 989 * 6
    assert {e.label for e in data.examples} == {"True", "False"}
