"""Contrastive learning with a momentum copy and a queue of earlier steps (MoCo, ALBEF).

ALBEF's queue and soft targets (arXiv 2107.07651, section 3.2; models/model_pretrain.py of
salesforce/ALBEF; a picture's own vectors in the queue count as its own, as in its
models/model_retrieval.py). Ours in pretraining here, and off by default. Settings: `pretrain.itc`.
Letters: N pictures, B texts, E size of the vectors, Q rows of the queue that are filled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from stages.pretrain.data.batch import Batch, Comparison
from stages.pretrain.objectives.config import ItcConfig
from stages.pretrain.weight_copy import WeightCopy
from stages.student.network import Student

KINDS = ("text", "picture")


class MomentumContrast(WeightCopy):
    """A momentum copy of what learns in `student`, and queues of its vectors, as buffers, which
    checkpoints hold.

    Each step copy += (1 - m) x (weight - copy). The vectors of a step's micro-batches enter the
    queues when it ends, in the order of their positions and on every rank, so a step sees the same
    queues on any number of ranks. Queues begin empty (ALBEF's begin with noise).
    """

    def __init__(self, student: Student, config: ItcConfig) -> None:
        super().__init__(student)
        self._config = config
        for kind in KINDS:
            size = student.config.itc_size
            self.register_buffer(f"{kind}_vectors", torch.zeros(config.queue_size, size))
            self.register_buffer(f"{kind}_ids", torch.zeros(config.queue_size, dtype=torch.long))
            self.register_buffer(f"{kind}_count", torch.zeros((), dtype=torch.long))
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.long))
        self._pending: dict[str, list[_Rows]] = {kind: [] for kind in KINDS}
        self._turn = 0

    def compare(
        self,
        student: Student,
        batch: Batch,
        *,
        of_cnn: dict[str, torch.Tensor],
        encoded: torch.Tensor | None,
        is_valid: bool,
    ) -> tuple[Comparison, Comparison]:
        """True texts with the copy's pictures, and pictures that have one with its texts: those of
        the batch first, then those of the queue.

        batch: with the student's own `vectors`. of_cnn: what a frozen CNN gave for it, by
        `encode_image`'s names, empty to run the copy's. encoded: what frozen layers gave for its
        texts, None to run the copy's. A batch that is not valid enters no queue.
        """
        assert batch.vectors is not None
        own_texts, own_pictures = batch.vectors
        with torch.no_grad():
            of_texts, of_pictures = self._vectors(student, batch, of_cnn, encoded)
        ids = picture_ids(batch.keys).to(batch.picture.device)
        is_true, text_ids = batch.is_true, ids[batch.picture]
        has_text = torch.isin(ids, text_ids[is_true])
        texts = _Rows(vectors=of_texts[is_true], ids=text_ids[is_true], turn=self._turn)
        pictures = _Rows(vectors=of_pictures, ids=ids, turn=self._turn)
        of_own = (
            self._comparison(
                student, own_texts[is_true], texts, self._with_queue("picture", pictures)
            ),
            self._comparison(
                student,
                own_pictures[has_text],
                pictures.where(has_text),
                self._with_queue("text", texts),
            ),
        )
        self._turn += 1
        if is_valid and self._config.queue_size:
            self._pending["text"].append(texts)
            self._pending["picture"].append(pictures)
        return of_own

    @torch.no_grad()
    def end_step(self) -> None:
        """Take in a step's weights and vectors. A collective where there is a queue."""
        self.follow(self._config.momentum)
        self.get_buffer("num_steps").add_(1)
        if self._config.queue_size:
            for kind in KINDS:
                self._enqueue(kind)
        self._turn = 0

    def _vectors(
        self,
        student: Student,
        batch: Batch,
        of_cnn: dict[str, torch.Tensor],
        encoded: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The copy's vectors of texts [B, E] and of pictures [N, E]. It runs as the student does,
        with dropout while that trains; what BatchNorm notes of the pass is thrown away."""
        tensors = {
            f"student.{name}": copy.to(self._learning[name].dtype)
            for name, copy in self.copies().items()
        }
        for path, module in student.named_modules():
            if isinstance(module, _BatchNorm) and module.training:
                for name, buffer in module.named_buffers(recurse=False):
                    tensors[f"student.{path}.{name}"] = buffer.clone()
        texts, pictures = torch.func.functional_call(
            _Encoders(student), tensors, (batch, of_cnn, encoded)
        )
        return texts.float(), pictures.float()

    def _comparison(
        self, student: Student, vectors: torch.Tensor, rows: _Rows, others: _Rows
    ) -> Comparison:
        """The student's `vectors`, of which the copy's are `rows`, with the copy's `others`."""
        share = self._soft_share()
        with torch.no_grad():
            soft = student.compare(rows.vectors, others.vectors).softmax(dim=1) if share else None
        return Comparison(
            logits=student.compare(vectors, others.vectors),
            own=rows.ids[:, None] == others.ids,
            soft=soft,
            soft_share=share,
        )

    def _soft_share(self) -> float:
        """The copy's share of the targets: it rises from 0 over the first steps."""
        config = self._config
        if not config.soft_targets_steps:
            return config.soft_targets
        num_steps = int(self.get_buffer("num_steps"))
        return config.soft_targets * min(1.0, num_steps / config.soft_targets_steps)

    def _with_queue(self, kind: str, rows: _Rows) -> _Rows:
        num_filled = min(int(self.get_buffer(f"{kind}_count")), self._config.queue_size)
        vectors = self.get_buffer(f"{kind}_vectors")[:num_filled].clone()
        ids = self.get_buffer(f"{kind}_ids")[:num_filled]
        return _Rows(
            vectors=torch.cat([rows.vectors, vectors]), ids=torch.cat([rows.ids, ids]), turn=0
        )

    def _enqueue(self, kind: str) -> None:
        """Write the step's rows of all ranks over the oldest ones."""
        vectors, ids = self.get_buffer(f"{kind}_vectors"), self.get_buffer(f"{kind}_ids")
        count = self.get_buffer(f"{kind}_count")
        pending, self._pending[kind] = self._pending[kind], []
        turns = [rows.ids.new_full((len(rows.ids),), rows.turn) for rows in pending]
        own = (
            torch.cat([vectors[:0], *(rows.vectors for rows in pending)]),
            torch.cat([ids[:0], *(rows.ids for rows in pending)]),
            torch.cat([ids[:0], *turns]),
        )
        of_ranks = [torch.cat(gather_rows(tensor)) for tensor in own]
        # Ranks take micro-batches in turn, so this is the order of positions.
        order = of_ranks[2].argsort(stable=True)[-len(ids) :]
        skipped = len(of_ranks[2]) - len(order)
        places = (int(count) + skipped + torch.arange(len(order), device=ids.device)) % len(ids)
        vectors[places], ids[places] = of_ranks[0][order], of_ranks[1][order]
        count += len(of_ranks[2])


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Vectors [R, E] of the copy, the picture that each is of [R], and the micro-batch's number
    among this rank's of the step."""

    vectors: torch.Tensor
    ids: torch.Tensor
    turn: int

    def where(self, chosen: torch.Tensor) -> _Rows:
        """Those that `chosen` bool [R] picks."""
        return _Rows(vectors=self.vectors[chosen], ids=self.ids[chosen], turn=self.turn)


class _Encoders(nn.Module):
    """A student's vectors of texts and pictures, as the one call that `functional_call` takes."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(
        self, batch: Batch, of_cnn: dict[str, torch.Tensor], encoded: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit vectors of texts [B, E] and of pictures [N, E]."""
        student = self.student
        cells = student.encode_image(
            batch.pixels, batch.sizes_px, fills_canvas=batch.fills_canvas, **of_cnn
        )
        return student.embed_texts(batch.texts, encoded), student.embed_pictures(cells)


def picture_ids(keys: Sequence[str]) -> torch.Tensor:
    """A number a picture, by its key: int64 [N]."""
    digests = [hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys]
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests])


def gather_rows(rows: torch.Tensor) -> list[torch.Tensor]:
    """Every rank's rows [R, ...], of which each may have another number. A collective."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return [rows]
    world_size = torch.distributed.get_world_size()
    own = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(own) for _ in range(world_size)]
    torch.distributed.all_gather(counts, own)
    most = max(1, max(int(count) for count in counts))
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in range(world_size)]
    torch.distributed.all_gather(gathered, padded)
    return [part[: int(count)] for part, count in zip(gathered, counts)]
