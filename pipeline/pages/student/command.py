"""`boxless inspect STUDENT ... --out FILE`: a page about what a student makes of some examples."""

from __future__ import annotations

from pathlib import Path

from pipeline.pages.student.example_view import view_of
from pipeline.pages.student.inputs import ExampleInputs, InputError, open_student
from pipeline.pages.student.page import page_text
from sharding.writing.atomic import write_text
from stages.distill.config import DistillConfig
from stages.distill.text.phrases import make_chunker


def inspect(student: Path, out: Path, given: ExampleInputs) -> int:
    """Write the page; returns the number of examples. Raises InputError, and ShardError on shards
    that are not there."""
    if out.suffix != ".html":
        raise InputError(f"out: got {str(out)!r}, expected a name that ends in .html")
    if not out.parent.is_dir():
        raise InputError(f"out: got {str(out)!r}, expected a folder that exists: {out.parent}")
    predictor = open_student(student)
    # spaCy's parser where it is installed; else only the labels that the student knows are phrases.
    chunker = make_chunker(
        DistillConfig(), predictor.student.config.label_names, [], log=lambda words: None
    )
    views = [view_of(predictor, example, chunker.chunk) for example in given.examples()]
    if not views:
        raise InputError("got no sample with a caption, expected at least one")
    write_text(out, page_text(str(student), views))
    return len(views)
