"""`boxless sizing`: estimates the disk and memory of a data set from its numbers."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from boxless.errors import BoxlessError
from pipeline.cli.arguments import whole_number
from pipeline.units import bytes_in_words

Commands = argparse._SubParsersAction
_TAR_BLOCK = 512
# Per sample, measured by `python -m benchmarks.sharding.scale` (42 million samples): the order's
# own memory, and memory-mapped shapes and permutations.
_ORDER_BYTES, _MAPPED_BYTES = 3, 6
# A line of a manifest with two or three members, as files of real sets have it.
_MANIFEST_BYTES = 170
_JSON_BYTES, _CAPTION_BYTES, _PHRASE_BYTES = 120, 60, 90
_SIMILARITY_BYTES = 8  # a number with its comma
_LONGEST_ROW = 1_000_000  # numpy counts the bytes of a row with 32 bits


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """The numbers of a data set."""

    pictures: int
    """Pictures of the data set."""
    picture_bytes: int = 100_000
    """Mean size of an encoded picture."""
    captions: int = 5
    """Captions of a picture."""
    phrases: int = 2
    """Noun phrases of a caption."""
    objects: int = 36
    """Objects of a picture."""
    feature_size: int = 2048
    """Length of an object's feature, in half precision."""
    num_top: int = 5
    """Classes in a soft label."""
    samples_per_shard: int = 1000
    """Samples in a tar."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise BoxlessError(f"{name}: got {value}, expected more than 0")
        for name in ("feature_size", "num_top"):
            if getattr(self, name) > _LONGEST_ROW:
                raise BoxlessError(
                    f"{name}: got {getattr(self, name)}, expected at most {_LONGEST_ROW}"
                )

    def sample_bytes(self, *, with_objects: bool) -> int:
        """Bytes of a sample in a tar: headers, payloads and padding of its members."""
        members = [self.picture_bytes, _JSON_BYTES + self.captions * _CAPTION_BYTES]
        if with_objects:
            from sharding.format.schema import object_dtype

            row = object_dtype(
                feature_size=self.feature_size, num_top=self.num_top, attributes=True
            )
            phrase = _PHRASE_BYTES + self.objects * _SIMILARITY_BYTES
            members[1] += self.captions * self.phrases * phrase
            members.append(128 + self.objects * row.itemsize)
        return sum(_TAR_BLOCK + -(-size // _TAR_BLOCK) * _TAR_BLOCK for size in members)

    def rows(self) -> list[tuple[str, str]]:
        """(what, how much), for people."""
        shards = -(-self.pictures // self.samples_per_shard)
        images = self.pictures * self.sample_bytes(with_objects=False)
        objects = self.pictures * self.sample_bytes(with_objects=True)
        return [
            ("shards", f"{shards:,} of {self.samples_per_shard:,} samples"),
            ("image shards", bytes_in_words(images)),
            ("object shards (pictures included)", bytes_in_words(objects)),
            ("manifests of both", bytes_in_words(2 * self.pictures * _MANIFEST_BYTES)),
            ("order of samples, memory of a rank", bytes_in_words(self.pictures * _ORDER_BYTES)),
            ("shapes, memory-mapped on a node", bytes_in_words(self.pictures * _MAPPED_BYTES)),
        ]


def add_sizing_command(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `sizing` to the command line's parser."""
    sizing = commands.add_parser(
        "sizing",
        help="estimate disk and memory of a data set",
        description="Sizes follow from the file formats. `boxless cluster-plan` estimates times from a "
        "small run.",
    )
    number = whole_number(lowest=0)
    sizing.add_argument("--pictures", type=number, required=True, metavar="N", help="pictures")
    for option, text in (
        ("picture-bytes", "mean size of an encoded picture"),
        ("captions", "captions of a picture"),
        ("objects", "objects of a picture"),
        ("feature-size", "length of an object's feature"),
        ("samples-per-shard", "samples in a tar"),
    ):
        default = getattr(Sizing, option.replace("-", "_"))
        sizing.add_argument(
            f"--{option}",
            type=number,
            default=default,
            metavar="N",
            help=f"{text} (default: {default})",
        )
    sizing.set_defaults(command=_sizing)


def _sizing(args: argparse.Namespace) -> int:
    names = set(Sizing.__dataclass_fields__) & set(vars(args))
    rows = Sizing(**{name: getattr(args, name) for name in names}).rows()
    width = max(len(what) for what, _ in rows)
    print("\n".join(f"{what:<{width}}  {much}" for what, much in rows))
    return 0
