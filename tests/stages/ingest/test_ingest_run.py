"""The runner: what is done stays, what is not is made again to the same bytes.

Oracle: SHA-256 of every file of an undisturbed run, and stock webdataset as the reader.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import webdataset
from ingest_corpora import captions_of, encoded, samples, write_json

from sharding.coordination.work_queue import request_rewrites
from sharding.format.catalog import Catalog, read_catalog
from sharding.format.manifest import manifest_path, read_manifest
from sharding.format.schema import ShardError, check_key
from sharding.reading.sample_reader import iterate
from sharding.writing.shard_writer import write_shard
from stages.ingest import run
from stages.ingest.config import IngestConfig
from stages.ingest.run import ingest, plan_shards
from stages.ingest.sources.source import Failure, Picture, SourceError, safe_key
from stages.ingest.splits import draw_split

TOY = IngestConfig(num_train=60, num_heldout=10, samples_per_shard=8)
NUM_TOY_SHARDS = 8 + 2
ROOT = Path(__file__).resolve().parents[3]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder, hidden ones too."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar*")}


def coco(tmp_path: Path, count: int, *, write: bool = True) -> Catalog:
    """Ingest `count` pictures made by hand, into `out`; those that lie there without `write`."""
    (tmp_path / "p").mkdir(exist_ok=True)
    for number in range(count if write else 0):
        (tmp_path / "p" / f"{number:03d}.jpg").write_bytes(encoded(seed=number))
    content = captions_of({f"{number:03d}.jpg": [f"caption {number}"] for number in range(count)})
    captions = write_json(tmp_path / "c.json", content)
    config = IngestConfig(
        source="coco", root=str(tmp_path / "p"), captions=captions, samples_per_shard=4
    )
    return ingest(config, seed=3, out=tmp_path / "out")


def test_the_catalog_counts_what_is_there(tmp_path: Path) -> None:
    catalog = ingest(TOY, seed=1, out=tmp_path)
    assert catalog == read_catalog(tmp_path) and catalog.kind == "images"
    assert len(catalog.shards) == NUM_TOY_SHARDS
    assert [len(catalog.tars(tmp_path, split)) for split in ("train", "heldout")] == [8, 2]
    assert catalog.metadata["source"] == "toy" and "circle" in catalog.metadata["label_names"]
    assert len(samples(tmp_path, catalog)) == 70


def test_stock_webdataset_reads_every_sample(tmp_path: Path) -> None:
    catalog = ingest(TOY, seed=1, out=tmp_path)
    ours = samples(tmp_path, catalog)
    tars = [str(tmp_path / shard.tar) for shard in catalog.shards]
    theirs = {s["__key__"]: s for s in webdataset.WebDataset(tars, shardshuffle=False)}
    assert theirs.keys() == ours.keys()
    for key, sample in ours.items():
        assert theirs[key]["jpg"] == sample.image
        assert json.loads(theirs[key]["json"]) == sample.info


def test_no_byte_depends_on_the_order_of_sets(tmp_path: Path) -> None:
    """PYTHONHASHSEED sets the order of sets and differs from process to process. Oracle: all files
    of two processes with different ones, and of a repack in another order."""
    code = """
import sys; from pathlib import Path
from sharding.tools.repack import RepackConfig, repack
from stages.ingest.config import IngestConfig
from stages.ingest.run import ingest
out = Path(sys.argv[1])
ingest(IngestConfig(num_train=12, num_heldout=4, samples_per_shard=4), seed=3, out=out / "a")
repack([out / "a"], out / "b", RepackConfig(samples_per_shard=5, seed=7))
"""
    trees = []
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / seed)], env=env, check=True)
        files = [path for path in (tmp_path / seed).rglob("*") if path.is_file()]
        trees.append({str(f.relative_to(tmp_path / seed)): f.read_bytes() for f in files})
    assert trees[0] == trees[1] and len(trees[0]) > 10


def test_a_second_run_touches_no_shard(tmp_path: Path) -> None:
    ingest(TOY, seed=1, out=tmp_path)
    before = times(tmp_path), digests(tmp_path)
    ingest(TOY, seed=1, out=tmp_path)
    assert (times(tmp_path), digests(tmp_path)) == before


@pytest.mark.parametrize("lost", ["train-000003.tar.json", "train-000003.tar", "catalog.json"])
def test_what_is_lost_is_made_again_and_only_that(tmp_path: Path, lost: str) -> None:
    ingest(TOY, seed=1, out=tmp_path)
    sums, before = digests(tmp_path), times(tmp_path)
    (tmp_path / lost).unlink()
    ingest(TOY, seed=1, out=tmp_path)
    assert digests(tmp_path) == sums
    changed = {name for name, time_ns in times(tmp_path).items() if time_ns != before[name]}
    assert changed <= {"train-000003.tar", "train-000003.tar.json"}


def test_a_truncated_shard_is_made_again(tmp_path: Path) -> None:
    ingest(TOY, seed=1, out=tmp_path)
    sums = digests(tmp_path)
    os.truncate(tmp_path / "train-000001.tar", 5000)
    ingest(TOY, seed=1, out=tmp_path)
    assert digests(tmp_path) == sums


def test_kill_9_at_several_moments_ends_in_the_same_bytes(tmp_path: Path) -> None:
    """A process is killed when its 1st, 3rd, ... tar appears; the last one runs through."""
    ingest(TOY, seed=1, out=tmp_path / "calm")
    out = tmp_path / "killed"
    code = (
        "from pathlib import Path; from stages.ingest.run import ingest;"
        "from stages.ingest.config import IngestConfig;"
        "ingest(IngestConfig(num_train=60, num_heldout=10, samples_per_shard=8), seed=1,"
        f" out=Path({str(out)!r}))"
    )
    root = Path(__file__).resolve().parents[3]
    num_killed = 0
    for num_tars in (1, 3, 6):
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=root,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        while process.poll() is None and len(list(out.glob("*.tar"))) < num_tars:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        num_killed += process.wait() == -signal.SIGKILL
        assert not (out / "catalog.json").exists()
    assert num_killed == 3
    ingest(TOY, seed=1, out=out)
    assert digests(out) == digests(tmp_path / "calm")


def test_several_processes_share_and_end_in_the_same_bytes(tmp_path: Path) -> None:
    """One of three is killed on the way; oracle: the folder of one that was alone."""
    ingest(TOY, seed=1, out=tmp_path / "calm")
    code = (
        "import sys; from pathlib import Path; from stages.ingest.run import ingest;"
        "from stages.ingest.config import IngestConfig;"
        "ingest(IngestConfig(num_train=60, num_heldout=10, samples_per_shard=8), seed=1,"
        " out=Path(sys.argv[1]), show=False)"
    )
    root = Path(__file__).resolve().parents[3]
    out = tmp_path / "shared"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(out)],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        for _ in range(3)
    ]
    while len(list(out.glob("*.tar"))) < 2:
        time.sleep(0.001)
    workers[0].kill()
    assert [worker.wait() for worker in workers][1:] == [0, 0]
    assert digests(out) == digests(tmp_path / "calm")


def test_only_what_failed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pictures are broken and repaired, byte for byte as long as before. Oracle: the inputs
    that are read again, and the bytes of an ingest that saw no broken one."""
    coco(tmp_path, 9)
    expected = digests(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    for number in (2, 7):
        path = tmp_path / "p" / f"{number:03d}.jpg"
        path.write_bytes(bytes(path.stat().st_size))
    broken = coco(tmp_path, 9, write=False)
    failed = [shard.tar for shard in broken.shards if shard.num_failed]
    assert sum(shard.num_failed for shard in broken.shards) == 2
    for number in (2, 7):
        (tmp_path / "p" / f"{number:03d}.jpg").write_bytes(encoded(seed=number))
    made: list[str] = []
    real = run.make_sample

    def counted(picture: Picture, config: IngestConfig) -> object:
        made.append(picture.key)
        return real(picture, config)

    monkeypatch.setattr(run, "make_sample", counted)
    coco(tmp_path, 9, write=False)
    assert made == []
    request_rewrites(tmp_path / "out", failed)
    coco(tmp_path, 9, write=False)
    assert sorted(made) == ["002", "007"]
    assert digests(tmp_path / "out") == expected


def test_a_changed_picture_leaves_other_shards_alone(tmp_path: Path) -> None:
    """One picture of another size. Oracle: times of the shards."""
    coco(tmp_path, 9)
    before = times(tmp_path / "out")
    (tmp_path / "p/002.jpg").write_bytes(encoded(seed=99, width=50))
    coco(tmp_path, 9, write=False)
    changed = {name for name, time_ns in times(tmp_path / "out").items() if time_ns != before[name]}
    assert len(changed) == 2 and len(before) > 4


def test_an_input_that_a_shard_lost_is_named(tmp_path: Path) -> None:
    """Oracle: a shard of the right fingerprint that one input is missing from."""
    ingest(TOY, seed=1, out=tmp_path)
    tar = tmp_path / "train-000002.tar"
    fingerprint = read_manifest(tar).fingerprint
    write_shard(tar, list(iterate(tar))[1:], fingerprint=fingerprint)
    with pytest.raises(ShardError, match=r"train-000002.tar: got 7 .* 8 inputs: 1 are lost \(toy-"):
        ingest(TOY, seed=1, out=tmp_path)


def test_another_recipe_rewrites_and_clears_what_it_does_not_know(tmp_path: Path) -> None:
    """Larger shards are fewer: the old ones go, another program's tar stays."""
    ingest(TOY, seed=1, out=tmp_path / "a")
    (tmp_path / "a/train-999999.tar").write_bytes(b"another program's")
    larger = IngestConfig(num_train=60, num_heldout=10, samples_per_shard=30)
    ingest(larger, seed=1, out=tmp_path / "a")
    ingest(larger, seed=1, out=tmp_path / "b")
    (tmp_path / "a/train-999999.tar").unlink()
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_there_is_no_catalog_while_shards_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A catalog means a complete folder; one that mixes two ingests has none."""
    ingest(TOY, seed=1, out=tmp_path)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stages.ingest.run.make_sample", stop)
    with pytest.raises(KeyboardInterrupt):
        ingest(TOY, seed=2, out=tmp_path)
    assert not (tmp_path / "catalog.json").exists()


def test_changed_input_is_taken_up(tmp_path: Path) -> None:
    """A new picture, then other words of the same length: each time the shards follow."""
    before = coco(tmp_path, 9)
    assert sum(shard.num_ok for shard in before.shards) == 9
    after = coco(tmp_path, 10)
    assert sum(shard.num_ok for shard in after.shards) == 10
    text = (tmp_path / "c.json").read_text().replace("caption 5", "CAPTION 5")
    (tmp_path / "c.json").write_text(text)
    config = IngestConfig(
        source="coco",
        root=str(tmp_path / "p"),
        captions=str(tmp_path / "c.json"),
        samples_per_shard=4,
    )
    catalog = ingest(config, seed=3, out=tmp_path / "out")
    assert samples(tmp_path / "out", catalog)["005"].info["captions"] == ["CAPTION 5"]


def test_a_moved_corpus_is_the_same_corpus(tmp_path: Path) -> None:
    coco(tmp_path, 9)
    before = times(tmp_path / "out")
    (tmp_path / "p").rename(tmp_path / "q")
    config = IngestConfig(
        source="coco",
        root=str(tmp_path / "q"),
        captions=str(tmp_path / "c.json"),
        samples_per_shard=4,
    )
    ingest(config, seed=3, out=tmp_path / "out")
    assert times(tmp_path / "out") == before


def test_the_fingerprint_names_what_shaped_a_shard(tmp_path: Path) -> None:
    catalog = ingest(TOY, seed=1, out=tmp_path)
    fingerprint = read_manifest(tmp_path / catalog.shards[0].tar).fingerprint
    assert fingerprint["seed"] == "1" and fingerprint["ingest.samples_per_shard"] == "8"
    assert {"stage", "corpus", "versions", "ingest.source"} <= fingerprint.keys()
    assert "ingest.root" not in fingerprint


def test_finished_shards_of_another_pillow_are_accepted_where_the_recipe_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: times and fingerprints of the files; a shard that is missing is made by this Pillow,
    one of another seed is no shard of another version."""
    tars = [shard.tar for shard in ingest(TOY, seed=1, out=tmp_path).shards]
    before, accepting = times(tmp_path), replace(TOY, accept_versions=True)
    monkeypatch.setattr(run, "library_versions", lambda *names: "Pillow 99.0")
    (tmp_path / tars[1]).unlink()
    ingest(accepting, seed=1, out=tmp_path)
    assert {name for name, when in times(tmp_path).items() if before[name] != when} == {
        tars[1],
        f"{tars[1]}.json",
    }
    versions = {tar: read_manifest(tmp_path / tar).fingerprint["versions"] for tar in tars}
    assert versions[tars[1]] == "Pillow 99.0"
    assert len(set(versions.values())) == 2
    assert f"{len(tars) - 1} finished shards are of Pillow" in capsys.readouterr().out
    request_rewrites(tmp_path, [tars[0]])
    ingest(accepting, seed=1, out=tmp_path)
    assert read_manifest(tmp_path / tars[0]).fingerprint["versions"] == "Pillow 99.0"
    ingest(TOY, seed=1, out=tmp_path)
    assert {read_manifest(tmp_path / tar).fingerprint["versions"] for tar in tars} == {
        "Pillow 99.0"
    }


def test_nothing_held_out_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ingest(IngestConfig(num_train=5, num_heldout=0), seed=1, out=tmp_path)
    assert "warning: nothing is held out" in capsys.readouterr().out


def test_nothing_to_train_on_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p/a.jpg").write_bytes(encoded())
    captions = write_json(tmp_path / "c.json", captions_of({"a.jpg": ["a"]}))
    config = IngestConfig(
        source="coco", root=str(tmp_path / "p"), captions=captions, heldout_fraction=0.999
    )
    with pytest.raises(SourceError, match="no picture to train on .*heldout_fraction = 0.999"):
        ingest(config, seed=3, out=tmp_path / "out")


def picture(key: str, split: str) -> Picture:
    return Picture(key=key, split=split, read=bytes, captions=("a",), fields={}, origin=f"{key}!")


def test_inputs_are_dealt_in_order() -> None:
    """Input i of a split into shard i // 2; a second "b" fails in its place, in its own split."""
    inputs: list[Picture | Failure] = [
        picture("a", "train"),
        picture("b", "heldout"),
        Failure(key="x", reason="r"),
        picture("c", "train"),
        picture("b", "train"),
    ]
    plan = plan_shards(inputs, samples_per_shard=2)
    assert [(shard.tar, [i.key for i in shard.inputs]) for shard in plan] == [
        ("heldout-000000.tar", ["b"]),
        ("train-000000.tar", ["a", "x"]),
        ("train-000001.tar", ["c", "b"]),
    ]
    assert plan[2].inputs[1] == Failure(key="b", reason="duplicate key: b! after b!")


def test_the_split_is_a_hash_of_seed_and_group() -> None:
    """About the share asked for; other seeds choose others; a larger share only adds groups."""

    def held_out(seed: int, share: float) -> set[int]:
        return {
            n
            for n in range(2000)
            if draw_split(str(n), seed=seed, heldout_fraction=share) == "heldout"
        }

    assert 150 < len(held_out(0, 0.1)) < 250
    assert held_out(0, 0.1) != held_out(1, 0.1)
    assert held_out(0, 0.1) < held_out(0, 0.2)
    assert not held_out(0, 0.0)


def test_keys_are_safe_and_never_meet() -> None:
    names = ["a b", "a.b", "a/b", "a_b", "\u00e9", "\udcff", "", "x" * 80, "x" * 81, "x" * 90]
    keys = [safe_key(name) for name in names]
    assert len(set(keys)) == len(names) and keys[3] == "a_b" and keys[7] == "x" * 80
    for key in keys:
        check_key(key)


def test_manifest_lies_beside_its_tar(tmp_path: Path) -> None:
    catalog = ingest(TOY, seed=1, out=tmp_path)
    files = {shard.tar for shard in catalog.shards}
    expected = files | {manifest_path(Path(tar)).name for tar in files}
    expected |= {"catalog.json", "catalog.shapes.npy"}
    assert {path.name for path in tmp_path.iterdir()} == expected
