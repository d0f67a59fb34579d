"""A pretraining step as the released SOHO code does it: the baseline for steps of Boxless.

Written again from what researchmm/soho at 95824a8 does, part by part, under its names of weights;
each waste can be left out to see what it costs. Collectives, metrics and the optimizer are no part
of it.
Letters: N pictures, S captions of each, B = N x S pairs, T word pieces, C = R x Q cells, M = B x
C, K codes, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer

from stages.pretrain.data.batch import Batch
from stages.student.checkpoints.soho import TIED, official_name
from stages.student.network import Student
from stages.student.vision.soho_neck import cells_inside_released, padding_aware_positions

DECAY, EPSILON, MEAN_EPSILON = 0.4, 1e-5, 1e-6


@dataclass(frozen=True, kw_only=True)
class Waste:
    """Which of the released code's waste to keep; all of it by default."""

    recompute: bool = True
    """ResNet blocks and BERT layers are run again in the backward pass (`with_cp`)."""
    copies: bool = True
    """Neck and dictionary run on a copy of the picture for each caption."""
    one_hot: bool = True
    """The dictionary counts and looks up by a dense [M, K] matrix of zeros and ones."""
    all_logits: bool = True
    """Logits of all V words at every position, cells too; cosines to all codes at every cell."""
    eager: bool = True
    """Attention as a chain of products, its [B, heads, T + C, T + C] weights in memory."""


class ReleasedSoho(nn.Module):
    """A batch to the sum of SOHO's three losses: MLM, MVM and ITM.

    Takes sizes and weights from `student`, which is built as SOHO's; shares none with it.
    """

    def __init__(self, student: Student, waste: Waste) -> None:
        super().__init__()
        self.waste = waste
        sizes = student.config.resnet
        bert = BertConfig(**student.config.bert)
        self.backbone = Backbone(
            sizes["embedding_size"], sizes["hidden_sizes"], sizes["depths"], waste.recompute
        )
        assert student.dictionary is not None
        self.neck = Neck(
            sizes["hidden_sizes"][-1],
            bert.hidden_size,
            len(student.dictionary.codes),
            waste.one_hot,
        )
        self.language = nn.ModuleDict({"bert": Language(bert, waste)})
        self.head = nn.ModuleDict({"match_class": nn.Linear(bert.hidden_size, 2, bias=False)})
        self.mask_l_fc = nn.Linear(bert.hidden_size, bert.vocab_size, bias=False)
        words = self.language["bert"].embeddings.word_embeddings
        self.mask_l_fc.weight = words.weight
        weights = {official_name(name): value for name, value in student.state_dict().items()}
        weights[TIED[0]] = weights[TIED[1]]
        weights["neck.mask_emb.weight"] = weights["neck.mask_emb.weight"][None]
        weights.pop(None)
        self.load_state_dict(weights)

    def forward(self, batch: Batch) -> torch.Tensor:
        """The loss; the same S captions a picture, anchors drawn as in `MvmConfig.rule`
        released."""
        num_captions = len(batch.picture) // len(batch.sizes_px)
        features = self.backbone(batch.pixels)
        if self.waste.copies:
            features = features[batch.picture]
        cells, inside, hidden_codes = self.neck(features, batch, num_captions)
        fused = self.language["bert"](batch.tokens, cells, inside)
        num_tokens = batch.tokens.shape[1]
        match = self.head["match_class"](fused[:, 0])
        return (
            self._language_loss(fused, batch.mlm_labels, num_tokens)
            + self._visual_loss(fused[:, num_tokens:], hidden_codes)
            + F.cross_entropy(match, batch.matched.long())
        )

    def _language_loss(
        self, fused: torch.Tensor, labels: torch.Tensor, num_tokens: int
    ) -> torch.Tensor:
        if not self.waste.all_logits:
            chosen = labels >= 0
            return _mean_loss(self.mask_l_fc(fused[:, :num_tokens][chosen]), labels[chosen])
        logits = self.mask_l_fc(fused)[:, :num_tokens].contiguous().flatten(0, 1)
        return _mean_loss(logits, labels.flatten())

    def _visual_loss(self, fused: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if not self.waste.all_logits:
            chosen = labels >= 0
            fused, labels = fused[chosen][None], labels[chosen][None]
        codes = F.normalize(self.neck.vq.embed, dim=-1)
        cosines = F.normalize(fused.flatten(0, 1), dim=-1) @ codes.T
        return _mean_loss(cosines, labels.flatten())


def _mean_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    losses = F.cross_entropy(logits, labels, reduction="none")
    return losses.sum() / ((labels >= 0).sum() + MEAN_EPSILON)


class Backbone(nn.Module):
    """ResNet of basic blocks, stem and first stage frozen: [N, 3, H, W] -> [N, C, H / 32, W /
    32]."""

    def __init__(self, stem: int, widths: list[int], depths: list[int], recompute: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        inputs = stem
        self.stages = []
        for number, (width, depth) in enumerate(zip(widths, depths)):
            stage = nn.ModuleList()
            for block in range(depth):
                stride = 2 if number and not block else 1
                stage.append(Block(inputs, width, stride, recompute))
                inputs = width
            self.add_module(f"layer{number + 1}", stage)
            self.stages.append(f"layer{number + 1}")
        for part in self._frozen():
            part.requires_grad_(False)

    def _frozen(self) -> list[nn.Module]:
        return [self.conv1, self.bn1, self.get_submodule("layer1")]

    def train(self, mode: bool = True) -> Backbone:
        """As everywhere, but frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in self._frozen():
            part.eval()
        return self

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The last stage's map."""
        x = F.max_pool2d(self.bn1(self.conv1(pixels)).relu_(), 3, 2, 1)
        for name in self.stages:
            for block in self.get_submodule(name):
                x = block(x)
        return x


class Block(nn.Module):
    """ResNet's basic block, run again in the backward pass where `recompute`."""

    def __init__(self, inputs: int, width: int, stride: int, recompute: bool) -> None:
        super().__init__()
        self.recompute = recompute
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride > 1 or inputs != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, inputs, H, W] -> [N, width, H / stride, W / stride]."""
        return _run(self._both_ways, x, recompute=self.recompute and x.requires_grad).relu_()

    def _both_ways(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn1(self.conv1(x)).relu_()
        y = self.bn2(self.conv2(y))
        y += self.downsample(x) if self.downsample is not None else x
        return y


class ConvNorm(nn.Module):
    """A 1x1 convolution without bias and its BatchNorm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, inputs, R, Q] -> [N, outputs, R, Q]."""
        return self.bn(self.conv(x))


class Neck(nn.Module):
    """Pooling, projection, dictionary, gate, masking, positions: a map to visual tokens."""

    def __init__(self, inputs: int, width: int, num_codes: int, one_hot: bool) -> None:
        super().__init__()
        self.conv = ConvNorm(inputs, width)
        self.ln = nn.LayerNorm(width)
        self.mask_emb = nn.Embedding(1, width)
        self.vq = MovingAverageCodes(num_codes, width, one_hot)
        self.pos_line = nn.Linear(width, width)
        self.gate_fc = ConvNorm(2 * width, 2)

    def forward(
        self, features: torch.Tensor, batch: Batch, num_captions: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """features [N or B, ...] -> tokens [B, C, D], inside [B, C], masked codes [B, C] or
        -100."""
        x = self.conv(F.max_pool2d(features, 2, stride=2))
        rows, columns = x.shape[2:]
        flat = x.permute(0, 2, 3, 1).contiguous().flatten(0, 2)
        value, index = self.vq(flat, times=len(batch.picture) // len(x))
        code = self.pos_line(value).view(len(x), rows * columns, -1)
        code = code.transpose(1, 2).reshape(x.shape)
        gates = self.gate_fc(torch.cat([code, x], dim=1)).softmax(dim=1)
        mixed = code * gates[:, :1] + x * gates[:, 1:]
        index = index.view(len(x), -1)
        if len(x) < len(batch.picture):
            mixed, index = mixed[batch.picture], index[batch.picture]
        inside = cells_inside_released(batch.sizes_px, rows, columns, batch.pixels.shape[2])
        inside = inside[batch.picture]
        anchor = batch.anchors.clamp(min=0)
        hidden = inside & (index == index.gather(1, anchor)) & inside.gather(1, anchor)
        hidden = hidden & (batch.anchors >= 0)
        on = hidden.view(-1, 1, rows, columns).float()
        mixed = mixed * (1 - on) + self.mask_emb.weight.view(1, -1, 1, 1) * on
        places = padding_aware_positions(inside.view(-1, rows, columns), mixed.shape[1])
        tokens = self.ln(mixed.flatten(2).transpose(1, 2) + places)
        return tokens, inside, torch.where(hidden, index, -100)


class MovingAverageCodes(nn.Module):
    """Each cell's nearest code, the codes moved in the same forward pass."""

    def __init__(self, num_codes: int, width: int, one_hot: bool) -> None:
        super().__init__()
        self.one_hot = one_hot
        self.register_buffer("embed", torch.zeros(num_codes, width))
        self.register_buffer("embed_avg", torch.zeros(num_codes, width))
        self.register_buffer("cluster_size", torch.zeros(num_codes))
        self.register_buffer("cluster_sum", torch.zeros(num_codes))

    def forward(self, cells: torch.Tensor, times: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cells [M, D], each to be counted `times` -> values [M, D], index [M]."""
        with torch.no_grad():
            distances = (
                cells.square().sum(dim=1, keepdim=True)
                + self.embed.square().sum(dim=1)
                - 2 * cells @ self.embed.T
            )
            index = distances.argmin(dim=1)
            value = (
                self._by_one_hot(cells, index, times)
                if self.one_hot
                else (self._by_index(cells, index, times))
            )
        return cells + (value - cells).detach(), index

    def _by_one_hot(self, cells: torch.Tensor, index: torch.Tensor, times: int) -> torch.Tensor:
        taken = torch.zeros(len(cells), len(self.embed)).scatter_(1, index[:, None], 1)
        if self.training:
            self._move(times * taken.sum(dim=0), times * (taken.T @ cells))
        return taken @ self.embed

    def _by_index(self, cells: torch.Tensor, index: torch.Tensor, times: int) -> torch.Tensor:
        if self.training:
            counts = torch.bincount(index, minlength=len(self.embed)).float()
            sums = torch.zeros_like(self.embed).index_add_(0, index, cells)
            self._move(times * counts, times * sums)
        return self.embed[index]

    def _move(self, counts: torch.Tensor, sums: torch.Tensor) -> None:
        self.cluster_sum += counts
        self.cluster_size.mul_(DECAY).add_(counts, alpha=1 - DECAY)
        self.embed_avg.mul_(DECAY).add_(sums, alpha=1 - DECAY)
        total = self.cluster_size.sum()
        size = (self.cluster_size + EPSILON) / (total + len(counts) * EPSILON) * total
        self.embed.copy_(self.embed_avg / size[:, None])


class Language(nn.Module):
    """BERT's embeddings of the text, and its layers over text and visual tokens."""

    def __init__(self, bert: BertConfig, waste: Waste) -> None:
        super().__init__()
        self.recompute = waste.recompute
        bert._attn_implementation = "eager" if waste.eager else "sdpa"
        self.embeddings = BertEmbeddings(bert)
        layers = nn.ModuleList(BertLayer(bert) for _ in range(bert.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layer": layers})

    def forward(
        self, tokens: torch.Tensor, cells: torch.Tensor, inside: torch.Tensor
    ) -> torch.Tensor:
        """tokens [B, T], cells [B, C, D], inside bool [B, C] -> [B, T + C, D]."""
        hidden = torch.cat([self.embeddings(tokens), cells], dim=1)
        attended = torch.cat([tokens != 0, inside], dim=1)
        mask = torch.where(attended, 0.0, -10_000.0)[:, None, None, :]
        for layer in self.encoder["layer"]:
            hidden = _run(lambda x, layer=layer: layer(x, mask), hidden, recompute=self.recompute)
        return hidden


def _run(function: Callable[..., Any], x: torch.Tensor, *, recompute: bool) -> torch.Tensor:
    """function(x), or the same with all of it made again in the backward pass."""
    return checkpoint(function, x, use_reentrant=True) if recompute else function(x)
