"""SOHO's visual dictionary (arXiv 2104.03135, section 3.2): each cell stands for its nearest code.

Codes are moving averages of the cells that took them, not trained weights. Everything here is
float32, whatever precision the network around it has.
Letters: M cells, K codes, D hidden size, W ranks, T turns (micro-batches of a rank in a step).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from boxless.errors import BoxlessError
from stages.student.vision.neck_config import DictionaryConfig

DEAD_AFTER = 50
"""Updates without a cell after which a code counts as dead in the metrics."""
NUM_OFFERED = 8
"""Cells that a micro-batch offers to unused codes."""
CELLS_PER_CODE = 4
"""Cells among which each code is chosen at the start."""


@dataclass(frozen=True, kw_only=True)
class CodebookStats:
    """What a micro-batch leaves for the update: `counts` [K] cells of each code and their `sums`
    [K, D], and `offered` [n, D]: cells that may become codes, the first `num_offered` of them."""

    counts: torch.Tensor
    sums: torch.Tensor
    offered: torch.Tensor
    num_offered: torch.Tensor


class Dictionary(nn.Module):
    """Cells in, the index and the value of their codes out; learns from what it has seen.

    Source: the formulas of `SOHO/models/necks/utils.py` of researchmm/soho. With n_k the cells of
    code k and s_k their sum, over all ranks:
        count_k <- decay count_k + (1 - decay) n_k,   sum_k <- decay sum_k + (1 - decay) s_k,
        code_k = sum_k / ((count_k + smoothing) / (N + K smoothing) N),   N = sum of counts.
    """

    codes: torch.Tensor
    sums: torch.Tensor
    counts: torch.Tensor
    num_seen: torch.Tensor
    age: torch.Tensor
    started: torch.Tensor

    def __init__(self, config: DictionaryConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        size, from_data = config.num_codes, config.start == "data"
        for name, value in (
            ("codes", torch.randn(size, hidden_size)),
            ("sums", torch.zeros(size, hidden_size)),
            ("counts", torch.zeros(size)),
            # Of all cells ever, a code's own: SOHO's checkpoints have it, nothing reads it.
            ("num_seen", torch.zeros(size)),
            # Updates since a cell last took the code. One that never had a cell is dead already.
            ("age", torch.full((size,), DEAD_AFTER)),
            ("started", torch.tensor(not from_data)),
        ):
            self.register_buffer(name, value)
        self._pending: list[CodebookStats] = []
        self._was_started = False

    def _is_started(self) -> bool:
        """`started`, which once it is true is not asked of the device again."""
        self._was_started = self._was_started or bool(self.started)
        return self._was_started

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._was_started = False
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Follow the module to another device, never to another precision: bf16 has 8 bits, and a
        moving average with decay 0.99 would stop changing."""
        kept = {name: buffer.dtype for name, buffer in self.named_buffers()}

        def place(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(place, recurse)
        assert all(buffer.dtype == kept[name] for name, buffer in self.named_buffers())
        return self

    def forward(
        self, cells: torch.Tensor, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cells [M, D] -> index [M] and value [M, D] of their codes, the value float32.

        The value's gradient goes to the cells unchanged (straight through). A dictionary that has
        not started yet gives index -1 and the cells themselves. weights [M], how often each cell
        counts, or None to learn nothing. With `update` "forward" a collective where it learns.
        """
        cells = cells.float()
        with torch.no_grad():
            index, distance = self._nearest(cells)
            if weights is not None and self.config.update == "forward":
                counts, sums = self._tally(cells, index, weights)
                self._move(*_over_ranks(counts, sums))
            elif weights is not None:
                self._record(cells, index, distance, weights)
        if not self._is_started():
            return index, cells
        return index, cells + (self.codes[index] - cells).detach()

    @torch.no_grad()
    def learn(self) -> None:
        """Move the codes by what was pending since the last call. A collective, once a step.

        Nothing of it depends on how the step's micro-batches are shared out among ranks.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        counts, sums = _over_ranks(
            torch.stack([one.counts for one in pending]).sum(dim=0),
            torch.stack([one.sums for one in pending]).sum(dim=0),
        )
        if self._is_started():
            self._move(counts, sums)
            dead = self.age >= self.config.revive_after_steps
            if self.config.revive_after_steps and bool(dead.any()):
                rows = dead.nonzero()[:, 0]
                fresh = torch.cat(_offers_of_all(pending))[: len(rows)]
                self._replace(rows[: len(fresh)], fresh)
        elif len(offers := _offers_of_all(pending)):
            self._start(offers)

    def perplexity(self) -> torch.Tensor:
        """How many codes are in use, as exp(entropy of their counts): 1 to K; 0 before a start."""
        share = self.counts / self.counts.sum().clamp(min=1e-12)
        entropy = -(share * share.clamp(min=1e-12).log()).sum()
        return torch.where(self.counts.any(), entropy.exp(), 0.0)

    def num_dead(self) -> torch.Tensor:
        """Codes that no cell took in the last `DEAD_AFTER` updates, or ever."""
        return (self.age >= DEAD_AFTER).sum()

    def _nearest(self, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Index [M] of the nearest code, the first of equals, and the squared distance [M]; -1 and
        1 before the start."""
        if not self._is_started():
            ones = torch.ones(len(cells), device=cells.device)
            return torch.full_like(ones, -1, dtype=torch.long), ones
        if self.codes.dtype != torch.float32:
            raise BoxlessError(
                f"data_types.buffer_dtype: got {self.codes.dtype} codes, expected float32; leave "
                "it out of DeepSpeed's settings"
            )
        with torch.autocast(cells.device.type, enabled=False):
            distances = (
                cells.square().sum(dim=1, keepdim=True)
                - 2 * cells @ self.codes.T
                + self.codes.square().sum(dim=1)
            )
        distance, index = distances.min(dim=1)
        return index, distance

    def _tally(
        self, cells: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Each code's cells, counted [K] and added up [K, D]. No one-hot matrix [M, K] is made."""
        counts = torch.zeros_like(self.counts).index_add_(0, index, weights)
        sums = torch.zeros_like(self.sums).index_add_(0, index, cells * weights[:, None])
        return counts, sums

    def _record(
        self,
        cells: torch.Tensor,
        index: torch.Tensor,
        distance: torch.Tensor,
        weights: torch.Tensor,
    ) -> None:
        """Keep what `learn` needs. Cells are offered by a draw in which one at distance d from its
        code has the weight d squared (k-means++'s rule, Arthur and Vassilvitskii 2007)."""
        if self._is_started():
            counts, sums = self._tally(cells, index, weights)
        else:
            counts, sums = torch.zeros_like(self.counts), torch.zeros_like(self.sums)
        num_wanted = min(NUM_OFFERED if self._is_started() else len(self.codes), len(cells))
        chance = distance.clamp(min=0) * (weights > 0)
        # The smallest of exponential waiting times: a weighted draw without putting back.
        waiting = torch.empty_like(chance).exponential_() / chance
        waiting = torch.where(chance > 0, waiting, float("inf"))
        offered = waiting.topk(num_wanted, largest=False).indices
        num_offered = (chance > 0).sum().clamp(max=num_wanted)
        self._pending.append(
            CodebookStats(counts=counts, sums=sums, offered=cells[offered], num_offered=num_offered)
        )

    def _move(self, counts: torch.Tensor, sums: torch.Tensor) -> None:
        """Update the moving averages and the codes by counts [K] and sums [K, D] of all ranks."""
        moves = counts.any()
        decay, smoothing = self.config.decay, self.config.smoothing
        self.num_seen += counts
        self.age.add_(moves).masked_fill_(counts > 0, 0)
        # Without a cell nothing moves; to ask first would wait for the device.
        kept, taken = (
            torch.where(moves, share, rest) for share, rest in ((decay, 1), (1 - decay, 0))
        )
        self.counts.mul_(kept).add_(counts * taken)
        self.sums.mul_(kept).add_(sums * taken)
        total = self.counts.sum()
        sizes = (self.counts + smoothing) / (total + len(self.codes) * smoothing) * total
        self.codes.copy_(torch.where(sizes[:, None] > 0, self.sums / sizes[:, None], self.codes))

    def _replace(self, rows: torch.Tensor, cells: torch.Tensor) -> None:
        """Start the codes `rows` [n] again from `cells` [n, D], as if each had one cell."""
        self.codes[rows], self.sums[rows] = cells, cells
        self.counts[rows], self.age[rows] = 1.0, 0

    def _start(self, offers: list[torch.Tensor]) -> None:
        """Choose the first codes from the cells that the micro-batches offer, as many of each."""
        most = -(-CELLS_PER_CODE * len(self.codes) // len(offers))
        chosen = kmeans_plus_plus(torch.cat([own[:most] for own in offers]), len(self.codes))
        if _world_size() > 1:
            # All ranks chose from the same cells; kernels of unlike devices may still round apart.
            torch.distributed.broadcast(chosen, src=0)
        self._replace(torch.arange(len(chosen), device=chosen.device), chosen)
        self.started.fill_(True)


def kmeans_plus_plus(cells: torch.Tensor, num_codes: int) -> torch.Tensor:
    """`num_codes` rows of cells [M, D] that lie far from each other: [num_codes, D].

    k-means++ (Arthur and Vassilvitskii, SODA 2007): each next row is drawn with the square of its
    distance to the nearest of those before. The draws are always the same ones. Where there are
    fewer unlike rows than codes, rows come again.
    """
    random = torch.Generator().manual_seed(0)
    draws = torch.rand(num_codes, generator=random).to(cells.device)
    rows = torch.empty(num_codes, dtype=torch.long, device=cells.device)
    nearest = torch.ones(len(cells), device=cells.device)
    squares = cells.square().sum(dim=1)
    for i in range(num_codes):
        chance = torch.where(nearest.any(), nearest, 1.0).double().cumsum(dim=0)
        rows[i] = torch.searchsorted(chance, draws[i].double() * chance[-1], right=True)
        own = cells[rows[i]]
        distance = (squares - 2 * cells @ own + own.square().sum()).clamp(min=0)
        # What is left of a row against itself is rounding.
        distance = torch.where(distance < 1e-6 * squares.clamp(min=1e-12), 0.0, distance)
        nearest = distance if i == 0 else torch.minimum(nearest, distance)
    return cells[rows]


def _world_size() -> int:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def _over_ranks(counts: torch.Tensor, sums: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """counts [K] and sums [K, D] added up over ranks, in one all-reduce."""
    if _world_size() == 1:
        return counts, sums
    both = torch.cat([counts[:, None], sums], dim=1)
    torch.distributed.all_reduce(both)
    return both[:, 0], both[:, 1:]


def _offers_of_all(pending: list[CodebookStats]) -> list[torch.Tensor]:
    """The cells [n, D] offered by each micro-batch of the step on any rank, in the order of their
    positions: ranks take micro-batches in turn. Those that offer none are left out."""
    size = torch.tensor([len(one.offered) for one in pending]).amax().to(pending[0].offered.device)
    if _world_size() > 1:
        torch.distributed.all_reduce(size, op=torch.distributed.ReduceOp.MAX)
    most = int(size)
    offered = torch.stack(
        [nn.functional.pad(o.offered, (0, 0, 0, most - len(o.offered))) for o in pending]
    )
    nums = torch.stack([one.num_offered for one in pending])
    if _world_size() > 1:
        ranks = range(_world_size())
        all_offered = [torch.empty_like(offered) for _ in ranks]
        all_nums = [torch.empty_like(nums) for _ in ranks]
        torch.distributed.all_gather(all_offered, offered)
        torch.distributed.all_gather(all_nums, nums)
        offered = torch.stack(all_offered, dim=1).flatten(0, 1)
        nums = torch.stack(all_nums, dim=1).flatten()
    return [cells[:num] for cells, num in zip(offered, nums.tolist()) if num]
