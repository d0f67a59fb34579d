"""Retrieval: recalls, chance, and scores that do not depend on how they are batched."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pretrain_fixtures import TINY, tiny_student, toy_samples, toy_tokenizer

from stages.transfer.evaluation.retrieval import gallery, score_matrix, shortlisted
from stages.transfer.metrics.retrieval_recall import recalls
from stages.transfer.predictor import Predictor


def _value(found: dict[str, dict[str, float]], name: str) -> float:
    return found[name]["value"]


def test_recalls_by_hand() -> None:
    """Oracle: three pictures, four texts (0 and 1 of picture 0), ranks on paper.

    Texts of picture 0: best own 5, nothing wrong reaches it: rank 0. Picture 1: own 2, text 0 has
    3: rank 1. Picture 2: own 4, text 1 ties with it: rank 1. Pictures of text 0: own 5, above 3 and
    1: rank 0. Text 1: own 1, under 4: rank 1 (0 stays below). Texts 2 and 3: 2 over 0 and 1; 4 over
    0 and 1: rank 0.
    """
    scores = torch.tensor([[5.0, 1, 0, 0], [3.0, 0, 2, 1], [1.0, 4, 1, 4]])
    found = recalls(scores, torch.tensor([0, 0, 1, 2]))
    assert _value(found, "image_to_text_r1") == pytest.approx(1 / 3)
    assert _value(found, "text_to_image_r1") == pytest.approx(3 / 4)
    assert found["image_to_text_r5"]["value"] == found["text_to_image_r10"]["value"] == 1
    assert found["image_to_text_r1"]["chance"] == pytest.approx((2 + 1 + 1) / 4 / 3)
    assert found["text_to_image_r1"]["chance"] == pytest.approx(1 / 3)
    assert (found["image_to_text_r1"]["num"], found["text_to_image_r1"]["num"]) == (3, 4)


def test_recalls_are_those_of_a_loop() -> None:
    """Oracle: ranks by sorting in plain Python, on coarse random scores that tie often; a wrong
    answer with an equal score stands before the right one."""
    random = torch.Generator().manual_seed(0)
    for _ in range(20):
        picture_of = torch.arange(8).repeat_interleave(2)[1:]
        scores = torch.randint(0, 12, (8, 15), generator=random).float()
        found = recalls(scores, picture_of)
        for k in (1, 5, 10):
            right = 0
            for n in range(8):
                order = sorted(
                    range(15), key=lambda m: (-scores[n, m].item(), picture_of[m].item() == n)
                )
                right += any(picture_of[m] == n for m in order[:k])
            assert _value(found, f"image_to_text_r{k}") == pytest.approx(right / 8)
            right = 0
            for m in range(15):
                order = sorted(
                    range(8), key=lambda n: (-scores[n, m].item(), n == picture_of[m].item())
                )
                right += int(picture_of[m]) in order[:k]
            assert _value(found, f"text_to_image_r{k}") == pytest.approx(right / 15)


def test_chance_is_what_random_scores_reach() -> None:
    """Oracle: the mean over 300 matrices of noise, within four standard errors."""
    random = torch.Generator().manual_seed(1)
    picture_of = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 11])
    runs = [recalls(torch.rand(12, 16, generator=random), picture_of) for _ in range(300)]
    for name, entry in runs[0].items():
        values = torch.tensor([run[name]["value"] for run in runs])
        error = max(values.std().item(), 1e-6) / math.sqrt(len(runs))
        assert abs(values.mean().item() - entry["chance"]) < 4 * error + 1e-6, name


def test_equal_scores_and_no_numbers_are_no_success() -> None:
    """Oracle: a student that says the same of everything, or nan, finds nothing at rank 1."""
    picture_of = torch.arange(20)
    for value in (0.0, math.nan):
        found = recalls(torch.full((20, 20), value), picture_of)
        assert all(entry["value"] == 0 for entry in found.values())


def test_a_picture_without_a_true_text_is_not_asked_for_one() -> None:
    """Oracle: by hand. Pictures 1 and 2 have no text (NLVR's false sentences): image to text is
    over picture 0 alone, and they still can be mistaken for it."""
    found = recalls(torch.tensor([[1.0], [2.0], [0.0]]), torch.tensor([0]))
    assert found["image_to_text_r1"] == {"value": 1.0, "chance": 1.0, "num": 1}
    assert found["text_to_image_r1"] == {"value": 0.0, "chance": pytest.approx(1 / 3), "num": 1}


@torch.no_grad()
def test_scores_do_not_depend_on_batches_or_company() -> None:
    """Oracle: the whole matrix, to the last digit, where 1, 7 or 64 of its texts are asked at a
    time; and each pair scored alone, with its text padded by nothing."""
    predictor = Predictor(student=tiny_student(), tokenizer=toy_tokenizer())
    samples = toy_samples(24, 6)[:3]
    texts = [text for s in toy_samples(24, 6) for text in s.info["captions"]]
    matrix = score_matrix(predictor, samples, texts)
    for num in (1, 7, 64):
        parts = [texts[start : start + num] for start in range(0, len(texts), num)]
        matrices = [score_matrix(predictor, samples[:1], part) for part in parts[:20]]
        assert torch.equal(torch.cat(matrices, dim=1)[0], matrix[0, : 20 * num]), num
    for n, sample in enumerate(samples):
        for m, text in enumerate(texts[:6]):
            tokens, _ = predictor.read([text])
            hidden = predictor.student.fuse(
                predictor.encode_image([sample]), picture=torch.tensor([0]), input_ids=tokens
            )
            no, yes = predictor.student.itm_head(hidden.text[:, 0])[0]
            assert matrix[n, m].item() == pytest.approx((yes - no).item(), abs=1e-4)


def test_the_gallery_shows_what_was_found() -> None:
    """Oracle: by hand: text 1 belongs to picture 1, which comes second to picture 2."""
    samples = toy_samples(24, 6)[:3]
    scores = torch.tensor([[3.0, 0.1], [1.0, 0.5], [2.0, 0.9]])
    shown = gallery(scores, torch.tensor([0, 1]), samples, ["a", "b"], 5)
    assert [(s["text"], s["right"], s["rank"]) for s in shown] == [
        ("a", samples[0].key, 1),
        ("b", samples[1].key, 2),
    ]
    assert [p["key"] for p in shown[1]["pictures"]] == [samples[i].key for i in (2, 1, 0)]
    assert shown[1]["pictures"][0]["score"] == 0.9


def test_a_shortlist_by_hand() -> None:
    """Oracle: on paper. The best of each row: 9, 8; of each column: 9, 4, 8."""
    scores = torch.tensor([[9.0, 1.0, 3.0], [2.0, 4.0, 8.0]])
    wanted = torch.tensor([[True, False, False], [False, True, True]])
    assert torch.equal(shortlisted(scores, 1), wanted)
    assert shortlisted(scores, 5).all()


@torch.no_grad()
def test_a_bank_normalises_the_scores_unless_told_not_to() -> None:
    """Oracle: the head's own logits of the same vectors, with and without the bank."""
    student = tiny_student(replace(TINY, itc_size=6, itc_bank_size=4))
    predictor = Predictor(student=student, tokenizer=toy_tokenizer())
    samples = toy_samples(4, 2)[:4]
    texts = [sample.info["captions"][0] for sample in samples]
    assert student.query_bank is not None
    student.query_bank.fill(torch.eye(4, 6), torch.eye(4, 6))
    vectors = (
        torch.cat([student.embed_texts(predictor.read([text])[0]) for text in texts]),
        torch.cat([student.embed_pictures(predictor.encode_image([one])) for one in samples]),
    )
    for query_bank, wanted in (
        (True, student.compare_without_hubs(*vectors).T),
        (False, student.compare(*vectors).T),
    ):
        got = score_matrix(predictor, samples, texts, query_bank=query_bank)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(
        student.compare(*vectors), student.compare_without_hubs(*vectors), atol=1e-3
    )


def test_the_contrastive_head_ranks_and_the_matching_head_ranks_again() -> None:
    """Oracle: a loop over pairs, each alone: the cosine over the temperature; with a shortlist that
    holds everything, plus half of the matching head's log odds; with a shorter one, those pairs
    alone, and all others behind them."""
    student = tiny_student(replace(TINY, itc_size=6))
    predictor = Predictor(student=student, tokenizer=toy_tokenizer())
    samples = toy_samples(4, 2)[:4]
    texts = [sample.info["captions"][0] for sample in samples] + ["a red circle"]
    with torch.no_grad():
        first = score_matrix(predictor, samples, texts)
        both, few = (
            score_matrix(predictor, samples, texts, shortlist=number, itm_weight=0.5)
            for number in (5, 1)
        )
        for n, sample in enumerate(samples):
            cells = predictor.encode_image([sample])
            for m, text in enumerate(texts):
                tokens, _ = predictor.read([text])
                cosine = student.embed_texts(tokens) @ student.embed_pictures(cells)[0]
                wanted = cosine[0] / 0.07
                torch.testing.assert_close(first[n, m], wanted, rtol=1e-4, atol=1e-4)
                no, yes = student.match(
                    cells, picture=torch.zeros(1, dtype=torch.long), input_ids=tokens
                )[0]
                wanted = wanted + 0.5 * (yes - no)
                torch.testing.assert_close(both[n, m], wanted, rtol=1e-4, atol=1e-4)
    listed = shortlisted(first, 1)
    torch.testing.assert_close(few[listed], both[listed])
    assert few[~listed].max() < few[listed].min()
