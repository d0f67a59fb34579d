"""A teacher that runs a detector of transformers: `distill.teacher: transformers`.

Each query of the decoder is a candidate: its box, its class probabilities (softmax without the
last, where the head has one class more than names, else sigmoid) and, as its feature, the
decoder's last hidden state; of OWL-ViT and OWLv2, which have no decoder, the class embedding of
the image token. Candidates above the threshold are suppressed within their label, and the best
stay.

The zero-shot kind is prompted with the names in pieces, each a text of its own ("a. b. c."); a
piece longer than the model's text is halved. A name's score in Grounding DINO is the largest over
its tokens. With prompts "captions" the prompts are a picture's own phrases, and the arrays have one
more field, `by_prompt`, the score of each phrase.

Pictures go through the model one by one, so what is seen in one depends on no other.

Letters: Q queries, L labels, T tokens of a text, D feature size, O objects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from boxless.errors import BoxlessError
from sharding.format.schema import object_dtype
from sharding.writing.atomic import sha256_file, sha256_of
from stages.detector.checkpoints.checkpoint_error import CheckpointError
from stages.detector.checkpoints.names_file import read_names
from stages.detector.ops.boxes import NOT_FINITE, clip, is_nonempty
from stages.detector.ops.nms import nms
from stages.detector.ops.resize import Prepared
from stages.detector.predictor import largest, structured
from stages.detector.transformers_config import TransformersConfig

LARGEST_HALF = float(np.finfo(np.float16).max)
OWL = ("owlvit", "owlv2")  # text and image tokens are compared one by one
TOKENS = ("grounding-dino", "mm-grounding-dino")  # one logit a token of the text
SQUARED = ("owlv2",)  # pictures are padded to a square, of which boxes are shares


class TransformersError(BoxlessError):
    """The model cannot be used as a teacher."""


class CaptionLabels(NamedTuple):
    """Labels for objects that were found by the phrases of captions."""

    names: list[str]
    label_of: Callable[[str], int]  # of a phrase


class Candidates(NamedTuple):
    """What the queries of one picture, and of one text, say."""

    boxes: Tensor  # [Q, 4], shares of the picture: middle x, y, width, height
    probabilities: Tensor  # [Q, L]
    features: Tensor  # [Q, D]


class TransformersTeacher:
    """A detector of transformers, as distillation needs it.

    label_names: by number. feature_size: D. num_top: K. fingerprint: names weights and
    settings.
    """

    attribute_names: Sequence[str] = ()

    def __init__(
        self,
        model: Any,
        processor: Any,
        tokenizer: Any,
        config: TransformersConfig,
        *,
        label_names: list[str],
        fingerprint: str,
        caption_labels: CaptionLabels | None = None,
    ) -> None:
        """tokenizer: None for a model that knows its classes. caption_labels: with prompts
        "captions"."""
        self._model, self._processor, self._tokenizer = model.eval(), processor, tokenizer
        self._config, self._device = config, next(model.parameters()).device
        self._caption_labels = caption_labels
        self.label_names, self.fingerprint = label_names, fingerprint
        self.num_top = min(config.num_top, len(label_names))
        self.feature_size = _feature_size(model.config)

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """That of the picture itself, as each one runs alone."""
        return height, width

    def prepare(self, picture: Tensor) -> Prepared:
        """A picture uint8 RGB [H, W, 3] as the model's own image processor makes it; `pixels` is
        float32 [h, w, 3]."""
        made = self._processor(images=picture.numpy(), return_tensors="pt")
        pixels = made["pixel_values"][0].permute(1, 2, 0)
        height, width = picture.shape[:2]
        return Prepared(pixels, height, width, (pixels.shape[1] / width, pixels.shape[0] / height))

    @torch.no_grad()
    def detect(self, prepared: list[Prepared]) -> list[np.ndarray]:
        """Objects of each picture, boxes in pixels of the original one, rows by falling score."""
        return [self._detect(picture) for picture in prepared]

    def _detect(self, picture: Prepared) -> np.ndarray:
        pixels = picture.pixels.permute(2, 0, 1)[None].to(self._device)
        if self._tokenizer is None:
            seen = self._model(pixel_values=pixels)
            return self._array(_of_classes(seen, len(self.label_names)), picture)
        if self._caption_labels is not None:
            return self._of_captions(pixels, picture, self._caption_labels.label_of)
        texts = [name.split(",")[0].strip() for name in self.label_names]
        return self._array(self._of_texts(pixels, texts), picture)

    def _of_captions(
        self, pixels: Tensor, picture: Prepared, label_of: Callable[[str], int]
    ) -> np.ndarray:
        """The objects that the phrases of a picture's captions name; none without phrases."""
        dtype = self._dtype([("by_prompt", "<f4", (len(picture.prompts),))])
        if not picture.prompts:
            return np.zeros(0, dtype)
        found = self._of_texts(pixels, list(picture.prompts))
        labels = torch.tensor([label_of(text) for text in picture.prompts])
        num_rows, num_labels = len(found.boxes), len(self.label_names)
        by_label = torch.zeros(num_rows, num_labels, device=found.boxes.device).scatter_reduce(
            1, labels.to(found.boxes.device).expand(num_rows, -1), found.probabilities, "amax"
        )
        return self._array(found._replace(probabilities=by_label), picture, found.probabilities)

    def _of_texts(self, pixels: Tensor, texts: list[str]) -> Candidates:
        """The candidates of every piece of the texts, which have the probability 0 of the
        others."""
        parts = []
        size = self._config.labels_per_prompt
        for start in range(0, len(texts), size):
            parts += self._of_piece(pixels, texts[start : start + size])
        rows, start = [], 0
        for some in parts:
            width = some.probabilities.shape[1]
            row = some.probabilities.new_zeros(len(some.boxes), len(texts))
            row[:, start : start + width] = some.probabilities
            rows.append(some._replace(probabilities=row))
            start += width
        return Candidates(*(torch.cat(tensors).float() for tensors in zip(*rows)))

    def _of_piece(self, pixels: Tensor, texts: list[str]) -> list[Candidates]:
        """The candidates of some texts, by halves where they are too long together."""
        texts = [text.lower() for text in texts]
        if self._model.config.model_type in OWL:
            return [self._of_owl(pixels, texts)]
        text = ". ".join(texts) + "."
        inputs = self._tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
        num_tokens, most = inputs["input_ids"].shape[1], self._model.config.max_text_len
        if num_tokens <= most:
            return [self._of_tokens(pixels, texts, inputs)]
        if len(texts) == 1:
            raise TransformersError(
                f"{texts[0][:80]!r}: got a name or phrase of {num_tokens} tokens, expected at most "
                f"{most}, as the model reads no more"
            )
        half = len(texts) // 2
        return self._of_piece(pixels, texts[:half]) + self._of_piece(pixels, texts[half:])

    def _of_owl(self, pixels: Tensor, texts: list[str]) -> Candidates:
        # As OWL-ViT's processor pads; its models were trained so.
        inputs = self._tokenizer(
            texts, padding="max_length", max_length=16, truncation=True, return_tensors="pt"
        ).to(self._device)
        seen = self._model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            pixel_values=pixels,
        )
        features = seen.class_embeds[0]
        return Candidates(seen.pred_boxes[0], seen.logits[0].float().sigmoid(), features)

    def _of_tokens(self, pixels: Tensor, texts: list[str], inputs: Any) -> Candidates:
        (offsets,) = inputs.pop("offset_mapping").tolist()
        inputs = inputs.to(self._device)
        seen = self._model(pixel_values=pixels, **inputs)
        scores = seen.logits[0].float().sigmoid()
        columns, start = [], 0
        for name in texts:
            end = start + len(name)
            of_name = [i for i, (a, b) in enumerate(offsets) if start <= a < b <= end]
            columns.append(scores[:, of_name].amax(1) if of_name else scores.new_zeros(len(scores)))
            start = end + len(". ")
        probabilities = torch.stack(columns, 1)
        return Candidates(seen.pred_boxes[0], probabilities, seen.last_hidden_state[0])

    def _dtype(self, more: Sequence[tuple[str, str, tuple[int, ...]]]) -> np.dtype:
        """Of the arrays, with `more` fields after those of the schema."""
        schema = object_dtype(
            feature_size=self.feature_size, num_top=self.num_top, attributes=False
        )
        return np.dtype([*schema.descr, *more])

    def _array(
        self, candidates: Candidates, picture: Prepared, by_prompt: Tensor | None = None
    ) -> np.ndarray:
        """The objects among the candidates; by_prompt [Q, phrases] goes into the field of that
        name."""
        if candidates.probabilities.isnan().any() or not candidates.boxes.isfinite().all():
            raise BoxlessError(NOT_FINITE)
        scores, labels = candidates.probabilities.max(1)
        middle, sides = candidates.boxes[:, :2], candidates.boxes[:, 2:]
        boxes = torch.cat([middle - sides / 2, middle + sides / 2], 1)
        width, height = picture.width, picture.height
        if self._model.config.model_type in SQUARED:
            width = height = max(picture.width, picture.height)
        boxes = clip(boxes * boxes.new_tensor([width, height] * 2), (picture.height, picture.width))
        rows = torch.nonzero((scores > self._config.score_threshold) & is_nonempty(boxes)).flatten()
        kept = nms(
            boxes[rows],
            scores[rows],
            labels[rows],
            threshold=self._config.iou,
            max_kept=self._config.max_objects,
        )
        rows = rows[kept]
        top_scores, top_labels = largest(candidates.probabilities[rows], self.num_top)
        fields = {
            "box": boxes[rows],
            "score": scores[rows],
            "label": labels[rows],
            "feature": candidates.features[rows].clamp(-LARGEST_HALF, LARGEST_HALF),
            "top_label": top_labels,
            "top_score": top_scores,
        }
        more = []
        if by_prompt is not None:
            fields["by_prompt"] = by_prompt[rows]
            more.append(("by_prompt", "<f4", (by_prompt.shape[1],)))
        (array,) = structured(fields, torch.zeros_like(rows), 1, self._dtype(more))
        return array


def load_transformers(
    config: TransformersConfig,
    device: torch.device,
    caption_labels: CaptionLabels | None = None,
) -> TransformersTeacher:
    """The teacher of the recipe's `distill.transformers`; caption_labels: with prompts "captions".

    Raises TransformersError where the folder holds no detector that can be a teacher, or where its
    labels do not fit.
    """
    folder = Path(config.model)
    if not (folder / "config.json").is_file():
        raise TransformersError(
            f"model: got {config.model!r} without a config.json, expected the folder of a detector "
            "of transformers; download it first."
        )
    try:
        model, processor, tokenizer = _load_folder(folder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise TransformersError(
            f"model: got {type(error).__name__}: {str(error)[:300]} from {config.model}, expected "
            "an object detector or a zero-shot one, with its image processor and tokenizer."
        ) from error
    is_open = tokenizer is not None
    if config.prompts == "captions":
        if not is_open or caption_labels is None:
            raise TransformersError(
                f"prompts: got 'captions' for a model of type {model.config.model_type}, expected "
                f"'names', or a zero-shot detector ({', '.join((*OWL, *TOKENS))})"
            )
        names = caption_labels.names
    else:
        names = _label_names(config, model.config, is_open)
    weights = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    fingerprint = sha256_of(
        {
            "weights": [sha256_file(path) for path in weights],
            "model": model.config.to_dict(),
            "processor": processor.to_dict(),
            "labels": names,
            "settings": [config.labels_per_prompt, config.score_threshold, config.iou,
                         config.max_objects, config.num_top],
            **({"prompts": config.prompts} if config.prompts != "names" else {}),
        }
    )  # fmt: skip
    return TransformersTeacher(
        model.to(device), processor, tokenizer, config, label_names=names,
        fingerprint=fingerprint, caption_labels=caption_labels,
    )  # fmt: skip


def _load_folder(folder: Path) -> tuple[Any, Any, Any]:
    """The detector of a folder, in float32, its image processor, and the tokenizer of a zero-shot
    one, None of others."""
    import transformers

    is_open = transformers.AutoConfig.from_pretrained(folder).model_type in (*OWL, *TOKENS)
    loader = (
        transformers.AutoModelForZeroShotObjectDetection
        if is_open
        else transformers.AutoModelForObjectDetection
    )
    model = loader.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder) if is_open else None
    # Some processors miss a package only when they are used.
    processor(images=np.zeros((32, 32, 3), np.uint8), return_tensors="pt")
    return model, processor, tokenizer


def _label_names(config: TransformersConfig, model_config: Any, is_open: bool) -> list[str]:
    """The recipe's names, or those that the model was trained on."""
    if config.labels is None and is_open:
        raise TransformersError(
            f"labels: got null, expected a text file with one name a line: {model_config.model_type}"
            " detects only what it is prompted with."
        )
    own = [model_config.id2label[number] for number in range(len(model_config.id2label))]
    if config.labels is None:
        return own
    try:
        names = read_names(Path(config.labels))
    except CheckpointError as error:
        raise TransformersError(f"labels: {error}") from error
    if not is_open and len(names) != len(own):
        raise TransformersError(
            f"labels: got {len(names)} names, expected {len(own)}, the classes of the model."
        )
    return names


def _of_classes(seen: Any, num_labels: int) -> Candidates:
    """The candidates of a detector that knows its classes."""
    logits = seen.logits[0].float()
    if logits.shape[1] == num_labels + 1:  # the last is "no object"
        probabilities = logits.softmax(1)[:, :-1]
    else:
        probabilities = logits.sigmoid()
    return Candidates(seen.pred_boxes[0], probabilities, seen.last_hidden_state[0])


def _feature_size(config: Any) -> int:
    if config.model_type in OWL:
        return int(config.text_config.hidden_size)
    return int(getattr(config, "d_model", None) or config.hidden_size)
