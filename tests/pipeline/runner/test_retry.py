"""`boxless retry`: what failed is made again, and only that. Real stages on a small corpus, called
in this process; the teacher is untrained and small."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from launch.config import LaunchConfig
from launch.job import LaunchError
from pipeline.recipe.recipe import Recipe, load_recipe
from pipeline.runner import run_stages as runner
from pipeline.runner.launch_plan import LaunchOverrides
from pipeline.runner.retry import Retried, lines, retry_failed
from pipeline.runner.run_folder import RunError, RunFolder
from pipeline.runner.run_stages import run_stages
from pipeline.runner.stages.entrypoints import CALLS, RankContext
from pipeline.runner.stages.stage_graph import StageKind
from sharding.coordination.work_queue import rewrite_requests
from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.net_config import (
    BoxConfig,
    ChoiceConfig,
    PictureConfig,
    PlainConfig,
    ProposalConfig,
    TeacherConfig,
)
from stages.detector.ops.resize import Prepared
from stages.detector.predictor import Teacher
from stages.detector.teacher_folder import save_teacher

NUM_PICTURES = 9
NET = TeacherConfig(
    picture=PictureConfig(shorter_px=32, longer_px=64),
    backbone=PlainConfig(stem_width=8, stage_widths=(8, 16), stage_strides=(2, 1)),
    proposals=ProposalConfig(anchor_sizes_px=((12.0,),), num_candidates=16, num_proposals=6),
    boxes=BoxConfig(feature_size=12),
    choice=ChoiceConfig(num_top=3),
)
STAGES = ["ingest", "teach", "distill"]


class Launch:
    """Stands for pipeline.runner.launch_plan.launch_stage: calls the stages here; teach writes a
    teacher."""

    def __init__(self) -> None:
        self.fails: list[str] = []

    def __call__(
        self, kind: StageKind, recipe: Recipe, run: RunFolder, config: LaunchConfig
    ) -> None:
        if kind.name in self.fails:
            self.fails.remove(kind.name)
            raise LaunchError("killed", Path("log"), "")
        if kind.name != "teach":
            CALLS[kind.name](
                recipe, run, RankContext(rank=0, world_size=1, on_step=lambda step: None)
            )
            return
        torch.manual_seed(0)
        net = FasterRCNN(NET, num_labels=3, num_attributes=0)
        names = ["circle", "square", "star"]
        save_teacher(run.teacher, net, label_names=names, attribute_names=[])


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launch]:
    before = signal.getsignal(signal.SIGTERM)
    fake = Launch()
    monkeypatch.setattr(runner, "launch_stage", fake)
    yield fake
    signal.signal(signal.SIGTERM, before)


def picture(corpus: Path, number: int) -> Path:
    return corpus / f"{number:03d}.png"


def draw(corpus: Path, number: int) -> None:
    noise = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(picture(corpus, number), compress_level=0)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder of pictures of the same size in bytes, and a captions file beside it."""
    (tmp_path / "corpus").mkdir()
    numbers = range(NUM_PICTURES)
    for number in numbers:
        draw(tmp_path / "corpus", number)
    captions = {
        "images": [{"id": n, "file_name": f"{n:03d}.png"} for n in numbers],
        "annotations": [{"id": n, "image_id": n, "caption": f"a circle {n}"} for n in numbers],
    }
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    return tmp_path / "corpus"


def run_of(corpus: Path, name: str) -> RunFolder:
    """Ingest, teach and distill into a run folder of that name."""
    run = RunFolder(corpus.parent / name)
    recipe = load_recipe(
        "coco",
        [
            f"ingest.root={corpus}",
            f"ingest.captions={corpus.parent}/captions.json",
            "ingest.samples_per_shard=3",
            "distill.phrases=lexicon",
            "distill.batch_size=2",
        ],
    )
    run_stages(recipe, run, STAGES, LaunchOverrides(), dry_run=False)
    return run


def break_pictures(corpus: Path, *numbers: int) -> None:
    """Zeros, as many as before, so that only reading tells."""
    for number in numbers:
        path = picture(corpus, number)
        path.write_bytes(bytes(path.stat().st_size))


def shards(run: RunFolder) -> dict[str, bytes]:
    """All files of both folders, without the stages' records, which tell times."""
    return {
        str(path.relative_to(run.root)): path.read_bytes()
        for folder in (run.images, run.objects)
        for path in folder.rglob("*")
        if path.name != "stage.json"
    }


def test_what_was_fixed_comes_in_and_the_rest_stays(
    launch: Launch, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two broken pictures of nine, one repaired. Oracle: the folders of a run that never saw the
    repaired one broken; the teacher's calls."""
    break_pictures(corpus, 2)
    expected = shards(run_of(corpus, "calm"))
    break_pictures(corpus, 5)
    run = run_of(corpus, "run")
    draw(corpus, 5)
    looked_at = 0
    real = Teacher.detect

    def counted(self: Teacher, prepared: list[Prepared]) -> list[np.ndarray]:
        nonlocal looked_at
        looked_at += len(prepared)
        return real(self, prepared)

    monkeypatch.setattr(Teacher, "detect", counted)
    retried = retry_failed(run, LaunchOverrides())
    assert retried == [
        Retried(stage="ingest", num_before=2, num_after=1),
        Retried(stage="distill", num_before=0, num_after=0),
    ]
    assert lines(retried)[0] == "ingest: 2 had failed, 1 still do."
    assert looked_at == 1
    assert shards(run) == expected
    assert retry_failed(run, LaunchOverrides()) == [
        Retried(stage="ingest", num_before=1, num_after=1)
    ]
    assert shards(run) == expected


def test_pictures_that_the_teacher_failed_on_are_looked_at_again(
    launch: Launch, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher fails on dark pictures, once. Oracle: as above; ingest is left alone."""
    Image.new("RGB", (40, 30)).save(picture(corpus, 4))
    expected = shards(run_of(corpus, "calm"))
    looked_at: list[int] = []
    real = Teacher.detect

    def fails(self: Teacher, prepared: list[Prepared]) -> list[np.ndarray]:
        if any(not one.pixels.any() for one in prepared):
            raise RuntimeError("out of order")
        return real(self, prepared)

    def counted(self: Teacher, prepared: list[Prepared]) -> list[np.ndarray]:
        looked_at.append(len(prepared))
        return real(self, prepared)

    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "detect", fails)
        run = run_of(corpus, "run")
    assert shards(run) != expected
    monkeypatch.setattr(Teacher, "detect", counted)
    retried = retry_failed(run, LaunchOverrides(), stage="distill")
    assert retried == [Retried(stage="distill", num_before=1, num_after=0)]
    assert looked_at == [1]
    assert shards(run) == expected
    assert lines(retry_failed(run, LaunchOverrides())) == ["Nothing had failed."]


def test_a_retry_that_was_killed_is_continued(launch: Launch, corpus: Path) -> None:
    """Killed before the stage did anything. Oracle: what was asked for is still asked for, by the
    retry or by the stage's own command, which ends as if nothing had been."""
    expected = shards(run_of(corpus, "calm"))
    break_pictures(corpus, 2, 5)
    run = run_of(corpus, "run")
    for number in (2, 5):
        draw(corpus, number)
    launch.fails = ["ingest"]
    with pytest.raises(LaunchError):
        retry_failed(run, LaunchOverrides())
    assert len(rewrite_requests(run.images)) == 2
    run_of(corpus, "run")
    assert shards(run) == expected


def test_what_cannot_be_retried_is_reported(launch: Launch, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        retry_failed(RunFolder(tmp_path / "nothing"), LaunchOverrides())
    run = run_of(corpus, "run")
    with pytest.raises(RunError, match="stage is teach; .* ingest and distill"):
        retry_failed(run, LaunchOverrides(), stage="teach")
