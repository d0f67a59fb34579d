"""What the user is shown of an error. Oracle: the message, by hand."""

from __future__ import annotations

import errno
import io
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from boxless.errors import BoxlessError
from pipeline.cli.main import main
from pipeline.pages.report import page
from pipeline.recipe.recipe import dump_recipe, load_recipe
from pipeline.runner.error_messages import bug_report, error_message, is_for_the_user
from pipeline.runner.run_folder import RunError, RunFolder
from pipeline.runner.standard_streams import replace_unencodable
from sharding.writing.atomic import write_text


@pytest.mark.parametrize("kind", [torch.AcceleratorError, RuntimeError])
def test_an_error_of_the_device_is_reported_in_words(
    kind: type[RuntimeError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: the exit status of a stage that failed; the words, and the traceback before them, but
    no bug of Boxless. A rank may be started again: the next process may have a sound device."""
    error = kind("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might")

    def fail(path: str) -> None:
        raise error

    monkeypatch.setattr("pipeline.runner.status.status.show_status", fail)
    assert main(["status", "x"]) == 1 and not is_for_the_user(error)
    shown = capsys.readouterr().err
    assert "This is a bug" not in shown and shown.index("Traceback") < shown.index("boxless: error")
    assert "the device failed: CUDA error: an illegal memory access was encountered; such" in shown


def test_errors_of_the_system_say_what_to_do() -> None:
    """A full disk and a read-only one end a rank for good; a missing file or a connection may be
    there at the next start."""
    full = OSError(errno.ENOSPC, "No space left on device", "/x/a.tar")
    assert is_for_the_user(full)
    assert error_message(full) == (
        "/x/a.tar: No space left on device; the disk is full: free some space, then run the same "
        "command again."
    )
    assert is_for_the_user(PermissionError(errno.EACCES, "Permission denied", "/x"))
    missing = FileNotFoundError(errno.ENOENT, "No such file", "/x")
    assert not is_for_the_user(missing)
    assert error_message(missing).startswith("/x: No such file; check the path")
    assert error_message(OSError("words of a library")) == "words of a library"


def test_our_errors_are_messages_and_others_bugs() -> None:
    """Ours by its class, wherever it was raised; a ValueError of a library has its traceback."""
    assert is_for_the_user(BoxlessError("lr: got -1, expected more than 0"))
    try:
        int("x")
    except ValueError as error:
        assert not is_for_the_user(error)
        report = bug_report(error)
    assert report.startswith("Traceback") and 'int("x")' in report and "open an issue" in report


@pytest.mark.parametrize("library", ["torch", "numpy", "safetensors"])
def test_a_full_disk_is_reported_in_words_whoever_wrote(library: str, tmp_path: Path) -> None:
    """Oracle: the kernel's device that is always full (safetensors' error is its own text, as seen
    on a full file system); none of the three raises an OSError with a number."""
    values = torch.zeros(200_000)
    with pytest.raises(Exception) as caught:
        if library == "torch":
            with open("/dev/full", "wb") as file:
                torch.save(values, file)
        elif library == "numpy":
            with open("/dev/full", "wb", buffering=0) as file:
                values.numpy().tofile(file)
        else:
            raise SafetensorError(
                "Error while serializing: I/O error: No space left on device (os error 28)"
            )
    assert is_for_the_user(caught.value)
    assert error_message(caught.value) == (
        "No space left on device; the disk is full: free some space, then run the same command "
        "again."
    )
    assert not is_for_the_user(RuntimeError("inline_container: another fault"))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EFBIG, "File too large", "/x/a.tar"), "ulimit -f"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "ulimit -u"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (MemoryError(), "memory is used up.*ulimit -v"),
        (
            MemoryError("Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback"),
            "process 0; the memory is used up",
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory is used up"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: not enough memory: "
                "you tried to allocate 40000000000 bytes."
            ),
            "40000000000 bytes; the memory is used up",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "2 GiB; the mem"),
    ],
)
def test_limits_of_a_process_are_named(error: Exception, expected: str) -> None:
    """What `ulimit -f`, `-u` and `-v` and a full device make Python and PyTorch raise. Oracle: the
    limit in the message, by hand; no restart helps."""
    assert is_for_the_user(error)
    assert re.search(expected, error_message(error))


def test_a_renaming_that_fails_names_the_users_file(tmp_path: Path) -> None:
    """As `--out FOLDER`. Oracle: the folder's name, and not that of the temporary file."""
    (tmp_path / "pages").mkdir()
    with pytest.raises(OSError) as caught:
        write_text(tmp_path / "pages", "page")
    said = error_message(caught.value)
    assert said.startswith(f"{tmp_path / 'pages'}: Is a directory; ") and "name a file" in said


def test_a_folder_that_was_removed_under_the_user_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in another terminal, or when a job's folder is cleaned. Oracle: by hand."""
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(FileNotFoundError) as caught:
        Path("run").absolute()
    assert "the folder where you are was removed" in error_message(caught.value)


def test_a_report_of_a_run_that_cannot_be_written_names_its_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the error names `--out`, which writes the page elsewhere."""
    run, out = RunFolder(tmp_path / "run"), tmp_path / "page.html"
    run.root.mkdir()
    write_text(run.recipe, dump_recipe(load_recipe("toy-tiny")))
    real = page.write_text

    def refuse_in_run(path: Path, text: str) -> None:
        if path.is_relative_to(run.root):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        real(path, text)

    monkeypatch.setattr(page, "write_text", refuse_in_run)
    with pytest.raises(RunError, match=r"Read-only.* boxless report .*run --out FILE.html"):
        page.write_report(run)
    assert main(["report", str(run.root), "--out", str(out)]) == 0
    assert "<html" in out.read_text()[:200]


def test_output_in_another_encoding_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check mark on a terminal in Latin-1 becomes a question mark."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "latin-1", write_through=True))
    with pytest.raises(UnicodeEncodeError):
        print("✓")
    replace_unencodable()
    print("✓ done")
    assert raw.getvalue() == b"? done\n"


def test_looking_at_a_run_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its locks cannot be made, so nobody works in it."""

    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("os.open", refuse)
    assert not RunFolder(tmp_path).is_busy()
