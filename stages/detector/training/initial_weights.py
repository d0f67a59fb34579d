"""Initial weights of a training from published ones, in any of four layouts.

- a folder of a transformers ResNet (`ResNetModel`, `ResNetForImageClassification`);
- a file of torchvision's ResNets (.pth, .safetensors);
- a checkpoint of detectron2: a classifier's ResNet (R-50.pkl) or a whole detector, of which what
  has the shape of ours is taken (class names may differ);
- a teacher's folder of ours, whose normalisations are folded already.

All are brought to detectron2's names (stem.conv1, res2.0.conv1, ..., res2.0.shortcut, each with
.weight and .norm.*) and then put into a net of ours. Stems that take blue green red take red green
blue afterwards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.detector.checkpoints.checkpoint_error import CheckpointError
from stages.detector.checkpoints.convert import read_checkpoint
from stages.detector.checkpoints.torch_files import read_safetensors
from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.net_config import ResNetConfig
from stages.detector.training.norms.frozen_norm import freeze_norm

EPS = 1e-5  # of detectron2's, torchvision's and transformers' batch normalisation
NUM_NAMED = 5  # names in a message
NORM = ("weight", "bias", "running_mean", "running_var")
_TRANSFORMERS = (
    (r"^resnet\.", ""),
    (r"^embedder\.embedder\.convolution\.", "stem.conv1."),
    (r"^embedder\.embedder\.normalization\.", "stem.conv1.norm."),
    (r"^encoder\.stages\.(\d)\.layers\.(\d+)\.", r"res\1+.\2."),
    (r"\.layer\.(\d)\.", r".conv\1+."),
    (r"\.convolution\.", "."),
    (r"\.normalization\.", ".norm."),
)
_TORCHVISION = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer([1-4])\.(\d+)\.", r"res\1*.\2."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
)


class Published(NamedTuple):
    """Weights by detectron2's names."""

    weights: Mapping[str, Tensor]
    is_bgr: bool
    stride_in_1x1: bool | None  # None where the layout does not say
    is_ours: bool = False  # names are those of our net, normalisations folded


def load_initial_weights(model: FasterRCNN, path: Path) -> set[str]:
    """Puts the weights of `path` into `model`; returns the names of the parameters that they give.

    Convolutions of the ResNet become FrozenNormConv2d where the weights have a normalisation.
    Raises CheckpointError where the file cannot be read, or where the ResNet of `model` is of
    another shape; heads that are missing or of other shapes keep their random weights.
    """
    published = read_published(path)
    if published.is_ours:
        return _load_same_names(model, published.weights)
    backbone = model.config.backbone
    if not isinstance(backbone, ResNetConfig):
        raise CheckpointError(
            f"{path}: got weights of a ResNet for a backbone of the kind {backbone.kind!r}; set "
            "teach.net.backbone.kind to resnet"
        )
    _check_stride(path, published, backbone)
    loaded, faults = set(), []
    for name, ours in _resnet_convolutions(model):
        fault = _load_convolution(model, name, ours, published)
        if fault is None:
            loaded |= {f"{name}.weight", f"{name}.bias"}
        else:
            faults.append(fault)
    if faults:
        more = f" and {len(faults) - NUM_NAMED} more" if len(faults) > NUM_NAMED else ""
        raise CheckpointError(
            f"{path}: got {'; '.join(faults[:NUM_NAMED])}{more}; set block, stem_width, "
            "stage_widths, bottleneck_widths, num_blocks and groups of teach.net.backbone to what "
            "the weights have"
        )
    loaded |= _load_heads(model, published.weights)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return loaded


def weights_file(path: Path) -> Path:
    """The file that holds the weights of a file or folder; it need not exist."""
    if not path.is_dir():
        return path
    files = [path / "model.safetensors", path / "pytorch_model.bin"]
    return next((file for file in files if file.exists()), files[0])


def read_published(path: Path) -> Published:
    """The weights of a file or folder by detectron2's names. Raises CheckpointError."""
    if path.is_dir():
        return _read_folder(path)
    weights = {name: _tensor(array) for name, array in read_checkpoint(path).items()}
    if "layer1.0.conv1.weight" in weights:
        basic = "layer1.0.conv3.weight" not in weights
        return Published(_renamed(weights, _TORCHVISION), False, None if basic else False)
    trunk = {
        re.sub(r"^backbone\.(bottom_up\.)?(?=stem|res)", "", name): tensor
        for name, tensor in weights.items()
    }
    trunk = {re.sub(r"^roi_heads\.(?=res5)", "", name): tensor for name, tensor in trunk.items()}
    if "stem.conv1.weight" not in trunk:
        raise CheckpointError(
            f"{path}: got names as {', '.join(sorted(weights)[:NUM_NAMED])}, expected the weights "
            "of a ResNet by torchvision's or detectron2's names"
        )
    return Published(trunk, True, None)


def _read_folder(path: Path) -> Published:
    try:
        config = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path / 'config.json'}: got {error}, expected the config of a transformers ResNet "
            "or of a teacher"
        ) from error
    if str(config.get("schema", "")).startswith("boxless/teacher"):
        return Published(read_safetensors(path / "model.safetensors"), False, None, is_ours=True)
    if config.get("model_type") != "resnet" or config.get("downsample_in_first_stage"):
        raise CheckpointError(
            f"{path}: got model_type {config.get('model_type')!r} and downsample_in_first_stage "
            f"{config.get('downsample_in_first_stage')}, expected 'resnet' and false"
        )
    weights = {name: _tensor(array) for name, array in read_checkpoint(weights_file(path)).items()}
    is_basic = config.get("layer_type") == "basic"
    in_1x1 = None if is_basic else bool(config.get("downsample_in_bottleneck", False))
    return Published(_renamed(weights, _TRANSFORMERS), False, in_1x1)


def _renamed(
    weights: Mapping[str, Tensor], rules: tuple[tuple[str, str], ...]
) -> dict[str, Tensor]:
    """By detectron2's names: a number of the pattern before `+` or `*` counts from 0 or 1."""
    renamed = {}
    for name, tensor in weights.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        name = re.sub(r"^res(\d)\+", lambda found: f"res{int(found[1]) + 2}", name)
        name = re.sub(r"^res(\d)\*", lambda found: f"res{int(found[1]) + 1}", name)
        name = re.sub(r"\.conv(\d)\+", lambda found: f".conv{int(found[1]) + 1}", name)
        renamed[name] = tensor
    return renamed


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))


def _check_stride(path: Path, published: Published, backbone: ResNetConfig) -> None:
    wanted = published.stride_in_1x1
    if backbone.block == "bottleneck" and wanted not in (None, backbone.stride_in_1x1):
        raise CheckpointError(
            f"{path}: got weights whose strides are in the {'1x1' if wanted else '3x3'} "
            f"convolutions; set teach.net.backbone.stride_in_1x1 to {str(wanted).lower()}"
        )


def _resnet_convolutions(model: FasterRCNN) -> list[tuple[str, str]]:
    """Each convolution of the ResNet: its name in the net and detectron2's."""
    names = []
    for name, module in model.named_modules():
        found = re.match(r"^(?:backbone\.(?:bottom_up\.)?|box_head\.)((?:stem|res)\S+)$", name)
        if found and isinstance(module, torch.nn.Conv2d):
            names.append((name, found[1]))
    return names


def _load_convolution(
    model: FasterRCNN, name: str, source: str, published: Published
) -> str | None:
    """Puts one convolution and its normalisation into `model`; returns what does not fit."""
    plain = model.get_submodule(name)
    assert isinstance(plain, torch.nn.Conv2d) and plain.bias is not None
    weights = published.weights
    weight = weights.get(f"{source}.weight")
    if weight is None or weight.shape != plain.weight.shape:
        got = "no" if weight is None else f"{list(weight.shape)} for"
        return f"{got} {source}.weight, expected {list(plain.weight.shape)}"
    if source == "stem.conv1" and published.is_bgr:
        weight = weight.flip(1)
    with torch.no_grad():
        plain.weight.copy_(weight)
        if f"{source}.norm.weight" in weights:
            scale, bias = _norm(weights, f"{source}.norm")
            frozen = freeze_norm(model, name)
            frozen.norm_scale.copy_(scale)
            assert frozen.bias is not None
            frozen.bias.copy_(bias)
        elif f"{source}.bias" in weights:
            plain.bias.copy_(weights[f"{source}.bias"])
        else:
            return f"no {source}.norm.weight"
    return None


def _norm(weights: Mapping[str, Tensor], source: str) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch normalisation, in double precision; a mean and a variance that are
    missing, as in classifiers of Caffe2, are 0 and 1."""
    scale, shift = (weights[f"{source}.{name}"].double() for name in NORM[:2])
    mean = weights.get(f"{source}.running_mean", torch.zeros_like(scale)).double()
    variance = weights.get(f"{source}.running_var")
    if variance is not None:
        scale = scale / (variance.double() + EPS).sqrt()
    return scale, shift - mean * scale


def _load_heads(model: FasterRCNN, weights: Mapping[str, Tensor]) -> set[str]:
    """What a whole detector of detectron2 has beside its ResNet, where names and shapes fit."""
    loaded = set()
    for name, parameter in model.named_parameters():
        source = (
            name.replace("proposal_network.", "proposal_generator.rpn_head.", 1)
            if name.startswith("proposal_network.")
            else name
            if name.startswith("backbone.fpn_")
            else f"roi_heads.{name}"
        )
        found = weights.get(source)
        if found is not None and found.shape == parameter.shape:
            with torch.no_grad():
                parameter.copy_(found)
            loaded.add(name)
    return loaded


def _load_same_names(model: FasterRCNN, weights: Mapping[str, Tensor]) -> set[str]:
    """Weights of a teacher of ours, where names and shapes fit."""
    loaded = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        found = weights.get(name)
        if found is not None and found.shape == tensor.shape:
            with torch.no_grad():
                tensor.copy_(found)
            loaded.add(name)
    return loaded


def freeze(model: FasterRCNN, freeze_at: int) -> None:
    """Keeps the stem (1), res2 (2) ... res5 (5) and all before it as they are, as detectron2's
    BACKBONE.FREEZE_AT; 0 freezes nothing."""
    frozen = ("stem", "res2", "res3", "res4", "res5")[:freeze_at]
    for name, parameter in model.named_parameters():
        if set(frozen) & set(name.split(".")):
            parameter.requires_grad_(False)
