"""The warning of an objective that does not leave its starting value."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stages.pretrain.config import PretrainConfig
from stages.pretrain.objectives.config import ItcConfig
from stages.training.monitoring.stuck_objectives import passes_due_step, stuck_objectives


def _lines(**losses: list[float]) -> list[dict[str, float]]:
    num = max(len(values) for values in losses.values())
    return [
        {"step": 10.0 * (n + 1), **{f"{name}/loss": values[n] for name, values in losses.items()}}
        for n in range(num)
    ]


def test_a_matching_loss_at_ln_2_is_named_with_what_to_try() -> None:
    """Oracle: itm stays at 0.693 but for noise, itc falls, mlm rises: the first and last are
    named."""
    lines = _lines(
        itm=[0.6931, 0.6950, 0.6920, 0.6931],
        itc=[4.8, 4.0, 3.5, 3.0],
        mlm=[6.0, 7.0, 7.0, 7.0],
    )
    sentences = stuck_objectives(lines)
    assert len(sentences) == 2
    assert sentences[0].startswith("itm does not learn: its loss was 0.693 at first and is 0.693")
    assert "itm.negatives itc" in sentences[0] and "step 40" in sentences[0]
    assert sentences[1].startswith("mlm does not learn")


def test_an_objective_that_its_start_has_solved_is_not_named() -> None:
    """Oracle: contrast whose weights are those of canonical correlation analysis is left out."""
    lines = _lines(itc=[1.34, 1.45, 1.44, 1.42], pra=[4.0, 3.0, 2.0, 1.5])
    start = replace(PretrainConfig(), itc=ItcConfig(weight=1.0, start="cca"))
    assert stuck_objectives(lines, start.solved_at_start) == []
    assert len(stuck_objectives(lines, PretrainConfig().solved_at_start)) == 1


def test_too_little_to_compare_names_nothing() -> None:
    """Oracle: two reports are one comparison of two noisy numbers; there may be none at all."""
    assert stuck_objectives(_lines(itm=[0.69, 0.69])) == []
    assert stuck_objectives([]) == []


@pytest.mark.parametrize(
    ("num_steps", "steps", "due"),
    [(95_000, (9400, 9500, 9600), 9500), (480, (390, 400, 410), 400), (330, (300, 330), None)],
)
def test_the_report_that_is_due_is_the_first_past_a_tenth_and_400_steps(
    num_steps: int, steps: tuple[int, ...], due: int | None
) -> None:
    """Oracle: by hand; a run of fewer steps has none."""
    before = (steps[0] - 10, *steps)
    found = [now for old, now in zip(before, steps) if passes_due_step(old, now, num_steps)]
    assert found == ([due] if due else [])
