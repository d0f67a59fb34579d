"""The student with its objectives, as one module for DeepSpeed.

The forward pass goes from a batch to the loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from stages.pretrain.caches.cnn_cache import CnnCache
from stages.pretrain.caches.text_cache import TextCache
from stages.pretrain.config import PretrainConfig
from stages.pretrain.data.batch import Batch
from stages.pretrain.momentum_contrast import MomentumContrast
from stages.pretrain.objectives.itc import Itc
from stages.pretrain.objectives.itm import Itm
from stages.pretrain.objectives.mlm import Mlm
from stages.pretrain.objectives.mvm import Mvm
from stages.pretrain.objectives.objective import Objective, output_mask_of
from stages.pretrain.objectives.omvm import Omvm
from stages.pretrain.objectives.pra import Pra
from stages.pretrain.weight_ema import WeightEma
from stages.student.fusion.last_layer import OutputPlaces
from stages.student.network import Student
from stages.student.outputs import Cells, Hidden
from stages.training.monitoring.metrics import ObjectiveOutput


class PretrainModel(nn.Module):
    """`forward(batch)` -> (loss, {name: ObjectiveOutput}); loss = sum of weight x objective's loss.

    `begin_step` is to be called, on every rank, before the first forward pass of a step, and
    `end_step` after each optimizer step. `average`: of the student's weights, where one is kept;
    `cache`, `text_cache`: of what a frozen CNN and frozen text layers give; `momentum`: what itc
    compares with in training.
    """

    def __init__(
        self,
        student: Student,
        objectives: dict[str, tuple[float, Objective]],
        average: WeightEma | None = None,
        cache: CnnCache | None = None,
        text_cache: TextCache | None = None,
        momentum: MomentumContrast | None = None,
    ) -> None:
        super().__init__()
        self.student, self.average, self.momentum = student, average, momentum
        self.cache, self.text_cache = cache, text_cache
        self.objectives = objectives
        aligns_before = student.config.pra_level == "encoders"
        self._before_fusion = {"pra"} & objectives.keys() if aligns_before else set()
        self.fusing = [
            objective
            for name, (_, objective) in objectives.items()
            if name not in self._before_fusion
        ]
        self._contrasts = any(objective.contrasts for _, objective in objectives.values())
        # The words that MLM predicts give their matrix a dense gradient. Beside it that of the
        # words that are read need not be one of as many rows, nearly all of them zero. (On a GPU it
        # would wait for which pieces are padding.)
        self.sparse_words = "mlm" in objectives
        self._labels = [name for _, one in objectives.values() for name in one.labels]
        self._mean_labels: dict[str, torch.Tensor] = {}

    def forward(
        self, batch: Batch, is_valid: bool = True
    ) -> tuple[torch.Tensor, dict[str, ObjectiveOutput]]:
        """Encode every picture once, fuse every pair once, compute every objective's loss. A visual
        dictionary learns from valid batches alone.

        In training losses are sums over the mean number of labels that `begin_step` was given.
        """
        if self.training:
            batch.mean_labels = self._mean_labels
        words = self.student.embeddings.word_embeddings
        words.sparse = self.sparse_words and batch.tokens.device.type == "cpu"
        of_cnn = self.cache.outputs(self.student, batch) if self.cache else {}
        cells = self.student.encode_image(
            batch.pixels,
            batch.sizes_px,
            num_texts=self._num_texts(batch, is_valid),
            fills_canvas=batch.fills_canvas,
            **of_cnn,
        )
        encoded = self._encoded_texts(batch)
        if encoded is not None and self._contrasts:
            texts = self.student.embed_texts(batch.texts, encoded)
            pictures = self.student.embed_pictures(cells)
            batch.vectors = (texts, pictures)
            batch.contrast = self.student.compare(texts, pictures)
            if self.momentum and self.training:
                batch.comparisons = self.momentum.compare(
                    self.student,
                    batch,
                    of_cnn=of_cnn,
                    encoded=encoded if self.text_cache else None,
                    is_valid=is_valid,
                )
        for _, objective in self.objectives.values():
            objective.mask_cells(cells, batch)
        fused = self._fused(cells, batch)
        scores = {}
        for name, (_, objective) in self.objectives.items():
            outputs = fused
            if name in self._before_fusion:
                assert encoded is not None
                outputs = Hidden(
                    text=self.student.last_layer(encoded), cells=cells.features[batch.picture]
                )
            scores[name] = objective.score(self.student, cells, outputs, batch)
        weighted = [self.objectives[name][0] * s.loss.float() for name, s in scores.items()]
        return torch.stack(weighted).sum(), scores

    def _encoded_texts(self, batch: Batch) -> torch.Tensor | None:
        """The pairs' own captions, read alone [B, T, L x D]; None where no objective asks for
        them."""
        if not self._contrasts and not self._before_fusion:
            return None
        if self.text_cache:
            return self.text_cache.encode(self.student, batch.texts)
        return self.student.encode_texts(batch.texts)

    def _fused(self, cells: Cells, batch: Batch) -> Hidden:
        """The fusion's outputs of all pairs, zeros where no objective looks at any of a pair's;
        nothing where no objective looks at them at all."""
        if not any(objective.fuses for objective in self.fusing):
            return Hidden(text=cells.features[:0], cells=cells.features[:0])
        output_mask = self._output_mask(batch)
        pairs = None
        if isinstance(output_mask, torch.Tensor):
            is_used = output_mask.any(dim=1)
            if not is_used.all():
                pairs = is_used
                pairs[0] = True  # for a graph to every weight also where nothing is looked at
                output_mask = output_mask[pairs]
        fused = self.student.fuse(
            cells,
            picture=_rows(batch.picture, pairs),
            input_ids=_rows(batch.tokens, pairs),
            masked_cells=_rows(batch.masked_cells, pairs),
            output_mask=output_mask,
        )
        if pairs is None:
            return fused
        return Hidden(text=_scattered(fused.text, pairs), cells=_scattered(fused.cells, pairs))

    def _output_mask(self, batch: Batch) -> torch.Tensor | OutputPlaces | None:
        """The fusion's outputs that any objective looks at; None for all."""
        if batch.output_places is not None:
            return batch.output_places
        return output_mask_of(self.fusing, batch)

    def begin_step(self, batches: Sequence[Batch], num_micro_batches: int) -> None:
        """Learn how many labels the step has of each kind. A collective, of which nothing is waited
        for; `batches` are those of this rank that count, of `num_micro_batches` of all ranks."""
        device = self.student.device
        counts = [
            sum(float(objective.places(batch, name).shape[1]) for batch in batches)
            for _, objective in self.objectives.values()
            for name in objective.labels
        ]
        mean = torch.tensor(counts).to(device, non_blocking=True) / num_micro_batches
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(mean)
        self._mean_labels = dict(zip(self._labels, mean, strict=True))

    def end_step(self) -> None:
        """Let the visual dictionary learn from the step, the average of weights and the momentum
        copy. A collective where there is a dictionary or a queue."""
        if self.student.dictionary:
            self.student.dictionary.learn()
        if self.average:
            self.average.update()
        if self.momentum:
            self.momentum.end_step()

    def _num_texts(self, batch: Batch, is_valid: bool) -> torch.Tensor | None:
        """How many texts look at each picture [N]; zeros where the batch is not valid."""
        if not self.student.dictionary or not self.training:
            return None
        num_texts = batch.picture.new_zeros(len(batch.sizes_px))
        return num_texts.index_add_(0, batch.picture, torch.ones_like(batch.picture)) * is_valid


def _rows(tensor: torch.Tensor, chosen: torch.Tensor | None) -> torch.Tensor:
    """Those rows of [B, ...] that `chosen`, bool [B], picks; None for all."""
    return tensor if chosen is None else tensor[chosen]


def _scattered(rows: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The opposite of `_rows`, with zeros in the other rows: [B, ...]."""
    return rows.new_zeros(len(chosen), *rows.shape[1:]).index_put((chosen,), rows)


def make_objectives(config: PretrainConfig) -> dict[str, tuple[float, Objective]]:
    """The objectives with a weight, by name: (weight, objective).

    The order matters: ITM assigns mismatched captions before MLM and OMVM mask parts of them.
    """
    every: tuple[tuple[float, Objective], ...] = (
        (config.itc.weight, Itc(config.itc)),
        (config.itm.weight, Itm(config.itm)),
        (config.mlm.weight, Mlm(config.mlm)),
        (config.omvm.weight, Omvm(config.omvm)),
        (config.pra.weight, Pra(config.pra)),
        (config.mvm.weight, Mvm(config.mvm)),
    )
    return {objective.name: (weight, objective) for weight, objective in every if weight}
