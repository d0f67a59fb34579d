"""The rules of the layout: who may import whom, names, and the size of folders. Oracle: the
sources, read with ast, so that a rule holds whatever a module does when it runs."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("boxless", "pipeline", "stages", "sharding", "launch")
MAY_IMPORT = {
    # The public API only re-exports; nobody imports it, but for BASE_ERROR.
    "boxless": {"boxless", "pipeline", "stages", "sharding", "launch"},
    "sharding": {"sharding"},
    "launch": {"launch"},
    "stages": {"stages", "sharding"},
    "pipeline": {"pipeline", "stages", "sharding", "launch"},
}
BASE_ERROR = "boxless.errors"  # the class that all errors derive from; it imports nothing
# Parts that every stage may import; they import no stage.
SHARED_PARTS = {"annotations", "student", "training", "detector"}
FORBIDDEN_NAMES = {"utils", "util", "common", "core", "helpers", "helper", "misc"}
OPTIONAL = {"torchvision", "detectron2", "apex", "wandb", "lmdb", "lz4", "msgpack"}
MOST_FILES = 13  # Python files of a folder, beside its __init__.py
PICKLES = {"pickle", "dill", "joblib", "cloudpickle"}
# Writes pickles for a tool that reads nothing else; that it reads none is tested below.
WRITES_PICKLES = Path("pipeline/export/plain_pickle.py")


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(tree: ast.AST, path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names that the nodes of ``tree`` import, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import hides where it leads"
            assert node.module is not None
            # `from stages import student` names a module too.
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def faults(source: str, path: Path) -> list[str]:
    """What a module at ``path``, relative to the root, imports against the rule."""
    folder, *rest = path.with_suffix("").parts
    stage = rest[0] if len(rest) > 1 else None  # None: a file that lies in stages/ itself
    found = []
    for name, line in imported(ast.parse(source), path):
        parts = name.split(".")
        if name.startswith(f"{BASE_ERROR}."):
            continue
        if parts[0] in (*FOLDERS, "tests", "benchmarks") and parts[0] not in MAY_IMPORT[folder]:
            found.append(f"{path}:{line}: {folder} imports {name}")
        if folder == "stages" and parts[0] == "stages" and len(parts) > 1:
            other = parts[1]
            is_stage = (ROOT / "stages" / other).is_dir()
            allowed = other == stage or (other in SHARED_PARTS and stage is not None)
            if is_stage and not allowed:
                found.append(f"{path}:{line}: stage {stage} imports {name}")
    return found


def heavy_faults(source: str, path: Path) -> list[str]:
    """Optional packages that are imported when the module is, and pickles anywhere."""
    tree = ast.parse(source)
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    found = []
    for name, line in imported(tree, path):
        first = name.split(".")[0]
        if first in OPTIONAL and line not in inside:
            found.append(f"{path}:{line}: {first} is optional; import it where it is used")
        if first in PICKLES and path != WRITES_PICKLES:
            found.append(f"{path}:{line}: {first}: nothing here is pickled")
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_who_imports_whom(folder: str) -> None:
    found = [
        fault
        for path in modules(folder)
        for fault in faults(path.read_text("utf-8"), path.relative_to(ROOT))
    ]
    assert not found, "\n".join(found)


def test_the_base_error_imports_nothing() -> None:
    path = ROOT / f"{BASE_ERROR.replace('.', '/')}.py"
    tree = ast.parse(path.read_text("utf-8"))
    assert {name for name, _ in imported(tree, path)} == {"__future__.annotations"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_errors_for_the_user_are_of_one_family(folder: str) -> None:
    """No plain ValueError is raised or derived from: the command line shows BoxlessErrors as
    messages, and takes a ValueError for a bug."""
    found = []
    for path in modules(folder):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            used: list[ast.expr] = []
            if isinstance(node, ast.ClassDef):
                used = node.bases
            elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                used = [node.exc.func]
            if any(isinstance(name, ast.Name) and name.id == "ValueError" for name in used):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: expected a BoxlessError")
    assert found == ["boxless/errors.py:9: expected a BoxlessError"] * (folder == "boxless")


@pytest.mark.parametrize("folder", FOLDERS)
def test_optional_packages_and_pickles(folder: str) -> None:
    found = [
        fault
        for path in modules(folder)
        for fault in heavy_faults(path.read_text("utf-8"), path.relative_to(ROOT))
    ]
    assert not found, "\n".join(found)


def test_the_one_that_writes_pickles_reads_none() -> None:
    """Of the module pickle it takes the class that writes, and nothing else."""
    tree = ast.parse((ROOT / WRITES_PICKLES).read_text("utf-8"))
    taken = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "pickle"
    }
    assert taken == {"Pickler"}
    assert all("." not in name for name, _ in imported(tree, WRITES_PICKLES) if "pickle" in name)


@pytest.mark.parametrize("folder", [*FOLDERS, "tests", "benchmarks"])
def test_names(folder: str) -> None:
    """Nothing is named after being a place to put things."""
    named = [p for p in (ROOT / folder).rglob("*") if p.stem.lower() in FORBIDDEN_NAMES]
    assert not named


@pytest.mark.parametrize("folder", [*FOLDERS, "tests", "benchmarks"])
def test_no_folder_has_very_many_files(folder: str) -> None:
    """About a dozen, so that a newcomer can read their names at once."""
    numbers = Counter(p.parent.relative_to(ROOT) for p in modules(folder) if p.stem != "__init__")
    crowded = {str(place): number for place, number in numbers.items() if number > MOST_FILES}
    assert not crowded, f"split by purpose what has more than {MOST_FILES} files: {crowded}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_module_says_what_it_is(folder: str) -> None:
    silent = [p for p in modules(folder) if not ast.get_docstring(ast.parse(p.read_text("utf-8")))]
    assert not silent


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("sharding/reading/sample_reader.py", "from stages.progress import Progress"),
        ("launch/backends/local.py", "def f():\n    import pipeline.recipe.recipe"),
        ("stages/pretrain/run.py", "import stages.distill.run"),
        ("stages/pretrain/run.py", "from stages import distill"),
        ("stages/pretrain/run.py", "from pipeline.recipe.recipe import Recipe"),
        ("stages/student/network.py", "from stages.pretrain.config import PretrainConfig"),
        ("stages/progress.py", "from stages.student.config import StudentConfig"),
    ],
)
def test_the_rule_sees_what_is_wrong(path: str, source: str) -> None:
    """The reader itself: each of these breaks the rule once."""
    assert len(faults(source, Path(path))) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("stages/pretrain/run.py", "from stages.student.network import Student"),
        ("stages/pretrain/run.py", "from stages.progress import Progress"),
        ("stages/pretrain/run.py", "from sharding.reading.stream import ShardStream"),
        ("pipeline/runner/run_stages.py", "from launch.job import Job\nimport stages.ingest.run"),
    ],
)
def test_the_rule_sees_what_is_right(path: str, source: str) -> None:
    assert faults(source, Path(path)) == []


def test_optional_imports_are_reported_by_where_they_stand() -> None:
    """Inside a function is right, at the top or in a try at the top is not."""
    path = Path("stages/distill/x.py")
    assert heavy_faults("def f():\n    import torchvision\n", path) == []
    assert len(heavy_faults("import torchvision\n", path)) == 1
    assert len(heavy_faults("try:\n    import apex\nexcept ImportError:\n    pass\n", path)) == 1


def loaded(names: Iterable[str]) -> set[str]:
    """All that is imported when the modules `names` are, as their top level says."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        parts = name.split(".")
        waiting += [".".join(parts[:end]) for end in range(1, len(parts))]
        base = ROOT.joinpath(*parts)
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if parts[0] in FOLDERS and path.is_file():
                for statement in ast.parse(path.read_text("utf-8")).body:
                    if isinstance(statement, ast.Import):
                        waiting += [alias.name for alias in statement.names]
                    elif isinstance(statement, ast.ImportFrom) and statement.module:
                        waiting.append(statement.module)
                        waiting += [f"{statement.module}.{one.name}" for one in statement.names]
    return found


@pytest.mark.parametrize(
    "module", ["stages.ingest.run", "pipeline.runner.worker", "pipeline.cli.main"]
)
def test_what_needs_no_torch_imports_none(module: str) -> None:
    """A worker that ingests, and the command line, start many times, and torch takes seconds.
    Oracle: the modules' own imports, followed through ours; those of the network do load it."""
    needed = [module, "pipeline.runner.stages.entrypoints", "pipeline.runner.run_stages"]
    heavy = {"torch", "deepspeed", "transformers", "spacy", "matplotlib"}
    assert not loaded(needed) & heavy
    assert "torch" in loaded(["stages.student.network"])
