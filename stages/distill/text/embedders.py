"""Text embedding models that a recipe may name for `distill.similarity`.

Models are read from a folder or from where transformers and spaCy keep what they downloaded;
nothing is read by pickle.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import cached_file

from boxless.errors import BoxlessError
from stages.detector.device import pick_device
from stages.distill.text.similarity_config import (
    BertConfig,
    LexicalConfig,
    SentenceConfig,
    SimilarityConfig,
    SpacyConfig,
)
from stages.distill.text.spacy_pipeline import load_pipeline

POOLING = "1_Pooling/config.json"
"""Where sentence-transformers says how a model's token vectors become one."""


class Embedder(Protocol):
    """Makes a vector of a text."""

    name: str
    fingerprint: str
    """All that shapes its vectors: the model's weights, not where they were found."""

    def embed(self, text: str) -> np.ndarray:
        """float32 [D]; zeros where the model knows nothing of the text."""


def make_embedder(config: SimilarityConfig) -> Embedder:
    """The embedder of a kind. Raises ValueError where its model cannot be loaded, or has no
    vectors."""
    assert not isinstance(config, LexicalConfig)
    if isinstance(config, SpacyConfig):
        return SpacyEmbedder(config)
    return BertEmbedder(config) if isinstance(config, BertConfig) else SentenceEmbedder(config)


class SpacyEmbedder:
    """The mean vector of the words that have one; of the pipeline only its tokenizer runs."""

    def __init__(self, config: SpacyConfig) -> None:
        self._nlp, digest = load_pipeline(config.model, said="distill.similarity.model")
        if not self._nlp.vocab.vectors_length:
            raise BoxlessError(
                f"distill.similarity.model is {config.model}, a spaCy pipeline without word "
                "vectors; expected one that has them, as en_core_web_md or en_core_web_lg."
            )
        self.name = f"spacy {self._nlp.meta['lang']}_{self._nlp.meta['name']}"
        self.fingerprint = f"spacy {digest}"

    def embed(self, text: str) -> np.ndarray:
        """As Embedder.embed."""
        with self._nlp.memory_zone():  # else the vocabulary keeps every word it ever saw
            words = [token for token in self._nlp.make_doc(text) if token.has_vector]
            if not words:
                return np.zeros(self._nlp.vocab.vectors_length, np.float32)
            return np.stack([np.asarray(word.vector) for word in words]).mean(axis=0)


class BertEmbedder:
    """The mean over a text's word pieces, [CLS] and [SEP] left out, of their input embeddings or of
    the last layer's outputs."""

    def __init__(self, config: BertConfig) -> None:
        self._layer = config.layer
        self._tokenizer, self._net, digest = _load_transformer(config.model)
        self.name = f"bert {config.model}, {config.layer}"
        self.fingerprint = f"bert {config.layer} {digest}"

    @torch.inference_mode()
    def embed(self, text: str) -> np.ndarray:
        """As Embedder.embed."""
        read = self._tokenizer(
            text, truncation=True, return_special_tokens_mask=True, return_tensors="pt"
        ).to(self._net.device)
        is_piece = read.pop("special_tokens_mask")[0] == 0
        if self._layer == "input":
            vectors = self._net.get_input_embeddings()(read["input_ids"])
        else:
            vectors = self._net(**read).last_hidden_state
        return _mean(vectors[0][is_piece])


class SentenceEmbedder:
    """The mean over all pieces of the last layer, as sentence-transformers' mean pooling."""

    def __init__(self, config: SentenceConfig) -> None:
        self._tokenizer, self._net, digest = _load_transformer(config.model)
        _check_mean_pooling(config.model)
        self.name = f"sentence {config.model}"
        self.fingerprint = f"sentence {digest}"

    @torch.inference_mode()
    def embed(self, text: str) -> np.ndarray:
        """As Embedder.embed."""
        read = self._tokenizer(text, truncation=True, return_tensors="pt").to(self._net.device)
        return _mean(self._net(**read).last_hidden_state[0])


def _mean(vectors: torch.Tensor) -> np.ndarray:
    """[T, D] -> [D]; zeros of nothing."""
    return (vectors.sum(dim=0) / max(1, len(vectors))).cpu().numpy()


def _load_transformer(model: str) -> tuple[Any, Any, str]:
    """Tokenizer, network in float32 and evaluation mode, and a digest of both.

    ValueError where there is none by that name, or not in safetensors.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, use_fast=True)
        net = AutoModel.from_pretrained(model, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BoxlessError(
            f"distill.similarity.model is {model}, which transformers cannot load ({reason}); "
            "expected the folder of a text encoder with its tokenizer and model.safetensors, or "
            "the name of one that the Hugging Face hub, or its cache on this machine, has."
        ) from error
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    net = net.to(pick_device()).eval()
    return tokenizer, net, f"{type(net).__name__} {digest.hexdigest()}"


def _check_mean_pooling(model: str) -> None:
    """ValueError where the model says that its vectors are pooled in another way."""
    found = cached_file(
        model,
        POOLING,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    said = json.loads(Path(found).read_text("utf-8")) if found else {}
    if not said.get("pooling_mode_mean_tokens", True):
        modes = [key for key, value in said.items() if value is True]
        raise BoxlessError(
            f"distill.similarity.model is {model}, whose {POOLING} says {', '.join(modes)}; "
            "expected pooling_mode_mean_tokens, as all-MiniLM-L6-v2 has."
        )
