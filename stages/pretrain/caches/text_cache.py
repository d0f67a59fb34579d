"""A cache of a frozen text encoder's outputs over epochs (ours)."""

from __future__ import annotations

import torch
from torch import nn

from stages.pretrain.caches.disk_cache import DiskCache
from stages.pretrain.caches.tensor_cache import TensorCache
from stages.student.network import Student


class TextCache:
    """What `Student.encode_texts` gives for texts that were read before, without dropout.

    For embeddings and layers that do not learn. Encodings are kept in 16 bits, without padding, up
    to `limit_bytes` in this process; those of later texts are computed again. `stored`: a folder of
    them beside, from which encodings are read, and to which `store` adds new ones.
    """

    def __init__(self, limit_bytes: int, stored: DiskCache | None = None) -> None:
        self._cache = TensorCache(limit_bytes, stored)

    def store(self) -> None:
        """Write what was encoded since the last call to the folder, if there is one."""
        self._cache.store()

    @torch.no_grad()
    def encode(self, student: Student, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [B, T] -> [B, T, L x D] as by `encode_texts`, but for rounding."""
        real = tokens != student.pad_id
        names = [
            " ".join(map(str, row[own].tolist())) for row, own in zip(tokens.cpu(), real.cpu())
        ]
        known = [self._cache[name] if name in self._cache else None for name in names]
        new = [b for b, encoding in enumerate(known) if encoding is None]
        width = len(student.config.itc_text_layers) * student.fusion.config.hidden_size
        encoded = torch.zeros(*tokens.shape, width, device=tokens.device, dtype=student.dtype)
        if new:
            rows = torch.tensor(new, device=tokens.device)
            encoded[rows] = self._compute(student, tokens[rows]).to(encoded)
        for b, (name, encoding) in enumerate(zip(names, known)):
            if encoding is None:
                self._cache.add_new(name, encoded[b, real[b]])
            else:
                encoded[b, real[b]] = encoding.to(encoded)
        return encoded

    def _compute(self, student: Student, tokens: torch.Tensor) -> torch.Tensor:
        parts: tuple[nn.Module, ...] = (student.embeddings, student.fusion)
        was_training = [part.training for part in parts]
        for part in parts:
            part.eval()
        try:
            return student.encode_texts(tokens)
        finally:
            for part, mode in zip(parts, was_training):
                part.train(mode)
