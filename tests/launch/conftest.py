"""A Slurm of the test module's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.slurm_cluster import running_slurm


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a Slurm that runs while the module's tests do."""
    with running_slurm(Path(tmp_path_factory.mktemp("slurm"))) as folder:
        yield folder
