"""torchrun whose ranks are forks of a process that has imported their modules.

    BOXLESS_PRELOAD="torch deepspeed" python -m launch.preloading.torchrun OPTIONS -m MODULE ARGS...

Imports of torch, DeepSpeed and transformers are most of the time of a restart. Here they are made
once, by Python's own fork server, while torchrun starts and the nodes meet; every rank, and every
rank that is started again, is a fork of it. https://docs.python.org/3/library/multiprocessing.html
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.forkserver
import os
import sys
from pathlib import Path


def main() -> None:
    """torchrun's own run, once the imports have begun."""
    # Importing DeepSpeed asks for GPUs. By NVML, that does not keep forks from using them.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ.setdefault("PYTHONUNBUFFERED", "1")  # as torchrun starts ranks
    multiprocessing.set_forkserver_preload(["launch.preloading.modules"])
    multiprocessing.forkserver.ensure_running()
    from torch.distributed import run

    _spare_what_delays_restarts()
    options = run.parse_args(sys.argv[1:])
    options.start_method, options.run_path = "forkserver", True
    options.training_script_args.insert(0, options.training_script)
    options.training_script = str(Path(__file__).with_name("rank.py"))
    run.run(options)


def _spare_what_delays_restarts() -> None:
    """Leave out what costs seconds of CPU between a failure and the next start (torch 2.13).

    The line that it logs for a failed rank has a traceback of its own frames, and to format that,
    torch imports its compiler. For the name of a function that it logs at each step of a
    rendezvous, ``inspect.stack`` goes through all modules and sources.
    """
    from torch.distributed.elastic.rendezvous import dynamic_rendezvous

    logger = logging.getLogger("torch.distributed.elastic.multiprocessing.api")
    logger.addFilter(_without_traceback)
    if hasattr(dynamic_rendezvous, "get_method_name"):
        dynamic_rendezvous.get_method_name = _caller_name


def _without_traceback(record: logging.LogRecord) -> bool:
    record.exc_info = None
    return True


def _caller_name(depth: int = 2) -> str:
    return sys._getframe(depth).f_code.co_name


if __name__ == "__main__":
    main()
