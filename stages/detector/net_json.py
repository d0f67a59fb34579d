"""Converts the settings of a teacher's net to JSON and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from boxless.errors import BoxlessError
from stages.detector.net_config import (
    BoxConfig,
    ChoiceConfig,
    PictureConfig,
    PlainConfig,
    ProposalConfig,
    ResNetConfig,
    TeacherConfig,
)

LATER_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "picture": {"inference_scales": (1.0,), "inference_mirror": False},
    "backbone": {"block": "bottleneck", "fpn_finest": 2},
    "proposals": {"inference_proposals": None},
    "boxes": {
        "canonical_box_px": 224.0,
        "class_agnostic": False,
        "second_classifier": 0.0,
    },
    "choice": {"objectness_power": 0.0},
}
"""Fields that earlier versions did not have, by part, with the values that held then."""


def net_to_json(net: TeacherConfig) -> dict[str, Any]:
    """The config as `net_from_json` reads it.

    Fields that came later are left out where they have the value that held before, so that the
    fingerprints of older teachers, which are taken over this, stay.
    """
    parts = dataclasses.asdict(net)
    for part, fields in LATER_FIELDS.items():
        for name, value in fields.items():
            if parts[part].get(name) == value:
                del parts[part][name]
    return parts


def net_from_json(net: Mapping[str, Any]) -> TeacherConfig:
    """The config that `net_to_json` and JSON made `net` from.

    Raises ValueError for a part that is missing, odd or of no known kind.
    """
    kinds: dict[str, type[PlainConfig] | type[ResNetConfig]] = {
        "plain": PlainConfig,
        "resnet": ResNetConfig,
    }
    try:
        parts = {name: _tuples(value) for name, value in net.items()}
        return TeacherConfig(
            **{
                **parts,
                "picture": PictureConfig(**parts["picture"]),
                "backbone": kinds[parts["backbone"]["kind"]](**parts["backbone"]),
                "proposals": ProposalConfig(**parts["proposals"]),
                "boxes": BoxConfig(**parts["boxes"]),
                "choice": ChoiceConfig(**parts["choice"]),
            }
        )
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise BoxlessError(
            f"net: got {type(error).__name__}: {error}, expected the parts picture, backbone, "
            "proposals, boxes and choice of a teacher's net"
        ) from error


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples, however deep."""
    if isinstance(value, Mapping):
        return {name: _tuples(inner) for name, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
