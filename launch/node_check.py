"""Checks a node before a job: ``python -m launch.node_check FOLDER RECIPE`` runs one rank of it.
RECIPE is a digest of the recipe that the node was started with.

All ranks meet, sum a number, and compare what they see: code, recipe, torch, the shared folder,
the clock, free disk and their GPUs. All fail where there is a fault; the first rank of each node
records a line for each.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from boxless.errors import BoxlessError
from launch.logs import LOG_FOLDER_VARIABLE, open_log, record_failure

JOIN_SECONDS = 120
"""How long the ranks wait for each other."""
_MARK = ".launch-check"
_MARK_SECONDS = 15.0
"""A file may take so long to be seen by other machines."""
_MAX_CLOCK_DIFFERENCE_SECONDS = 5.0
_MIN_FREE_BYTES = 10 << 30
PACKAGES = ("boxless", "launch", "pipeline", "sharding", "stages")
"""Whose source all nodes must have alike."""


def main() -> int:
    """One rank."""
    import torch
    import torch.distributed

    rank, logs = int(os.environ["RANK"]), Path(os.environ[LOG_FOLDER_VARIABLE])
    open_log(logs, rank)
    try:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, timeout=timedelta(seconds=JOIN_SECONDS))
        folder, recipe = Path(sys.argv[1]), sys.argv[2]
        mark = [secrets.token_hex(8)]
        torch.distributed.broadcast_object_list(mark)
        if rank == 0:
            (folder / _MARK).write_text(mark[0], "utf-8")
        facts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(facts, _facts(folder, recipe, mark[0]))
        have_gpus = all(fact["gpu"] != "none" and not fact["gpu_fault"] for fact in facts)
        local = f"cuda:{os.environ['LOCAL_RANK']}" if have_gpus else "cpu"
        total = torch.ones((), device=local)
        torch.distributed.all_reduce(total)
        faults = findings(facts, num_ranks=int(total.item()))
        if rank == 0:
            (folder / _MARK).unlink(missing_ok=True)
            hosts = ", ".join(sorted({fact["host"] for fact in facts}))
            print(f"{len(facts)} ranks on {hosts}: met, and summed over all", flush=True)
        if faults and int(os.environ["LOCAL_RANK"]) == 0:
            record_failure(logs, rank, BoxlessError("\n".join(faults)), is_users=True)
        torch.distributed.all_reduce(torch.zeros(()))  # a barrier that no GPU takes part in
        return 2 if faults else 0
    except Exception as error:
        record_failure(logs, rank, error, is_users=False)
        return 1


def findings(facts: list[dict[str, Any]], *, num_ranks: int) -> list[str]:
    """Faults in what the ranks saw, with their fixes; none where all is well."""
    found = []
    if num_ranks != len(facts):
        found.append(f"a sum over all ranks counts {num_ranks}; expected {len(facts)}.")
    for what, fix in (
        ("code", "install the same version on all nodes, or use one shared checkout"),
        ("recipe", "start all nodes with the same recipe, --set options and versions"),
        ("torch", "install the same versions on all nodes"),
        ("gpu", "ask for nodes of one kind, as with launch.slurm.constraint"),
    ):
        values: dict[str, list[str]] = {}
        for fact in facts:
            values.setdefault(str(fact[what]), []).append(fact["host"])
        if len(values) > 1:
            seen = "; ".join(f"{v[:12]} on {', '.join(sorted(set(h)))}" for v, h in values.items())
            found.append(f"{what} differs: {seen}. Fix: {fix}.")
    for fact in facts:
        host = fact["host"]
        if not fact["sees_mark"]:
            found.append(
                f"{host} does not see the run folder of rank 0. Fix: put it on a file system that "
                "all nodes share, and mount that there."
            )
        if abs(fact["time_seconds"] - facts[0]["time_seconds"]) > _MAX_CLOCK_DIFFERENCE_SECONDS:
            seconds = fact["time_seconds"] - facts[0]["time_seconds"]
            found.append(f"the clock of {host} is {seconds:+.0f} s off. Fix: run an NTP client.")
        if fact["free_bytes"] < _MIN_FREE_BYTES:
            free = fact["free_bytes"] / (1 << 30)
            found.append(f"{host} has {free:.1f} GiB free in the run folder; expected 10 or more.")
        if fact["gpu_fault"]:
            found.append(f"{host}: {fact['gpu_fault']}. Fix: exclude the node, and report it.")
    return list(dict.fromkeys(found))


def _facts(folder: Path, recipe: str, mark: str) -> dict[str, Any]:
    import torch

    root = Path(__file__).resolve().parents[1]
    return {
        "time_seconds": time.time(),
        "host": socket.gethostname(),
        "code": _hash(p for name in PACKAGES for p in sorted((root / name).rglob("*.py"))),
        "recipe": recipe,
        "torch": torch.__version__,
        "sees_mark": _sees(folder / _MARK, mark),
        "free_bytes": shutil.disk_usage(folder).free if folder.exists() else 0,
        **_gpu(int(os.environ["LOCAL_RANK"])),
    }


def _gpu(local_rank: int) -> dict[str, str]:
    """Which GPU the rank has, ``none`` where there are none, and what is wrong with it: it does not
    multiply, or not well."""
    import torch

    if not torch.cuda.is_available():
        return {"gpu": "none", "gpu_fault": ""}
    try:
        device = torch.device("cuda", local_rank)
        name = torch.cuda.get_device_name(device)
        ones = torch.ones(1024, 1024, device=device, dtype=torch.float16)
        is_right = bool((ones @ ones == 1024).all())
    except (RuntimeError, AssertionError) as error:
        words = str(error).splitlines()[0]
        return {"gpu": "cannot be used", "gpu_fault": f"GPU {local_rank} cannot be used: {words}"}
    return {"gpu": name, "gpu_fault": "" if is_right else f"GPU {local_rank} multiplies wrongly"}


def _sees(path: Path, text: str) -> bool:
    """Whether the file has that text, at once or a little later."""
    deadline = time.monotonic() + _MARK_SECONDS
    while time.monotonic() < deadline:
        try:
            if path.read_text("utf-8") == text:
                return True
        except OSError:
            pass
        time.sleep(0.1)
    return False


def _hash(paths: Iterable[Path]) -> str:
    """Of the contents; files that cannot be read count as absent."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(path.read_bytes())
        except OSError:
            digest.update(b"absent")
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
