"""The ablation of a recipe whose CNN and text network are frozen, in one process.

    python -m benchmarks.training.frozen_ablation RUN [--seeds 3] [--only plain kdvlp]
        [--out RUN/frozen_ablation] [--set pretrain.num_steps=100 ...]

RUN is a run folder of such a recipe, as `photos`, with its object shards. `boxless ablation` trains
and scores the same students; what it does twelve times is done once here: processes start, both
networks look at the held-out pictures and captions, and, with `pretrain.cnn_cache_folder` and
`text_cache_folder`, at the training data. Only retrieval by the contrastive head and pointing are
scored, on outputs in 16 bits. A student whose scores are there already is not trained again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pipeline.recipe.recipe import Recipe, load_recipe
from pipeline.runner.ablation import VARIANTS, Scores, compare, show, variant_recipe
from pipeline.runner.run_folder import RunFolder
from sharding.format.schema import Sample
from sharding.writing.atomic import write_json
from stages.pretrain.caches.text_cache import TextCache
from stages.pretrain.run import pretrain
from stages.student.network import Student
from stages.student.outputs import Cells
from stages.transfer.evaluation.evaluate import true_captions
from stages.transfer.evaluation.grounding import ground
from stages.transfer.evaluation.retrieval import score_matrix
from stages.transfer.metrics.retrieval_recall import recalls
from stages.transfer.predictor import Predictor, read_split

TEXT_BYTES = 2**30


def main() -> None:
    """Train and score every student, print the table, keep it as json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    run = RunFolder(args.run)
    recipe, out = load_recipe(run.recipe, args.set), args.out or run.root / "frozen_ablation"
    scorer = FrozenScorer(recipe, run)
    found: dict[str, dict[str, Scores]] = {name: {} for name in args.only}
    for seed in range(recipe.seed, recipe.seed + args.seeds):
        for variant in args.only:
            one = variant_recipe(recipe, variant, seed)
            found[variant][str(seed)] = trained(one, run, out / f"{variant}-{seed}", scorer)
            write_json(out / "scores.json", compare(found, recipe.pretrain.num_steps))
    show(compare(found, recipe.pretrain.num_steps))


def trained(recipe: Recipe, run: RunFolder, out: Path, scorer: FrozenScorer) -> Scores:
    """Pretrain one student into `out`, from its last checkpoint there, and score it."""
    path = out / "scores.json"
    if path.exists():
        return json.loads(path.read_text())
    pretrain(
        recipe.pretrain,
        student=recipe.student,
        seed=recipe.seed,
        objects=run.objects,
        out=out / "pretrain",
        student_out=out / "student",
    )
    scores = scorer.score(out / "student")
    write_json(path, scores)
    line = ", ".join(f"{name} {100 * entry['value']:.1f}" for name, entry in scores.items())
    print(f"{out.name}: {line}", flush=True)
    return scores


class FrozenScorer:
    """Scores of students that share frozen networks, on a recipe's held-out pictures."""

    def __init__(self, recipe: Recipe, run: RunFolder) -> None:
        config = recipe.evaluate
        self._samples = read_split(run.objects, config.split_of_shards, config.num_pictures)
        self._texts, self._picture_of = true_captions(self._samples, config.captions_per_picture)
        self._query_bank = config.query_bank
        self._known: Known | None = None

    @torch.no_grad()
    def score(self, student: Path) -> Scores:
        """Retrieval and pointing of a student folder."""
        plain = Predictor.load(student)
        self._known = self._known or Known(first=Predictor.load(student))
        predictor = FrozenPredictor(
            student=plain.student, tokenizer=plain.tokenizer, known=self._known
        )
        texts, first = self._known.texts, self._known.first.student
        predictor.student.encode_texts = lambda tokens: texts.encode(first, tokens)  # type: ignore
        matrix = score_matrix(predictor, self._samples, self._texts, query_bank=self._query_bank)
        scores: Scores = dict(recalls(matrix, self._picture_of))
        return scores | ground(predictor, self._samples, num_shown=0)[0]


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the frozen networks of the `first` student gave: maps by a picture's key, and texts."""

    first: Predictor
    maps: dict[str, torch.Tensor] = field(default_factory=dict)
    texts: TextCache = field(default_factory=lambda: TextCache(TEXT_BYTES))


@dataclass(frozen=True, kw_only=True)
class FrozenPredictor(Predictor):
    """A student whose CNN is that of the first one."""

    known: Known

    def encode_image(self, samples: Sequence[Sample]) -> Cells:
        """The cells of one sample's picture."""
        (sample,) = samples
        pictures = self.pictures(samples)
        student: Student = self.known.first.student
        if sample.key not in self.known.maps:
            maps = student.encode_maps(pictures.pixels, pictures.sizes_px)
            self.known.maps[sample.key] = maps.half()
        maps = self.known.maps[sample.key].float()
        return self.student.encode_image(pictures.pixels, pictures.sizes_px, maps=maps)


if __name__ == "__main__":
    main()
