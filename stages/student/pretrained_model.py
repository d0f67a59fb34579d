"""What transformers asks of a model class: initial weights, embeddings, loading and saving."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, initialization
from transformers.models.bert.modeling_bert import BertEmbeddings

from stages.student.folder.auto_classes import InstalledClass, write_module
from stages.student.folder.errors import check_finite, check_loaded, loading, student_folder
from stages.student.folder.renamed import KEY_MAPPING
from stages.student.heads import MlmHead
from stages.student.network_config import StudentNetConfig
from stages.student.query_bank import QueryBank


class StudentPreTrainedModel(InstalledClass, PreTrainedModel):
    """The base class of `Student`, as BertPreTrainedModel is of BertModel."""

    config_class = StudentNetConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    # `forward` takes other arguments only to refuse them; with them transformers' Trainer would
    # leave the division by the accumulated batches to it.
    accepts_loss_kwargs = False
    # What `from_pretrained` leaves in float32 of a student saved in half precision.
    _keep_in_fp32_modules_strict = ["dictionary", "running_mean", "running_var"]
    embeddings: BertEmbeddings
    mlm_head: nn.Module

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """BERT's rule (`config.initializer_range`) for the Transformer and the heads, He's for the
        CNN. Also fills the buffers that no checkpoint holds, as BERT's own models do."""
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            initialization.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, BertEmbeddings):
            initialization.copy_(module.position_ids, torch.arange(module.position_ids.shape[1]))
            initialization.zeros_(module.token_type_ids)
        elif isinstance(module, QueryBank):
            initialization.zeros_(module.get_buffer("pictures"))
            initialization.zeros_(module.get_buffer("texts"))

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings, as transformers asks for them."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put `value` in the place of the word embeddings."""
        self.embeddings.word_embeddings = value

    @torch.no_grad()
    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """As in transformers: rows of words are added at the end, or removed there, in the word
        embeddings and in the MLM head's bias."""
        words = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if isinstance(self.mlm_head, MlmHead):
            bias = self.mlm_head.bias.new_zeros(words.num_embeddings)
            num_same = min(len(bias), len(self.mlm_head.bias))
            bias[:num_same] = self.mlm_head.bias[:num_same]
            self.mlm_head.bias = nn.Parameter(bias)
        self.config.bert["vocab_size"] = words.num_embeddings
        return words

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As in transformers, with ~ expanded. Raises ValueError for a folder that is not there, is
        incomplete, or has weights that are not finite; weights may be missing only of parts that
        values of the config among the arguments add."""
        if kwargs.get("state_dict") is not None:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        folder = student_folder(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        gives_info = kwargs.pop("output_loading_info", False)
        is_changed = bool(inspect.signature(StudentNetConfig.__init__).parameters.keys() & kwargs)
        kwargs["key_mapping"] = {**KEY_MAPPING, **(kwargs.get("key_mapping") or {})}
        with loading(folder):
            loaded: Any = super().from_pretrained(folder, *args, output_loading_info=True, **kwargs)
        student, info = loaded
        # transformers would save under the old names again.
        student._weight_conversions = []
        check_loaded(folder, () if is_changed else info["missing_keys"])
        check_finite(folder, student.state_dict())
        return (student, info) if gives_info else student

    def save_pretrained(
        self, save_directory: str | os.PathLike[Any], *args: Any, **kwargs: Any
    ) -> None:
        """As in transformers; the Auto classes can open the folder
        (stages.student.folder.auto_classes)."""
        super().save_pretrained(save_directory, *args, **kwargs)
        write_module(Path(save_directory))

    def _upload_modified_files(
        self, working_dir: str | os.PathLike[Any], *args: Any, **kwargs: Any
    ) -> Any:
        """As in transformers, whose `save_pretrained(push_to_hub=True)` calls it."""
        write_module(Path(working_dir))
        return super()._upload_modified_files(working_dir, *args, **kwargs)
