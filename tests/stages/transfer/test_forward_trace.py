"""What a student makes of one picture and one text. Oracles: the student asked in the plain way,
and grounding's own heat."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pretrain_fixtures import TINY, tiny_student, toy_samples, toy_tokenizer

from stages.student.vision.neck_config import DictionaryConfig, SohoNeckConfig
from stages.transfer.evaluation.grounding import ground
from stages.transfer.evaluation.retrieval import captions_found
from stages.transfer.predictor import Predictor
from stages.transfer.probes.codebook import NUM_PATCHES, code_gallery, spread_places
from stages.transfer.probes.forward_trace import attention_example, guesses, trace_forward, words_of

SAMPLES = toy_samples(24, 6)
CODED = replace(
    TINY, neck=SohoNeckConfig(dictionary=DictionaryConfig(num_codes=12, start="random"))
)


@pytest.fixture
def predictor() -> Predictor:
    """A tiny student of two layers."""
    return Predictor(student=tiny_student(replace(TINY, num_layers=2)), tokenizer=toy_tokenizer())


def test_pieces_become_words_again() -> None:
    """Oracle: by hand. A piece that begins with ## but follows a space is a word of its own."""
    text = "unhappy, ##x"
    tokens = ["[CLS]", "un", "##happ", "##y", ",", "##x", "[SEP]"]
    offsets = [(0, 0), (0, 2), (2, 6), (6, 7), (7, 8), (9, 12), (0, 0)]
    words = words_of(tokens, offsets, text)
    assert [w.text for w in words] == ["[CLS]", "unhappy", ",", "##x", "[SEP]"]
    assert [(w.first, w.last) for w in words] == [(0, 1), (1, 4), (4, 5), (5, 6), (6, 7)]
    assert [w.is_special for w in words] == [True, False, False, False, True]


@torch.no_grad()
def test_match_and_words(predictor: Predictor) -> None:
    """Oracle: the matching head asked by itself; a word's attention is the mean of its pieces',
    taken here one by one; rows still sum to 1."""
    sample, text = SAMPLES[0], "a redden left of a circle"
    inside = trace_forward(predictor, sample, text)
    ids, _ = predictor.read([text])
    picture = torch.zeros(1, dtype=torch.long)
    hidden = predictor.student.fuse(
        predictor.encode_image([sample]), picture=picture, input_ids=ids
    )
    log_odds = torch.log(torch.tensor(inside.match / (1 - inside.match)))
    logits = predictor.student.itm_head(hidden.text[:, 0])[0]
    torch.testing.assert_close(log_odds, logits[1] - logits[0], rtol=1e-3, atol=1e-4)
    last = inside.attention[-1, 0]
    rows = inside.of_words(inside.attention)[:, -1, 0]
    torch.testing.assert_close(rows.sum(dim=-1), torch.ones(len(rows)))
    several = [w for w in inside.words if w.last > w.first + 1]
    assert several and len(inside.words) < len(inside.tokens)
    for word, row in zip(inside.words, rows):
        pieces = [last[t] for t in range(word.first, word.last)]
        torch.testing.assert_close(row, sum(pieces) / len(pieces))


@torch.no_grad()
def test_meaning_is_the_heat_of_grounding(predictor: Predictor) -> None:
    """Oracle: the heat that the pointing game makes of the same phrase (its caption comes with
    others, padded). Characters that were cut off mean nothing."""
    sample = SAMPLES[1]
    _, shown = ground(predictor, [sample], 1)
    compared = 0
    for phrase in shown[0]["phrases"]:
        inside = trace_forward(predictor, sample, phrase["caption"])
        start = phrase["caption"].index(phrase["text"])
        heat = inside.meaning(predictor, start, start + len(phrase["text"]))
        assert heat is not None
        torch.testing.assert_close(heat, torch.tensor(phrase["heat"]), rtol=0, atol=1e-4)
        compared += 1
    assert compared > 3
    assert inside.meaning(predictor, 5_000, 5_001) is None


@torch.no_grad()
def test_guesses_are_those_for_a_text_with_a_mask(predictor: Predictor) -> None:
    """Oracle: [MASK] typed into the text at the word's place, scored by the word head. A text
    without words has none."""
    text = "a red circle"
    inside = trace_forward(predictor, SAMPLES[0], text)
    found = guesses(predictor, inside, text)
    assert sorted(found) == [1, 2, 3]
    typed = "a [MASK] circle"
    ids, _ = predictor.read([typed])
    place = ids[0].tolist().index(predictor.tokenizer.mask_token_id)
    hidden = predictor.student.fuse(
        inside.cells, picture=torch.zeros(1, dtype=torch.long), input_ids=ids
    )
    shares = predictor.student.mlm_head(
        hidden.text[0, place][None], predictor.student.word_embeddings
    )[0].softmax(dim=0)
    best = shares.argsort(descending=True)[:5].tolist()
    assert [word for word, _ in found[2]] == predictor.tokenizer.convert_ids_to_tokens(best)
    assert [share for _, share in found[2]] == pytest.approx(shares[best].tolist(), rel=1e-3)
    masked = guesses(predictor, trace_forward(predictor, SAMPLES[0], typed), typed)
    assert dict(masked[2]) == pytest.approx(dict(found[2]), rel=1e-3)
    assert guesses(predictor, trace_forward(predictor, SAMPLES[0], ""), "") == {}


@torch.no_grad()
def test_an_example_for_the_report(predictor: Predictor) -> None:
    """Oracle: every heat has a number a cell and sums to 1; words are those of the caption, a
    share is what a word's attention leaves for cells."""
    found = attention_example(predictor, SAMPLES[0])
    num_cells = found["rows"] * found["columns"]
    heats = [found["whole"], *(part["heat"] for part in found["words"] + found["phrases"])]
    assert all(len(heat) == num_cells for heat in heats)
    assert [sum(heat) for heat in heats] == pytest.approx([1] * len(heats), abs=1e-2)
    words = [found["caption"][w["start"] : w["end"]] for w in found["words"]]
    assert " ".join(words) == found["caption"]
    assert all(0 < word["share"] < 1 for word in found["words"])
    assert len(found["phrases"]) == len(SAMPLES[0].info["phrases"][0]) > 0


@torch.no_grad()
def test_the_example_is_a_true_caption(predictor: Predictor) -> None:
    """The second, where the truth says that the first is false; with the second's phrases."""
    sample = SAMPLES[0]
    truth = {**sample.info["truth"], "captions": [False, True, True, True]}
    found = attention_example(predictor, replace(sample, info={**sample.info, "truth": truth}))
    assert found["caption"] == sample.info["captions"][1]
    wanted = [(p["start"], p["end"]) for p in sample.info["phrases"][1]]
    assert [(p["start"], p["end"]) for p in found["phrases"]] == wanted


@torch.no_grad()
def test_codes_are_counted_and_shown() -> None:
    """Oracle: a loop over pictures and cells. Every patch shown is of its code, lies in the
    picture, and no two of a code are of one picture; a student without a dictionary has none."""
    predictor = Predictor(student=tiny_student(CODED), tokenizer=toy_tokenizer())
    dictionary = predictor.student.dictionary
    assert dictionary is not None
    # Codes among the cells, so that there is something to choose; 3 and 7 died.
    dictionary.codes.copy_(torch.randn(12, 32, generator=torch.Generator().manual_seed(1)))
    dictionary.age.zero_()
    dictionary.age[[3, 7]] = 50
    found = code_gallery(predictor, SAMPLES)
    assert found is not None and found["dead"] == [3, 7]
    counts, codes = [0] * 12, {}
    for sample in SAMPLES:
        cells = predictor.encode_image([sample])
        assert cells.codes is not None
        codes[sample.key] = cells.codes[0].view(cells.rows, cells.columns)
        for code in cells.codes[0].tolist():
            counts[code] += 1
    assert found["counts"] == counts and len(found["shown"]) == sum(c > 0 for c in counts) > 1
    shares = torch.tensor(counts) / sum(counts)
    shares = shares[shares > 0]
    assert found["perplexity"] == pytest.approx(
        float((-shares * shares.log()).sum().exp()), abs=0.01
    )
    ranked = [counts[one["code"]] for one in found["shown"]]
    assert ranked == sorted(ranked, reverse=True)
    for one in found["shown"]:
        keys = [patch["key"] for patch in one["patches"]]
        assert 0 < len(keys) == len(set(keys)) <= NUM_PATCHES
        for patch in one["patches"]:
            x0, y0, x1, y1 = patch["box"]
            assert (x1 - x0, y1 - y0) == (48, 48)  # 96 px seen at 32, in cells of 16
            assert codes[patch["key"]][int(y0 // 48), int(x0 // 48)] == one["code"]
    plain = Predictor(student=tiny_student(), tokenizer=toy_tokenizer())
    assert code_gallery(plain, SAMPLES) is None


def test_places_are_spread_over_the_pictures() -> None:
    """Oracle: by hand, of 24 pictures every second; the middle cell of each."""
    cells = {row: [row, row + 100, row + 200] for row in range(24)}
    assert spread_places(cells) == [(row, row + 100) for row in range(0, 24, 2)]
    assert spread_places({5: [1, 2]}) == [(5, 2)]


def test_captions_found_by_hand() -> None:
    """Oracle: two pictures of three with texts of their own; picture 0 has its text at the top,
    picture 1 at place 3; picture 2 has none and is left out."""
    scores = torch.tensor([[5.0, 1, 0], [3, 0, 2], [1, 4, 1]])
    found = captions_found(scores, torch.tensor([0, 1, 0]), SAMPLES[:3], ["a", "b", "c"], 8)
    assert [one["key"] for one in found] == [SAMPLES[0].key, SAMPLES[1].key]
    assert [one["rank"] for one in found] == [1, 3]
    assert [one["right"] for one in found] == ["a", "b"]
    assert [(t["text"], t["right"]) for t in found[0]["texts"]] == [
        ("a", True),
        ("b", False),
        ("c", True),
    ]
