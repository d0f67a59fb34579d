"""The base class of every error that is meant for the user.

It imports nothing, and every folder may import it.
"""

from __future__ import annotations


class BoxlessError(ValueError):
    """An error that the user can fix: its message says what was got, what was expected and what to
    do. The command line shows it without a traceback; any other exception is a bug."""
