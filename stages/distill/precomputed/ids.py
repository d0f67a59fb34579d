"""Normalises the ids of features and samples for the join: the recipe's `join`, `id`, `pattern`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

from stages.distill.precomputed.config import FeaturesConfig

_LAST_NUMBER = re.compile(r"[0-9]+(?=[^0-9]*\Z)")

Rule = Callable[[str], str | None]
"""The id that two sides compare, None for a text that has none."""


def reduce_id(text: str, kind: str) -> str | None:
    """`text` as FeaturesConfig.id says; None where nothing is left (no digits for "number")."""
    if kind == "whole":
        return text or None
    if kind == "stem":
        return PurePosixPath(text).stem or None
    digits = _LAST_NUMBER.search(text)
    return str(int(digits[0])) if digits else None


def rule_of(config: FeaturesConfig) -> Rule:
    """What makes the compared id of a feature's id."""
    pattern = re.compile(config.pattern) if config.pattern is not None else None

    def rule(text: str) -> str | None:
        if pattern is not None:
            match = pattern.fullmatch(text)
            text = (match[1] or "") if match else ""
        return reduce_id(text, config.id) if text else None

    return rule


def sample_id(key: str, info: Mapping[str, Any], config: FeaturesConfig) -> str | None:
    """The compared id of a sample; None where its json, `info`, lacks what `join` asks for."""
    value = key if config.join == "key" else info.get(config.join)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    return reduce_id(str(value), config.id)


def hash_of(compared: str) -> int:
    """64 bits that stand for a compared id in an index: two of 10 million ids share theirs with a
    chance of 3 in a million, and then a record's own id distinguishes them."""
    digest = hashlib.blake2b(compared.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
