"""The recipe's `student` part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from boxless.errors import BoxlessError
from stages.student.vision.neck_config import NeckConfig, PlainNeckConfig

ITC_TEMPERATURES = (0.001, 0.5)
"""Bounds of the contrastive head's temperature, ALBEF's."""
CnnName = Literal["resnet-18", "resnet-34", "resnet-50", "resnet-101", "resnet-152"]


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The student's parts. Defaults are the toy's: a network that learns in minutes on two cores.

    The papers' sizes are ResNet-101 and BERT-base (KD-VLP) or ResNet-18 and 3 layers (SOHO's
    released code); set `pretrained_cnn` and `pretrained_text` to start from published weights.
    """

    pretrained_cnn: str | None = None
    """A ResNet's weights, which then give the CNN's sizes: a name on the Hugging Face hub, a folder
    that transformers wrote, or a .pth in torchvision's layout."""
    cnn: CnnName | None = None
    """The CNN's sizes by name; null takes the four fields that follow."""
    stem_width: int = 32
    """Channels of the 7x7 stem (stride 4 with its pooling)."""
    widths: tuple[int, ...] = (32, 64)
    """Output channels of each ResNet stage; every stage after the first halves the map."""
    depths: tuple[int, ...] = (1, 2)
    """Blocks of each ResNet stage."""
    block: str = "basic"
    """`basic` (ResNet-18, 34) or `bottleneck` (ResNet-50 and deeper)."""
    frozen_stages: int = 0
    """First ResNet stages, and with them the stem, that stay as they are, statistics too (SOHO: 1);
    0 lets everything learn."""
    batch_norm: Literal["local", "sync", "frozen"] = "local"
    """The CNN's BatchNorm: `local`, over a rank's micro-batch (SOHO); `sync`, over all ranks (GPUs
    only); `frozen`: statistics and weights stay those it starts with (detectron2's habit)."""
    neck: NeckConfig = field(default_factory=PlainNeckConfig)
    """How cells are made of the CNN's output: kind `plain`, or `soho` with a visual dictionary."""
    cell_pooling: Literal[1, 2] = 2
    """Side of the max pooling between CNN and cells: 2 (both papers), or 1 for none (ours), a finer
    grid for small pictures: cells of 32 pixels with a full ResNet instead of 64."""
    cell_stages: tuple[int, ...] = (-1,)
    """Stages of the CNN whose outputs are a cell's channels, side by side (ours): -1 the last one,
    as in both papers; [-2, -1] also the one before, averaged to the last one's places, which knows
    more of colour and texture. The last entry is -1."""
    pretrained_text: str | None = None
    """A BERT by name or folder, cased or not, of any size; it then gives tokenizer, vocabulary and
    Transformer sizes. RoBERTa and others are refused."""
    hidden_size: int = 128
    """Width D of the fusion."""
    num_layers: int = 3
    """Transformer layers of the fusion; with `pretrained_text`, its first so many layers."""
    num_heads: int = 4
    """Attention heads a layer."""
    ffn_size: int = 256
    """Width of the feed-forward layers."""
    dropout: float = 0.0
    """Dropout on hidden states and attention (BERT: 0.1)."""
    vocab_size: int = 1000
    """Most WordPiece entries when the tokenizer is trained on the corpus."""
    max_tokens: int = 32
    """Longest text, in word pieces with [CLS] and [SEP]; longer captions are cut."""
    shorter_px: int = 96
    """Pictures are resized so that the shorter side has this many pixels ..."""
    longer_px: int = 160
    """... unless the longer one would exceed this."""
    num_token_types: Literal[2, 4] = 2
    """Token types that the Transformer distinguishes: 2, text and picture; 4 (KD-VLP, for VCR):
    question, picture, answer, rationale; the last two start as a copy of the first."""
    num_person_tags: int = 0
    """Words [PERSON_0], [PERSON_1] ... added to the vocabulary (KD-VLP: 81, for VCR)."""
    mlm_head: Literal["bert", "tied"] = "bert"
    """`bert`: BERT's transform, word embeddings, bias; `tied`: word embeddings alone (SOHO)."""
    itm_head: Literal["pooled", "linear"] = "pooled"
    """`pooled`: BERT's pooler and two logits; `linear`: two logits of [CLS], no bias (SOHO)."""
    soho_checkpoint: str | None = None
    """A checkpoint of the released SOHO code (`soho_res18_*.pth`) to start from."""
    visual_mask_embedding: Literal["learned", "zero"] = "learned"
    """What replaces masked cells: a vector that is `learned` (SOHO), or `zero` as UNITER has
    it, of whose code KD-VLP's is."""
    pra_temperature: float = 0.1
    """Divides cosine similarities of phrase and region (ours: the paper's value is not known)."""
    itc_size: int = 0
    """Size of the vectors in which the contrastive head compares pictures with texts (ours, after
    ALBEF, which has 256); 0 for no such head. `pretrain.itc` needs it."""
    itc_pooling: Literal["attention", "mean"] = "attention"
    """How the contrastive head makes one vector of a picture's cells: by `attention`, one learned
    query a head; or their `mean`, which `pretrain.itc.start` "cca" needs."""
    itc_text_layers: tuple[int, ...] = (-1,)
    """Layers of the text whose means the contrastive head takes side by side (ours): -1 the last
    one's output, 0 the embeddings, which know each word for itself. The last entry is -1."""
    itc_dropout: float = 0.0
    """Dropout on what the contrastive head's last maps take (ours)."""
    itc_temperature: float = 0.07
    """Temperature with which the contrastive head starts; it is learned (ALBEF)."""
    itc_bank_size: int = 0
    """Training pairs whose vectors the student keeps, so that retrieval can take from a score how
    near a text is to pictures in general, and a picture to texts (ours; querybank normalisation,
    arXiv 2112.12777); 0 for none. `evaluate.query_bank` says whether it is used."""
    itc_bank_temperature: float = 0.08
    """Divides cosines with the bank's vectors: the lower, the more the nearest of them count."""
    pra_size: int = 0
    """Size of the vectors that phrases and regions are mapped to before they are compared (ours),
    so that alignment does not pull at what other objectives share; 0 for no maps (the papers)."""
    pra_level: Literal["fusion", "encoders"] = "fusion"
    """Where phrases meet cells: in the fusion's outputs (KD-VLP), or before it (ours), a text read
    alone by the Transformer and cells as the CNN gives them. That needs no pass of the fusion, and
    trains what the contrastive head compares."""
    phrase_pooling: Literal["mean", "last"] = "mean"
    """A phrase's vector: the mean over its word pieces, or its last piece, as the head of an
    English noun phrase comes last (ours: the paper's way is not known)."""

    def __post_init__(self) -> None:
        self._check_cnn()
        self._check_soho()
        self._check_text()
        self._check_contrastive()

    def _check_cnn(self) -> None:
        if len(self.widths) != len(self.depths) or not self.widths:
            raise BoxlessError(
                f"student.widths and student.depths: got {len(self.widths)} and "
                f"{len(self.depths)} entries, expected the same number, at least one"
            )
        num_stages = 4 if self.cnn else len(self.depths)
        if not 0 <= self.frozen_stages <= num_stages:
            raise BoxlessError(
                f"student.frozen_stages: got {self.frozen_stages}, expected 0 to the number of "
                f"stages, {num_stages}"
            )
        earlier = range(-num_stages, 0)
        if (
            self.cell_stages[-1:] != (-1,)
            or len(set(self.cell_stages)) != len(self.cell_stages)
            or not set(earlier).issuperset(self.cell_stages)
        ):
            raise BoxlessError(
                f"student.cell_stages: got {list(self.cell_stages)}, expected different numbers from "
                f"{-num_stages} to -1, and -1 for the last stage at the end"
            )
        if self.block not in ("basic", "bottleneck"):
            raise BoxlessError(f"student.block: got {self.block!r}, expected basic or bottleneck")
        if not 0 < self.shorter_px <= self.longer_px:
            raise BoxlessError(
                f"student.shorter_px: got {self.shorter_px}, expected between 1 and longer_px "
                f"= {self.longer_px}"
            )

    def _check_soho(self) -> None:
        if self.soho_checkpoint and self.neck.kind != "soho":
            raise BoxlessError(
                f"student.soho_checkpoint: got {self.soho_checkpoint} with neck.kind "
                f"{self.neck.kind}, expected neck.kind soho, which that checkpoint is of"
            )
        if self.soho_checkpoint and self.cell_stages != (-1,):
            raise BoxlessError(
                f"student.cell_stages: got {list(self.cell_stages)} with student.soho_checkpoint, "
                "expected [-1], of which that checkpoint's projection is"
            )

    def _check_text(self) -> None:
        if self.num_person_tags < 0:
            raise BoxlessError(
                f"student.num_person_tags: got {self.num_person_tags}, expected 0 or more"
            )
        if self.hidden_size % (4 * self.num_heads) and not self.pretrained_text:
            raise BoxlessError(
                f"student.hidden_size: got {self.hidden_size}, expected a multiple of "
                f"4 x num_heads = {4 * self.num_heads}"
            )
        if self.max_tokens < 4:
            raise BoxlessError(f"student.max_tokens: got {self.max_tokens}, expected at least 4")

    def _check_contrastive(self) -> None:
        for name in ("itc_size", "itc_bank_size", "pra_size"):
            if getattr(self, name) < 0:
                raise BoxlessError(f"student.{name}: got {getattr(self, name)}, expected 0 or more")
        if self.itc_bank_size and not self.itc_size:
            raise BoxlessError(
                f"student.itc_bank_size: got {self.itc_bank_size} with student.itc_size 0, expected "
                "an itc_size above 0, as the bank is of the contrastive head's vectors"
            )
        if not self.itc_bank_temperature > 0:
            raise BoxlessError(
                f"student.itc_bank_temperature: got {self.itc_bank_temperature}, expected above 0"
            )
        if not 0 <= self.itc_dropout < 1:
            raise BoxlessError(
                f"student.itc_dropout: got {self.itc_dropout}, expected 0 to below 1"
            )
        known = {*range(self.num_layers), -1}
        if self.itc_text_layers[-1:] != (-1,) or not known.issuperset(self.itc_text_layers):
            raise BoxlessError(
                f"student.itc_text_layers: got {list(self.itc_text_layers)}, expected 0 to "
                f"{self.num_layers - 1}, and -1 for the last layer at the end"
            )
        low, high = ITC_TEMPERATURES
        if not low <= self.itc_temperature <= high:
            raise BoxlessError(
                f"student.itc_temperature: got {self.itc_temperature}, expected {low} to {high}"
            )
