"""What holds for all tests: which are slow, for which reasons one may be skipped, what none leaves.

A skip is easily overlooked: a package that is missing from the lists would silently switch off what
it is needed for. So a skip for any other reason fails, and says so.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

MAY_SKIP = {
    # Packages and programs that are optional or need root.
    r"detectron2 is not installed": "built against the installed torch; not on the package index",
    r"(lmdb|lz4|msgpack|onnxscript|onnxruntime) is not installed": "extras, which the dev extra has",
    r"aiohttp, which is not installed": "an extra of fsspec, which the dev extra has",
    r"no Chromium is installed": "a browser; pages are tested without one too",
    r"no C\+\+ compiler here": "torch.compile's; Boxless needs none",
    r"make is not installed": "the command line works without make",
    r"needs .*(Slurm|slurmctld|openssh-server|root)": "a cluster on this machine, started by root",
    r"namespaces may be forbidden here": "containers often forbid them",
    r"only Linux tells children": "Boxless is for Linux; most tests run elsewhere too",
    r"this processor has no fp16": "older CPUs",
    r"mallopt is glibc's": "other C libraries have other allocators",
    r"there is no GPU": "the same is tested on processors, with what stands in for one",
    # What takes minutes has a target of its own.
    r"takes minutes: make": "named in the reason",
    # Material that cannot be committed, beside the project.
    r"BOXLESS_PHOTOGRAPHS names no folder": "photographs of one's own",
    r"\.\./shared": "large or licensed",
    r"beside (this repository|the project)": "large or licensed",
}
"""Patterns of reasons, and why a test may be missing for them."""


SLOW = (
    # Processes that import torch, real trainings, whole runs, browsers.
    "test_benchmarks_*.py",
    "test_kill_drill.py",
    "test_make.py",
    "test_skips.py",
    "test_two_writers.py",
    "test_public_api.py",
    "documentation/*.py",
    "test_processes.py",
    "test_slurm*.py",
    "test_supervisor.py",
    "test_three_nodes.py",
    "test_ablation.py",
    "test_command_line.py",
    "test_run_stages.py",
    "test_export*.py",
    "test_inspect*.py",
    "test_join.py",
    "test_metrics_vqa.py",
    "test_node_check.py",
    "test_preloading.py",
    "test_collectives.py",
    "test_view*.py",
    "test_report*.py",
    "test_retry.py",
    "test_sources.py",
    "test_teacher_commands.py",
    "test_claims.py",
    "test_fuzz.py",
    "test_ingest_run.py",
    "test_mixture.py",
    "test_old_run.py",
    "test_orphans.py",
    "test_remote_store.py",
    "test_stream.py",
    "test_batch_invariance.py",
    "test_distill_kill.py",
    "test_distill_run.py",
    "test_encoder_inputs.py",
    "test_finetune_ranks.py",
    "test_distill_parser.py",
    "test_weight_ema.py",
    "test_pretrain_engine.py",
    "test_pretrain_run.py",
    "test_pretrain_validation.py",
    "test_repack.py",
    "test_repair.py",
    "test_sigterm.py",
    "test_similarity_embeddings.py",
    "test_soho_*.py",
    "test_student_fast_paths.py",
    "test_student_use.py",
    "test_task*.py",
    "test_teacher_beside_detectron2.py",
    "test_teacher_detectron2.py",
    "test_teacher_golden.py",
    "test_teacher_ranks.py",
    "test_teacher_teach.py",
    "test_teacher_train_resnet.py",
    "test_training_*.py",
    "test_transfer_*.py",
    "test_transformers_teacher.py",
    "test_inference.py",
)
"""Files that take more than a few seconds, marked `slow`: `make test-fast` leaves them out."""


@pytest.hookimpl(tryfirst=True)
@pytest.fixture(scope="module", autouse=True)
def _leaves_no_ranks() -> Iterator[None]:
    """A test file that trained in this process leaves torch's default process group, which the next
    file's tests, and the ranks that they fork, could not make again."""
    yield
    torch, comm = sys.modules.get("torch"), sys.modules.get("deepspeed.comm.comm")
    if torch is None or not torch.distributed.is_initialized():
        return
    if comm is not None and comm.is_initialized():
        comm.destroy_process_group()  # DeepSpeed's own groups refer to the default one
    else:
        torch.distributed.destroy_process_group()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow files, before -m chooses."""
    tests = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(tests):
            place = item.path.relative_to(tests)
            if any(place.match(pattern) for pattern in SLOW):
                item.add_marker(pytest.mark.slow)


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
