"""``python -m launch.encoded_rank WORD``: a rank whose module, arguments and environment are in one
word of letters that no shell changes."""

from __future__ import annotations

import base64
import json
import os
import runpy
import sys
from collections.abc import Mapping, Sequence


def encode(module: str, args: Sequence[str], env: Mapping[str, str]) -> str:
    """The word."""
    text = json.dumps({"module": module, "args": list(args), "env": dict(env)}, sort_keys=True)
    return base64.urlsafe_b64encode(text.encode()).decode()


def main() -> None:
    """Become the rank."""
    rank = json.loads(base64.urlsafe_b64decode(sys.argv[1]))
    os.environ.update(rank["env"])
    sys.argv[1:] = rank["args"]
    runpy.run_module(rank["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
