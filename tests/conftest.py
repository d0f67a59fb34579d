"""What holds for all tests: a test may be skipped only for a reason that is listed here.

A skip is easily overlooked: a package that is missing from the lists would silently switch off what
it is needed for. So a skip for any other reason fails, and says so.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any

import pytest

MAY_SKIP = {
    # Packages and programs that are optional or need root.
    r"detectron2 is not installed": "built against the installed torch; not on the package index",
    r"(lmdb|lz4|msgpack) is not installed": "extras, which the dev extra has",
    r"aiohttp, which is not installed": "an extra of fsspec, which the dev extra has",
    r"mkdocs.* is not installed": "the documentation's extra",
    r"no Chromium is installed": "a browser; pages are tested without one too",
    r"no C\+\+ compiler here": "torch.compile's; Boxless needs none",
    r"make is not installed": "the command line works without make",
    r"needs .*(Slurm|slurmctld|openssh-server|root)": "a cluster on this machine, started by root",
    r"namespaces may be forbidden here": "containers often forbid them",
    r"only Linux tells children": "Boxless is for Linux; most tests run elsewhere too",
    r"this processor has no fp16": "older CPUs",
    # What takes minutes has a target of its own.
    r"takes minutes: make": "named in the reason",
    # Material that cannot be committed, beside the project.
    r"BOXLESS_PHOTOGRAPHS names no folder": "photographs of one's own",
    r"\.\./shared": "large or licensed",
    r"beside (this repository|the project)": "large or licensed",
}
"""Patterns of reasons, and why a test may be missing for them."""


def _is_listed(reason: str) -> bool:
    return any(re.search(pattern, reason) for pattern in MAY_SKIP)


def _fail_if_unlisted(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    longrepr = report.longrepr
    reason = str(longrepr[2] if isinstance(longrepr, tuple) else longrepr)
    if not _is_listed(reason):
        report.outcome = "failed"
        report.longrepr = (
            f"{report.nodeid}: skipped ({reason}), which is not among MAY_SKIP in tests/conftest.py: "
            "get what it needs, or list the reason there with a word on why it may be missing"
        )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, None]:
    outcome = yield
    _fail_if_unlisted(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, None]:
    outcome = yield
    _fail_if_unlisted(outcome.get_result())
