"""Students and checkpoints of versions that called a weight and a setting by other names."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import torch
from pretrain_fixtures import tiny_student
from safetensors.torch import load_file, save_file

from stages.student.folder.renamed import rename_weights
from stages.student.network import Student
from stages.training.checkpoints.verified_files import SafeCheckpointEngine

OLD, NEW = "mask_cell", "visual_mask_embedding"


def test_an_old_folder_is_read_and_saved_under_new_names(tmp_path: Path) -> None:
    """Oracle: the student that was saved; the old folder is its folder with the old two names."""
    student = tiny_student()
    torch.nn.init.normal_(student.visual_mask_embedding)
    student.config.visual_mask_embedding = "zero"
    student.save_pretrained(tmp_path / "old")
    weights = load_file(tmp_path / "old/model.safetensors")
    weights[OLD] = weights.pop(NEW)
    save_file(weights, tmp_path / "old/model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "old/config.json").read_text())
    config[OLD] = config.pop(NEW)
    (tmp_path / "old/config.json").write_text(json.dumps(config))

    read = Student.from_pretrained(tmp_path / "old")
    assert torch.equal(read.visual_mask_embedding, student.visual_mask_embedding)
    assert read.config.visual_mask_embedding == "zero" and not hasattr(read.config, OLD)
    read.save_pretrained(tmp_path / "new")
    assert NEW in load_file(tmp_path / "new/model.safetensors")
    saved = json.loads((tmp_path / "new/config.json").read_text())
    assert NEW in saved and OLD not in saved


def test_old_names_in_checkpoints(tmp_path: Path) -> None:
    """Oracle: by hand: DeepSpeed's module, list of shapes, frozen weights and a copy of weights,
    each in its order."""
    path = str(tmp_path / "checkpoint.pt")
    weight, other = torch.ones(2), torch.zeros(2)
    old = {
        "module": OrderedDict({f"student.{OLD}": weight, "student.cell_norm.bias": other}),
        "param_shapes": [OrderedDict({"x": (1,), f"student.{OLD}": (2,)})],
        "frozen_param_fragments": {f"student.{OLD}": weight, f"student.un{OLD}": other},
        "copies": {f"average.student/{OLD}": weight, 3: other},
    }
    SafeCheckpointEngine().save(old, path)
    read = SafeCheckpointEngine().load(path)
    assert list(read["module"]) == [f"student.{NEW}", "student.cell_norm.bias"]
    assert torch.equal(read["module"][f"student.{NEW}"], weight)
    assert list(read["param_shapes"][0]) == ["x", f"student.{NEW}"]
    assert list(read["frozen_param_fragments"]) == [f"student.{NEW}", f"student.un{OLD}"]
    assert list(read["copies"]) == [f"average.student/{NEW}", 3]


def test_new_names_stay() -> None:
    """Oracle: the same object."""
    state = {"module": {f"student.{NEW}": 1}, "step": 3, "names": [OLD]}
    rename_weights(state)
    assert state == {"module": {f"student.{NEW}": 1}, "step": 3, "names": [OLD]}
