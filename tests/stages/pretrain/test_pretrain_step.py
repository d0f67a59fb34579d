"""What a step asks of its device, and what it divides its losses by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pretrain_fixtures import (
    TINY,
    part_of,
    random_batch,
    tiny_student,
    toy_collate,
    toy_samples,
    toy_tokenizer,
)

from benchmarks.operator_counts import OperatorCounts
from stages.pretrain.config import PretrainConfig
from stages.pretrain.data.batch import Batch
from stages.pretrain.model import PretrainModel, make_objectives
from stages.pretrain.objectives.config import ItcConfig, ItmConfig, OmvmConfig, PraConfig

CONFIG = PretrainConfig(
    itc=ItcConfig(weight=0.5),
    itm=ItmConfig(negatives="itc"),
    omvm=OmvmConfig(weight=0.7),
    pra=PraConfig(weight=0.3, min_similarity=0.3),
)


def _model(config: PretrainConfig, **changes: Any) -> PretrainModel:
    student = tiny_student(replace(TINY, itc_size=8, **changes))
    return PretrainModel(student, make_objectives(config))


def _collated(model: PretrainModel, position: int) -> Batch:
    collate = toy_collate(
        objectives=[one for _, one in model.objectives.values()],
        fusing=model.fusing,
        seed=1,
        captions_per_picture=2,
    )
    return collate(position, toy_samples(24, 6)[:4])


@pytest.mark.parametrize("level", ["fusion", "encoders"])
def test_a_step_reads_nothing_from_the_device(level: str) -> None:
    """Every objective of KD-VLP and the contrastive ones, forward and backward. Oracle: operators
    whose result the host waits for are counted one by one: none; and the meta device, which has no
    values to give, goes through it too. That it counts what it shall is seen by a plain step."""
    model = _model(CONFIG, pra_level=level).train()
    with OperatorCounts() as plain:
        assert torch.tensor([True]).item() and len(torch.arange(3)[torch.tensor([True] * 3)]) == 3
        torch.arange(2).tolist()
    assert plain.reads == ["_local_scalar_dense", "index", "tolist"]
    batch = _collated(model, 0)
    assert {"mlm", "omvm", "pra", "itc/texts"} <= batch.places.keys()
    assert len(batch.swapped) and (batch.output_places is None) == (level == "fusion")
    model.begin_step([batch], 1)
    model.sparse_words = False  # the CPU's own way, which asks which pieces are padding
    with OperatorCounts() as counted:
        loss, _ = model(batch)
        loss.backward()
    assert counted.reads == []
    far = _collated(model, 0).to(torch.device("meta"))
    model.to("meta")
    model._mean_labels = {name: value.to("meta") for name, value in model._mean_labels.items()}
    loss, outputs = model(far)
    loss.backward()
    assert loss.device.type == "meta" and set(outputs) == set(model.objectives)


def test_places_of_collate_change_no_loss() -> None:
    """Oracle: the losses of the same batch whose places are found where they are needed."""
    model = _model(CONFIG)
    batch = _collated(model, 1)
    torch.manual_seed(0)
    _, wanted = model(_collated(model, 1))
    bare = replace(batch, places={}, output_places=None, fills_canvas=None)
    torch.manual_seed(0)
    _, got = model(bare)
    for name, output in wanted.items():
        torch.testing.assert_close(got[name].loss, output.loss, rtol=1e-6, atol=1e-6)


def test_micro_batches_share_their_labels() -> None:
    """Four pictures with unlike numbers of labels. Oracle: loss and gradient of one micro-batch of
    all four are those of four micro-batches of one; means of micro-batches differ."""
    model = _model(replace(CONFIG, itc=ItcConfig(), itm=ItmConfig())).eval()
    whole = random_batch(3, pictures=4)
    whole.pixels = torch.randn_like(whole.pixels)
    random = np.random.default_rng(0)
    for _, objective in model.objectives.values():
        if objective.name != "itm":  # whose mismatched captions would be of the whole
            objective.mask(whole, toy_tokenizer(), random)
    parts = [part_of(whole, picture) for picture in range(4)]
    loss, gradients = _mean_of(model, [whole])
    plain, _ = _mean_of(model, parts, gives_means=False)
    shared, of_parts = _mean_of(model, parts)
    torch.testing.assert_close(shared, loss, rtol=1e-5, atol=1e-6)
    assert (plain - loss).abs() > 1e-3
    assert of_parts.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(of_parts[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def _mean_of(
    model: PretrainModel, batches: Sequence[Batch], *, gives_means: bool = True
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradient as the loop has them, the mean over micro-batches."""
    model.zero_grad()
    model.begin_step(batches, len(batches))
    total = torch.zeros(())
    for batch in batches:
        # In evaluation mode nothing is drawn and no statistic moves.
        means = dict(model._mean_labels) if gives_means else {}
        loss, _ = model(replace(batch, mean_labels=means))
        (loss / len(batches)).backward()
        total += loss.detach() / len(batches)
    found = {n: p.grad.to_dense() for n, p in model.named_parameters() if p.grad is not None}
    return total, {name: gradient.clone() for name, gradient in found.items()}
