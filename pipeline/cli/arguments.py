"""Values of command-line arguments."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def user_path(text: str) -> Path:
    """A path with ~ expanded, which shells do not do in `--run=~/x`. An empty one, as of a variable
    that is not set, would mean the folder where the command is given."""
    if not text:
        raise argparse.ArgumentTypeError(
            "got an empty path, expected a name (. means the folder where you are)"
        )
    return Path(os.path.expanduser(text))  # unlike Path.expanduser, no error for an unknown user
