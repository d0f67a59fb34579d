"""The cost of predictions that do not depend on the batch: fixed blocks beside plain batches.

    python -m benchmarks.transfer.fixed_blocks --student TASK_RUN/student --images RUN/images

`--student` may be repeated; each is a student that was taught a task, on whose toy files it
is measured. Both variants take turns on the same examples; times are CPU seconds of one thread, the
least of the rounds. The last column is the largest difference of the heads' outputs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from stages.transfer.example import group_by_images
from stages.transfer.finetuning.predict import MAX_TEXTS
from stages.transfer.fixed_blocks import fixed_threads
from stages.transfer.task_batch import TaskBatch, collate
from stages.transfer.task_config import TaskDataConfig
from stages.transfer.task_folder import TaskStudent
from stages.transfer.toy_tasks.write import write_task_files


def main(arguments: list[str] | None = None) -> int:
    """Measure and print a line a student."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", type=Path, action="append", required=True)
    parser.add_argument(
        "--images", type=Path, required=True, help="the toy data set's image shards"
    )
    parser.add_argument("--groups", type=int, default=30, help="sets of pictures measured")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(arguments)
    print(
        f"{'task':10} {'texts':>6} {'blocks s':>9} {'one pass s':>10} {'ratio':>6} {'difference':>11}"
    )
    with fixed_threads(1), torch.no_grad():
        for folder in args.student:
            _measure(TaskStudent.load(folder), args)
    return 0


def _measure(taught: TaskStudent, args: argparse.Namespace) -> None:
    task, net, head = taught.task, taught.student, taught.head
    with tempfile.TemporaryDirectory() as folder:
        files = TaskDataConfig(**write_task_files(task.name, args.images, Path(folder)))
        examples = task.read(files, "heldout").examples
        groups = group_by_images(examples, max_texts=MAX_TEXTS)[: args.groups]
        batches = [
            collate(
                group,
                taught.processor,
                lambda example: task.texts(example, training=False),
                cell_px=net.grid.cell_px,
            )
            for group in groups
        ]
    seconds, outputs = [float("inf")] * 2, [torch.empty(0)] * 2
    variants: tuple[Callable[[TaskBatch], torch.Tensor], ...] = (
        lambda batch: task.logits_in_blocks(net, head, batch),
        lambda batch: task.logits(net, head, batch),
    )
    for _ in range(args.rounds):
        for number, variant in enumerate(variants):
            start = time.process_time()
            found = [variant(batch).flatten() for batch in batches]
            seconds[number] = min(seconds[number], time.process_time() - start)
            outputs[number] = torch.cat(found)
    both = torch.stack(outputs).nan_to_num(neginf=0)
    print(
        f"{task.name:10} {sum(len(batch.tokens) for batch in batches):6} {seconds[0]:9.2f} "
        f"{seconds[1]:10.2f} {seconds[0] / seconds[1]:6.2f} {(both[0] - both[1]).abs().max():11.1e}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
