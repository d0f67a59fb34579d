"""The recipe's `ingest` part."""

from __future__ import annotations

from dataclasses import dataclass, field

from boxless.errors import BoxlessError
from stages.ingest.splits import SPLITS, WORDS

SOURCES = ("toy", "coco", "nlvr", "webdataset", "flickr30k-entities", "visual-genome")

# Pillow warns above this and later refuses (PIL.Image.MAX_IMAGE_PIXELS), and every later stage
# decodes with Pillow.
MAX_MEGAPIXELS = 89.0

_NEEDED_PATHS: dict[str, tuple[str, ...]] = {
    "toy": (),
    "coco": ("root", "captions"),
    "nlvr": ("root",),
    "webdataset": ("root",),
    "flickr30k-entities": ("root", "annotations"),
    "visual-genome": ("root", "annotations"),
}
_OPTIONAL_PATHS: dict[str, tuple[str, ...]] = {"coco": ("images", "instances", "phrases")}
_MEANING = {
    "root": "a folder: of the pictures (coco, flickr30k-entities, visual-genome), of the corpus "
    "(nlvr), of the tars (webdataset)",
    "images": "the folder of the pictures, where it is not root itself",
    "captions": "a captions file in COCO's layout, as captions_val2017.json, or in Karpathy's",
    "instances": "an instances file in COCO's layout, as instances_val2017.json",
    "phrases": "a file of phrases in JSON lines",
    "annotations": "the folder of Flickr30k Entities (Annotations, Sentences) or of Visual Genome "
    "(region_descriptions.json, image_data.json, objects.json)",
}


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Which pictures to read, how to split them, and which to refuse.

    source: "toy" (drawn scenes), "coco" (folders of pictures with captions in COCO's layout or in
        Karpathy's), "nlvr" (a clone of the NLVR corpus), "webdataset" (tars with a picture and a
        txt or json caption a key), "flickr30k-entities" or "visual-genome" (their original files).
    root: the folder of the pictures (subfolders are looked through), of the corpus (nlvr) or of the
        tars (webdataset; subfolders are not). None for toy.
    images: the folder of the pictures where it is not root (coco only). In images, captions,
        instances and phrases, {root} stands for root and {split} for each value of splits in turn:
        "{root}/images/{split}".
    captions: path of the captions JSON (coco only).
    instances: path of an instances JSON, which gives the boxes that a teacher is trained on (coco
        only, optional).
    phrases: path of the phrases of the captions and the boxes they mean, JSON lines as
        `sources/phrase_files.py` has them (coco only, optional, with instances).
    annotations: the folder of the original files of Flickr30k Entities or Visual Genome.
    splits: which of the corpus's splits are which of ours, {train: WORD, dev: WORD, test: WORD};
        several words are joined by "+". With {split} in captions each word has files of its own.
        With Karpathy's JSON words are the file's own; {} takes train and restval to train on, val
        to hold out, test to test. Every key but train may be left out.
    prefix_keys_by_tar: put the tar's name before each key, for tars whose keys start over in each
        (webdataset only).
    num_train: scenes to draw for training (toy only).
    num_heldout: scenes to draw that no stage trains on (toy only).
    heldout_fraction: share of the groups held out where neither splits nor the corpus says which,
        from 0 to below 1. A group is a picture, and for nlvr all that was presented together. Which
        ones is a hash of seed and group, so the share is met only on average.
    exclude: lists of pictures that others evaluate on (Karpathy's JSON: its val and test; or text
        files with a name or id a line); they are left out of the train split.
    allow_evaluation_pictures: train on pictures that the corpus has for val or test, and on COCO's
        and Visual Genome's without a list of those that others evaluate on. Ours.
    samples_per_shard: inputs that share a tar.
    max_megapixels: a picture above this is refused, in millions of pixels; at most 89.
    min_side_px: a picture with a shorter side below this is refused, in pixels.
    nlvr_num_orders: how many of the six orders of an example's boxes to take (nlvr only), 1 to 6.
    vg_num_labels: how many of the commonest object names are labels (visual-genome only; 1600 is
        bottom-up attention's number).
    vg_num_attributes: how many of the commonest attributes are kept (visual-genome only).
    lease_seconds: a worker whose heartbeat does not move for so long is dead, and others write its
        shard.
    accept_versions: finished shards that another version of Pillow made stay as they are, and their
        manifests say which; else they are made again.
    """

    source: str = "toy"
    root: str | None = None
    images: str | None = None
    captions: str | None = None
    instances: str | None = None
    phrases: str | None = None
    annotations: str | None = None
    splits: dict[str, str] = field(default_factory=dict)
    prefix_keys_by_tar: bool = False
    num_train: int = 2000
    num_heldout: int = 256
    heldout_fraction: float = 0.1
    exclude: list[str] = field(default_factory=list)
    allow_evaluation_pictures: bool = False
    samples_per_shard: int = 500
    max_megapixels: float = 50.0
    min_side_px: int = 16
    nlvr_num_orders: int = 6
    vg_num_labels: int = 1600
    vg_num_attributes: int = 400
    lease_seconds: float = 60.0
    accept_versions: bool = False

    def __post_init__(self) -> None:
        if not self.lease_seconds > 0:
            raise BoxlessError(f"lease_seconds: got {self.lease_seconds}, expected more than 0")
        if self.source not in SOURCES:
            raise BoxlessError(
                f"ingest.source is {self.source!r}; it is one of {', '.join(SOURCES)}"
            )
        for name in _MEANING:
            self._check_path(name)
        self._check_splits()
        for name, low, high in (
            ("num_train", 1, float("inf")),
            ("num_heldout", 0, float("inf")),
            ("samples_per_shard", 1, float("inf")),
            ("min_side_px", 1, float("inf")),
            ("nlvr_num_orders", 1, 6),
            ("vg_num_labels", 1, float("inf")),
            ("vg_num_attributes", 0, float("inf")),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                limit = f"at least {low}" if high == float("inf") else f"from {low} to {high}"
                raise BoxlessError(f"ingest.{name} is {value}; it must be {limit}")
        if not 0 <= self.heldout_fraction < 1:
            raise BoxlessError(
                f"ingest.heldout_fraction is {self.heldout_fraction}; it must be from 0 to below 1"
            )
        if not 0 < self.max_megapixels <= MAX_MEGAPIXELS:
            raise BoxlessError(
                f"ingest.max_megapixels is {self.max_megapixels}; it must be above 0 and at most "
                f"{MAX_MEGAPIXELS:g}, where Pillow stops decoding"
            )

    @property
    def words_of_splits(self) -> dict[str, str]:
        """`splits` with our names of the splits: {"train" or "heldout" or "test": words}."""
        return {WORDS[name]: words for name, words in self.splits.items()}

    @property
    def split_of_word(self) -> dict[str, str]:
        """{each word of `splits`: our split}."""
        return {
            word: split
            for split, words in self.words_of_splits.items()
            for word in words.split("+")
        }

    def _check_path(self, name: str) -> None:
        given = getattr(self, name)
        if given is None and name in _NEEDED_PATHS[self.source]:
            raise BoxlessError(
                f"ingest.{name} is not set; source {self.source!r} needs {_MEANING[name]}: "
                f"--set ingest.{name}=PATH"
            )
        taken = (*_NEEDED_PATHS[self.source], *_OPTIONAL_PATHS.get(self.source, ()))
        if given is not None and name not in taken:
            expected = f"takes only {', '.join(taken)}" if taken else "takes no path"
            raise BoxlessError(
                f"ingest.{name} is {given!r}, but source {self.source!r} {expected}; "
                "leave it out or choose another ingest.source"
            )
        if name == "phrases" and given is not None and self.instances is None:
            raise BoxlessError(
                "ingest.phrases is set, but ingest.instances is not; expected both, as the phrases "
                "index the boxes of the instances"
            )

    def _check_splits(self) -> None:
        with_split = [
            name
            for name in ("images", "captions", "instances", "phrases")
            if "{split}" in (getattr(self, name) or "")
        ]
        if with_split and not self.splits:
            raise BoxlessError(
                f"ingest.{with_split[0]} has {{split}}, but ingest.splits is empty; expected the "
                "words that stand for it: {train: train, dev: dev}"
            )
        if with_split and "captions" not in with_split:
            raise BoxlessError(
                f"ingest.{with_split[0]} has {{split}}, but ingest.captions has not; expected a "
                "captions file for each split"
            )
        if self.splits and self.source not in ("coco", "flickr30k-entities"):
            raise BoxlessError(
                f"ingest.splits is set, but source {self.source!r} has no splits to choose from; "
                "leave it out"
            )
        unknown = [name for name in self.splits if name not in WORDS]
        ours = [WORDS[name] for name in self.splits if name in WORDS]
        words = [word for several in self.splits.values() for word in several.split("+")]
        if unknown or len(set(ours)) != len(ours) or (self.splits and "train" not in ours):
            raise BoxlessError(
                f"ingest.splits has the keys {', '.join(self.splits)}; expected train and perhaps "
                f"dev and test, each once (ours: {', '.join(SPLITS)})"
            )
        if not all(words) or len(set(words)) != len(words):
            raise BoxlessError(
                f"ingest.splits is {self.splits}; expected words, each in one split, as "
                '{train: "train+restval", dev: val}'
            )
