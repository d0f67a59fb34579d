"""Finds phrases of captions in processes of their own, beside the one that labels and writes.

A parser holds Python's lock for milliseconds a caption, in which nothing else of the process goes
on. What is parsed together is what the caller says, so the phrases are the same to the last one as
without processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from boxless.errors import BoxlessError
from stages.distill.inference.failures import DistillError
from stages.distill.text.phrases import ParserChunker, Phrase

MODULE = "stages.distill.text.parser_process"
_END_SECONDS = 5.0


class ParseError(BoxlessError):
    """The spaCy pipeline failed on captions; the text has its error."""


class ParserPool:
    """A ParserChunker whose captions are parsed in `num` processes, a context.

    They start with the context, load the pipeline meanwhile, and end with it, or with this process
    however it ends. parser: as the chunker's.
    """

    def __init__(self, chunker: ParserChunker, parser: str, num: int) -> None:
        self.name, self.fingerprint = chunker.name, chunker.fingerprint
        self._parser, self._num = parser, num
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def most_pending(self) -> int:
        """Requests worth having on their way: one that is parsed in each process, and one that
        waits."""
        return self._num + 1

    def __enter__(self) -> ParserPool:
        self._free: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        for _ in range(self._num):
            process = subprocess.Popen(
                [sys.executable, "-m", MODULE, self._parser],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            self._processes.append(process)
            self._free.put(process)
        self._threads = ThreadPoolExecutor(self._num, "boxless-parse")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()  # it has nothing to finish, and a thread may wait for its answer
        self._threads.shutdown(wait=True)
        for process in self._processes:
            process.wait(_END_SECONDS)
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):
                    pipe.close()

    def submit(self, captions: Sequence[str]) -> Future[list[list[Phrase]]]:
        """Have some captions parsed together; the future has what Chunker.chunk returns.

        It raises ParseError where the pipeline fails, DistillError where its process has ended.
        """
        return self._threads.submit(self._ask, list(captions))

    def chunk(self, captions: Sequence[str]) -> list[list[Phrase]]:
        """As Chunker.chunk, waiting for it."""
        return self.submit(captions).result()

    def _ask(self, captions: list[str]) -> list[list[Phrase]]:
        """In a thread, which waits for one process's answer without Python's lock."""
        process = self._free.get()
        try:
            answer = _exchange(process, captions)
        finally:
            self._free.put(process)
        if isinstance(answer, dict):
            raise ParseError(f"distill.parser {self._parser}: got {answer['error']} for captions")
        return [
            [Phrase(caption[start:end], start, end) for start, end in places]
            for caption, places in zip(captions, answer, strict=True)
        ]


def _exchange(process: subprocess.Popen[bytes], captions: list[str]) -> dict | list:
    """One request and its answer; DistillError where the process has ended."""
    assert process.stdin is not None and process.stdout is not None
    line = b""
    with contextlib.suppress(OSError, ValueError):  # a pipe that is broken, or closed by now
        process.stdin.write(json.dumps(captions).encode() + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
    if not line.endswith(b"\n"):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
        status = process.returncode
        raise DistillError(
            f"a process that parses captions ended with status {status}, expected it to serve until "
            "the stage ends"
            + (", killed most likely as the memory ran out" if status == -9 else "")
            + ". Its output is above. Start again: finished shards are kept. distill.num_parsers=0 "
            "parses without processes."
        )
    return json.loads(line)
