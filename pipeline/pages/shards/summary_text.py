"""The summary at the top of the page and the contact sheet."""

from __future__ import annotations

from collections import Counter

from pipeline.pages.object_names import names_of
from pipeline.pages.sections import count, percent
from pipeline.pages.shards.counts import Counts, Losses
from pipeline.pages.shards.sample_view import Scene
from pipeline.pages.shards.shard_browser import ShardBrowser


def title(browser: ShardBrowser) -> str:
    """The last part of its path or URL: the shard's or the folder's name."""
    return browser.where.rstrip("/").rpartition("/")[2] or browser.where


def head_line(browser: ShardBrowser, counts: Counts) -> str:
    """What is there, in a line: kind, pictures, size."""
    kind = "objects" if counts.has_objects else "images"
    num_bytes = sum(entry.bytes for entry in browser.entries)
    parts = [
        f"{'Object' if kind == 'objects' else 'Image'} shard"
        + (f"s, {count(len(browser.entries))} of them" if len(browser.entries) > 1 else ""),
        pictures(browser.num_samples),
        f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:,.0f} kB",
    ]
    names = names_of(browser.about)
    if names.labels:
        parts.append(f"{count(len(names.labels))} labels")
    if names.attributes:
        parts.append(f"{count(len(names.attributes))} attributes")
    for name, said in (("feature_size", "features of {} numbers"), ("num_top", "{} top classes")):
        if isinstance(value := browser.about.get(name), int):
            parts.append(said.format(count(value)))
    return " · ".join(parts)


def shard_figures(browser: ShardBrowser, counts: Counts, losses: Losses) -> list[tuple[str, str]]:
    """Names and values: pictures, those counted, without objects, failed, objects, phrases."""
    found = [
        ("pictures in", count(browser.num_samples + losses.num_failed)),
        ("kept", count(browser.num_samples)),
        ("failed", count(losses.num_failed)),
        ("counted here", count(counts.num_pictures)),
    ]
    if counts.num_broken:
        found.append(("damaged", count(counts.num_broken)))
    if counts.a_picture:
        found.append(("without objects", count(counts.num_empty)))
        mean = counts.num_objects / max(1, counts.a_picture.total())
        found.append(("objects a picture", f"{mean:.1f}"))
    if counts.num_phrases:
        found.append(("phrases like an object", percent(counts.num_matched / counts.num_phrases)))
    return found


def reasons(losses: Losses) -> Counter[str]:
    """Why inputs failed: the part of each reason before its first colon, with how often."""
    return Counter(failure.reason.split(":")[0] for failure in losses.failures)


def objects_in_words(scene: Scene) -> str:
    """ "4 objects", "no true objects", "7 objects (2 weaker left out)"."""
    number = len(scene.marks)
    kind = "object" if scene.has_objects else "true object"
    said = f"{count(number)} {kind}{'' if number == 1 else 's'}" if number else f"no {kind}s"
    return f"{said} ({count(scene.num_weak)} weaker left out)" if scene.num_weak else said


def pictures(number: int) -> str:
    """ "1 picture", "2,256 pictures"."""
    return f"{count(number)} picture{'' if number == 1 else 's'}"
