"""Converts one input to a sample, or to a failure with its reason."""

from __future__ import annotations

from sharding.format.schema import Failure, Note, Sample
from stages.ingest.config import IngestConfig
from stages.ingest.sources.source import Picture
from stages.ingest.truth import fit_truth, keep_captions
from stages.picture import PictureError, PictureFacts, inspect_picture


def make_sample(picture: Picture | Failure, config: IngestConfig) -> list[Sample | Failure | Note]:
    """A sample and the notes on what was dropped from it, or a single Failure.

    Reads and decodes the picture; the sample keeps the original bytes.
    """
    if isinstance(picture, Failure):
        return [picture]
    kept = [i for i, caption in enumerate(picture.captions) if caption.strip()]
    if not kept:
        blank = [f"all {len(picture.captions)} are blank or no text"] if picture.captions else []
        details = "; ".join([*blank, *picture.notes])
        reason = f"no captions: {details}" if details else "no captions"
        return [Failure(key=picture.key, reason=reason)]
    try:
        data = picture.read()
        facts = inspect_picture(
            data, max_megapixels=config.max_megapixels, min_side_px=config.min_side_px
        )
    except PictureError as error:
        return [Failure(key=picture.key, reason=str(error))]
    info, notes = _describe(picture, facts, kept)
    sample = Sample(key=picture.key, image=data, extension=facts.extension, info=info)
    return [sample, *(Note(key=picture.key, reason=note) for note in notes)]


def _describe(
    picture: Picture, facts: PictureFacts, kept: list[int]
) -> tuple[dict[str, object], list[str]]:
    """The sample's json, and what had to be dropped for it."""
    notes = list(picture.notes)
    notes += [f"blank caption: number {i}" for i in range(len(picture.captions)) if i not in kept]
    info = {
        **picture.fields,
        "captions": [picture.captions[i] for i in kept],
        "width": facts.width,
        "height": facts.height,
    }
    if picture.truth is not None:
        truth, truth_notes = fit_truth(
            picture.truth,
            width=facts.width,
            height=facts.height,
            size_px=picture.size_px,
            orientation=facts.orientation,
        )
        notes += truth_notes
        if truth is not None:
            info["truth"] = keep_captions(truth, kept)
    return info, notes
