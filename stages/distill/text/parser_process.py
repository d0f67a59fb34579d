"""Serves a spaCy pipeline over standard input and output: captions in, phrases out.

    python -m stages.distill.text.parser_process PARSER

Standard input has a JSON list of captions a line. Standard output has a line for each, in order:
a list a caption of the phrases' (start, end), characters, or {"error": text} where the pipeline
failed. It ends when its input ends, so it never outlives the process that started it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any, BinaryIO

from stages.distill.text.phrases import Chunker, ParserChunker


def main() -> None:
    """Serve one pipeline until the input ends."""
    # A signal to the whole group (a terminal's, Slurm's) is for the parent, whose shard may need
    # captions until it has ended.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # What libraries print must not come between the lines.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(ParserChunker(sys.argv[1]), sys.stdin.buffer, answers)


def serve(chunker: Chunker, requests: BinaryIO, answers: BinaryIO) -> None:
    """A line to `answers` for each line of `requests`."""
    for line in requests:
        try:
            found = chunker.chunk(json.loads(line))
            answer: Any = [[(phrase.start, phrase.end) for phrase in some] for some in found]
        except Exception as error:  # said by the parent, as if it had parsed itself
            answer = {"error": f"{type(error).__name__}: {error}"}
        try:
            answers.write(json.dumps(answer).encode() + b"\n")
            answers.flush()
        except BrokenPipeError:  # the parent has ended
            os._exit(0)


if __name__ == "__main__":
    main()
