"""Feeds the readers of tests.fuzz.readers with bytes that atheris makes up, guided by coverage.

    python -m tests.fuzz.fuzz_readers --seconds 60 scan index    (no name: all, one after the other)

Exit status 1 at the first reader that raises anything but a refusal or takes more than 512 MB; the
bytes that made it do so are then in CORPUS/crash-*. What it has found worth keeping stays in CORPUS
(/tmp/boxless-fuzz unless --corpus says otherwise) for the next time.

atheris is no dependency of Boxless: pip install atheris==3.0.0
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from random import Random

MAX_INPUT_BYTES = 40_000
MAX_MEMORY_MB = 512


def main() -> None:
    """Fuzz each reader in a process of its own, as atheris never returns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*", metavar="READER", help="all if none is named")
    parser.add_argument("--seconds", type=int, default=60, help="for each reader")
    parser.add_argument("--corpus", type=Path, default=Path("/tmp/boxless-fuzz"))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        sys.exit("atheris is not installed; it is needed here alone: pip install atheris==3.0.0")
    if options.here:  # before the readers are imported: fuzz has atheris watch the import
        fuzz(options.readers[0], options.corpus, options.seconds)
    known = importlib.import_module("tests.fuzz.readers").READERS
    if unknown := set(options.readers) - known.keys():
        parser.error(f"got {', '.join(sorted(unknown))}, expected of {', '.join(known)}")
    for reader in options.readers or known:
        command = [
            sys.executable,
            "-m",
            "tests.fuzz.fuzz_readers",
            "--here",
            reader,
            "--corpus",
            str(options.corpus / reader),
            "--seconds",
            str(options.seconds),
        ]
        if subprocess.run(command).returncode != 0:
            sys.exit(f"{reader}: failed; the bytes are in {options.corpus / reader}/crash-*")
        print(f"{reader}: nothing found in {options.seconds} s", flush=True)


def fuzz(reader: str, corpus: Path, seconds: int) -> None:
    """Runs one reader until the time is over; ends the process."""
    import atheris

    with atheris.instrument_imports(include=["sharding", "stages.detector"]):
        readers = importlib.import_module("tests.fuzz.readers")

    folder = corpus.with_name(f"{reader}-files")
    for needed in (folder, corpus):
        needed.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(readers.seeds(reader, folder)):
        (corpus / f"seed-{number}").write_bytes(seed)

    def one(data: bytes) -> None:
        try:
            readers.READERS[reader](data, folder)
        except readers.REFUSALS:
            pass

    def mutated(data: bytes, max_num_bytes: int, seed: int) -> bytes:
        # Bytes alone seldom make JSON, or headers with true checksums; now and then they may.
        if reader in readers.JSONS and seed % 4:
            return readers.changed(data, Random(seed))[:max_num_bytes]
        data = atheris.Mutate(data, max_num_bytes)
        return readers.repaired(data) if reader in readers.TARS and seed % 8 else data

    atheris.Setup(
        [
            sys.argv[0],
            str(corpus),
            f"-max_total_time={seconds}",
            f"-max_len={MAX_INPUT_BYTES}",
            f"-rss_limit_mb={MAX_MEMORY_MB}",
            f"-artifact_prefix={corpus}/",
            "-timeout=10",
            "-print_final_stats=1",
        ],
        one,
        custom_mutator=mutated,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
