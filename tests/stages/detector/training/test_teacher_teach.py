"""`stages.detector.training.train` from shards to a teacher: it learns, stops, resumes, refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from teacher_scenes import (
    ATTRIBUTES,
    LABELS,
    TEACH,
    draw,
    look,
    sample_of,
    write_samples,
    write_scenes,
)

from sharding.format.catalog import catalog_sha256
from sharding.format.schema import check_objects
from sharding.writing.atomic import sha256_of
from stages.detector.teacher_folder import TeacherError, load_teacher
from stages.detector.training import train as teach_file
from stages.detector.training.config import TeachConfig
from stages.detector.training.labeled_pictures import NO_ATTRIBUTE, LabeledPictures
from stages.detector.training.train import learning_rate, teach
from stages.detector.training.training_set import TrainingSet
from stages.detector.training.training_step import TeachError

CPU = torch.device("cpu")
WHOLE = [
    "CARD.md",
    "config.json",
    "metrics.jsonl",
    "model.safetensors",
    "names.json",
    "scores.json",
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("teach") / "images", num_train=20, num_heldout=5)


def labelled_of(images: Path, split: str = "train") -> LabeledPictures:
    return LabeledPictures(images, split, label_names=LABELS, attribute_names=ATTRIBUTES)


def metrics_of(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
    return lines


def test_it_learns_a_few_pictures_by_heart(tmp_path: Path) -> None:
    """Oracle: AP50 and attribute accuracy near 1 on the very pictures it was trained on, and the
    boxes of `draw` where the teacher's best objects lie."""
    train = [sample_of(f"p{seed}", *draw(seed)) for seed in range(6)]
    again = [dataclasses.replace(sample, key=f"again-{sample.key}") for sample in train]
    folder = write_samples(tmp_path / "images", {"train": [train], "heldout": [again]})
    config = dataclasses.replace(
        TEACH,
        num_steps=120,
        micro_batch_size=6,
        warmup_steps=10,
        checkpoint_every_steps=1000,
        log_every_steps=50,
    )
    teach(config, seed=0, images=folder, out=tmp_path / "out")
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["ap50"]["value"] > 0.95
    assert scores["attribute_accuracy"]["value"] > 0.95
    assert set(scores["ap50_by_label"]) == set(LABELS)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == WHOLE
    picture, truth = draw(0)
    (objects,) = look(load_teacher(tmp_path / "out"), [torch.from_numpy(picture)])
    boxes = sorted(objects["box"][:2].tolist())
    assert (
        sum(abs(a - b) for box, true in zip(boxes, truth["boxes"]) for a, b in zip(box, true)) < 16
    )


class Stop(BaseException):
    """As a kill does it: nothing in the code under test catches this."""


def test_stopped_anywhere_it_ends_with_the_same_weights(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: a run that nobody stopped; weights byte for byte, every metrics line once. Stopped
    before, right after and between checkpoints (every 2 steps), again and again."""
    teach(TEACH, seed=3, images=images, out=tmp_path / "whole")
    take_step, stops = teach_file.take_step, [0, 1, 2, 3, 5, 5]

    def step_or_stop(*args: Any) -> dict[str, float]:
        if stops and args[-1] == stops[0]:
            stops.pop(0)
            raise Stop
        return take_step(*args)

    monkeypatch.setattr(teach_file, "take_step", step_or_stop)
    while stops:
        with pytest.raises(Stop):
            teach(TEACH, seed=3, images=images, out=tmp_path / "stopped")
    with open(tmp_path / "stopped" / "metrics.jsonl", "a") as metrics:
        metrics.write('{"step": 5, "los')  # what a kill in the middle of a line leaves
    teach(TEACH, seed=3, images=images, out=tmp_path / "stopped")
    for name in ("model.safetensors", "config.json"):
        whole, stopped = ((tmp_path / run / name).read_bytes() for run in ("whole", "stopped"))
        assert whole == stopped, name
    assert metrics_of(tmp_path / "stopped") == metrics_of(tmp_path / "whole")
    assert [line["step"] for line in metrics_of(tmp_path / "whole")] == [1, 2, 3, 4, 5, 6]


def test_stopped_while_it_is_scored_it_takes_no_step_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: a run that nobody stopped; the last checkpoint holds all that training did."""

    def stop(*args: object, **settings: object) -> None:
        raise Stop

    teach(TEACH, seed=3, images=images, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(teach_file, "_score", stop)
        with pytest.raises(Stop):
            teach(TEACH, seed=3, images=images, out=tmp_path / "stopped")
    monkeypatch.setattr(teach_file, "take_step", lambda *args: pytest.fail("took a step"))
    teach(TEACH, seed=3, images=images, out=tmp_path / "stopped")
    for run in ("whole", "stopped"):
        assert sorted(path.name for path in (tmp_path / run).iterdir()) == WHOLE
    whole, stopped = ((tmp_path / run / "config.json").read_bytes() for run in ("whole", "stopped"))
    assert whole == stopped


SCRIPT = """
import sys
from pathlib import Path
import torch
from teacher_scenes import TEACH
from stages.detector.training.train import teach
torch.set_num_threads(1)
teach(TEACH, seed=3, images=Path(sys.argv[1]), out=Path(sys.argv[2]))
"""


def test_killed_it_goes_on(images: Path, tmp_path: Path) -> None:
    """Oracle: a run in another process that nobody killed; SIGKILL comes as soon as the first
    checkpoint is there, whatever is being written then."""
    root = Path(__file__).parents[4]
    paths = os.pathsep.join([str(root), str(Path(__file__).parents[2] / "fixtures")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}

    def start(out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(images), str(out)],
            env=environment,
            stdout=subprocess.DEVNULL,
        )

    process = start(tmp_path / "killed")
    while not (tmp_path / "killed" / "checkpoint.safetensors").exists():
        assert process.poll() is None, "it ended before its first checkpoint"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "scores.json").exists()
    for out in ("killed", "whole"):
        assert start(tmp_path / out).wait() == 0
    killed, whole = (
        (tmp_path / out / "model.safetensors").read_bytes() for out in ("killed", "whole")
    )
    assert killed == whole
    assert metrics_of(tmp_path / "killed") == metrics_of(tmp_path / "whole")


def test_done_is_done_and_other_settings_start_over(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: no step is taken for a finished teacher; another seed gives another teacher in the
    same folder, without a trace of a checkpoint that belongs to other settings."""
    out = tmp_path / "out"
    short = dataclasses.replace(TEACH, num_steps=2)
    teach(short, seed=0, images=images, out=out)
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(teach_file, "take_step", lambda *args: pytest.fail("took a step"))
        teach(short, seed=0, images=images, out=out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    teach(short, seed=1, images=images, out=out)
    teach(short, seed=1, images=images, out=tmp_path / "fresh")
    assert (out / "model.safetensors").read_bytes() != first["model.safetensors"]
    assert metrics_of(out) == metrics_of(tmp_path / "fresh")


def test_a_checkpoint_that_is_none_is_not_overwritten(images: Path, tmp_path: Path) -> None:
    """Oracle: the error names the file and what to do; the file stays."""
    tmp_path.joinpath("checkpoint.safetensors").write_bytes(b"something else")
    with pytest.raises(ValueError, match="checkpoint.safetensors: got .* remove the file"):
        teach(TEACH, seed=0, images=images, out=tmp_path)
    assert tmp_path.joinpath("checkpoint.safetensors").read_bytes() == b"something else"


@pytest.mark.parametrize(
    "labels, truths",
    [
        ([], [None, None]),
        (LABELS, [None, None]),
        (LABELS, [{"boxes": [], "labels": [], "attributes": []}, None]),
    ],
)
def test_pictures_without_boxes_make_a_null_teacher(
    labels: list[str], truths: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: the screen says so and which sources have boxes; what is loaded sees nothing."""
    samples = [sample_of(f"p{i}", draw(i)[0], truth) for i, truth in enumerate(truths)]
    folder = write_samples(tmp_path / "images", {"train": [samples]}, label_names=labels)
    teach(TEACH, seed=0, images=folder, out=tmp_path / "out")
    said = " ".join(capsys.readouterr().out.split())
    assert "no picture has true boxes" in said and "ingest.instances" in said
    teacher = load_teacher(tmp_path / "out")
    assert teacher.label_names == []
    (objects,) = look(teacher, [torch.zeros(20, 30, 3, dtype=torch.uint8)])
    assert len(objects) == 0
    check_objects(objects)


def test_a_given_teacher_is_taken_as_it_is(images: Path, tmp_path: Path) -> None:
    """Oracle: the fingerprint of the teacher that was given; a folder without one is refused."""
    few = dataclasses.replace(TEACH, num_steps=2)
    teach(few, seed=0, images=images, out=tmp_path / "first")
    given = dataclasses.replace(TEACH, given=str(tmp_path / "first"))
    teach(given, seed=5, images=images, out=tmp_path / "second")
    first, second = (load_teacher(tmp_path / name) for name in ("first", "second"))
    assert first.fingerprint == second.fingerprint
    nothing = dataclasses.replace(TEACH, given=str(tmp_path / "nothing"))
    with pytest.raises(TeacherError, match="nothing.*boxless teach"):
        teach(nothing, seed=0, images=images, out=tmp_path / "third")


def test_a_loss_that_is_not_finite_stops_it(images: Path, tmp_path: Path) -> None:
    """Oracle: the message names the step, the pictures and the fix; the last checkpoint stays.
    A learning rate that no net survives brings it about."""
    config = dataclasses.replace(
        TEACH, learning_rate=1e30, warmup_steps=0, clip_norm=1e30, num_steps=50
    )
    with pytest.raises(TeachError, match=r"step \d+: got losses .* on pictures train-\d+.*lower"):
        teach(config, seed=0, images=images, out=tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_weights_that_are_not_finite_are_not_saved(images: Path, tmp_path: Path) -> None:
    """Oracle: a step whose losses and gradients were finite, and whose weights are not: the message
    names it, and neither a checkpoint nor a best nor a teacher holds them."""
    config = dataclasses.replace(
        TEACH,
        learning_rate=1e38,
        weight_decay=1e6,
        warmup_steps=0,
        clip_norm=1e30,
        checkpoint_every_steps=1,
        evaluate_every_steps=1,
    )
    for _ in range(2):  # started again it begins at step 0
        with pytest.raises(TeachError, match="step 1: got weights that are not finite .*lower"):
            teach(config, seed=0, images=images, out=tmp_path)
        assert not list(tmp_path.glob("*.safetensors"))


def test_without_heldout_boxes_there_is_a_teacher_and_no_score(tmp_path: Path) -> None:
    """Oracle: scores.json with null; unlabelled pictures are left out of training, pictures of
    mixed sizes and one without objects are not."""
    sizes = [(48, 48), (48, 96), (96, 48), (60, 50), (48, 48)]
    samples = [sample_of(f"p{i}", *draw(i, height=h, width=w)) for i, (h, w) in enumerate(sizes)]
    samples.append(sample_of("empty", draw(9)[0], {"boxes": [], "labels": []}))
    samples.append(sample_of("unlabelled", draw(10)[0], None))
    folder = write_samples(tmp_path / "images", {"train": [samples]})
    assert len(labelled_of(folder)) == 6
    teach(dataclasses.replace(TEACH, num_steps=8), seed=0, images=folder, out=tmp_path / "out")
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["ap50"] == {"value": None, "chance": None, "baseline": None}
    assert scores["num_pictures"] == 0


def test_batches_hold_pictures_with_their_boxes(images: Path) -> None:
    """Oracle: in every batch of two epochs, mirrored or not, the pixels at the middle of a true
    box have its attribute's colour; every picture comes once an epoch; half are mirrored."""
    labelled = labelled_of(images)
    training_set = TrainingSet(labelled, TEACH, seed=0, device=CPU)
    true_boxes = {labelled.key(i): labelled.truth(i).boxes for i in range(len(labelled))}
    num_flipped, keys = 0, []
    for step in range(10):
        batch = training_set.batch(step)
        keys += batch.keys
        for key, picture, truth in zip(batch.keys, batch.pictures, batch.truths):
            num_flipped += not torch.equal(truth.boxes, true_boxes[key])
            for (x0, y0, x1, y1), attribute in zip(truth.boxes.tolist(), truth.attributes):
                red, green, _ = picture[:, int(y0 + y1) // 2, int(x0 + x1) // 2]
                assert (red > green) == (ATTRIBUTES[attribute] == "red")
    assert sorted(keys) == sorted([*true_boxes] * 2)
    assert 10 < num_flipped < 30


def test_boxes_are_scaled_with_their_picture(tmp_path: Path) -> None:
    """Oracle: by hand for a picture of 30 x 200 that becomes 14 x 96, not quite in proportion, and
    one that stays; a batch pads both. The cache's bound changes nothing."""
    big: dict[str, list[Any]] = {
        "boxes": [[50.0, 6.0, 100.0, 24.0]],
        "labels": ["bar"],
        "attributes": [None],
    }
    small: dict[str, list[Any]] = {
        "boxes": [[3.0, 4.0, 5.0, 9.0]],
        "labels": ["block"],
        "attributes": ["green"],
    }
    folder = write_samples(
        tmp_path / "images",
        {
            "train": [
                [
                    sample_of("big", draw(0, height=60, width=400)[0][:30, :200], big),
                    sample_of("small", draw(1)[0], small),
                ]
            ]
        },
    )
    config = dataclasses.replace(TEACH, flip=False, shape_step_px=1000)
    sets = [
        TrainingSet(
            labelled_of(folder), dataclasses.replace(config, cache_bytes=cache), seed=0, device=CPU
        )
        for cache in (0, 14 * 96 * 3, 1 << 20)
    ]
    for _ in range(2):  # the second time from memory, where there is room
        batches = [some.batch(0) for some in sets]
        assert all(torch.equal(batch.pictures, batches[0].pictures) for batch in batches)
    batch = batches[0]
    reported = {
        key: (size, truth) for key, size, truth in zip(batch.keys, batch.sizes, batch.truths)
    }
    assert batch.pictures.shape == (2, 3, 48, 96)
    assert reported["big"][0] == (14, 96) and reported["small"][0] == (48, 48)
    assert reported["big"][1].boxes[0].tolist() == pytest.approx([24, 2.8, 48, 11.2])
    assert reported["small"][1].boxes.tolist() == [[3, 4, 5, 9]]
    assert reported["big"][1].attributes.tolist() == [NO_ATTRIBUTE]
    assert reported["small"][1].labels.tolist() == [1]


def test_an_unknown_name_in_a_truth_is_refused(tmp_path: Path) -> None:
    """Oracle: the message names picture, name and what was expected."""
    truth: dict[str, list[Any]] = {
        "boxes": [[0.0, 0, 9, 9]],
        "labels": ["zebra"],
        "attributes": [None],
    }
    folder = write_samples(tmp_path / "images", {"train": [[sample_of("p0", draw(0)[0], truth)]]})
    with pytest.raises(ValueError, match="picture p0: .*'zebra'.*label_names"):
        labelled_of(folder)


def test_the_learning_rate_rises_and_falls() -> None:
    """Oracle: a line to the peak, the middle of the cosine, and its end, by hand."""
    config = TeachConfig(num_steps=110, warmup_steps=10, learning_rate=0.4)
    rates = [learning_rate(step, config) for step in range(110)]
    assert rates[0] == pytest.approx(0.04) and rates[4] == pytest.approx(0.2)
    assert rates[9] == rates[10] == pytest.approx(0.4) and rates[60] == pytest.approx(0.2)
    assert rates[-1] == pytest.approx(0.2 * (1 + math.cos(math.pi * 0.99)))
    assert learning_rate(0, dataclasses.replace(config, warmup_steps=0)) == 0.4


@pytest.mark.parametrize(
    "field, value",
    [
        ("num_steps", 0),
        ("learning_rate", 0.0),
        ("momentum", 1.0),
        ("anchor_iou_high", 0.2),
        ("region_share", 0.0),
        ("cache_bytes", -1),
        ("warmup_steps", -1),
    ],
)
def test_training_checks_its_fields(field: str, value: Any) -> None:
    """Oracle: a ValueError that begins with the field's name and tells what is expected."""
    with pytest.raises(ValueError, match=f"^{field}: got .*, expected "):
        dataclasses.replace(TEACH, **{field: value})


def test_the_last_steps_take_sizes_of_their_own(images: Path) -> None:
    """Oracle: `scale_jitter` by hand. Pictures of 48 pixels are 24 or 48 high at first, 96 in the
    last two steps."""
    config = dataclasses.replace(
        TEACH,
        num_steps=12,
        scale_jitter=(0.5, 1.0),
        late_steps=2,
        late_scale_jitter=(2.0,),
    )
    training_set = TrainingSet(labelled_of(images), config, seed=0, device=CPU)
    heights = [training_set.batch(step).sizes[0][0] for step in range(12)]
    assert set(heights[:10]) == {24, 48} and heights[10:] == [96, 96]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"late_steps": 2},
            "late_scale_jitter: got \\(\\), expected factors above 0 with late_steps",
        ),
        ({"late_scale_jitter": (1.0,)}, "late_scale_jitter: got \\(1.0,\\), expected"),
        ({"late_steps": 800, "late_scale_jitter": (1.0,)}, "late_steps: got 800, expected 0 to"),
    ],
)
def test_late_sizes_are_checked(settings: dict[str, Any], message: str) -> None:
    """Oracle: the message, which names the field."""
    with pytest.raises(ValueError, match=message):
        TeachConfig(**settings)


def test_settings_that_are_off_leave_what_was_trained_before(images: Path) -> None:
    """Oracle: the fingerprint with the fields taken out by hand."""
    of = teach_file._fingerprint(TEACH, 0, images)
    settings = dataclasses.asdict(TEACH)
    for name in ("late_steps", "late_scale_jitter"):
        del settings[name]
    del settings["net"]["boxes"]["second_classifier"]
    parts = {"config": settings, "seed": 0, "images": catalog_sha256(images)}
    assert of == sha256_of(parts)
