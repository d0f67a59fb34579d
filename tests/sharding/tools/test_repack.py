"""Tests of sharding.tools.repack: the same samples in other shards, after any disturbance."""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import signal
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from killed_calls import die_before
from PIL import Image

from sharding.format.catalog import read_catalog, write_catalog
from sharding.format.manifest import manifest_path, read_manifest
from sharding.format.schema import Failure, Note, Sample, ShardError
from sharding.reading.sample_reader import OpenTar, read_payloads
from sharding.tools.index import index_folder
from sharding.tools.repack import RepackConfig, repack
from sharding.tools.verify import verify_paths
from sharding.writing.shard_writer import write_shard

MakeFolder = Callable[..., Path]
MakeSample = Callable[..., Sample]


def _samples(folder: Path, split: str | None = None) -> list[tuple]:
    """Of every sample in the catalog's order: split, key, size in pixels, CRC-32, payloads."""
    samples: list[tuple] = []
    for shard in read_catalog(folder).shards:
        tar = OpenTar(folder / shard.tar)
        samples += [
            (
                shard.split,
                entry.key,
                entry.width,
                entry.height,
                entry.crc32,
                tuple(read_payloads(tar, entry).items()),
            )
            for entry in read_manifest(folder / shard.tar).samples
            if split in (None, shard.split)
        ]
    return samples


def _remarks(folder: Path) -> Counter[tuple[str, Failure | Note]]:
    """All failures and notes, by split."""
    return Counter(
        (shard.split, remark)
        for shard in read_catalog(folder).shards
        for manifest in [read_manifest(folder / shard.tar)]
        for remark in (*manifest.failures, *manifest.notes)
    )


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _with_heldout(folder: Path) -> Path:
    """Says of the folder's second shard that it is held out."""
    catalog = read_catalog(folder)
    splits = {shard.tar: shard.split for shard in catalog.shards}
    splits[catalog.shards[1].tar] = "heldout"
    write_catalog(folder, kind=catalog.kind, splits=splits, metadata=catalog.metadata)
    return folder


@pytest.mark.parametrize("seed", [None, 7])
def test_the_same_samples_lie_in_other_shards(
    tmp_path: Path, make_folder: MakeFolder, seed: int | None
) -> None:
    """Oracle: the sources' samples, failures and notes, counted by split; sizes by hand.

    Fourteen samples of train in shards of 4 and six of heldout: four shards and two.
    """
    source = _with_heldout(make_folder(tmp_path / "source", [4, 6, 1, 3, 6]))
    config = RepackConfig(samples_per_shard=4, seed=seed)
    catalog = repack([source], tmp_path / "out", config)
    out = tmp_path / "out"
    assert [(shard.tar, shard.num_ok) for shard in catalog.shards] == [
        ("heldout-000000.tar", 4),
        ("heldout-000001.tar", 2),
        ("train-000000.tar", 4),
        ("train-000001.tar", 4),
        ("train-000002.tar", 4),
        ("train-000003.tar", 2),
    ]
    assert Counter(_samples(out)) == Counter(_samples(source))
    assert (_samples(out, "train") == _samples(source, "train")) == (seed is None)
    assert _remarks(out) == _remarks(source)
    before = read_catalog(source)
    for count in ("num_input", "num_ok", "num_failed"):
        assert sum(getattr(shard, count) for shard in catalog.shards) == sum(
            getattr(shard, count) for shard in before.shards
        )
    assert (catalog.kind, catalog.metadata) == (before.kind, before.metadata)
    assert verify_paths([out], full=True) == []
    for shard in catalog.shards:  # a note stays with its sample
        manifest = read_manifest(out / shard.tar)
        assert {note.key for note in manifest.notes} <= {entry.key for entry in manifest.samples}
        assert manifest.fingerprint["source.test"] == "1"


def test_stock_webdataset_reads_the_new_shards(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Oracle: webdataset's reading of the sources."""
    source = make_folder(tmp_path / "source", [3, 1, 5])
    repack([source], tmp_path / "out", RepackConfig(samples_per_shard=4, seed=1))

    def read(folder: Path) -> dict[str, dict]:
        tars = [str(tar) for tar in sorted(folder.glob("*.tar"))]
        samples = list(webdataset.WebDataset(tars, shardshuffle=False))
        assert len({sample["__key__"] for sample in samples}) == len(samples) == 9
        return {
            sample["__key__"]: {k: v for k, v in sample.items() if not k.startswith("__")}
            for sample in samples
        }

    assert read(tmp_path / "out") == read(source)


def test_a_tar_has_at_most_the_bytes_asked_for(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Oracle: the size of a tar of three samples holds three, a byte less holds two."""
    source = make_folder(tmp_path / "source", [3, 3])
    size = (source / "train-000000.tar").stat().st_size
    for less, counts in ((0, [3, 3]), (1, [2, 2, 2])):
        catalog = repack([source], tmp_path / str(less), RepackConfig(shard_bytes=size - less))
        assert [shard.num_ok for shard in catalog.shards] == counts


def test_tars_that_others_wrote_are_repacked(tmp_path: Path) -> None:
    """Oracle: webdataset's reading of the tars that its own writer wrote, without what the index
    leaves out; a failed input and what was left out are still known of."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    picture = io.BytesIO()
    Image.new("RGB", (12, 9)).save(picture, "JPEG")
    for shard in range(2):
        with webdataset.TarWriter(str(source / f"{shard:05d}.tar")) as writer:
            for number in range(3):
                key = f"{shard:05d}{number:04d}"
                writer.write(
                    {
                        "__key__": key,
                        "jpeg": picture.getvalue() + key.encode(),
                        "txt": f"picture {key}",
                        "cls": b"7",
                    }
                )
            writer.write({"__key__": f"failed-{shard}", "json": {"status": "failed"}})
    index_folder(source)
    repack([source], out, RepackConfig(samples_per_shard=5, seed=0))

    def read(folder: Path) -> dict[str, tuple]:
        tars = [str(tar) for tar in sorted(folder.glob("*.tar"))]
        return {
            sample["__key__"]: (sample.get("jpeg"), sample.get("txt"))
            for sample in webdataset.WebDataset(tars, shardshuffle=False)
        }

    assert read(out) == {key: members for key, members in read(source).items() if all(members)}
    assert _remarks(out) == _remarks(source)
    assert Counter(type(remark) for _, remark in _remarks(out)) == {Failure: 2, Note: 6}
    assert verify_paths([out], full=True) == []


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    size=st.one_of(
        st.builds(lambda n: {"samples_per_shard": n}, st.integers(1, 9)),
        st.builds(lambda n: {"shard_bytes": n}, st.integers(1, 30_000)),
    ),
    seed=st.one_of(st.none(), st.integers(0, 99)),
)
def test_any_cut_and_order_keeps_every_sample(
    tmp_path_factory: pytest.TempPathFactory,
    make_folder: MakeFolder,
    counts: list[int],
    size: dict[str, int],
    seed: int | None,
) -> None:
    """Oracle: the sources' samples; sizes as asked for; a second run's bytes."""
    folder = tmp_path_factory.mktemp("any")
    source = make_folder(folder / "source", counts)
    config = RepackConfig(**size, seed=seed)
    catalog = repack([source], folder / "out", config)
    repack([source], folder / "again", config)
    assert _files(folder / "out") == _files(folder / "again")
    assert sorted(_samples(folder / "out")) == sorted(_samples(source))
    assert _remarks(folder / "out") == _remarks(source)
    for shard in catalog.shards:
        if "shard_bytes" in size:
            assert shard.bytes <= size["shard_bytes"] or shard.num_ok <= 1
        else:
            assert shard.num_ok <= size["samples_per_shard"]
    for shard, following in zip(catalog.shards, catalog.shards[1:]):
        if "shard_bytes" in size:
            first = read_manifest(folder / "out" / following.tar).samples[0]
            added = sum(512 + -(-length // 512) * 512 for _, length in first.members.values())
            assert shard.bytes + added > size["shard_bytes"]
        else:
            assert shard.num_ok == size["samples_per_shard"]


def test_folders_are_merged_and_seeds_differ(
    tmp_path: Path, make_folder: MakeFolder, make_sample: MakeSample
) -> None:
    """Oracle: the samples of both; three seeds give three orders of one set."""
    first = make_folder(tmp_path / "first", [3, 2])
    second = tmp_path / "second"
    write_shard(second / "b.tar", [make_sample(i) for i in range(90, 97)], fingerprint={"b": "1"})
    about = {"label_names": ["a", "b"], "source": "b"}
    write_catalog(second, kind="objects", splits={"b.tar": "train"}, metadata=about)
    orders = []
    for seed in (0, 1, 2):
        out = tmp_path / str(seed)
        catalog = repack([first, second], out, RepackConfig(samples_per_shard=5, seed=seed))
        orders.append(_samples(out))
        assert catalog.metadata == about
        assert sorted(orders[-1]) == sorted(_samples(first) + _samples(second))
    assert orders[0] != orders[1] != orders[2] != orders[0]
    only = repack(
        [_with_heldout(first), second],
        tmp_path / "split",
        RepackConfig(samples_per_shard=5, split="train"),
    )
    assert {shard.split for shard in only.shards} == {"train"}
    assert sum(shard.num_ok for shard in only.shards) == 10


def test_what_does_not_fit_is_refused(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Oracle: the message of each refusal; nothing but its settings is left in the new folder."""
    source = make_folder(tmp_path / "source", [3, 2])
    twin = make_folder(tmp_path / "twin", [2])
    config = RepackConfig(samples_per_shard=2)
    with pytest.raises(ShardError, match="samples_per_shard, shard_bytes: got 2, 3"):
        RepackConfig(samples_per_shard=2, shard_bytes=3)
    with pytest.raises(ShardError, match="got None, None"):
        RepackConfig()
    with pytest.raises(ShardError, match="got None, 0"):
        RepackConfig(shard_bytes=0)
    with pytest.raises(ShardError, match="expected another folder"):
        repack([twin, source], tmp_path / "twin" / ".." / "source", config)
    with pytest.raises(
        ShardError,
        match="picture-00000.*twin/train-000000.tar|twin/train-000000.tar.*picture-00000",
    ):
        repack([source, twin], tmp_path / "out", config)
    assert os.listdir(tmp_path / "out") == ["repack.json"]
    repack([source], tmp_path / "done", config)
    before = _files(tmp_path / "done")
    with pytest.raises(ShardError, match="other settings or sources"):
        repack([source], tmp_path / "done", RepackConfig(samples_per_shard=3))
    with pytest.raises(ShardError, match="other settings or sources"):
        repack([twin], tmp_path / "done", config)
    with pytest.raises(ShardError, match="train-000000.tar, expected a new or empty folder"):
        repack([source], twin, config)
    assert _files(tmp_path / "done") == before
    catalog = read_catalog(twin)
    write_catalog(
        twin, kind="objects", splits={"train-000000.tar": "../x"}, metadata=catalog.metadata
    )
    with pytest.raises(ShardError, match="got '../x'"):
        repack([twin], tmp_path / "split", config)
    for kind, about in (("images", catalog.metadata), ("objects", {"label_names": ["b", "a"]})):
        write_catalog(twin, kind=kind, splits={"train-000000.tar": "train"}, metadata=about)
        with pytest.raises(ShardError, match="kind: got 'images'|label_names: got"):
            repack([source, twin], tmp_path / "out", config)


def test_a_damaged_sample_is_not_taken_over(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Oracle: tar and key in the error; the new folder calls nothing finished that is not."""
    source = make_folder(tmp_path / "source", [3, 2])
    tar = source / "train-000001.tar"
    offset, _ = read_manifest(tar).samples[1].members["json"]
    data = bytearray(tar.read_bytes())
    data[offset] ^= 1
    tar.write_bytes(data)
    with pytest.raises(ShardError, match="train-000001.tar: sample picture-00004: got CRC-32"):
        repack([source], tmp_path / "out", RepackConfig(samples_per_shard=3))
    assert sorted(os.listdir(tmp_path / "out")) == [
        "repack.json",
        "train-000000.tar",
        "train-000000.tar.json",
    ]
    os.truncate(tar, 512)
    with pytest.raises(ShardError, match="train-000001.tar: got 512 bytes"):
        repack([source], tmp_path / "other", RepackConfig(samples_per_shard=3))


def test_samples_are_never_all_in_memory(tmp_path: Path, make_sample: MakeSample) -> None:
    """Oracle: tracemalloc's peak while 80 MB go through in a new order stays under 48 MB."""

    def big(first: int) -> Iterator[Sample]:
        for index in range(first, first + 40):
            yield replace(make_sample(index), image=bytes([index]) * 1_000_000)

    source = tmp_path / "source"
    for number in range(2):
        write_shard(source / f"{number}.tar", big(40 * number), fingerprint={})
    write_catalog(source, kind="objects", splits={"0.tar": "train", "1.tar": "train"}, metadata={})
    tracemalloc.start()
    try:
        repack([source], tmp_path / "out", RepackConfig(samples_per_shard=60, seed=0))
        assert tracemalloc.get_traced_memory()[1] < 48_000_000
    finally:
        tracemalloc.stop()


def _repack_until(source: Path, out: Path, moment: int) -> None:
    """A repack that kills itself before the `moment`-th call that changes the disk."""
    die_before(moment, ("fsync", "replace"))
    repack([source], out, RepackConfig(samples_per_shard=4, seed=3))


def test_a_killed_repack_goes_on_where_it_was(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Oracle: an undisturbed run's bytes; finished shards keep their inodes; no file besides."""
    source = make_folder(tmp_path / "source", [3, 2, 1, 4])
    lone = tmp_path / "lone"
    repack([source], lone, RepackConfig(samples_per_shard=4, seed=3))
    fork = multiprocessing.get_context("fork")
    for moment in range(1, 100):
        out = tmp_path / str(moment)
        process = fork.Process(target=_repack_until, args=(source, out, moment))
        process.start()
        process.join()
        done = {tar: tar.stat().st_ino for tar in out.glob("*.tar") if manifest_path(tar).exists()}
        repack([source], out, RepackConfig(samples_per_shard=4, seed=3))
        assert {tar: tar.stat().st_ino for tar in done} == done
        assert _files(out) == _files(lone)
        shutil.rmtree(out)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert moment > 20 and len(done) == 3
