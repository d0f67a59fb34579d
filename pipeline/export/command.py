"""`boxless export STUDENT --to FORMAT`: writes a student, or its internals, for other tools.

Formats: `soho`, a checkpoint that the released SOHO code reads (the inverse of
`student.soho_checkpoint` in a recipe); `vl-interpret`, a database of examples for Intel's
VL-InterpreT.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.export.vl_interpret import write_database
from pipeline.pages.student.inputs import ExampleInputs, InputError, open_student
from stages.student.checkpoints.soho import write_soho_checkpoint


def export_soho(student: Path, out: Path) -> None:
    """Write the checkpoint. InputError where there is no student, no folder for `out`, or a file
    already; ValueError for a student that is not built as SOHO's."""
    if out.exists():
        raise InputError(f"out: got {str(out)!r}, which is there already; expected a new file")
    if not out.parent.is_dir():
        raise InputError(f"out: got {str(out)!r}, expected a folder that exists: {out.parent}")
    write_soho_checkpoint(open_student(student).student, out)


def export_vl_interpret(student: Path, out: Path, given: ExampleInputs) -> int:
    """Write the database, a new folder; returns the number of examples. Raises InputError."""
    if out.exists():
        raise InputError(f"out: got {str(out)!r}, which is there already; expected a new folder")
    return write_database(out, open_student(student), given.examples())
