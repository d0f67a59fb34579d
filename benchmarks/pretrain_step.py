"""What two savings of a pretraining step bring, as ratios measured side by side in one run.

    python benchmarks/pretrain_step.py [--rounds 7] [--threads 1]

- The CNN runs once a picture, not once a caption (SOHO's released code repeats it in the neck).
- MLM logits are made for hidden pieces only (SOHO's released code makes them for every token).

Both are checked to give the same numbers first. Each round times the plain and the saving way one
after the other, forward and backward; printed are medians and the spread of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from stages.student.config import StudentConfig
from stages.student.network import Student, make_student

NUM_PICTURES, NUM_CAPTIONS, NUM_TOKENS, VOCABULARY = 16, 4, 20, 30_522
HIDDEN_SHARE = 0.15


def main() -> None:
    """Print a table of the two savings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    student = make_student(
        StudentConfig(), vocab_size=VOCABULARY, pad_id=0, label_names=["thing"], feature_size=8
    )
    for name, plain, saving in (
        ("CNN once a picture", *_picture_passes(student)),
        ("MLM logits where needed", *_mlm_heads(student)),
    ):
        assert torch.allclose(plain(), saving(), rtol=1e-4, atol=1e-5), name
        _report(name, plain, saving, options.rounds)


def _picture_passes(student: Student) -> tuple[Callable[[], torch.Tensor], ...]:
    pixels = torch.randn(NUM_PICTURES, 3, 96, 96)
    sizes_px = torch.full((NUM_PICTURES, 2), 96)
    picture = torch.arange(NUM_PICTURES).repeat_interleave(NUM_CAPTIONS)
    tokens = torch.randint(5, VOCABULARY, (len(picture), NUM_TOKENS))
    student.eval()

    def repeated() -> torch.Tensor:
        cells = student.see(pixels[picture], sizes_px[picture])
        every = torch.arange(len(picture))
        return student.fuse(cells, picture=every, tokens=tokens).text.square().mean()

    def once() -> torch.Tensor:
        cells = student.see(pixels, sizes_px)
        return student.fuse(cells, picture=picture, tokens=tokens).text.square().mean()

    return repeated, once


def _mlm_heads(student: Student) -> tuple[Callable[[], torch.Tensor], ...]:
    width = student.word_embeddings.shape[1]
    text = torch.randn(NUM_PICTURES * NUM_CAPTIONS, NUM_TOKENS, width, requires_grad=True)
    hidden = torch.rand(text.shape[:2]) < HIDDEN_SHARE
    labels = torch.randint(5, VOCABULARY, text.shape[:2])

    def everywhere() -> torch.Tensor:
        logits = student.mlm_head(text, student.word_embeddings)
        return torch.nn.functional.cross_entropy(logits[hidden], labels[hidden])

    def where_hidden() -> torch.Tensor:
        logits = student.mlm_head(text[hidden], student.word_embeddings)
        return torch.nn.functional.cross_entropy(logits, labels[hidden])

    return everywhere, where_hidden


def _report(
    name: str,
    plain: Callable[[], torch.Tensor],
    saving: Callable[[], torch.Tensor],
    rounds: int,
) -> None:
    times = [(_seconds(plain), _seconds(saving)) for _ in range(rounds)]
    ratios = sorted(a / b for a, b in times)
    print(
        f"{name:26} plain {statistics.median(a for a, _ in times):.3f} s  "
        f"saving {statistics.median(b for _, b in times):.3f} s  "
        f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def _seconds(way: Callable[[], torch.Tensor]) -> float:
    began = time.perf_counter()
    way().backward()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
