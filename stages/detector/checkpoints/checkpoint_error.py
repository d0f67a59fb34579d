"""The error of every reader of other projects' weights and features."""

from __future__ import annotations

from boxless.errors import BoxlessError


class CheckpointError(BoxlessError):
    """A file that cannot be used; the message names it, what was got, expected, and to be done."""
