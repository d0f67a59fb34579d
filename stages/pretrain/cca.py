"""Initialises the contrastive head by canonical correlation analysis (ours).

Pictures and texts that belong together are correlated in some directions of the CNN's mean feature
and of the text's mean vector. CCA (Hotelling 1936) finds them in closed form, in one pass over the
training pictures and without a gradient; a head that starts there has at step 0 what the two
published networks have in common, and is trained from there.

Letters: B pairs, X channels of the CNN, D hidden size, E size of the head's vectors, T word pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from boxless.errors import BoxlessError
from stages.pretrain.caches.cnn_cache import CnnCache
from stages.pretrain.caches.text_cache import TextCache
from stages.pretrain.data.batch import Batch
from stages.student.heads import weighted_mean
from stages.student.network import Student


@dataclass(frozen=True, kw_only=True)
class CcaStart:
    """Linear maps, each applied as `v @ map + bias`.

    project [X, D] and project_bias [D]: the picture's D best canonical directions, which cells then
    have for their channels; text [Y, D] and text_bias: those of the text. Both sides are weighed by
    the root of the correlation. text_mean [Y]: the texts' mean.
    """

    project: torch.Tensor
    project_bias: torch.Tensor
    text: torch.Tensor
    text_bias: torch.Tensor
    text_mean: torch.Tensor


class PairStatistics:
    """Sums over pairs of what CCA needs: counts, means and products, in float64."""

    def __init__(self, num_x: int, num_y: int) -> None:
        size = 1 + num_x + num_y
        self._products = torch.zeros(size, size, dtype=torch.float64)
        self._num_x = num_x

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Count pairs of pictures [B, X] and texts [B, Y]."""
        one = x.new_ones(len(x), 1)
        rows = torch.cat([one, x, y], dim=1).double().cpu()
        self._products += rows.T @ rows

    def add_other_ranks(self, device: torch.device) -> None:
        """Sum up over ranks. A collective."""
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            products = self._products.to(device)
            torch.distributed.all_reduce(products)
            self._products = products.cpu()

    def solve(self, *, ridge: float, size: int, x_parts: Sequence[int] | None = None) -> CcaStart:
        """The `size` best correlated directions. `ridge` times the mean variance of a side is added
        to the variance of each of its directions; of the pictures' side, where `x_parts` says how
        many of its numbers are of each source, that source's mean variance to its own directions,
        which is the same as bringing all sources to one scale first.

        Raises BoxlessError where there are fewer than 2 pairs or fewer than `size` directions.
        """
        num = int(self._products[0, 0])
        num_x, num_y = self._num_x, len(self._products) - 1 - self._num_x
        if num < 2 or size > min(num_x, num_y):
            raise BoxlessError(
                f"pretrain.itc.start: got {num} pairs and {size} directions, expected 2 pairs or "
                f"more and at most {min(num_x, num_y)} directions, the smaller of the CNN's "
                "channels and the text's width"
            )
        mean = self._products[0, 1:] / num
        covariance = self._products[1:, 1:] / num - mean[:, None] * mean
        mean_x, mean_y = mean[:num_x], mean[num_x:]
        xx = _with_ridge(covariance[:num_x, :num_x], ridge, x_parts or [num_x])
        yy = _with_ridge(covariance[num_x:, num_x:], ridge, [num_y])
        xy = covariance[:num_x, num_x:]
        whiten_x, whiten_y = _inverse_root(xx), _inverse_root(yy)
        left, correlations, right = torch.linalg.svd(whiten_x @ xy @ whiten_y)
        weight = correlations[:size].sqrt()
        project, text = whiten_x @ left[:, :size] * weight, whiten_y @ right[:size].T * weight
        return CcaStart(
            project=project,
            project_bias=-mean_x @ project,
            text=text,
            text_bias=-mean_y @ text,
            text_mean=mean_y,
        )


def _with_ridge(covariance: torch.Tensor, ridge: float, parts: Sequence[int]) -> torch.Tensor:
    variances = covariance.diagonal().split(list(parts))
    means = torch.cat([part.mean().clamp(min=1e-12).expand(len(part)) for part in variances])
    return covariance + ridge * means.diag()


def _inverse_root(covariance: torch.Tensor) -> torch.Tensor:
    """The symmetric square root of the inverse of a positive definite matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.rsqrt() @ vectors.T


@torch.no_grad()
def start_by_cca(
    student: Student,
    batches: Iterable[Batch],
    *,
    ridge: float,
    device: torch.device,
    cache: CnnCache | None = None,
    text_cache: TextCache | None = None,
) -> None:
    """Set the grid's projection and the heads that compare pictures with texts by one pass over
    `batches`, this rank's share of the training pictures. A collective: every rank ends with the
    same weights.

    Cells have canonical directions for their channels then, of which the head takes the first; so
    do the maps of the alignment head, where there are any. The caches keep what frozen parts give.
    Raises BoxlessError where the batches do not suffice.
    """
    head = student.contrastive_head
    assert head is not None and not head.num_heads, "checked by check_start"
    project = student.grid.project
    statistics = PairStatistics(project.in_channels, head.text.in_features)
    is_training = student.training
    student.eval().to(device)
    projected: list[torch.Tensor] = []
    hook = project.register_forward_pre_hook(lambda _, inputs: projected.append(inputs[0]))
    try:
        for batch in batches:
            batch = batch.to(device)
            maps = cache.maps(student, batch) if cache else None
            cells = student.encode_image(batch.pixels, batch.sizes_px, maps=maps)
            features = projected.pop().flatten(2).transpose(1, 2)
            pictures = weighted_mean(cells.inside[:, None], features)[:, 0]
            real = batch.texts != student.pad_id
            encoded = (
                text_cache.encode(student, batch.texts)
                if text_cache
                else student.encode_texts(batch.texts)
            )
            texts = weighted_mean(real[:, None], encoded)[:, 0]
            statistics.add(pictures[batch.picture[batch.is_true]], texts[batch.is_true])
    finally:
        hook.remove()
        student.train(is_training)
    statistics.add_other_ranks(device)
    start = statistics.solve(
        ridge=ridge, size=project.out_channels, x_parts=student.grid.stage_widths
    )
    _take(student, start)


def _take(student: Student, start: CcaStart) -> None:
    head, project, align = student.contrastive_head, student.grid.project, student.align_head
    assert head is not None
    _set(project, start.project, start.project_bias)
    maps: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = [
        (head.picture, torch.eye(project.out_channels), torch.zeros(project.out_channels)),
        (head.text, start.text, start.text_bias),
    ]
    if isinstance(align.region, nn.Linear):
        last = student.fusion.config.hidden_size
        of_last = start.text[-last:]
        maps += [
            (align.region, *maps[0][1:]),
            (align.phrase, of_last, -start.text_mean[-last:] @ of_last),
        ]
    for module, weight, bias in maps:
        assert isinstance(module, nn.Linear)
        _set(module, weight[:, : module.out_features], bias[: module.out_features])


def _set(module: nn.Linear | nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Give `v @ weight + bias` to a linear map, or to a 1x1 convolution; rank 0's, on all ranks."""
    assert module.bias is not None
    module.weight.copy_(weight.T.reshape(module.weight.shape))
    module.bias.copy_(bias)
    if torch.distributed.is_initialized():
        for tensor in (module.weight, module.bias):
            torch.distributed.broadcast(tensor.data, src=0)
