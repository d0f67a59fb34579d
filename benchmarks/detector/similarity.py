"""Compares the kinds of `distill.similarity` on phrases and Visual Genome's labels.

    python -m benchmarks.detector.similarity [--sentence MODEL] [--bert MODEL] [--spacy MODEL]

Lexical always; each other kind where a model is named, a BERT in both layers. The phrases are such
as captions have, half of them with a word that no label has; the labels are 40 of Visual Genome's.
Texts a second are of one CPU thread, each text new.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch

from sharding.format.schema import object_dtype
from stages.distill.config import DistillConfig
from stages.distill.text.similarity import Similarity, make_similarity
from stages.distill.text.similarity_config import (
    BertConfig,
    LexicalConfig,
    SentenceConfig,
    SimilarityConfig,
    SpacyConfig,
)

LABELS = (
    "man;woman;person;boy;girl;child,kid;dog;cat;horse;cow;bird;bus;car;truck;bike,bicycle;"
    "motorcycle;skateboard;surfboard;train;boat,ship;traffic light,stop light;street sign;tree;"
    "building;window;shirt,t-shirt;hat,cap;cup,mug;plate;table,desk;chair;couch,sofa;laptop;"
    "phone,cell phone;pizza;cake;sky;grass;street,road;beach"
).split(";")
PHRASES = {
    "a man": "man",
    "two dogs": "dog",
    "the red bus": "bus",
    "a wooden table": "table,desk",
    "a slice of pizza": "pizza",
    "a stop light": "traffic light,stop light",
    "green grass": "grass",
    "a young girl": "girl",
    "a cell phone": "phone,cell phone",
    "the sofa": "couch,sofa",
    "a puppy": "dog",
    "a guy": "man",
    "an old lady": "woman",
    "the kitten": "cat",
    "a sedan": "car",
    "the lawn": "grass",
    "a coffee": "cup,mug",
    "a skyscraper": "building",
    "a stallion": "horse",
    "an infant": "child,kid",
}
SHOWN = ("the red bus", "a puppy", "a guy", "the lawn")


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for kind in ("sentence", "bert", "spacy"):
        parser.add_argument(f"--{kind}", metavar="MODEL")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kinds: dict[str, SimilarityConfig] = {"lexical": LexicalConfig()}
    if options.spacy:
        kinds["spacy"] = SpacyConfig(model=options.spacy)
    if options.bert:
        kinds["bert, input"] = BertConfig(model=options.bert, layer="input")
        kinds["bert, last"] = BertConfig(model=options.bert, layer="last")
    if options.sentence:
        kinds["sentence"] = SentenceConfig(model=options.sentence)
    made = {
        name: make_similarity(DistillConfig(similarity=config, object_text="label"), LABELS, [])
        for name, config in kinds.items()
    }
    values = {name: _values(similarity) for name, similarity in made.items()}
    head = ["measure", "right label first", "its similarity", "best other", "mean other", "texts/s"]
    print("\n".join(_table(head, [_row(n, values[n], made[n]) for n in made])), end="\n\n")
    rows = [[phrase, *(_shown(values[n], phrase) for n in made)] for phrase in SHOWN]
    print("\n".join(_table(["phrase", *made], rows)))


def _values(similarity: Similarity) -> np.ndarray:
    """Phrases by labels."""
    objects = np.zeros(len(LABELS), object_dtype(feature_size=1, num_top=1, attributes=False))
    objects["label"] = np.arange(len(LABELS))
    return np.array(similarity.compare(list(PHRASES), objects))


def _row(name: str, values: np.ndarray, similarity: Similarity) -> list[str]:
    right = np.array([LABELS.index(label) for label in PHRASES.values()])
    rows = np.arange(len(right))
    own = values[rows, right]
    others = values.copy()
    others[rows, right] = -np.inf
    first = int((own > others.max(axis=1)).sum())
    mean_other = (values.sum(axis=1) - own) / (len(LABELS) - 1)
    means = (own.mean(), others.max(axis=1).mean(), mean_other.mean())
    figures = [f"{mean:.2f}" for mean in means]
    return [name, f"{first} of {len(right)}", *figures, f"{_texts_per_second(similarity):.0f}"]


def _texts_per_second(similarity: Similarity) -> float:
    """The median of five times a hundred phrases that were not asked before, one object each."""
    objects = np.zeros(1, object_dtype(feature_size=1, num_top=1, attributes=False))
    speeds = []
    for turn in range(5):
        phrases = [f"a {word} thing" for word in _new_words(turn)]
        start = time.perf_counter()
        similarity.compare(phrases, objects)
        speeds.append(len(phrases) / (time.perf_counter() - start))
    return statistics.median(speeds)


def _new_words(turn: int) -> list[str]:
    letters = "abcdefghij"
    return [f"{letters[turn]}{a}{b}" for a in letters for b in letters]


def _shown(values: np.ndarray, phrase: str) -> str:
    """The three nearest labels, the first spelling of each."""
    row = values[list(PHRASES).index(phrase)]
    best = np.argsort(-row, kind="stable")[:3]
    return ", ".join(f"{LABELS[i].split(',')[0]} {row[i]:.2f}" for i in best)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


if __name__ == "__main__":
    main()
