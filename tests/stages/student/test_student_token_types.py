"""Token types and person tags: by hand, through tokenizer, processor, fusion and student folder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pretrain_fixtures import TINY, tiny_student, toy_samples, toy_tokenizer, write_objects
from transformers import PreTrainedTokenizerFast

from sharding.reading.dataset_source import DatasetSource, open_source
from stages.pretrain.data.batch_source import make_tokenizer
from stages.student.build import make_student
from stages.student.extend_vocabulary import extend
from stages.student.network import Student
from stages.student.processor import StudentProcessor
from stages.student.text.token_types import add_person_tags, encode_spans

QUESTION, ANSWER = ("question", "a red circle"), ("answer", "small")
RATIONALE = ("rationale", "the [PERSON_1] is red")


def _tokenizer(num_tags: int = 3) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(toy_tokenizer())
    add_person_tags(tokenizer, num_tags)
    return tokenizer


def _pieces(
    tokenizer: PreTrainedTokenizerFast, spans: Sequence[tuple[str, str]], most: int = 24
) -> tuple[list[str], list[int]]:
    tokens, types = encode_spans(tokenizer, spans, max_tokens=most)
    return tokenizer.convert_ids_to_tokens(tokens), types


def test_parts_by_hand() -> None:
    """Oracle: [CLS] q [SEP] a [SEP] with 0 x (len q + 2), 2 x (len a + 1), as in KD-VLP's wrapper;
    the rationale's 3 x (len r + 1) in the same manner."""
    pieces, types = _pieces(_tokenizer(), [QUESTION, ANSWER])
    assert pieces == ["[CLS]", "a", "red", "circle", "[SEP]", "small", "[SEP]"]
    assert types == [0, 0, 0, 0, 0, 2, 2]
    pieces, types = _pieces(_tokenizer(), [QUESTION, ANSWER, RATIONALE])
    assert pieces[7:9] == ["the", "[PERSON_1]"] and pieces[-1] == "[SEP]"
    assert types == [0] * 5 + [2] * 2 + [3] * (len(pieces) - 7)


def test_long_parts_are_cut_from_the_longest() -> None:
    """Oracle: by hand; ten words and one into eight pieces leave four and one."""
    long = ("question", " ".join(["red"] * 10))
    pieces, types = _pieces(_tokenizer(), [long, ANSWER], most=8)
    assert pieces == ["[CLS]", *["red"] * 4, "[SEP]", "small", "[SEP]"]
    assert types == [0] * 6 + [2] * 2
    with pytest.raises(ValueError, match="got 2 parts, expected fewer"):
        _pieces(_tokenizer(), [long, ANSWER], most=2)
    with pytest.raises(ValueError, match="got parts .'image'., expected"):
        _pieces(_tokenizer(), [("image", "red")])


def test_person_tags_are_words_of_their_own(tmp_path: Path) -> None:
    """Oracle: 81 new entries behind the others; none is split, lower-cased or unknown, beside
    letters too; from the folder the same again, and adding them once more adds none."""
    tokenizer, num_words = _tokenizer(81), len(toy_tokenizer())
    assert len(tokenizer) == num_words + 81
    text = "[PERSON_80] is red, [PERSON_0][PERSON_12]"
    tags = [id for id in tokenizer(text)["input_ids"] if id >= num_words]
    assert tags == [num_words + 80, num_words, num_words + 12]
    tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    add_person_tags(again, 81)
    assert len(again) == len(tokenizer)


def test_a_recipe_with_person_tags(tmp_path: Path) -> None:
    """Oracle: the tokenizer trained on the same captions without, and then the tags."""
    objects = write_objects(tmp_path / "objects", toy_samples(6, 3))
    opened = [open_source(DatasetSource(folder=objects), cache=None)]
    (tmp_path / "at").mkdir()
    toy_tokenizer().save_pretrained(tmp_path / "at")
    tokenizer = _made(tmp_path / "at", opened)
    assert len(tokenizer) == len(toy_tokenizer()) + 5


def _made(folder: Path, opened: list) -> PreTrainedTokenizerFast:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/ranks", rank=0, world_size=1
    )
    try:
        return make_tokenizer(replace(TINY, num_person_tags=5), opened, folder)
    finally:
        torch.distributed.destroy_process_group()


def _vcr_student() -> tuple[Student, StudentProcessor]:
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    student = make_student(
        replace(TINY, num_token_types=4),
        vocab_size=len(tokenizer),
        pad_id=tokenizer.pad_token_id,
        label_names=["a"],
        feature_size=4,
    ).eval()
    return student, StudentProcessor.of(student, tokenizer)


@torch.no_grad()
def test_types_reach_the_fusion_and_the_folder(tmp_path: Path) -> None:
    """Oracle: embeddings worked out from the four parts of BERT's sum; the picture's cells keep row
    1; what a student folder gives back is the same to the bit."""
    student, processor = _vcr_student()
    types = student.embeddings.token_type_embeddings.weight
    assert torch.equal(types[2], types[0]) and torch.equal(types[3], types[0])
    types.copy_(torch.randn_like(types))
    picture = Image.fromarray(np.full((20, 40, 3), 90, np.uint8))
    inputs = processor([picture], [[QUESTION, ANSWER, RATIONALE], "red"])
    assert inputs["token_type_ids"][0].unique().tolist() == [0, 2, 3]
    assert not inputs["token_type_ids"][1].any()

    embeddings = student.embeddings
    words = embeddings.word_embeddings.weight[inputs["input_ids"]]
    places = embeddings.position_embeddings.weight[: words.shape[1]]
    wanted = embeddings.LayerNorm(words + places + types[inputs["token_type_ids"]])
    torch.testing.assert_close(embeddings(inputs["input_ids"], inputs["token_type_ids"]), wanted)

    out = student(**inputs)
    untyped = student(**{**inputs, "token_type_ids": torch.zeros_like(inputs["input_ids"])})
    assert not torch.allclose(out.text[0], untyped.text[0]) and torch.equal(
        out.text[1], untyped.text[1]
    )
    cells = student.encode_image(inputs["pixel_values"], inputs["sizes_px"])
    before = student._placed(cells.features, cells, torch.tensor([0]))
    types[[0, 2, 3]] += 1
    assert torch.equal(student._placed(cells.features, cells, torch.tensor([0])), before)
    types[[0, 2, 3]] -= 1

    student.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = StudentProcessor.from_pretrained(tmp_path)([picture], [[QUESTION, ANSWER, RATIONALE]])
    assert torch.equal(again["input_ids"][0], inputs["input_ids"][0])
    loaded = Student.from_pretrained(tmp_path).eval()(**again)
    torch.testing.assert_close(loaded.logits[0], out.logits[0], rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_a_pretrained_student_learns_new_words_and_types(tmp_path: Path) -> None:
    """Oracle: what it said before, to the bit; KD-VLP's copies of row 0; logits for every word; the
    same from its folder. Taking words away is refused."""
    student, tokenizer = tiny_student(), _tokenizer()
    picture = Image.fromarray(np.full((20, 40, 3), 90, np.uint8))
    inputs = StudentProcessor.of(student, toy_tokenizer())([picture], ["a red circle"])
    before = student(**inputs)
    types = student.embeddings.token_type_embeddings.weight.clone()
    extend(student, vocab_size=len(tokenizer), num_token_types=4)
    after = student(**inputs)
    assert torch.equal(after.logits, before.logits) and torch.equal(after.text, before.text)
    assert torch.equal(student.embeddings.token_type_embeddings.weight, types[[0, 1, 0, 0]])
    assert student.mlm_head(after.text[0], student.word_embeddings).shape[1] == len(tokenizer)
    assert all(p.requires_grad for p in student.embeddings.parameters())
    processor = StudentProcessor.of(student, tokenizer)
    out = student(**processor([picture], [[QUESTION, RATIONALE]]))
    student.save_pretrained(tmp_path)
    again = Student.from_pretrained(tmp_path).eval()
    assert torch.equal(again(**processor([picture], [[QUESTION, RATIONALE]])).logits, out.logits)
    with pytest.raises(ValueError, match="num_token_types: got 2, expected at least"):
        extend(student, vocab_size=len(tokenizer), num_token_types=2)


def test_parts_that_a_student_has_no_type_for() -> None:
    """Oracle: ValueError that says how it gets more."""
    processor = StudentProcessor.of(tiny_student(), toy_tokenizer())
    picture = Image.new("RGB", (20, 20))
    with pytest.raises(ValueError, match="2 token types .*student.num_token_types"):
        processor([picture], [[QUESTION, ANSWER]])
