"""What is wrong in annotation files, of every task's reader: each kind of fault is named with file,
line or row, and field, or counted."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stages.transfer.readers.flickr30k_entities import read_flickr30k_entities
from stages.transfer.readers.karpathy import read_karpathy
from stages.transfer.readers.nlvr import read_nlvr, read_nlvr2
from stages.transfer.readers.records import ReaderError, TaskData
from stages.transfer.readers.snli_ve import read_snli_ve
from stages.transfer.readers.vcr import read_vcr
from stages.transfer.readers.vqa import read_vqa
from stages.transfer.task_config import TaskDataConfig
from stages.transfer.tasks.grounding import GroundingTask

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Format:
    """A reader on two sound rows. `needed`: the fields without which there is no example; `place`:
    how its errors call a row's place; `pictures`: a file of each row."""

    rows: tuple[Row, Row]
    needed: tuple[str, ...]
    pictures: tuple[str, str]
    read: Callable[..., TaskData]
    inside: str | None = None
    """The field of one JSON object that the rows are the list of; None for JSON lines."""
    others: tuple[tuple[str, str], ...] = ()
    """Files beside it, with their texts."""

    def write(self, folder: Path, rows: list[Row]) -> Path:
        """The annotation file and all pictures."""
        for name in self.pictures:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(JPEG)
        for name, text in self.others:
            (folder / name).write_text(text)
        path = folder / "rows.json"
        if self.inside:
            path.write_text(json.dumps({self.inside: rows}, indent=0))
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def place(self, number: int) -> str:
        """How errors call a row."""
        return f"{self.inside}[{number}]" if self.inside else f"rows.json:{number + 1}"


def _two(row: Row, name: str, values: tuple[Any, Any]) -> tuple[Row, Row]:
    first, second = copy.deepcopy(row), copy.deepcopy(row)
    first[name], second[name] = values
    return first, second


def _annotations() -> str:
    answers = [{"answer": "yes"}] * 10
    entry = {"question_type": "is", "answer_type": "yes/no", "multiple_choice_answer": "yes"}
    rows = [{**entry, "question_id": n, "image_id": n, "answers": answers} for n in (1, 2)]
    return json.dumps({"annotations": rows})


QUESTIONS = ({"question_id": 1, "image_id": 1, "question": "is it?"},
             {"question_id": 2, "image_id": 2, "question": "is it?"})  # fmt: skip
VCR = {
    "annot_id": "", "img_fn": "1.jpg", "metadata_fn": "1.json", "objects": ["person"],
    "question": ["Why", [0], "?"], "answer_choices": [[[0]]] * 4, "rationale_choices": [["So"]] * 4,
    "answer_label": 1, "rationale_label": "3",
}  # fmt: skip
FORMATS = {
    "vqa": Format(
        rows=QUESTIONS,
        needed=("question_id", "image_id", "question"),
        pictures=("COCO_val2014_000000000001.jpg", "COCO_val2014_000000000002.jpg"),
        read=lambda path, **more: read_vqa(
            path, path.parent / "annotations.json", path.parent, **more
        ),
        inside="questions",
        others=(("annotations.json", _annotations()),),
    ),
    "nlvr2": Format(
        rows=_two({"sentence": "It is.", "label": "True"}, "identifier", ("dev-0-1-0", "dev-0-2-0")),
        needed=("identifier", "sentence"),
        pictures=("dev-0-1-img0.png", "dev-0-2-img0.png"),
        read=lambda path, **more: read_nlvr2(path, path.parent, **more),
        others=(("dev-0-1-img1.png", "GIF89a"), ("dev-0-2-img1.png", "GIF89a")),
    ),
    "nlvr": Format(
        rows=_two({"sentence": "It is.", "label": "true", "directory": "3"}, "identifier", ("1-0", "2-0")),
        needed=("identifier", "sentence", "directory"),
        pictures=("3/dev-1-0-0.png", "3/dev-2-0-0.png"),
        read=lambda path, **more: read_nlvr(path, path.parent, split="dev", num_orders=1, **more),
    ),
    "snli_ve": Format(
        rows=(
            {"pairID": "a", "Flickr30K_ID": "1", "sentence2": "It is.", "gold_label": "neutral"},
            {"pairID": "b", "Flikr30kID": "2.jpg", "sentence2": "It is.", "gold_label": "Neutral"},
        ),
        needed=("pairID", "Flickr30K_ID", "sentence2"),
        pictures=("1.jpg", "2.jpg"),
        read=lambda path, **more: read_snli_ve(path, path.parent, **more),
    ),
    "vcr": Format(
        rows=_two({**VCR}, "annot_id", ("a", "b")),
        needed=("annot_id", "img_fn", "metadata_fn", "objects", "question", "answer_choices",
                "rationale_choices", "rationale_label"),
        pictures=("1.jpg", "2.jpg"),
        read=lambda path, **more: read_vcr(path, path.parent, **more),
        others=(("1.json", '{"boxes": [[0, 0, 1, 1, 1]], "names": ["person"]}'),),
    ),
    "karpathy": Format(
        rows=_two({"split": "test", "sentences": [{"raw": "It is."}]}, "filename", ("1.jpg", "2.jpg")),
        needed=("filename", "split", "sentences"),
        pictures=("1.jpg", "2.jpg"),
        read=lambda path, **more: read_karpathy(path, path.parent, splits=("test",), **more),
        inside="images",
    ),
}  # fmt: skip
FORMATS["vcr"].rows[1]["img_fn"] = "2.jpg"
every_format = pytest.mark.parametrize("name", FORMATS)


def _sound(name: str, folder: Path) -> tuple[Format, Path, list[Row]]:
    form = FORMATS[name]
    rows = copy.deepcopy(list(form.rows))
    path = form.write(folder, rows)
    for other in folder.glob("*-img1.png"):
        other.write_bytes(PNG)
    return form, path, rows


def _again(form: Format, path: Path, rows: list[Row]) -> None:
    """The annotation file alone."""
    kept = {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file() and p != path}
    form.write(path.parent, rows)
    for other, data in kept.items():
        other.write_bytes(data)


@every_format
def test_both_rows_are_read_whatever_their_pictures_are(name: str, tmp_path: Path) -> None:
    """Oracle: by hand: two examples with labels, whether the files are JPEGs or PNGs."""
    form, path, _ = _sound(name, tmp_path)
    assert len(form.read(path).examples) == 2
    for picture in form.pictures:
        (tmp_path / picture).write_bytes(PNG)
    data = form.read(path)
    assert len(data.examples) == 2 and not data.dropped
    assert len({str(example.label) for example in data.examples}) == 1 or name == "vqa"


@every_format
def test_a_picture_that_is_not_there(name: str, tmp_path: Path) -> None:
    """Oracle: the row's place and the file in the error; where one may miss, a count."""
    form, path, _ = _sound(name, tmp_path)
    (tmp_path / form.pictures[1]).unlink()
    with pytest.raises(ReaderError) as error:
        form.read(path)
    assert form.place(1) in str(error.value) and f"{form.pictures[1]} is not there" in str(
        error.value
    )
    data = form.read(path, max_missing=1)
    assert len(data.examples) == 1 and data.dropped == {"picture missing": 1}


@every_format
def test_a_file_cut_short(name: str, tmp_path: Path) -> None:
    """Oracle: the line at which it ends."""
    form, path, _ = _sound(name, tmp_path)
    data = path.read_bytes().rstrip()[:-9]
    path.write_bytes(data)
    last = data.count(b"\n") + 1
    with pytest.raises(ReaderError, match=rf"rows\.json:{last}: not valid JSON"):
        form.read(path)


@every_format
def test_an_id_that_is_there_twice(name: str, tmp_path: Path) -> None:
    """Oracle: the place of the second, and that its id was there."""
    form, path, rows = _sound(name, tmp_path)
    _again(form, path, [*rows, rows[0]])
    with pytest.raises(ReaderError) as error:
        form.read(path)
    assert form.place(2) in str(error.value), str(error.value)
    assert "the id " in str(error.value)


def _needed() -> Iterator[tuple[str, str]]:
    for name, form in FORMATS.items():
        for field in form.needed:
            yield name, field


@pytest.mark.parametrize("name, field", [*_needed()])
def test_a_field_that_is_not_there_or_is_none(name: str, field: str, tmp_path: Path) -> None:
    """Oracle: the row's place and the field, for one left out, one misspelt, null, an object, and
    a list of an object."""
    form, path, rows = _sound(name, tmp_path)
    value = rows[0].pop(field)
    for fault in ({}, {f"{field}s": value}, {field: None}, {field: {}}, {field: [{}]}):
        _again(form, path, [{**rows[0], **fault}, rows[1]])
        with pytest.raises(ReaderError) as error:
            form.read(path)
        assert form.place(0) in str(error.value) and field in str(error.value), fault


READ = {
    "vqa": "question",
    "nlvr2": "sentence",
    "nlvr": "sentence",
    "snli_ve": "sentence2",
    "vcr": "question",
    "karpathy": "sentences",
}
"""What is read of each format's rows."""


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u00a0\u200b"])
@pytest.mark.parametrize("name, field", [*READ.items()])
def test_a_text_of_blanks(name: str, field: str, blank: str, tmp_path: Path) -> None:
    """A text in which nothing can be read is no example. Oracle: the row's place and the field."""
    form, path, rows = _sound(name, tmp_path)
    value = {"vcr": [blank, blank], "karpathy": [{"raw": blank}]}.get(name, blank)
    _again(form, path, [rows[0], {**rows[1], field: value}])
    with pytest.raises(ReaderError) as error:
        form.read(path)
    assert form.place(1) in str(error.value) and field in str(error.value)
    assert "blank" in str(error.value)


@every_format
def test_a_key_that_is_there_twice(name: str, tmp_path: Path) -> None:
    """Python takes the last. Oracle: the key's line in the file, found by its mark, and its name;
    the same value twice loses nothing and is read."""
    form, path, _ = _sound(name, tmp_path)
    sound, text = form.read(path), path.read_text()
    field = READ[name]
    start = text.rindex(f'"{field}"')
    path.write_text(f'{text[:start]}"{field}": "mark", {text[start:]}')
    line = path.read_text()[: path.read_text().rindex(f'"{field}"')].count("\n") + 1
    with pytest.raises(ReaderError, match=rf"rows\.json:{line}: {field}: comes twice in an object"):
        form.read(path)
    for key in ("pairID", "split", "identifier", "annot_id", "image_id"):
        if f'"{key}"' not in text:
            continue
        value = json.loads(text if form.inside else text.splitlines()[-1])
        row = value[form.inside][-1] if form.inside else value
        start = text.rindex(f'"{key}"')
        path.write_text(f'{text[:start]}"{key}": {json.dumps(row[key])}, {text[start:]}')
        assert form.read(path) == sound


LABELS = {"nlvr2": "label", "nlvr": "label", "snli_ve": "gold_label", "vcr": "answer_label"}


@pytest.mark.parametrize("name, field", [*LABELS.items()])
def test_a_label_that_is_none_of_the_task_s(name: str, field: str, tmp_path: Path) -> None:
    """Oracle: the row's place and the field for another word, number or object; the row's place
    where it alone has no label, which a test file has of no row."""
    form, path, rows = _sound(name, tmp_path)
    for label in ("perhaps", 7, {}, ""):
        _again(form, path, [rows[0], {**rows[1], field: label}])
        with pytest.raises(ReaderError) as error:
            form.read(path)
        assert f"{form.place(1)}: {field}: got {label!r}" in str(error.value)
    labels = {field, "rationale_label"}
    without = [{k: v for k, v in row.items() if k not in labels} for row in rows]
    _again(form, path, [rows[0], without[1]])
    with pytest.raises(ReaderError, match=rf"{form.place(1)}( \(order 0\))?: got no label here"):
        form.read(path)
    _again(form, path, without)
    assert [example.label for example in form.read(path).examples] == [None, None]


@pytest.mark.parametrize("text", ["[1, 2]", "3", ""])
@every_format
def test_a_file_of_something_else(name: str, text: str, tmp_path: Path) -> None:
    """Oracle: the file in the error."""
    form, path, _ = _sound(name, tmp_path)
    path.write_text(text)
    with pytest.raises(ReaderError, match=r"rows\.json|got no example"):
        form.read(path)


@every_format
def test_a_byte_order_mark_and_other_line_ends(name: str, tmp_path: Path) -> None:
    """Oracle: the examples of the sound file."""
    form, path, _ = _sound(name, tmp_path)
    sound, data = form.read(path), path.read_bytes()
    for other in (b"\xef\xbb\xbf" + data, data.replace(b"\n", b"\r\n"), data.rstrip()):
        path.write_bytes(other)
        assert form.read(path) == sound


@every_format
def test_a_file_that_is_no_text(name: str, tmp_path: Path) -> None:
    """Oracle: the file, what it is, and for a compressed one what unpacks it."""
    form, path, _ = _sound(name, tmp_path)
    data = path.read_bytes()
    path.write_bytes(gzip.compress(data))
    with pytest.raises(ReaderError, match=r"rows\.json: got a file compressed by gzip.* gzip -d"):
        form.read(path)
    path.write_bytes(data.decode().encode("utf-16"))
    with pytest.raises(ReaderError, match=r"rows\.json: not UTF-8"):
        form.read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ReaderError, match=r"rows\.json: Is a directory"):
        form.read(path)


@pytest.mark.parametrize("text", ["half \ud83d", "\0"])
@every_format
def test_a_text_that_no_file_and_no_tokenizer_takes(name: str, text: str, tmp_path: Path) -> None:
    """Oracle: the row's place and the field, for the first text of every row's fields."""
    form, path, rows = _sound(name, tmp_path)
    for field, value in rows[1].items():
        if isinstance(value, str):
            _again(form, path, [rows[0], {**rows[1], field: text}])
            with pytest.raises(ReaderError, match="expected a text without NULs") as error:
                form.read(path)
            assert form.place(1) in str(error.value) and field in str(error.value)


@pytest.mark.parametrize("number", ["\u00b2", "--3", "7" * 5000, "1.0", 1.5, float("nan"), True])
@pytest.mark.parametrize(
    "name, field", [("vqa", "question_id"), ("vqa", "image_id"), ("vcr", "answer_label")]
)
def test_a_number_that_is_none(name: str, field: str, number: Any, tmp_path: Path) -> None:
    """Oracle: the row's place and the field."""
    form, path, rows = _sound(name, tmp_path)
    _again(form, path, [rows[0], {**rows[1], field: number}])
    with pytest.raises(ReaderError, match="expected a whole number") as error:
        form.read(path)
    assert f"{form.place(1)}: {field}: got" in str(error.value)


@pytest.mark.parametrize(
    "name, field",
    [
        ("nlvr", "identifier"),
        ("snli_ve", "Flikr30kID"),
        ("vcr", "img_fn"),
        ("karpathy", "filename"),
    ],
)
def test_a_name_that_no_file_can_have(name: str, field: str, tmp_path: Path) -> None:
    """Oracle: the row's place, and why the picture cannot be read."""
    form, path, rows = _sound(name, tmp_path)
    _again(form, path, [rows[0], {**rows[1], field: "x" * 5000}])
    with pytest.raises(ReaderError, match="is not readable .File name too long") as error:
        form.read(path)
    assert form.place(1) in str(error.value)


VCR_FAULTS = [
    ({"answer_choices": ["yes"] * 4}, r"answer_choices\[0\]: got 'yes', expected a list of words"),
    ({"objects": [3]}, r"objects\[0\]: got 3, expected the name"),
    ({"question": [[True]]}, r"question: got \[True\]"),
    ({"metadata_fn": "3.json"}, r"metadata_fn: .*3\.json: No such file"),
]


@pytest.mark.parametrize("fault, message", VCR_FAULTS)
def test_vcr_s_lists(fault: Row, message: str, tmp_path: Path) -> None:
    """Oracle: by hand; a text where a list of words stands would be read letter by letter."""
    form, path, rows = _sound("vcr", tmp_path)
    _again(form, path, [{**rows[0], **fault}, rows[1]])
    with pytest.raises(ReaderError, match=rf"rows\.json:1: {message}"):
        form.read(path)


XML = """<annotation><size><width>100</width><height>50</height></size>
<object><name>1</name><bndbox><xmin>{}</xmin><ymin>11</ymin><xmax>50</xmax><ymax>50</ymax></bndbox>
</object></annotation>"""
SENTENCE = "[/EN#1/people A man] sees it ."


@pytest.mark.parametrize(
    "sentence, xml, ids, message",
    [
        (SENTENCE[:15], XML.format(1), ["9"], r"Sentences/9\.txt:1: phrase: got"),
        (SENTENCE, XML.format(1)[:60], ["9"], r"Annotations/9\.xml: no XML"),
        (SENTENCE, XML.format(60), ["9"], r"Annotations/9\.xml: box of chain 1: got 60, 11, 50, 50"),
        (SENTENCE, XML.format(49).replace("100<", "40<"), ["9"],
         r"9\.xml: box of chain 1: got 49, 11, 50, 50 in a picture of 40 x 50"),
        (SENTENCE, XML.format("a"), ["9"], r"Annotations/9\.xml: box is not four numbers"),
        (SENTENCE, XML.format(1), ["9", "9"], r"Sentences/9\.txt:1, phrase 0: the id '9-1-0'"),
        (SENTENCE, XML.format(1), ["8"], r"Annotations/8\.xml: No such file"),
    ],
)  # fmt: skip
def test_entities(sentence: str, xml: str, ids: list[str], message: str, tmp_path: Path) -> None:
    """Oracle: the file, the line and the phrase or box; a picture that is not there is counted."""
    for name, text in (("Sentences/9.txt", sentence), ("Annotations/9.xml", xml)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    (tmp_path / "9.jpg").write_bytes(PNG)
    with pytest.raises(ReaderError, match=message):
        read_flickr30k_entities(tmp_path, tmp_path, ids=ids)


def test_entities_lines_and_ids(tmp_path: Path) -> None:
    """Oracle: by hand: a separator inside a line ends none; the list of ids has a byte order mark
    and Windows' line ends, and is named where it is not there."""
    for name, text in (
        ("Sentences/9.txt", f"a\u2028b\n{SENTENCE}"),
        ("Annotations/9.xml", XML.format(1)),
    ):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    (tmp_path / "9.jpg").write_bytes(PNG)
    ids, folder = tmp_path / "ids.txt", str(tmp_path)
    ids.write_bytes(b"\xef\xbb\xbf9\r\n")
    data = TaskDataConfig(heldout=folder, heldout_images=folder, heldout_ids=str(ids))
    assert [example.id for example in GroundingTask.read(data, "heldout").examples] == ["9-2-0"]
    ids.unlink()
    with pytest.raises(ReaderError, match=r"ids\.txt: No such file"):
        GroundingTask.read(data, "heldout")


def test_pictures_that_are_no_examples_are_counted(tmp_path: Path) -> None:
    """Oracle: by hand: annotations of Entities without sentences, and pictures of splits that are
    not asked for, one of them misspelt."""
    for name, text in (
        ("Sentences/9.txt", SENTENCE),
        ("Annotations/9.xml", XML.format(1)),
        ("Annotations/8.xml", XML.format(1)),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "9.jpg").write_bytes(PNG)
    found = read_flickr30k_entities(tmp_path, tmp_path)
    assert len(found.examples) == 1 and found.dropped == {"annotations without sentences": 1}
    form, path, rows = _sound("karpathy", tmp_path)
    _again(form, path, [*rows, *({**rows[0], "split": word} for word in ("val", "tset"))])
    found = form.read(path)
    assert len(found.examples) == 2
    assert found.dropped == {"picture of split val": 1, "picture of split tset": 1}


def test_two_spellings_of_a_field_that_disagree(tmp_path: Path) -> None:
    """Oracle: the row's place, both names and both values; the same value twice is read."""
    form, path, rows = _sound("snli_ve", tmp_path)
    _again(form, path, [{**rows[0], "Flikr30kID": "2"}, rows[1]])
    message = r"rows\.json:1: Flickr30K_ID and Flikr30kID: got \['1', '2'\], expected the same"
    with pytest.raises(ReaderError, match=message):
        form.read(path)
    _again(form, path, [{**rows[0], "Flikr30kID": 1}, rows[1]])
    assert len(form.read(path).examples) == 2


def test_a_box_beyond_its_picture_is_cut_and_counted(tmp_path: Path) -> None:
    """Oracle: by hand: of a picture of 40 x 50 a box that ends at 50."""
    for name, text in (
        ("Sentences/9.txt", SENTENCE),
        ("Annotations/9.xml", XML.format(21).replace("100<", "40<")),
    ):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    (tmp_path / "9.jpg").write_bytes(PNG)
    found = read_flickr30k_entities(tmp_path, tmp_path)
    assert [example.label for example in found.examples] == [[[0.5, 0.2, 1.0, 1.0]]]
    assert found.dropped == {"part of a box beyond its picture": 1}


@pytest.mark.parametrize("name, field", [("nlvr2", "identifier"), ("snli_ve", "pairID")])
def test_an_id_with_blanks_around_it(name: str, field: str, tmp_path: Path) -> None:
    """It would be another one than the same without. Oracle: the row's place and the id."""
    form, path, rows = _sound(name, tmp_path)
    _again(form, path, [*rows, {**rows[0], field: f"{rows[0][field]} "}])
    with pytest.raises(ReaderError, match=rf"rows\.json:3: got the id '{rows[0][field]} '"):
        form.read(path)


def test_one_of_vcr_s_labels_without_the_other(tmp_path: Path) -> None:
    """Oracle: the row's place and the label that is missing, as one of two is no test file."""
    form, path, rows = _sound("vcr", tmp_path)
    for field in ("answer_label", "rationale_label"):
        without = [{k: v for k, v in row.items() if k != field} for row in rows]
        _again(form, path, without)
        with pytest.raises(ReaderError, match=rf"rows\.json:1: {field}: missing"):
            form.read(path)
