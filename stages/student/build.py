"""Builds a new student from a recipe: random, or from published weights.

An existing one is read by `Student.from_pretrained`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from transformers import BertConfig

from stages.student.checkpoints.pretrained import cnn_config, load_bert, load_cnn, text_config
from stages.student.checkpoints.soho import load_soho
from stages.student.config import StudentConfig
from stages.student.network import Student
from stages.student.network_config import StudentNetConfig
from stages.student.text.token_types import IMAGE_TOKEN_TYPE


def make_student(
    config: StudentConfig,
    *,
    vocab_size: int,
    pad_id: int,
    label_names: list[str],
    feature_size: int,
) -> Student:
    """A new student; starts from published weights where the recipe names them.

    Raises ValueError where these cannot be reached or do not fit.
    """
    resnet = cnn_config(config)
    bert = _bert_config(config)
    bert.update({"num_hidden_layers": config.num_layers, "vocab_size": vocab_size})
    bert.update({"pad_token_id": pad_id, "type_vocab_size": config.num_token_types})
    student = Student(
        StudentNetConfig(
            resnet=resnet.to_diff_dict(),
            bert=bert.to_diff_dict(),
            shorter_px=config.shorter_px,
            longer_px=config.longer_px,
            max_tokens=config.max_tokens,
            label_names=label_names,
            feature_size=feature_size,
            pra_temperature=config.pra_temperature,
            phrase_pooling=config.phrase_pooling,
            visual_mask_embedding=config.visual_mask_embedding,
            neck=asdict(config.neck),
            mlm_head=config.mlm_head,
            itm_head=config.itm_head,
            frozen_stages=config.frozen_stages,
            batch_norm=config.batch_norm,
            cell_pooling=config.cell_pooling,
            cell_stages=list(config.cell_stages),
            pra_level=config.pra_level,
            itc_size=config.itc_size,
            itc_pooling=config.itc_pooling,
            itc_text_layers=list(config.itc_text_layers),
            itc_dropout=config.itc_dropout,
            pra_size=config.pra_size,
            itc_temperature=config.itc_temperature,
            itc_bank_size=config.itc_bank_size,
            itc_bank_temperature=config.itc_bank_temperature,
        )
    )
    _load_pretrained(student, config)
    return student


def _bert_config(config: StudentConfig) -> BertConfig:
    """Sizes of the Transformer: the recipe's, or those of the published weights that it names."""
    if config.pretrained_text:
        return text_config(config.pretrained_text, config)
    return BertConfig(
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_heads,
        intermediate_size=config.ffn_size,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        max_position_embeddings=config.max_tokens,
    )


def _load_pretrained(student: Student, config: StudentConfig) -> None:
    if config.soho_checkpoint:
        load_soho(student, Path(config.soho_checkpoint))
        return
    if config.pretrained_cnn:
        load_cnn(config.pretrained_cnn, student.grid.resnet)
    if config.pretrained_text:
        _take_bert(student, config.pretrained_text)
    types = student.embeddings.token_type_embeddings.weight
    with torch.no_grad():
        types[IMAGE_TOKEN_TYPE + 1 :] = types[0]


def _take_bert(student: Student, name: str) -> None:
    """BERT's embeddings and first layers. Words that BERT does not have (person tags) stay random;
    rows beyond the tokenizer's words are left out."""
    text = load_bert(name)
    theirs = text.embeddings.state_dict()
    with torch.no_grad():
        for part, own in student.embeddings.state_dict().items():
            num_rows = min(len(own), len(theirs[part]))
            own[:num_rows] = theirs[part][:num_rows]
    student.fusion.load_state_dict(
        {
            part: tensor
            for part, tensor in text.encoder.state_dict().items()
            if part in student.fusion.state_dict()
        }
    )
