"""Colours of objects, distinguishable with all kinds of colour vision.

They were found by search: any two are at least 0.11 apart in OKLab (Ottosson 2020) to normal eyes
and to those without red, green or blue cones, as Machado, Oliveira and Fernandes simulate these
(2009, severity 1). Numbers on them are black, at a contrast of 5 or more.
"""

from __future__ import annotations

COLOURS = ("#f78b00", "#37a0ff", "#f4da40", "#e63d23", "#83e2ff", "#038c7d", "#ffffff", "#d19fbb")


def colour(index: int) -> str:
    """That of the object at `index`; the eight come again and again."""
    return COLOURS[index % len(COLOURS)]
