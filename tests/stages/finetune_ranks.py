"""A rank of a finetuning run under torchrun, for `test_finetune_ranks`: real ranks, gloo, DeepSpeed.

    torchrun --nproc-per-node N finetune_ranks.py JOB.json

With "die_after" rank 1 is killed after so many of its groups of predictions.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

import stages.transfer.finetuning.finetune_task as module
from stages.transfer.config import FinetuneConfig


def main(job: dict) -> None:
    """Finetune as the job says."""
    torch.set_num_threads(1)
    if job["die_after"] is not None and os.environ["RANK"] == "1":
        _die_after(job["die_after"])
    module.finetune_task(
        FinetuneConfig(**job["config"]),
        seed=0,
        images=Path(job["images"]),
        student=Path(job["student"]),
        out=Path(job["out"]),
    )


def _die_after(num_groups: int) -> None:
    real = module.predict
    done: list[object] = []

    def dying(examples, predict_one, *rest, **more):  # type: ignore[no-untyped-def]
        def one(group):  # type: ignore[no-untyped-def]
            if len(done) == num_groups:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(group)
            return predict_one(group)

        return real(examples, one, *rest, **more)

    module.__dict__["predict"] = dying


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
