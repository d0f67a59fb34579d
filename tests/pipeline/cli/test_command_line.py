"""The command line as someone types it. Oracle: exit statuses and words that design.md promises."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.job import Job, LaunchError, Stopped
from launch.processes.supervisor import RestartPolicy, Supervisor
from pipeline.cli import main as command_line
from pipeline.cli.main import main

ROOT = Path(__file__).resolve().parents[3]


def exit_of(arguments: list[str]) -> int:
    """Exit status, also where argparse leaves by itself."""
    try:
        return main(arguments)
    except SystemExit as left:
        return int(left.code or 0)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of(["--help"]) == 0
    said = capsys.readouterr().out
    for command in (
        "ingest teach distill pretrain finetune evaluate run status view verify report "
        "ablation doctor inspect export"
    ).split():
        assert f"\n    {command} " in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "toi"], "'toi' is not a recipe"),
        (["run", "toy", "--set", "ingest.num_tran=3"], "Did you mean 'num_train'?"),
        (["run", "coco"], "ingest.root is not set"),
        (
            [
                "run",
                "toy",
                "--set",
                "launch.node_rank=1",
                "--set",
                "launch.nodes=2",
                "--set",
                "launch.master_address=node0",
            ],
            "only the first node runs all stages",
        ),
        (["status", "RUN"], "not a run folder"),
        (["pretrain", "toy", "--run", "RUN"], "not complete"),
        (["run", "toy", "--launcher", "magic"], "invalid choice: 'magic'"),
        (["run", "toy", "--nodes", "0"], "got '0', expected a whole number, 1 or more"),
        (["nothing"], "invalid choice"),
        ([], "required"),
    ],
)
def test_what_cannot_be_is_reported_in_words(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, the words, and no traceback."""
    arguments = [str(tmp_path) if argument == "RUN" else argument for argument in arguments]
    assert exit_of(arguments) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (Stopped(signal.SIGTERM), 143, "Run the same command to continue"),
        (Stopped(signal.SIGINT), 130, "Run the same command to continue"),
        (KeyboardInterrupt(), 130, "Run the same command to continue"),
        (LaunchError("rank 1 failed", Path("rank-1.log"), "Traceback: boom"), 1, "Traceback: boom"),
    ],
)
def test_exit_statuses(
    error: BaseException,
    status: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def ends(args: object) -> int:
        raise error

    monkeypatch.setattr(command_line, "_doctor", ends)
    assert main(["doctor"]) == status
    assert words in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A ValueError of a library is a bug: status 1, the traceback, and how to report it."""
    monkeypatch.setattr(command_line, "_doctor", lambda args: int("x"))
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "invalid literal" in shown and "open an issue" in shown


def test_an_error_of_the_system_is_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2, the file and what happened to it, and no traceback."""
    monkeypatch.setattr(command_line, "_doctor", lambda args: open("/nowhere/at/all"))
    assert main(["doctor"]) == 2
    shown = capsys.readouterr().err
    assert "/nowhere/at/all: No such file" in shown and "Traceback" not in shown


def test_a_users_error_of_a_rank_is_reported_as_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """From a rank's record of its failure: the launcher raises it as the user's error."""
    code = """if True:
        import os
        from pathlib import Path
        from launch.logs import LOG_FOLDER_VARIABLE, record_failure
        folder = Path(os.environ[LOG_FOLDER_VARIABLE])
        record_failure(folder, 1, ValueError("no such corpus"), is_users=True)
        raise SystemExit(2)
    """
    job = Job(title="t", module="m", args=(), log_folder=tmp_path)

    def ends(args: object) -> int:
        Supervisor(job, RestartPolicy()).run(lambda: [sys.executable, "-c", code])
        return 0

    monkeypatch.setattr(command_line, "_doctor", ends)
    assert main(["doctor"]) == 2
    assert "no such corpus" in capsys.readouterr().err


def test_verify_finds_a_flipped_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real shards: 0 on sound ones, 1 on a damaged one, and --json tells which."""
    ingest = ["ingest", "toy", "--run", str(tmp_path), "--set", "ingest.num_train=4"]
    ingest += ["--set", "ingest.num_heldout=2", "--set", "ingest.samples_per_shard=4"]
    assert main(ingest) == 0
    assert main(["verify", str(tmp_path)]) == 0
    tar = tmp_path / "images/train-000000.tar"
    damaged = bytearray(tar.read_bytes())
    damaged[2000] ^= 1
    tar.write_bytes(damaged)
    capsys.readouterr()
    assert main(["verify", str(tmp_path), "--json"]) == 1
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert {fault["tar"] for fault in faults} == {str(tar)}
    assert main(["verify", "--fast", str(tmp_path)]) == 0  # every byte was not asked for
    assert main(["status", str(tmp_path)]) == 0
    assert "pictures 6, shards 2" in " ".join(capsys.readouterr().out.split())


def test_a_wrong_path_in_a_stage_ends_in_words(tmp_path: Path) -> None:
    """The whole way: process, worker, stage, its error, back to the screen."""
    where = [f"ingest.root={tmp_path}/nowhere", f"ingest.captions={tmp_path}/none.json"]
    command = [sys.executable, "-m", "pipeline.cli.main", "run", "coco", "--run", f"{tmp_path}"]
    command += [part for value in where for part in ("--set", value)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert ended.returncode == 2
    assert "nowhere" in ended.stderr and "Traceback" not in ended.stderr


def test_ctrl_c_while_modules_are_imported_ends_without_a_traceback() -> None:
    """Oracle: the exit status of a process that SIGINT ended, and nothing on the screen."""
    code = """
import os, runpy, signal, sys
class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "pipeline.cli.student_commands":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
sys.argv = ["boxless", "status", "nowhere"]
runpy.run_module("boxless", run_name="__main__")
"""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")


def test_names_of_files_are_in_utf8_under_every_locale() -> None:
    """Oracle: the argument and the encodings that a process in UTF-8 mode has; what it prints stays
    in the terminal's encoding."""
    code = """
import sys
from boxless.__main__ import name_files_in_utf8
name_files_in_utf8()
print(sys.getfilesystemencoding(), sys.stdout.encoding, ascii(sys.argv[1]))
"""
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = subprocess.run(
        [sys.executable, "-c", code, "gr\u00f6\u00dfe"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "PYTHONIOENCODING"} | locale,
        timeout=300,
    )
    expected = ["utf-8", "ascii", ascii("gr\u00f6\u00dfe")]
    assert ended.stdout.split() == expected, ended.stderr


def test_sigterm_stops_the_stage_and_says_so(tmp_path: Path) -> None:
    """A run asked to stop while ingest works ends with 143, and the same command continues it."""
    command = [sys.executable, "-m", "pipeline.cli.main", "ingest", "toy", "--run"]
    command += [str(tmp_path), "--set", "ingest.num_train=4000"]
    boxless = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "logs/ingest/rank-0.log").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    boxless.send_signal(signal.SIGTERM)
    _, said = boxless.communicate(timeout=300)
    assert boxless.returncode == 143, said
    assert "Run the same command to continue" in said
    assert not (tmp_path / "images/stage.json").exists()
