"""What saves time in the student gives the same numbers, gradients too.

Oracle of all: the plain way, written out here or taken by switching the saving off.
"""

from __future__ import annotations

import copy
import shutil
from typing import Any
from unittest import mock

import pytest
import torch
from soho_golden import ITM, MLM, MVM, golden_batch, new_student

from stages.pretrain.model import PretrainModel
from stages.pretrain.objectives.config import OmvmConfig
from stages.pretrain.objectives.itm import Itm
from stages.pretrain.objectives.mlm import Mlm
from stages.pretrain.objectives.mvm import Mvm
from stages.pretrain.objectives.omvm import Omvm
from stages.student.fusion.last_layer import OutputPlaces, run_last_layer
from stages.student.outputs import Cells, Hidden
from stages.student.vision import grid


def _gradients(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("learns", [True, False], ids=["training", "evaluation"])
def test_the_last_layer_where_it_is_read(learns: bool) -> None:
    """The layer over all tokens, of which some are read: of the third pair none, of the first
    all."""
    torch.manual_seed(0)
    student = new_student().train(learns)
    layer = student.fusion.layer[-1]
    hidden = torch.randn(4, 9, 64)
    attended = torch.rand(4, 9) < 0.7
    attended[:, 0] = True
    read = torch.rand(4, 9) < 0.3
    read[0], read[2] = True, False
    results = []
    for fast in (False, True):
        own = hidden.clone().requires_grad_()
        student.zero_grad()
        mask = attended[:, None, None, :]
        places = OutputPlaces.of(read)
        out = run_last_layer(layer, own, mask, places) if fast else layer(own, mask)
        out = torch.where(read[..., None], out, 0.0)
        (out * torch.linspace(-1, 1, 64)).sum().backward()
        results.append({"output": out, "input": own.grad, **_gradients(layer)})
    assert len(results[0]) == 18 and results[0].keys() == results[1].keys()
    for name, plain in results[0].items():
        torch.testing.assert_close(results[1][name], plain, rtol=1e-5, atol=2e-5)


@torch.no_grad()
def test_many_texts_on_one_picture() -> None:
    """Oracle: the matching head on the fusion of each pair, by way of `fuse`, with a padded
    picture and padded texts."""
    torch.manual_seed(0)
    student = new_student().eval()
    pixels = torch.randint(0, 256, (1, 3, 128, 256), dtype=torch.uint8)
    cells = student.encode_image(pixels, torch.tensor([[60, 100]]))
    assert not cells.inside.all()
    texts = torch.tensor([[5, 6, 7, 8], [9, 5, 0, 0], [6, 0, 0, 0]])
    texts[texts == 0] = student.pad_id
    picture = torch.zeros(3, dtype=torch.long)
    hidden = student.fuse(cells, picture=picture, input_ids=texts)
    wanted = student.itm_head(hidden.text[:, 0])
    found = student.match(cells, picture=picture, input_ids=texts)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert student.match(cells, picture=picture[:0], input_ids=texts[:0]).shape == (0, 2)
    assert student.can_match_inputs and not student.train().can_match_inputs
    student.eval().fusion.layer[0].attention.self.key.weight.data = torch.empty(0)
    assert not student.can_match_inputs  # as a weight that ZeRO 3 has shared out


def _model(batch: Any) -> PretrainModel:
    """All objectives that name what they read, over objects drawn into the golden batch."""
    batch.regions = (torch.rand(2, 3, 16) < 0.4) / 5.0
    batch.label = torch.tensor([[0, 0, -1], [0, 0, 0]])
    batch.top_label = torch.zeros(2, 3, 1, dtype=torch.long)
    batch.top_score = torch.ones(2, 3, 1)
    batch.feature = torch.randn(2, 3, 8)
    batch.masked_objects = torch.tensor([[0, 1], [1, -1], [2, 0], [-1, -1]])
    objectives = {
        "itm": (1.0, Itm(ITM)),
        "mlm": (1.0, Mlm(MLM)),
        "mvm": (1.0, Mvm(MVM)),
        "omvm": (1.0, Omvm(OmvmConfig())),
    }
    return PretrainModel(new_student(), objectives).train()


def test_objectives_use_no_other_outputs() -> None:
    """Losses and gradients of a pass in which every output of the fusion is made."""
    results = []
    for fast in (False, True):
        torch.manual_seed(0)
        batch = golden_batch("train")
        model = _model(batch)
        read = model._output_mask(batch)
        assert isinstance(read, torch.Tensor) and 0 < int(read.sum()) < 60
        if not fast:
            model._output_mask = lambda batch: None  # type: ignore[method-assign]
        loss, scores = model(batch)
        loss.backward()
        assert scores["mvm"].loss > 0 and scores["omvm"].loss > 0
        results.append({"loss": loss.detach(), **_gradients(model)})
    assert len(results[0]) > 90 and results[0].keys() == results[1].keys()
    for name, plain in results[0].items():
        largest = float(plain.abs().max())
        torch.testing.assert_close(results[1][name], plain, rtol=0, atol=1e-5 * largest + 1e-6)


@pytest.mark.parametrize("num_pairs", [0, 1, 3])
def test_pairs_that_no_objective_looks_at_are_not_fused(num_pairs: int) -> None:
    """Losses and gradients of a pass in which all pairs are fused; of four pairs so many have
    masked cells, and one is fused at least."""
    results = []
    for fast in (False, True):
        torch.manual_seed(0)
        batch = golden_batch("train")
        model = _model(batch)
        model.objectives = {"mvm": model.objectives["mvm"]}
        model.fusing, model.sparse_words = [model.objectives["mvm"][1]], False
        batch.anchors[num_pairs:] = -1
        fused: list[int] = []
        fuse = model.student.fuse

        def counted(cells: Cells, fused: list[int] = fused, fuse: Any = fuse, **of: Any) -> Hidden:
            fused.append(len(of["picture"]))
            return fuse(cells, **of)

        model.student.fuse = counted  # type: ignore[method-assign]
        if not fast:
            model._output_mask = lambda batch: None  # type: ignore[method-assign]
        loss, scores = model(batch)
        loss.backward()
        assert fused == [max(1, num_pairs) if fast else 4]
        results.append({"loss": loss.detach(), **_gradients(model)})
    assert results[0].keys() == results[1].keys()
    for name, plain in results[0].items():
        largest = float(plain.abs().max())
        torch.testing.assert_close(results[1][name], plain, rtol=0, atol=1e-5 * largest + 1e-6)


@pytest.mark.parametrize("is_labelled", [True, False])
def test_the_words_that_are_read(is_labelled: bool) -> None:
    """The lookup's gradient as a matrix of all words, also where MLM has nothing to predict. What
    comes to the optimizer is dense in both."""
    gradients = []
    for sparse in (False, True):
        batch = golden_batch("train")
        if not is_labelled:
            batch.mlm_labels = torch.full_like(batch.mlm_labels, -100)
        torch.manual_seed(0)
        model = _model(batch)
        assert model.sparse_words
        model.sparse_words = sparse
        model(batch)[0].backward()
        assert model.student.embeddings.word_embeddings.sparse == sparse
        gradient = model.student.word_embeddings.grad
        assert gradient is not None and gradient.layout == torch.strided and gradient.any()
        gradients.append(gradient)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def test_frozen_stages_as_one_convolution_each() -> None:
    """Normalisation as a layer of its own, and the memory format left alone, once while the later
    stages learn, once where nothing does."""
    torch.manual_seed(0)
    net = new_student().grid
    for name, value in [*net.named_parameters(), *net.named_buffers()]:
        if "normalization" in name and value.is_floating_point():
            value.data.uniform_(0.5, 1.5)
    pixels = torch.randn(2, 3, 64, 96)
    before = {name: value.clone() for name, value in net.state_dict().items()}

    def plain(layer: Any, x: torch.Tensor) -> torch.Tensor:
        return layer.normalization(layer.convolution(x))

    def run() -> dict[str, torch.Tensor]:
        net.zero_grad()
        features = net.train()(pixels)
        features.square().mean().backward()
        with torch.no_grad():
            judged = net.eval()(pixels)
        return {"training": features.detach(), "evaluation": judged, **_gradients(net)}

    with (
        mock.patch.object(grid, "_normalised", plain),
        mock.patch.object(grid, "_laid_out", lambda x, part: x),
    ):
        expected = run()
    net.load_state_dict(before)  # statistics have moved
    got = run()
    assert len(expected) > 40 and got.keys() == expected.keys()
    for name, value in expected.items():
        largest = float(value.abs().max())
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-4 * largest)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile has no C++ compiler here")
def test_the_cnn_compiled_for_scoring() -> None:
    """Oracle: the same CNN as it is, on pictures of one size, of another one, and of two."""
    torch.manual_seed(0)
    net = new_student().grid
    with pytest.raises(RuntimeError, match=r"got a CNN in training, call eval\(\) first"):
        net.compile_for_scoring()
    net.eval()
    batches = [
        (torch.randn(2, 3, height, width), torch.tensor([[height, width], second]))
        for height, width, second in ((64, 96, [64, 96]), (96, 64, [96, 64]), (96, 96, [64, 96]))
    ]
    with torch.inference_mode():
        expected = [net(*batch) for batch in batches]
    net.compile_for_scoring()
    with mock.patch.object(net, "_features", side_effect=net._features) as plainly:
        got = [net(*batch) for batch in batches]
    assert plainly.call_count == 1 and plainly.call_args.args[1] is not None
    for value, own in zip(expected, got):
        torch.testing.assert_close(own, value, rtol=0, atol=1e-5 * float(value.abs().max()))
    copied = copy.deepcopy(net)
    copied.load_state_dict({name: value / 2 for name, value in net.state_dict().items()})
    assert not torch.allclose(copied(*batches[0]), got[0])
    net.train()(batches[0][0]).sum().backward()
    assert len(_gradients(net)) > 40  # one stage is frozen
