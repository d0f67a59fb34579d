"""The recipe's `distill` part: how the teacher's objects and the captions' phrases are kept.

Reached from `pipeline.recipe`; read by `stages.distill.run`.
"""

from __future__ import annotations

from dataclasses import dataclass

PHRASES = ("auto", "parser", "lexicon")
SIMILARITIES = ("lexical",)
OBJECT_TEXTS = ("label", "attribute label")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Settings of `boxless distill`.

    batch_size: pictures the teacher sees at once.
    score_threshold: objects below this score (0 to 1) are dropped.
    min_objects: the best objects kept of every picture even when they score lower.
    max_objects: the most objects kept of a picture, best first. Bottom-up attention's Visual
        Genome teachers used 0.2, 10 and 100.
    phrases: who finds noun phrases: "parser" (a spaCy pipeline), "lexicon" (the teacher's own
        labels and attributes), or "auto", the parser where it is installed.
    parser: the pipeline's package name, or the path of its folder.
    similarity: how near a phrase is to an object in words. "lexical" is the cosine of their word
        sets; it is ours, because the embedding behind KD-VLP's similarity is not known.
    object_text: the words that stand for an object: its "label", or "attribute label" (as "red
        circle"; the label alone where the teacher has no attributes). Ours, for the same reason.
    num_threads: CPU threads of the teacher in each process; 0 leaves PyTorch's choice.
    """

    batch_size: int = 8
    score_threshold: float = 0.2
    min_objects: int = 1
    max_objects: int = 100
    phrases: str = "auto"
    parser: str = "en_core_web_sm"
    similarity: str = "lexical"
    object_text: str = "attribute label"
    num_threads: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("max_objects", 1), ("num_threads", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected {least} or more.")
        if not 0 <= self.min_objects <= self.max_objects:
            raise ValueError(
                f"min_objects is {self.min_objects}; expected 0 to max_objects, "
                f"{self.max_objects}."
            )
        if not 0.0 <= self.score_threshold <= 1.0:
            raise ValueError(f"score_threshold is {self.score_threshold}; expected 0 to 1.")
        for name, valid in (
            ("phrases", PHRASES),
            ("similarity", SIMILARITIES),
            ("object_text", OBJECT_TEXTS),
        ):
            if getattr(self, name) not in valid:
                expected = ", ".join(map(repr, valid))
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {expected}.")
        if not self.parser:
            raise ValueError(
                "parser is empty; expected a spaCy pipeline's name, as en_core_web_sm, or path."
            )
