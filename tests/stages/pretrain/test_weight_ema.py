"""The moving average of the student's weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from stages.pretrain.config import PretrainConfig
from stages.pretrain.weight_ema import WeightEma


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    net[1].weight.requires_grad_(False)
    return net


def test_the_average_is_that_of_a_loop() -> None:
    """Oracle: the recursion written out; decay (1 + k) / (10 + k) until it reaches exp(-4 / 8)."""
    net = _net()
    average = WeightEma(net, horizon=8, samples_per_step=4)
    wanted = net[0].weight.detach().clone()
    for k in range(12):
        with torch.no_grad():
            net[0].weight += torch.randn(2, 2)
        average.update()
        decay = min(math.exp(-0.5), (1 + k) / (10 + k))
        wanted = decay * wanted + (1 - decay) * net[0].weight.detach()
    torch.testing.assert_close(average.state()["0.weight"], wanted)
    assert average.state().keys() == {"0.weight", "0.bias", "1.bias"}, "what learns, no more"


def test_the_network_has_the_average_for_a_while() -> None:
    """Oracle: in the block the average's values, after it, also by an error, the network's own."""
    net = _net()
    average = WeightEma(net, horizon=100, samples_per_step=1)
    with torch.no_grad():
        net[0].weight += 1
    own, kept = net[0].weight.detach().clone(), average.state()["0.weight"].clone()
    with pytest.raises(KeyError), average.in_place():
        torch.testing.assert_close(net[0].weight.detach(), kept)
        raise KeyError
    torch.testing.assert_close(net[0].weight.detach(), own)


def test_a_copy_goes_on_from_its_state() -> None:
    """Oracle: an average that was never stopped."""
    nets = [_net(), _net()]
    averages = [WeightEma(net, horizon=50, samples_per_step=5) for net in nets]
    with torch.no_grad():
        for step in range(3):
            nets[0][0].weight += step
            averages[0].update()
        nets[1].load_state_dict(nets[0].state_dict())
        averages[1].load_state_dict(averages[0].state_dict())
        for average in averages:
            average.update()
    torch.testing.assert_close(averages[0].state(), averages[1].state())


@pytest.mark.parametrize("other", [{"precision": "bf16"}, {"zero_stage": 3}])
def test_weights_that_are_not_whole_are_refused(other: dict) -> None:
    """Oracle: the field's own words."""
    with pytest.raises(ValueError, match="average_samples: got 100 with precision"):
        PretrainConfig(average_samples=100, **other)
