"""tests/conftest.py: a skip must have a listed reason."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = "pytester"


def test_a_skip_for_an_unlisted_reason_fails(pytester: pytest.Pytester) -> None:
    """Oracle: four tests and two files, skipped for a reason that is listed and for one that is
    not: those of the first kind are skipped, those of the second fail and say where the list is."""
    pytester.makeconftest((Path(__file__).parent / "conftest.py").read_text())
    for name, reason in (("listed", "no Chromium is installed"), ("unlisted", "no time today")):
        pytester.makepyfile(
            **{
                f"test_{name}": f"""
import pytest

@pytest.mark.skipif(True, reason={reason!r})
def test_by_mark(): ...

def test_by_call():
    pytest.skip({reason!r})
""",
                f"test_{name}_file": f"import pytest\npytest.skip({reason!r}, allow_module_level=True)",
            }
        )
    result = pytester.runpytest_inprocess(
        "-p", "no:cacheprovider", "--continue-on-collection-errors"
    )
    outcomes = result.parseoutcomes()
    assert outcomes["skipped"] == 3
    assert outcomes["failed"] + outcomes["errors"] == 3
    result.stdout.fnmatch_lines(
        ["*skipped (*no time today*not among MAY_SKIP in tests/conftest.py*"]
    )
