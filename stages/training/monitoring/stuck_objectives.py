"""Detects objectives whose loss does not fall."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

SHARE_OF_RUN = 0.1
"""How much of a run may pass before an objective should have moved."""
FEWEST_STEPS = 400
"""Steps that may pass in any case. In the toy recipes matching, the last to move, does so after 150
to 300, whatever the length of the run."""
SMALLEST_FALL = 0.02
"""Fall of a loss, as a share of its first value, from which it counts as learning."""
WHAT_TO_TRY = {
    "itm": "published weights to start from, pretrain.itc.weight with itm.negatives itc, or a "
    "higher pretrain.lr_heads",
    "itc": "a larger pretrain.micro_batch_size or itc.start cca",
    "mlm": "a higher pretrain.lr_transformer, or student.pretrained_text",
    "omvm": "a higher pretrain.lr_heads, or the cosine feature loss",
    "pra": "checking the teacher's labels and pra.min_similarity, or region cell",
    "mvm": "a lower mvm.temperature",
}


def passes_due_step(before: int, now: int, num_steps: int) -> bool:
    """Whether the step at which all should have moved lies after `before` and not after `now`.
    A shorter run has none."""
    return before < max(SHARE_OF_RUN * num_steps, FEWEST_STEPS) <= now


def stuck_objectives(
    lines: Sequence[Mapping[str, float]], solved_at_start: Collection[str] = ()
) -> list[str]:
    """A sentence for each objective that has not learned; none of those with less than 3 reports.

    lines: the metrics so far, the newest last, with `step` and each objective's NAME/loss.
    solved_at_start: objectives that are left out, as dropout and other pairs may raise the loss
        that the first weights have.
    """
    sentences = []
    for name in sorted(lines[-1] if lines else ()):
        objective, _, figure = name.partition("/")
        values = [line[name] for line in lines if name in line]
        is_asked = figure == "loss" and objective not in solved_at_start
        if not is_asked or len(values) < 3 or values[0] <= 0:
            continue
        # Half of what there is, for single reports are noisy.
        recent = values[len(values) // 2 :]
        now = sum(recent) / len(recent)
        if now > (1 - SMALLEST_FALL) * values[0]:
            hint = WHAT_TO_TRY.get(objective, "a higher rate")
            sentences.append(
                f"{objective} does not learn: its loss was {values[0]:.3f} at first and is "
                f"{now:.3f} now. Try {hint}. This is step {lines[-1]['step']:.0f}"
            )
    return sentences
