"""Using a student: match, find, answer, judge, point. One call each, on pictures as files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageDraw

from boxless.errors import BoxlessError
from sharding.writing.atomic import replacing, sha256_file
from stages.picture import PictureError, open_picture, read_picture_file
from stages.student.network import Student
from stages.student.outputs import Cells
from stages.student.processor import StudentProcessor
from stages.student.text.tokenizer import encodable
from stages.transfer.example import Example
from stages.transfer.task_batch import places_of_phrase
from stages.transfer.task_folder import TaskStudent, taught_tasks
from stages.transfer.tasks import TASKS

JUDGING = ("nlvr", "snli_ve")
"""The tasks whose heads judge a statement."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True, kw_only=True)
class Matcher:
    """A student that says how well texts fit pictures."""

    student: Student
    processor: StudentProcessor
    fingerprint: str
    """Of the weights; what an index was made with."""

    @classmethod
    def load(cls, folder: Path) -> Matcher:
        """From a student folder. Raises ValueError where there is none."""
        weights = sorted(folder.glob("*.safetensors"))
        if not weights:
            raise BoxlessError(f"{folder}: got no *.safetensors, expected a student's folder")
        digest = hashlib.sha256()
        for path in weights:
            digest.update(bytes.fromhex(sha256_file(path)))
        return cls(
            student=Student.from_pretrained(str(folder)).eval(),
            processor=StudentProcessor.from_pretrained(folder),
            fingerprint=digest.hexdigest(),
        )

    @torch.no_grad()
    def cells(self, picture: Path | bytes) -> Cells:
        """What the CNN makes of a picture, a file or its bytes."""
        inputs = self.processor([picture], [""])
        return self.student.encode_image(inputs["pixel_values"], inputs["sizes_px"])

    @torch.no_grad()
    def score(self, cells: Cells, texts: Sequence[str]) -> list[float]:
        """The probability that each text belongs to a picture, by the matching head."""
        longest = self.processor.max_tokens
        found = []
        for text in texts:  # alone: no text's score depends on the others
            encoded = self.processor.tokenizer(encodable(text), truncation=True, max_length=longest)
            tokens = torch.tensor([encoded["input_ids"]])
            picture = torch.zeros(1, dtype=torch.long)
            logits = self.student.match(cells, picture=picture, input_ids=tokens)
            found.append(float(logits.double().softmax(dim=-1)[0, 1]))
        return found


def match(student: Path, picture: Path, texts: Sequence[str]) -> list[tuple[str, float]]:
    """Texts with the probability that each belongs to the picture, best first: one text scores a
    pair, several find the captions of a picture."""
    matcher = Matcher.load(student)
    scores = matcher.score(matcher.cells(picture), texts)
    return sorted(zip(texts, scores), key=lambda item: (-item[1], item[0]))


def search(
    student: Path,
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
    Raises ValueError where the folder holds no picture.
    """
    files = sorted(p for p in pictures.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise BoxlessError(f"{pictures}: got no picture, expected {', '.join(SUFFIXES)} files")
    matcher = Matcher.load(student)
    found, faults = [], []
    for number, path in enumerate(files, start=1):
        try:
            cells = _indexed(matcher, _read(path), index)
        except PictureError as error:
            faults.append(f"{path}: {error}")
            on_fault(faults[-1])
        else:
            found.append((str(path.relative_to(pictures)), matcher.score(cells, [text])[0]))
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


def _indexed(matcher: Matcher, picture: bytes, index: Path) -> Cells:
    """The cells of a picture, from the index where they are there."""
    digest = hashlib.sha256(picture).hexdigest()
    kept = index / f"{matcher.fingerprint[:16]}-{digest}.npz"
    cells = _read_cells(kept)
    if cells is None:
        cells = matcher.cells(picture)
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


def answer(student: Path, picture: Path, question: str) -> dict[str, Any]:
    """{"answer", "best"} of a student that VQA was taught."""
    return _predict(TaskStudent.load(student, "vqa"), picture, question)


def judge(student: Path, picture: Path, statement: str, task: str | None = None) -> dict[str, Any]:
    """{"label", "probabilities"} of a student that SNLI-VE or NLVR was taught. `task`: which of
    them; None for the first of `JUDGING` that it knows. Raises ValueError where it knows none."""
    known = taught_tasks(student)
    task = task or next((name for name in JUDGING if name in known), None)
    if task is None:
        raise BoxlessError(
            f"{student}: got a student that knows {', '.join(known) or 'no task'}, expected "
            f"{' or '.join(JUDGING)}; boxless finetune teaches it one"
        )
    return _predict(TaskStudent.load(student, task), picture, statement)


def unread_note(student: Path, texts: Sequence[str]) -> str | None:
    """What to say of texts that are longer than the student reads; None where none is."""
    processor = StudentProcessor.from_pretrained(student)
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


def point(student: Path, picture: Path, caption: str, phrase: str) -> dict[str, Any]:
    """{"point", "boxes"} of a phrase of a caption, as shares of width and height. Pretraining is
    enough. Raises ValueError where the caption does not hold the phrase, or only beyond what the
    student reads."""
    caption, phrase = encodable(caption), encodable(phrase)
    start = caption.find(phrase)
    if start < 0 or not phrase:
        raise BoxlessError(f"phrase: got {phrase!r}, expected a part of the caption {caption!r}")
    processor = StudentProcessor.from_pretrained(student)
    info = {"start": start, "end": start + len(phrase)}
    if not places_of_phrase(caption, info, processor):
        raise BoxlessError(
            f"phrase: got {phrase!r}, of which the student reads nothing; expected words within the "
            f"first {processor.max_tokens} word pieces of the caption"
        )
    task = TASKS["grounding"]({})
    network = Student.from_pretrained(str(student)).eval()
    taught = TaskStudent(
        task=task,
        student=network,
        head=task.make_head(0),
        processor=processor,
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


def _predict(
    taught: TaskStudent, picture: Path, text: str, info: dict[str, Any] | None = None
) -> Any:
    example = Example(id="0", images=(picture,), texts=(text,), info=info or {})
    one = taught.task.predictor(taught.student, taught.head, taught.processor, [example])
    return one((example,))["0"]
