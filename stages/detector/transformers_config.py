"""The recipe's `distill.transformers` part: the detector and its settings.

Used with `distill.teacher: transformers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from boxless.errors import BoxlessError


@dataclass(frozen=True, kw_only=True)
class TransformersConfig:
    """A detector that transformers can load: `AutoModelForObjectDetection` (DETR, RT-DETR, D-FINE
    ...) or `AutoModelForZeroShotObjectDetection` (Grounding DINO, LLMDet, OWLv2 ...).

    model: folder of the weights, as `save_pretrained` or a download left it, with its
        preprocessor_config.json and for the zero-shot kind its tokenizer; nothing is downloaded.
    labels: text file with the name of a class a line. The zero-shot kind needs it, as that is what
        it looks for; null takes the classes that the other kind was trained on.
    prompts: what the zero-shot kind looks for: "names" (all of `labels`, in every picture) or
        "captions" (the phrases of the picture's own captions; `labels` is null). With "captions"
        an object knows its phrases, which are also the similarity of phrases and objects, and its
        label is a content word of the corpus's captions.
    max_caption_labels: the commonest content words that are labels, with prompts "captions".
    labels_per_prompt: names or phrases in one prompt of the zero-shot kind; the pieces'
        objects are merged.
    score_threshold: objects scoring this or less (0 to 1) are not reported.
    iou: overlap above which the better of two objects of a class pushes out the other.
    max_objects: most objects of a picture. num_top: classes in an object's soft label.
    """

    model: str
    labels: str | None = None
    prompts: Literal["names", "captions"] = "names"
    max_caption_labels: int = 1600
    labels_per_prompt: int = 40
    score_threshold: float = 0.1
    iou: float = 0.7
    max_objects: int = 36
    num_top: int = 5

    def __post_init__(self) -> None:
        if not self.model:
            raise BoxlessError("model: got nothing, expected the folder of a model's weights.")
        if self.prompts not in ("names", "captions"):
            raise BoxlessError(f"prompts: got {self.prompts!r}, expected 'names' or 'captions'.")
        if self.prompts == "captions" and self.labels is not None:
            raise BoxlessError(
                f"labels: got {self.labels!r} with prompts 'captions', expected null: labels are "
                "then words of the captions."
            )
        for name in ("labels_per_prompt", "max_objects", "num_top", "max_caption_labels"):
            if getattr(self, name) < 1:
                raise BoxlessError(f"{name}: got {getattr(self, name)}, expected 1 or more.")
        for name in ("score_threshold", "iou"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise BoxlessError(f"{name}: got {getattr(self, name)}, expected 0 to 1.")
