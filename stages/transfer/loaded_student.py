"""A student folder whose parts are loaded on first use."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch

from boxless.errors import BoxlessError
from sharding.writing.atomic import sha256_file
from stages.student.network import Student
from stages.student.outputs import Cells
from stages.student.processor import StudentProcessor
from stages.student.text.tokenizer import encodable
from stages.transfer.task_folder import TaskStudent, check_taught


class LoadedStudent:
    """A student that answers several times. Each part of the folder is read once, so that a change
    of its files is not seen. Not for several threads at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._taught: dict[str, TaskStudent] = {}

    @cached_property
    def processor(self) -> StudentProcessor:
        """Raises ValueError where the folder is none of a student."""
        return StudentProcessor.from_pretrained(self.folder)

    @cached_property
    def network(self) -> Student:
        """In float32, in evaluation mode. Raises ValueError where the folder has no weights."""
        _ = self.fingerprint  # of the weights that are read here, not of later ones
        return Student.from_pretrained(str(self.folder), dtype=torch.float32).eval()

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights; what an index was made with. Raises ValueError where there are none."""
        digest = hashlib.sha256()
        for path in self._weights():
            digest.update(bytes.fromhex(sha256_file(path)))
        return digest.hexdigest()

    def taught(self, task: str) -> TaskStudent:
        """With the head of a task. Raises ValueError where the student does not know it."""
        if task not in self._taught:
            check_taught(self.folder, task)
            self._taught[task] = TaskStudent.with_head(
                self.folder, task, student=self.network, processor=self.processor
            )
        return self._taught[task]

    @torch.no_grad()
    def cells(self, picture: Path | bytes) -> Cells:
        """What the CNN makes of a picture, a file or its bytes."""
        inputs = self.processor([picture], [""])
        return self.network.encode_image(inputs["pixel_values"], inputs["sizes_px"])

    @torch.no_grad()
    def score(self, cells: Cells, texts: Sequence[str]) -> list[float]:
        """The probability that each text belongs to a picture, by the matching head."""
        longest = self.processor.max_tokens
        found = []
        for text in texts:  # alone: no text's score depends on the others
            encoded = self.processor.tokenizer(encodable(text), truncation=True, max_length=longest)
            tokens = torch.tensor([encoded["input_ids"]])
            picture = torch.zeros(1, dtype=torch.long)
            logits = self.network.match(cells, picture=picture, input_ids=tokens)
            found.append(float(logits.double().softmax(dim=-1)[0, 1]))
        return found

    def _weights(self) -> list[Path]:
        weights = sorted(self.folder.glob("*.safetensors"))
        if not weights:
            raise BoxlessError(f"{self.folder}: got no *.safetensors, expected a student's folder")
        return weights
