"""What NLVR's annotation files (lil-lab/nlvr) call things."""

from __future__ import annotations

COLORS = {"Black": "black", "#0099ff": "blue", "Yellow": "yellow"}
"""The `color` of an object of `structured_rep`, and the word for it."""
