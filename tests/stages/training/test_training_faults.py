"""What may go wrong around a step: workers, signals while waiting, gradients, names of folders."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from boxless.errors import BoxlessError
from sharding.format.schema import ShardError
from sharding.order.turns import Turn
from sharding.reading.watchdog import StatusBoard
from stages.training import data_loader
from stages.training.config import TrainingConfig
from stages.training.data_loader import (
    ExampleBatches,
    LoadedBatch,
    load_batches,
    named_killed_workers,
    received,
)
from stages.training.engine import Engine
from stages.training.loop import Loop, TrainingState, Validation
from stages.training.monitoring import stopping
from stages.training.monitoring.gradient_norms import are_weights_finite
from stages.training.monitoring.stopping import Stopped, Watch
from stages.training.optimizer import AdamwSgd, adamw_rule, parameter_groups

CONFIG = TrainingConfig(num_steps=3, micro_batches_per_step=1, num_workers=1)


@dataclass
class Numbers:
    """A batch of numbers."""

    keys: list[str]
    values: torch.Tensor

    def to(self, device: torch.device) -> Numbers:
        return self

    def map_tensors(self, function: Any) -> Numbers:
        return replace(self, values=function(self.values))


def _numbers(rows: Any) -> Numbers:
    return Numbers(keys=[str(row) for row in rows], values=torch.tensor(rows))


def _source() -> ExampleBatches:
    return ExampleBatches(10, _numbers, batch_size=4, seed=1)


def test_workers_ignore_the_signals_of_the_group_and_end_with_the_iterator() -> None:
    """Oracle: the batches of a run without workers, though a worker got SIGTERM and SIGINT (as
    torchrun and a terminal send them to the whole group); then no worker is left."""
    loader = load_batches(_source(), CONFIG, 0, 0, 1)
    loaded = received(loader, "pretrain")
    found = [next(loaded).batch.values.tolist()]
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGTERM)
    os.kill(worker.pid, signal.SIGINT)
    time.sleep(0.2)
    found += [one.batch.values.tolist() for one in loaded]
    assert found == [
        _source()[Turn(position, False)].batch.values.tolist() for position in range(3)
    ]
    worker.join(timeout=20)
    assert not worker.is_alive()


def _ends_holding_an_iterator() -> None:
    loaded = received(load_batches(_source(), CONFIG, 0, 0, 1), "pretrain")
    next(loaded)
    _ends_holding_an_iterator.__dict__["held"] = loaded  # as the traceback of an error does


def test_a_process_that_ends_with_an_iterator_ends_its_workers() -> None:
    """Oracle: it ends, though multiprocessing waits for its children and these ignore SIGTERM."""
    process = multiprocessing.get_context("fork").Process(target=_ends_holding_an_iterator)
    process.start()
    process.join(60)
    code = process.exitcode
    process.kill()
    assert code == 0


def _waits_for_data(write: Connection) -> None:
    """A rank whose worker reads for ever, as from a store that does not answer."""

    def make(rows: Any) -> Numbers:
        write.send(os.getpid())
        time.sleep(600)
        raise AssertionError

    source = ExampleBatches(10, make, batch_size=4, seed=1)
    next(received(load_batches(source, CONFIG, 0, 0, 1), "pretrain"))


def test_a_worker_that_reads_ends_with_its_killed_rank() -> None:
    """Its rank got SIGKILL. Oracle: the kernel's process of the worker, which would read on."""
    read, write = multiprocessing.Pipe(duplex=False)
    rank = multiprocessing.get_context("fork").Process(target=_waits_for_data, args=(write,))
    rank.start()
    assert read.poll(60)
    worker = read.recv()
    rank.kill()
    rank.join(60)
    end = time.monotonic() + 20
    while is_left := _is_running(worker):
        if time.monotonic() > end:
            os.kill(worker, signal.SIGKILL)
            break
        time.sleep(0.05)
    assert not is_left


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    "broken", [ConnectionResetError(104, "Connection reset by peer"), EOFError(), None]
)
def test_a_worker_that_is_killed_is_an_error_with_its_fix(
    broken: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel does where memory runs out, while PyTorch waits for a batch, or while one is
    taken over, which then breaks. Oracle: the message names the field and the fix."""
    loader = load_batches(_source(), replace(CONFIG, num_steps=1000), 0, 0, 1)
    loaded = received(loader, "pretrain")
    next(loaded)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    if broken is not None:
        loads = mock.Mock(side_effect=broken)
        monkeypatch.setattr("stages.training.data_loader.ForkingPickler.loads", loads)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(BoxlessError, match="pretrain.num_workers: a worker was killed.*fewer"):
        list(loaded)


def test_a_worker_that_is_killed_while_the_rank_computes_is_the_same_error() -> None:
    """PyTorch's signal handler raises wherever the rank is at. Oracle: the same message."""
    loaded = received(load_batches(_source(), CONFIG, 0, 0, 1), "pretrain")
    next(loaded)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    with (
        closing(loaded),
        pytest.raises(BoxlessError, match="pretrain.num_workers: a worker was killed"),
        named_killed_workers("pretrain"),
    ):
        os.kill(worker.pid, signal.SIGKILL)
        time.sleep(60)


@pytest.mark.parametrize(
    ("error", "limit"),
    [
        (
            RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)"),
            "/dev",
        ),
        (OSError(24, "Too many open files"), "ulimit -n"),
    ],
)
def test_a_batch_that_cannot_be_handed_over_is_an_error_with_its_fix(
    error: Exception, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the worker's pickler fails as it does where shared memory or files run out (PyTorch
    would drop the batch and wait); the rank raises, naming limit, field and fix."""
    plain = data_loader.ForkingPickler.dumps

    def failing(item: Any) -> Any:
        if isinstance(item, LoadedBatch):
            raise error
        return plain(item)

    monkeypatch.setattr(data_loader.ForkingPickler, "dumps", failing)
    loader = load_batches(_source(), CONFIG, 0, 0, 1)
    with pytest.raises(ValueError, match=rf"pretrain.num_workers: .*{limit}.*num_workers=0"):
        list(received(loader, "pretrain"))


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EROFS, "/dev/shm that can be written"), (errno.EAGAIN, "ulimit -u")],
)
def test_workers_that_cannot_be_started_are_an_error_with_its_fix(
    number: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A /dev/shm that is read-only, or a limit of processes. Oracle: the message names both places
    and the field; without workers the error is somebody else's and stays."""

    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", refuse)
    with pytest.raises(BoxlessError, match=f"(?s)pretrain.num_workers: .*{words}.*num_workers=0"):
        next(received(load_batches(_source(), CONFIG, 0, 0, 1), "pretrain"))
    with pytest.raises(OSError, match=os.strerror(number)):
        alone = replace(CONFIG, num_workers=0)
        next(received(load_batches(_source(), alone, 0, 0, 1), "pretrain"))


def test_a_stop_does_not_wait_for_data_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a source that takes a minute for a batch; a stop is raised soon after its patience,
    and handlers are those of before."""
    monkeypatch.setattr(stopping, "DATA_PATIENCE_SECONDS", 0.5)
    before = signal.getsignal(signal.SIGTERM)
    began = time.monotonic()
    with pytest.raises(Stopped, match="no data came"), Watch() as watch:
        os.kill(os.getpid(), signal.SIGTERM)
        with watch.waiting_for_data():
            time.sleep(60)
    assert time.monotonic() - began < 30
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_step_that_is_held_changes_nothing() -> None:
    """Oracle: weights and moments of before, whatever the gradient is."""
    linear = torch.nn.Linear(2, 2)
    optimizer = AdamwSgd(
        parameter_groups(
            linear.parameters(),
            weight_decay=0.1,
            decay_norms=True,
            rule=adamw_rule(0.1, (0.9, 0.99)),
        )
    )
    optimizer.param_groups[0]["lr"] = 0.1
    before = linear.weight.detach().clone()
    for parameter in linear.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.is_held = True
    optimizer.step()
    assert torch.equal(linear.weight, before) and not optimizer.state
    optimizer.is_held = False
    optimizer.step()
    assert not linear.weight.isfinite().all()


@pytest.mark.parametrize("folder", ["seeds=[1,2]", "lr=*", "what?"])
def test_checkpoints_are_found_in_folders_of_any_name(
    folder: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the file that lies there; DeepSpeed's own search takes the name for a pattern."""
    file = tmp_path / folder / "step-1" / "mp_rank_00_model_states.pt"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    engine = Engine.__new__(Engine)
    torch.nn.Module.__init__(engine)
    engine.checkpoint_mp_rank = 0
    monkeypatch.setattr(Engine, "zero_optimization_partition_weights", lambda self: False)
    monkeypatch.setattr(Engine, "load_universal_checkpoint", lambda self: False)
    assert engine._get_all_ckpt_names(str(tmp_path / folder), "step-1") == [str(file)]


def test_an_order_of_examples_is_every_example_once_an_epoch() -> None:
    """Oracle: the numbers; and a state of another order is refused."""
    source = _source()
    for epoch in range(2):
        rows = [row for place in range(3) for row in source.rows(3 * epoch + place)]
        assert sorted(rows) == list(range(10))
    assert source.position(source.state(4)) == 4
    assert isinstance(source.board, StatusBoard)
    other = ExampleBatches(11, _numbers, batch_size=4, seed=1)
    with pytest.raises(ValueError, match="num_examples': 10"):
        other.position(source.state(4))


def _unreadable(rows: Any) -> Numbers:
    raise ShardError("train-000000.tar: sample 7: got bytes that are no picture, expected one")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_for_the_user_leaves_a_worker_as_it_is(num_workers: int) -> None:
    """Oracle: the class and the words of the source's own error, without a worker's traceback,
    which PyTorch puts into the text of what it raises again."""
    source = ExampleBatches(10, _unreadable, batch_size=4, seed=1)
    config = replace(CONFIG, num_workers=num_workers)
    loader = load_batches(source, config, 0, 0, 1)
    with pytest.raises(ShardError, match="^train-000000.tar: sample 7: .* expected one$"):
        next(received(loader, "pretrain"))


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error", "/x/a.tar"), MemoryError("8 GiB")], ids=str
)
def test_what_the_machine_refuses_a_worker_keeps_its_number(error: Exception) -> None:
    """Oracle: the error that the source raised; PyTorch raises its class with a traceback as the
    only argument, and neither the file nor what to do about it is known then."""

    def refused(rows: Any) -> Numbers:
        raise error

    source = ExampleBatches(10, refused, batch_size=4, seed=1)
    with pytest.raises(type(error)) as caught:
        next(received(load_batches(source, CONFIG, 0, 0, 1), "pretrain"))
    assert str(caught.value) == str(error)
    assert getattr(caught.value, "filename", None) == getattr(error, "filename", None)


def test_errors_of_the_machine_of_any_kind_leave_a_worker() -> None:
    """Oracle: number and file of an OSError that cannot be pickled."""

    class Refused(OSError):
        def __init__(self, place: str, reason: str, number: int, more: object) -> None:
            super().__init__(number, reason, place)

    def refused(rows: Any) -> Numbers:
        raise Refused("/x/a.tar", "Input/output error", errno.EIO, object())

    source = ExampleBatches(10, refused, batch_size=4, seed=1)
    with pytest.raises(OSError, match="Input/output error: '/x/a.tar'"):
        next(received(load_batches(source, CONFIG, 0, 0, 1), "pretrain"))


def test_every_validation_is_better_than_one_that_is_not_a_number() -> None:
    """Oracle: by hand, the steps that are kept: the first, so that there is a best, and no later
    NaN."""
    nan = float("nan")
    for higher, wanted in ((False, [0, 1, 3]), (True, [0, 1, 4])):
        kept: list[int] = []
        scores = [nan, 3.0, nan, 2.0, 4.0]
        loop = Loop.__new__(Loop)
        loop.engine, loop.state = mock.MagicMock(), TrainingState()
        loop.validation = Validation(
            run=lambda step: {"score": scores[step]},
            best="score",
            higher_is_better=higher,
            save_best=kept.append,
        )
        for loop.state.step in range(5):
            loop.validate()
        assert kept == wanted


def test_statistics_that_are_not_finite_are_not_saved() -> None:
    """Oracle: by hand; a forward pass moves them, whatever its gradients are."""
    norm = torch.nn.BatchNorm2d(3)
    assert are_weights_finite(norm)
    assert norm.running_var is not None
    norm.running_var[1] = torch.inf
    assert not are_weights_finite(norm)
