"""The recipe's `distill` part: the teacher, and how objects and the captions' phrases are
stored."""

from __future__ import annotations

from dataclasses import dataclass, field

from boxless.errors import BoxlessError
from stages.detector.detectron2_config import Detectron2Config
from stages.detector.transformers_config import TransformersConfig
from stages.distill.precomputed.config import FeaturesConfig
from stages.distill.text.similarity_config import LexicalConfig, SimilarityConfig

TEACHERS = ("run", "detectron2", "features", "transformers", "truth")
PRECISIONS = ("fp32", "tf32", "bf16")
PHRASES = ("auto", "parser", "lexicon")
OBJECT_TEXTS = ("label", "attribute label")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Settings of `boxless distill`.

    teacher: whose objects: "run" (the teacher in the run's folder), "detectron2" (a model of
        detectron2, where that is installed), "features" (what others extracted earlier),
        "transformers" (a detector that transformers can load) or "truth" (the source's own boxes,
        as a perfect teacher; ours).
    detectron2: which model; for teacher "detectron2" and no other.
    features: which files; for teacher "features" and no other.
    transformers: which model; for teacher "transformers" and no other.
    precision: of the net's convolutions and linear layers. In "fp32" each picture runs alone, so
        that its objects are the same to the bit in any company; in "bf16", and in "tf32" (for
        NVIDIA's GPUs since Ampere), pictures of one size run together, and the last digits of what
        is found depend on how many.
    batch_size: the most pictures, all of one size after resizing, that run together in "bf16" and
        "tf32". Batches are planned over a whole shard.
    bucket_px: for these two with pictures of so many shapes that batches stay small: each picture
        is padded with zeros until its sides are multiples of so many pixels (64, say), and those of
        one padded size run together. Padding moves features near the right and lower border, in a
        batch as alone. 1: nothing is padded.
    num_decoders: threads that decode and resize pictures, ahead of the net.
    score_threshold: objects below this score (0 to 1) are dropped; null: no more of them than the
        teacher itself drops. A teacher of full size from bottom-up attention chooses among its
        proposals by these three, where they are set, and not by its own.
    min_objects: the best objects kept of every picture even when they score lower; null as 0, or as
        the teacher has it.
    max_objects: the most objects kept of a picture, best first; null: all that the teacher gives.
        Bottom-up attention's Visual Genome teachers used 0.2, 10 and 100.
    phrases: who finds noun phrases: "parser" (a spaCy pipeline), "lexicon" (the teacher's own
        labels and attributes), or "auto", the parser where it is installed.
    parser: the pipeline's package name, or the path of its folder.
    num_parsers: processes that parse captions beside the one that labels and writes, some 300 MB
        each; the phrases are the same. 0: it parses itself. null: 2 where the teacher is on a GPU,
        which then does not wait for a parser, else 0. The lexicon needs none.
    similarity: how near a phrase is to an object in words: kind lexical, spacy, bert or sentence.
        The default, the cosine of their word sets, is ours: the embedding behind KD-VLP's
        similarity is not known.
    object_text: text of an object: its "label", or "attribute label" (as "red
        circle"; the label alone where the teacher has no attributes). Ours, for the same reason.
    num_threads: CPU threads of the teacher in each process; 0 leaves PyTorch's choice.
    lease_seconds: a worker whose heartbeat does not move for so long is dead, and others write its
        shard.
    accept_versions: finished shards that other versions of torch, numpy, Pillow, spaCy or
        transformers made stay as they are, and their manifests say which; else they are made again.
    """

    teacher: str = "run"
    detectron2: Detectron2Config | None = None
    features: FeaturesConfig | None = None
    transformers: TransformersConfig | None = None
    precision: str = "fp32"
    batch_size: int = 8
    bucket_px: int = 1
    num_decoders: int = 4
    score_threshold: float | None = None
    min_objects: int | None = None
    max_objects: int | None = None
    phrases: str = "auto"
    parser: str = "en_core_web_sm"
    num_parsers: int | None = None
    similarity: SimilarityConfig = field(default_factory=LexicalConfig)
    object_text: str = "attribute label"
    num_threads: int = 0
    lease_seconds: float = 60.0
    accept_versions: bool = False

    def __post_init__(self) -> None:
        if not self.lease_seconds > 0:
            raise BoxlessError(f"lease_seconds is {self.lease_seconds}; expected more than 0.")
        for name, lowest in (
            ("batch_size", 1),
            ("bucket_px", 1),
            ("num_decoders", 1),
            ("max_objects", 1),
            ("min_objects", 0),
            ("num_threads", 0),
            ("num_parsers", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise BoxlessError(f"{name} is {value}; expected {lowest} or more.")
        least, most = self.min_objects, self.max_objects
        if least is not None and most is not None and least > most:
            raise BoxlessError(f"min_objects is {least}; expected 0 to max_objects, {most}.")
        if self.score_threshold is not None and not 0.0 <= self.score_threshold <= 1.0:
            raise BoxlessError(f"score_threshold is {self.score_threshold}; expected 0 to 1.")
        for name, valid in (
            ("teacher", TEACHERS),
            ("precision", PRECISIONS),
            ("phrases", PHRASES),
            ("object_text", OBJECT_TEXTS),
        ):
            if getattr(self, name) not in valid:
                expected = ", ".join(map(repr, valid))
                raise BoxlessError(f"{name} is {getattr(self, name)!r}; expected {expected}.")
        for name in ("detectron2", "features", "transformers"):
            is_given = getattr(self, name) is not None
            if is_given != (self.teacher == name):
                raise BoxlessError(
                    f"{name} is {'set' if is_given else 'null'} while teacher is {self.teacher!r}; "
                    "expected it for that teacher, and null for any other."
                )
        if self.precision != "fp32" and self.teacher != "run":
            raise BoxlessError(
                f"precision is {self.precision!r}; expected 'fp32' with teacher {self.teacher!r}, "
                "which has its own."
            )
        if self.bucket_px > 1 and self.precision == "fp32":
            raise BoxlessError(
                f"bucket_px is {self.bucket_px} while precision is 'fp32', in which each picture "
                "runs alone at its own size; expected 1, or precision 'bf16' or 'tf32'."
            )
        if not self.parser:
            raise BoxlessError(
                "parser is empty; expected a spaCy pipeline's name, as en_core_web_sm, or path."
            )
