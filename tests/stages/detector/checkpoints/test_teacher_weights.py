"""Checkpoints of every known kind become a net, and what cannot be one is refused by name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from golden_nets import family_of, net_of, net_with, weights_of
from test_teacher_caffe import make_weights as caffe_weights

from stages.detector.checkpoints.checkpoint_error import CheckpointError
from stages.detector.checkpoints.families import FAMILIES, Family
from stages.detector.checkpoints.weights import num_names, read_net
from stages.detector.net_config import ResNetConfig
from stages.detector.net_json import net_from_json

Arrays = dict[str, np.ndarray]
PREDICTOR = "roi_heads.box_predictor"
D2, CAFFE, AIRSPLAY = (FAMILIES[name] for name in ("vg-d2", "vg-caffe", "vg-caffe-airsplay"))


def airsplay_weights() -> Arrays:
    """The caffe checkpoint of the other port: detectron2's conventions, and names of its own."""
    random = np.random.default_rng(0)
    weights = caffe_weights(0)
    del weights["proposal_generator.anchor_generator.cell_anchors.0"]
    for name, rows in (("objectness_logits", 12), ("anchor_deltas", 48)):
        for part in ("weight", "bias"):
            key = f"proposal_generator.rpn_head.{name}.{part}"
            shape = (rows, *weights[key].shape[1:])
            weights[key] = random.standard_normal(shape).astype(np.float32)
    for part in ("weight", "bias"):
        weights[f"{PREDICTOR}.bbox_pred.{part}"] = weights[f"{PREDICTOR}.bbox_pred.{part}"][4:]
    names = {"cls_embed": "cls_embedding", "attr_linear1": "fc_attr", "attr_linear2": "attr_score"}
    for old, new in names.items():
        for part in ("weight", "bias"):
            if f"{PREDICTOR}.{old}.{part}" in weights:
                weights[f"{PREDICTOR}.{new}.{part}"] = weights.pop(f"{PREDICTOR}.{old}.{part}")
    return weights


def test_sizes_come_from_the_shapes() -> None:
    """Oracle: the table of widths and depths behind the golden files, by hand."""
    config, state = read_net(weights_of("c4_attributes"), D2)
    backbone = config.backbone
    assert backbone == dataclasses.replace(
        D2.backbone,
        stem_width=16,
        stage_widths=(32, 64, 128, 256),
        bottleneck_widths=(8, 16, 32, 64),
        num_blocks=(3, 4, 6, 3),
        fpn_width=None,
    )
    assert (config.boxes.feature_size, config.boxes.num_bins) == (256, 14)
    assert (config.boxes.attribute_embedding_size, config.boxes.attribute_hidden_size) == (16, 32)
    assert config.proposals.hidden_width == 128 and config.proposals.num_anchors == 15
    assert num_names(config, state) == (20, 12)
    assert config.picture == D2.picture and config.choice == D2.choice

    config, state = read_net(weights_of("fpn"), FAMILIES["detectron2"])
    assert (config.backbone.strides_px, config.boxes.feature_size) == ((4, 8, 16, 32, 64), 64)
    assert config.proposals.num_levels == 5 and num_names(config, state) == (20, 0)

    config, state = read_net(caffe_weights(0), CAFFE)
    assert num_names(config, state) == (6, 4) and config.boxes.has_no_attribute


def test_a_config_goes_through_json() -> None:
    """Oracle: the config; anchors of the checkpoint come back as the same numbers."""
    config, _ = read_net(caffe_weights(0), CAFFE)
    assert net_from_json(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_airsplays_attributes_leave_none_out_of_the_softmax() -> None:
    """Oracle: its notebook, softmax(logits[..., :-1]) of linear layers over feature and embedding
    of the best class, background (the last) among them."""
    weights = airsplay_weights()
    config, state = read_net(weights, AIRSPLAY)
    assert num_names(config, state) == (6, 4) and not config.boxes.has_no_attribute
    features = torch.randn(60, 40, generator=torch.Generator().manual_seed(0))

    def layer(name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (
            torch.from_numpy(weights[f"{PREDICTOR}.{name}.{part}"]) for part in ("weight", "bias")
        )
        return torch.nn.functional.linear(x, weight, bias)

    labels = layer("cls_score", features).argmax(1)
    assert (labels == 6).any() and (labels != 6).any()
    embedded = torch.from_numpy(weights[f"{PREDICTOR}.cls_embedding.weight"])[labels]
    hidden = layer("fc_attr", torch.cat([features, embedded], 1)).relu()
    expected = layer("attr_score", hidden)[:, :-1].softmax(1)
    model = net_with(config, state)
    assert model.attribute_predictor is not None
    logits, _ = model.box_predictor(features)
    got = model.attribute_predictor.probabilities(features, logits.argmax(1))
    torch.testing.assert_close(got, expected)


def grouped_weights() -> Arrays:
    """The golden pyramid with four groups in each 3x3 convolution of its ResNet."""
    return {
        name: array[:, : array.shape[1] // 4] if name.endswith("conv2.weight") else array
        for name, array in weights_of("fpn").items()
    }


def test_groups_are_read_and_agree_with_the_family() -> None:
    """Oracle: the number of groups, by hand; a family of the other kind refuses them, as its
    stride stands elsewhere."""
    config, state = read_net(grouped_weights(), FAMILIES["detectron2-x101"])
    assert isinstance(config.backbone, ResNetConfig)
    assert (config.backbone.groups, config.backbone.stride_in_1x1) == (4, False)
    (found,) = net_with(config, state).find(torch.zeros(1, 3, 64, 64), [(64, 64)])
    assert found.features.shape[1] == 64
    with pytest.raises(CheckpointError, match="got convolutions in 4 groups, expected a ResNet"):
        read_net(grouped_weights(), FAMILIES["detectron2"])
    with pytest.raises(CheckpointError, match="got convolutions in 1 groups, expected a ResNeXt"):
        read_net(weights_of("fpn"), FAMILIES["detectron2-x101"])


def test_what_is_beside_the_net_is_passed_over() -> None:
    """Oracle: the same state without it: counters, other heads, and pixels and anchors that are
    those of the family; half precision is read as what it is."""
    family, weights = family_of("c4"), weights_of("c4")
    anchors = np.array([[-22.627417, -11.313708, 22.627417, 11.313708]], np.float32)
    config, state = read_net(weights, family)
    cell = torch.tensor([0.5, 1, 2]).sqrt()
    sizes = torch.tensor([32.0, 64, 128, 256, 512])[:, None]
    half = torch.stack([sizes / cell, sizes * cell], -1).view(-1, 2) / 2
    more = {
        **weights,
        "roi_heads.mask_head.deconv.weight": np.zeros((2, 2), np.float32),
        "roi_heads.keypoint_head.score_lowres.weight": np.full((1,), np.nan, np.float32),
        "backbone.stem.conv1.norm.num_batches_tracked": np.array(3),
        "pixel_mean": np.array([103.53, 116.28, 123.675], np.float32).reshape(3, 1, 1),
        "pixel_std": np.ones((3, 1, 1), np.float32),
        "proposal_generator.anchor_generator.cell_anchors.0": torch.cat([-half, half], 1).numpy(),
    }
    assert np.allclose(more["proposal_generator.anchor_generator.cell_anchors.0"][:1], anchors)
    again, same = read_net(more, family)
    assert again == config and all(torch.equal(same[name], state[name]) for name in state)
    halves = {name: array.astype(np.float16) for name, array in weights.items()}
    _, rough = read_net(halves, family)
    name = "box_predictor.cls_score.weight"
    assert rough[name].dtype == torch.float32
    assert torch.equal(rough[name], state[name].half().float())


def without(name: str) -> Callable[[Arrays], Arrays]:
    return lambda weights: {key: array for key, array in weights.items() if key != name}


def with_array(name: str, array: np.ndarray) -> Callable[[Arrays], Arrays]:
    return lambda weights: {**weights, name: array}


def with_nan(name: str) -> Callable[[Arrays], Arrays]:
    def spoil(weights: Arrays) -> Arrays:
        array = weights[name].copy()
        array.flat[-1] = np.nan
        return {**weights, name: array}

    return spoil


ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
LONG = "roi_heads.res5.2.conv2.weight"


@pytest.mark.parametrize(
    "change, reported",
    [
        (without(LONG), f"1 keys missing: {LONG}"),
        (without("roi_heads.res5.1.conv3.norm.bias"), "missing: roi_heads.res5.1.conv3.norm.bias"),
        (without("backbone.stem.conv1.weight"), "no backbone.stem.conv1.weight"),
        (without(f"{PREDICTOR}.bbox_pred.bias"), f"missing: {PREDICTOR}.bbox_pred.bias"),
        (lambda weights: {}, "no "),
        (
            with_array(LONG, np.zeros((64, 64, 1, 1), np.float32)),
            r"1 arrays of another shape or kind: .*float32 \[64, 64, 1, 1\], expected floats "
            r"\[64, 64, 3, 3\]",
        ),
        (with_array(LONG, np.zeros((64, 64, 3, 3), np.int64)), "another shape or kind: .*int64"),
        (
            with_array(f"{PREDICTOR}.cls_score.weight", np.zeros(20, np.float32)),
            r"cls_score.weight of shape \(20,\), expected the 2 axes",
        ),
        (
            with_array(f"{PREDICTOR}.bbox_pred.weight", np.zeros((4, 256), np.float32)),
            r"bbox_pred.weight \(float32 \[4, 256\], expected floats \[80, 256\]\)",
        ),
        (
            with_array("backbone.res2.0.conv9.weight", np.zeros(3, np.float32)),
            "1 keys of no known part: backbone.res2.0.conv9.weight",
        ),
        (with_nan(LONG), f"1 arrays with numbers that are not finite: {LONG}"),
        (
            with_nan("backbone.res3.1.conv1.norm.running_var"),
            "not finite: backbone.res3.1.conv1.nor",
        ),
        (
            with_array("backbone.res3.1.conv1.norm.running_var", np.full(16, -2, np.float32)),
            "not finite: backbone.res3.1.conv1.norm.running_var",
        ),
        (
            with_array("pixel_mean", np.array([123.675, 116.28, 103.53], np.float32)),
            r"got pixel_mean \[103.*red green blue.*expected picture.pixel_mean",
        ),
        (
            with_array("pixel_std", np.array([57.375, 57.12, 58.395], np.float32)),
            "expected picture.pixel_std",
        ),
        (
            with_array(ANCHORS, np.ones((15, 4), np.float32)),
            "cell_anchors.0 .*proposals.anchor_sizes_px",
        ),
        (with_array("backbone.stem.norm.weight", np.ones(3, np.float32)), "pre-activation"),
    ],
)
def test_what_is_no_such_checkpoint_is_refused(
    change: Callable[[Arrays], Arrays], reported: str
) -> None:
    """Oracle: the message names the key, what was got and expected, and the family."""
    with pytest.raises(CheckpointError, match=reported) as caught:
        read_net(change(weights_of("c4")), family_of("c4"))
    assert "'detectron2'" in str(caught.value) and "another" in str(caught.value)


@pytest.mark.parametrize(
    "weights, family, reported",
    [
        (lambda: weights_of("fpn"), D2, "a feature pyramid .*expected a C4 model"),
        (lambda: caffe_weights(0), D2, "of 6 anchors a cell, expected proposals with 15"),
        (airsplay_weights, CAFFE, "keys missing: .*cell_anchors.0"),
        (lambda: without(ANCHORS)(caffe_weights(0)), CAFFE, "missing: .*cell_anchors.0"),
        (lambda: weights_of("c4"), AIRSPLAY, "of 15 anchors a cell, expected proposals with 12"),
    ],
)
def test_a_checkpoint_of_another_family_is_refused(
    weights: Callable[[], Arrays], family: Family, reported: str
) -> None:
    """Oracle: the message tells what is at odds with the family that was named."""
    with pytest.raises(CheckpointError, match=reported):
        read_net(weights(), family)


def test_many_faults_are_reported_together_and_in_bounds() -> None:
    """Oracle: some names of each kind, and the count of the rest."""
    weights = {
        name: array
        for name, array in weights_of("c4").items()
        if ".norm.bias" not in name and ".res3." not in name or "0.conv" in name
    }
    weights["what.is.this"] = np.zeros(1, np.float32)
    with pytest.raises(CheckpointError, match="keys missing: .* and [0-9]+ more; .*what.is.this"):
        read_net(weights, family_of("c4"))


def test_folding_is_exact() -> None:
    """Oracle: convolution, then FrozenBatchNorm2d's formula with its eps, in double precision."""
    weights = weights_of("c4")
    stem = net_of(weights, family_of("c4")).backbone.get_submodule("stem.conv1")
    random = torch.Generator().manual_seed(0)
    picture = torch.randn(1, 3, 32, 32, generator=random) * 60
    name = "backbone.stem.conv1"
    scale, shift, mean, variance = (
        torch.from_numpy(weights[f"{name}.norm.{part}"]).double()[:, None, None]
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    hidden = torch.nn.functional.conv2d(
        picture.flip(1).double(),
        torch.from_numpy(weights[f"{name}.weight"]).double(),
        stride=2,
        padding=3,
    )
    expected = scale * (hidden - mean) / (variance + 1e-5).sqrt() + shift
    with torch.no_grad():
        torch.testing.assert_close(stem(picture).double(), expected, rtol=1e-5, atol=1e-5)
