"""Tests of sharding.coordination.claims: workers in threads of this process, each with a file and a
lock of its own as in processes; who dies is a process of its own."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from claim_workers import (
    SETTINGS,
    TARS,
    killed_holder,
    killed_holder_of_catalog,
    make_worker,
    samples,
    tree,
    work,
)

from sharding.coordination import claims, heartbeat, work_queue
from sharding.coordination.attempts import FailedAttempt
from sharding.coordination.claim_folder import ClaimFolder
from sharding.coordination.claims import ShardsFailed, Worker
from sharding.coordination.work_queue import FOLDER, request_rewrites, rewrite_requests
from sharding.format.catalog import write_catalog
from sharding.format.manifest import is_done
from sharding.format.schema import Sample, ShardError
from sharding.writing.atomic import remove_temporary
from sharding.writing.shard_writer import write_shard


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """The files that one worker alone leaves."""
    work(tmp_path / "alone")
    return tree(tmp_path / "alone")


def test_one_worker_makes_all_and_leaves_nothing_else(whole: dict[str, bytes]) -> None:
    """Oracle: the folder's listing, spelled out."""
    names = {name for tar in TARS for name in (tar, f"{tar}.json")}
    assert {name for name in whole if not name.startswith("catalog.")} == names


def test_workers_share_and_none_makes_what_another_made(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Oracle: the tars that each says it wrote, together every one once; the bytes of one worker
    alone."""
    with ThreadPoolExecutor(4) as pool:
        wrote = list(
            pool.map(
                lambda _: work(tmp_path / "out", before_each=lambda tar: time.sleep(0.02)), range(4)
            )
        )
    assert sorted(tar for some in wrote for tar in some) == sorted(TARS)
    assert tree(tmp_path / "out") == whole


def test_a_worker_killed_on_this_machine_is_replaced_at_once(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Its lease would last ten minutes more, beyond any patience of a test run."""
    out, said = tmp_path / "out", list[str]()
    tar = killed_holder(out, lease_seconds=600.0)
    assert (out / FOLDER / f"{tar}.claim").exists()
    assert work(out, log=said.append)[-1:] and tree(out) == whole
    assert len(said) == 1 and said[0].startswith(f"Took over {tar} from ")
    assert "whose process has ended" in said[0]


@pytest.mark.parametrize("minutes", [-120, 0, 120])
def test_of_another_machine_only_the_counter_counts(
    tmp_path: Path, whole: dict[str, bytes], minutes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File times are those of clocks that are hours off. Oracle: a claim stays while its counter
    moves, and for a lease of this process's own clock, which the test sets, after that."""
    out, now = tmp_path / "out", [1000.0]
    tar = killed_holder(out, machine="elsewhere", lease_seconds=0.5)
    claim = out / FOLDER / f"{tar}.claim"
    when = time.time() + 60 * minutes
    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    monkeypatch.setattr(heartbeat, "time", clock)
    with make_worker(out) as worker:
        for number in range(8):
            content = json.loads(claim.read_bytes())
            content["counter"] += 1
            with open(claim, "r+b") as beating:
                beating.write(json.dumps(content).encode().ljust(1024))
            os.utime(claim, (when, when))
            assert not worker._claims.claim(tar)
            now[0] += 0.4
        assert not worker._claims.claim(tar)
        now[0] += 0.2
        os.utime(claim, (time.time() + 60, time.time() + 60))
        assert worker._claims.claim(tar)
        worker._claims.release(tar)
    monkeypatch.undo()
    assert len(work(out)) == len(TARS)
    assert tree(out) == whole


def test_a_claim_that_changed_hands_while_it_was_judged_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between judging a dead worker's claim and renaming it, another one takes it. Oracle: the
    other one has it afterwards."""
    tar = killed_holder(tmp_path)
    claim, real = tmp_path / FOLDER / f"{tar}.claim", os.rename
    with make_worker(tmp_path) as other, make_worker(tmp_path) as slow:

        def change_hands(source: Any, target: Any) -> None:
            monkeypatch.setattr(os, "rename", real)
            claim.unlink()
            os.link(other._claims.heartbeat.path, claim)
            real(source, target)

        monkeypatch.setattr(os, "rename", change_hands)
        assert not slow._claims.claim(tar)
        assert other._claims.is_held(tar)
        assert not list((tmp_path / FOLDER).glob(f".{tar}*"))


def test_a_worker_that_was_taken_for_dead_gives_up_and_goes_on(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """In the middle of its shard its claim passes to another worker. Oracle: it renames nothing,
    says so, and makes the rest."""
    out, said = tmp_path / "out", list[str]()
    with make_worker(out) as other:

        def lose(tar: str) -> None:
            if tar == min(TARS):
                claim = out / FOLDER / f"{tar}.claim"
                if not other._claims.is_held(tar) and not said:
                    claim.unlink()
                    assert other._claims.claim(tar)
                    threading.Timer(0.2, other._claims.release, [tar]).start()

        wrote = work(out, before_each=lose, log=said.append)
    assert said == [
        f"Lost the claim of {min(TARS)}: this worker's heartbeat was silent for longer than its "
        "lease, and another worker took it over."
    ]
    assert wrote[-1] == min(TARS) and sorted(wrote) == sorted(TARS)
    assert tree(out) == whole


def test_a_writer_whose_temporary_file_is_gone_goes_on(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """As when the others finished while it was stopped, and tidied up. Oracle: the whole folder."""
    out, seen = tmp_path / "out", list[str]()

    def displaced(tar: str) -> list[Sample]:
        if not seen:
            remove_temporary(out, {tar})
        seen.append(tar)
        return samples(tar)

    with make_worker(out) as worker:
        for claim in worker.claims():
            with claim:
                results = (one for _ in range(1) for one in displaced(claim.tar))
                write_shard(out / claim.tar, claim.track(results), fingerprint=SETTINGS)
    assert seen[0] == seen[-1] and len(seen) == len(TARS) + 1
    assert work(out) == []
    assert tree(out) == whole


def test_an_error_of_the_disk_gives_the_shard_back(tmp_path: Path) -> None:
    """Oracle: no claim is left, and another worker gets the same shard."""
    with pytest.raises(OSError, match="broke"):
        with make_worker(tmp_path) as worker:
            for claim in worker.claims():
                with claim:
                    raise OSError("broke")
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["plan.json"]
    assert len(work(tmp_path)) == len(TARS)


def test_a_shard_that_fails_twice_is_set_aside_and_listed(tmp_path: Path) -> None:
    """Oracle: how often it was tried, by three workers one after the other and together; the others
    are done; a later run tries it again and, when it goes well, ends well."""
    bad, tried, lines = "train-000002.tar", list[str](), list[str]()

    def fail(tar: str) -> None:
        if tar == bad:
            tried.append(tar)
            raise RuntimeError("cannot be labelled")

    with pytest.raises(
        ShardsFailed, match=r"(?s)1 shards .*train-000002.tar: 2 attempts.*labelled"
    ):
        work(tmp_path, before_each=fail, log=lines.append)
    assert len(tried) == 2 and "attempt 1" in lines[0] and "RuntimeError" in lines[0]
    done = {tar for tar in TARS if is_done(tmp_path / tar, SETTINGS)}
    assert done == set(TARS) - {bad}

    def fail_alike(_: int) -> str:
        with pytest.raises(ShardsFailed) as caught:
            work(tmp_path, before_each=fail)
        return str(caught.value)

    tried.clear()
    with ThreadPoolExecutor(3) as pool:
        assert all(bad in text for text in pool.map(fail_alike, range(3)))
    assert 2 <= len(tried) <= 6  # one that comes when the others have gone starts over
    assert work(tmp_path) == [bad]
    assert not list((tmp_path / FOLDER).glob("*.failures"))


def test_a_shard_at_which_workers_died_says_so_once(tmp_path: Path) -> None:
    """Oracle: the line by hand, of a death as ClaimFolder records it."""
    ended = FailedAttempt(kind="died", worker="node:7", reason="node:7, whose process has ended")
    text = claims._describe_skipped(tmp_path, {"train-000002.tar": [ended] * 5})
    assert text.endswith(
        "\n  train-000002.tar: 5 attempts, the last: node:7, whose process has ended; killed (out of "
        "memory?) or crashed, see its log"
    )


def test_workers_that_start_together_try_anew_what_an_earlier_run_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sees the other before one works. Oracle: the shard that failed before gets done."""
    bad, both = "train-000002.tar", threading.Barrier(2)

    def fail(tar: str) -> None:
        if tar == bad:
            raise RuntimeError("cannot be labelled")

    with pytest.raises(ShardsFailed):
        work(tmp_path, before_each=fail)
    agree = ClaimFolder._agree

    def agree_together(self: ClaimFolder) -> object:
        others = agree(self)
        both.wait(60)
        return others

    monkeypatch.setattr(ClaimFolder, "_agree", agree_together)
    with ThreadPoolExecutor(2) as pool:
        wrote = list(pool.map(lambda _: work(tmp_path), range(2)))
    assert sum(wrote, []) == [bad]


def test_the_device_and_the_disk_end_the_worker_and_fail_no_shard(tmp_path: Path) -> None:
    """Oracle: the error comes out at once, and no attempt is counted."""
    for error in (RuntimeError("CUDA error: an illegal memory access"), OSError(28, "full")):
        with pytest.raises(type(error)):
            work(tmp_path, before_each=_raising(error))
        assert not list((tmp_path / FOLDER).glob("*.failures"))


def _raising(error: Exception) -> Callable[[str], None]:
    def fail(tar: str) -> None:
        raise error

    return fail


def test_a_worker_whose_work_stands_still_loses_its_claim(tmp_path: Path) -> None:
    """Its process lives and its heartbeat thread too. Oracle: another one writes the shard; the one
    that hung gives it up and continues; the attempt is counted."""
    hung, go_on, lines = threading.Event(), threading.Event(), list[str]()

    def hang(tar: str) -> None:
        if not hung.is_set():
            hung.set()
            assert go_on.wait(60)

    options = {"lease_seconds": 0.4, "stall_seconds": 0.4, "log": lines.append}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: work(tmp_path, before_each=hang, **options))
        assert hung.wait(60)
        with make_worker(tmp_path, **options) as other:
            wrote = []
            for claim in other.claims():
                with claim:
                    results = claim.track(samples(claim.tar))
                    write_shard(tmp_path / claim.tar, results, fingerprint=SETTINGS)
                    wrote.append(claim.tar)
            assert len(wrote) == len(TARS)
        go_on.set()
        assert first.result(60) == []
    assert any("work stalled" in line for line in lines)
    assert any(line.startswith("Lost the claim") for line in lines)


def test_a_shard_whose_tar_comes_into_sight_later_counts_as_done(tmp_path: Path) -> None:
    """As over NFS: the manifest is seen before its tar. Oracle: is_done of the queue, before and
    after, with the manifest untouched."""
    tar = min(TARS)
    write_shard(tmp_path / tar, samples(tar), fingerprint=SETTINGS)
    (tmp_path / tar).rename(tmp_path / "hidden")
    queue = work_queue.WorkQueue(tmp_path, dict.fromkeys(TARS, SETTINGS))
    assert not queue.is_done(tar) and not queue.is_done(tar)
    (tmp_path / "hidden").rename(tmp_path / tar)
    assert queue.is_done(tar)


def test_a_file_system_without_hard_links_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the error says what was asked for and what to do; nothing is left behind."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(ShardError, match="not permitted for a hard link"):
        work(tmp_path / "out")
    assert not any((tmp_path / "out").rglob("worker-*"))


def test_living_workers_of_other_settings_are_refused_and_dead_ones_replaced(
    tmp_path: Path,
) -> None:
    """Oracle: the error names what differs; after the first has gone the second makes all again."""
    other = {**SETTINGS, "weights": "2"}
    with make_worker(tmp_path):
        with pytest.raises(ShardError, match=r"other settings \(weights\) .*heartbeat"):
            work(tmp_path, other)
        with pytest.raises(ShardError, match=r"other settings \(inputs\)"):
            with Worker(tmp_path, TARS, {tar: {**SETTINGS, "input": tar} for tar in TARS}):
                pass
    killed_holder(tmp_path)
    assert len(work(tmp_path, other)) == len(TARS)
    assert all(is_done(tmp_path / tar, other) for tar in TARS)


def test_a_worker_that_slept_through_a_change_of_settings_stops(tmp_path: Path) -> None:
    """Oracle: it writes nothing over what the others of new settings made or make."""
    other = {**SETTINGS, "weights": "2"}
    with asleep(tmp_path) as slept:
        taking = slept.claims()
        with next(taking) as claim:
            write_shard(tmp_path / claim.tar, samples(claim.tar), fingerprint=SETTINGS)
        with make_worker(tmp_path, other):
            with pytest.raises(ShardError, match=r"\(weights\).* others that came after it"):
                next(taking)
    with asleep(tmp_path) as slept:
        work(tmp_path, other)
        with pytest.raises(ShardError, match="6 shards .* not as this worker makes them"):
            next(slept.claims())
    assert all(is_done(tmp_path / tar, other) for tar in TARS)


@contextlib.contextmanager
def asleep(out: Path) -> Iterator[Worker]:
    """A worker of another machine whose heartbeat has stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heartbeat, "this_machine", lambda: "elsewhere")
        with make_worker(out, lease_seconds=0.3) as worker:
            worker._claims.heartbeat._stopped.set()
            worker._claims.heartbeat._thread.join()
            patch.undo()
            yield worker


def test_what_is_asked_for_again_is_made_again_and_only_that(tmp_path: Path) -> None:
    """Oracle: the tars written; the asking ends when it is done, not when a worker takes it up."""
    work(tmp_path)
    tar = "train-000004.tar"
    request_rewrites(tmp_path, [tar])
    with pytest.raises(OSError):

        def broken(tar: str) -> None:
            raise OSError

        work(tmp_path, before_each=broken)
    assert rewrite_requests(tmp_path) == {tar}
    with make_worker(tmp_path) as worker:
        with next(worker.claims()) as claim:
            write_shard(tmp_path / claim.tar, samples(claim.tar), fingerprint=SETTINGS)
    assert claim.tar == tar and rewrite_requests(tmp_path) == set()
    request_rewrites(tmp_path, [tar])
    assert work(tmp_path) == [tar]
    assert work(tmp_path) == []
    assert not (tmp_path / FOLDER).exists()


def test_the_catalog_goes_before_the_first_shard_and_stays_if_none_is_written(
    tmp_path: Path,
) -> None:
    """Oracle: whether it is there when a shard is begun."""
    work(tmp_path)
    before = (tmp_path / "catalog.json").stat().st_ino
    with make_worker(tmp_path) as worker:
        assert not list(worker.claims())
    assert (tmp_path / "catalog.json").stat().st_ino == before
    (tmp_path / "train-000002.tar.json").unlink()
    seen = []
    assert work(
        tmp_path, before_each=lambda tar: seen.append((tmp_path / "catalog.json").exists())
    ) == ["train-000002.tar"]
    assert seen == [False] and (tmp_path / "catalog.json").exists()


def test_a_shard_finished_while_it_was_being_claimed_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at a shard and its claim another one finishes it. Oracle: what is taken."""
    tars, real, found = sorted(TARS), ClaimFolder.claim, list[int]()

    def late(self: ClaimFolder, name: str) -> bool:
        if name == tars[0]:
            write_shard(tmp_path / name, samples(name), fingerprint=SETTINGS)
        return real(self, name)

    monkeypatch.setattr(ClaimFolder, "claim", late)
    with make_worker(tmp_path) as worker:
        assert next(worker.claims(found.append)).tar == tars[1]
        assert found == [2]
        assert not worker._claims.is_held(tars[0])


def test_one_that_was_killed_while_it_closed_is_replaced(tmp_path: Path) -> None:
    """Oracle: another worker closes in its place, and only the empty folder is left."""
    work(tmp_path)
    with make_worker(tmp_path) as worker:
        killed_holder_of_catalog(tmp_path)
        with worker.finalize() as is_last:
            assert is_last
    assert not (tmp_path / FOLDER).exists()


def test_nothing_of_killed_workers_is_left_once_all_is_done(tmp_path: Path) -> None:
    """Workers of other machines killed at the worst moments: before their own file had its name,
    before the plan had it, while they took a claim over, and between a manifest and the release of
    its claim. Oracle: only the file of the worker whose claim it was stays, as it may be alive."""
    tar = killed_holder(tmp_path, machine="elsewhere")
    folder, hold = tmp_path / FOLDER, tmp_path / "hold"
    os.link(folder / f"{tar}.claim", hold)
    (folder / f"{tar}.claim").unlink()
    (folder / "plan.json").unlink()
    stays = set(os.listdir(folder))
    work(tmp_path)
    assert stays == set(os.listdir(folder))
    for name in (f".worker-{16 * '0'}", ".plan.json.0a", f".{tar}.claim.0a"):
        (folder / name).write_bytes(b"")
    os.rename(hold, folder / f"{tar}.claim")
    work(tmp_path)
    assert stays == set(os.listdir(folder))


def test_a_worker_whose_new_file_is_tidied_away_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that closes removes temporary files of others, too. Oracle: the one that came makes its
    file and the plan once more, and all shards."""
    renamed: list[str] = []

    def tidied(source: Any, target: Any, real: Callable[..., None]) -> None:
        kind = Path(target).name.split("-")[0]
        if Path(target).parent.name == FOLDER:
            if kind not in renamed:
                Path(source).unlink()
            renamed.append(kind)
        real(source, target)

    for name in ("rename", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda a, b, real=real: tidied(a, b, real))
    assert work(tmp_path) == list(TARS)
    assert renamed == ["worker", "worker", "plan.json", "worker", "plan.json"]


def test_a_heartbeat_that_cannot_be_written_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when a worker comes. Oracle: the error, and an empty folder."""

    def full(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        work(tmp_path)
    assert not list((tmp_path / FOLDER).iterdir())


def test_one_that_closes_leaves_the_files_of_those_that_still_work(tmp_path: Path) -> None:
    """Else their claims and heartbeats fail over a network (ESTALE). Oracle: the other's file, and
    that it ends well."""
    work(tmp_path)
    with make_worker(tmp_path) as other:
        assert work(tmp_path) == []
        assert other._claims.heartbeat.path.exists()
        other._claims.heartbeat.beat()
        assert list(other.claims()) == []
        with other.finalize() as is_last:
            assert not is_last


def test_each_manifest_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: calls of is_done, over many rounds of waiting for a shard that another holds; that
    shard has a manifest of other settings before, and a new one then."""
    work(tmp_path)
    tar = "train-000003.tar"
    write_shard(tmp_path / tar, samples(tar), fingerprint={"rule": "other"})
    calls: list[str] = []
    waiting = threading.Thread(target=work, args=(tmp_path,))

    def counted(tar: Path, fingerprint: Mapping[str, str]) -> bool:
        if threading.current_thread() is waiting:
            calls.append(tar.name)
        return is_done(tar, fingerprint)

    monkeypatch.setattr(work_queue, "is_done", counted)
    with make_worker(tmp_path) as other:
        with next(other.claims()) as claim:
            waiting.start()
            time.sleep(0.3)
            write_shard(tmp_path / claim.tar, samples(claim.tar), fingerprint=SETTINGS)
        waiting.join()
    assert sorted(calls) == sorted([*TARS, tar])


def test_what_was_done_before_is_reported_at_once_and_what_others_do_later(tmp_path: Path) -> None:
    """Oracle: two shards there, one asked for again, one of another rule; one made by another
    worker meanwhile."""
    tars = sorted(TARS)
    for tar in tars[:3]:
        write_shard(tmp_path / tar, samples(tar), fingerprint=SETTINGS)
    write_shard(tmp_path / tars[3], samples(tars[3]), fingerprint={"rule": "other"})
    request_rewrites(tmp_path, [tars[0]])
    found: list[int] = []
    with make_worker(tmp_path) as worker:
        assert worker.count_done() == (2, 4)
        for claim in worker.claims(found.append):
            with claim:
                write_shard(tmp_path / claim.tar, samples(claim.tar), fingerprint=SETTINGS)
                if not found and claim.tar != tars[5]:
                    write_shard(tmp_path / tars[5], samples(tars[5]), fingerprint=SETTINGS)
    assert found == [2]


def test_shards_without_a_manifest_come_first(tmp_path: Path) -> None:
    """So that work begins before thousands of manifests are read. Oracle: the first claim, and no
    manifest looked at."""
    work(tmp_path)
    (tmp_path / "train-000004.tar.json").unlink()
    with make_worker(tmp_path) as worker:
        assert next(worker.claims()).tar == "train-000004.tar"
        assert not worker._queue._checked_version


def test_one_worker_closes_and_the_others_wait_for_it(tmp_path: Path) -> None:
    """Oracle: how many are told to write the catalog, and that it is there when the others go."""
    came = threading.Barrier(3)

    def close(_: int) -> bool:
        with make_worker(tmp_path) as worker:
            for claim in worker.claims():
                with claim:
                    write_shard(tmp_path / claim.tar, samples(claim.tar), fingerprint=SETTINGS)
            came.wait()
            with worker.finalize() as is_last:
                if is_last:
                    time.sleep(0.2)
                    write_catalog(
                        tmp_path, kind="images", splits=dict.fromkeys(TARS, "train"), metadata={}
                    )
                return is_last or not (tmp_path / "catalog.json").exists()

    with ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(close, range(3))) == [False, False, True]
    assert not (tmp_path / FOLDER).exists()


def test_a_heartbeat_that_stops_loses_no_change_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heartbeat's thread finds that the work stands still while the worker turns to its next
    shard. Oracle: the record is that of the next shard, and beats on."""
    entered, left = threading.Event(), threading.Event()
    real = heartbeat.replace

    def slow(record: Any, **fields: Any) -> Any:
        if not fields.get("is_stalled"):
            return real(record, **fields)
        entered.set()
        time.sleep(0.3)
        left.set()
        return real(record, **fields)

    monkeypatch.setattr(heartbeat, "replace", slow)
    worker = heartbeat.Heartbeat(tmp_path, settings="s", lease_seconds=0.1, stall_seconds=0.05)
    try:
        worker.begin("a.tar", 1)
        assert entered.wait(30)
        monkeypatch.setattr(worker, "_stall_seconds", 60.0)
        worker.begin("b.tar", 1)
        assert left.wait(30)
        time.sleep(0.1)
        assert worker.record.tar == "b.tar" and not worker.record.is_stalled
    finally:
        worker.stop()


def test_a_heartbeat_tells_shard_progress_and_time(tmp_path: Path) -> None:
    """Oracle: the file, read back as others read it; and that the lock is seen as held."""
    beats = heartbeat.Heartbeat(tmp_path, settings="s", lease_seconds=60.0)
    beats.begin("a.tar", 7)
    beats.advance()
    beats.beat()
    state = heartbeat.read_worker_state(beats.path)
    assert state is not None and state.record is not None
    assert (state.record.tar, state.record.num_done, state.record.num_inputs) == ("a.tar", 1, 7)
    assert state.record.name.endswith(f":{os.getpid()}") and state.record.counter == 3
    assert state.is_running and not state.has_ended
    beats.stop()
    assert heartbeat.read_worker_state(beats.path) is None and not list(tmp_path.iterdir())
