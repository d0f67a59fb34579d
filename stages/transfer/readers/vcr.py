"""VCR: train, val and test.jsonl with the metadata beside each picture (rowanz/r2c)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.student.text.token_types import Spans
from stages.student.text.tokenizer import is_blank
from stages.transfer.example import Example
from stages.transfer.readers.records import (
    ExampleCollector,
    ReaderError,
    Record,
    TaskData,
    read_json,
    read_json_lines,
)

NUM_CHOICES = 4
PERSON = "person"
QUESTION, ANSWER, RATIONALE = "question", "answer", "rationale"


def read_vcr(
    path: Path, images: Path, *, with_metadata: bool = True, max_missing: int = 0
) -> TaskData:
    """An example an annotation: texts are the four (question, answer) pairs, then the four
    (question, answer a, rationale) for a = 0..3: 20 in all; in training only the right answer's.

    label is (answer, rationale), None in the test file. Persons are the tags [PERSON_k], k the row
    in `objects` (KD-VLP's); other objects are their names. with_metadata: check that the json
    beside the picture fits.
    """
    collector = ExampleCollector(max_missing=max_missing)
    for record in read_json_lines(path):
        objects = _objects(record)
        question = words(record, "question", record.list("question"), objects)
        answers = _choices(record, "answer_choices", objects)
        rationales = _choices(record, "rationale_choices", objects)
        example = Example(
            id=record.text("annot_id"),
            images=(images / record.text("img_fn"),),
            texts=_texts(question, answers, rationales),
            label=_label(record),
            info={"num_objects": len(objects)},
        )
        if collector.add(example, record.where) and with_metadata:
            _check_metadata(record, images, len(objects))
    return collector.done(path)


def _objects(record: Record) -> list[str]:
    objects = record.list("objects")
    for row, name in enumerate(objects):
        if not isinstance(name, str):
            raise record.error(f"objects[{row}]", name, "the name of an object")
    return objects


def words(record: Record, name: str, tokens: Any, objects: Sequence[str]) -> str:
    """A text from VCR's list of words and of lists of object rows."""
    if not isinstance(tokens, list):
        raise record.error(name, tokens, "a list of words and of lists of object rows")
    said = []
    for token in tokens:
        if isinstance(token, str):
            said.append(token)
        elif isinstance(token, list) and token and all(type(row) is int for row in token):
            wrong = [row for row in token if not 0 <= row < len(objects)]
            if wrong:
                raise record.error(name, token, f"rows of the {len(objects)} objects")
            said.append(" and ".join(_tag(row, objects[row]) for row in token))
        else:
            raise record.error(name, token, "words and lists of object rows")
    text = " ".join(said)
    if is_blank(text):
        raise record.error(name, tokens, "words that are not blank")
    return text


def _tag(row: int, name: str) -> str:
    return f"[PERSON_{row}]" if name == PERSON else name


def _choices(record: Record, name: str, objects: Sequence[str]) -> list[str]:
    choices = record.list(name)
    if len(choices) != NUM_CHOICES:
        raise record.error(name, choices, f"{NUM_CHOICES} choices")
    return [words(record, f"{name}[{row}]", choice, objects) for row, choice in enumerate(choices)]


def _texts(question: str, answers: Sequence[str], rationales: Sequence[str]) -> tuple[Spans, ...]:
    asked = [((QUESTION, question), (ANSWER, answer)) for answer in answers]
    explained = [(*pair, (RATIONALE, rationale)) for pair in asked for rationale in rationales]
    return (*asked, *explained)


def _label(record: Record) -> tuple[int, int] | None:
    if not {"answer_label", "rationale_label"} & record.values.keys():
        return None
    labels = record.integer("answer_label"), record.integer("rationale_label")
    for name, label in zip(("answer_label", "rationale_label"), labels):
        if not 0 <= label < NUM_CHOICES:
            raise record.error(name, label, f"0 to {NUM_CHOICES - 1}")
    return labels


def _check_metadata(record: Record, images: Path, num_objects: int) -> None:
    path = images / record.text("metadata_fn")
    try:
        metadata = read_json(path)
    except ReaderError as error:
        raise ReaderError(f"{record.where}: metadata_fn: {error}") from None
    for name in ("boxes", "names"):
        if len(metadata.list(name)) != num_objects:
            raise metadata.error(
                name,
                len(metadata.list(name)),
                f"{num_objects} entries, the objects of {record.where}",
            )
