"""Querybank normalisation of retrieval scores (arXiv 2112.12777, inverted softmax).

Some texts are near to nearly every picture, and some pictures to nearly every text (hubs): they
come first where they do not belong. How near a text is to a bank of other pictures tells which.
Letters: B texts, N pictures, K pairs in the bank, E size of the vectors.
"""

from __future__ import annotations

import math

import torch
from torch import nn

ROWS_AT_ONCE = 1024


class QueryBank(nn.Module):
    """Unit vectors of `num_pairs` training pairs, with which hubs are found; a part of the student.

    It starts empty, rows of zeros, which stand for nothing. `temperature` divides cosines.
    """

    def __init__(self, num_pairs: int, size: int, temperature: float) -> None:
        super().__init__()
        self.num_pairs, self.temperature = num_pairs, temperature
        self.register_buffer("pictures", torch.zeros(num_pairs, size))
        self.register_buffer("texts", torch.zeros(num_pairs, size))

    @torch.no_grad()
    def fill(self, pictures: torch.Tensor, texts: torch.Tensor) -> None:
        """Keep these vectors [K, E] of pairs, in place of what there is; a row of zeros is none.

        Raises RuntimeError for another K or E than the bank has.
        """
        self.get_buffer("pictures").copy_(pictures)
        self.get_buffer("texts").copy_(texts)

    @property
    def num_filled(self) -> int:
        """Rows that hold a pair."""
        return int(self.get_buffer("texts").any(dim=1).sum())

    def clear(self) -> None:
        """Be empty again, as when the vectors of the student have changed."""
        self.fill(*(torch.zeros_like(self.get_buffer(name)) for name in ("pictures", "texts")))

    def hubness_of_texts(self, texts: torch.Tensor) -> torch.Tensor:
        """How near unit vectors [B, E] are to the bank's pictures: [B], in units of a cosine.

        temperature x log(mean over pictures v of exp(cos(text, v) / temperature)); 0 with an empty
        bank.
        """
        return self._hubness(texts, self.get_buffer("pictures"))

    def hubness_of_pictures(self, pictures: torch.Tensor) -> torch.Tensor:
        """The same of pictures [N, E] and the bank's texts: [N]."""
        return self._hubness(pictures, self.get_buffer("texts"))

    def _hubness(self, vectors: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
        bank = bank[bank.any(dim=1)].to(vectors)
        if not len(bank):
            return vectors.new_zeros(len(vectors))
        parts = [
            (rows @ bank.T / self.temperature).logsumexp(dim=1)
            for rows in vectors.split(ROWS_AT_ONCE)
        ]
        return self.temperature * (torch.cat(parts) - math.log(len(bank)))
