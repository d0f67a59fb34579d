"""Tests of sharding.format.manifest_summary, sharding.writing.previous_shard and
sharding.format.completeness: parts of what a shard says of itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sharding.format.completeness import check_completeness
from sharding.format.manifest import manifest_path, read_manifest
from sharding.format.manifest_summary import read_manifest_summaries, read_manifest_summary
from sharding.format.schema import Failure, Note, Sample, ShardError
from sharding.reading.sample_reader import iterate
from sharding.writing.previous_shard import PreviousShard
from sharding.writing.shard_writer import write_shard

Make = Callable[..., Sample]
TRAPS = ['],"samples":[', '"fingerprint":{"a":"b"}', "\\", "é" * 40_000]


@pytest.fixture
def tar(tmp_path: Path, make_sample: Make) -> Path:
    """A shard whose failures look like other parts of a manifest, and fill more than a piece."""
    results = [
        make_sample(0),
        *(Failure(key="bad", reason=trap) for trap in TRAPS),
        make_sample(1),
        Note(key=make_sample(1).key, reason="dropped"),
        make_sample(2),
    ]
    write_shard(tmp_path / "a.tar", results, fingerprint={"rule": "1", "input": "x"})
    return tmp_path / "a.tar"


def test_a_head_says_what_the_manifest_says(tar: Path) -> None:
    """Oracle: the full reader."""
    head, manifest = read_manifest_summary(tar), read_manifest(tar)
    for name in (
        "tar_bytes",
        "num_input",
        "num_ok",
        "num_failed",
        "failures",
        "notes",
        "fingerprint",
    ):
        assert getattr(head, name) == getattr(manifest, name), name
    assert read_manifest_summaries(tar.parent) == {"a.tar": head}


@pytest.mark.parametrize("over", [-20, -12, -6, -1, 0])
def test_the_end_of_a_head_is_found_wherever_it_falls(
    tmp_path: Path, make_sample: Make, over: int
) -> None:
    """Between two pieces, too: the samples begin `over` bytes after a piece's end. Oracle: the
    full reader is not asked, as a manifest that is broken behind its head shows."""
    tar = tmp_path / "a.tar"

    def samples_begin(padding: int) -> int:
        failure = Failure(key="bad", reason="x" * padding)
        write_shard(tar, [failure, make_sample(0)], fingerprint={})
        return manifest_path(tar).read_bytes().index(b',"samples":[')

    assert samples_begin((1 << 13) + over - samples_begin(0)) == (1 << 13) + over
    with open(manifest_path(tar), "r+b") as broken:
        broken.truncate(manifest_path(tar).stat().st_size - 10)
    assert read_manifest_summary(tar).num_input == 2


def test_a_manifest_in_another_order_is_read_too_and_a_broken_one_refused(tar: Path) -> None:
    """Oracle: the head before; the full reader's own error."""
    before = read_manifest_summary(tar)
    path = manifest_path(tar)
    text = path.read_text("utf-8")
    start = text.index('"counts"')
    end = text.index('"failures"')
    path.write_text(text[:start] + text[end:-2] + "," + text[start : end - 1] + "}\n", "utf-8")
    assert read_manifest_summary(tar) == before
    path.write_text(text[:1000], "utf-8")
    with pytest.raises(ShardError, match="expected a manifest"):
        read_manifest_summary(tar)
    assert read_manifest_summaries(tar.parent) == {}


def test_earlier_samples_come_back_as_the_same_bytes(tar: Path, make_sample: Make) -> None:
    """Oracle: a shard written of them alone holds the same samples; the tar may go meanwhile."""
    earlier = PreviousShard(tar, {"rule": "1"})
    inputs = list(iterate(tar))
    tar.unlink()
    again = tar.with_name("b.tar")
    kept = [earlier.sample(sample.key) for sample in inputs]
    write_shard(again, [one for one in kept if one is not None], fingerprint={})
    for got, expected in zip(iterate(again), inputs, strict=True):
        assert (got.key, got.image, got.info) == (expected.key, expected.image, expected.info)
        assert got.objects is not None and expected.objects is not None
        assert got.objects.tobytes() == expected.objects.tobytes()
    assert [note.reason for note in earlier.notes(make_sample(1).key)] == ["dropped"]
    assert earlier.sample("bad") is None and earlier.notes("bad") == []


def test_what_is_damaged_or_of_other_settings_is_not_there(tar: Path, make_sample: Make) -> None:
    """Oracle: one flipped bit takes one sample, another fingerprint takes all, as does no tar."""
    entry = read_manifest(tar).samples[1]
    data = bytearray(tar.read_bytes())
    data[entry.members["json"][0] + 1] ^= 4
    tar.write_bytes(data)
    earlier = PreviousShard(tar, {})
    assert [earlier.sample(make_sample(i).key) is None for i in range(3)] == [False, True, False]
    assert PreviousShard(tar, {"rule": "2"}).sample(make_sample(0).key) is None
    tar.write_bytes(data[:600])
    assert PreviousShard(tar, {}).sample(make_sample(2).key) is None
    tar.unlink()
    assert PreviousShard(tar, {}).sample(make_sample(0).key) is None


def test_lost_doubled_and_unknown_inputs_are_named(tar: Path, make_sample: Make) -> None:
    """Oracle: the inputs spelled out, and each way to miss them."""
    manifest = read_manifest(tar)
    inputs = [make_sample(i).key for i in range(3)] + ["bad"] * len(TRAPS)
    check_completeness(tar, reversed(inputs), manifest)
    with pytest.raises(ShardError, match=r"a.tar: got 7 .* 8 inputs: 1 are lost \(x\), 0"):
        check_completeness(tar, [*inputs, "x"], manifest)
    with pytest.raises(ShardError, match=r"0 are lost \(none\), 1 are no inputs \(bad\)"):
        check_completeness(tar, inputs[:-1], manifest)
