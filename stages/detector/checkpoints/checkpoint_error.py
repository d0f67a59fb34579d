"""What every reader of other people's weights and features raises."""

from __future__ import annotations

from boxless.errors import BoxlessError


class CheckpointError(BoxlessError):
    """A file that cannot be used; the message names it, what was got, expected, and to be done."""
