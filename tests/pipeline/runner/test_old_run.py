"""A run folder that a version before the renames of 0.2.0 wrote, read by today's code.

Oracle: the files in tests/data/old_run, whose README says how they were made: scores, objects and
weights are those that the old version computed.
"""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from boxless import Sample, Student, StudentProcessor, load_recipe, load_teacher, verify
from pipeline.cli.main import main
from pipeline.recipe.recipe import Recipe
from pipeline.runner.run_folder import RunFolder
from pipeline.runner.run_stages import plan_stage
from pipeline.runner.stages.stage_graph import stages_of
from sharding.reading.sample_reader import iterate
from stages.pretrain.run import pretrain

DATA = Path(__file__).parents[2] / "data/old_run"
HELDOUT = "heldout-000000.tar"
EXPECTED = json.loads((DATA / "expected.json").read_text())


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A copy of the old run, which may be written to."""
    shutil.copytree(DATA / "run", tmp_path / "run")
    return RunFolder(tmp_path / "run")


def recipe_of(path: Path) -> Recipe:
    """A recipe, the warnings of old names apart."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return load_recipe(str(path))


def heldout(kind: str) -> list[Sample]:
    """The samples of its held-out shard."""
    return list(iterate(DATA / "run" / kind / HELDOUT))


def test_the_recipe_is_read_and_each_old_name_is_named_with_its_new_one() -> None:
    with pytest.warns(FutureWarning) as caught:
        recipe = load_recipe(str(DATA / "run/recipe.yaml"))
    messages = [str(warning.message) for warning in caught]
    for old, new in (
        ("finetune.batch_size", "finetune.micro_batch_size"),
        ("student.mask_cell", "student.visual_mask_embedding"),
        ("pretrain.omvm.hide", "pretrain.omvm.mask_probability"),
        ("evaluate.pairs_per_batch", ""),
    ):
        assert sum(old in message and new in message for message in messages) == 1, old
    assert len(messages) == 4
    assert recipe.finetune.micro_batch_size == 4
    assert recipe.pretrain.omvm.mask_probability == 0.5
    assert recipe.student.visual_mask_embedding == "learned"


@pytest.mark.parametrize("written", ["run/recipe.yaml", "recipe.yaml"])
def test_every_stage_counts_as_complete(written: str, run: RunFolder) -> None:
    """By the run's own recipe and by the one that it was started with, whose other values are
    today's defaults. Also the corpus, which is generated again for this, is still the same."""
    recipe = recipe_of(DATA / written)
    plans = [plan_stage(run, recipe, kind, look_outside=True) for kind in stages_of(recipe)]
    assert {plan.kind.name: plan.why for plan in plans if plan.action != "skip"} == {}
    assert len(plans) == 5


def test_a_stage_that_was_stopped_is_continued(run: RunFolder) -> None:
    """Not begun again, as it would be if a key that is younger than the run were a change."""
    folder = run.root / "pretrain"
    record = json.loads((folder / "stage.json").read_text())
    (folder / "stage.json").unlink()
    (folder / "started.json").write_text(json.dumps({**record, "finished": "", "outputs": {}}))
    recipe = recipe_of(run.recipe)
    [kind] = [kind for kind in stages_of(recipe) if kind.name == "pretrain"]
    assert plan_stage(run, recipe, kind, look_outside=True).action == "continue"


def test_status_report_and_verify(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(run.root)]) == 0
    said = capsys.readouterr().out
    assert said.count(" done ") == 5, said
    assert main(["verify", str(run.root)]) == 0
    assert main(["report", str(run.root)]) == 0
    page = (run.root / "report/index.html").read_text()
    for section in ("Phrase grounding", "Visual dictionary", "Training curves"):
        assert section in page


def test_shards_verify() -> None:
    assert not verify([DATA / "run/images", DATA / "run/objects"], full=True)
    assert [sample.key for sample in heldout("objects")] == [s.key for s in heldout("images")]


def test_the_teacher_finds_the_objects_that_it_found() -> None:
    """Oracle: the rows of the old object shard, stored in half precision."""
    teacher = load_teacher(DATA / "run/teacher")
    for sample in heldout("objects"):
        pixels = torch.tensor(np.asarray(Image.open(BytesIO(sample.image)).convert("RGB")))
        [found] = teacher.detect([teacher.prepare(pixels)])
        assert sample.objects is not None
        assert found["label"].tolist() == sample.objects["label"].tolist()
        for name, tolerance in (("box", 1e-2), ("score", 1e-3), ("feature", 1e-2)):
            np.testing.assert_allclose(found[name], sample.objects[name], atol=tolerance)


def test_the_student_scores_as_it_did() -> None:
    """Oracle: the old version's logits; the tolerance is for sums in another order."""
    folder = str(DATA / "run/student")
    student, processor = (c.from_pretrained(folder) for c in (Student, StudentProcessor))
    for sample, logits in zip(heldout("images"), EXPECTED["logits"], strict=True):
        found = student(**processor([sample.image], EXPECTED["texts"])).logits
        torch.testing.assert_close(found, torch.tensor(logits), rtol=0, atol=1e-5)


@pytest.mark.parametrize("more_steps", [0, 1])
def test_pretraining_continues(run: RunFolder, more_steps: int) -> None:
    """Oracle: without another step the student that is written again has the old one's weights;
    with one, the next step of the same order, from whose loss the log goes on."""
    recipe = recipe_of(run.recipe)
    student = run.root / "student"
    before = load_file(student / "model.safetensors")
    shutil.rmtree(student)
    pretrain(
        replace(recipe.pretrain, num_steps=recipe.pretrain.num_steps + more_steps),
        student=recipe.student,
        seed=recipe.seed,
        objects=run.root / "objects",
        out=run.root / "pretrain",
        student_out=student,
    )
    after = load_file(student / "model.safetensors")
    changed = {new for new in after if not torch.equal(after[new], before[_old_name(new)])}
    lines = (run.root / "pretrain/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [*range(1, 5 + more_steps)]
    assert bool(changed) == bool(more_steps)


def _old_name(name: str) -> str:
    return name.replace("visual_mask_embedding", "mask_cell")
