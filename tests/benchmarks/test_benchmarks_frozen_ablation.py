"""The ablation of frozen networks in one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from pretrain_fixtures import TINY, tiny_student, toy_samples, toy_tokenizer, write_objects

from benchmarks.training.frozen_ablation import FrozenScorer
from stages.distributed import Ranks
from stages.transfer.config import EvaluateConfig
from stages.transfer.evaluation.evaluate import _score
from stages.transfer.predictor import Predictor


def test_scores_are_those_of_evaluate(tmp_path: Path) -> None:
    """Oracle: `evaluate` on each of two students of the same frozen networks and other heads. The
    scores of many pictures may differ by one that 16 bits decide otherwise."""
    objects = write_objects(tmp_path / "objects", toy_samples(6, 12))
    config = EvaluateConfig(captions_per_picture=2)
    recipe: Any = SimpleNamespace(evaluate=config)
    scorer = FrozenScorer(recipe, SimpleNamespace(objects=objects))  # type: ignore[arg-type]
    first = tiny_student(replace(TINY, itc_size=8, pra_level="encoders", pra_size=8)).eval()
    for seed in range(2):
        torch.manual_seed(seed)
        for head in (first.contrastive_head.text, first.contrastive_head.picture):
            torch.nn.init.normal_(head.weight)
        first.save_pretrained(tmp_path / str(seed))
        toy_tokenizer().save_pretrained(tmp_path / str(seed))
        predictor = Predictor.load(tmp_path / str(seed))
        with torch.no_grad():
            wanted = _score(config, predictor, objects, Ranks())[0]
        got = scorer.score(tmp_path / str(seed))
        assert got.keys() == wanted.keys() - {"object_label"}
        for name, scores in got.items():
            assert abs(scores["value"] - wanted[name]["value"]) < 0.05, name
            assert scores["chance"] == wanted[name]["chance"], name
