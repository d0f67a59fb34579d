"""Held-out pictures by key, made small enough for a page."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipeline.runner.run_folder import RunFolder
from sharding.format.catalog import read_catalog
from sharding.format.image_size import upright_size
from sharding.format.manifest import SampleEntry, read_manifest
from sharding.format.schema import Sample, ShardError
from sharding.reading.sample_reader import read_sample
from stages.exif_orientation import upright
from stages.picture import pixels_alone

_KEPT_BYTES = 16 * 1024
_MOST_BYTES = 96 * 1024
_QUALITIES = (80, 60, 40, 20)
_NUM_LOOKED_AT = 20


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """A picture for the page: a data URI, and the size in pixels that it stands for (that of the
    original, in which boxes count)."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Reduced:
    """A small RGB picture, and the size in pixels of the original, in which boxes count.

    kept: the stored bytes and their format, where a page may show them as they are.
    """

    picture: Image.Image
    width: int
    height: int
    kept: tuple[bytes, str] | None

    def thumbnail(self) -> Thumbnail:
        """The picture for a page."""
        data, kind = self.kept or (_jpeg(self.picture), "JPEG")
        return Thumbnail(uri=data_uri(data, kind), width=self.width, height=self.height)


class Pictures:
    """Held-out samples by key. Manifests are read one after the other, as far as is needed."""

    def __init__(self, run: RunFolder) -> None:
        self._unread = _heldout_tars(run)
        self._found: dict[str, tuple[Path, SampleEntry]] = {}

    def first(self, most: int) -> list[Sample]:
        """The first samples of the split that can be read."""
        while len(self._found) < most and self._read_on():
            pass
        samples = (self.find(key) for key in list(self._found)[:most])
        return [sample for sample in samples if sample is not None]

    @property
    def are_wide(self) -> bool:
        """Whether most of the first are more than twice as wide as high, as NLVR's: such pictures
        need more room in a row."""
        while not self._found and self._read_on():
            pass
        entries = [entry for _, entry in list(self._found.values())[:_NUM_LOOKED_AT]]
        return 2 * sum(entry.width > 2 * entry.height for entry in entries) > len(entries)

    def find(self, key: str) -> Sample | None:
        """The sample with that key; None where there is none or it is damaged."""
        while key not in self._found:
            if not self._read_on():
                return None
        try:
            return read_sample(*self._found[key])
        except ShardError:
            return None

    def _read_on(self) -> bool:
        for tar in self._unread:
            try:
                entries = read_manifest(tar).samples
            except ShardError:
                continue
            for entry in entries:
                self._found.setdefault(entry.key, (tar, entry))
            return True
        return False


def _heldout_tars(run: RunFolder) -> Iterator[Path]:
    """Of the object shards, then of the image shards (all there is before distill ends)."""
    for folder in (run.objects, run.images):
        try:
            yield from read_catalog(folder).tars(folder, "heldout")
        except ShardError:
            continue


def grid_class(name: str, pictures: Pictures) -> str:
    """The style sheet's class of a grid of pictures, that of wide ones where they are."""
    return f"{name} wide" if pictures.are_wide else name


def thumbnail(image: bytes, *, longest_px: int) -> Thumbnail | None:
    """A picture of at most `longest_px` a side; None where it cannot be decoded."""
    try:
        return reduced(image, longest_px=longest_px).thumbnail()
    except ShardError:
        return None


def reduced(image: bytes, *, longest_px: int) -> Reduced:
    """A picture decoded, of at most `longest_px` a side; ShardError saying why it cannot be.

    Upright, as boxes count: what the browser would turn is turned here and has no EXIF any more.
    """
    try:
        with _opened(image) as picture:
            width, height = upright_size(picture.size, image)
            fits = max(picture.size) <= longest_px and len(image) <= _KEPT_BYTES
            picture.draft("RGB", (2 * longest_px, 2 * longest_px))
            as_it_is = fits and not picture.getexif() and picture.format in ("JPEG", "PNG")
            picture.load()
            small = upright(_flat(picture), image)
            small.thumbnail((longest_px, longest_px))
            kept = (image, str(picture.format)) if as_it_is else None
    # Decoders raise what they like over a broken picture: SyntaxError, struct.error, EOFError...
    except Exception as error:
        raise ShardError(
            f"picture: got {type(error).__name__}: {error}, expected one that Pillow decodes"
        ) from error
    return Reduced(picture=small, width=width, height=height, kept=kept)


def _opened(image: bytes) -> Image.Image:
    """As Pillow opens it, which refuses a decompression bomb and only warns of half of one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(pixels_alone(image)))


def _flat(picture: Image.Image) -> Image.Image:
    """RGB on white: JPEG has no transparency."""
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture.convert("RGB")
    seen = picture.convert("RGBA")
    ground = Image.new("RGBA", seen.size, "white")
    return Image.alpha_composite(ground, seen).convert("RGB")


def _jpeg(picture: Image.Image) -> bytes:
    """A JPEG, of so low a quality that not even noise takes more than `_MOST_BYTES`, if it can."""
    for quality in _QUALITIES:
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=quality, optimize=True)
        if out.tell() <= _MOST_BYTES:
            break
    return out.getvalue()


def data_uri(data: bytes, kind: str) -> str:
    """Bytes of a picture as a data URI; `kind` is "JPEG" or "PNG"."""
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode('ascii')}"
