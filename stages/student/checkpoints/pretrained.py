"""Loads published weights: a ResNet and a BERT, by name, folder or (the ResNet) file.

A name is looked for here first, then in the Hugging Face cache, then on the hub.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
)

from boxless.errors import BoxlessError
from stages.student.checkpoints.torch_file import read_checkpoint
from stages.student.config import StudentConfig
from stages.student.folder.errors import check_finite
from stages.student.text.tokenizer import load_tokenizer
from stages.student.vision.resnet import config_of_torchvision, from_torchvision, resnet_config

OR_FILE = ", or a ResNet's .pth in torchvision's layout"
PREFIXES = ("module.", "backbone.")
"""What wrappers put before torchvision's names: DataParallel, detection code bases, SOHO."""
VOCABULARY = ("tokenizer.json", "vocab.txt")
_DOWNLOAD = "download these weights again, or take others"
OTHER_TEXT = (
    "Only BERT's embeddings and layers are used. RoBERTa and similar models count positions from the "
    "padding index on, have a single token type, so that pictures would have none, and cut text "
    "into pieces that the masks of whole words do not know"
)


def check_pretrained(config: StudentConfig) -> None:
    """See that all weights that the recipe names can be had, by reading their configs.

    Raises ValueError as `cnn_config`, `text_config` and `published_tokenizer` do.
    """
    cnn_config(config)
    if config.pretrained_text:
        text_config(config.pretrained_text, config)
        published_tokenizer(config.pretrained_text)


def cnn_config(config: StudentConfig) -> ResNetConfig:
    """The sizes of the CNN: those of its weights, where the recipe names any.

    Raises ValueError where these cannot be reached, are no ResNet, or are not `student.cnn`.
    """
    name = config.pretrained_cnn
    if name is None:
        return resnet_config(config)
    if Path(name).is_file():
        found = _cnn_file(name)[0]
    else:
        fields = _published("pretrained_cnn", name, "resnet")
        found = ResNetConfig.from_dict(fields)
    wanted = resnet_config(config)
    if config.cnn and (found.depths, found.layer_type) != (wanted.depths, wanted.layer_type):
        raise BoxlessError(
            f"student.pretrained_cnn: got {name} with {found.layer_type} blocks {found.depths}, "
            f"expected {config.cnn}, which has {wanted.layer_type} blocks {wanted.depths}; set "
            "student.cnn to what the weights are, or to null"
        )
    return found


def load_cnn(name: str, resnet: ResNetModel) -> None:
    """Give a ResNet of the same sizes the weights that the name stands for. Raises as
    `cnn_config`."""
    if Path(name).is_file():
        weights = _cnn_file(name)[1]
        try:
            resnet.load_state_dict(from_torchvision(weights, resnet.state_dict()))
        except ValueError as error:
            raise BoxlessError(f"student.pretrained_cnn: {name}: {error}") from error
        return
    try:
        found = ResNetModel.from_pretrained(name)
    except OSError as error:
        _unreachable("pretrained_cnn", name, error)
    check_finite(f"student.pretrained_cnn: {name}", found.state_dict(), _DOWNLOAD)
    resnet.load_state_dict(found.state_dict())


def _cnn_file(name: str) -> tuple[ResNetConfig, dict[str, torch.Tensor]]:
    weights = {}
    read = read_checkpoint(Path(name), expected="a ResNet in torchvision's layout")
    for key, weight in read.items():
        for prefix in PREFIXES:
            key = key.removeprefix(prefix)
        weights[key] = weight
    try:
        return config_of_torchvision(weights), weights
    except ValueError as error:
        raise BoxlessError(f"student.pretrained_cnn: {name}: {error}") from error


def text_config(name: str, config: StudentConfig) -> BertConfig:
    """The sizes of the BERT that the name stands for.

    Raises ValueError where it cannot be reached, is none, or has fewer layers or positions than the
    recipe asks for.
    """
    bert = BertConfig.from_dict(_published("pretrained_text", name, "bert"))
    for field, have, want in (
        ("num_layers", bert.num_hidden_layers, config.num_layers),
        ("max_tokens", bert.max_position_embeddings, config.max_tokens),
    ):
        if want > have:
            raise BoxlessError(
                f"student.{field}: got {want}, expected at most the {have} that {name} has"
            )
    return bert


def load_bert(name: str) -> BertModel:
    """BERT without its pooler. Raises ValueError where it cannot be reached, or is not finite."""
    try:
        bert = BertModel.from_pretrained(name, add_pooling_layer=False)
    except OSError as error:
        _unreachable("pretrained_text", name, error)
    check_finite(f"student.pretrained_text: {name}", bert.state_dict(), _DOWNLOAD)
    return bert


def published_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer that the name stands for. Raises ValueError where it cannot be reached."""
    try:
        if Path(name).is_dir() and not any((Path(name) / file).is_file() for file in VOCABULARY):
            # transformers would make a tokenizer without words of it.
            raise FileNotFoundError(f"there is neither {' nor '.join(VOCABULARY)}")
        return load_tokenizer(name)
    except (OSError, ValueError) as error:
        _unreachable("pretrained_text", name, error)


def _published(field: str, name: str, kind: str) -> dict[str, Any]:
    """The config.json of a published network, which has to be of that kind."""
    try:
        if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
            raise FileNotFoundError("there is no config.json")
        fields, _ = PreTrainedConfig.get_config_dict(name)
    except (OSError, ValueError) as error:
        _unreachable(field, name, error)
    if fields.get("model_type") != kind:
        why = f". {OTHER_TEXT}" if kind == "bert" else ""
        raise BoxlessError(
            f"student.{field}: got {name}, a model of type {fields.get('model_type')!r}, expected "
            f"{kind!r}{why}"
        )
    return fields


def _unreachable(field: str, name: str, error: Exception) -> NoReturn:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    tried = (
        "the folder has not all of it"
        if Path(name).is_dir()
        else (
            "no such file or folder is here, the Hugging Face cache has none of that name, and the hub "
            "could not be reached or does not know it"
        )
    )
    raise BoxlessError(
        f"student.{field}: got {name}, which cannot be read: {tried} ({type(error).__name__}: "
        f"{first}). Expected a folder that transformers' save_pretrained wrote, a name on the hub "
        f"while it can be reached{OR_FILE if field == 'pretrained_cnn' else ''}; or start without "
        f"published weights: --set student.{field}=null"
    ) from error
