"""Simple baselines on a folder of photographs, beside a student's scores.

    python -m benchmarks.transfer.baselines FOLDER --cnn THIN50 --text MINILM \\
        [--scores RUN/transfer/evaluate/scores.json] [--minutes 5] [--train 2800] [--dev 400]

FOLDER is as the recipe `photos` expects it. On the dev pictures with all their captions, R@1, 5 and
10 both ways: chance; linear CCA of the two frozen networks' mean vectors; two linear heads on the
same, trained by InfoNCE; and a small dual encoder (frozen CNN whose grid is pooled by attention,
the text network trained, InfoNCE over 128 pairs) after so many `--minutes` of one thread, 0 for
none. And pointing at phrases: the share of boxed phrases that a random point and the picture's
centre hit.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, ResNetModel

from stages.pretrain.cca import PairStatistics
from stages.progress import Progress
from stages.student.heads import ContrastiveHead, weighted_mean
from stages.student.vision.image_transforms import load_picture, stack_pictures
from stages.transfer.evaluation.grounding import covered_area, is_in_some_box
from stages.transfer.metrics.retrieval_recall import recalls

SHORTER_PX, LONGER_PX, STRIDE_PX = 192, 288, 32
MOST_CELLS = (LONGER_PX // STRIDE_PX) * (SHORTER_PX // STRIDE_PX)
RIDGE, DIRECTIONS = 0.3, 256
HEAD_STEPS, HEAD_BATCH, HEAD_RATE = 400, 512, 1e-3
DUAL_BATCH, DUAL_RATE, DUAL_TEXT_RATE = 128, 1e-3, 5e-5
TEMPERATURE = 0.07
TEXTS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Split:
    """N pictures' cells of the frozen CNN [N, C, X] in 16 bits, which of them are real [N, C],
    their captions, and the row of each caption's picture [M]."""

    cells: torch.Tensor
    inside: torch.Tensor
    captions: list[str]
    picture_of: torch.Tensor

    @property
    def means(self) -> torch.Tensor:
        """Each picture's mean cell: [N, X]."""
        return weighted_mean(self.inside[:, None], self.cells.float())[:, 0]


@dataclass(frozen=True, kw_only=True)
class TextNet:
    """A published text network and its tokenizer."""

    net: Any
    tokenizer: Any

    def tokens(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """What the network takes, padded."""
        encoded = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=32, return_tensors="pt"
        )
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    @torch.no_grad()
    def means(self, texts: Sequence[str]) -> torch.Tensor:
        """The mean of the last layer's vectors over each text's pieces: [M, D]."""
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        found = torch.zeros(len(texts), self.net.config.hidden_size)
        with Progress("texts", total=len(texts), unit="texts") as progress:
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                rows = order[start : start + TEXTS_AT_ONCE]
                tokens = self.tokens([texts[row] for row in rows])
                hidden = self.net(**tokens).last_hidden_state
                found[rows] = weighted_mean(tokens["attention_mask"].bool()[:, None], hidden)[:, 0]
                progress.advance(len(rows))
        return found


def read_captions(folder: Path, split: str, most: int) -> tuple[list[Path], list[list[str]]]:
    """The first pictures of a split, in the file's order, each with its captions."""
    data = json.loads((folder / f"captions_{split}.json").read_text())
    of_picture: dict[Any, list[str]] = {image["id"]: [] for image in data["images"]}
    for annotation in data["annotations"]:
        of_picture[annotation["image_id"]].append(annotation["caption"])
    images = data["images"][:most]
    paths = [folder / "images" / split / image["file_name"] for image in images]
    return paths, [of_picture[image["id"]] for image in images]


@torch.no_grad()
def read_split(folder: Path, split: str, most: int, cnn: nn.Module) -> Split:
    """Pictures through the CNN, one at a time, without padding but to whole cells."""
    paths, captions = read_captions(folder, split, most)
    channels = cnn.config.hidden_sizes[-1]
    cells = torch.zeros(len(paths), MOST_CELLS, channels, dtype=torch.float16)
    inside = torch.zeros(len(paths), MOST_CELLS, dtype=torch.bool)
    with Progress(split, total=len(paths), unit="pictures") as progress:
        for row, path in enumerate(paths):
            array = load_picture(path.read_bytes(), shorter_px=SHORTER_PX, longer_px=LONGER_PX)
            pixels = stack_pictures([array], multiple_px=STRIDE_PX).pixels
            own = cnn(pixels.contiguous(memory_format=torch.channels_last)).last_hidden_state
            flat = own[0].flatten(1).T
            cells[row, : len(flat)], inside[row, : len(flat)] = flat.half(), True
            progress.advance()
    rows = [row for row, texts in enumerate(captions) for _ in texts]
    return Split(
        cells=cells,
        inside=inside,
        captions=[text for texts in captions for text in texts],
        picture_of=torch.tensor(rows),
    )


def cca(x: torch.Tensor, y: torch.Tensor, dev_x: torch.Tensor, dev_y: torch.Tensor) -> torch.Tensor:
    """Cosines in canonical directions of pairs x [M, X], y [M, Y]: scores [N, M'] of dev."""
    statistics = PairStatistics(x.shape[1], y.shape[1])
    statistics.add(x, y)
    size = min(DIRECTIONS, x.shape[1], y.shape[1])
    start = statistics.solve(ridge=RIDGE, size=size)
    pictures = dev_x.double() @ start.project + start.project_bias
    texts = dev_y.double() @ start.text + start.text_bias
    return (F.normalize(pictures, dim=1) @ F.normalize(texts, dim=1).T).float()


def linear_heads(
    x: torch.Tensor,
    y: torch.Tensor,
    picture_of: torch.Tensor,
    dev_x: torch.Tensor,
    dev_y: torch.Tensor,
) -> torch.Tensor:
    """Two linear maps of frozen vectors x [N, X], y [M, Y], trained by InfoNCE with AdamW: scores
    [N', M'] of dev."""
    heads = nn.ModuleList([nn.Linear(x.shape[1], DIRECTIONS), nn.Linear(y.shape[1], DIRECTIONS)])
    means, scales = (x.mean(0), y.mean(0)), (x.std(), y.std())
    optimizer = torch.optim.AdamW(heads.parameters(), lr=HEAD_RATE, weight_decay=0.1)

    def embed(side: int, vectors: torch.Tensor) -> torch.Tensor:
        return F.normalize(heads[side]((vectors - means[side]) / scales[side]), dim=1)

    for _ in _rates(optimizer, HEAD_STEPS):
        texts = _one_text_a_picture(picture_of, HEAD_BATCH)
        info_nce(embed(0, x[picture_of[texts]]) @ embed(1, y[texts]).T / TEMPERATURE).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return embed(0, dev_x) @ embed(1, dev_y).T


def dual_encoder(train: Split, dev: Split, text: TextNet, seconds: float) -> torch.Tensor:
    """The frozen CNN's grid pooled by attention, and the text network, trained by InfoNCE for about
    so many `seconds` (a first step is timed to get their number): scores [N', M'] of dev."""
    width = text.net.config.hidden_size
    project = nn.Linear(train.cells.shape[2], width)
    head = ContrastiveHead(width, DIRECTIONS, text.net.config.num_attention_heads, TEMPERATURE)
    new = nn.ModuleList([project, head])
    optimizer = torch.optim.AdamW(
        [
            {"params": new.parameters(), "lr": DUAL_RATE},
            {"params": text.net.parameters(), "lr": DUAL_TEXT_RATE},
        ],
        weight_decay=0.05,
    )

    def embed_pictures(split: Split, rows: torch.Tensor) -> torch.Tensor:
        return head.embed_pictures(project(split.cells[rows].float()), split.inside[rows])

    def embed_texts(texts: Sequence[str]) -> torch.Tensor:
        tokens = text.tokens(texts)
        hidden = text.net(**tokens).last_hidden_state
        return head.embed_texts(hidden, tokens["attention_mask"].bool())

    def step() -> None:
        rows = _one_text_a_picture(train.picture_of, DUAL_BATCH)
        texts = embed_texts([train.captions[row] for row in rows.tolist()])
        info_nce(head.compare(texts, embed_pictures(train, train.picture_of[rows]))).backward()
        optimizer.step()
        optimizer.zero_grad()

    text.net.train()
    started = time.monotonic()
    with _zero_rate(optimizer):
        step()
    num_steps = max(1, int(seconds / (time.monotonic() - started)))
    with Progress("dual encoder", total=num_steps, unit="steps") as progress:
        for _ in _rates(optimizer, num_steps):
            step()
            progress.advance()
    text.net.eval()
    with torch.no_grad():
        pictures = embed_pictures(dev, torch.arange(len(dev.cells)))
        parts = range(0, len(dev.captions), TEXTS_AT_ONCE)
        texts = torch.cat([embed_texts(dev.captions[i : i + TEXTS_AT_ONCE]) for i in parts])
        return head.compare(texts, pictures).T


def info_nce(scores: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of both directions, scores [B, B] with right pairs on the diagonal."""
    right = torch.arange(len(scores))
    return (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2


def _one_text_a_picture(picture_of: torch.Tensor, most: int) -> torch.Tensor:
    """Rows of one random text of each of up to `most` random pictures."""
    order = torch.randperm(len(picture_of))
    seen: dict[int, int] = {}
    for row in order.tolist():
        seen.setdefault(int(picture_of[row]), row)
        if len(seen) == most:
            break
    return torch.tensor(list(seen.values()))


class _zero_rate:
    """A step within changes nothing but the optimizer's moments."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._groups = optimizer.param_groups
        self._rates = [group["lr"] for group in self._groups]

    def __enter__(self) -> None:
        for group in self._groups:
            group["lr"] = 0.0

    def __exit__(self, *_: object) -> None:
        for group, rate in zip(self._groups, self._rates):
            group["lr"] = rate


def _rates(optimizer: torch.optim.Optimizer, num_steps: int) -> Iterator[int]:
    """Steps 0, 1 ..., the rates rising over a tenth of them and falling to 0 by a cosine."""
    peaks = [group["lr"] for group in optimizer.param_groups]
    for step in range(num_steps):
        rise = min(1.0, (step + 1) / max(1.0, 0.1 * num_steps))
        for group, peak in zip(optimizer.param_groups, peaks):
            group["lr"] = peak * rise * (1 + math.cos(math.pi * step / num_steps)) / 2
        yield step


def pointing(folder: Path, split: str, most: int) -> dict[str, float]:
    """Shares of boxed phrases that a random point, and the picture's centre, hit: in any of the
    phrase's boxes. Each mention in each caption counts."""
    data = json.loads((folder / f"instances_{split}.json").read_text())
    sizes = {image["id"]: (image["width"], image["height"]) for image in data["images"][:most]}
    boxes: dict[Any, list[list[float]]] = {}
    for annotation in data["annotations"]:
        x, y, width, height = annotation["bbox"]
        boxes.setdefault(annotation["image_id"], []).append([x, y, x + width, y + height])
    random = center = 0.0
    num = 0
    for line in (folder / f"phrases_{split}.jsonl").read_text().splitlines():
        picture = json.loads(line)
        if picture["image_id"] not in sizes:
            continue
        width, height = sizes[picture["image_id"]]
        for *_, rows in (phrase for caption in picture["phrases"] for phrase in caption):
            if rows:
                own = torch.tensor([boxes[picture["image_id"]][row] for row in rows])
                random += covered_area(own) / (width * height)
                center += is_in_some_box(torch.tensor([width / 2, height / 2]), own)
                num += 1
    return {"random": random / max(1, num), "center": center / max(1, num), "num": num}


def row_of(name: str, found: dict[str, dict[str, float]], key: str = "value") -> str:
    """A line of the table: recalls in per cent, picture to text and text to picture."""
    ways = [
        " / ".join(f"{100 * found[f'{way}_r{k}'][key]:.1f}" for k in (1, 5, 10))
        for way in ("image_to_text", "text_to_image")
    ]
    return f"| {name} | {ways[0]} | {ways[1]} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cnn", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--scores", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--train", type=int, default=2800)
    parser.add_argument("--dev", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    cnn = ResNetModel.from_pretrained(given.cnn).eval().to(memory_format=torch.channels_last)
    text = TextNet(
        net=AutoModel.from_pretrained(given.text).eval(),
        tokenizer=AutoTokenizer.from_pretrained(given.text),
    )
    dev = read_split(given.folder, "dev", given.dev, cnn)
    train = read_split(given.folder, "train", given.train, cnn)
    x, dev_x = train.means, dev.means
    y, dev_y = text.means(train.captions), text.means(dev.captions)
    print("| R@1 / 5 / 10, % | picture to text | text to picture |\n| --- | --- | --- |")
    by_cca = recalls(cca(x[train.picture_of], y, dev_x, dev_y), dev.picture_of)
    print(row_of("chance", by_cca, "chance"))
    print(row_of("CCA", by_cca))
    scores = linear_heads(x, y, train.picture_of, dev_x, dev_y)
    print(row_of("two linear heads, InfoNCE", recalls(scores, dev.picture_of)), flush=True)
    if given.minutes:
        scores = dual_encoder(train, dev, text, 60 * given.minutes)
        name = f"dual encoder, {given.minutes:g} minutes"
        print(row_of(name, recalls(scores, dev.picture_of)), flush=True)
    points = pointing(given.folder, "dev", given.dev)
    student = json.loads(given.scores.read_text()) if given.scores else {}
    if student:
        print(row_of("student", student))
    print(
        f"\npointing at {points['num']:.0f} boxed phrases, %: random {100 * points['random']:.1f}"
    )
    print(f"  the picture's centre {100 * points['center']:.1f}")
    if "phrase_grounding" in student:
        print(f"  student {100 * student['phrase_grounding']['value']:.1f}")


if __name__ == "__main__":
    main()
