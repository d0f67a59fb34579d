"""Tests of stages.student.checkpoints.torch_file: files of weights that would take much more memory
than they have bytes are refused before they do."""

from __future__ import annotations

import resource
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from boxless.errors import BoxlessError
from stages.student.checkpoints.torch_file import read_checkpoint

NUM = 1 << 27  # 512 MiB as float32


def _deflated(path: Path) -> None:
    """A sound file of zeros, but compressed."""
    beside = path.with_suffix(".large")
    torch.save({"w": torch.zeros(NUM >> 3)}, beside)
    with zipfile.ZipFile(beside) as source, zipfile.ZipFile(path, "w") as out:
        for member in source.namelist():
            out.writestr(member, source.read(member), zipfile.ZIP_DEFLATED)
    beside.unlink()


def _expanded(path: Path) -> None:
    torch.save({"w": torch.zeros(1, dtype=torch.float16).expand(NUM)}, path)


def _sparse(path: Path) -> None:
    torch.save({"w": torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (NUM,))}, path)


def _shared(path: Path) -> None:
    weight = torch.zeros(100_000, dtype=torch.float16)
    torch.save({f"w{number}": weight for number in range(2_000)}, path)


@pytest.mark.parametrize(
    "write, cause",
    [
        (_deflated, "expected torch.save's, which does not compress"),
        (_expanded, "of more numbers than the file has as w, expected dense weights"),
        (_sparse, "not a plain one as w, expected dense weights"),
        (_shared, "not of few that are named many times"),
    ],
)
def test_a_file_that_would_grow_is_refused_before_it_does(
    tmp_path: Path, write: Callable[[Path], None], cause: str
) -> None:
    """Oracle: the message, and the peak of this process's memory, which moves by less than the
    tensors would take."""
    path = tmp_path / "w.pth"
    write(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BoxlessError, match=cause):
        read_checkpoint(path, expected="weights")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_sound_files_are_read(tmp_path: Path) -> None:
    """Oracle: the numbers, in half precision, of both formats, one named twice as tied weights."""
    weight = torch.arange(6, dtype=torch.float16).reshape(2, 3)
    for is_zip in (True, False):
        torch.save(
            {"state_dict": {"module.a": weight, "module.b": weight, "n": torch.tensor(3)}},
            tmp_path / "w.pth",
            _use_new_zipfile_serialization=is_zip,
        )
        read = read_checkpoint(tmp_path / "w.pth", expected="weights")
        assert {name: one.tolist() for name, one in read.items()} == {
            "a": weight.tolist(),
            "b": weight.tolist(),
            "n": 3,
        }
        assert read["a"].dtype == torch.float32
