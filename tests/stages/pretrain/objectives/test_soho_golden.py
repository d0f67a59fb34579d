"""The student as SOHO against the released model: every activation, gradient, statistic, code.

Oracle of all: the recorded run of researchmm/soho at 95824a8 (see `soho_golden`). Differences are
relative to the largest absolute value of the recorded array.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from soho_golden import GOLDEN, ITM, MLM, MVM, golden_batch, new_student, official_weights
from torch.nn import functional as F

from stages.pretrain.data.batch import Batch
from stages.pretrain.model import PretrainModel
from stages.pretrain.objectives.itm import Itm
from stages.pretrain.objectives.mlm import Mlm
from stages.pretrain.objectives.mvm import Mvm, code_logits
from stages.student.checkpoints.soho import load_soho, official_name, write_soho_checkpoint

FORWARD, STATE, GRADIENT, GATE_GRADIENT = 2e-5, 2e-5, 1e-4, 1e-3
BACKBONE_GRADIENT, BACKBONE_NORM = 2e-2, 5e-3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rule's weights as the released code saves them: "module." before, "state_dict" around."""
    path = tmp_path_factory.mktemp("soho") / "soho.pth"
    weights = {f"module.{name}": weight for name, weight in official_weights().items()}
    torch.save({"meta": {"epoch": 40}, "state_dict": weights, "optimizer": {}}, path)
    return path


def _close(name: str, got: torch.Tensor | np.ndarray, tolerance: float) -> None:
    expected = GOLDEN[name].astype(np.float64)
    mine = np.asarray(got.detach() if torch.is_tensor(got) else got, np.float64)
    mine = mine.reshape(expected.shape)
    largest = max(np.abs(expected).max(), 1e-30)
    assert np.abs(mine - expected).max() / largest < tolerance, name


def _equal(name: str, got: torch.Tensor) -> None:
    assert np.array_equal(got.numpy().reshape(GOLDEN[name].shape), GOLDEN[name]), name


class Run:
    """One pass of the model over a section, with what its modules gave on the way."""

    def __init__(self, checkpoint: Path, section: str, *, train: bool = False) -> None:
        self.section, self.student = section, new_student()
        load_soho(self.student, checkpoint)
        student = self.student
        objectives = {"itm": (1.0, Itm(ITM)), "mlm": (1.0, Mlm(MLM)), "mvm": (1.0, Mvm(MVM))}
        model = PretrainModel(student, objectives).train(train)  # type: ignore[arg-type]
        self.given: dict[str, Any] = {}
        assert student.neck is not None
        resnet = student.grid.resnet
        for name, module in {
            **{f"layer{i + 1}": stage.layers[-1] for i, stage in enumerate(resnet.encoder.stages)},
            "neck_conv_out": student.neck.norm,
            "dictionary": student.neck.dictionary,
            "pos_line_out": student.neck.code_line,
            "gate_logits": student.neck.gate_norm,
            "lang_embedding": student.embeddings,
            "lang_layer0": student.fusion.layer[0],
        }.items():
            module.register_forward_hook(self._keep(name))
        student.cell_norm.register_forward_hook(self._keep_both)
        self.batch: Batch = golden_batch(section)
        see, fuse = student.encode_image, student.fuse

        def seen(*args: Any, **kwargs: Any) -> Any:
            self.cells = see(*args, **kwargs)
            return self.cells

        def fused(*args: Any, **kwargs: Any) -> Any:
            # The fast path is what is scored; the arrays are compared at every token.
            self.hidden = fuse(*args, **{**kwargs, "output_mask": None})
            return fuse(*args, **kwargs)

        student.encode_image, student.fuse = seen, fused  # type: ignore[method-assign]
        self.loss, self.scores = model(self.batch)
        # The frozen stem runs as one convolution with its BatchNorm.
        self.given["conv1"] = resnet.embedder.embedder.convolution(self.batch.pixels)

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            self.given[name] = output

        return hook

    def _keep_both(self, module: Any, inputs: Any, output: Any) -> None:
        self.given["neck_ln_in"], self.given["visual_tokens"] = inputs[0], output

    def check(self, names: str) -> None:
        """Every named array of the section."""
        for name in names.split():
            _close(f"{self.section}/{name}", self._array(name), FORWARD)

    def check_exact(self) -> None:
        """Indices, masks and labels."""
        section = self.section
        for name, got in {
            "vq_indices": self.cells.codes,
            "visual_mask": self.cells.inside[self.batch.picture].long(),
            "mvm_labels": self.batch.mvm_labels,
        }.items():
            if f"{section}/mid/{name}" in GOLDEN:
                assert got is not None
                _equal(f"{section}/mid/{name}", got)

    def check_losses(self) -> None:
        """The three losses and their sum, and match losses one by one."""
        section = self.section
        for name in ("mlm", "mvm"):
            expected = float(GOLDEN[f"{section}/loss/{name}"])
            assert self.scores[name].loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-9)
        total = float(GOLDEN[f"{section}/loss/total"])
        assert self.loss.item() == pytest.approx(total, rel=1e-5)
        logits = self.student.itm_head(self.hidden.text[:, 0])
        match = F.cross_entropy(logits, self.batch.matched.long(), reduction="none")
        _close(f"{section}/loss/match", match, FORWARD)

    def _array(self, name: str) -> torch.Tensor:
        given, student, hidden = self.given, self.student, self.hidden
        kind, _, own = name.partition("/")
        if kind == "out":
            assert student.dictionary is not None
            return {
                "itm_logits": lambda: student.itm_head(hidden.text[:, 0]),
                "mlm_logits": lambda: student.mlm_head(hidden.text, student.word_embeddings),
                "mvm_logits": lambda: code_logits(hidden.cells.flatten(0, 1), student.dictionary),
            }[own]()
        if own.endswith("_sub"):
            stride = {"conv1": 16, "layer1": 8, "layer2": 4, "layer3": 2}[own[:-4]]
            return given[own[:-4]][:, :, ::stride, ::stride]
        if own == "fusion":
            return torch.cat([hidden.text, hidden.cells], dim=1)
        if own == "backbone_out":
            return given["layer4"]
        if own == "vq_quantized":
            return given["dictionary"][1]
        if own == "lang_layer0":
            return given[own][0] if isinstance(given[own], tuple) else given[own]
        return given[own]


TRAIN_ARRAYS = (
    "mid/layer2_sub mid/layer3_sub mid/backbone_out mid/neck_conv_out mid/vq_quantized "
    "mid/pos_line_out mid/gate_logits mid/neck_ln_in mid/visual_tokens mid/lang_layer0 mid/fusion "
    "out/itm_logits out/mlm_logits out/mvm_logits"
)


def test_the_rule_makes_the_recorded_weights() -> None:
    """Oracle: the recorded sums of all 180 arrays."""
    weights = official_weights()
    sums = zip(weights.values(), GOLDEN["weights/sum"], GOLDEN["weights/abs_sum"])
    for weight, total, absolute in sums:
        own = weight.double()
        assert own.sum().item() == pytest.approx(total, rel=1e-6, abs=1e-6 * (absolute + 1e-9))
        assert own.abs().sum().item() == pytest.approx(absolute, rel=1e-6)
    assert len(weights) == 180


def test_in_evaluation(checkpoint: Path) -> None:
    """All activations, logits and losses of two pictures with two captions each."""
    run = Run(checkpoint, "eval")
    run.check_exact()
    run.check(f"{TRAIN_ARRAYS} mid/conv1_sub mid/layer1_sub mid/lang_embedding")
    run.check_losses()
    _check_gradients(run)


def test_in_training(checkpoint: Path) -> None:
    """As in evaluation; then the statistics and the codebook that the forward pass has moved."""
    run = Run(checkpoint, "train", train=True)
    run.check_exact()
    run.check(TRAIN_ARRAYS)
    run.check_losses()
    _check_gradients(run)
    ours = {official_name(name): value for name, value in run.student.state_dict().items()}
    names = [name for name in GOLDEN if name.startswith("train/state/")]
    assert len(names) == 22
    for name in names:
        _close(name, ours[name.removeprefix("train/state/")], STATE)


def _tolerance(official: str) -> float:
    """What rounding may do to a gradient; it can flip a ReLU or a max-pool's choice in the CNN."""
    if official.startswith("backbone"):
        return BACKBONE_GRADIENT
    return GATE_GRADIENT if "gate_fc.bn" in official else GRADIENT


def _check_gradients(run: Run) -> None:
    run.loss.backward()
    section = run.section
    gradients = {
        official_name(name): p.grad
        for name, p in run.student.named_parameters()
        if p.grad is not None
    }
    norms = dict(zip(GOLDEN["eval/grad_keys"].tolist(), GOLDEN[f"{section}/grad_norm"]))
    for name, expected in norms.items():
        grad = gradients[name]
        assert grad is not None
        if name.endswith("attention.self.key.bias"):  # zero but for rounding
            assert grad.abs().max() < 1e-6
            continue
        rel = BACKBONE_NORM if name.startswith("backbone") else _tolerance(name)
        assert grad.double().norm().item() == pytest.approx(expected, rel=rel), name
    for name in GOLDEN:
        prefix = f"{section}/grad/"
        if name.startswith(prefix):
            own = name.removeprefix(prefix)
            _close(name, gradients[own], _tolerance(own))
        elif name.startswith(f"{section}/grad_rows/"):
            rows = gradients[name.removeprefix(f"{section}/grad_rows/")]
            _close(name, rows[[0, 101, 102, 103]], GRADIENT)
    frozen = [name for name, p in run.student.named_parameters() if not p.requires_grad]
    assert (
        all(
            name.startswith(("grid.resnet.embedder", "grid.resnet.encoder.stages.0"))
            for name in frozen
        )
        and len(frozen) == 15
    )


def test_an_anchor_in_the_padding_hides_nothing(checkpoint: Path) -> None:
    """The drawn cell is padding in the second picture."""
    run = Run(checkpoint, "padpos")
    run.check_exact()
    run.check("mid/visual_tokens out/itm_logits")
    run.check_losses()


def test_a_canvas_that_pooling_cuts(checkpoint: Path) -> None:
    """9 x 9 of the CNN become 4 x 4 cells, and the mask is sampled every 72 pixels."""
    run = Run(checkpoint, "pad288")
    run.check_exact()
    run.check("mid/neck_conv_out mid/visual_tokens out/itm_logits")
    run.check_losses()


def test_a_student_goes_out_as_it_came_in(checkpoint: Path, tmp_path: Path) -> None:
    """Oracle: the official names, shapes and bits of all 180 entries, in any order."""
    student = new_student()
    load_soho(student, checkpoint)
    write_soho_checkpoint(student, tmp_path / "out.pth")
    written = torch.load(tmp_path / "out.pth", weights_only=True)["state_dict"]
    official = official_weights()
    assert written.keys() == official.keys()
    for name, weight in official.items():
        assert written[name].shape == weight.shape and torch.equal(written[name], weight), name
    again = new_student()
    load_soho(again, tmp_path / "out.pth")
    for name, weight in student.state_dict().items():
        if not name.startswith("object_head"):
            assert torch.equal(again.state_dict()[name], weight), name


def test_half_precision_and_no_wrapping(tmp_path: Path) -> None:
    """Oracle: float32 weights that are the halves, whatever stands around them."""
    halves = {
        name: weight.half() if weight.is_floating_point() else weight
        for name, weight in official_weights().items()
    }
    halves["language.bert.embeddings.position_ids"] = torch.arange(512)[None]
    torch.save(halves, tmp_path / "half.pth")
    student = new_student()
    load_soho(student, tmp_path / "half.pth")
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    line = student.neck.code_line.weight  # type: ignore[union-attr]
    assert torch.equal(line, halves["neck.pos_line.weight"].float())


class Evil:
    """Unpickled it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda w: w.pop("neck.ln.bias"), "neck.ln.bias is missing"),
        (
            lambda w: w.update({"neck.ln.bias": torch.zeros(3)}),
            r"neck.ln.bias is \[3\], not \[64\]",
        ),
        (lambda w: w.update({"neck.odd": torch.zeros(3)}), "neck.odd is unknown"),
        (lambda w: w["neck.ln.bias"].fill_(float("nan")), "neck.ln.bias is not finite"),
        (
            lambda w: w.update({"mask_l_fc.weight": torch.zeros(1000, 64)}),
            "not the word embeddings",
        ),
        (lambda w: w.update({"odd": "text"}), "no tensors by name"),
    ],
)
def test_a_checkpoint_that_does_not_fit(
    tmp_path: Path, spoil: Callable[[dict], object], words: str
) -> None:
    """Oracle: ValueError with the path and what is wrong; the student stays as it was."""
    weights = official_weights()
    spoil(weights)
    torch.save(weights, tmp_path / "bad.pth")
    student = new_student()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(ValueError, match=words) as caught:
        load_soho(student, tmp_path / "bad.pth")
    assert str(tmp_path) in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_a_hostile_or_broken_checkpoint(tmp_path: Path) -> None:
    """Oracle: ValueError, and no code of the file was run."""
    torch.save({"state_dict": Evil(tmp_path / "written")}, tmp_path / "evil.pth")
    (tmp_path / "broken.pth").write_bytes(b"no checkpoint")
    for name in ("evil.pth", "broken.pth"):
        with pytest.raises(ValueError, match=f"{name}: got (no valid|a) file"):
            load_soho(new_student(), tmp_path / name)
    assert not (tmp_path / "written").exists()
    with pytest.raises(FileNotFoundError):
        load_soho(new_student(), tmp_path / "none.pth")
