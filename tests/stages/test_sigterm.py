"""stages.sigterm. Oracle: exit statuses of real processes that send SIGTERM to themselves."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PLAIN = "os.kill(os.getpid(), signal.SIGTERM)"
IN_FINALIZER = """
class Closing:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)

one = Closing()
del one"""


@pytest.mark.parametrize("sent", [PLAIN, IN_FINALIZER], ids=["plain", "in __del__"])
def test_sigterm_ends_the_process_wherever_it_arrives(sent: str) -> None:
    """Without care the one in `__del__` is lost: the process would sleep and end with status 0."""
    code = f"import os, signal, time\nfrom stages.sigterm import exit_at_sigterm\nexit_at_sigterm()\n{sent}\n"
    code += "time.sleep(20)\n"
    ended = subprocess.run([sys.executable, "-c", code], timeout=300)
    assert ended.returncode == 128 + signal.SIGTERM
