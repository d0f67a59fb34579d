"""What a task's head may read instead of the fusion's [CLS]: text and picture, each encoded by
itself, and how well they fit (ours).

For a student whose fusion was not trained, as that of recipe photos: its contrastive and alignment
heads compare what the two encoders give. Letters: R rows, T word pieces, C cells, D hidden size, L
text layers.
"""

from __future__ import annotations

import torch

from boxless.errors import BoxlessError
from stages.student.heads import weighted_mean
from stages.student.network import Student
from stages.student.network_config import StudentNetConfig
from stages.student.outputs import Cells

NUM_FITS = 6
"""The cosine of text and picture; mean, least, largest and deviation of the pieces' fits;
[CLS]'s."""


def num_encoder_inputs(config: StudentNetConfig) -> int:
    """Numbers a row. Raises ValueError for a student without a contrastive head."""
    if not config.itc_size:
        raise BoxlessError(
            "finetune.inputs: got encoders and a student without a contrastive head, expected one "
            "(student.itc_size), or inputs fusion"
        )
    return (len(config.itc_text_layers) + 1) * config.bert["hidden_size"] + NUM_FITS


def encoder_inputs(
    student: Student, cells: Cells, *, picture: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """Of texts `tokens` [R, T], each on its `picture` [R]: [R, (L + 1) D + 6].

    The mean of the text's pieces in each layer, the last layer's [CLS], the cosine of the text's
    and the picture's contrastive vectors, and what the alignment head says of each piece's fit, its
    cosine with the cell that it fits best: over the pieces between [CLS] and [SEP] the mean, the
    least, the largest and the standard deviation, and [CLS]'s own.
    """
    real = tokens != student.pad_id
    within = real & real.roll(-1, dims=1)  # not [SEP]; a row without padding wraps around to [CLS]
    within[:, -1] = False
    within[:, 0] = False
    encoded = student.encode_texts(tokens)
    last = student.last_layer(encoded)
    cosine = student.embed_texts(tokens, encoded) * student.embed_pictures(cells)[picture]
    similarity = student.align_head(last, cells.features[picture])  # [R, T, C]
    cosines = similarity * student.align_head.temperature
    fits = cosines.masked_fill(~cells.inside[picture][:, None], -1.0).amax(dim=2)  # [R, T]
    num = within.sum(dim=1).clamp(min=1)
    mean = (fits * within).sum(dim=1) / num
    spread = (((fits - mean[:, None]) * within).square().sum(dim=1) / num).sqrt()
    least = fits.masked_fill(~within, 1.0).amin(dim=1)
    largest = fits.masked_fill(~within, -1.0).amax(dim=1)
    summary = torch.stack([cosine.sum(dim=1), mean, least, largest, spread, fits[:, 0]], dim=1)
    inner = weighted_mean(within[:, None], encoded)[:, 0]
    return torch.cat([inner, last[:, 0], summary.to(inner.dtype)], dim=1)
