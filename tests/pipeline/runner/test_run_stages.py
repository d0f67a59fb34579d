"""Which stages run, why, and what is kept. Stages are replaced by ones that write the files that
the real ones do, with a counter inside; oracle: which of them were called, and what lies there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from launch.config import LaunchConfig
from launch.job import LaunchError, Stopped
from pipeline.recipe.dataclass_values import RecipeError
from pipeline.recipe.recipe import Recipe, load_recipe
from pipeline.runner import run_stages as runner
from pipeline.runner.launch_plan import LaunchOverrides
from pipeline.runner.run_folder import RunError, RunFolder
from pipeline.runner.run_stages import plan_stage, run_stages
from pipeline.runner.stages.stage_graph import STAGE_NAMES, StageKind, stages_of
from pipeline.runner.status.status import status_table
from sharding.format.catalog import write_catalog
from sharding.format.schema import Sample, object_dtype
from sharding.writing.atomic import sha256_of
from sharding.writing.shard_writer import write_shard

RUN_ALL = ["ingest", "teach", "distill", "pretrain", "evaluate"]


class FakeStages:
    """Stands for pipeline.runner.launch_plan.launch_stage: writes what a stage would, notes that it
    ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.writes = 0

    def __call__(
        self, kind: StageKind, recipe: Recipe, run: RunFolder, config: LaunchConfig
    ) -> None:
        self.ran.append(kind.name)
        if kind.name in self.fails:
            (kind.folder(run) / "half-done.pt").write_text("")
            raise self.fails.pop(kind.name)
        getattr(self, kind.name)(run, str(recipe.seed))

    def _shard(self, folder: Path, key: str, objects: np.ndarray | None) -> None:
        info = {"captions": ["a"], "width": 4, "height": 4, "image_id": key, "source": "test"}
        splits = {"train-000000.tar": "train", "heldout-000000.tar": "heldout"}
        for tar, split in splits.items():
            name = f"{split}-{key}"
            sample = Sample(key=name, image=b"png", extension="png", info=info, objects=objects)
            write_shard(folder / tar, [sample], fingerprint={"key": key})
        kind = "images" if objects is None else "objects"
        write_catalog(folder, kind=kind, splits=splits, metadata={})

    def ingest(self, run: RunFolder, content: str) -> None:
        self._shard(run.images, f"seed{content}", None)

    def teach(self, run: RunFolder, content: str) -> None:
        self.writes += 1  # as a net trained twice, it is never twice the same
        (run.teacher / "config.json").write_text("{}")
        (run.teacher / "names.json").write_text("[]")
        (run.teacher / "model.safetensors").write_text(f"weights {self.writes}")

    def distill(self, run: RunFolder, content: str) -> None:
        dtype = object_dtype(feature_size=2, num_top=2, attributes=False)
        weights = (run.teacher / "model.safetensors").read_text().split()[1]
        self._shard(run.objects, f"by{weights}", np.zeros(0, dtype))

    def pretrain(self, run: RunFolder, content: str) -> None:
        run.student.mkdir(exist_ok=True)
        (run.student / "config.json").write_text("{}")
        (run.student / "model.safetensors").write_text(content)
        (run.pretrain / "metrics.jsonl").write_text('{"step": 3, "loss": 0.5}\n{"step": 4, "lo')

    def finetune(self, run: RunFolder, content: str) -> None:
        (run.transfer / "nlvr" / "scores.json").write_text('{"accuracy": {"value": 0.75}}')

    def evaluate(self, run: RunFolder, content: str) -> None:
        scores = {"r1": {"value": 0.5, "chance": 0.1}, "note": "words"}
        (run.transfer / "evaluate" / "scores.json").write_text(json.dumps(scores))


@pytest.fixture()
def stages(monkeypatch: pytest.MonkeyPatch) -> FakeStages:
    fake = FakeStages()
    monkeypatch.setattr(runner, "launch_stage", fake)
    return fake


Go = Callable[..., list[str]]


@pytest.fixture()
def go(stages: FakeStages, tmp_path: Path) -> Go:
    """Run stages of toy with some values laid over it; returns which ones ran."""

    def run(*overrides: str, names: list[str] | None = None, dry_run: bool = False) -> list[str]:
        stages.ran.clear()
        recipe = load_recipe("toy", overrides)
        folder = RunFolder(tmp_path / "run")
        run_stages(recipe, folder, names or list(STAGE_NAMES), LaunchOverrides(), dry_run=dry_run)
        return list(stages.ran)

    return run


def test_all_run_once_in_order_and_then_none(go: Go) -> None:
    """finetune has no task in toy, so it is left out."""
    assert go() == RUN_ALL
    assert go() == []


def test_a_field_that_is_younger_than_a_run_has_its_default_there(go: Go, tmp_path: Path) -> None:
    """Records without some fields, as an earlier version left them: no stage runs while the recipe
    has their defaults, and the stage of a field runs that has another value."""
    go()
    for folder, part, *path in (
        ("images", "ingest", "samples_per_shard"),
        ("pretrain", "pretrain", "itm", "negatives"),
    ):
        file = tmp_path / "run" / folder / "stage.json"
        record = json.loads(file.read_text())
        section = record["shaped_by"]["recipe"][part]
        for key in path[:-1]:
            section = section[key]
        del section[path[-1]]
        record["fingerprint"] = sha256_of(record["shaped_by"])
        file.write_text(json.dumps(record))
    assert go() == []
    assert (
        go("pretrain.itm.negatives=itc", "pretrain.itc.weight=1", "student.itc_size=8")[0]
        == "pretrain"
    )


def test_finetune_runs_where_there_is_a_task(go: Go, tmp_path: Path) -> None:
    assert go("finetune.task=nlvr") == list(STAGE_NAMES)
    record = json.loads((tmp_path / "run/transfer/nlvr/stage.json").read_text())
    assert record["figures"] == {"accuracy": 0.75}


@pytest.mark.parametrize(
    ("override", "ran"),
    [
        ("ingest.num_train=77", ["ingest"]),  # the fake's shards stay the same: nothing follows
        ("seed=5", RUN_ALL),
        ("teach.num_steps=77", RUN_ALL[1:]),  # new weights, so all that sees them follows
        ("distill.max_objects=7", ["distill"]),
        ("student.num_layers=1", ["pretrain"]),
        ("pretrain.num_steps=77", ["pretrain"]),
        ("evaluate.num_pictures=7", ["evaluate"]),
        ("pretrain.log_steps=7", []),
        ("distill.num_threads=1", []),
        ("launch.procs_per_node=1", []),
        ("description=other", []),
    ],
)
def test_what_a_change_of_the_recipe_redoes(go: Go, override: str, ran: list[str]) -> None:
    """A stage whose own part changed, and those after it whose input came out different."""
    go()
    assert go(override) == ran


def test_dear_output_is_set_aside_under_one_number(
    go: Go, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go()
    run = tmp_path / "run"
    go("seed=1", names=["ingest", "teach", "distill", "pretrain"])
    assert (run / "student.1/model.safetensors").read_text() == "0"
    assert (run / "student/model.safetensors").read_text() == "1"
    assert (run / "pretrain.1").is_dir() and (run / "teacher.1").is_dir()
    assert not (run / "images.1").exists()
    assert "seed was 0, is 1" in capsys.readouterr().out
    go("seed=2", names=["ingest", "teach", "distill", "pretrain"])
    assert (run / "student.2/model.safetensors").read_text() == "1"
    said = capsys.readouterr().out
    assert "kept the earlier student as student.2" in said
    assert "kept from before: pretrain.1 to .1, student.1 to .1, 0 MB; nothing reads them" in said


def test_an_attempt_that_saved_nothing_leaves_no_backup(
    go: Go, stages: FakeStages, tmp_path: Path
) -> None:
    """Files that are refused, mended and refused again would leave a folder each time. Oracle: the
    folders of the run."""
    for number in range(3):
        stages.fails["pretrain"] = LaunchError("refused", Path("log"), "tail")
        with pytest.raises(LaunchError):
            go(f"pretrain.num_steps={70 + number}")
        (tmp_path / "run/pretrain/half-done.pt").unlink()
    go("pretrain.num_steps=77")
    assert not [*(tmp_path / "run").glob("pretrain.*")]
    assert not [*(tmp_path / "run").glob("student.*")]


@pytest.mark.parametrize("linked", ["pretrain", "pretrain/checkpoints"])
def test_what_a_link_leads_to_is_backed_up(
    go: Go, stages: FakeStages, tmp_path: Path, linked: str
) -> None:
    """Checkpoints on another disk are seen only behind the link, and a link to a folder cannot be
    removed as one. Oracle: the link, under the backup's name, still leads to the weights."""
    stages.fails["pretrain"] = LaunchError("broke", Path("log"), "tail")
    with pytest.raises(LaunchError):
        go("pretrain.num_steps=70")
    run, disk = tmp_path / "run", tmp_path / "disk"
    (run / "pretrain/half-done.pt").unlink()
    if linked == "pretrain":
        (run / "pretrain").rename(disk)
    else:
        disk.mkdir()
        (disk / "weights.pt").touch()
    (run / linked).symlink_to(disk)
    go("pretrain.num_steps=77")
    moved = run / linked.replace("pretrain", "pretrain.1")
    assert moved.is_symlink() and moved.resolve() == disk.resolve()


@pytest.mark.parametrize("error", [Stopped(15), LaunchError("broke", Path("log"), "tail")])
def test_a_stopped_stage_continues_where_it_was(
    go: Go, stages: FakeStages, tmp_path: Path, error: Exception
) -> None:
    """What it left is still there, it is not called done, and what stands before it is skipped."""
    stages.fails["pretrain"] = error
    with pytest.raises(type(error)):
        go()
    assert (tmp_path / "run/pretrain/half-done.pt").exists()
    assert not (tmp_path / "run/pretrain/stage.json").exists()
    assert go() == ["pretrain", "evaluate"]
    assert (tmp_path / "run/pretrain/half-done.pt").exists()


def test_a_half_done_dear_stage_of_another_recipe_is_set_aside(
    go: Go, stages: FakeStages, tmp_path: Path
) -> None:
    """Else training would continue from a checkpoint of other settings."""
    stages.fails["pretrain"] = Stopped(15)
    with pytest.raises(Stopped):
        go()
    go("pretrain.num_steps=77")
    assert (tmp_path / "run/pretrain.1/half-done.pt").exists()
    assert not (tmp_path / "run/pretrain/half-done.pt").exists()


def test_shards_half_redone_are_not_taken_for_those_before(go: Go, stages: FakeStages) -> None:
    """There, to another recipe and half-way, and back: some shards are of the other recipe."""
    go()
    stages.fails["distill"] = Stopped(15)
    with pytest.raises(Stopped):
        go("distill.max_objects=7")
    assert go() == ["distill"]


@pytest.mark.parametrize(
    ("path", "ran"),
    [
        ("student/model.safetensors", ["pretrain"]),
        ("images/train-000000.tar", ["ingest"]),
        ("objects/train-000000.tar.json", ["distill"]),
        ("objects/catalog.json", ["distill"]),
        ("teacher/stage.json", RUN_ALL[1:]),
        ("transfer/evaluate/scores.json", ["evaluate"]),
    ],
)
@pytest.mark.parametrize("damage", ["remove", "cut"])
def test_damaged_output_is_made_again(
    go: Go, tmp_path: Path, path: str, ran: list[str], damage: str
) -> None:
    go()
    damaged = tmp_path / "run" / path
    if damage == "remove":
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes()[:-2])
    assert go() == ran
    assert go() == []


def test_a_stage_that_leaves_nothing_is_not_called_done(go: Go, stages: FakeStages) -> None:
    stages.pretrain = lambda run, content: None  # type: ignore[method-assign]
    with pytest.raises(RunError, match="pretrain ended and left no .*student/config.json"):
        go()
    assert go(names=["ingest"]) == []


def test_a_single_stage_wants_its_inputs(go: Go) -> None:
    with pytest.raises(RunError, match="teach reads what ingest leaves .* not complete"):
        go(names=["teach"])


def test_a_single_stage_says_when_its_input_is_of_other_settings(
    go: Go, capsys: pytest.CaptureFixture[str]
) -> None:
    go()
    assert go("pretrain.num_steps=3", "evaluate.num_pictures=3", names=["evaluate"]) == ["evaluate"]
    assert "pretrain is not as this recipe says" in capsys.readouterr().out


def test_dry_run_tells_and_touches_nothing(
    go: Go, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(dry_run=True) == []
    assert not (tmp_path / "run").exists()
    said = capsys.readouterr().out
    assert said.count("not started yet") == 5
    assert "torch.distributed.run" in said and "pipeline.runner.worker pretrain" in said
    go()
    capsys.readouterr()
    assert go("seed=9", dry_run=True) == []
    said = capsys.readouterr().out
    assert "teach: redo: its input from ingest will change; seed was 0, is 9" in said
    assert "backs up pretrain, student" in said


def test_the_resolved_recipe_is_in_the_run_folder(go: Go, tmp_path: Path) -> None:
    go("ingest.num_train=99", names=["ingest"])
    assert load_recipe(tmp_path / "run/recipe.yaml").ingest.num_train == 99


def test_one_command_at_a_time(go: Go, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.make()
    assert not run.is_busy()
    with run.locked_for_command():
        assert run.is_busy()
        with pytest.raises(RunError, match="another boxless command is running in"):
            go()
    assert go() == RUN_ALL


def test_status_tells_each_state(go: Go, stages: FakeStages, tmp_path: Path) -> None:
    """done, out of date, stopped part-way and not started, with the figures of each."""
    run = RunFolder(tmp_path / "run")
    stages.fails["pretrain"] = Stopped(15)
    with pytest.raises(Stopped):
        go()
    assert _states(run) == ["done"] * 3 + ["stopped part-way", "not started"]
    go()
    (run.root / "student/model.safetensors").unlink()
    assert _states(run)[3].startswith("damaged: student/model.safetensors is gone")
    table = status_table(run)
    figures = list(table.columns[3].cells)
    assert figures == [
        "pictures 2, shards 2",
        "",
        "pictures 2, shards 2",
        "step 3, loss 0.5",
        "r1 0.5",
    ]


def _states(run: RunFolder) -> list[str]:
    from rich.text import Text

    return [Text.from_markup(str(cell)).plain for cell in status_table(run).columns[1].cells]


def test_status_of_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        status_table(RunFolder(tmp_path))


def test_a_changed_corpus_is_seen(tmp_path: Path) -> None:
    """Real files: one more picture in the folder makes ingest due, and only when asked to look."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/1.jpg").write_bytes(b"not looked into")
    captions = {
        "images": [{"id": 1, "file_name": "1.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "caption": "a"}],
    }
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    overrides = [f"ingest.root={tmp_path}/pictures", f"ingest.captions={tmp_path}/captions.json"]
    recipe = load_recipe("coco", overrides)
    run = RunFolder(tmp_path / "run")
    kind = stages_of(recipe)[0]
    before = plan_stage(run, recipe, kind, look_outside=True).shaped_by
    assert plan_stage(run, recipe, kind, look_outside=True).shaped_by == before
    (tmp_path / "pictures/1.jpg").write_bytes(b"changed, and longer")
    assert plan_stage(run, recipe, kind, look_outside=True).shaped_by != before


def test_a_changed_given_teacher_is_seen(go: Go, tmp_path: Path) -> None:
    """Only its config is looked at, which holds a hash of the rest."""
    (tmp_path / "given").mkdir()
    (tmp_path / "given/config.json").write_text("{}")
    override = f"teach.given={tmp_path}/given"
    assert go(override) == RUN_ALL
    assert go(override) == []
    (tmp_path / "given/config.json").write_text('{"other": 1}')
    assert go(override)[0] == "teach"


@pytest.mark.parametrize(
    ("stage", "asked", "alone", "launcher", "ranks"),
    [
        ("pretrain", LaunchOverrides(), False, "torchrun", 2),
        ("pretrain", LaunchOverrides(), True, "torchrun", 2),
        ("pretrain", LaunchOverrides(procs_per_node=4), False, "torchrun", 4),
        ("pretrain", LaunchOverrides(launcher="local"), True, "local", 1),
        ("pretrain", LaunchOverrides(launcher="slurm", nodes=2), True, "slurm", 4),
        ("teach", LaunchOverrides(), False, "local", 1),
        ("teach", LaunchOverrides(procs_per_node=4), False, "torchrun", 4),
        ("teach", LaunchOverrides(launcher="slurm", nodes=2), False, "slurm", 2),
        ("evaluate", LaunchOverrides(procs_per_node=2), True, "torchrun", 2),
        ("teach", LaunchOverrides(launcher="slurm"), True, "slurm", 1),
        ("ingest", LaunchOverrides(procs_per_node=2), True, "torchrun", 2),
        ("ingest", LaunchOverrides(procs_per_node=2), False, "torchrun", 2),
        ("distill", LaunchOverrides(procs_per_node=4), False, "torchrun", 4),
        (
            "distill",
            LaunchOverrides(launcher="slurm", nodes=4, procs_per_node=8),
            False,
            "slurm",
            32,
        ),
        ("distill", LaunchOverrides(), True, "torchrun", 2),
        ("distill", LaunchOverrides(), False, "torchrun", 2),
        ("distill", LaunchOverrides(procs_per_node=1), True, "local", 1),
        ("distill", LaunchOverrides(launcher="local"), True, "local", 1),
        ("distill", LaunchOverrides(launcher="slurm"), True, "slurm", 2),
        ("evaluate", LaunchOverrides(), False, "torchrun", 2),
        ("ingest", LaunchOverrides(), False, "local", 1),
        ("distill", LaunchOverrides(procs_per_node=3), True, "torchrun", 3),
        ("distill", LaunchOverrides(procs_per_node=3, launcher="slurm", nodes=2), True, "slurm", 6),
    ],
)
def test_how_a_stage_is_launched(
    stage: str, asked: LaunchOverrides, alone: bool, launcher: str, ranks: int
) -> None:
    """toy says torchrun with two ranks: they are pretrain's, distill's and evaluate's; others share
    only when asked, in a whole run too."""
    from pipeline.runner.launch_plan import launch_config

    recipe = load_recipe("toy", merge=asked.merged)
    (kind,) = (kind for kind in stages_of(recipe) if kind.name == stage)
    config = launch_config(kind, recipe, asked, alone=alone)
    assert (config.launcher, config.num_ranks) == (launcher, ranks)


def test_local_is_one_process_whatever_the_recipe_says() -> None:
    """Oracle: distill of toy, with its two processes, asked for with the launcher local only when
    it is launched."""
    from pipeline.runner.launch_plan import launch_config

    recipe = load_recipe("toy")
    (kind,) = (kind for kind in stages_of(recipe) if kind.name == "distill")
    config = launch_config(kind, recipe, LaunchOverrides(launcher="local"), alone=True)
    assert (config.launcher, config.num_ranks) == ("local", 1)


def test_ranks_that_a_launcher_cannot_start_are_refused() -> None:
    """Oracle: the words of the error."""
    with pytest.raises(RecipeError, match="launch.launcher is local with 2 ranks"):
        load_recipe("toy", merge=LaunchOverrides(launcher="local", procs_per_node=2).merged)


FEATURES = 'distill.features={"format": "coco-json", "path": "%s", "labels": "names.txt"}'


def test_a_teacher_from_elsewhere_needs_no_teach(tmp_path: Path) -> None:
    """Oracle: no stage called teach, and none reads what it would leave; other files are a reason
    to distill again, another number of threads is none."""
    old = tmp_path / "old*.json"
    (tmp_path / "old1.json").write_text("[]")
    recipe = load_recipe("toy", ["distill.teacher=features", FEATURES % old])
    kinds = {kind.name: kind for kind in stages_of(recipe)}
    assert "teach" not in kinds and kinds["distill"].inputs == ("ingest",)
    assert "teach" not in kinds["evaluate"].inputs
    run = RunFolder(tmp_path / "run")

    def shaped_by(*overrides: str) -> object:
        changed = load_recipe("toy", ["distill.teacher=features", FEATURES % old, *overrides])
        return plan_stage(run, changed, kinds["distill"], look_outside=True).shaped_by

    before = shaped_by()
    assert shaped_by("distill.num_decoders=7") == before
    (tmp_path / "old2.json").write_text("[]")
    assert shaped_by() != before


def test_another_model_of_language_is_a_reason_to_distill_again(tmp_path: Path) -> None:
    """Oracle: what shapes the stage, before and after a file of the model changed."""
    (tmp_path / "model.safetensors").write_bytes(b"1")
    similarity = f"distill.similarity={{kind: sentence, model: {tmp_path}}}"
    recipe = load_recipe("toy", [similarity])
    distill = next(kind for kind in stages_of(recipe) if kind.name == "distill")

    def shaped_by() -> object:
        run = RunFolder(tmp_path / "run")
        return plan_stage(run, recipe, distill, look_outside=True).shaped_by

    before = shaped_by()
    assert shaped_by() == before
    (tmp_path / "model.safetensors").write_bytes(b"22")
    assert shaped_by() != before


def test_evaluate_is_skipped_with_a_note_where_nothing_is_held_out(
    stages: FakeStages, go: Go, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five pictures of one's own and default settings. Oracle: all other stages ran, and the note
    says what holds some out."""
    shard = stages._shard

    def without_heldout(folder: Path, key: str, objects: np.ndarray | None) -> None:
        shard(folder, key, objects)
        write_shard(folder / "heldout-000000.tar", [], fingerprint={"key": key})
        splits = {"train-000000.tar": "train", "heldout-000000.tar": "heldout"}
        kind = "images" if objects is None else "objects"
        write_catalog(folder, kind=kind, splits=splits, metadata={})

    monkeypatch.setattr(stages, "_shard", without_heldout)
    assert go() == RUN_ALL[:-1]
    note = " ".join(capsys.readouterr().out.split())
    assert "evaluate skipped: no picture is in the split heldout" in note
    assert "ingest.heldout_fraction" in note


def test_the_command_line_is_merged_before_the_recipe_is_checked() -> None:
    """Node 1 of 2: without --nodes the recipe alone cannot be."""
    overrides = ["launch.node_rank=1", "launch.master_address=node0"]
    with pytest.raises(RecipeError, match="node_rank is 1; expected 0 to 0"):
        load_recipe("toy", overrides)
    recipe = load_recipe("toy", overrides, merge=LaunchOverrides(nodes=2).merged)
    assert (recipe.launch.nodes, recipe.launch.node_rank) == (2, 1)


@pytest.mark.parametrize("name", ["x\ntouch owned #", "../../x", "a b", "-x", "", "a/b", "x%j"])
def test_a_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    """It becomes a folder's name and a line of a Slurm script."""
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({"base": "toy", "name": name}))
    with pytest.raises(RecipeError, match="name is"):
        load_recipe(path)


def test_a_recipe_file_with_a_space_in_its_name_gets_a_name_without(tmp_path: Path) -> None:
    path = tmp_path / "my recipe 100%.yaml"
    path.write_text("base: toy\n")
    assert load_recipe(path).name == "my-recipe-100"
