"""Pretraining's optimizer: SGD for the CNN, AdamW for all else."""

from __future__ import annotations

from torch import nn

from stages.pretrain.config import PretrainConfig
from stages.student.network import Student
from stages.training.optimizer import AdamwSgd, adamw_rule, parameter_groups, sgd_rule


def make_optimizer(student: Student, config: PretrainConfig) -> AdamwSgd:
    """A group for each rate, each with and without decay: the CNN by SGD; by AdamW text, fusion and
    heads, together where they learn at one rate. Norms and biases have no decay unless
    `decay_norms`."""
    parts = parts_of(student)
    cnn = {id(parameter) for parameter in parts["cnn"]}
    by_rate: dict[float, list[nn.Parameter]] = {config.lr_transformer: []}
    rates = {
        id(parameter): config.lr_transformer if own is None else own
        for part, own in (
            ("text", config.lr_text),
            ("projection", config.lr_heads),
            ("heads", config.lr_heads),
            ("alignment", config.lr_heads if config.lr_alignment is None else config.lr_alignment),
        )
        for parameter in parts[part]
    }
    for parameter in student.parameters():
        if id(parameter) not in cnn:
            rate = rates.get(id(parameter), config.lr_transformer)
            by_rate.setdefault(rate, []).append(parameter)
    groups = []
    for rate, parameters in by_rate.items():
        groups += parameter_groups(
            parameters,
            weight_decay=config.weight_decay,
            decay_norms=config.decay_norms,
            rule=adamw_rule(rate, config.betas),
        )
    groups += parameter_groups(
        parts["cnn"],
        weight_decay=config.weight_decay_cnn,
        decay_norms=config.decay_norms,
        rule=sgd_rule(config.lr_cnn, config.momentum, nesterov=config.nesterov),
    )
    return AdamwSgd(groups)


def parts_of(student: Student) -> dict[str, list[nn.Parameter]]:
    """Each parameter once, by part: `cnn`, the ResNet; `text`, the word, position and type
    embeddings; `fusion`, the Transformer's layers; `projection`, from the CNN's channels to cells;
    `alignment`, the maps of the alignment head; `heads`, everything else. The last three are new
    where the others come from published weights."""
    parts = {
        "cnn": list(student.grid.resnet.parameters()),
        "text": list(student.embeddings.parameters()),
        "fusion": list(student.fusion.parameters()),
        "projection": list(student.grid.project.parameters()),
        "alignment": list(student.align_head.parameters()),
    }
    known = {id(p) for own in parts.values() for p in own}
    return {**parts, "heads": [p for p in student.parameters() if id(p) not in known]}


def freeze(student: Student, config: PretrainConfig) -> None:
    """Let the parts in `frozen` learn nothing."""
    parts = parts_of(student)
    parts["heads"] += parts.pop("alignment")
    for part in config.frozen:
        for parameter in parts[part]:
            parameter.requires_grad_(False)
