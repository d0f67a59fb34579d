"""Full retrieval, every picture with every text by the matching head: pairs a second of
`stages.transfer.retrieval_matrix`, beside a loop that runs the whole model a pair.

    python -m benchmarks.transfer.retrieval_matrix --student DIR [--pictures FOLDER]
        [--texts 5000]

Without a folder the pictures are squares of noise, of the side that the student sees.

Both score a sample of the same pairs, in turns, and have to agree: of the matrix some whole rows (a
picture with all texts), of the loop some pairs of each; the time of the whole is scaled from them.
The loop opens the picture and calls the student on it and the text for each pair, as evaluation
code that knows one pair at a time does: the CNN, and all outputs of the fusion. Rates are of a CPU
second of the process, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stages.transfer.example import Example
from stages.transfer.inference import SUFFIXES
from stages.transfer.loaded_student import LoadedStudent
from stages.transfer.retrieval_matrix import row_scorer

WORDS = "a the dog man woman red blue green circle square runs sits beside under left right of and".split()


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, help="a folder of pictures")
    parser.add_argument("--num-pictures", type=int, default=1000, help="of the whole matrix")
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument("--rows", type=int, default=2, help="pictures measured, all texts each")
    parser.add_argument("--pairs", type=int, default=60, help="pairs of the loop measured a round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    loaded = LoadedStudent(args.student)
    with tempfile.TemporaryDirectory() as made:
        folder = args.pictures or made_pictures(Path(made), loaded.processor.shorter_px)
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        _measure(loaded, files, args)
    return 0


def _measure(loaded: LoadedStudent, files: Sequence[Path], args: argparse.Namespace) -> None:
    """Print the rates of both, and what they differ by."""
    texts = made_texts(args.texts)
    row = row_scorer(loaded.network, loaded.processor, texts)
    fast, slow, largest = [], [], 0.0
    for number in range(args.rows):
        path = files[number % len(files)]
        start = time.process_time()
        scores = row((Example(id="0", images=(path,), texts=()),))["0"]
        fast.append(len(texts) / (time.process_time() - start))
        chosen = range(number, len(texts), max(1, len(texts) // args.pairs))[: args.pairs]
        start = time.process_time()
        found = [pair_score(loaded, path, texts[m]) for m in chosen]
        slow.append(len(found) / (time.process_time() - start))
        largest = max(largest, max(abs(a - scores[m]) for m, a in zip(chosen, found)))
    rate, loop = max(fast), max(slow)
    hours = args.num_pictures * len(texts) / 3600
    for name, value, spread in (("matrix", rate, fast), ("loop", loop, slow)):
        print(
            f"{name:10} {value:9.1f} pairs a CPU second (rounds {min(spread):.1f} to {value:.1f}): "
            f"{args.num_pictures} x {len(texts)} in {hours / value:.1f} CPU hours"
        )
    print(f"{'ratio':10} {rate / loop:9.1f}")
    print(f"{'difference':10} {largest:9.1e} in log odds at most")


def made_pictures(folder: Path, side_px: int, num: int = 4) -> Path:
    """Square JPEGs of noise in `folder`."""
    random = np.random.default_rng(0)
    for number in range(num):
        pixels = random.integers(0, 256, size=(side_px, side_px, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return folder


def made_texts(num: int) -> list[str]:
    """Captions of 5 to 18 words, in the lengths that COCO's have: most have 9 to 12."""
    lengths = (5, 8, 9, 10, 10, 11, 11, 12, 13, 18)
    return [
        " ".join(WORDS[(7 * m + 5 * i + i * i) % len(WORDS)] for i in range(lengths[m % 10]))
        for m in range(num)
    ]


@torch.no_grad()
def pair_score(loaded: LoadedStudent, path: Path, text: str) -> float:
    """The matching head's log odds of one pair, by the whole model."""
    logits = loaded.network(**loaded.processor([path], [text])).logits[0]
    return float(logits[1] - logits[0])


if __name__ == "__main__":
    sys.exit(main())
