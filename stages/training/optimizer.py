"""AdamW for the Transformer and SGD for the CNN, as one optimizer that ZeRO can partition.

Reached from `stages.training.engine`. Both papers train so (AdamwSGD in SOHO's released code);
DeepSpeed takes one optimizer. The kernels are PyTorch's own: fused ones on GPUs, which do what
apex's FusedAdam does and need no build, and foreach ones on CPUs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from stages.pretrain.config import PretrainConfig
from stages.student.network import Student


class AdamwSgd(torch.optim.Optimizer):
    """Steps each parameter group by the rule in its `rule`: "adamw" or "sgd"."""

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update from the gradients; parameters without a gradient stay as they are.

        Raises ValueError on a closure: neither rule evaluates the loss again.
        """
        if closure is not None:
            raise ValueError("AdamwSgd.step: got a closure, expected none")
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
            eps=1e-6,
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


def make_optimizer(student: Student, config: PretrainConfig) -> AdamwSgd:
    """A group for each part, each with and without decay: the CNN by SGD, text, fusion and heads by
    AdamW. Norms and biases have no decay unless `decay_norms`.

    A group keeps its peak rate in `peak_lr`; the schedule writes `lr`. Frozen parameters are in no
    group, and a group without any is left out.
    """
    groups: list[dict[str, Any]] = []
    for part, everything in parts_of(student).items():
        is_cnn = part == "cnn"
        for decays in (True, False):
            parameters = [
                p
                for p in everything
                if p.requires_grad and (p.dim() > 1 or config.decay_norms) == decays
            ]
            if not parameters:
                continue
            decay = config.weight_decay_cnn if is_cnn else config.weight_decay
            rule = _sgd_rule(config) if is_cnn else _adamw_rule(config, part)
            groups.append({"params": parameters, "weight_decay": decays * decay, **rule})
    return AdamwSgd(groups)


def parts_of(student: Student) -> dict[str, list[torch.nn.Parameter]]:
    """Each parameter once, by part: `cnn`, the ResNet; `text`, the word, position and type
    embeddings; `fusion`, the Transformer's layers; `heads`, everything else, which is new where
    these come from published weights."""
    parts = {
        "cnn": list(student.grid.resnet.parameters()),
        "text": list(student.embeddings.parameters()),
        "fusion": list(student.fusion.parameters()),
    }
    known = {id(p) for own in parts.values() for p in own}
    return {**parts, "heads": [p for p in student.parameters() if id(p) not in known]}


def freeze(student: Student, config: PretrainConfig) -> None:
    """Let the parts in `frozen` learn nothing."""
    for part in config.frozen:
        for parameter in parts_of(student)[part]:
            parameter.requires_grad_(False)


def _sgd_rule(config: PretrainConfig) -> dict[str, Any]:
    return {
        "rule": "sgd",
        "peak_lr": config.lr_cnn,
        "momentum": config.momentum,
        "nesterov": config.nesterov,
    }


def _adamw_rule(config: PretrainConfig, part: str) -> dict[str, Any]:
    own = {"text": config.lr_text, "fusion": None, "heads": config.lr_heads}[part]
    return {
        "rule": "adamw",
        "peak_lr": config.lr_transformer if own is None else own,
        "betas": config.betas,
    }
