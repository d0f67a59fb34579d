"""What happens to a sample that cannot be had; oracle: the message, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sharding.format.schema import ShardError
from sharding.reading.range_reader import NO_RANGES
from stages.training.monitoring.skipped_samples import FaultPolicy, SkippedSamples


@pytest.mark.parametrize("on_fault", ["stop", "skip"])
def test_a_server_without_ranges_is_no_damage_to_a_shard(on_fault: str) -> None:
    """Nothing is to be repaired and nothing can be skipped: the message speaks of the server."""
    policy = FaultPolicy(on_fault=on_fault, max_skipped=1000)
    skipped = SkippedSamples(policy, 0, print, section="pretrain")
    fault = SimpleNamespace(
        tar="a.tar", key="k", cause=f"got 9 bytes: {NO_RANGES}; serve the shards"
    )
    loaded: Any = SimpleNamespace(
        turn=SimpleNamespace(is_padding=False, position=3), faults=[fault]
    )
    with pytest.raises(ShardError, match="does not support ranges; serve the shards") as raised:
        skipped.add(loaded)
    assert "epair" not in str(raised.value)
