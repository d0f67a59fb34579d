"""How wide a text is: Pillow's own font, which comes with it, for tags on pictures."""

from __future__ import annotations

import functools
import unicodedata

from PIL import ImageFont

# Wider by this share, as browsers' fonts are than Pillow's.
_MARGIN = 1.06
_KNOWN = {
    "\N{HORIZONTAL ELLIPSIS}": "...",
    "\N{MULTIPLICATION SIGN}": "x",
    "\N{MIDDLE DOT}": "-",
    "\N{NO-BREAK SPACE}": " ",
}


@functools.lru_cache(maxsize=16)
def font(size_px: int) -> ImageFont.FreeTypeFont:
    """The font that comes with Pillow, Aileron, at that size; it has little more than ASCII."""
    found = ImageFont.load_default(size_px)
    if not isinstance(found, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow was built without FreeType; install its usual wheel")
    return found


def plain(text: str) -> str:
    """The text in letters that the font has: accents are taken off, what is left becomes "?"."""
    bare = unicodedata.normalize("NFKD", "".join(_KNOWN.get(letter, letter) for letter in text))
    kept = (letter for letter in bare if not unicodedata.combining(letter))
    return "".join(letter if " " <= letter <= "~" else "?" for letter in kept)


def width_px(text: str, size_px: int) -> float:
    """How wide a browser draws it in its sans-serif, about; of other letters as wide as high."""
    if text.isascii():
        return _MARGIN * font(size_px).getlength(plain(text))
    return float(size_px * len(text))
