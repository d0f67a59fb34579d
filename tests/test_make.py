"""The Makefile and what finds a Python. Oracle: the targets that design.md and CONTRIBUTING name,
and commands as make itself would run them (make -n)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str) -> str:
    # --assume-old: whether .venv is up to date is no matter here.
    command = ["make", "--no-print-directory", "--assume-old=.venv/ready", *arguments]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=True
    ).stdout


@needs_make
def test_help_is_the_default_and_lists_every_target() -> None:
    """Each target of .PHONY has its own comment."""
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    targets = phony.replace("$(STAGES)", "ingest teach distill pretrain finetune evaluate").split()
    said = make()
    for target in targets:
        assert re.search(rf"^  make {target} +\S", said, re.MULTILINE), target
    assert said == make("help")
    assert "RECIPE=toy" in said


@needs_make
@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["teach"], "boxless teach toy"),
        (
            ["run", "RECIPE=nlvr", "RUN=/x", "SET=ingest.root=/n seed=2"],
            "boxless run nlvr --run /x --set ingest.root=/n --set seed=2",
        ),
        (
            ["distill", "LAUNCHER=slurm", "NODES=4", "PROCS=2"],
            "boxless distill toy --launcher slurm --nodes 4 --procs-per-node 2",
        ),
        (["ablation"], "boxless ablation kdvlp-toy"),
        (["status"], "boxless status runs/toy"),
        (["report", "RECIPE=mine/deep.yaml"], "boxless report runs/deep"),
        (["report", "RUN=here"], "boxless report here"),
        (["demo"], "boxless run toy --run runs/toy"),
        (["doctor"], "boxless doctor"),
    ],
)
def test_variables_become_options(arguments: list[str], command: str) -> None:
    lines = [" ".join(line.split()) for line in make("-n", *arguments).splitlines()]
    assert f".venv/bin/{command}" in lines


def test_a_python_that_fits_is_found() -> None:
    env = os.environ | {"PYTHON": f"no-such-python {sys.executable}"}
    found = subprocess.run([ROOT / ".ci/find-python"], env=env, capture_output=True, text=True)
    assert found.stdout.strip() == sys.executable


def test_where_none_fits_it_is_said_what_was_found(tmp_path: Path) -> None:
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1\nexit 1\n')
    old.chmod(0o755)
    env = os.environ | {"PYTHON": f"{old} no-such-python"}
    found = subprocess.run([ROOT / ".ci/find-python"], env=env, capture_output=True, text=True)
    assert found.returncode == 1 and found.stdout == ""
    assert "Python 3.10, 3.11 or 3.12" in found.stderr
    assert f"{old}: Python 3.9.1" in found.stderr


@pytest.mark.parametrize("is_root", [True, False])
def test_slurm_is_installed_by_root_and_else_it_is_said_what_is_missing(
    is_root: bool, tmp_path: Path
) -> None:
    """No ssh, none of the commands of Slurm, and an apt-get that writes down its words."""
    bash = shutil.which("bash")
    assert bash is not None
    (tmp_path / "bash").symlink_to(bash)
    scripts = {"id": f"echo {0 if is_root else 1000}", "timeout": 'shift; "$@"'}
    scripts["apt-get"] = f'echo "$@" >> {tmp_path}/words'
    for name, script in scripts.items():
        (tmp_path / name).write_text(f"#!{bash}\n{script}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": str(tmp_path)}
    done = subprocess.run(
        [bash, ROOT / ".ci/install_slurm"], env=env, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    if is_root:
        update, install = (tmp_path / "words").read_text().splitlines()
        assert "update" in update and install.startswith("install -y")
        assert " slurm-client" in install and install.endswith(" pdsh")
    else:
        assert not (tmp_path / "words").exists()
        assert "not installed, as this is not root on Debian" in done.stdout
        assert " slurm-client" in done.stdout
