"""Full-size nets in training, at a small size: published weights, frozen parts, the best kept."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from teacher_scenes import ATTRIBUTES, LABELS, TEACH, write_scenes
from torch import Tensor
from transformers import ResNetConfig as PublishedConfig
from transformers import ResNetModel

from stages.detector.checkpoints.checkpoint_error import CheckpointError
from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.net_config import BoxConfig, ProposalConfig, ResNetConfig, TeacherConfig
from stages.detector.teacher_folder import load_teacher
from stages.detector.training import train as train_file
from stages.detector.training.config import TeachConfig
from stages.detector.training.initial_weights import freeze, load_initial_weights
from stages.detector.training.norms.frozen_norm import folded
from stages.detector.training.train import Names, build_model, teach

WIDTHS = (16, 24, 32, 40)
LEVELS = ((16.0,), (24.0,), (32.0,), (48.0,))


def resnet(block: str, *, fpn: bool = True) -> ResNetConfig:
    return ResNetConfig(
        block=block,  # type: ignore[arg-type]
        stem_width=8,
        stage_widths=WIDTHS,
        bottleneck_widths=(4, 6, 8, 10),
        num_blocks=(1, 2, 1, 1),
        stride_in_1x1=True,
        fpn_width=12 if fpn else None,
        fpn_finest=3,
    )


def net(block: str = "bottleneck", *, fpn: bool = True) -> TeacherConfig:
    return dataclasses.replace(
        TEACH.net,
        backbone=resnet(block, fpn=fpn),
        proposals=ProposalConfig(
            anchor_sizes_px=LEVELS if fpn else ((16.0, 32.0),), num_candidates=32, num_proposals=16
        ),
        boxes=BoxConfig(
            num_bins=3,
            feature_size=20 if fpn else WIDTHS[-1],
            head="fc" if fpn else "res5",
            canonical_box_px=48.0,
            class_agnostic=fpn,
        ),
    )


def publish(folder: Path, block: str) -> ResNetModel:
    """A random transformers ResNet of the shape of `resnet`, with norms that do something."""
    torch.manual_seed(0)
    model = ResNetModel(
        PublishedConfig(
            embedding_size=8,
            hidden_sizes=list(WIDTHS),
            depths=[1, 2, 1, 1],
            layer_type=block,
            downsample_in_bottleneck=True,
        )
    ).eval()
    for name, tensor in model.state_dict().items():
        if "normalization" in name and tensor.ndim == 1:
            tensor.copy_(0.5 + torch.rand(tensor.shape))
    model.save_pretrained(folder)
    return model


def trunk(model: FasterRCNN, pictures: Tensor) -> Tensor:
    """What res5 of an FPN gives."""
    with torch.no_grad():
        return model.backbone.bottom_up.stages(pictures)[-1]


def train_config(weights: Path, **changes: object) -> TeachConfig:
    return dataclasses.replace(
        TEACH, net=net(), initial_weights=str(weights), freeze_at=2, **changes
    )


def test_a_transformers_resnet_gives_the_same_features(tmp_path: Path) -> None:
    """Oracle: transformers' own forward pass. Bottleneck reductions of transformers are a quarter
    of the width, as here."""
    published = publish(tmp_path, "bottleneck")
    config = net()
    model = FasterRCNN(config, num_labels=2, num_attributes=0).eval()
    loaded = load_initial_weights(model, tmp_path)
    pictures = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        wanted = published(pictures).last_hidden_state
    torch.testing.assert_close(trunk(model, pictures), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(trunk(folded(model), pictures), wanted, rtol=1e-4, atol=1e-4)
    assert all("bottom_up" in name for name in loaded)


def torchvision_names(published: ResNetModel) -> dict[str, Tensor]:
    """The weights of a transformers ResNet by torchvision's names."""
    state = {}
    for name, tensor in published.state_dict().items():
        parts = name.split(".")
        kind, leaf = parts[-2], parts[-1]
        is_norm = kind == "normalization"
        if parts[0] == "embedder":
            state[f"{'bn1' if is_norm else 'conv1'}.{leaf}"] = tensor
            continue
        block = f"layer{int(parts[2]) + 1}.{parts[4]}"
        if parts[5] == "shortcut":
            state[f"{block}.downsample.{int(is_norm)}.{leaf}"] = tensor
        else:
            number = int(parts[6]) + 1
            state[f"{block}.{'bn' if is_norm else 'conv'}{number}.{leaf}"] = tensor
    return state


def test_torchvision_s_basic_blocks_give_the_same_features(tmp_path: Path) -> None:
    """Oracle: transformers' forward pass of the same weights."""
    published = publish(tmp_path / "folder", "basic")
    save_file(torchvision_names(published), tmp_path / "resnet18.safetensors")
    model = FasterRCNN(net("basic"), num_labels=2, num_attributes=0).eval()
    load_initial_weights(model, tmp_path / "resnet18.safetensors")
    pictures = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = published(pictures).last_hidden_state
    torch.testing.assert_close(trunk(model, pictures), wanted, rtol=1e-4, atol=1e-4)


def test_detectron2_s_names_give_blue_first_stems_turned(tmp_path: Path) -> None:
    """Oracle: the stem's input channels in reverse; norms without mean and variance, as Caffe2's
    classifiers have them, only scale and shift; heads that fit are taken."""
    model = FasterRCNN(net(fpn=False), num_labels=2, num_attributes=0)
    state = {}
    for name, tensor in model.state_dict().items():
        source = name.replace("box_head.res5", "roi_heads.res5")
        source = source.replace("box_predictor", "roi_heads.box_predictor")
        source = source.replace("proposal_network", "proposal_generator.rpn_head")
        is_trunk = "stem" in name or "res" in name
        if is_trunk and name.endswith(".bias"):
            base = source.removesuffix("bias")
            state[f"{base}norm.weight"] = torch.full_like(tensor, 2.0)
            state[f"{base}norm.bias"] = torch.full_like(tensor, 0.5)
        else:
            state[source] = torch.randn(tensor.shape)
    save_file(state, tmp_path / "model.safetensors")
    loaded = load_initial_weights(model, tmp_path / "model.safetensors")
    stem = model.backbone.stem.conv1
    assert torch.equal(stem.weight, state["backbone.stem.conv1.weight"].flip(1))
    assert stem.norm_scale.eq(2).all() and stem.bias.eq(0.5).all()
    assert loaded == set(dict(model.named_parameters()))


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    """Oracle: the message names a convolution, its shape, and the settings to change."""
    publish(tmp_path, "bottleneck")
    wide = dataclasses.replace(net().backbone, stage_widths=(16, 24, 32, 44))
    model = FasterRCNN(dataclasses.replace(net(), backbone=wide), num_labels=2, num_attributes=0)
    with pytest.raises(CheckpointError, match=r"res5\.0\.shortcut.*stage_widths"):
        load_initial_weights(model, tmp_path)
    other = dataclasses.replace(net().backbone, stride_in_1x1=False)
    model = FasterRCNN(dataclasses.replace(net(), backbone=other), num_labels=2, num_attributes=0)
    with pytest.raises(CheckpointError, match="stride_in_1x1 to true"):
        load_initial_weights(model, tmp_path)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_moves_what_is_not_frozen_and_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    """Oracle: a run that nobody stopped, byte for byte; the stem's and res2's folded weights are
    those of the start, res3's are not; scores on the way keep the best."""
    images = write_scenes(tmp_path / "images", num_train=8, num_heldout=2)
    publish(tmp_path / "weights", "bottleneck")
    config = train_config(
        tmp_path / "weights",
        optimizer=optimizer,
        num_steps=4,
        learning_rate=0.01,
        scale_jitter=(0.8, 1.0),
        evaluate_every_steps=2,
        new_layers_rate=2.0,
    )
    if optimizer == "adamw":  # what draws random numbers of its own
        boxes = dataclasses.replace(config.net.boxes, second_classifier=0.3)
        net_with_dropout = dataclasses.replace(config.net, boxes=boxes)
        config = dataclasses.replace(
            config, net=net_with_dropout, late_steps=2, late_scale_jitter=(1.2, 1.3)
        )
    teach(config, seed=1, images=images, out=tmp_path / "whole")
    take_step, stops = train_file.take_step, [1, 3]

    def step_or_stop(*args: object) -> dict[str, float]:
        if stops and args[-1] == stops[0]:
            stops.pop(0)
            raise KeyboardInterrupt
        return take_step(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(train_file, "take_step", step_or_stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            teach(config, seed=1, images=images, out=tmp_path / "stopped")
    teach(config, seed=1, images=images, out=tmp_path / "stopped")
    both = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert both[0] == both[1]
    start, _ = build_model(config, Names(LABELS, ATTRIBUTES), 1)
    before, after = folded(start).state_dict(), load_teacher(tmp_path / "whole").model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(".stem." in name or ".res2." in name for name in moved)
    assert any(".res3." in name for name in moved)
    scores = json.loads((tmp_path / "whole" / "scores.json").read_text())
    assert scores["best_step"] in (2, 4) and "ap50_commonest" in scores
    assert not (tmp_path / "whole" / "best.safetensors").exists()


def test_a_c4_net_of_basic_blocks_trains(tmp_path: Path) -> None:
    """Oracle: finite losses (a step refuses others) and a teacher that can be read."""
    images = write_scenes(tmp_path / "images", num_train=4, num_heldout=1)
    config = dataclasses.replace(
        TEACH, net=net("basic", fpn=False), num_steps=2, learning_rate=1e-3, precision="bf16"
    )
    teach(config, seed=0, images=images, out=tmp_path / "out")
    assert load_teacher(tmp_path / "out").feature_size == WIDTHS[-1]


def test_frozen_parts_are_those_of_detectron2_s_freeze_at() -> None:
    """Oracle: by hand; res5 of a C4 model is in the box head."""
    model = FasterRCNN(net(fpn=False), num_labels=2, num_attributes=0)
    freeze(model, 2)
    frozen = {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"stem", "res2"}
    freeze(model, 5)
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".res5." in n)
