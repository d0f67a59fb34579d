"""What ranks are launched with. Oracle: the files of this checkout."""

from __future__ import annotations

import importlib.util

import pytest

from pipeline.runner.launch_plan import PRETRAIN_MODULES


@pytest.mark.parametrize("name", [name for name in PRETRAIN_MODULES if "." in name])
def test_modules_that_are_imported_before_ranks_are_forked_exist(name: str) -> None:
    """One that does not is left out without a word: ranks would import what it should have."""
    assert importlib.util.find_spec(name) is not None
