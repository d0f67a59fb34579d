"""Real DeepSpeed, killed and continued with other numbers of ranks: was every sample seen once?

    python -m benchmarks.training.elastic_training [--worlds 2 1 3] [--steps 12] [--seed 0]

Draws toy scenes into shards, then pretrains on the first number of ranks, kills all of them (-9) at
a random moment after a checkpoint, continues on the next number, and so on; the last one runs to
the end. Every rank notes what it trains on. Printed are, for each epoch, how often each sample
counted: repeats 0 and losses 0, or the exit status is 1. The losses are compared with those of an
undisturbed run on the first number of ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from stages.detector.null_teacher import NullTeacher
from stages.distill.config import DistillConfig
from stages.distill.inference.pipeline import InferencePipeline
from stages.distill.run import distill
from stages.ingest.config import IngestConfig
from stages.ingest.run import ingest
from stages.pretrain import run as pretrain_run
from stages.pretrain.config import PretrainConfig
from stages.pretrain.data.batch_source import Batches
from stages.student.config import StudentConfig
from stages.training.data_loader import LoadedBatch
from stages.training.monitoring.metrics import read_metrics

STUDENT = StudentConfig(
    stem_width=8,
    widths=(8, 16),
    depths=(1, 1),
    hidden_size=32,
    num_layers=1,
    num_heads=2,
    ffn_size=32,
    vocab_size=150,
    max_tokens=24,
    shorter_px=32,
    longer_px=64,
)
NUM_SCENES, SCENES_A_SHARD, LONGEST_SECONDS = 90, 16, 300


def main() -> int:
    """Run the drill; exit status 1 if a sample was repeated or lost, or the losses differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, nargs="+", default=[2, 1, 3])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    config = PretrainConfig(
        num_steps=options.steps,
        micro_batch_size=4,
        micro_batches_per_step=6,
        captions_per_picture=2,
        checkpoint_steps=2,
        log_steps=1,
        lr_transformer=1e-3,
        lr_cnn=0.01,
    )
    with tempfile.TemporaryDirectory() as root:
        objects = make_objects(Path(root))
        undisturbed, drill = Path(root, "undisturbed"), Path(root, "drill")
        train(config, objects, undisturbed, options.worlds[0])
        starts = [0]
        chance = random.Random(options.seed)
        for number, world_size in enumerate(options.worlds):
            is_last = number + 1 == len(options.worlds)
            left = options.steps - starts[-1]
            after = None if is_last else starts[-1] + chance.randint(2, max(2, left // 2))
            train(config, objects, drill, world_size, after, pause_seconds=chance.random() * 0.3)
            starts.append(saved_step(drill))
            fate = "to the end" if is_last else f"killed; its last checkpoint is step {starts[-1]}"
            print(f"{world_size} ranks from step {starts[-2]}: {fate}", flush=True)
        wrong = count(drill, starts, config)
        return wrong + compare(undisturbed, drill)


def make_objects(root: Path) -> Path:
    """Toy scenes as object shards, of a teacher that finds no objects."""
    recipe = IngestConfig(
        source="toy", num_train=NUM_SCENES, num_heldout=4, samples_per_shard=SCENES_A_SHARD
    )
    ingest(recipe, seed=0, out=root / "images")
    distill(
        DistillConfig(phrases="lexicon"),
        images=root / "images",
        object_source=InferencePipeline(NullTeacher("null"), batch_size=1, num_decoders=1),
        out=root / "objects",
    )
    return root / "objects"


def train(
    config: PretrainConfig,
    objects: Path,
    root: Path,
    world_size: int,
    kill_after_step: int | None = None,
    *,
    pause_seconds: float = 0.0,
    student: StudentConfig = STUDENT,
    seed: int = 0,
) -> None:
    """Pretrain on so many ranks; all are killed, after a pause, once the checkpoint of a step is
    there, if one is given."""
    root.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = [
        fork_rank(config, objects, root, rank, world_size, port, student, seed)
        for rank in range(world_size)
    ]
    deadline = time.monotonic() + LONGEST_SECONDS
    while kill_after_step is not None and saved_step(root) < kill_after_step:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no checkpoint of step {kill_after_step}; see {root}/log-*")
        time.sleep(0.01)
    if kill_after_step is not None:
        time.sleep(pause_seconds)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    for pid in pids:
        status = os.waitpid(pid, 0)[1]
        if kill_after_step is None and status:
            raise RuntimeError(f"a rank ended with {status}:\n{(root / 'log-0').read_text()}")


def fork_rank(
    config: PretrainConfig,
    objects: Path,
    root: Path,
    rank: int,
    world_size: int,
    port: int,
    student: StudentConfig,
    seed: int,
) -> int:
    """Start a rank that notes its turns in `root`/turns.jsonl; its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        log = os.open(root / f"log-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(world_size),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        note_turns(root / "turns.jsonl", start=saved_step(root))
        pretrain_run.pretrain(
            config,
            student=student,
            seed=seed,
            objects=objects,
            out=root / "pretrain",
            student_out=root / "student",
        )
        status = 0
    finally:
        os._exit(status)


def note_turns(path: Path, *, start: int) -> None:
    """Every turn of this rank that counts leaves a line: start, position, keys."""
    plain = Batches.__getitem__

    def noting(self: Batches, turn: object) -> LoadedBatch:
        loaded = plain(self, turn)  # type: ignore[arg-type]
        if not loaded.turn.is_padding and loaded.batch is not None:
            line = {"start": start, "position": loaded.turn.position, "keys": loaded.batch.keys}
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        return loaded

    Batches.__getitem__ = noting  # type: ignore[method-assign]


def saved_step(root: Path) -> int:
    """The step of the last whole checkpoint, 0 without one."""
    latest = root / "pretrain" / "latest"
    return int(latest.read_text().removeprefix("step-")) if latest.exists() else 0


def count(root: Path, starts: list[int], config: PretrainConfig) -> int:
    """Print how often each sample counted, by epoch; 1 if any was repeated or lost.

    Turns after the checkpoint that the next start went on from were undone with the kill.
    """
    lines = [json.loads(line) for line in (root / "turns.jsonl").read_text().splitlines()]
    undone_from = dict(zip(starts, starts[1:]))
    size = config.micro_batches_per_step
    kept = [line for line in lines if line["position"] < undone_from[line["start"]] * size]
    by_position = Counter(line["position"] for line in kept)
    num_positions = config.num_steps * size
    keys_at = {line["position"]: line["keys"] for line in kept}
    num_an_epoch = -(-NUM_SCENES // config.micro_batch_size)
    repeats = sum(by_position.values()) - len(by_position)
    losses = sum(position not in by_position for position in range(num_positions))
    num_epochs = num_positions // num_an_epoch
    for epoch in range(num_epochs):
        places = range(epoch * num_an_epoch, (epoch + 1) * num_an_epoch)
        keys = Counter(key for position in places for key in keys_at.get(position, ()))
        again, lost = sum(keys.values()) - len(keys), NUM_SCENES - len(keys)
        print(f"epoch {epoch}: {len(keys)} samples, repeats {again}, losses {lost}")
        repeats, losses = repeats + again, losses + lost
    undone = len(lines) - len(kept)
    print(
        f"{num_positions} micro-batches in {num_epochs} whole epochs, {undone} undone by kills and "
        f"done again: repeats {repeats}, losses {losses}"
    )
    return int(repeats + losses > 0)


def compare(undisturbed: Path, drill: Path) -> int:
    """Print the largest difference of the losses from the undisturbed run's; 1 if above 1e-3."""
    mine, theirs = (read_metrics(r / "pretrain" / "metrics.jsonl") for r in (drill, undisturbed))
    assert [line["step"] for line in mine] == [line["step"] for line in theirs]
    most = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(mine, theirs))
    print(f"losses of {len(mine)} steps: at most {most:.1e} from the undisturbed run's, relative")
    return int(most > 1e-3)


if __name__ == "__main__":
    sys.exit(main())
