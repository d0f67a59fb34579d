"""The parser's way to phrases, with a real spaCy pipeline: small, and trained right here on
captions whose tags, heads and dependencies a few rules write down."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import spacy
import thinc.api
import torch
from distill_fakes import FakeTeacher, make_sample, source_of, tree_of, write_images
from spacy.training import Example

from sharding.reading.sample_reader import iterate
from stages.distill import run
from stages.distill.config import DistillConfig
from stages.distill.inference.failures import DistillError
from stages.distill.run import distill
from stages.distill.text import parser_pool
from stages.distill.text.parser_pool import ParseError, ParserPool
from stages.distill.text.parser_process import serve
from stages.distill.text.phrases import LexiconChunker, ParserChunker, Phrase, make_chunker

NOUNS = "circle square triangle star dog man woman horse table box car house circles dogs".split()
ADJECTIVES = "small large red blue green yellow old big black white".split()
VERBS = "chases touches holds sees covers".split()
PREPOSITIONS = "on above below near under behind".split()
DETERMINERS = ["a", "the", "the", "one", "two"]
NUM_TRAINING, NUM_UNSEEN, NUM_EPOCHS = 72, 40, 14

CONFIG = """
[nlp]
lang = "en"
pipeline = ["tok2vec", "morphologizer", "parser"]
[components]
[components.tok2vec]
factory = "tok2vec"
[components.tok2vec.model]
@architectures = "spacy.HashEmbedCNN.v2"
pretrained_vectors = null
width = 48
depth = 2
embed_size = 500
window_size = 1
maxout_pieces = 2
subword_features = true
[components.morphologizer]
factory = "morphologizer"
[components.morphologizer.model]
@architectures = "spacy.Tagger.v2"
[components.morphologizer.model.tok2vec]
@architectures = "spacy.Tok2VecListener.v1"
width = 48
[components.parser]
factory = "parser"
min_action_freq = 1
[components.parser.model]
@architectures = "spacy.TransitionBasedParser.v2"
state_type = "parser"
extra_state_tokens = false
hidden_width = 48
maxout_pieces = 2
use_upper = true
[components.parser.model.tok2vec]
@architectures = "spacy.Tok2VecListener.v1"
width = 48
"""


class Token(NamedTuple):
    """A word with its universal part of speech, dependency and head (an index in the caption)."""

    word: str
    pos: str
    dep: str
    head: int


class Annotated(NamedTuple):
    """A caption's tokens and the noun phrases that the rules put in."""

    tokens: list[Token]
    phrases: list[str]


def write_caption(random: np.random.Generator) -> Annotated:
    """caption := NP VERB NP | NP "is" P NP | NP P NP | NP "and" NP | "it" "is" P NP, with or
    without a full stop; NP := [determiner or number] adjective{0,2} noun."""
    tokens: list[Token] = []
    phrases: list[str] = []

    def pick(words: list[str]) -> str:
        return str(random.choice(words))

    def noun_phrase(dep: str, head: int | None) -> int:
        """Append a noun phrase; the noun's index. `head` None: the noun is the root."""
        determiner = pick(DETERMINERS) if random.random() < 0.8 else ""
        adjectives = [pick(ADJECTIVES) for _ in range(int(random.integers(0, 3)))]
        words = [*([determiner] if determiner else []), *adjectives, pick(NOUNS)]
        noun = len(tokens) + len(words) - 1
        if determiner in ("one", "two"):
            tokens.append(Token(determiner, "NUM", "nummod", noun))
        elif determiner:
            tokens.append(Token(determiner, "DET", "det", noun))
        tokens.extend(Token(word, "ADJ", "amod", noun) for word in adjectives)
        tokens.append(Token(words[-1], "NOUN", dep, noun if head is None else head))
        phrases.append(" ".join(words))
        return noun

    def set_head(index: int, head: int) -> None:
        tokens[index] = tokens[index]._replace(head=head)

    def prepositional_phrase(head: int) -> None:
        tokens.append(Token(pick(PREPOSITIONS), "ADP", "prep", head))
        noun_phrase("pobj", len(tokens) - 1)

    form = int(random.integers(0, 5))
    if form == 0:
        subject = noun_phrase("nsubj", 0)
        root = len(tokens)
        tokens.append(Token(pick(VERBS), "VERB", "ROOT", root))
        set_head(subject, root)
        noun_phrase("dobj", root)
    elif form in (1, 4):
        if form == 1:
            subject = noun_phrase("nsubj", 0)
        else:
            subject = 0
            tokens.append(Token("it", "PRON", "nsubj", 0))
        root = len(tokens)
        tokens.append(Token("is", "AUX", "ROOT", root))
        set_head(subject, root)
        prepositional_phrase(root)
    elif form == 2:
        root = noun_phrase("ROOT", None)
        prepositional_phrase(root)
    else:
        root = noun_phrase("ROOT", None)
        tokens.append(Token("and", "CCONJ", "cc", root))
        noun_phrase("conj", root)
    if random.random() < 0.5:
        tokens.append(Token(".", "PUNCT", "punct", root))
    return Annotated(tokens, phrases)


def text_of(caption: Annotated) -> str:
    return " ".join(token.word for token in caption.tokens).replace(" .", ".")


def make_captions() -> tuple[list[Annotated], list[Annotated]]:
    """Captions to train on, and others that are none of them."""
    random = np.random.default_rng(0)
    by_text: dict[str, Annotated] = {}
    while len(by_text) < NUM_TRAINING + NUM_UNSEEN:
        caption = write_caption(random)
        by_text.setdefault(text_of(caption), caption)
    captions = list(by_text.values())
    return captions[:NUM_TRAINING], captions[NUM_TRAINING:]


@pytest.fixture(scope="session")
def parser_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline tok2vec + morphologizer + parser, trained for a few seconds, on disk."""
    spacy.util.fix_random_seed(0)
    nlp = spacy.util.load_model_from_config(thinc.api.Config().from_str(CONFIG), auto_fill=True)
    examples = []
    for caption in make_captions()[0]:
        words, pos, deps, heads = map(list, zip(*caption.tokens))
        spaces = [word != "." for word in words[1:]] + [False]
        doc = spacy.tokens.Doc(nlp.vocab, words=words, spaces=spaces)
        annotations = {"words": words, "pos": pos, "deps": deps, "heads": heads, "spaces": spaces}
        examples.append(Example.from_dict(doc, annotations))
    optimizer = nlp.initialize(lambda: examples)
    optimizer.learn_rate = 0.003
    random = np.random.default_rng(0)
    for _ in range(NUM_EPOCHS):
        order = random.permutation(len(examples))
        for start in range(0, len(order), 16):
            batch = [examples[i] for i in order[start : start + 16]]
            nlp.update(batch, sgd=optimizer, drop=0.1)
    folder = tmp_path_factory.mktemp("parser") / "small"
    nlp.to_disk(folder)
    return folder


@pytest.fixture(scope="session")
def chunker(parser_folder: Path) -> ParserChunker:
    return ParserChunker(str(parser_folder))


def test_unseen_captions(chunker: ParserChunker) -> None:
    """Oracle: the noun phrases that the grammar put in, pronouns left out. The parser is a learned
    one, so one caption in ten may be wrong; slices must be right in all."""
    captions = make_captions()[1]
    texts = [text_of(caption) for caption in captions]
    found = chunker.chunk(texts)
    right = [[p.text for p in f] == caption.phrases for f, caption in zip(found, captions)]
    assert sum(right) >= 0.9 * len(captions), [t for t, r in zip(texts, right) if not r]
    for text, phrases in zip(texts, found):
        assert all(text[p.start : p.end] == p.text for p in phrases)


def test_pronouns_are_no_phrases(chunker: ParserChunker) -> None:
    (phrases,) = chunker.chunk(["it is under the red box."])
    assert [phrase.text for phrase in phrases] == ["the red box"]


def test_awkward_captions_are_slices_that_begin_with_a_word(chunker: ParserChunker) -> None:
    """Nothing can be asked of a small parser here but that it neither fails nor overlaps."""
    awkward = [
        "",
        " ",
        "...!",
        "圆形 café\u200b",
        "a  red\n circle",
        " - the dog",
        "THE DOG",
        "word " * 200,
    ]
    found = chunker.chunk(awkward)
    assert len(found) == len(awkward)
    assert found[:2] == [[], []]
    for text, phrases in zip(awkward, found):
        ends = [0, *(p.end for p in phrases)]
        assert all(end <= p.start < p.end for end, p in zip(ends, phrases))
        assert all(text[p.start : p.end] == p.text for p in phrases)
        assert all(p.text[0].isalnum() for p in phrases)


def test_auto_takes_the_parser_where_it_is(parser_folder: Path) -> None:
    said: list[str] = []
    for phrases in ("auto", "parser"):
        config = DistillConfig(phrases=phrases, parser=str(parser_folder))
        assert isinstance(make_chunker(config, ["dog"], [], log=said.append), ParserChunker)
    assert not said
    lexicon = DistillConfig(phrases="lexicon", parser=str(parser_folder))
    assert isinstance(make_chunker(lexicon, ["dog"], []), LexiconChunker)


def test_fingerprint_is_of_the_weights_not_of_the_place(
    parser_folder: Path, chunker: ParserChunker, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(parser_folder, tmp_path / "moved"))
    assert ParserChunker(str(other)).fingerprint == chunker.fingerprint
    weights = other / "parser" / "model"
    meta = json.loads((other / "meta.json").read_text())
    (other / "meta.json").write_text(json.dumps(meta | {"notes": "trained again"}))
    assert weights.is_file()
    assert ParserChunker(str(other)).fingerprint != chunker.fingerprint


def test_a_pipeline_without_parser_is_refused(tmp_path: Path) -> None:
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(ValueError, match="blank has nothing; expected a parser"):
        make_chunker(DistillConfig(parser=str(tmp_path / "blank")), ["dog"], [])
    with pytest.raises(ValueError, match="distill.parser is .* cannot load"):
        make_chunker(DistillConfig(parser=str(tmp_path)), ["dog"], [])


def test_object_shards_from_the_parser(parser_folder: Path, tmp_path: Path) -> None:
    """The phrase "the small dog" holds no label of the teacher, so only a parser finds it."""
    sample = make_sample("a", ["the small dog is on a red square"], np.random.default_rng(0))
    write_images(tmp_path / "images", {"train-000000.tar": [sample]})
    catalog = distill(
        DistillConfig(phrases="parser", parser=str(parser_folder)),
        images=tmp_path / "images",
        object_source=source_of(FakeTeacher()),
        out=tmp_path / "objects",
    )
    assert catalog is not None and catalog.metadata["chunker"].startswith("en_pipeline")
    (seen,) = iterate(tmp_path / "objects" / "train-000000.tar")
    (phrases,) = seen.info["phrases"]
    assert [phrase["text"] for phrase in phrases] == ["the small dog", "a red square"]


@pytest.fixture(scope="module")
def pool(parser_folder: Path, chunker: ParserChunker) -> Iterator[ParserPool]:
    with ParserPool(chunker, str(parser_folder), 1) as pool:
        yield pool


def test_a_process_finds_the_same_phrases_in_order(
    pool: ParserPool, chunker: ParserChunker
) -> None:
    """Oracle: the chunker in this process, on the same captions together; requests wait for one
    another, and each future has its own. Odd characters survive the pipe."""
    texts = [text_of(caption) for caption in make_captions()[1]]
    requests = [texts[:16], ["the dog\n is caf\u00e9 \u5706\u5f62", ""], [], texts[16:]]
    futures = [pool.submit(request) for request in requests]
    assert [future.result(300) for future in futures] == [chunker.chunk(one) for one in requests]
    assert (pool.name, pool.fingerprint) == (chunker.name, chunker.fingerprint)


def test_shards_are_the_same_with_processes(
    parser_folder: Path, pool: ParserPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the folder written without, file by file, of so many samples that parses wait in
    line, two of which are broken."""
    random, texts = np.random.default_rng(0), [text_of(one) for one in make_captions()[1]]
    samples = [make_sample(f"s{i}", [texts[i % 40], texts[-i % 40]], random) for i in range(70)]
    samples[3] = replace(samples[3], image=b"no picture")
    samples[69] = replace(samples[69], image=b"no picture")
    write_images(tmp_path / "images", {"train-000000.tar": samples})
    for name in ("without", "with"):
        distill(
            DistillConfig(phrases="parser", parser=str(parser_folder)),
            images=tmp_path / "images",
            object_source=source_of(FakeTeacher()),
            out=tmp_path / name,
            show=False,
        )
        monkeypatch.setattr(run, "_with_parsers", lambda *args: contextlib.nullcontext(pool))
    assert tree_of(tmp_path / "with") == tree_of(tmp_path / "without")


def test_a_process_that_ends_stops_the_stage(
    chunker: ParserChunker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: a module that is not there ends with status 1 before it answers."""
    monkeypatch.setattr(parser_pool, "MODULE", "stages.distill.text.not_there")
    with (
        ParserPool(chunker, "small", 2) as pool,
        pytest.raises(DistillError, match="ended with status 1, .* distill.num_parsers=0"),
    ):
        pool.chunk(["a dog"])


def test_what_the_parser_raises_is_said(
    chunker: ParserChunker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the line that the process answers with, and the error that the pool makes of one;
    the process goes on with the next line."""

    class Failing:
        name = fingerprint = "failing"

        def chunk(self, captions: Sequence[str]) -> list[list[Phrase]]:
            if captions == ["bad"]:
                raise ValueError("too long")
            return [[Phrase("a", 0, 1)] for _ in captions]

    answers = io.BytesIO()
    serve(Failing(), io.BytesIO(b'["bad"]\n["a", "b"]\n'), answers)
    error, sound = map(json.loads, answers.getvalue().splitlines())
    assert error == {"error": "ValueError: too long"} and sound == [[[0, 1]], [[0, 1]]]
    monkeypatch.setattr(parser_pool, "MODULE", "stages.distill.text.not_there")
    monkeypatch.setattr(parser_pool, "_exchange", lambda process, captions: error)
    with ParserPool(chunker, "small", 1) as pool, pytest.raises(ParseError, match="too long"):
        pool.chunk(["bad"])


def test_processes_end_with_one_that_is_killed(parser_folder: Path, chunker: ParserChunker) -> None:
    """Oracle: a pipe that they inherit as their standard error closes when the last of them has
    ended."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(writing, 2)
        os.close(writing)
        with ParserPool(chunker, str(parser_folder), 1):
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(writing)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    with open(reading, "rb") as stream:
        assert b"Traceback" not in stream.read()


def test_processes_where_the_recipe_or_a_gpu_asks_for_them(
    chunker: ParserChunker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: by hand, of the setting and the device; a lexicon has none."""
    monkeypatch.setattr(parser_pool, "MODULE", "stages.distill.text.not_there")
    lexicon = LexiconChunker(["dog"], [])
    for device, num, expected in (
        ("cpu", None, 0),
        ("cuda", None, 2),
        ("cuda", 0, 0),
        ("cpu", 1, 1),
    ):
        monkeypatch.setattr(run, "pick_device", lambda device=device: torch.device(device))
        config = DistillConfig(num_parsers=num)
        with run._with_parsers(config, chunker) as found:
            got = len(found._processes) if isinstance(found, ParserPool) else 0
        assert got == expected
        with run._with_parsers(config, lexicon) as found:
            assert found is lexicon
