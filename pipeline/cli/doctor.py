"""``boxless doctor``: checks the environment and says how to fix what is missing.

Each check looks and returns findings; none changes anything, and a broken package is a finding,
not a crash.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stages.training import apex_package

State = Literal["ok", "note", "missing"]
_COLOURS: dict[State, str] = {"ok": "green", "note": "yellow", "missing": "red"}
_DEMO_MEMORY_BYTES, _DEMO_DISK_BYTES = 6 << 30, 5 << 30
_PARSER = "en_core_web_sm"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the table.

    state: ok; note (works, but worth knowing, or optional and not here); missing (required).
    found: what is here. fix: what to do, empty where there is nothing to do.
    """

    name: str
    state: State
    found: str
    fix: str = ""


def examine(*, as_json: bool) -> int:
    """Print all findings; returns exit status 1 when something required is missing, else 0."""
    findings = [finding for check in _CHECKS for finding in check()]
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        table = Table(title="boxless doctor", title_justify="left")
        for column in ("", "state", "found", "fix"):
            table.add_column(column, overflow="fold")  # an address is of use only if complete
        for finding in findings:
            state = f"[{_COLOURS[finding.state]}]{finding.state}[/]"
            table.add_row(finding.name, state, escape(finding.found), escape(finding.fix))
        Console().print(table)
    return int(any(finding.state == "missing" for finding in findings))


def check_python() -> Iterator[Finding]:
    """The interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 10) <= sys.version_info[:2] <= (3, 12)
    fix = "" if fits else "Use Python 3.10, 3.11 or 3.12: make PYTHON=... demo."
    state: State = "ok" if fits else "missing"
    yield Finding(name="python", state=state, found=f"{version}, {sys.executable}", fix=fix)


def check_machine() -> Iterator[Finding]:
    """Cores, memory and disk, beside what ``make demo`` was sized for."""
    num_cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    fix = "" if num_cores > 1 else "The demo is sized for two cores; one takes twice as long."
    yield Finding(
        name="cores", state="ok" if num_cores > 1 else "note", found=str(num_cores), fix=fix
    )
    memory = _memory_bytes()
    short = memory < _DEMO_MEMORY_BYTES
    fix = f"The demo needs up to {_gib(_DEMO_MEMORY_BYTES)}." if short else ""
    yield Finding(name="memory", state="note" if short else "ok", found=_gib(memory), fix=fix)
    free = shutil.disk_usage(Path.cwd()).free
    short = free < _DEMO_DISK_BYTES
    fix = f"The demo and its .venv need up to {_gib(_DEMO_DISK_BYTES)} here." if short else ""
    yield Finding(
        name="disk", state="note" if short else "ok", found=f"{_gib(free)} free here", fix=fix
    )


def check_packages() -> Iterator[Finding]:
    """Every package that setup.cfg requires, in a version that it accepts."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("boxless") or []
    except importlib.metadata.PackageNotFoundError:
        fix = "make, or pip install --constraint constraints.txt --editable ."
        yield Finding(name="boxless", state="note", found="not installed, only run", fix=fix)
        return
    wrong = []
    for requirement in map(Requirement, lines):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement} (found {version or 'none'})")
    fix = "make, or pip install --constraint constraints.txt --editable ." if wrong else ""
    found = "; ".join(wrong) or "all that setup.cfg requires"
    yield Finding(name="packages", state="missing" if wrong else "ok", found=found, fix=fix)


def check_torch() -> Iterator[Finding]:
    """PyTorch and the device it would use."""
    try:
        import torch
    except Exception as error:
        yield Finding(name="torch", state="missing", found=_said(error), fix="make, or reinstall.")
        return
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    fix = "" if names else "Full-size recipes need GPUs; toy does not."
    device = ", ".join(names) if names else f"CPU, {torch.get_num_threads()} threads"
    yield Finding(
        name="torch",
        state="ok" if names else "note",
        found=f"{torch.__version__} on {device}",
        fix=fix,
    )


def check_deepspeed() -> Iterator[Finding]:
    """DeepSpeed, and which of its ops this machine can build and already has."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it greets
            import deepspeed
            from deepspeed.git_version_info import installed_ops
            from deepspeed.ops.op_builder.all_ops import ALL_OPS

            fits = {name: op.is_compatible(verbose=False) for name, op in ALL_OPS.items()}
    except Exception as error:
        yield Finding(
            name="deepspeed", state="missing", found=_said(error), fix="make, or reinstall."
        )
        return
    yield Finding(name="deepspeed", state="ok", found=deepspeed.__version__)
    fits.pop("deepspeed_not_implemented", None)
    ready = [name for name in fits if installed_ops.get(name)]
    can = [name for name in fits if fits[name] and name not in ready]
    cannot = [name for name in fits if not fits[name]]
    words = (("built", ready), ("can be built", can), ("cannot", cannot))
    found = "; ".join(f"{word}: {', '.join(names)}" for word, names in words if names)
    fix = "None is needed: optimizers are PyTorch's. cpu_adam and async_io serve ZeRO offload."
    yield Finding(name="deepspeed ops", state="ok", found=found, fix=fix)
    tools = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    if tools:
        fix = "Only to build ops: apt-get install g++ ninja-build."
        found = f"{' and '.join(tools)} not found"
        yield Finding(name="compiler", state="note", found=found, fix=fix)


def check_teachers() -> Iterator[Finding]:
    """What objects can come from, besides a teacher of our own: detectron2."""
    if find_spec("detectron2") is None:
        fix = "Optional. It is not on the index; its own documentation says how to install it."
        yield Finding(name="detectron2", state="note", found="not here", fix=fix)
    else:
        try:
            importlib.import_module("detectron2.layers")  # its compiled parts, and torchvision's

            yield Finding(name="detectron2", state="ok", found=_version("detectron2") or "here")
        except Exception as error:  # one built for another torch fails in many ways
            fix = "Optional. Install the detectron2 and the torchvision that are built for this torch."
            found = f"{_version('detectron2') or 'here'} does not work: {_said(error)}"
            yield Finding(name="detectron2", state="note", found=found, fix=fix)


def check_extras() -> Iterator[Finding]:
    """The packages of the extras that read and write other tools' data."""
    for extra, names, use in (
        ("features", ("lmdb", "msgpack"), "UNITER's features"),
        ("interpret", ("lmdb", "lz4", "msgpack"), "VL-InterpreT's examples"),
    ):
        absent = [name for name in names if find_spec(name) is None]
        fix = f"Optional, for {use}: pip install boxless[{extra}]." if absent else ""
        found = f"{' and '.join(absent or names)} {'not' if absent else 'are'} here"
        yield Finding(name=extra, state="note" if absent else "ok", found=found, fix=fix)


def check_apex() -> Iterator[Finding]:
    """NVIDIA's apex, or the package of the same name on the public index."""
    kind, found = apex_package.installed_apex()
    fixes = {
        "nvidia": "",
        "absent": "Optional, for GPUs. pip install --no-build-isolation "
        "git+https://github.com/NVIDIA/apex (the `apex` of the public index is something else).",
        "impostor": "pip uninstall apex: it is never used here, but other code may take it for "
        "NVIDIA's, which is only to be had from https://github.com/NVIDIA/apex",
    }
    yield Finding(
        name="apex", state="ok" if kind == "nvidia" else "note", found=found, fix=fixes[kind]
    )


def check_spacy() -> Iterator[Finding]:
    """spaCy, and a pipeline with a parser for noun phrases."""
    try:
        import spacy
        from spacy.util import get_installed_models
    except Exception as error:
        yield Finding(name="spaCy", state="missing", found=_said(error), fix="make, or reinstall.")
        return
    yield Finding(name="spaCy", state="ok", found=spacy.__version__)
    models = get_installed_models()
    fix = (
        "Optional: else phrases come from the teacher's labels. Not on the package index: "
        f"python -m spacy download {_PARSER}"
    )
    yield Finding(
        name="spaCy parser",
        state="ok" if models else "note",
        found=", ".join(models) or "none",
        fix="" if models else fix,
    )


def check_slurm() -> Iterator[Finding]:
    """Slurm's commands, and whether a controller answers."""
    commands = ("sbatch", "srun", "squeue", "scancel", "scontrol")
    absent = [command for command in commands if shutil.which(command) is None]
    if absent:
        fix = "Optional: only --launcher slurm needs them, on a machine of the cluster."
        found = "no commands" if len(absent) == len(commands) else f"without {', '.join(absent)}"
        yield Finding(name="slurm", state="note", found=found, fix=fix)
        return
    version = _output(["sbatch", "--version"]) or "commands here"
    controller = _output(["scontrol", "ping"])
    answers = " UP" in controller
    yield Finding(
        name="slurm",
        state="ok" if answers else "note",
        found=f"{version}; controller {'answers' if answers else 'does not answer'}",
        fix="" if answers else "Ask with `scontrol ping`; is this a machine of the cluster?",
    )


_CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python,
    check_machine,
    check_packages,
    check_torch,
    check_deepspeed,
    check_teachers,
    check_extras,
    check_apex,
    check_spacy,
    check_slurm,
)


def _memory_bytes() -> int:
    """This machine's memory, or the container's share of it where that is less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no container, or "max"
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 30):.1f} GiB"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:120]


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
