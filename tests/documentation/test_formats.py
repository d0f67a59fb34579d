"""File formats. Oracles: files as the code writes them, and the pydantic models that give the
schemas."""

from __future__ import annotations

import json
from pathlib import Path

from docs.generate.file_schemas import FILES
from docs.generate.format_samples import PAGE, format_samples, page_with_samples
from pipeline.recipe.recipe import load_recipe
from pipeline.runner.run_folder import RunFolder
from pipeline.runner.stages.stage_graph import stages_of
from pipeline.runner.stages.state import StageRecord, write_done


def test_the_samples_of_the_page_are_those_that_the_code_writes() -> None:
    """After a change of a format: `python -m docs.generate.format_samples --write`."""
    text = PAGE.read_text("utf-8")
    assert page_with_samples(text) == text


def test_files_fit_their_schemas() -> None:
    samples = format_samples()
    assert set(samples) == set(FILES) - {"stage"}
    for name, content in samples.items():
        FILES[name].model_validate(content)


def test_the_record_of_a_stage_fits_its_schema(tmp_path: Path) -> None:
    run, kind = RunFolder(tmp_path), stages_of(load_recipe("toy"))[0]
    record = StageRecord(stage=kind.name, shaped_by={}, outputs={"a": (1, "0" * 64)})
    write_done(run, kind, record)
    content = json.loads((kind.folder(run) / "stage.json").read_bytes())
    FILES["stage"].model_validate(content)
