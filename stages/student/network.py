"""The student network: a picture's cells and a text's word pieces through one Transformer.

Reached from `stages.pretrain.run` (which trains it) and `stages.transfer` (which uses it).
Letters: N pictures, B picture-text pairs, T word pieces, C cells, D hidden size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    initialization,
)
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder

from stages.student.config import StudentConfig
from stages.student.grid import Grid, cells_inside, sine_positions
from stages.student.heads import AlignHead, ItmHead, MlmHead, ObjectHead

IMAGE_TOKEN_TYPE = 1
BERT_BASE_WIDTH = 768


class StudentNetConfig(PreTrainedConfig):
    """What `config.json` in a student folder holds: the two networks, picture sizes, heads.

    `label_names` are the teacher's, in the order of the object head's logits.
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
        **kwargs: Any,
    ) -> None:
        self.resnet = resnet or {}
        self.bert = bert or {}
        self.shorter_px = shorter_px
        self.longer_px = longer_px
        self.max_tokens = max_tokens
        self.label_names = label_names or []
        self.feature_size = feature_size
        self.pra_temperature = pra_temperature
        # BERT's 0.02 suits its width of 768. A narrower network needs wider weights for the same
        # activations, or its attention starts out flat and learns late.
        width = self.bert.get("hidden_size", BERT_BASE_WIDTH)
        self.initializer_range = 0.02 * math.sqrt(BERT_BASE_WIDTH / width)
        super().__init__(**kwargs)


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """What the fusion makes of B pairs: `text` [B, T, D] and `cells` [B, C, D]."""

    text: torch.Tensor
    cells: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Cells:
    """What the CNN makes of N pictures: `features` [N, C, D] before masking and positions,
    `inside` bool [N, C] (not padding), and the grid's `rows` and `columns`."""

    features: torch.Tensor
    inside: torch.Tensor
    rows: int
    columns: int


class Student(PreTrainedModel):
    """CNN grid, text embeddings, fusion, and a head for each objective."""

    config_class = StudentNetConfig
    main_input_name = "pixels"

    def __init__(self, config: StudentNetConfig) -> None:
        super().__init__(config)
        bert = BertConfig(**config.bert)
        bert._attn_implementation = "sdpa"
        hidden = bert.hidden_size
        self.grid = Grid(ResNetConfig(**config.resnet), hidden)
        self.cell_norm = nn.LayerNorm(hidden, eps=bert.layer_norm_eps)
        self.cell_dropout = nn.Dropout(bert.hidden_dropout_prob)
        self.mask_cell = nn.Parameter(torch.zeros(hidden))
        self.embeddings = BertEmbeddings(bert)
        self.fusion = BertEncoder(bert)
        self.mlm_head = MlmHead(hidden, bert.vocab_size)
        self.itm_head = ItmHead(hidden)
        self.object_head = ObjectHead(hidden, max(1, len(config.label_names)), config.feature_size)
        self.align_head = AlignHead(config.pra_temperature)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """BERT's rule (`config.initializer_range`) for the Transformer and the heads, He's for the
        CNN. Also fills the buffers that no checkpoint holds, as BERT's own models do."""
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            initialization.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, BertEmbeddings):
            initialization.copy_(module.position_ids, torch.arange(module.position_ids.shape[1]))
            initialization.zeros_(module.token_type_ids)

    @property
    def word_embeddings(self) -> torch.Tensor:
        """The word embedding matrix [V, D], which the MLM head shares."""
        return self.embeddings.word_embeddings.weight

    def see(self, pixels: torch.Tensor, sizes_px: torch.Tensor) -> Cells:
        """Run the CNN: pixels [N, 3, H, W] and each picture's height, width [N, 2] -> cells."""
        features = self.grid(pixels.to(self.dtype))
        rows, columns = features.shape[1:3]
        return Cells(
            features=features.flatten(1, 2),
            inside=cells_inside(sizes_px, rows, columns, self.grid.cell_px),
            rows=rows,
            columns=columns,
        )

    def fuse(
        self,
        cells: Cells,
        *,
        picture: torch.Tensor,
        tokens: torch.Tensor,
        masked_cells: torch.Tensor | None = None,
    ) -> Hidden:
        """Run the Transformer over pairs.

        `picture` [B] says which picture each pair looks at (the CNN runs once a picture however
        many texts look at it); `tokens` [B, T], padded with the tokenizer's pad id;
        `masked_cells` bool [B, C]: these cells are replaced by the mask vector.
        """
        features = cells.features[picture]
        if masked_cells is not None:
            features = torch.where(masked_cells[..., None], self.mask_cell, features)
        positions = sine_positions(cells.rows, cells.columns, features.shape[-1])
        image_type = self.embeddings.token_type_embeddings.weight[IMAGE_TOKEN_TYPE]
        seen = self.cell_norm(features + positions.to(features) + image_type)
        hidden = torch.cat([self.embeddings(tokens), self.cell_dropout(seen)], dim=1)
        attended = torch.cat([tokens != self.pad_id, cells.inside[picture]], dim=1)
        hidden = self.fusion(hidden, attention_mask=attended[:, None, None, :]).last_hidden_state
        return Hidden(text=hidden[:, : tokens.shape[1]], cells=hidden[:, tokens.shape[1] :])

    @property
    def pad_id(self) -> int:
        """The word piece that stands for nothing."""
        return self.embeddings.word_embeddings.padding_idx


def make_student(
    config: StudentConfig,
    *,
    vocab_size: int,
    pad_id: int,
    label_names: list[str],
    feature_size: int,
) -> Student:
    """A new student; starts from published weights where the recipe names them.

    Raises OSError with the name where pretrained weights cannot be reached.
    """
    resnet = (
        ResNetConfig.from_pretrained(config.pretrained_cnn)
        if config.pretrained_cnn
        else ResNetConfig(
            embedding_size=config.stem_width,
            hidden_sizes=list(config.widths),
            depths=list(config.depths),
            layer_type=config.block,
        )
    )
    bert = (
        BertConfig.from_pretrained(config.pretrained_text)
        if config.pretrained_text
        else BertConfig(
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_heads,
            intermediate_size=config.ffn_size,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            max_position_embeddings=config.max_tokens,
        )
    )
    bert.update({"num_hidden_layers": config.num_layers, "vocab_size": vocab_size})
    bert.update({"pad_token_id": pad_id})
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
        )
    )
    _load_pretrained(student, config)
    return student


def _load_pretrained(student: Student, config: StudentConfig) -> None:
    if config.pretrained_cnn:
        cnn = type(student.grid.resnet).from_pretrained(config.pretrained_cnn)
        student.grid.resnet.load_state_dict(cnn.state_dict())
    if config.pretrained_text:
        text = BertModel.from_pretrained(config.pretrained_text, add_pooling_layer=False)
        student.embeddings.load_state_dict(text.embeddings.state_dict())
        student.fusion.load_state_dict(
            {
                name: tensor
                for name, tensor in text.encoder.state_dict().items()
                if name in student.fusion.state_dict()
            }
        )
