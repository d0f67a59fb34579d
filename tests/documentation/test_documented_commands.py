"""Commands in README, CONTRIBUTING and docs/. Oracles: the argument parser, the recipe's own
checks, the Makefile's targets and the benchmarks' files. A page may cut a command short with
`...`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pipeline.cli.main import command_line_parser
from pipeline.recipe.recipe import load_recipe
from pipeline.runner.launch_plan import LaunchOverrides

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.S | re.M)
MAKE_VARIABLES = {"RECIPE", "RUN", "LAUNCHER", "NODES", "PROCS", "SET", "RANK", "PYTHON"}
PLACEHOLDERS = {
    r"\bRECIPE\b": "toy",
    r"\bTASK\b": "vqa",
    r"\$\w+_ADDR\b": "node0",
    r"\$\w+_RANK\b": "1",
    r"\$\w+": "2",
}
# What `...` stands for: what the recipe cannot do without.
LEFT_OUT = {
    "coco": ["--set", "ingest.root=IMAGES", "--set", "ingest.captions=captions.json"],
    "nlvr": ["--set", "ingest.root=nlvr"],
    "photos": ["--set", "ingest.root=FOLDER"],
}


def commands_of(page: Path) -> list[list[str]]:
    """The commands of a page, as words: those of its fenced blocks, then those in running text."""
    text = page.read_text("utf-8")
    blocks = [code for language, code in FENCE.findall(text) if language in ("", "bash")]
    lines = [line.strip() for code in blocks for line in code.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"(?<!`)`([^`]+)`(?!`)", FENCE.sub("", text))
    lines += [" ".join(code.split()) for code in inline]
    starts = re.compile(r"([A-Z_]+=\S+ )*(boxless |make |python -m (benchmarks|pytest))")
    return [
        [word for word in shlex.split(line, comments=True) if not re.match(r"[A-Z_]+=", word)]
        if not line.startswith("make ")
        else shlex.split(line, comments=True)
        for line in lines
        if starts.match(line)
    ]


def _check_boxless(words: list[str]) -> None:
    if words in (["--help"], ["--version"]) or (len(words) == 1 and words[0].islower()):
        parser = command_line_parser()
        assert words[0] in parser.format_help()
        return
    words = [word if "=" in word else word.strip("[]") for word in words]
    for pattern, value in PLACEHOLDERS.items():
        words = [re.sub(pattern, value, word) for word in words]
    if "..." in words:
        words = [word for word in words if word != "..."] + LEFT_OUT.get(words[1], [])
    words = words[: words.index(">")] if ">" in words else words  # what the shell keeps to itself
    args = command_line_parser().parse_args(words)  # exits where it does not fit
    if getattr(args, "recipe", None):
        overrides = LaunchOverrides(
            launcher=getattr(args, "launcher", None),
            nodes=getattr(args, "nodes", None),
            procs_per_node=getattr(args, "procs_per_node", None),
        )
        more = [] if args.set else LEFT_OUT.get(args.recipe, [])[1::2]
        load_recipe(args.recipe, [*more, *args.set], merge=overrides.merged)


def _check_make(words: list[str]) -> None:
    text = (ROOT / "Makefile").read_text("utf-8").replace("\\\n", " ")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.M)
    (stages,) = re.findall(r"^STAGES := (.*)$", text, re.M)
    for word in words:
        name, is_variable, _ = word.partition("=")
        known = MAKE_VARIABLES if is_variable else {*phony.split(), *stages.split()}
        assert name in known, f"make {word}"


def _check_benchmark(module: str, options: list[str]) -> None:
    source = (ROOT / (module.replace(".", "/") + ".py")).read_text("utf-8")
    for option in (word for word in options if word.startswith("--")):
        assert option.removeprefix("--") in source, f"{module} {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_would_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`boxless` commands parse and their recipes with all overrides are valid; targets of `make`,
    benchmarks with their options and test files exist. Parts of recipes on the page are valid, laid
    over the recipe toy where they name no base; those that begin with `# FILE` are that file."""
    monkeypatch.chdir(tmp_path)
    for number, (language, code) in enumerate(FENCE.findall(page.read_text("utf-8"))):
        if language == "yaml":
            named = re.match(r"# (\S+\.yaml)\n", code)
            path = tmp_path / (named[1] if named else f"block-{number}.yaml")
            path.write_text(code if "base:" in code else f"base: toy\n{code}", "utf-8")
            load_recipe(path)
    for words in commands_of(page):
        if words[0] == "boxless":
            _check_boxless(words[1:])
        elif words[0] == "make":
            _check_make(words[1:])
        elif words[2].startswith("benchmarks."):
            _check_benchmark(words[2], words[3:])
        else:
            files = [word for word in words if word.endswith(".py")]
            assert files and all((ROOT / file).is_file() for file in files), words


def test_pages_have_commands() -> None:
    """The extraction above finds what a reader sees."""
    found = [" ".join(words) for page in PAGES for words in commands_of(page)]
    assert "boxless run toy" in found and "make demo" in found
    assert len(found) > 60


def test_python_of_the_pages_is_run_by_a_test() -> None:
    """Every page with Python is named by the test that runs it; README repeats that of Students."""
    tests = {
        "python.md": "tests/boxless/test_public_api.py",
        "shards.md": "tests/documentation/test_python_blocks.py",
        "students.md": "tests/stages/student/test_student_use.py",
        "tasks.md": "tests/stages/transfer/test_task_example.py",
    }
    with_python = {page.name for page in PAGES if "```python" in page.read_text("utf-8")}
    assert with_python == {*tests, "README.md"}
    for page, test in tests.items():
        assert page in (ROOT / test).read_text("utf-8")
    block = re.compile(r"```python\n.*?```", re.S)
    students = (ROOT / "docs/students.md").read_text("utf-8")
    assert block.findall((ROOT / "README.md").read_text("utf-8")) == block.findall(students)[:1]
