"""Pretraining whose ranks record which samples they train on, started by any launcher.

    python -m benchmarks.launch.recorded_pretraining launch RUN LAUNCH    # a LaunchConfig as JSON
    python -m benchmarks.launch.recorded_pretraining pretrain RUN         # one rank

RUN is a run folder with a recipe and object shards. Each micro-batch that counts leaves a line in
RUN/turns.jsonl: the checkpoint's step that the rank went on from (``start``), a word that all ranks
of one start share (``launch``), when the rank began and when this line was written, the number of
ranks, position and keys. It also takes TURN_SECONDS more than it has to, so that a net of no size
trains for long enough to have accidents.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.backends import deepspeed, local, slurm, torchrun
from launch.config import LaunchConfig
from launch.job import Job
from pipeline.runner.launch_plan import PRETRAIN_MODULES
from pipeline.runner.run_folder import RunFolder

TURNS = "turns.jsonl"
TURN_SECONDS = 0.25
_BACKENDS = {"local": local, "torchrun": torchrun, "deepspeed": deepspeed, "slurm": slurm}


def main() -> int:
    """A launcher, or one rank."""
    action, root, *more = sys.argv[1:]
    if action == "launch":
        launch(Path(root), json.loads(more[0]))
        return 0
    from pipeline.runner import worker

    _record_turns(Path(root))
    return worker.main()


def launch(root: Path, values: dict[str, Any]) -> None:
    """Run the ranks to their end; raises as launch.job says."""
    config = LaunchConfig(**values)
    job = Job(
        title="recorded",
        module="benchmarks.launch.recorded_pretraining",
        args=("pretrain", str(root)),
        log_folder=RunFolder(root).logs("pretrain"),
        env={"OMP_NUM_THREADS": "1"},
        node_rank=config.node_rank,
        can_restart=True,
        preload=PRETRAIN_MODULES,
    )
    _BACKENDS[config.launcher].run(job, config)


def saved_step(root: Path) -> int:
    """The step of the last whole checkpoint, 0 without one."""
    latest = RunFolder(root).pretrain / "latest"
    return int(latest.read_text().removeprefix("step-")) if latest.exists() else 0


def read_turns(root: Path) -> list[dict[str, Any]]:
    """All lines; those cut off by a kill are left out."""
    turns = []
    for line in (root / TURNS).read_text().splitlines():
        try:
            turns.append(json.loads(line))
        except ValueError:
            continue
    return turns


def count_samples(
    turns: Sequence[dict[str, Any]], *, num_positions: int, num_an_epoch: int, per_step: int
) -> dict[str, int]:
    """How often samples counted in the run that the turns are of.

    A start's turns count from the step that it went on from until the step that a later one went on
    from; those after were undone. Of two starts from one step the later one counts. Returns samples
    ``lost`` and ``repeated`` in whole epochs of ``num_an_epoch`` positions, positions ``missing``
    and ``doubled``, and turns ``undone``.
    """
    last_of_start = {turn["start"]: turn["launch"] for turn in turns}
    starts = sorted(last_of_start)
    until = dict(zip(starts, [*starts[1:], 1 << 62]))
    kept = [
        turn
        for turn in turns
        if turn["launch"] == last_of_start[turn["start"]]
        and turn["position"] < min(num_positions, until[turn["start"]] * per_step)
    ]
    times = Counter(turn["position"] for turn in kept)
    lost = repeated = 0
    samples = {key for turn in kept for key in turn["keys"]}
    for first in range(0, num_positions - num_an_epoch + 1, num_an_epoch):
        places = range(first, first + num_an_epoch)
        keys = Counter(key for turn in kept if turn["position"] in places for key in turn["keys"])
        lost += len(samples) - len(keys)
        repeated += sum(keys.values()) - len(keys)
    return {
        "samples": len(samples),
        "lost": lost,
        "repeated": repeated,
        "missing": sum(position not in times for position in range(num_positions)),
        "doubled": sum(times.values()) - len(times),
        "undone": len(turns) - len(kept),
    }


def _record_turns(root: Path) -> None:
    from sharding.order.turns import Turn
    from stages.pretrain.data.batch_source import Batches
    from stages.training.data_loader import LoadedBatch

    plain = Batches.__getitem__
    of_all = {
        "start": saved_step(root),
        "launch": f"{os.environ.get('SLURM_JOB_ID', '')}-{os.environ['MASTER_PORT']}",
        "world": int(os.environ["WORLD_SIZE"]),
        "began": time.time(),
    }

    def recording(self: Batches, turn: Turn) -> LoadedBatch:
        loaded = plain(self, turn)
        time.sleep(TURN_SECONDS)
        if not loaded.turn.is_padding and loaded.batch is not None:
            own = {
                "time": time.time(),
                "position": loaded.turn.position,
                "keys": list(loaded.batch.keys),
            }
            # The newline before it parts it from a line that a full disk cut off.
            line = ("\n" + json.dumps(of_all | own) + "\n").encode()
            handle = os.open(root / TURNS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.write(handle, line)  # one write of one line: those of several ranks do not mix
            os.close(handle)
        return loaded

    Batches.__getitem__ = recording  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main())
