"""Files of a checkpoint on disk. Oracle: what was saved, and damage done on purpose."""

from __future__ import annotations

import errno
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from boxless.errors import BoxlessError
from stages.atomic_folder import replace_folder
from stages.training.checkpoints.verified_files import SafeCheckpointEngine


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    engine, path = SafeCheckpointEngine(), str(tmp_path / "part.pt")
    engine.save({"weights": torch.arange(5.0), "step": 3}, path)
    found = engine.load(path)
    assert found["step"] == 3 and torch.equal(found["weights"], torch.arange(5.0))
    assert [entry.name for entry in tmp_path.iterdir()] == ["part.pt"]


@pytest.mark.parametrize("damage", ["bit", "end"])
def test_what_was_not_written_well_takes_no_place(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that loses a bit, or the end of the file; the file that was there is left as it is."""
    engine, path = SafeCheckpointEngine(), tmp_path / "part.pt"
    engine.save({"weights": torch.zeros(64)}, str(path))
    before, plain = path.read_bytes(), torch.save

    def save(state: Any, file: Any) -> None:
        plain(state, file)
        file.flush()
        if damage == "end":
            file.truncate(300)
            return
        place = Path(file.name).read_bytes().index(torch.ones(64).numpy().tobytes())
        file.seek(place + 5)
        file.write(b"\xff")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(BoxlessError, match="got other bytes than were written"):
        engine.save({"weights": torch.ones(64)}, str(path))
    assert path.read_bytes() == before


def test_without_room_the_file_is_named_and_nothing_of_it_is_left(tmp_path: Path) -> None:
    """A process whose files may not grow as large (`ulimit -f`). Oracle: the path in the error, and
    the folder's listing."""
    before, path = resource.getrlimit(resource.RLIMIT_FSIZE), str(tmp_path / "part.pt")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            SafeCheckpointEngine().save({"weights": torch.zeros(100_000)}, path)
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, path)
        with pytest.raises(OSError, match="File too large"):
            replace_folder(
                tmp_path / "student",
                lambda folder: Path(folder, "weights").write_bytes(bytes(200_000)),
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
