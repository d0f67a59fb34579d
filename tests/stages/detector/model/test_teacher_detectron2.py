"""detectron2 itself as a teacher: its net and ours give the same, and what does not fit is named.

Where detectron2 is not importable only the ways that end without it are tested.
"""

from __future__ import annotations

import importlib.util
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2_nets import (
    LABELS,
    photograph,
    small_weights,
    write_config,
    write_weights,
)

from sharding.format.schema import check_objects, object_dtype
from stages.detector.checkpoints.checkpoint_error import CheckpointError
from stages.detector.detectron2_config import Detectron2Config
from stages.detector.detectron2_net import ALLOW_CODE, Detectron2Error, load_net, zoo_folder
from stages.detector.detectron2_teacher import Detectron2Teacher, load_detectron2

needs_detectron2 = pytest.mark.skipif(
    importlib.util.find_spec("detectron2") is None, reason="detectron2 is not installed"
)
CPU = torch.device("cpu")
C4 = "COCO-Detection/faster_rcnn_R_50_C4_3x.yaml"
FPN = "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"
MASK = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
CASCADE = "Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml"
PANOPTIC = "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x.yaml"


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with --allow-code."""
    monkeypatch.setenv(ALLOW_CODE, "1")


@pytest.mark.parametrize("ending", ["", "/", "/."])
def test_a_program_runs_only_where_the_user_said_so(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: a file that the program would write is not there; the message names the option."""
    monkeypatch.delenv(ALLOW_CODE)
    program = tmp_path / "config.py"
    program.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(Detectron2Error, match="^config_file: got .*--allow-code"):
        load_net(Detectron2Config(config_file=f"{program}{ending}", weights="w.pkl"), CPU)
    assert not (tmp_path / "ran").exists()


def test_without_detectron2_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the three parts of a message: what was got, what was expected, what to do."""
    monkeypatch.setitem(sys.modules, "detectron2", None)  # so that importing it fails
    config = Detectron2Config(config_file=C4, weights=str(tmp_path / "none.pkl"))
    with pytest.raises(
        Detectron2Error,
        match="^teacher: got 'detectron2', expected .*ModuleNotFoundError.* boxless convert",
    ):
        load_detectron2(config, CPU)


def test_a_broken_build_is_reported_apart_from_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a compiled part of another torch fails with an OSError, whose text is passed on."""

    def fail(name: str) -> Any:
        raise OSError(f"{name}: undefined symbol")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(Detectron2Error, match="OSError: detectron2: undefined symbol"):
        load_detectron2(Detectron2Config(config_file=C4, weights="w.pkl"), CPU)


@pytest.mark.parametrize(
    "values, field",
    [
        ({"config_file": ""}, "config_file"),
        ({"weights": ""}, "weights"),
        ({"labels": ""}, "labels"),
        ({"num_top": 0}, "num_top"),
    ],
)
def test_a_config_that_cannot_be_is_refused(values: dict[str, Any], field: str) -> None:
    """Oracle: the message begins with the field's name."""
    with pytest.raises(ValueError, match=f"^{field}: got"):
        Detectron2Config(**{"config_file": C4, "weights": "w.pkl", **values})


def weights_for(base: str, config: Path) -> dict[str, np.ndarray]:
    """Weights for a small net of `base`: those of the rule, and detectron2's own random ones for
    the parts that a detector of boxes does not have."""
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    cfg = get_cfg()
    cfg.merge_from_file(str(config))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    torch.manual_seed(0)
    weights = {name: tensor.numpy() for name, tensor in build_model(cfg).state_dict().items()}
    ruled = small_weights(has_pyramid="C4" not in base)
    for name, array in ruled.items():
        part, _, rest = name.partition(".box_")
        if "cascade" not in base or not rest:
            assert weights[name].shape == array.shape
            weights[name] = array
            continue
        kind, _, rest = rest.partition(".")
        for stage in range(3):  # a cascade's boxes are of no class
            own = f"{part}.box_{kind}.{stage}.{rest}"
            weights[own] = array[: len(weights[own])] * (1 + 0.1 * stage)
    return weights


def teacher_of(
    folder: Path, base: str, more: str = "", num_top: int = len(LABELS)
) -> Detectron2Teacher:
    config = write_config(folder, base, more)
    weights = write_weights(folder / "weights.pth", weights_for(base, config))
    names = folder / "labels.txt"
    names.write_text("\n".join(LABELS) + "\n")
    return load_detectron2(
        Detectron2Config(
            config_file=str(config), weights=str(weights), labels=str(names), num_top=num_top
        ),
        CPU,
    )


def predict(folder: Path, picture: np.ndarray) -> Any:
    """detectron2's Instances for an RGB picture, by its own predictor and its own checkpointer."""
    from detectron2.config import get_cfg
    from detectron2.engine import DefaultPredictor

    cfg = get_cfg()
    cfg.merge_from_file(str(folder / "config.yaml"))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", str(folder / "weights.pth")
    return DefaultPredictor(cfg)(picture[:, :, ::-1])["instances"]


@needs_detectron2
@pytest.mark.parametrize("base", [C4, FPN, MASK, CASCADE, PANOPTIC])
def test_objects_are_those_of_its_own_predictor(tmp_path: Path, base: str) -> None:
    """Oracle: DefaultPredictor on the same files: same boxes to the bit, same classes in the same
    order, scores in half precision. Beside others of its size a picture gives the same bytes."""
    teacher = teacher_of(tmp_path, base)
    picture = photograph()
    tensor = torch.from_numpy(picture)
    prepared = teacher.prepare(tensor)
    (array,) = teacher.detect([prepared])
    expected = predict(tmp_path, picture)
    assert len(array) == len(expected) > 20 and len(set(array["label"])) > 2
    check_objects(array)
    np.testing.assert_array_equal(array["box"], expected.pred_boxes.tensor.numpy())
    np.testing.assert_array_equal(array["label"], expected.pred_classes.numpy())
    np.testing.assert_array_equal(array["score"], expected.scores.numpy().astype(np.float16))
    # All of a proposal's classes are in its soft label: a wrong proposal would not hold the score.
    own = array["top_score"][array["top_label"] == array["label"][:, None]]
    np.testing.assert_array_equal(own, array["score"])
    other = teacher.prepare(tensor.flip(1))
    assert teacher.detect([other, prepared])[1].tobytes() == array.tobytes()


@needs_detectron2
@pytest.mark.parametrize("base", [C4, FPN])
def test_features_are_of_the_source_proposal(tmp_path: Path, base: str) -> None:
    """Oracle: the predictor's own layer on a row's feature gives the row's own class the score that
    the row has, as softmax; half precision moves it a little."""
    teacher = teacher_of(tmp_path, base)
    (array,) = teacher.detect([teacher.prepare(torch.from_numpy(photograph()))])
    weights = weights_for(base, tmp_path / "config.yaml")
    predictor = "roi_heads.box_predictor.cls_score."
    logits = (
        array["feature"].astype(np.float64) @ weights[predictor + "weight"].T.astype(np.float64)
        + weights[predictor + "bias"]
    )
    odds = np.exp(logits - logits.max(1, keepdims=True))
    scores = (odds / odds.sum(1, keepdims=True))[np.arange(len(array)), array["label"]]
    np.testing.assert_allclose(scores, array["score"], atol=5e-3)


@needs_detectron2
def test_a_picture_without_objects_gives_no_rows(tmp_path: Path) -> None:
    """Oracle: a threshold that nothing reaches; the dtype is as the teacher says of itself."""
    teacher = teacher_of(tmp_path, FPN, "MODEL: {ROI_HEADS: {SCORE_THRESH_TEST: 1.0}}", num_top=2)
    (array,) = teacher.detect([teacher.prepare(torch.from_numpy(photograph()))])
    assert len(array) == 0
    assert array.dtype == object_dtype(
        feature_size=teacher.feature_size, num_top=2, attributes=False
    )


@needs_detectron2
def test_a_lazy_config_and_the_names_of_its_data_set(tmp_path: Path) -> None:
    """Oracle: the zoo's YAML of the same model has the same layers, so the same weights fit both;
    names are COCO's 80, the first of them person."""
    lazy = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py"
    import detectron2.modeling
    from detectron2.config import get_cfg

    cfg = get_cfg()
    cfg.merge_from_file(str(zoo_folder() / MASK))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    state = detectron2.modeling.build_model(cfg).state_dict()
    weights = write_weights(tmp_path / "w.pth", {k: v.numpy() for k, v in state.items()})
    teacher = load_detectron2(Detectron2Config(config_file=lazy, weights=str(weights)), CPU)
    assert len(teacher.label_names) == 80 and teacher.label_names[0] == "person"
    again = load_detectron2(Detectron2Config(config_file=lazy, weights=str(weights)), CPU)
    assert again.fingerprint == teacher.fingerprint
    picture = torch.from_numpy(photograph()[:64, :48].copy())
    assert teacher.prepare(picture).size == (1067, 800)


@needs_detectron2
def test_the_fingerprint_follows_what_shapes_the_objects(tmp_path: Path) -> None:
    """Oracle: another threshold, other weights or other names give another fingerprint."""

    def changed(name: str, more: str = "", shift: float = 0.0, label: str = "plate") -> str:
        folder = tmp_path / name
        folder.mkdir()
        config = write_config(folder, FPN, more)
        arrays = dict(weights)
        arrays["backbone.fpn_output2.bias"] = arrays["backbone.fpn_output2.bias"] + shift
        (folder / "labels.txt").write_text("\n".join([label, *LABELS[1:]]))
        return load_detectron2(
            Detectron2Config(
                config_file=str(config),
                labels=str(folder / "labels.txt"),
                weights=str(write_weights(folder / "w.pth", arrays)),
            ),
            CPU,
        ).fingerprint

    weights = small_weights(has_pyramid=True)
    plain = changed("plain")
    assert plain == changed("same")
    threshold = "MODEL: {ROI_HEADS: {SCORE_THRESH_TEST: 0.1}}"
    others = {
        changed("threshold", threshold),
        changed("weights", shift=0.01),
        changed("names", label="dish"),
    }
    assert len(others | {plain}) == 4


@needs_detectron2
@pytest.mark.parametrize(
    "base, more, reason",
    [
        ("COCO-Detection/retinanet_R_50_FPN_1x.py", "", "RetinaNet, which has no box head"),
        ("COCO-Detection/rpn_R_50_FPN_1x.yaml", "", "ProposalNetwork, which has no box head"),
        ("Misc/semantic_R_50_FPN_1x.yaml", "", "SemanticSegmentor, which has no box head"),
        ("COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml", "", "takes its proposals from a file"),
        (
            FPN,
            "{MODEL: {ROI_HEADS: {NAME: RROIHeads}, ROI_BOX_HEAD: {POOLER_TYPE: ROIAlignRotated, "
            "BBOX_REG_WEIGHTS: [10, 10, 5, 5, 1]}, PROPOSAL_GENERATOR: {NAME: RRPN}, RPN: "
            "{HEAD_NAME: StandardRPNHead, BBOX_REG_WEIGHTS: [1, 1, 1, 1, 1]}, ANCHOR_GENERATOR: "
            "{NAME: RotatedAnchorGenerator}}}",
            "rotated boxes",
        ),
    ],
)
def test_nets_without_upright_box_features_are_refused(
    tmp_path: Path, base: str, more: str, reason: str
) -> None:
    """Oracle: the reason for each kind of detectron2's zoo that cannot teach."""
    config = zoo_folder() / base if base.endswith(".py") else write_config(tmp_path, base, more)
    weights = write_weights(tmp_path / "w.pth", {})
    with pytest.raises(Detectron2Error, match=f"^config_file: got .*{reason}"):
        load_net(Detectron2Config(config_file=str(config), weights=str(weights)), CPU)


@needs_detectron2
@pytest.mark.parametrize(
    "name, text, reason",
    [
        ("nowhere.yaml", None, "no such file"),
        ("odd.yaml", "MODEL: {NO_SUCH_KEY: 1}", "KeyError"),
        ("unsafe.yaml", "OUTPUT_DIR: !!python/object/apply:os.getcwd []", "ConstructorError"),
        ("broken.yaml", "MODEL: [", "ParserError"),
        ("broken.py", "raise OSError('no')", "OSError: no"),
        ("empty.py", "model = 1", "dataloader"),
    ],
)
def test_configs_that_cannot_be_read_are_refused(
    tmp_path: Path, name: str, text: str | None, reason: str
) -> None:
    """Oracle: the reason for each; a YAML file that names Python objects builds none of them."""
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(Detectron2Error, match=f"(?s)^config_file: got .*{reason}"):
        load_net(Detectron2Config(config_file=str(tmp_path / name), weights="w.pth"), CPU)


@needs_detectron2
@pytest.mark.parametrize(
    "fault, reason",
    [
        ("missing", "1 missing: backbone.fpn_output2.bias"),
        ("left over", "1 left over: backbone.res6.bias"),
        ("shape", r"of another shape: backbone.fpn_output2.bias \(3,\) for \(32,\)"),
        ("nan", "1 with NaN or infinity: backbone.fpn_output2.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, fault: str, reason: str) -> None:
    """Oracle: the key that was spoilt."""
    weights, key = small_weights(has_pyramid=True), "backbone.fpn_output2.bias"
    if fault == "missing":
        del weights[key]
    elif fault == "left over":
        weights["backbone.res6.bias"] = np.zeros(3, np.float32)
    else:
        weights[key] = np.zeros(3, np.float32) if fault == "shape" else weights[key] * np.nan
    config = write_config(tmp_path, FPN)
    path = write_weights(tmp_path / "w.pth", weights)
    with pytest.raises(Detectron2Error, match=f"^weights: got .*{reason}"):
        load_net(Detectron2Config(config_file=str(config), weights=str(path)), CPU)


class _Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must never run",))


@needs_detectron2
def test_a_hostile_pickle_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: a .pkl that would print says nothing, and is refused."""
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"model": _Hostile(), "__author__": "x"}))
    config = write_config(tmp_path, FPN)
    with pytest.raises(CheckpointError):
        load_net(Detectron2Config(config_file=str(config), weights=str(path)), CPU)
    assert "never run" not in capsys.readouterr().out


@needs_detectron2
def test_names_that_do_not_match_the_classes_are_refused(tmp_path: Path) -> None:
    """Oracle: the two numbers, and the path of a file that is not there."""
    config = write_config(tmp_path, FPN)
    path = write_weights(tmp_path / "w.pth", small_weights(has_pyramid=True))
    (tmp_path / "labels.txt").write_text("plate\ncup\n")
    for labels, reason in (
        (tmp_path / "labels.txt", "got 2 names .* expected 5"),
        (None, "got 80 names from coco_2017_val, expected 5"),
        (tmp_path / "none.txt", "No such file"),
    ):
        with pytest.raises(Detectron2Error, match=f"^labels: .*{reason}"):
            load_detectron2(
                Detectron2Config(
                    config_file=str(config),
                    weights=str(path),
                    labels=None if labels is None else str(labels),
                ),
                CPU,
            )
