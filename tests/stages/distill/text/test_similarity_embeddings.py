"""Similarities by vectors: spaCy's, a BERT's, a sentence encoder's; all models are made right here,
tiny and of random weights. Oracles: means and cosines worked out with numpy from the models' own
tables and outputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import spacy
import torch
from distill_fakes import FakeTeacher, make_sample, source_of, write_images
from transformers import BertConfig as BertNetConfig
from transformers import BertModel, PreTrainedTokenizerFast

from sharding.format.schema import object_dtype
from stages.distill.config import DistillConfig
from stages.distill.run import distill
from stages.distill.text.embedders import POOLING, make_embedder
from stages.distill.text.similarity import EmbeddingSimilarity, ObjectTexts, make_similarity
from stages.distill.text.similarity_config import (
    BertConfig,
    SentenceConfig,
    SimilarityConfig,
    SpacyConfig,
)
from stages.distill.text.words import bare
from stages.student.text.tokenizer import train_tokenizer

WORDS = "a red dog puppy blue circle square traffic light stop bus coach the cat".split()
LABELS = ["circle", "square", "traffic light,stop light", "bus,coach"]
ATTRIBUTES = ["red", "light blue,azure"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 16 channels and two layers, with its tokenizer, in safetensors."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = train_tokenizer([" ".join(WORDS)] * 3, vocab_size=80)
    torch.manual_seed(0)
    net = BertModel(
        BertNetConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            initializer_range=0.5,
        )
    )
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A blank English pipeline with vectors of four words."""
    folder = tmp_path_factory.mktemp("spacy")
    write_vectors(folder, {"red": (1, 0, 0), "dog": (0, 1, 0), "bus": (1, 1, 1)})
    return folder


def write_vectors(folder: Path, table: dict[str, Sequence[float]]) -> None:
    nlp = spacy.blank("en")
    nlp.vocab.reset_vectors(width=3)
    for word, vector in table.items():
        nlp.vocab.set_vector(word, np.array(vector, np.float32))
    nlp.to_disk(folder)


def objects_of(*pairs: tuple[int, int]) -> np.ndarray:
    objects = np.zeros(len(pairs), object_dtype(feature_size=1, num_top=1, attributes=True))
    for item, (label, attribute) in zip(objects, pairs):
        item["label"], item["attribute"] = label, attribute
    return objects


def test_spacy_is_the_mean_of_known_words(vectors: Path) -> None:
    """Oracle: by hand; a word without a vector counts for nothing, and alone gives zeros."""
    embedder = make_embedder(SpacyConfig(model=str(vectors)))
    assert embedder.embed("red dog").tolist() == [0.5, 0.5, 0]
    assert embedder.embed("red unknown dog").tolist() == [0.5, 0.5, 0]
    assert not embedder.embed("unknown").any() and embedder.embed("unknown").shape == (3,)


@torch.no_grad()
def test_bert_is_the_mean_over_pieces(bert: Path) -> None:
    """Oracle: rows of the embedding matrix; the network's own outputs without the first and the
    last, [CLS] and [SEP]. The two layers differ; nothing at all gives zeros."""
    net = BertModel.from_pretrained(bert).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(bert)
    ids = tokenizer("red dogs", return_tensors="pt")["input_ids"]
    table = net.embeddings.word_embeddings.weight[ids[0, 1:-1]].mean(dim=0).numpy()
    last = net(input_ids=ids).last_hidden_state[0, 1:-1].mean(dim=0).numpy()
    made = {
        layer: make_embedder(BertConfig(model=str(bert), layer=layer))  # type: ignore[arg-type]
        for layer in ("input", "last")
    }
    np.testing.assert_allclose(made["input"].embed("red dogs"), table, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(made["last"].embed("red dogs"), last, rtol=1e-4, atol=1e-5)
    assert not np.allclose(table, last, atol=0.1)
    assert not made["last"].embed("").any()
    assert made["input"].fingerprint != made["last"].fingerprint


@torch.no_grad()
def test_a_sentence_is_the_mean_over_all_pieces(bert: Path) -> None:
    """Oracle: sentence-transformers' mean pooling: the mean of all outputs, the special pieces'
    too."""
    net = BertModel.from_pretrained(bert).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(bert)
    read = tokenizer("a blue circle", return_tensors="pt")
    wanted = net(**read).last_hidden_state[0].mean(dim=0).numpy()
    got = make_embedder(SentenceConfig(model=str(bert))).embed("a blue circle")
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


class Counted:
    """An embedder of one-hot letters, which counts what it is asked for."""

    name, fingerprint = "counted", "counted/1"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed(self, text: str) -> np.ndarray:
        self.asked.append(text)
        return np.array([text.count(c) for c in "abcdefghijklmnopqrstuvwxyz"], np.float32)


def letters(a: str, b: str) -> float:
    """The cosine of two texts' letters."""
    one, other = (Counted().embed(text).astype(float) for text in (a, b))
    return round(float(one @ other / np.linalg.norm(one) / np.linalg.norm(other)), 4)


def test_attributes_and_synonyms() -> None:
    """Oracle: cosines by hand of all ways to write an object, of which the nearest counts; a phrase
    goes without its article; without attributes, or with a negative one, the label alone."""
    texts = ObjectTexts(LABELS, ATTRIBUTES, "attribute label")
    similarity = EmbeddingSimilarity(Counted(), texts)
    got = similarity.compare(["the azure coaches"], objects_of((3, 1), (0, 0), (2, -1)))
    ways = [f"{a} {b}" for a in ("light blue", "azure") for b in ("bus", "coach")]
    assert got == [
        [
            max(letters("azure coaches", way) for way in ways),
            letters("azure coaches", "red circle"),
            max(letters("azure coaches", way) for way in ("traffic light", "stop light")),
        ]
    ]
    label = EmbeddingSimilarity(Counted(), ObjectTexts(LABELS, ATTRIBUTES, "label"))
    assert label.compare(["a bus"], objects_of((3, 1))) == [[1.0]]
    plain = EmbeddingSimilarity(Counted(), ObjectTexts(LABELS, [], "attribute label"))
    assert plain.compare(["a bus"], objects_of((3, 1))) == [[1.0]]
    assert plain.compare([], objects_of((3, 1))) == []
    assert plain.compare(["bus"], objects_of()) == [[]]


def test_every_text_is_embedded_once() -> None:
    """Oracle: what the embedder was asked for, over two pictures that share words."""
    counted = Counted()
    similarity = EmbeddingSimilarity(counted, ObjectTexts(LABELS, ATTRIBUTES, "label"))
    for _ in range(2):
        similarity.compare(["a bus", "the bus", "circles"], objects_of((3, 0), (3, 1), (0, 0)))
    assert sorted(counted.asked) == ["bus", "circle", "circles", "coach"]


@pytest.mark.parametrize("kind", ["spacy", "bert", "sentence"])
def test_values_do_not_depend_on_what_was_asked_before(
    kind: str, bert: Path, vectors: Path
) -> None:
    """Oracle: bit-equal values of a fresh one and of one that was asked other things first; all
    between -1 and 1, and 1 for the same words (0 where spaCy knows none of them)."""
    kinds: dict[str, SimilarityConfig] = {
        "spacy": SpacyConfig(model=str(vectors)),
        "bert": BertConfig(model=str(bert), layer="last"),
        "sentence": SentenceConfig(model=str(bert)),
    }
    config = DistillConfig(similarity=kinds[kind])
    fresh, used = (make_similarity(config, LABELS, ATTRIBUTES) for _ in range(2))
    used.compare(["stop lights", "the cat", "a red dog"], objects_of((0, 1), (1, 1)))
    objects = objects_of((3, 0), (2, -1), (0, -1))
    got = fresh.compare(["a red dog", "circle"], objects)
    assert got == used.compare(["a red dog", "circle"], objects)
    assert all(-1 <= value <= 1 for row in got for value in row)
    assert got[1][2] == (0.0 if kind == "spacy" else 1.0)


def test_the_fingerprint_is_of_the_weights_and_not_of_the_place(bert: Path, tmp_path: Path) -> None:
    """Oracle: a copy elsewhere has the same; one weight more, or another tokenizer, another."""
    copy = Path(shutil.copytree(bert, tmp_path / "copy"))
    first = make_embedder(SentenceConfig(model=str(bert))).fingerprint
    assert make_embedder(SentenceConfig(model=str(copy))).fingerprint == first
    train_tokenizer(["dog dog cat cat"], vocab_size=80).save_pretrained(copy)
    other_words = make_embedder(SentenceConfig(model=str(copy))).fingerprint
    net = BertModel.from_pretrained(copy)
    net.encoder.layer[1].output.dense.bias.data[3] += 1e-3
    net.save_pretrained(copy)
    other_weights = make_embedder(SentenceConfig(model=str(copy))).fingerprint
    assert len({first, other_words, other_weights}) == 3


def test_models_that_cannot_be_had_are_named(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: ValueError with the recipe's key, the name and what to do: nothing by that name, a
    pickle instead of safetensors, other pooling, no vectors."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for config in (BertConfig(model="no/such-model"), SentenceConfig(model=str(tmp_path))):
        with pytest.raises(ValueError, match=f"similarity.model is {config.model}, which tr.*hub"):
            make_embedder(config)
    pickled = Path(shutil.copytree(bert, tmp_path / "pickled"))
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled, which transformers cannot load"):
        make_embedder(BertConfig(model=str(pickled)))
    other = Path(shutil.copytree(bert, tmp_path / "cls"))
    (other / POOLING).parent.mkdir()
    (other / POOLING).write_text(
        json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    )
    with pytest.raises(ValueError, match="says pooling_mode_cls_token; expected pooling_mode_mean"):
        make_embedder(SentenceConfig(model=str(other)))
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(ValueError, match="without word vectors.*en_core_web_md"):
        make_embedder(SpacyConfig(model=str(tmp_path / "blank")))
    with pytest.raises(ValueError, match="distill.similarity.model is nothing_here, which spaCy"):
        make_embedder(SpacyConfig(model="nothing_here"))
    with pytest.raises(ValueError, match="model is empty"):
        SpacyConfig(model="")


def test_shards_are_made_anew_when_the_model_changed(tmp_path: Path) -> None:
    """Oracle: the shards' own fingerprints and values: the same model elsewhere changes nothing,
    other vectors do. The catalog names the measure."""
    random = np.random.default_rng(0)
    samples = [make_sample(f"p{i}", ["a red circle and a square"], random) for i in range(6)]
    write_images(tmp_path / "images", {"train-000000.tar": samples})
    tar, shards = tmp_path / "objects" / "train-000000.tar", []
    for place, red in (("one", (1, 0, 0)), ("two", (1, 0, 0)), ("three", (0, 1, 0))):
        write_vectors(tmp_path / place, {"red": red, "circle": (0, 1, 0), "square": (0, 0, 1)})
        config = DistillConfig(
            phrases="lexicon", num_threads=1, similarity=SpacyConfig(model=str(tmp_path / place))
        )
        catalog = distill(
            config,
            images=tmp_path / "images",
            object_source=source_of(FakeTeacher()),
            out=tmp_path / "objects",
            show=False,
        )
        assert catalog.metadata["similarity"] == "spacy en_pipeline"
        shards.append((tar.stat().st_mtime_ns, tar.read_bytes()))
    assert shards[0] == shards[1]
    assert shards[1][0] != shards[2][0] and shards[1][1] != shards[2][1]


@pytest.mark.parametrize(
    "phrase, wanted",
    [
        ("the two red dogs", "red dogs"),
        ("a dog", "dog"),
        ("3 of seven", "seven"),
        ("man on the left", "man on the left"),
        ("his empty cup", "empty cup"),
        ("the", "the"),
        ("", ""),
    ],
)
def test_a_phrase_without_its_article(phrase: str, wanted: str) -> None:
    assert bare(phrase) == wanted
