"""AdamW for the Transformer and SGD for the CNN, as one optimizer that ZeRO can partition.

Both papers train so (AdamwSGD in SOHO's released code); DeepSpeed takes one optimizer. The kernels
are PyTorch's own: fused ones on GPUs, which do what apex's FusedAdam does and need no build, and
foreach ones on CPUs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from boxless.errors import BoxlessError


class AdamwSgd(torch.optim.Optimizer):
    """Steps each parameter group by the rule in its `rule`: "adamw" or "sgd". A group keeps its
    peak rate in `peak_lr`; the schedule writes `lr`. While `is_held`, a step changes nothing."""

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self.is_held = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update from the gradients; parameters without a gradient stay as they are.

        Raises ValueError on a closure: neither rule evaluates the loss again.
        """
        if closure is not None:
            raise BoxlessError("AdamwSgd.step: got a closure, expected none")
        if self.is_held:
            return
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters and group["rule"] == "adamw":
                self._adamw(group, parameters)
            elif parameters:
                self._sgd(group, parameters)

    def _adamw(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        for p in parameters:
            state = self.state[p]
            if not state:
                state["step"] = torch.tensor(0.0, device=p.device)
                state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg_sq"] = torch.zeros_like(p)
            # Fused kernels want the count beside the weights; a checkpoint may have it elsewhere.
            state["step"] = state["step"].to(p.device)
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,
            _gradients(parameters),
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            fused=is_fused(parameters[0].device),
            foreach=not is_fused(parameters[0].device),
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group.get("eps", 1e-6),
            maximize=False,
        )

    def _sgd(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        for p in parameters:
            if not self.state[p]:
                # A zero buffer makes the first step the same as PyTorch's empty one (dampening 0).
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        sgd(
            parameters,
            _gradients(parameters),
            [self.state[p]["momentum_buffer"] for p in parameters],
            fused=is_fused(parameters[0].device),
            foreach=not is_fused(parameters[0].device),
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=group["nesterov"],
            maximize=False,
        )


def is_fused(device: torch.device) -> bool:
    """Whether one kernel steps all parameters on `device`, or foreach ones do."""
    return device.type == "cuda"


def _gradients(parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def parameter_groups(
    parameters: Iterable[nn.Parameter],
    *,
    weight_decay: float,
    decay_norms: bool,
    rule: dict[str, Any],
) -> list[dict[str, Any]]:
    """Two groups for AdamwSgd, with and without decay: norms and biases have none unless
    `decay_norms`.

    rule: `rule`, `peak_lr` and what else the rule takes. Frozen parameters are in no group, and a
    group without any is left out.
    """
    learning = [p for p in parameters if p.requires_grad]
    groups = []
    for decays in (True, False):
        own = [p for p in learning if (p.dim() > 1 or decay_norms) == decays]
        if own:
            groups.append({"params": own, "weight_decay": decays * weight_decay, **rule})
    return groups


def adamw_rule(lr: float, betas: tuple[float, float], eps: float = 1e-6) -> dict[str, Any]:
    """AdamW with the peak rate `lr`."""
    return {"rule": "adamw", "peak_lr": lr, "betas": betas, "eps": eps}


def sgd_rule(lr: float, momentum: float, *, nesterov: bool) -> dict[str, Any]:
    """SGD with momentum and the peak rate `lr`."""
    return {"rule": "sgd", "peak_lr": lr, "momentum": momentum, "nesterov": nesterov}
