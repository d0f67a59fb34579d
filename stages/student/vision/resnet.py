"""The CNN: its sizes by name, and weights in torchvision's layout.

The numbers of blocks are those of He et al. (arXiv 1512.03385, table 1), with the stride in the
3x3 convolution as torchvision has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from transformers import ResNetConfig

from boxless.errors import BoxlessError
from stages.student.config import StudentConfig

DEPTHS = {
    "resnet-18": (2, 2, 2, 2),
    "resnet-34": (3, 4, 6, 3),
    "resnet-50": (3, 4, 6, 3),
    "resnet-101": (3, 4, 23, 3),
    "resnet-152": (3, 8, 36, 3),
}
BASIC = ("resnet-18", "resnet-34")
STEM = (
    ("embedder.embedder.convolution.", "conv1."),
    ("embedder.embedder.normalization.", "bn1."),
)
BLOCK = re.compile(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(.*)")
CLASSIFIER = "fc."


def resnet_config(config: StudentConfig) -> ResNetConfig:
    """The CNN that the recipe asks for, by name or by its sizes, where no weights are given."""
    if config.cnn is None:
        return ResNetConfig(
            embedding_size=config.stem_width,
            hidden_sizes=list(config.widths),
            depths=list(config.depths),
            layer_type=config.block,
        )
    basic = config.cnn in BASIC
    return ResNetConfig(
        embedding_size=64,
        hidden_sizes=[(64 if basic else 256) * 2**stage for stage in range(4)],
        depths=list(DEPTHS[config.cnn]),
        layer_type="basic" if basic else "bottleneck",
    )


def torchvision_name(name: str) -> str:
    """A parameter or buffer of transformers' ResNet in torchvision's names.

    Raises ValueError for a name that is none.
    """
    for ours, theirs in STEM:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    if block := BLOCK.fullmatch(name):
        return f"layer{int(block[1]) + 1}.{block[2]}.{_in_block(block[3])}"
    raise BoxlessError(f"{name}: got an unknown part of a ResNet, expected transformers' names")


def _in_block(rest: str) -> str:
    """`layer.0.convolution.weight` of a ResNet block is `conv1.weight`, and so on."""
    for pattern, theirs in (
        (r"layer\.(\d+)\.convolution\.", "conv{}."),
        (r"layer\.(\d+)\.normalization\.", "bn{}."),
        (r"shortcut\.convolution\.", "downsample.0."),
        (r"shortcut\.normalization\.", "downsample.1."),
    ):
        if match := re.match(pattern, rest):
            part = theirs.format(int(match[1]) + 1 if match.groups() else "")
            return part + rest[match.end() :]
    raise BoxlessError(f"{rest}: got an unknown part of a block, expected transformers' names")


def config_of_torchvision(weights: dict[str, torch.Tensor]) -> ResNetConfig:
    """The sizes of a ResNet by its weights in torchvision's names.

    Raises ValueError where these are not a ResNet's.
    """
    depths = _depths(weights)
    if "conv1.weight" not in weights or not depths:
        raise BoxlessError(
            f"got weights called {', '.join(sorted(weights)[:3])} ..., expected torchvision's "
            "names of a ResNet: conv1.weight, layer1.0.conv1.weight and so on"
        )
    last = "conv3" if "layer1.0.conv3.weight" in weights else "conv2"
    return ResNetConfig(
        embedding_size=weights["conv1.weight"].shape[0],
        hidden_sizes=[
            weights[f"layer{stage + 1}.0.{last}.weight"].shape[0] for stage in range(len(depths))
        ],
        depths=depths,
        layer_type="bottleneck" if last == "conv3" else "basic",
    )


def _depths(names: Iterable[str]) -> list[int]:
    """Blocks of each stage, from names as layer2.0.conv2.weight."""
    found = {
        (int(match[1]), int(match[2]))
        for name in names
        if (match := re.fullmatch(r"layer(\d+)\.(\d+)\.conv2\.weight", name))
    }
    num_stages = max((stage for stage, _ in found), default=0)
    return [sum(stage == s for s, _ in found) for stage in range(1, num_stages + 1)]


def from_torchvision(
    weights: dict[str, torch.Tensor], own: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """torchvision's weights by the names of `own`, the state of a ResNet of the same sizes.

    The classifier is left out; counts of batches, which old files lack, stay as they are. Raises
    ValueError naming what is missing, unknown, not finite or of another shape.
    """
    names = {name: torchvision_name(name) for name in own}
    taken, faults = {}, []
    for name, theirs in names.items():
        weight = weights.get(theirs)
        if weight is None and theirs.endswith("num_batches_tracked"):
            weight = own[name]
        if weight is None:
            faults.append(f"{theirs} is missing")
        elif weight.shape != own[name].shape:
            faults.append(f"{theirs} is {list(weight.shape)}, not {list(own[name].shape)}")
        elif not weight.isfinite().all():
            faults.append(f"{theirs} is not finite")
        else:
            taken[name] = weight
    known = set(names.values())
    faults += [
        f"{theirs} is unknown"
        for theirs in weights
        if theirs not in known and not theirs.startswith(CLASSIFIER)
    ]
    if faults:
        more = f" and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise BoxlessError(f"got a ResNet that does not fit: {'; '.join(faults[:8])}{more}")
    return taken
