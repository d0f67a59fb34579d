"""The command line: `boxless`, and `python -m boxless`."""

from __future__ import annotations

import os
import signal
import sys


def name_files_in_utf8() -> None:
    """Start this process again in Python's UTF-8 mode where file names are in another encoding.

    tokenizers and safetensors take paths as UTF-8 whatever the locale: a folder with an umlaut ends
    them with an error under ISO 8859-1 or PYTHONUTF8=0. What is printed keeps its encoding. The
    ranks have this process's environment.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"
    if sys.stdout is not None:
        os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
    words = [os.fsencode(word) for word in sys.orig_argv[1:]]
    os.execv(sys.executable, [os.fsencode(sys.executable), *words])


def main() -> int:
    """Run one command; returns the exit status.

    While modules are imported, which takes seconds from a network file system, Ctrl-C ends the
    process at once, as nothing has begun: KeyboardInterrupt would show the imports' traceback.
    """
    name_files_in_utf8()
    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not so under nohup
    if is_usual:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pipeline.cli.main import main as run

    if is_usual:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


if __name__ == "__main__":
    sys.exit(main())
