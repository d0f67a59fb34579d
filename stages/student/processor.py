"""Converts pictures and texts to the student's input tensors.

Letters: N pictures, B texts, T word pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, PreTrainedTokenizerFast
from transformers.utils import PushToHubMixin

from boxless.errors import BoxlessError
from sharding.user_paths import expand_user
from sharding.writing.atomic import write_json
from stages.picture import upright_picture
from stages.student.folder.auto_classes import PROCESSOR_MAP, InstalledClass, write_module
from stages.student.folder.errors import read_settings
from stages.student.network import Student
from stages.student.text.token_types import Spans, encode_spans
from stages.student.text.tokenizer import encodable, encodable_spans, load_tokenizer
from stages.student.vision.image_transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    load_picture,
    stack_pictures,
)

FILE = "preprocessor_config.json"
SIZES = ("shorter_px", "longer_px", "pad_px", "max_tokens", "num_token_types")

Picture = str | Path | bytes | Image.Image | np.ndarray | torch.Tensor
"""A file, its bytes, a picture that is open already, or its pixels."""


@dataclass(frozen=True, kw_only=True)
class StudentProcessor(InstalledClass, PushToHubMixin):
    """`processor(pictures, texts)` -> what `Student.forward` takes.

    shorter_px, longer_px: how pictures are resized (as in StudentConfig); pad_px: the multiple that
    they are padded to; max_tokens: the longest text; num_token_types: how many the student
    distinguishes.
    """

    tokenizer: PreTrainedTokenizerFast
    shorter_px: int
    longer_px: int
    pad_px: int
    max_tokens: int
    num_token_types: int

    @classmethod
    def of(cls, student: Student, tokenizer: PreTrainedTokenizerFast) -> StudentProcessor:
        """The processor of a student, with the tokenizer it was trained with."""
        return cls(
            tokenizer=tokenizer,
            shorter_px=student.config.shorter_px,
            longer_px=student.config.longer_px,
            pad_px=student.grid.pad_px,
            max_tokens=student.config.max_tokens,
            num_token_types=student.config.bert.get("type_vocab_size", 2),
        )

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, subfolder: str = "", **others: object
    ) -> StudentProcessor:
        """From a student folder, or the `subfolder` of one. `others`: values in place of the
        folder's own, as `max_tokens`; what else the Auto classes pass changes nothing. Raises
        ValueError where there is no such file, or a broken one, and for a value that cannot be."""
        path = expand_user(folder) / (subfolder or "") / FILE
        if not path.is_file():
            raise BoxlessError(
                f"{path}: got no such file, expected a folder that a student is in; for one that "
                "an earlier Boxless saved, StudentProcessor.of(student, load_tokenizer(FOLDER))"
                ".save_pretrained(FOLDER) writes it"
            )
        given = {name: others[name] for name in SIZES if name in others}
        settings = {**read_settings(path), **given}
        wrong = [name for name in SIZES if not _is_size(settings.get(name))]
        if wrong:
            raise BoxlessError(
                f"{path}: got no whole number above 0 for {', '.join(wrong)}, expected one each"
            )
        sizes = {name: settings[name] for name in SIZES}
        return cls(tokenizer=load_tokenizer(path.parent), **sizes)

    def save_pretrained(
        self,
        folder: str | Path,
        push_to_hub: bool = False,
        *,
        repo_id: str | None = None,
        **of_hub: Any,
    ) -> None:
        """Write preprocessor_config.json and the tokenizer's files into the folder.

        push_to_hub: upload them as well, to `repo_id`, or a repository of the folder's name.
        of_hub: what else transformers' `push_to_hub` takes.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(str(folder))
        settings = {
            "processor_class": type(self).__name__,
            "auto_map": PROCESSOR_MAP,
            **{name: getattr(self, name) for name in SIZES},
            "image_mean": IMAGENET_MEAN,
            "image_std": IMAGENET_STD,
        }
        write_json(Path(folder) / FILE, settings)
        write_module(Path(folder))
        if push_to_hub:
            self.push_to_hub(repo_id or Path(folder).resolve().name, **of_hub)

    def __call__(
        self,
        pictures: Picture | Sequence[Picture] | None = None,
        texts: str | Spans | Sequence[str | Spans] | None = None,
        *,
        images: Picture | Sequence[Picture] | None = None,
        text: str | Spans | Sequence[str | Spans] | None = None,
        return_tensors: str = "pt",
        padding: bool | str = True,
        truncation: bool = True,
        max_length: int | None = None,
    ) -> BatchFeature:
        """`pixel_values` [N, 3, H, W] and `sizes_px` [N, 2] of pictures, `input_ids` and
        `token_type_ids` [B, T] of texts; `.to(device)` moves them. One picture or text may be given
        without a list.

        A picture is a file's path, its bytes, an open PIL picture, or an array or tensor of uint8,
        [H, W, 3], [3, H, W] or [H, W]. A text is a str, or its parts in order: [("question", ...),
        ("answer", ...)]. Raises ValueError where there is neither, on what is no picture or text,
        and on a part that is unknown or that the student has no token type for; OSError on a file
        that cannot be read.

        images, text: pictures and texts under the names of transformers' processors.
        return_tensors, padding, truncation: theirs, too; texts are always padded to the longest and
        cut, and tensors PyTorch's: other values are a ValueError. max_length: word pieces that
        texts are cut to, at most the student's max_tokens.
        """
        pictures = _one_of(pictures, images, "pictures", "images")
        texts = _one_of(texts, text, "texts", "text")
        _check_options(return_tensors, padding, truncation)
        if pictures is None and texts is None:
            raise BoxlessError("got neither pictures nor texts, expected at least one of them")
        features: dict[str, torch.Tensor] = {}
        if pictures is not None:
            features |= self._pictures(_as_list(pictures, is_one=_is_picture, what="pictures"))
        if texts is not None:
            most = self._most_tokens(max_length)
            features |= self._texts(_as_list(texts, is_one=_is_text, what="texts"), most)
        return BatchFeature(features)

    def _pictures(self, pictures: list[Any]) -> dict[str, torch.Tensor]:
        arrays = [
            load_picture(upright_picture(p), shorter_px=self.shorter_px, longer_px=self.longer_px)
            for p in pictures
        ]
        stacked = stack_pictures(arrays, multiple_px=self.pad_px)
        return {"pixel_values": stacked.pixels, "sizes_px": stacked.sizes_px}

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """As of the tokenizer: `decode(input_ids[0], skip_special_tokens=True)`."""
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """As of the tokenizer: the text of each row of `input_ids`."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def _most_tokens(self, max_length: int | None) -> int:
        """ValueError for lengths that the student cannot take, or that hold no word piece."""
        if max_length is None:
            return self.max_tokens
        if not _is_size(max_length) or not 3 <= max_length <= self.max_tokens:
            raise BoxlessError(
                f"max_length: got {max_length!r}, expected 3 to {self.max_tokens}, the student's "
                "max_tokens"
            )
        return max_length

    def _texts(self, texts: list[Any], most: int) -> dict[str, torch.Tensor]:
        encoded = [self._encode(text, most) for text in texts]
        return {
            "input_ids": pad_sequence(
                [tokens for tokens, _ in encoded],
                batch_first=True,
                padding_value=self.tokenizer.pad_token_id,
            ),
            "token_type_ids": pad_sequence([types for _, types in encoded], batch_first=True),
        }

    def _encode(self, text: str | Spans, most: int) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(text, str):
            encoded = self.tokenizer(encodable(text), truncation=True, max_length=most)
            tokens = torch.tensor(encoded["input_ids"])
            return tokens, torch.zeros_like(tokens)
        parts = encodable_spans(text)
        pieces, types = encode_spans(self.tokenizer, parts, max_tokens=most)
        if max(types) >= self.num_token_types:
            raise BoxlessError(
                f"texts: got parts {[kind for kind, _ in text]}, expected parts of the "
                f"{self.num_token_types} token types that the student has; student.num_token_types "
                "in the recipe, or stages.student.extend_vocabulary, gives it more"
            )
        return torch.tensor(pieces), torch.tensor(types)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _one_of(value: Any, other: Any, name: str, other_name: str) -> Any:
    """What was given under either name; ValueError where it was under both."""
    if value is not None and other is not None:
        raise BoxlessError(f"got {name} and {other_name}, expected one of them: they are the same")
    return other if value is None else value


def _check_options(return_tensors: str, padding: bool | str, truncation: bool) -> None:
    """ValueError for what transformers' processors can do and this one does not."""
    for name, value, expected in (
        ("return_tensors", str(return_tensors), ("pt", "TensorType.PYTORCH")),
        ("padding", padding, (True, "longest")),
        ("truncation", truncation, (True, "longest_first")),
    ):
        if value not in expected:
            raise BoxlessError(f"{name}: got {value!r}, expected {expected[0]!r}, as always here")


def _as_list(values: Any, *, is_one: Callable[[object], bool], what: str) -> list[Any]:
    """`values` as a list, also where it is a single one; ValueError for anything else."""
    if is_one(values):
        return [values]
    several = isinstance(values, (list, tuple, np.ndarray, torch.Tensor))
    found = list(values) if several else [values]
    wrong = [value for value in found if not is_one(value)]
    if wrong or not found:
        got = f"{type(wrong[0]).__name__} {str(wrong[0])[:60]!r}" if wrong else "none"
        raise BoxlessError(f"{what}: got {got}, expected {_EXPECTED[what]}")
    return found


_EXPECTED = {
    "pictures": "one or a list of them: a path, bytes, an open PIL picture, or an array of uint8 "
    "[H, W, 3], [3, H, W] or [H, W]",
    "texts": 'one or a list of them: a str, or parts as [("question", "..."), ("answer", "...")]',
}


def _is_picture(value: object) -> bool:
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim in (2, 3)
    return isinstance(value, (str, Path, bytes, Image.Image))


def _is_text(value: object) -> bool:
    """A str, or a list of (kind, text) pairs."""
    return isinstance(value, str) or (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(
            isinstance(part, (list, tuple))
            and len(part) == 2
            and all(isinstance(word, str) for word in part)
            for part in value
        )
    )
