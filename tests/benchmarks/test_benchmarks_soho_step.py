"""The SOHO step's benchmark: the released way and ours give the same, whichever waste is kept."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from benchmarks.training import soho_step
from benchmarks.training.soho_released import ReleasedSoho, Waste

WASTES = [Waste(), *(Waste(**{one.name: False}) for one in fields(Waste))]


@pytest.mark.parametrize("waste", WASTES, ids=["all"] + [f"no {one.name}" for one in fields(Waste)])
def test_the_released_way_is_the_same_work(waste: Waste) -> None:
    """Oracle: our model under the released settings, which the golden numbers hold; its loss, all
    gradients (`check_same` stops on a difference) and the codebook after the step."""
    size = soho_step.SIZES["tiny"]
    model = soho_step.make_model(size, torch.device("cpu"))
    batch = soho_step.make_batch(size, model)
    released = ReleasedSoho(model.student, waste).train()
    soho_step.check_same(model, released, batch)
    assert model.student.dictionary is not None
    codes = model.student.dictionary.codes
    torch.testing.assert_close(released.neck.vq.embed, codes, rtol=1e-4, atol=1e-4)
    assert (released.neck.vq.cluster_size > 0).sum() > 3


def test_it_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a line for each way, and the share of the peak in half precision."""
    for given in (["--parts"], ["--precision", "bf16"]):
        argv = ["soho_step", "--size", "tiny", "--rounds", "1", "--threads", "1", *given]
        monkeypatch.setattr("sys.argv", argv)
        soho_step.main()
    printed = capsys.readouterr().out
    assert all(f"without {one.name}" in printed for one in fields(Waste))
    assert "of a bf16 matrix product's" in printed
