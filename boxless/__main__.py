"""The command line: `boxless`, and `python -m boxless`."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run one command; returns the exit status.

    While modules are imported, which takes seconds from a network file system, Ctrl-C ends the
    process at once, as nothing has begun: KeyboardInterrupt would show the imports' traceback.
    """
    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not so under nohup
    if is_usual:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pipeline.cli.main import main as run

    if is_usual:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


if __name__ == "__main__":
    sys.exit(main())
