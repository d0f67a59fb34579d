"""Estimates how wide a browser draws a text, for the tags on pictures."""

from __future__ import annotations

import functools

from PIL import ImageFont

# Wider by this share, as browsers' fonts are than Pillow's.
_MARGIN = 1.06


@functools.lru_cache(maxsize=16)
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    """The font that comes with Pillow, Aileron, at that size; it has little more than ASCII."""
    found = ImageFont.load_default(size_px)
    if not isinstance(found, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow was built without FreeType; install its usual wheel")
    return found


def width_px(text: str, size_px: int) -> float:
    """About how wide `text` is in a browser's sans-serif; letters beyond ASCII count as square."""
    if text.isascii():
        return _MARGIN * _font(size_px).getlength(text)
    return float(size_px * len(text))
