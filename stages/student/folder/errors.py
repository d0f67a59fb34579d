"""Error messages for student folders that are incomplete or damaged."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from boxless.errors import BoxlessError
from stages.json_text import parse_json

_COPY = "copy the folder again from where it came"


def read_settings(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a student folder. BoxlessError where it holds none, OSError
    where it cannot be read."""
    try:
        values = parse_json(path.read_bytes())
    except ValueError as error:  # of JSON, or of its encoding
        raise BoxlessError(f"{path}: got no valid JSON ({error}); {_COPY}") from None
    if not isinstance(values, dict):
        raise BoxlessError(f"{path}: got a {type(values).__name__}, expected an object; {_COPY}")
    return values


def student_folder(given: str | os.PathLike[str] | None, subfolder: str = "") -> str:
    """The folder, or the name on a hub, that `given` means, with ~ expanded. `subfolder`: where in
    it the student lies. BoxlessError for what can only be a folder, and is not there, and for one
    that holds no student."""
    if not isinstance(given, (str, os.PathLike)) or not os.fspath(given):
        raise BoxlessError(f"got {given!r}, expected the folder of a student, as RUN/student")
    name = os.path.expanduser(os.fspath(given))
    folder = Path(name)
    if not folder.is_dir():
        is_name = isinstance(given, str) and name.count("/") == 1 and name[0] not in "./~"
        if is_name and not folder.parent.is_dir():  # OWNER/NAME of a hub
            return name
        raise BoxlessError(
            f"{name}: got no such folder, expected that of a student, as RUN/student"
        )
    config = folder / subfolder / "config.json"
    settings = read_settings(config) if config.is_file() else {}
    missing = [part for part in ("resnet", "bert") if not isinstance(settings.get(part), dict)]
    if missing:
        raise BoxlessError(
            f"{config}: got no {' and no '.join(missing)}, expected the config of a "
            "student, as RUN/student has it"
        )
    return name


def check_loaded(folder: str, missing: Collection[str]) -> None:
    """BoxlessError where weights were missing, which have random values then."""
    if missing:
        names = ", ".join(sorted(missing)[:3])
        raise BoxlessError(
            f"{folder}: got no weights of {len(missing)} parameters ({names} ...), expected those of "
            f"every part that config.json has; {_COPY}"
        )


def check_finite(
    place: str | Path,
    weights: Mapping[str, torch.Tensor],
    advice: str = "take weights of an earlier step, or train again with a lower rate",
) -> None:
    """BoxlessError where a weight is not finite: every answer would be NaN. `place`: whose weights
    they are."""
    odd = [
        name
        for name, weight in weights.items()
        if weight.is_floating_point() and not weight.is_meta and not weight.isfinite().all()
    ]
    if odd:
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise BoxlessError(
            f"{place}: got numbers that are not finite in {', '.join(odd[:3])}{more}, expected none; "
            f"{advice}"
        )


@contextlib.contextmanager
def loading(folder: str) -> Iterator[None]:
    """What transformers raises while it loads a student from a folder, as a BoxlessError."""
    try:
        yield
    except SafetensorError as error:
        damaged = ", ".join(_damaged_files(Path(folder))) or folder
        raise BoxlessError(f"{damaged}: got incomplete weights ({error}); {_COPY}") from None
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise BoxlessError(
            f"{folder}: got weights of other sizes than config.json says (the report above lists "
            f"them), expected both of one student; {_COPY}"
        ) from None


def _damaged_files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError:
            yield str(path)
