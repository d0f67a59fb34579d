"""Files of precomputed features read by offset; oracle: their bytes, and the process's own list of
open files."""

from __future__ import annotations

import os
from pathlib import Path

from stages.distill.precomputed.files import MAX_OPEN, OpenFiles
from stages.distill.precomputed.index import Place


def num_open(folder: Path) -> int:
    links = Path("/proc/self/fd").iterdir()
    return sum(1 for link in links if os.path.realpath(link).startswith(str(folder)))


def test_few_files_are_open_at_a_time(tmp_path: Path) -> None:
    """Three times as many as may be open, in two rounds; all are closed with the reader."""
    paths = [tmp_path / f"{number}.tsv" for number in range(3 * MAX_OPEN)]
    for number, path in enumerate(paths):
        path.write_bytes(b"x%03d" % number)
    files = OpenFiles(paths)
    for number in (*range(len(paths)), *range(len(paths))):
        assert files.read(Place(number, 1, 3)) == b"%03d" % number
        assert num_open(tmp_path) <= MAX_OPEN
    del files
    assert num_open(tmp_path) == 0
