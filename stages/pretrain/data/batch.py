"""The tensors of a micro-batch.

Letters: N pictures, B picture-text pairs, T word pieces, C cells, O objects a picture (padded), P
phrases a caption (padded), K classes of a soft label.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from stages.student.fusion.last_layer import OutputPlaces


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """M texts compared with K pictures, or pictures with texts.

    logits float [M, K]; own bool [M, K]: what belongs together. soft [M, K]: what a momentum copy
    holds for likely, each row of sum 1, and its share of the target; None for none.
    """

    logits: torch.Tensor
    own: torch.Tensor
    soft: torch.Tensor | None = None
    soft_share: float = 0.0


@dataclass(kw_only=True)
class Batch:
    """A micro-batch: pictures, each once or once a visit, with several captions each.

    The objectives' `mask` and `mask_cells` change `tokens`, `matched` and `masked_cells` and write
    their labels.
    """

    keys: list[str]
    """N sample keys, for naming what went wrong."""
    views: list[str]
    """N names of what is seen: equal ones are of equal pixels, but for padding."""
    pixels: torch.Tensor
    """uint8 [N, 3, H, W], padded (or normalised floats, which `Student.encode_image` takes as
    well)."""
    sizes_px: torch.Tensor
    """int [N, 2]: height, width before padding."""
    first_row: torch.Tensor
    """int [N]: the first row of the same picture, its own where no earlier row has that: a picture
    that comes several times an epoch may come twice in a batch."""
    picture: torch.Tensor
    """int [B]: the picture of each pair."""
    tokens: torch.Tensor
    """int [B, T]: word pieces with [CLS] and [SEP], padded."""
    texts: torch.Tensor
    """int [B, T]: the pieces of each pair's own caption, whatever ITM and MLM make of `tokens`."""
    is_true: torch.Tensor
    """bool [B]: the source holds that caption for true of the picture."""
    ordinary: torch.Tensor
    """bool [B, T]: pieces that are neither special nor padding."""
    words: torch.Tensor
    """int [B, T]: which word of its text each piece of `tokens` is of; -1 for special ones."""
    matched: torch.Tensor
    """bool [B]: the text is true of the picture."""
    swapped: torch.Tensor
    """int [M]: pairs that get another text when the contrastive head has compared all of them."""
    masked_cells: torch.Tensor
    """bool [B, C]: cells that the student must not see."""
    regions: torch.Tensor
    """float [N, O, C]: what each cell counts in each object, sum 1; all 0 for padding."""
    score: torch.Tensor
    """float [N, O]: how sure the teacher is of it."""
    label: torch.Tensor
    """int [N, O]: the teacher's label; -1 for padding."""
    top_label: torch.Tensor
    """int [N, O, K]: the classes of the soft label."""
    top_score: torch.Tensor
    """float [N, O, K]: their scores."""
    feature: torch.Tensor
    """float [N, O, F]: the teacher's features."""
    phrases: torch.Tensor
    """bool [B, P, T]: the word pieces of each phrase; all False for padding."""
    similarity: torch.Tensor
    """float [B, P, O]: linguistic similarity of phrase and object label."""
    mlm_labels: torch.Tensor
    """int [B, T]: the piece that was masked; -100 elsewhere."""
    masked_objects: torch.Tensor
    """int [B, M]: rows of the objects that OMVM masked; -1 for none."""
    anchors: torch.Tensor
    """int [B, A]: cells whose codes MVM masks, in the order of their draw; -1 for none."""
    mvm_labels: torch.Tensor
    """int [B, C]: the code that was masked; -100 elsewhere."""
    places: dict[str, torch.Tensor] = field(default_factory=dict)
    """int [k, M] each: where the objectives look, by the names of `Objective.find`; empty for a
    batch that collate did not make."""
    output_places: OutputPlaces | None = None
    """The fusion's outputs that any objective looks at; None where that is not known yet."""
    fills_canvas: bool | None = None
    """Whether every picture fills the tensor, up to whole cells; None where nobody looked."""
    mean_labels: dict[str, torch.Tensor] = field(default_factory=dict)
    """float []: the mean number of labels of a micro-batch of the step, by the names of
    `Objective.labels`; empty for those of this batch alone."""
    contrast: torch.Tensor | None = None
    """float [B, N]: the contrastive head's logits of each pair's own caption with each picture;
    None until the student has made them, and where no objective asks for them."""
    vectors: tuple[torch.Tensor, torch.Tensor] | None = None
    """float [B, E] and [N, E]: the contrastive head's of the pairs' own captions and of the
    pictures; as `contrast`."""
    comparisons: tuple[Comparison, Comparison] | None = None
    """Of texts and of pictures with vectors of a momentum copy; None where there is none."""

    @property
    def is_object(self) -> torch.Tensor:
        """bool [N, O]: rows that are no padding, and that have cells."""
        return (self.label >= 0) & self.regions.any(dim=-1)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return self.map_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def map_tensors(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """The batch of what `function` gives for each tensor that collate made."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        mapped: dict[str, Any] = {
            name: function(value)
            for name, value in values.items()
            if isinstance(value, torch.Tensor)
        }
        mapped["places"] = {name: function(places) for name, places in self.places.items()}
        if self.output_places is not None:
            index = function(self.output_places.index)
            mapped["output_places"] = replace(self.output_places, index=index)
        return replace(self, **mapped)
