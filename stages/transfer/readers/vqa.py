"""VQA 2.0: v2_OpenEnded_mscoco_SPLIT_questions.json and v2_mscoco_SPLIT_annotations.json."""

from __future__ import annotations

from pathlib import Path

from stages.transfer.example import Example
from stages.transfer.readers.records import (
    ExampleCollector,
    ReaderError,
    Record,
    TaskData,
    parts,
    read_json,
)


def read_vqa(
    questions: Path,
    annotations: Path | None,
    images: Path,
    *,
    image_name: str = "COCO_val2014_{:012d}.jpg",
    max_missing: int = 0,
) -> TaskData:
    """An example a question, its label the annotation (None for test files, which have none).

    image_name: how a picture is called after its number, as in COCO's splits. Raises ReaderError
    where questions and annotations are not of the same ids.
    """
    known = _read_annotations(annotations) if annotations else {}
    asked: set[int] = set()
    collector = ExampleCollector(max_missing=max_missing)
    for record in parts(read_json(questions), "questions"):
        question_id, image_id = record.integer("question_id"), record.integer("image_id")
        if annotations and question_id not in known:
            raise record.error("question_id", question_id, f"one that {annotations} has")
        annotation = known.get(question_id)
        if annotation and annotation["image_id"] != image_id:
            raise record.error("image_id", image_id, f"{annotation['image_id']}, as annotated")
        collector.add(
            Example(
                id=str(question_id),
                images=(images / image_name.format(image_id),),
                texts=(record.text("question"),),
                label=annotation,
            ),
            record.where,
        )
        asked.add(question_id)
    if others := [question_id for question_id in known if question_id not in asked]:
        raise ReaderError(
            f"{annotations}: {len(others)} annotations are of no question in {questions}, the first "
            f"is of question_id {others[0]}"
        )
    return collector.done(questions)


def _read_annotations(path: Path) -> dict[int, dict]:
    found: dict[int, dict] = {}
    for record in parts(read_json(path), "annotations"):
        question_id = record.integer("question_id")
        if question_id in found:
            raise record.error("question_id", question_id, "one that was not annotated before")
        found[question_id] = _checked(record, question_id)
    return found


def _checked(record: Record, question_id: int) -> dict:
    answers = list(parts(record, "answers"))
    if not answers:
        raise record.error("answers", [], "at least one answer")
    return {
        "question_id": question_id,
        "image_id": record.integer("image_id"),
        "question_type": record.text("question_type"),
        "answer_type": record.text("answer_type"),
        "multiple_choice_answer": record.any_text("multiple_choice_answer"),
        "answers": [{**answer.values, "answer": answer.any_text("answer")} for answer in answers],
    }
