"""Published weights: ResNets by name, torchvision's layout, BERTs, and clear words where not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from pretrain_fixtures import TINY, toy_tokenizer
from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel, RobertaConfig

from pipeline.recipe.recipe import load_recipe
from pipeline.runner import run_stages as runner
from pipeline.runner.launch_plan import LaunchOverrides
from pipeline.runner.run_folder import RunFolder
from stages.student.build import make_student
from stages.student.checkpoints.pretrained import check_pretrained
from stages.student.config import StudentConfig
from stages.student.network import Student
from stages.student.vision.resnet import resnet_config, torchvision_name

TORCHVISION_MILLIONS = {
    "resnet-18": 11_689_512,
    "resnet-34": 21_797_672,
    "resnet-50": 25_557_032,
    "resnet-101": 44_549_160,
    "resnet-152": 60_192_808,
}
"""Parameters by torchvision's documentation, classifier of 1000 classes included."""


@pytest.fixture()
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("name, num_parameters", TORCHVISION_MILLIONS.items())
def test_resnets_by_name(name: Any, num_parameters: int) -> None:
    """Oracle: torchvision's documented numbers of parameters, and its names of layers."""
    config = resnet_config(StudentConfig(cnn=name))
    with torch.device("meta"):
        net = ResNetModel(config)
    widest = 512 if name in ("resnet-18", "resnet-34") else 2048
    own = sum(p.numel() for p in net.parameters())
    assert own + 1000 * widest + 1000 == num_parameters
    names = {torchvision_name(own) for own in net.state_dict()}
    wanted = {
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.conv2.weight",
        "layer4.1.bn2.bias",
        "layer3.0.downsample.0.weight",
        "layer2.0.downsample.1.num_batches_tracked",
    }
    assert wanted <= names and len(names) == len(net.state_dict())


def _make(config: StudentConfig, vocab_size: int = 50) -> Student:
    return make_student(
        config, vocab_size=vocab_size, pad_id=0, label_names=["a"], feature_size=4
    ).eval()


def _cnn(block: str) -> ResNetModel:
    torch.manual_seed(1)
    return ResNetModel(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 20], depths=[1, 2, 1], layer_type=block)
    ).eval()


def _torchvision(net: ResNetModel, *, old: bool = False) -> dict[str, torch.Tensor]:
    """Its weights as torchvision saves them; old files count no batches."""
    weights = {
        torchvision_name(name): value
        for name, value in net.state_dict().items()
        if not old or not name.endswith("num_batches_tracked")
    }
    return {**weights, "fc.weight": torch.zeros(5, 20), "fc.bias": torch.zeros(5)}


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_a_file_in_torchvisions_layout(tmp_path: Path, block: str, prefix: str) -> None:
    """Oracle: the features of the net that was saved, its classifier left out; sizes are read off
    the weights."""
    net = _cnn(block)
    weights = {prefix + name: w for name, w in _torchvision(net, old=not prefix).items()}
    torch.save({"state_dict": weights} if prefix else weights, tmp_path / "cnn.pth")
    student = _make(replace(TINY, pretrained_cnn=str(tmp_path / "cnn.pth")))
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = student.grid.resnet(pixels).last_hidden_state
        # Rounding apart: in evaluation a BatchNorm is part of its convolution's weights.
        torch.testing.assert_close(features, net(pixels).last_hidden_state, rtol=1e-4, atol=1e-4)
    assert student.grid.cell_px == 32


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda w: w.pop("layer2.1.conv1.weight"), "layer2.1.conv1.weight is missing"),
        (lambda w: w.update({"bn1.bias": torch.zeros(3)}), r"bn1.bias is \[3\], not \[8\]"),
        (lambda w: w.update({"bn1.bias": torch.full((8,), torch.inf)}), "bn1.bias is not finite"),
        (
            lambda w: w.update({"layer1.0.se.weight": torch.zeros(3)}),
            "layer1.0.se.weight is unknown",
        ),
        (lambda w: w.pop("conv1.weight"), "expected torchvision's names"),
    ],
)
def test_a_file_that_does_not_fit(
    tmp_path: Path, spoil: Callable[[dict], object], words: str
) -> None:
    """Oracle: ValueError with the field, the path and what is wrong."""
    weights = _torchvision(_cnn("basic"))
    spoil(weights)
    torch.save(weights, tmp_path / "cnn.pth")
    with pytest.raises(ValueError, match=words) as caught:
        _make(replace(TINY, pretrained_cnn=str(tmp_path / "cnn.pth")))
    assert f"student.pretrained_cnn: {tmp_path}" in str(caught.value)


def test_a_cnn_that_is_not_the_recipes(tmp_path: Path) -> None:
    """Oracle: ValueError naming both."""
    _cnn("basic").save_pretrained(tmp_path)
    config = replace(TINY, pretrained_cnn=str(tmp_path), cnn="resnet-50", widths=(8,), depths=(1,))
    with pytest.raises(ValueError, match="basic blocks .*expected resnet-50, which has bottleneck"):
        check_pretrained(config)


def _bert(folder: Path, **sizes: int) -> BertModel:
    torch.manual_seed(2)
    bert = BertModel(
        BertConfig(
            vocab_size=len(toy_tokenizer()),
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=40,
            max_position_embeddings=30,
            **{"hidden_size": 48, **sizes},
        )
    )
    bert.save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return bert


def test_a_bert_with_person_tags_and_four_token_types(tmp_path: Path) -> None:
    """Oracle: KD-VLP's rule by hand. Words keep their rows, tags come after them; types 0 and 1 are
    BERT's, 2 and 3 are type 0's."""
    text = _bert(tmp_path)
    config = replace(TINY, pretrained_text=str(tmp_path), num_layers=2, num_token_types=4)
    check_pretrained(config)
    num_words = len(toy_tokenizer())
    student = _make(config, vocab_size=num_words + 81)
    words = student.word_embeddings
    assert words.shape == (num_words + 81, 48) and student.mlm_head(
        torch.zeros(1, 48), words
    ).shape == (1, num_words + 81)
    assert torch.equal(words[:num_words], text.embeddings.word_embeddings.weight)
    assert words[num_words:].std() > 0
    types = text.embeddings.token_type_embeddings.weight
    got = student.embeddings.token_type_embeddings.weight
    assert torch.equal(got, types[[0, 1, 0, 0]]) and not torch.equal(types[0], types[1])


def test_a_bert_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Oracle: ValueError with the kind and the reason; too few layers or positions likewise."""
    RobertaConfig().save_pretrained(tmp_path / "roberta")
    with pytest.raises(ValueError, match="type 'roberta', expected 'bert'. .*single token type"):
        check_pretrained(replace(TINY, pretrained_text=str(tmp_path / "roberta")))
    _bert(tmp_path / "bert")
    for fields, words in (
        ({"num_layers": 3}, "num_layers: got 3, expected at most the 2"),
        ({"max_tokens": 31}, "max_tokens: got 31, expected at most the 30"),
    ):
        with pytest.raises(ValueError, match=words):
            check_pretrained(replace(TINY, pretrained_text=str(tmp_path / "bert"), **fields))


@pytest.mark.parametrize("field", ["pretrained_cnn", "pretrained_text"])
@pytest.mark.parametrize("name", ["no-such/network", "/nowhere/at-all"])
def test_a_name_that_cannot_be_reached(offline: None, field: str, name: str) -> None:
    """Oracle: ValueError with the field, the name, what was tried, and what to do instead."""
    config: StudentConfig = replace(TINY, **{field: name})  # type: ignore[arg-type]
    for ask in (check_pretrained, _make):
        with pytest.raises(ValueError) as caught:
            ask(config)
        for words in (
            f"student.{field}: got {name}",
            "the hub could not be reached",
            "a folder that transformers' save_pretrained wrote",
            f"student.{field}=null",
        ):
            assert words in str(caught.value)
        assert (".pth" in str(caught.value)) == (field == "pretrained_cnn")


def test_a_folder_without_a_tokenizer_or_weights(tmp_path: Path) -> None:
    """Oracle: ValueError that the folder has not all of it."""
    _bert(tmp_path / "text")
    for path in (tmp_path / "text").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ValueError, match="text, which cannot be read: the folder has not all"):
        check_pretrained(replace(TINY, pretrained_text=str(tmp_path / "text"), num_layers=2))
    (tmp_path / "cnn").mkdir()
    with pytest.raises(ValueError, match="cnn, which cannot be read: the folder has not all"):
        check_pretrained(replace(TINY, pretrained_cnn=str(tmp_path / "cnn")))
    (tmp_path / "cnn/config.json").write_text(json.dumps(_cnn("basic").config.to_dict()))
    with pytest.raises(ValueError, match="cnn, which cannot be read: the folder has not all"):
        _make(replace(TINY, pretrained_cnn=str(tmp_path / "cnn")))


def test_a_run_finds_out_before_any_stage(offline: None, tmp_path: Path, monkeypatch: Any) -> None:
    """Oracle: ValueError and no stage was launched; neither is asked where pretrain has no part."""
    launched: list[str] = []
    monkeypatch.setattr(runner, "launch_stage", lambda kind, *rest: launched.append(kind.name))
    recipe = load_recipe("toy", ["student.pretrained_cnn=no-such/network"])
    with pytest.raises(ValueError, match="no-such/network"):
        runner.run_stages(
            recipe,
            RunFolder(tmp_path / "a"),
            ["ingest", "pretrain"],
            LaunchOverrides(),
            dry_run=False,
        )
    assert not launched
    runner.run_stages(
        recipe, RunFolder(tmp_path / "a"), ["ingest", "pretrain"], LaunchOverrides(), dry_run=True
    )
