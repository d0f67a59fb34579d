"""What the recipe says about ingest. Reached from `pipeline` as the recipe's `ingest` part."""

from __future__ import annotations

from dataclasses import dataclass

SOURCES = ("toy", "coco", "nlvr", "webdataset")

# Pillow warns above this and later refuses (PIL.Image.MAX_IMAGE_PIXELS), and every later stage
# decodes with Pillow.
MAX_MEGAPIXELS = 89.0

_NEEDED_PATHS: dict[str, tuple[str, ...]] = {
    "toy": (),
    "coco": ("root", "captions"),
    "nlvr": ("root",),
    "webdataset": ("root",),
}
_OPTIONAL_PATHS: dict[str, tuple[str, ...]] = {"coco": ("instances",)}
_MEANING = {
    "root": "a folder: of the pictures (coco), of the corpus (nlvr), of the tars (webdataset)",
    "captions": "a captions file in COCO's format, as captions_val2017.json",
    "instances": "an instances file in COCO's format, as instances_val2017.json",
}


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Which pictures to take, how to part them and which to refuse.

    source: "toy" (drawn scenes), "coco" (an image folder and a captions JSON), "nlvr" (a clone of
        the NLVR corpus) or "webdataset" (tars with a picture and a txt or json caption a key).
    root: the folder of the pictures (coco; subfolders are looked through), of the corpus (nlvr) or
        of the tars (webdataset; subfolders are not). None for toy.
    captions: path of the captions JSON (coco only).
    instances: path of an instances JSON, which gives the boxes that a teacher is trained on (coco
        only, optional).
    num_train: scenes to draw for training (toy only).
    num_heldout: scenes to draw that no stage trains on (toy only).
    heldout_fraction: share of the groups held out (all but toy), from 0 to below 1. A group is a
        picture, and for nlvr all that was presented together. Which ones is a hash of seed and
        group, so the share is met only on average.
    samples_per_shard: inputs that share a tar.
    max_megapixels: a picture above this is refused, in millions of pixels; at most 89.
    min_side_px: a picture with a shorter side below this is refused, in pixels.
    nlvr_num_orders: how many of the six orders of an example's boxes to take (nlvr only), 1 to 6.
    """

    source: str = "toy"
    root: str | None = None
    captions: str | None = None
    instances: str | None = None
    num_train: int = 2000
    num_heldout: int = 256
    heldout_fraction: float = 0.1
    samples_per_shard: int = 500
    max_megapixels: float = 50.0
    min_side_px: int = 16
    nlvr_num_orders: int = 6

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"ingest.source is {self.source!r}; it is one of {', '.join(SOURCES)}")
        for name in _MEANING:
            self._check_path(name)
        for name, low, high in (
            ("num_train", 1, float("inf")),
            ("num_heldout", 0, float("inf")),
            ("samples_per_shard", 1, float("inf")),
            ("min_side_px", 1, float("inf")),
            ("nlvr_num_orders", 1, 6),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                limit = f"at least {low}" if high == float("inf") else f"from {low} to {high}"
                raise ValueError(f"ingest.{name} is {value}; it must be {limit}")
        if not 0 <= self.heldout_fraction < 1:
            raise ValueError(
                f"ingest.heldout_fraction is {self.heldout_fraction}; it must be from 0 to below 1"
            )
        if not 0 < self.max_megapixels <= MAX_MEGAPIXELS:
            raise ValueError(
                f"ingest.max_megapixels is {self.max_megapixels}; it must be above 0 and at most "
                f"{MAX_MEGAPIXELS:g}, where Pillow stops decoding"
            )

    def _check_path(self, name: str) -> None:
        given = getattr(self, name)
        if given is None and name in _NEEDED_PATHS[self.source]:
            raise ValueError(
                f"ingest.{name} is not set; source {self.source!r} needs {_MEANING[name]}: "
                f"--set ingest.{name}=PATH"
            )
        taken = (*_NEEDED_PATHS[self.source], *_OPTIONAL_PATHS.get(self.source, ()))
        if given is not None and name not in taken:
            expected = f"takes only {', '.join(taken)}" if taken else "takes no path"
            raise ValueError(
                f"ingest.{name} is {given!r}, but source {self.source!r} {expected}; "
                "leave it out or choose another ingest.source"
            )
