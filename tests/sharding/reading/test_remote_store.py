"""Tests of sharding.reading.remote_store through streams: remote shards by ranges, over memory and
a real server."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from range_server import RangeServer
from torch.utils.data import DataLoader

from sharding.format.catalog import read_catalog
from sharding.format.manifest import manifest_path, read_manifest
from sharding.format.schema import Sample, ShardError
from sharding.reading import range_reader
from sharding.reading.dataset_source import DatasetSource
from sharding.reading.local_store import LocalStore
from sharding.reading.remote_store import RemoteStore, open_store
from sharding.reading.sample_reader import iterate
from sharding.reading.stream import ShardStream, positions
from sharding.writing.shard_writer import write_shard

pytest.importorskip("aiohttp", reason="fsspec reads http through aiohttp, which is not installed")
MakeFolder = Callable[..., Path]
TAR = "train-000000.tar"


@pytest.fixture
def server(tmp_path: Path, make_folder: MakeFolder) -> Iterator[RangeServer]:
    server = RangeServer(make_folder(tmp_path / "far", [6, 5]))
    yield server
    server.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_reader, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(range_reader, "ATTEMPT_SECONDS", 0.5)
    monkeypatch.setattr(range_reader, "NUM_ATTEMPTS", 2)
    monkeypatch.setattr(range_reader, "RETRY_SECONDS", 0.8)


def _stream(folder: str | Path, **changes: Any) -> ShardStream:
    config = {"seed": 1, "micro_batch_size": 4, "window_num_shards": 2, "shape_step_px": 16}
    return ShardStream([DatasetSource(folder)], **{**config, **changes})


def _bytes(sample: Sample) -> tuple[object, ...]:
    assert sample.objects is not None
    return sample.key, sample.image, sample.extension, sample.info, sample.objects.tobytes()


def _epoch(stream: ShardStream, **settings: Any) -> list[list[tuple[object, ...]]]:
    order = positions(0, 0, 1, stream.num_micro_batches)
    loader = DataLoader(stream, batch_size=None, sampler=order, **settings)
    return [[_bytes(sample) for sample in batch] for batch in loader]


def test_far_shards_give_the_same_samples(server: RangeServer) -> None:
    """Oracle: the stream of the folder itself; the parent has read before its workers start."""
    far = _stream(server.url)
    expected = _epoch(_stream(server.folder))
    assert list(map(_bytes, far[0])) == expected[0]
    assert _epoch(far) == _epoch(far, num_workers=2) == expected


def test_synchronous_file_systems_too(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Oracle: the local stream. fsspec's memory is one that is not asynchronous."""
    folder = make_folder(tmp_path, [6, 5])
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe_file(f"/bucket/set/{path.name}", path.read_bytes())
    assert _epoch(_stream("memory://bucket/set")) == _epoch(_stream(folder))
    memory.rm_file(f"/bucket/set/{TAR}")
    with pytest.raises(ShardError, match=f"//bucket/set/{TAR}: sample picture-0000.*NotFound"):
        _epoch(_stream("memory://bucket/set"))


def test_catalogs_older_than_their_shapes_are_read_by_manifests(server: RangeServer) -> None:
    """Oracle: the stream before the catalog lost its shapes; the position's meaning stays."""
    before = _epoch(_stream(server.url))
    catalog = server.folder / "catalog.json"
    text = catalog.read_text().replace(str(read_catalog(server.folder).shapes_sha256), "00" * 32)
    catalog.write_text(text)
    with pytest.raises(ShardError, match="catalog.shapes.npy: got SHA-256"):
        _stream(server.url)
    catalog.write_text(text.replace(f'"{"00" * 32}"', "null"))
    assert _epoch(_stream(server.url)) == before == _epoch(_stream(server.folder))


def test_the_cache_spares_the_server(server: RangeServer) -> None:
    """Oracle: the server's count: a second epoch asks nothing of it, without a cache all again."""
    for cache_bytes, again in ((1 << 20, 0), (0, 11)):
        stream = _stream(server.url, cache_bytes=cache_bytes)
        first = _epoch(stream)
        before = server.num_requests.total()
        assert _epoch(stream) == first
        assert server.num_requests.total() - before == again


@pytest.mark.parametrize("context, num_workers", [("fork", 2), ("spawn", 1)])
def test_the_workers_of_a_rank_share_its_cache_and_board(
    server: RangeServer, context: str, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the server's count: what workers read, the rank need not; its board saw them all."""
    # On a busy machine half a second is too short for an answer, and a repeated request counts.
    monkeypatch.setattr(range_reader, "ATTEMPT_SECONDS", 60.0)
    monkeypatch.setattr(range_reader, "RETRY_SECONDS", 60.0)
    stream = _stream(server.url)
    first = _epoch(stream, num_workers=num_workers, multiprocessing_context=context)
    before = server.num_requests[TAR]
    assert _epoch(stream) == first == _epoch(_stream(server.folder))
    assert server.num_requests[TAR] == before
    assert {line.worker for line in stream.board.activities()} == {None, *range(num_workers)}


@pytest.mark.parametrize("fault", ["500", "503", "cut", "stall", "stall half way", "page"])
def test_what_passes_is_asked_for_again(
    server: RangeServer, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Oracle: the local stream, though the first answer for every file is wrong; and a note."""
    server.misbehave = lambda name, number: None if number else fault
    assert _epoch(_stream(server.url)) == _epoch(_stream(server.folder))
    notes = capfd.readouterr().out
    assert notes.startswith(f"WARNING: {server.url}/catalog.json: got ")
    assert all("; trying again in " in note for note in notes.splitlines())


def test_a_store_is_left_alone_for_as_long_as_it_asks(
    server: RangeServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the second that the server's Retry-After asks for, with the status 429."""
    monkeypatch.setattr(range_reader, "ATTEMPT_SECONDS", 60.0)
    monkeypatch.setattr(range_reader, "RETRY_SECONDS", 60.0)
    server.misbehave = lambda name, number: "429" if number == 0 and name == TAR else None
    assert _epoch(_stream(server.url)) == _epoch(_stream(server.folder))
    (note,) = capfd.readouterr().out.splitlines()
    assert note.startswith(f"WARNING: {server.url}/{TAR}: got 429")
    assert note.endswith("; trying again in 1.0 s")


def test_a_store_that_has_answered_is_waited_for_longer(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the local stream, though a shard has six answers of 503, and two are all that a store
    gets that never answered."""
    monkeypatch.setattr(range_reader, "RETRY_SECONDS", 20.0)
    server.misbehave = lambda name, number: "503" if name == TAR and number < 6 else None
    assert _epoch(_stream(server.url)) == _epoch(_stream(server.folder))
    server.misbehave = lambda name, number: "503"
    server.num_requests.clear()
    with pytest.raises(ShardError, match="got ClientResponseError 503.*check that it is up"):
        _stream(server.url)
    assert server.num_requests == {"catalog.json": 2}


def test_redirects_are_followed(server: RangeServer) -> None:
    """Oracle: the local stream, though every file is elsewhere."""
    server.misbehave = lambda name, number: "redirect"
    assert _epoch(_stream(server.url)) == _epoch(_stream(server.folder))


@pytest.mark.parametrize(
    "fault, cause",
    [
        ("500", "500"),
        ("403", "403"),
        ("cut", "ClientPayloadError"),
        ("short", "cut short"),
        ("416", "cut short"),
        ("page", "got a web page of 5. bytes.*a page to log in"),
        ("stall", "TimeoutError"),
        ("stall half way", "TimeoutError"),
    ],
)
def test_what_stays_wrong_is_named(server: RangeServer, fault: str, cause: str) -> None:
    """Oracle: URL, shard, key and cause; a lenient reader gets every sample of the other shard."""
    server.misbehave = lambda name, number: fault if name == TAR else None
    stream = _stream(server.url, micro_batch_size=11, shape_step_px=64)
    with pytest.raises(ShardError, match=f"{server.url}/{TAR}: sample picture-0.*{cause}"):
        stream[0]
    reading = stream.read(0)
    assert {sample.key for sample in reading.samples} == {
        f"picture-{index:05d}" for index in range(6, 11)
    }
    assert {(found.tar, found.key) for found in reading.faults} == {
        (f"{server.url}/{TAR}", f"picture-{index:05d}") for index in range(6)
    }
    assert all(re.search(cause, found.cause) for found in reading.faults)


@pytest.mark.parametrize("fault, num_requests", [("416", 1), ("page", 2), ("short", 2)])
def test_a_bad_answer_for_one_shard_is_no_outage(
    server: RangeServer, fault: str, num_requests: int
) -> None:
    """Oracle: a reader that waits for its store ends with the shard's samples as faults, after as
    many requests as are made of a store that never answered; one where no other can help."""
    server.misbehave = lambda name, number: fault if name == TAR else None
    stream = _stream(server.url, micro_batch_size=11, shape_step_px=64, waits_for_store=True)
    server.num_requests.clear()
    assert len(stream.read(0).faults) == 6
    assert server.num_requests[TAR] == 6 * num_requests


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("page", "catalog.json: got a web page"),
        ("429", "check that it is up"),
        ("403", "the store refuses: give the credentials"),
        ("500", "check that it is up"),
        ("stall", "check that it is up"),
        ("404", "run the stage that writes it to its end"),
    ],
)
def test_a_catalog_that_cannot_be_had_is_not_one_that_is_not_finished(
    server: RangeServer, fault: str, expected: str
) -> None:
    """Oracle: the advice, by hand; only where no catalog is does a stage help."""
    server.misbehave = lambda name, number: fault
    with pytest.raises(ShardError, match=expected) as caught:
        _stream(server.url)
    assert ("run the stage" in str(caught.value)) == (fault == "404")


def test_a_server_without_ranges_is_asked_once(server: RangeServer) -> None:
    """Oracle: the server's count: a whole shard comes once, not once a sample."""
    server.misbehave = lambda name, number: "no ranges"
    reading = _stream(server.url, micro_batch_size=11, shape_step_px=64).read(0)
    assert len(reading.faults) == 11
    assert all("the server does not support ranges" in found.cause for found in reading.faults)
    assert server.num_requests[TAR] + server.num_requests["train-000001.tar"] == 1


def _cut(tar: Path) -> None:
    os.truncate(tar, read_manifest(tar).samples[-1].members["objects.npy"][0])


def _flip(tar: Path) -> None:
    data = bytearray(tar.read_bytes())
    data[read_manifest(tar).samples[2].members["json"][0]] ^= 1
    tar.write_bytes(data)


def _write_again(tar: Path) -> None:
    write_shard(tar, list(iterate(tar))[::-1], fingerprint={})


@pytest.mark.parametrize(
    "damage, cause",
    [
        (_cut, "sample picture-00005: got .*cut short"),
        (_flip, "sample picture-00002: got CRC-32"),
        (_write_again, "written again since; .* start again"),
        (lambda tar: tar.unlink(), "sample picture-0000.: got FileNotFoundError"),
        (
            lambda tar: manifest_path(tar).unlink(),
            "FileNotFoundError.* expected the shard's manifest",
        ),
    ],
    ids=["cut", "flipped", "replaced", "tar deleted", "manifest deleted"],
)
@pytest.mark.parametrize("opened", [True, False], ids=["while reading", "before"])
def test_damage_far_away_is_named(
    server: RangeServer, damage: Callable[[Path], None], cause: str, opened: bool
) -> None:
    """Oracle: shard, key and cause, whether the manifest had been read before or not."""
    stream = _stream(server.url, cache_bytes=0)
    if opened:
        _epoch(stream)
    damage(server.folder / TAR)
    if opened and "manifest" in cause:
        _epoch(stream)  # has it already, and it was right
        return
    with pytest.raises(ShardError, match=f"{server.url}/{TAR}.*{cause}"):
        _epoch(stream)


@pytest.mark.parametrize(
    "url",
    [
        "reference://set",
        "dask://x/set",
        "simplecache::http://127.0.0.1/set",
        "zip://a::memory://b.zip",
        "memory://a::file:///etc",
        "python://x",
        "nothing://x",
    ],
)
def test_urls_that_read_elsewhere_are_refused(url: str) -> None:
    """Oracle: ShardError, before anything is read."""
    with pytest.raises(ShardError, match="expected the place of the shards|expected a URL that"):
        open_store(url, cache=None)


@pytest.mark.parametrize("url", ["http://127.0.0.1/set?token=abc", "https://127.0.0.1/set#part"])
def test_urls_with_a_query_are_refused(url: str) -> None:
    """Oracle: ShardError; the names of files would become a part of the query."""
    with pytest.raises(ShardError, match="got a URL with a query"):
        open_store(url, cache=None)


@pytest.mark.parametrize(
    "name",
    ["../x.tar", "a/b.tar", "a?b.tar", "a#b.tar", "%2e%2e.tar", ".tar", "*.tar", "a\nb.tar", ""],
)
def test_names_go_behind_a_url_only_if_plain(name: str) -> None:
    """Oracle: the error; a plain name is read."""
    fsspec.filesystem("memory").pipe_file("/set/x.tar", b"x")
    with pytest.raises(ShardError, match="expected letters, digits"):
        RemoteStore("memory://set", cache=None).read_file(name)
    assert RemoteStore("memory://set/", cache=None).read_file("x.tar") == b"x"


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    """Oracle: the type, and the path."""
    store = open_store(f"file://{tmp_path}", cache=None)
    assert isinstance(store, LocalStore) and store.where == str(tmp_path)
