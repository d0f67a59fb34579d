"""Evaluation that several ranks share."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrain_fixtures import TINY, tiny_student, toy_samples, toy_tokenizer, write_objects

from stages.distributed import Ranks
from stages.transfer.config import EvaluateConfig
from stages.transfer.evaluation.evaluate import _score, scores_in_words
from stages.transfer.predictor import Predictor, read_split


class Thread(Ranks):
    """A rank that is a thread; copies of values go from one to the other through a list."""

    values: list[Any]
    barrier: threading.Barrier

    def gathered(self, value: Any) -> list[Any]:
        self.values[self.rank] = value
        self.barrier.wait()
        found = copy.deepcopy(self.values)
        self.barrier.wait()
        return found


@pytest.mark.parametrize("itc_size", [0, 8])
def test_two_ranks_score_what_one_does(tmp_path: Path, itc_size: int) -> None:
    """Oracle: one rank, over an odd number of pictures, with a shortlist where there is a
    contrastive head; examples are the same, and rank 0 alone looks inside."""
    objects = write_objects(tmp_path / "objects", toy_samples(6, 5))
    student = tiny_student(replace(TINY, itc_size=itc_size))
    predictor = Predictor(student=student, tokenizer=toy_tokenizer())
    config = EvaluateConfig(num_shown=2, captions_per_picture=2, shortlist=2)
    found: dict[int, Any] = {}
    Thread.values, Thread.barrier = [None, None], threading.Barrier(2, timeout=300)

    def work(rank: int) -> None:
        with torch.no_grad():
            try:
                found[rank] = _score(config, predictor, objects, Thread(rank, 2))
            finally:
                if rank not in found:
                    Thread.barrier.abort()  # so that the other does not wait for this one

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with torch.no_grad():
        scores, shown = _score(config, predictor, objects, Ranks())
    assert {"image_to_text_r1", "phrase_grounding", "phrase_best_box", "object_label"} <= set(
        scores
    )
    (line,) = (line for line in scores_in_words(scores) if line.startswith("phrase_grounding"))
    assert ", chance 0." in line and ", center 0." in line
    for rank in range(2):
        for name, entry in scores.items():
            assert found[rank][0][name] == pytest.approx(entry), name
    assert found[0][1].keys() == shown.keys() and "attention" not in found[1][1]
    assert [one["key"] for one in found[1][1]["grounding"]] == [
        one["key"] for one in shown["grounding"]
    ]


@pytest.mark.parametrize("itc_size", [0, 8])
def test_the_cnn_runs_once_a_picture(
    tmp_path: Path, itc_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of retrieval with a shortlist, grounding, labels, codes and attention. Oracle: the number of
    pictures that went into the CNN; and scores as with a memory that holds nothing."""
    objects = write_objects(tmp_path / "objects", toy_samples(6, 5))
    student = tiny_student(replace(TINY, itc_size=itc_size))
    config = EvaluateConfig(num_shown=4, shortlist=2)
    num_seen: list[int] = []
    hook = student.grid.register_forward_hook(lambda *call: num_seen.append(len(call[1][0])))
    with torch.no_grad():
        first = _score(
            config, Predictor(student=student, tokenizer=toy_tokenizer()), objects, Ranks()
        )
        pictures = read_split(objects, "heldout")
        assert sum(num_seen) == len(pictures) == len(num_seen)
        hook.remove()
        monkeypatch.setattr("stages.transfer.predictor.KEPT_BYTES", 0)
        again = _score(
            config, Predictor(student=student, tokenizer=toy_tokenizer()), objects, Ranks()
        )
    assert first[0] == again[0]


def test_a_head_that_was_not_trained_is_not_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: a student that says it was trained without omvm has no score of labels, and the
    screen says why; one that says nothing is scored."""
    objects = write_objects(tmp_path / "objects", toy_samples(6, 2))
    predictor = Predictor(student=tiny_student(), tokenizer=toy_tokenizer())
    with torch.no_grad():
        for objectives, is_scored in ((None, True), (["itm", "mlm"], False), (["omvm"], True)):
            predictor.student.config.objectives = objectives
            scores, _ = _score(EvaluateConfig(num_shown=2), predictor, objects, Ranks())
            assert ("object_label" in scores) == is_scored
    assert "object labels are not scored" in capsys.readouterr().out
