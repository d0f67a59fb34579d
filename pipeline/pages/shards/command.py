"""`boxless view SHARD --out FILE`: chooses samples and writes the page or the contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from boxless.errors import BoxlessError
from pipeline.pages.object_names import Names, names_of
from pipeline.pages.shards.contact_sheet import LONGEST_PX as SHEET_PX
from pipeline.pages.shards.contact_sheet import sheet_png
from pipeline.pages.shards.counts import Counts, Losses
from pipeline.pages.shards.page import LONGEST_PX as PAGE_PX
from pipeline.pages.shards.page import page_text
from pipeline.pages.shards.sample_view import Scene, scene_of
from pipeline.pages.shards.shard_browser import Broken, Place, ShardBrowser, Whole, open_browser
from sharding.format.schema import ShardError
from sharding.writing.atomic import write_bytes

MOST_SHOWN = 500
# Pictures that the charts are made of, where they need not come from far away.
_NUM_COUNTED = 400


class ViewError(BoxlessError):
    """Something is asked for that cannot be drawn; the text says what can."""


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """What to draw.

    keys: samples by key, or patterns of keys as a shell has them (*, ?, [abc]); none: `num` of
    them, evenly spread. num: pictures at most. min_score: weaker objects are left out, 0 to 1.
    """

    keys: tuple[str, ...] = ()
    num: int = 24
    min_score: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.num <= MOST_SHOWN:
            raise ViewError(f"num: got {self.num}, expected 1 to {MOST_SHOWN} pictures")
        if not 0 <= self.min_score <= 1:
            raise ViewError(f"min_score: got {self.min_score}, expected 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Viewed:
    """What was drawn: pictures, and those of them that are damaged."""

    num_shown: int
    num_broken: int


def view(shard: str, out: Path, config: ViewConfig) -> Viewed:
    """Draws samples of the shards at a path or URL into `out`, a .html page or a .png sheet.

    Raises ViewError where `out` cannot be written, ShardError where there are no shards, or none of
    the keys. A damaged sample is drawn as such, with its reason.
    """
    written = _written(out)
    browser = open_browser(shard)
    chosen = browser.find(config.keys, config.num) if config.keys else browser.spread(config.num)
    names = names_of(browser.about)
    longest_px = PAGE_PX if out.suffix == ".html" else SHEET_PX
    counts = Counts(names, min_score=config.min_score)
    counted = set(chosen if browser.is_far else browser.spread(_NUM_COUNTED))
    scenes: dict[Place, Scene | Broken] = {}
    places = sorted(counted.union(chosen))
    for place, found in zip(places, browser.read(places)):
        if place in counted:
            counts.add(found)
        if place in chosen:
            scenes[place] = _scene(found, names, config, longest_px)
    shown = [scenes[place] for place in chosen]
    write_bytes(out, written(browser, shown, counts, Losses(browser)))
    num_broken = sum(isinstance(one, Broken) for one in shown)
    return Viewed(num_shown=len(shown), num_broken=num_broken)


def _written(out: Path) -> Callable[[ShardBrowser, list[Scene | Broken], Counts, Losses], bytes]:
    """What makes a file of that name; ViewError where there is nothing, or no folder for it."""
    kinds: Mapping[str, Callable[[ShardBrowser, list[Scene | Broken], Counts, Losses], bytes]] = {
        ".html": lambda *drawn: page_text(*drawn).encode("utf-8"),
        ".png": sheet_png,
    }
    if out.suffix not in kinds:
        raise ViewError(f"out: got {str(out)!r}, expected a name that ends in {' or '.join(kinds)}")
    if not out.parent.is_dir():
        raise ViewError(f"out: got {str(out)!r}, expected a folder that exists: {out.parent}")
    if out.is_dir():
        raise ViewError(f"out: got the folder {str(out)!r}, expected a file's name")
    return kinds[out.suffix]


def _scene(
    found: Whole | Broken, names: Names, config: ViewConfig, longest_px: int
) -> Scene | Broken:
    if isinstance(found, Broken):
        return found
    try:
        return scene_of(found, names, min_score=config.min_score, longest_px=longest_px)
    except ShardError as error:
        return Broken(found.sample.key, found.shard, str(error))
