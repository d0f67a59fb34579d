"""Checkpoints of the released SOHO code (`soho_res18_*.pth`): read into a student, and written.

The names are those of researchmm/soho, 95824a8: backbone in torchvision's layout, neck, BERT, two
heads.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from boxless.errors import BoxlessError
from sharding.writing.atomic import replacing
from stages.student.checkpoints.torch_file import read_checkpoint
from stages.student.network import Student
from stages.student.vision.resnet import torchvision_name
from stages.student.vision.visual_dictionary import Dictionary

RENAMED = (
    (r"grid\.project\.", "neck.conv.conv."),
    (r"neck\.norm\.", "neck.conv.bn."),
    (r"neck\.gate\.", "neck.gate_fc.conv."),
    (r"neck\.gate_norm\.", "neck.gate_fc.bn."),
    (r"neck\.code_line\.", "neck.pos_line."),
    (r"neck\.dictionary\.codes$", "neck.vq.embed"),
    (r"neck\.dictionary\.sums$", "neck.vq.embed_avg"),
    (r"neck\.dictionary\.counts$", "neck.vq.cluster_size"),
    (r"neck\.dictionary\.num_seen$", "neck.vq.cluster_sum"),
    (r"cell_norm\.", "neck.ln."),
    (r"visual_mask_embedding$", "neck.mask_emb.weight"),
    (r"embeddings\.", "language.bert.embeddings."),
    (r"fusion\.", "language.bert.encoder."),
    (r"itm_head\.classify\.", "head.match_class."),
)
"""The beginning of our names, and SOHO's names for the same."""
RESNET = "grid.resnet."
OURS_ALONE = ("object_head.", "neck.dictionary.age", "neck.dictionary.started")
TIED = ("mask_l_fc.weight", "language.bert.embeddings.word_embeddings.weight")
UNUSED = ("language.bert.embeddings.position_ids", "language.bert.pooler.")
"""What some versions of BERT add to a checkpoint, and SOHO's model does not use."""


def official_name(name: str) -> str | None:
    """Our parameter or buffer in SOHO's names; None for what SOHO does not have.

    Raises ValueError for a part of a student that is not built as SOHO's.
    """
    if name.startswith(OURS_ALONE):
        return None
    if name.startswith(RESNET):
        return f"backbone.{torchvision_name(name.removeprefix(RESNET))}"
    for pattern, official in RENAMED:
        if match := re.match(pattern, name):
            return official + name[match.end() :]
    raise BoxlessError(
        f"{name}: got a student with this weight, which SOHO does not have; expected neck.kind "
        "soho, mlm_head tied and itm_head linear"
    )


def load_soho(student: Student, path: Path) -> None:
    """Give a student, built as SOHO's, the weights and the dictionary in the file.

    Its own heads (objects, phrases) stay as they are. Raises ValueError naming the weights that are
    missing, of another shape, unknown, or not finite.
    """
    dictionary = _dictionary(student)
    weights = read_checkpoint(path, expected="a SOHO checkpoint")
    own = student.state_dict()
    names = {name: found for name in own if (found := official_name(name))}
    taken = {*names.values(), TIED[0]}
    tied = (weights.get(TIED[0]), weights.get(TIED[1]))
    faults = [f"{official} is missing" for official in names.values() if official not in weights]
    faults += [
        f"{name} is unknown"
        for name in weights
        if name not in taken and not name.startswith(UNUSED)
    ]
    if tied[0] is not None and tied[1] is not None and not torch.equal(tied[0], tied[1]):
        faults.append(f"{TIED[0]} is not the word embeddings")
    for name, official in names.items():
        weight = weights.get(official)
        if weight is None:
            continue
        if (
            weight.numel() != own[name].numel()
            or official != "neck.mask_emb.weight"
            and (weight.shape != own[name].shape)
        ):
            faults.append(f"{official} is {list(weight.shape)}, not {list(own[name].shape)}")
        elif not weight.isfinite().all():
            faults.append(f"{official} is not finite")
    if faults:
        more = f" and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise BoxlessError(
            f"{path}: got a checkpoint that does not fit: {'; '.join(faults[:8])}{more}. Expected "
            "the sizes of recipe soho-res18, or those that the checkpoint was trained with"
        )
    with torch.no_grad():
        for name, official in names.items():
            own[name].copy_(weights[official].view_as(own[name]))
    dictionary.started.fill_(True)
    dictionary.age.zero_()


def _dictionary(student: Student) -> Dictionary:
    if student.dictionary is None:
        raise BoxlessError("neck.kind: got a student with plain, expected soho")
    return student.dictionary


def write_soho_checkpoint(student: Student, path: Path) -> None:
    """Write a student, built as SOHO's, as the released code reads it (`load_from`).

    The inverse of `load_soho`; our own heads are left out. Raises ValueError on a student that is
    not built as SOHO's.
    """
    _dictionary(student)
    weights = {}
    for name, weight in student.state_dict().items():
        if official := official_name(name):
            own = weight.detach().cpu()
            weights[official] = own[None] if official == "neck.mask_emb.weight" else own
    weights[TIED[0]] = weights[TIED[1]]
    with replacing(path) as file:
        torch.save({"meta": {}, "state_dict": weights}, file)
