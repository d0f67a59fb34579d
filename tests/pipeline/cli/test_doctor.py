"""What the doctor finds. Oracle: packages and commands that the test puts in its way, real and
false; nothing here depends on what this machine has."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cli import doctor
from pipeline.cli.doctor import Finding
from stages.training import apex_package


def put_package(folder: Path, name: str, code: str, *, about: str = "", parts: str = "") -> None:
    """A package that runs ``code`` when imported, with its distribution's metadata."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)
    for part in parts.split():
        (folder / name / part).mkdir()
    info = folder / f"{name}-0.9.dist-info"
    info.mkdir()
    words = f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.9\n"
    (info / "METADATA").write_text(words + (f"Summary: {about}\n" if about else ""))


@pytest.fixture()
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that comes first on the import path."""
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    for name in ("apex", "detectron2", "detectron2.layers"):
        sys.modules.pop(name, None)


def test_the_impostor_of_apex_is_reported_without_running_it(site: Path) -> None:
    """The package of that name on the public index is a web toolkit; its code must not run."""
    put_package(site, "apex", "raise SystemExit('it ran')", about="Pyramid toolkit for web forms")
    kind, found = apex_package.installed_apex()
    assert kind == "impostor" and "Pyramid toolkit" in found and "0.9" in found
    (finding,) = doctor.check_apex()
    assert finding.state == "note" and "pip uninstall apex" in finding.fix
    assert "apex" not in sys.modules


def test_nvidias_apex_is_reported_by_its_folders(site: Path) -> None:
    put_package(site, "apex", "raise SystemExit('it ran')", parts="amp optimizers normalization")
    assert apex_package.installed_apex() == ("nvidia", "NVIDIA's, 0.9, no summary")
    (finding,) = doctor.check_apex()
    assert finding.state == "ok"


def test_an_apex_without_metadata_is_still_judged(site: Path) -> None:
    (site / "apex.py").write_text("raise SystemExit('it ran')")
    kind, found = apex_package.installed_apex()
    assert kind == "impostor" and "without metadata" in found


@pytest.mark.parametrize(
    ("code", "state", "found"),
    [
        ("", "ok", "0.9"),
        (
            "raise RuntimeError('operator nms does not exist')",
            "note",
            "0.9 does not work: RuntimeError: operator nms does not exist",
        ),
    ],
)
def test_a_detectron2_that_does_not_work_is_a_note(
    site: Path, code: str, state: str, found: str
) -> None:
    """As one beside another torch: operators are not registered."""
    put_package(site, "detectron2", "", parts="layers")
    (site / "detectron2/layers/__init__.py").write_text(code)
    (detectron2,) = doctor.check_teachers()
    assert (detectron2.state, detectron2.found) == (state, found)


def test_a_package_of_a_wrong_version_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requirements as setup.cfg gives them; extras are nobody's duty."""
    lines = ["numpy>=1", "Pillow>=9999", "no-such-package", "pytest>=9999; extra == 'dev'"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: lines)
    (finding,) = doctor.check_packages()
    assert finding.state == "missing" and "numpy" not in finding.found
    assert "Pillow>=9999 (found" in finding.found
    assert "no-such-package (found none)" in finding.found and "pytest" not in finding.found


def test_slurm_with_and_without_a_controller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = doctor.check_slurm()
    assert (finding.state, finding.found) == ("note", "no commands")
    for name in ("sbatch", "srun", "squeue", "scancel", "scontrol"):
        (tmp_path / name).write_text(f"#!{sys.executable}\nprint('slurm 22.05 is UP')\n")
        (tmp_path / name).chmod(0o755)
    (finding,) = doctor.check_slurm()
    assert finding.state == "ok" and "controller answers" in finding.found
    (tmp_path / "scontrol").write_text(f"#!{sys.executable}\nprint('is DOWN')\n")
    (finding,) = doctor.check_slurm()
    assert finding.state == "note" and "does not answer" in finding.found


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(("state", "status"), [("ok", 0), ("note", 0), ("missing", 1)])
def test_exit_status(
    state: doctor.State,
    status: int,
    as_json: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """1 only where something required is missing; words in brackets are no colours."""
    finding = Finding(name="thing", state=state, found="found [red]", fix="fix")
    monkeypatch.setattr(doctor, "_CHECKS", (lambda: iter([finding]),))
    assert doctor.examine(as_json=as_json) == status
    said = capsys.readouterr().out
    assert "found [red]" in said
    if as_json:
        expected = {"name": "thing", "state": state, "found": "found [red]", "fix": "fix"}
        assert json.loads(said) == [expected]


def test_this_machine_is_examined_to_the_end() -> None:
    """Every check of a real machine gives findings, and the package tests run with are sound."""
    findings = {f.name: f for check in doctor._CHECKS for f in check()}
    for name in (
        "python",
        "cores",
        "memory",
        "disk",
        "torch",
        "deepspeed",
        "deepspeed ops",
        "detectron2",
        "features",
        "interpret",
        "apex",
        "spaCy",
        "spaCy parser",
        "slurm",
    ):
        assert findings[name].found
        assert findings[name].state == "ok" or findings[name].fix
    assert all(findings[name].state != "missing" for name in ("python", "torch", "deepspeed"))
