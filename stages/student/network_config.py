"""The configuration of a student network (`config.json`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from transformers import BertConfig, PreTrainedConfig

from stages.student.folder.auto_classes import NET_MAP, InstalledClass
from stages.student.folder.renamed import SETTINGS
from stages.student.vision.batch_norm import Policy

BERT_BASE_WIDTH = 768


class StudentNetConfig(InstalledClass, PreTrainedConfig):
    """What `config.json` in a student folder holds: the two networks, picture sizes, heads.

    `label_names` are the teacher's, in the order of the object head's logits. `neck`, the heads'
    kinds, `visual_mask_embedding`, `phrase_pooling`, `frozen_stages`, `batch_norm`, `cell_*` and
    `itc_*` are as in StudentConfig. `objectives`: what pretraining trained, which says which heads
    can be used; None where that is not known.
    """

    model_type = "boxless-student"

    def __init__(
        self,
        resnet: dict[str, Any] | None = None,
        bert: dict[str, Any] | None = None,
        shorter_px: int = 96,
        longer_px: int = 160,
        max_tokens: int = 32,
        label_names: list[str] | None = None,
        feature_size: int = 128,
        pra_temperature: float = 0.1,
        phrase_pooling: str = "mean",
        visual_mask_embedding: str = "learned",
        neck: dict[str, Any] | None = None,
        mlm_head: str = "bert",
        itm_head: str = "pooled",
        frozen_stages: int = 0,
        batch_norm: Policy = "local",
        cell_pooling: int = 2,
        cell_stages: Sequence[int] = (-1,),
        pra_level: str = "fusion",
        itc_size: int = 0,
        itc_pooling: str = "attention",
        itc_text_layers: Sequence[int] = (-1,),
        itc_dropout: float = 0.0,
        pra_size: int = 0,
        itc_temperature: float = 0.07,
        itc_bank_size: int = 0,
        itc_bank_temperature: float = 0.08,
        objectives: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.resnet = resnet or {}
        self.bert = bert or {}
        self.shorter_px = shorter_px
        self.longer_px = longer_px
        self.max_tokens = max_tokens
        self.label_names = label_names or []
        self.feature_size = feature_size
        self.pra_temperature, self.phrase_pooling = pra_temperature, phrase_pooling
        self.visual_mask_embedding = visual_mask_embedding
        self.neck = neck or {"kind": "plain"}
        self.mlm_head, self.itm_head = mlm_head, itm_head
        self.frozen_stages, self.batch_norm = frozen_stages, batch_norm
        self.cell_pooling, self.cell_stages = cell_pooling, list(cell_stages)
        self.pra_level = pra_level
        self.itc_size, self.itc_temperature = itc_size, itc_temperature
        self.itc_pooling, self.itc_text_layers = itc_pooling, list(itc_text_layers)
        self.itc_dropout, self.pra_size = itc_dropout, pra_size
        self.itc_bank_size, self.itc_bank_temperature = itc_bank_size, itc_bank_temperature
        self.objectives = None if objectives is None else list(objectives)
        # BERT's 0.02 suits its width of 768. A narrower network needs wider weights for the same
        # activations, or its attention starts out flat and learns late.
        width = self.bert.get("hidden_size", BERT_BASE_WIDTH)
        self.initializer_range = 0.02 * math.sqrt(BERT_BASE_WIDTH / width)
        kwargs["auto_map"] = NET_MAP
        old = {name: kwargs.pop(name) for name in SETTINGS if name in kwargs}
        for name, value in old.items():
            setattr(self, SETTINGS[name], value)
        super().__init__(**kwargs)

    # Under the names by which other tools (DeepSpeed's "auto", peft) ask a model of transformers.

    @property
    def hidden_size(self) -> int:
        """The Transformer's width."""
        return BertConfig(**self.bert).hidden_size

    @property
    def num_hidden_layers(self) -> int:
        """The Transformer's layers."""
        return BertConfig(**self.bert).num_hidden_layers

    @property
    def num_attention_heads(self) -> int:
        """The attention heads of each layer."""
        return BertConfig(**self.bert).num_attention_heads

    @property
    def vocab_size(self) -> int:
        """The word pieces."""
        return BertConfig(**self.bert).vocab_size

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        self.bert["vocab_size"] = value
