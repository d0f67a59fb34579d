"""Lets transformers' Auto classes open a student folder with `trust_remote_code=True`.

A folder names, in `auto_map`, classes of a Python file that lies in it. Ours only imports Boxless's
own classes, so the folder needs Boxless installed, and gets the fixes of what is installed.
"""

from __future__ import annotations

from pathlib import Path

from sharding.writing.atomic import write_text

_MODULE = "boxless_student"
_SOURCE = '''"""Names the classes of this folder for transformers' Auto classes; pip install boxless."""

from boxless import Student, StudentNetConfig, StudentProcessor

__all__ = ["Student", "StudentNetConfig", "StudentProcessor"]
'''
NET_MAP = {"AutoConfig": f"{_MODULE}.StudentNetConfig", "AutoModel": f"{_MODULE}.Student"}
"""For config.json."""
PROCESSOR_MAP = dict.fromkeys(
    ("AutoProcessor", "AutoImageProcessor"), f"{_MODULE}.StudentProcessor"
)
"""For preprocessor_config.json; of pictures alone the same processor makes what a student takes."""


def write_module(folder: Path) -> None:
    """Write the file that both maps name into `folder`."""
    write_text(folder / f"{_MODULE}.py", _SOURCE)


class InstalledClass:
    """A class that the file only imports: transformers must not copy its source into folders."""

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "") -> None:
        """Called by the Auto classes for what a folder's own code defines; nothing to do."""
