"""The package boxless. Oracles: the modules that define each name, the interpreter's own list of
what an import loaded, and the Python of docs/python.md, run as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image
from pretrain_fixtures import tiny_student, toy_tokenizer

import boxless
from stages.detector.teacher_folder import save_null_teacher

ROOT = Path(__file__).resolve().parents[2]


def test_import_loads_nothing_heavy() -> None:
    """`import boxless` alone: none of the packages that take seconds is in sys.modules."""
    code = "import sys, boxless; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "transformers", "deepspeed", "webdataset", "pipeline", "stages"}
    assert not heavy & set(loaded.stdout.split())


@pytest.mark.parametrize("name", boxless.__all__)
def test_each_name_is_what_its_module_defines(name: str) -> None:
    module, attribute = boxless._PLACES[name]
    assert getattr(boxless, name) is getattr(import_module(module), attribute)


def test_the_lists_of_names_agree() -> None:
    """What editors see (TYPE_CHECKING), what is exported and what is found are the same names."""
    source = (
        Path(boxless.__file__).read_text("utf-8").split("if TYPE_CHECKING:")[1].split("\n\n")[0]
    )
    names = re.findall(r"(?:import|,) (\w+(?: as \w+)?)", source)
    assert sorted(name.split(" as ")[-1] for name in names) == sorted(boxless.__all__)
    assert boxless.__all__ == sorted(boxless._PLACES)
    assert set(boxless.__all__) <= set(dir(boxless))


def test_unknown_names_list_the_valid_ones() -> None:
    with pytest.raises(AttributeError, match="no 'Studnet'; it has .*Student, "):
        boxless.Studnet  # noqa: B018


def test_paths_may_be_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every public function that takes a path. Oracle: what it gives of a Path, or its own error
    about a folder that is not there."""
    monkeypatch.chdir(tmp_path)
    info = {"captions": ["a"], "width": 1, "height": 1, "image_id": 1, "source": "s"}
    sample = boxless.Sample(key="a", image=b"x", extension="jpg", info=info)
    manifest = boxless.write_shard("shards/train-000000.tar", [sample], fingerprint={"by": "test"})
    tars = {"train-000000.tar": "train"}
    catalog = boxless.write_catalog("shards", kind="images", splits=tars, metadata={})
    assert boxless.read_manifest("shards/train-000000.tar") == manifest
    assert boxless.read_catalog("shards") == catalog == boxless.read_catalog(tmp_path / "shards")
    assert boxless.verify("shards") == boxless.verify(["shards", tmp_path / "shards"]) == []
    assert boxless.repair("shards") == boxless.repair(Path("shards"))
    for function in (boxless.index_folder, boxless.load_teacher, boxless.load_recipe):
        with pytest.raises(boxless.BoxlessError, match="none"):
            function("none")


def test_python_m_boxless_is_the_command_line() -> None:
    command = [sys.executable, "-m", "boxless", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "pretrain" in shown.stdout


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of docs/python.md, in order, in a folder with a student, a teacher that finds
    nothing, and a picture."""
    page = (ROOT / "docs/python.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    monkeypatch.chdir(tmp_path)
    student, folder = tiny_student(), tmp_path / "runs/toy"
    student.save_pretrained(folder / "student")
    boxless.StudentProcessor.of(student, toy_tokenizer()).save_pretrained(folder / "student")
    save_null_teacher(folder / "teacher")
    Image.new("RGB", (64, 48), "red").save("scene.jpg")
    assert len(blocks) >= 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
