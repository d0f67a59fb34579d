"""Text that runs on from line to line, in several colours and sizes, drawn with Pillow.

Pieces are placed as they come; blocks begin on lines of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageDraw

from pipeline.pages.shards.fonts import font, plain

_LEADING = 1.38
_CHIP_PADDING_PX = 4
_SHADOW = "#8f9096"


@dataclass(frozen=True)
class Style:
    """Letters: their size, their colour, and what is behind or below them, if anything."""

    size_px: int
    ink: str
    ground: str | None = None
    underline: str | None = None
    is_dotted: bool = False


@dataclass(frozen=True)
class _Piece:
    x: float
    y: float
    wide: float
    text: str
    style: Style


class Flow:
    """Pieces of text in lines of `width` pixels."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._pieces: list[_Piece] = []
        self._x, self._y, self._high = 0.0, 0.0, 0.0
        self._num_lines = 1

    @property
    def height(self) -> int:
        """Of all lines so far, in pixels."""
        return round(self._y + self._high)

    def add(self, text: str, style: Style, *, after_px: float = 0) -> None:
        """Words that break where they must, with so much room behind them."""
        words = plain(text).split(" ")
        for place, word in enumerate(words):
            space = " " if place < len(words) - 1 else ""
            self._place(word, space, style)
        self._x += after_px

    def add_whole(self, text: str, style: Style, *, after_px: float = 0) -> None:
        """Text that is not broken, though it may be a sentence."""
        self._place(plain(text), "", style)
        self._x += after_px

    def num_lines_with(self, wide: float) -> int:
        """Lines of the block, were so many pixels more to go in at once."""
        return self._num_lines + (self._x > 0 and self._x + wide > self._width)

    def end_line(self, below_px: float = 0) -> None:
        """Ends the block; the next begins so many pixels lower."""
        if self._x > 0:
            self.break_line()
            self._y += below_px
        self._num_lines = 1

    def draw(self, image: Image.Image, at: tuple[int, int]) -> None:
        """Draws all pieces, from that corner on."""
        pen = ImageDraw.Draw(image)
        for piece in self._pieces:
            _draw(pen, piece, at)

    def _place(self, word: str, space: str, style: Style) -> None:
        letters = font(style.size_px)
        padding = 2 * _CHIP_PADDING_PX if style.ground else 0
        wide = letters.getlength(word) + padding
        if self._x > 0 and self._x + wide > self._width:
            self.break_line()
        while wide > self._width and len(word) > 1:  # one word wider than a line
            word = word[:-1]
            wide = letters.getlength(word) + padding
        whole = word + space
        self._pieces.append(
            _Piece(self._x, self._y, letters.getlength(whole) + padding, whole, style)
        )
        self._x += letters.getlength(whole) + padding
        self._high = max(self._high, _LEADING * style.size_px)

    def break_line(self) -> None:
        """Goes on at the beginning of the next line."""
        self._x = 0.0
        self._y += self._high
        self._high = 0.0
        self._num_lines += 1


def _draw(pen: ImageDraw.ImageDraw, piece: _Piece, at: tuple[int, int]) -> None:
    style = piece.style
    x, y = at[0] + piece.x, at[1] + piece.y
    foot = round(y + 1.2 * style.size_px)
    if style.ground:
        place = (x, y + 1, x + piece.wide - 3, foot)
        pen.rounded_rectangle(place, 3, fill=style.ground, outline="#00000080")
        middle = (x + (piece.wide - 3) / 2, (y + 1 + foot) / 2)
        pen.text(middle, piece.text, fill=style.ink, font=font(style.size_px), anchor="mm")
        return
    pen.text(
        (x, y + 0.95 * style.size_px),
        piece.text,
        fill=style.ink,
        font=font(style.size_px),
        anchor="ls",
    )
    if style.underline is None:
        return
    if style.is_dotted:
        for dot in range(round(x), round(x + piece.wide), 4):
            pen.rectangle((dot, foot - 1, dot + 1, foot), fill=style.underline)
    else:
        pen.rectangle((x, foot - 2, x + piece.wide - 1, foot), fill=style.underline)
        # Else a white line could not be seen.
        pen.line((x, foot + 1, x + piece.wide - 1, foot + 1), fill=_SHADOW)
