"""Encodings by a frozen text encoder, kept in memory from one epoch to the next (ours)."""

from __future__ import annotations

import torch
from torch import nn

from stages.pretrain.caches.tensor_cache import TensorCache
from stages.student.network import Student


class TextCache:
    """What `Student.encode_texts` gives for texts that were read before, without dropout.

    For embeddings and layers that do not learn. Encodings are kept in 16 bits, without padding, up
    to `limit_bytes` in this process; those of later texts are computed anew.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._cache = TensorCache(limit_bytes)

    @torch.no_grad()
    def encode(self, student: Student, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [B, T] -> [B, T, L x D] as by `encode_texts`, but for rounding."""
        real = tokens != student.pad_id
        names = [tuple(row[own].tolist()) for row, own in zip(tokens.cpu(), real.cpu())]
        new = [b for b, name in enumerate(names) if name not in self._cache]
        encoded: torch.Tensor | None = None
        if new:
            rows = torch.tensor(new, device=tokens.device)
            computed = self._compute(student, tokens[rows])
            encoded = computed.new_zeros(*tokens.shape, computed.shape[-1])
            encoded[rows] = computed
        else:
            width = self._cache[names[0]].shape[-1]
            encoded = torch.zeros(*tokens.shape, width, device=tokens.device, dtype=student.dtype)
        for b, name in enumerate(names):
            if name in self._cache:
                encoded[b, : len(name)] = self._cache[name].to(encoded)
            else:
                self._cache.add(name, encoded[b, : len(name)])
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
