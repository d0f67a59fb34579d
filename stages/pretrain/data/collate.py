"""Collates samples into the tensors of a micro-batch.

Letters: N pictures, B picture-text pairs, T word pieces, C cells, O objects a picture (padded), P
phrases a caption (padded), K classes of a soft label.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from boxless.errors import BoxlessError
from sharding.format.image_size import picture_size
from sharding.format.resize import Resize
from sharding.format.schema import Sample
from stages.picture import open_picture
from stages.pretrain.data.augmentation import View, draw_view, view_picture, view_sample
from stages.pretrain.data.batch import Batch
from stages.pretrain.data.caption_groups import caption_group
from stages.pretrain.data_config import AugmentConfig
from stages.pretrain.objectives.config import RegionConfig
from stages.pretrain.objectives.objective import Objective, output_mask_of
from stages.student.fusion.last_layer import OutputPlaces
from stages.student.text.word_ids import word_ids_of
from stages.student.vision.grid import region_weights
from stages.student.vision.image_transforms import load_picture, stack_bytes
from stages.student.vision.padding import canvas_px, fills_canvas

FIXED_VIEW = 1
"""Keeps the draws of views that come again apart from all others."""


FIELDS = ("box", "score", "label", "top_label", "top_score", "feature")
"""What a batch is made of, of each object."""


class Decoded(NamedTuple):
    """A sample, or a view of it; its pixels, resized, uint8 [H, W, 3]; and the view's name."""

    sample: Sample
    pixels: np.ndarray
    view: str


@dataclass(frozen=True, kw_only=True)
class Collate:
    """Makes the batch of a position. Everything random comes from (seed, position).

    fusing: those of the objectives that look at the fusion's outputs.
    """

    tokenizer: PreTrainedTokenizerFast
    objectives: Sequence[Objective]
    fusing: Sequence[Objective] = ()
    seed: int
    captions_per_picture: int
    max_tokens: int
    shorter_px: int
    longer_px: int
    cell_px: int
    pad_px: int
    regions: RegionConfig
    augment: AugmentConfig = AugmentConfig()
    is_cached: Callable[[str], bool] | None = None
    """Whether the CNN's outputs for a view, by its name, are cached, so that nothing needs its
    pixels; None where there is no cache."""
    visits_caption_groups: bool = False

    def __call__(self, position: int, samples: Sequence[Sample]) -> Batch:
        """The samples of `position` as a batch, masked by every objective in turn.

        Raises what `decode` raises.
        """
        return self.batch(position, [self.decode(position, sample) for sample in samples])

    def decode(self, position: int, sample: Sample) -> Decoded:
        """The sample and its picture, resized; of both a random view, where the recipe asks for
        any.

        Raises ValueError where its size is not the one in its json (its boxes would be wrong, and
        its memory not what the shard says), and PictureError, which is one, for bytes that are no
        picture.
        """
        said = (sample.info["width"], sample.info["height"])
        size = picture_size(sample.image)
        if size != said:
            raise BoxlessError(f"the picture has {size} pixels, its json says {said}")
        # Kept outputs must tell pictures of one key and other bytes apart.
        name = f"{sample.key} {zlib.crc32(sample.image):08x}"
        if self.augment.changes_nothing:
            return Decoded(sample, self._pixels(sample, size, name, None), name)
        number = self._chosen_view(position, sample.key)
        name += f" {'at ' + str(position) if number is None else number}"
        view = draw_view(
            self.augment, *size, self._random_of_view(position, sample.key, number), number
        )
        pixels = self._pixels(sample, size, name, view)
        return Decoded(view_sample(view, sample, self.augment.min_visible), pixels, name)

    def _pixels(
        self, sample: Sample, size: tuple[int, int], name: str, view: View | None
    ) -> np.ndarray:
        """A picture of `size` (width, height), or the view of it that has this name, resized: black
        where the CNN's outputs for it are cached, as decoding costs more than a step with them."""
        resize = Resize(shorter_px=self.shorter_px, longer_px=self.longer_px)
        width, height = resize.size(*size)
        if self.is_cached and self.is_cached(name):
            return np.broadcast_to(np.uint8(0), (height, width, 3))
        if view is None:
            return load_picture(sample.image, shorter_px=self.shorter_px, longer_px=self.longer_px)
        return view_picture(view, open_picture(sample.image), (width, height))

    def _random_of_view(self, position: int, key: str, number: int | None) -> np.random.Generator:
        """What draws the view of a sample: new at each position, or one of `num_views`."""
        of_key = zlib.crc32(key.encode())
        if number is None:
            return np.random.default_rng([self.seed, position, of_key])
        return np.random.default_rng([self.seed, of_key, number, FIXED_VIEW])

    def _chosen_view(self, position: int, key: str) -> int | None:
        """Which of `num_views` a sample has at a position; None for a new one."""
        if self.augment.num_views is None:
            return None
        random = np.random.default_rng([self.seed, position, zlib.crc32(key.encode())])
        return int(random.integers(self.augment.num_views))

    @property
    def view_settings(self) -> dict[str, object]:
        """What the pixels of a view depend on, beside the picture and the view's number."""
        augment = self.augment
        return {
            "shorter_px": self.shorter_px,
            "longer_px": self.longer_px,
            "pad_px": self.pad_px,
            "augment": None if augment.changes_nothing else asdict(augment),
            "seed": self.seed if augment.min_area < 1 or augment.colour else None,
        }

    def _captions(self, sample: Sample, visit: int, random: np.random.Generator) -> list[int]:
        """Rows of the captions that a visit of a picture is read with."""
        if self.visits_caption_groups:
            num_captions = len(sample.info["captions"])
            return caption_group(num_captions, visit, self.captions_per_picture, random)
        return _draw_captions(sample, self.captions_per_picture, random)

    def batch(self, position: int, decoded: Sequence[Decoded], visits: Sequence[int] = ()) -> Batch:
        """The samples of `position` with their pictures as a batch, masked. visits: which visit of
        the epoch each sample's is; the first where none are given."""
        random = np.random.default_rng([self.seed, position])
        batch = self._collate(decoded, visits or [0] * len(decoded), random)
        for objective in self.objectives:
            objective.mask(batch, self.tokenizer, random)
        for objective in self.objectives:
            batch.places |= objective.find(batch)
        batch.output_places = self._output_places(batch)
        height, width = batch.pixels.shape[2:]
        batch.fills_canvas = fills_canvas(batch.sizes_px, height, width, self.pad_px)
        return batch

    def _output_places(self, batch: Batch) -> OutputPlaces | None:
        """The fusion's outputs that objectives look at; None for all, or where the CNN decides."""
        if any(objective.masks_by_code for objective in self.fusing):
            return None
        mask = output_mask_of(self.fusing, batch)
        return None if mask is None else OutputPlaces.of(mask)

    def _collate(
        self, decoded: Sequence[Decoded], visits: Sequence[int], random: np.random.Generator
    ) -> Batch:
        """The batch before any masking."""
        samples = [one.sample for one in decoded]
        pictures = stack_bytes([one.pixels for one in decoded], multiple_px=self.pad_px)
        grid = (
            pictures.pixels.shape[2] // self.cell_px,
            pictures.pixels.shape[3] // self.cell_px,
        )
        keys = [sample.key for sample in samples]
        first_rows: dict[str, int] = {}
        pairs = [
            (n, caption)
            for n, (sample, visit) in enumerate(zip(samples, visits, strict=True))
            for caption in self._captions(sample, visit, random)
        ]
        texts = [samples[n].info["captions"][caption] for n, caption in pairs]
        tokens, offsets, special = self._tokenize(texts)
        own_cells_px = canvas_px(pictures.sizes_px, self.pad_px) // self.cell_px * self.cell_px
        seen_px = pictures.sizes_px.minimum(own_cells_px)
        objects: dict[str, Any] = _stack_objects(
            samples, pictures.sizes_px, seen_px, grid, self.cell_px, self.regions
        )
        phrases, similarity = _stack_phrases(
            [_phrases_of(samples[n], caption) for n, caption in pairs],
            offsets,
            objects["label"].shape[1],
        )
        is_true = torch.tensor([_is_true(samples[n], caption) for n, caption in pairs])
        masked_cells = torch.zeros(len(pairs), grid[0] * grid[1], dtype=torch.bool)
        return Batch(
            keys=keys,
            views=[one.view for one in decoded],
            pixels=pictures.pixels,
            sizes_px=pictures.sizes_px,
            first_row=torch.tensor([first_rows.setdefault(key, n) for n, key in enumerate(keys)]),
            picture=torch.tensor([n for n, _ in pairs]),
            tokens=tokens,
            texts=tokens,
            is_true=is_true,
            ordinary=special == 0,
            words=word_ids_of(offsets, special),
            matched=is_true,
            swapped=torch.zeros(0, dtype=torch.long),
            masked_cells=masked_cells,
            phrases=phrases,
            similarity=similarity,
            mlm_labels=torch.full_like(tokens, -100),
            masked_objects=torch.full((len(pairs), 1), -1),
            anchors=torch.full((len(pairs), 1), -1),
            mvm_labels=torch.full(masked_cells.shape, -100),
            vectors=None,
            comparisons=None,
            **objects,
        )

    def _tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, ...]:
        """Word pieces [B, T], their characters in the text (start, end) [B, T, 2], and 1 where a
        piece is [CLS], [SEP] or padding [B, T]."""
        encoded = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        # transformers' own way to tensors takes longer than the tokenizer.
        return tuple(
            torch.from_numpy(np.array(encoded[name]))
            for name in ("input_ids", "offset_mapping", "special_tokens_mask")
        )


def _draw_captions(sample: Sample, wanted: int, random: np.random.Generator) -> list[int]:
    """Rows of the captions to use: all if there are no more than `wanted`, else a draw."""
    have = len(sample.info["captions"])
    if have <= wanted:
        return list(range(have))
    return sorted(int(row) for row in random.choice(have, size=wanted, replace=False))


def _is_true(sample: Sample, caption: int) -> bool:
    """False only where the source says that the caption is not true of the picture."""
    truths = sample.info.get("truth", {}).get("captions")
    return bool(truths[caption]) if truths else True


def _phrases_of(sample: Sample, caption: int) -> list[dict]:
    return sample.info["phrases"][caption]


def _objects_of(sample: Sample) -> np.ndarray:
    if sample.objects is None:
        raise BoxlessError(f"{sample.key}: got an image shard's sample, expected an object shard's")
    return sample.objects


def _stack_objects(
    samples: Sequence[Sample],
    sizes_px: torch.Tensor,
    seen_px: torch.Tensor,
    grid: tuple[int, int],
    cell_px: int,
    config: RegionConfig,
) -> dict[str, torch.Tensor]:
    """The samples' object arrays, padded to the largest number of rows (at least one).

    sizes_px, seen_px [N, 2]: height and width of each picture, and of what its own cells see.
    """
    arrays = [_objects_of(sample) for sample in samples]
    counts = torch.tensor([len(array) for array in arrays])
    most = max(1, int(counts.max()))
    # Of each object: its picture, and its row there.
    picture = torch.arange(len(samples)).repeat_interleave(counts)
    row = torch.arange(len(picture)) - (counts.cumsum(0) - counts)[picture]
    fields = {
        name: torch.from_numpy(np.concatenate([array[name] for array in arrays])) for name in FIELDS
    }

    def padded(values: torch.Tensor, filler: float) -> torch.Tensor:
        """Values [objects, ...] as [N, O, ...]."""
        stacked = values.new_full((len(samples), most, *values.shape[1:]), filler)
        stacked[picture, row] = values
        return stacked

    said = np.array([[sample.info["height"], sample.info["width"]] for sample in samples])
    scale = torch.from_numpy((sizes_px.numpy() / said).astype(np.float32)).flip(1).repeat(1, 2)
    # A foreign teacher's box may stick out, and pooling may drop an edge. PRA needs no cell that
    # attention leaves out.
    seen = seen_px.flip(1)
    limits = torch.cat([seen - 1, seen], 1)
    boxes = (fields["box"] * scale[picture]).minimum(limits[picture])
    regions = region_weights(
        boxes, *grid, cell_px, min_overlap=config.min_overlap, pooling=config.pooling
    )
    return {
        "regions": padded(regions, 0.0),
        "score": padded(fields["score"].float(), 0.0),
        "label": padded(fields["label"].long(), -1),
        "top_label": padded(fields["top_label"].long(), 0),
        "top_score": padded(fields["top_score"].float(), 0.0),
        "feature": padded(fields["feature"].float(), 0.0),
    }


def _stack_phrases(
    phrases: Sequence[list[dict]], offsets: torch.Tensor, num_objects: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Character spans to word pieces: bool [B, P, T] and similarities [B, P, O].

    A piece belongs to a phrase if their characters overlap; a phrase cut off by `max_tokens` has
    no piece left and counts as padding.
    """
    most = max(1, max((len(rows) for rows in phrases), default=1))
    pieces = torch.zeros(len(phrases), most, offsets.shape[1], dtype=torch.bool)
    similarity = torch.zeros(len(phrases), most, num_objects)
    # Of each phrase: its caption, its row there, its span, its similarities to all objects.
    places = [(b, p) for b, rows in enumerate(phrases) for p in range(len(rows))]
    if not places:
        return pieces, similarity
    b, p = torch.tensor(places).T
    flat = [phrase for rows in phrases for phrase in rows]
    start, end = torch.tensor([(phrase["start"], phrase["end"]) for phrase in flat]).T[:, :, None]
    pieces[b, p] = (offsets[b, :, 0] < end) & (offsets[b, :, 1] > start)
    similarity[b, p] = torch.tensor(
        [
            [*phrase["similarity"], *[0.0] * (num_objects - len(phrase["similarity"]))]
            for phrase in flat
        ]
    )
    return pieces, similarity
