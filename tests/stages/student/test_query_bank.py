"""Querybank normalisation: hubness by a bank of training pairs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretrain_fixtures import TINY, random_batch, tiny_student
from torch.nn import functional as F

from stages.student.config import StudentConfig
from stages.student.network import Student
from stages.student.query_bank import QueryBank

WITH_BANK = replace(TINY, itc_size=8, itc_bank_size=5, itc_bank_temperature=0.2)


def _units(num: int, seed: int) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(num, 8, generator=draws), dim=1)


def _filled(student: Student) -> Student:
    assert student.query_bank is not None
    student.query_bank.fill(_units(5, 0), _units(5, 1))
    return student


def test_hubness_is_the_formula() -> None:
    """Oracle: temperature x log(mean of exp(cosine / temperature)) in a plain loop, over the rows
    that are not empty."""
    bank = QueryBank(5, 8, temperature=0.2)
    pictures, texts = _units(5, 0), _units(5, 1)
    pictures[3:] = 0
    bank.fill(pictures, texts)
    queries = _units(4, 2)
    for got, rows in (
        (bank.hubness_of_texts(queries), pictures[:3]),
        (bank.hubness_of_pictures(queries), texts),
    ):
        for value, query in zip(got.tolist(), queries):
            exps = [math.exp(float(query @ row) / 0.2) for row in rows]
            assert value == pytest.approx(0.2 * math.log(sum(exps) / len(exps)), abs=1e-6)


def test_an_empty_bank_changes_nothing() -> None:
    """Oracle: the logits of a head without a bank; the same after the bank is cleared, and other
    ones while it is filled."""
    texts, pictures = _units(3, 3), _units(4, 4)
    plain = tiny_student(replace(TINY, itc_size=8)).compare_without_hubs(texts, pictures)
    student = tiny_student(WITH_BANK)
    assert torch.equal(student.compare_without_hubs(texts, pictures), plain)
    assert not torch.allclose(_filled(student).compare_without_hubs(texts, pictures), plain)
    assert torch.equal(student.compare(texts, pictures), plain)
    assert student.query_bank is not None
    student.query_bank.clear()
    assert torch.equal(student.compare_without_hubs(texts, pictures), plain)


def test_ranks_are_those_of_the_inverted_softmax() -> None:
    """Oracle: the paper's formula. A picture's texts stand in the order of exp(s / t) over the sum
    of exp(s / t) of that text with the bank's pictures; a text's pictures in the same way."""
    student = _filled(tiny_student(WITH_BANK))
    texts, pictures = _units(30, 3), _units(20, 4)
    scores = student.compare_without_hubs(texts, pictures)
    raw = (texts @ pictures.T / 0.2).exp()
    by_texts = raw / (texts @ _units(5, 0).T / 0.2).exp().sum(1, keepdim=True)
    by_pictures = raw / (pictures @ _units(5, 1).T / 0.2).exp().sum(1)
    assert torch.equal(scores.argsort(dim=0), by_texts.argsort(dim=0))
    assert torch.equal(scores.argsort(dim=1), by_pictures.argsort(dim=1))


def test_a_saved_student_compares_alike(tmp_path: Path) -> None:
    """Oracle: the student before it was saved: vectors and normalised logits are equal. One that
    was saved without a bank opens, and opened with one has an empty one."""
    student = _filled(tiny_student(WITH_BANK)).eval()
    student.save_pretrained(tmp_path / "with")
    again = Student.from_pretrained(str(tmp_path / "with")).eval()
    batch = random_batch(0)
    found = []
    for one in (student, again):
        with torch.no_grad():
            cells = one.encode_image(batch.pixels, batch.sizes_px)
            vectors = one.embed_texts(batch.texts), one.embed_pictures(cells)
            found.append((*vectors, one.compare_without_hubs(*vectors)))
    for before, after in zip(*found):
        assert torch.equal(before, after)
    tiny_student(replace(TINY, itc_size=8)).save_pretrained(tmp_path / "without")
    assert Student.from_pretrained(str(tmp_path / "without")).query_bank is None
    opened = Student.from_pretrained(str(tmp_path / "without"), itc_bank_size=5)
    assert opened.query_bank is not None and not opened.query_bank.get_buffer("texts").any()


def test_settings_that_do_not_fit_are_named() -> None:
    """Oracle: the messages."""
    with pytest.raises(ValueError, match="itc_bank_size: got 5 with student.itc_size 0"):
        StudentConfig(itc_bank_size=5)
    with pytest.raises(ValueError, match="itc_bank_size: got -1"):
        StudentConfig(itc_size=8, itc_bank_size=-1)
    with pytest.raises(ValueError, match="itc_bank_temperature: got 0"):
        StudentConfig(itc_size=8, itc_bank_temperature=0)
