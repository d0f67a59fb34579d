"""A rank in a fork of the process that has imported its modules: ``torchrun --run-path`` runs this
file with MODULE ARGS... and it becomes ``python -m MODULE ARGS...``. Its command line is that of
the process it was forked from; its name is ``boxless-rank`` and its number.
"""

from __future__ import annotations

import atexit
import os
import runpy
import subprocess
import sys

import torch

from launch.processes.heartbeat import note_start
from launch.processes.marked_processes import set_process_name
from launch.processes.process import forwarded_signals


def main() -> None:
    """Become the rank; ends with its exit status."""
    module, *args = sys.argv[1:]
    note_start()
    set_process_name(f"boxless-rank{os.environ['RANK']}")
    if torch.cuda._is_in_bad_fork():  # a preloaded module has used a GPU: no fork of it can
        sys.exit(_run_anew([sys.executable, "-u", "-m", module, *args]))
    sys.argv = [module, *args]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # a fork of multiprocessing ends without


def _run_anew(command: list[str]) -> int:
    process = subprocess.Popen(command)
    with forwarded_signals(terminate=process.terminate, force_kill=process.kill):
        status = process.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    main()
