"""Using a student: match, find, answer, judge, point. One call each, on pictures as files; for
several, give a `LoadedStudent` instead of the folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageDraw

from boxless.errors import BoxlessError
from sharding.writing.atomic import replacing
from stages.picture import PictureError, open_picture, read_picture_file
from stages.student.outputs import Cells
from stages.student.text.tokenizer import encodable, is_blank
from stages.transfer.example import Example
from stages.transfer.loaded_student import LoadedStudent
from stages.transfer.task_batch import places_of_phrase
from stages.transfer.task_folder import TaskStudent, taught_tasks
from stages.transfer.tasks import TASKS

JUDGING = ("nlvr", "snli_ve")
"""The tasks whose heads judge a statement."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


AnyStudent = Path | LoadedStudent
"""A student's folder, which is then read anew in each call, or what keeps what was read of it."""


def match(student: AnyStudent, picture: Path, texts: Sequence[str]) -> list[tuple[str, float]]:
    """Texts with the probability that each belongs to the picture, best first: one text scores a
    pair, several find the captions of a picture. Raises ValueError for a blank one."""
    for text in texts:
        _check_words("text", text)
    loaded = _loaded(student)
    scores = loaded.score(loaded.cells(picture), texts)
    return sorted(zip(texts, scores), key=lambda item: (-item[1], item[0]))


def search(
    student: AnyStudent,
    pictures: Path,
    text: str,
    index: Path,
    *,
    on_fault: Callable[[str], None] = lambda fault: None,
    on_picture: Callable[[int, int], None] = lambda num_done, num_files: None,
) -> list[tuple[str, float]]:
    """The pictures in a folder with the probability that `text` belongs to each, best first.

    index: a folder that keeps what the CNN made of each picture; a picture that changed, or another
    student, is seen again. on_fault: called with name and reason of each file that is no picture,
    which is left out. on_picture: called after each file with the number of those done and of all.
    Raises ValueError where the folder holds no picture, and for a blank text.
    """
    _check_words("text", text)
    files = sorted(p for p in pictures.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise BoxlessError(f"{pictures}: got no picture, expected {', '.join(SUFFIXES)} files")
    loaded = _loaded(student)
    found, faults = [], []
    for number, path in enumerate(files, start=1):
        try:
            cells = _indexed(loaded, _read(path), index)
        except PictureError as error:
            faults.append(f"{path}: {error}")
            on_fault(faults[-1])
        else:
            found.append((str(path.relative_to(pictures)), loaded.score(cells, [text])[0]))
        on_picture(number, len(files))
    if not found:
        raise BoxlessError(f"{pictures}: got no picture that can be read; the first: {faults[0]}")
    return sorted(found, key=lambda item: (-item[1], item[0]))


def _read(path: Path) -> bytes:
    """The bytes of a picture; PictureError also where the file cannot be read."""
    try:
        return read_picture_file(path)
    except OSError as error:
        raise PictureError(f"not readable: {error.strerror}") from None


def _indexed(loaded: LoadedStudent, picture: bytes, index: Path) -> Cells:
    """The cells of a picture, from the index where they are there."""
    digest = hashlib.sha256(picture).hexdigest()
    kept = index / f"{loaded.fingerprint[:16]}-{digest}.npz"
    cells = _read_cells(kept)
    if cells is None:
        cells = loaded.cells(picture)
        with replacing(kept) as out:
            np.savez(
                out,
                features=cells.features.numpy(),
                inside=cells.inside.numpy(),
                rows=cells.rows,
                columns=cells.columns,
            )
    return cells


def _read_cells(path: Path) -> Cells | None:
    """What a file of the index holds; None where there is none, or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Cells(
                features=torch.tensor(arrays["features"]),
                inside=torch.tensor(arrays["inside"]),
                rows=int(arrays["rows"]),
                columns=int(arrays["columns"]),
            )
    except Exception:  # numpy and zipfile raise nearly everything on damaged bytes
        return None


def answer(student: AnyStudent, picture: Path, question: str) -> dict[str, Any]:
    """{"answer", "best"} of a student that VQA was taught. Raises ValueError for another student,
    and for a blank question."""
    _check_words("question", question)
    return _predict(_loaded(student).taught("vqa"), picture, question)


def judge(
    student: AnyStudent, picture: Path, statement: str, task: str | None = None
) -> dict[str, Any]:
    """{"label", "probabilities"} of a student that SNLI-VE or NLVR was taught. `task`: which of
    them; None for the first of `JUDGING` that it knows. Raises ValueError where it knows none, and
    for a blank statement."""
    _check_words("statement", statement)
    loaded = _loaded(student)
    known = taught_tasks(loaded.folder)
    task = task or next((name for name in JUDGING if name in known), None)
    if task is None:
        raise BoxlessError(
            f"{loaded.folder}: got a student with {', '.join(known) or 'no task'}, expected "
            f"{' or '.join(JUDGING)}; boxless finetune trains one"
        )
    return _predict(loaded.taught(task), picture, statement)


def unread_note(student: AnyStudent, texts: Sequence[str]) -> str | None:
    """What to say of texts that are longer than the student reads; None where none is."""
    processor = _loaded(student).processor
    for text in texts:
        text = encodable(text)
        encoded = processor.tokenizer(text, return_offsets_mapping=True, truncation=False)
        if len(encoded["input_ids"]) > processor.max_tokens:
            # The last word piece that is read is [SEP].
            end = encoded["offset_mapping"][processor.max_tokens - 2][1]
            return (
                f"The student reads {processor.max_tokens} word pieces of a text; of a longer one "
                f'it did not read "{text[end:].strip()}".'
            )
    return None


def point(student: AnyStudent, picture: Path, caption: str, phrase: str) -> dict[str, Any]:
    """{"point", "boxes"} of a phrase of a caption, as shares of width and height. Pretraining is
    enough. Raises ValueError where the caption does not hold the phrase, or only beyond what the
    student reads."""
    caption, phrase = encodable(caption), encodable(phrase)
    start = caption.find(phrase)
    if start < 0 or not phrase:
        raise BoxlessError(f"phrase: got {phrase!r}, expected a part of the caption {caption!r}")
    loaded = _loaded(student)
    processor = loaded.processor
    info = {"start": start, "end": start + len(phrase)}
    if not places_of_phrase(caption, info, processor):
        raise BoxlessError(
            f"phrase: got {phrase!r}, of which the student reads nothing; expected words within the "
            f"first {processor.max_tokens} word pieces of the caption"
        )
    task = TASKS["grounding"]({})
    taught = TaskStudent(
        task=task, student=loaded.network, head=task.make_head(0), processor=processor
    )
    return _predict(taught, picture, caption, info)


def draw_point(picture: Path, found: dict[str, Any], out: Path) -> None:
    """A copy of the picture with the best box and the point."""
    image = open_picture(read_picture_file(picture))
    draw = ImageDraw.Draw(image)
    size = (image.width, image.height)
    box = [share * size[i % 2] for i, share in enumerate(found["boxes"][0])]
    x, y = (share * side for share, side in zip(found["point"], size))
    radius = max(3, min(size) // 40)
    draw.rectangle(box, outline="red", width=max(1, radius // 2))
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill="red", outline="white")
    with replacing(out) as target:
        image.save(target, "PNG")


def _loaded(student: AnyStudent) -> LoadedStudent:
    return student if isinstance(student, LoadedStudent) else LoadedStudent(student)


def _check_words(name: str, text: str) -> None:
    if is_blank(text):
        raise BoxlessError(f"{name}: got {text!r}, expected some words")


def _predict(
    taught: TaskStudent, picture: Path, text: str, info: dict[str, Any] | None = None
) -> Any:
    example = Example(id="0", images=(picture,), texts=(text,), info=info or {})
    one = taught.task.predictor(taught.student, taught.head, taught.processor, [example])
    return one((example,))["0"]
