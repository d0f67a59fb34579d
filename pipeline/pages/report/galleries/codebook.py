"""Gallery of the visual dictionary: how often codes are used, and patches of the commonest.

Reads `codes` of transfer/evaluate/examples.json; a student without a dictionary has no section.
Letters: K codes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

from PIL import Image, ImageDraw

from pipeline.pages.html import h
from pipeline.pages.sections import Section, count, figure_list, percent, short
from pipeline.pages.thumbnails import Pictures, data_uri, reduced
from pipeline.runner.run_files import number, points, read_lines, read_object
from pipeline.runner.run_folder import RunFolder
from sharding.format.schema import ShardError

_PATCH_PX = 56
_GAP_PX = 3
_LONGEST_PX = 480
_OUTSIDE = (128, 128, 128)
_QUALITY = 80
_MOST_NAMED = 40


def codes_section(run: RunFolder, pictures: Pictures) -> Section | None:
    """Figures, every code's share, patches; None where there is no dictionary."""
    found = read_object(run.transfer / "evaluate" / "examples.json").get("codes")
    if not isinstance(found, dict) or not found.get("counts"):
        return None
    counts = [int(n) for n in found["counts"]]
    rows = [_code(one, counts, pictures) for one in found["shown"]]
    note = (
        "SOHO's dictionary replaces each cell of a picture by its nearest code. Each row is a "
        "code, the most used ones first, with cells of held-out pictures assigned to it: at most "
        "one a picture, drawn evenly over all, not the best ones. A frame is one cell, shown with "
        "half a cell around it."
    )
    return Section(
        name="codes",
        title="Visual dictionary",
        content=(
            figure_list(_figures(run, found, counts)),
            _shares(counts),
            h("p", {"class": "note"}, _unused_in_words(counts, found["dead"])),
            h("h3", "What the codes stand for"),
            h("p", {"class": "note"}, note),
            h("ol", {"class": "codes"}, *rows),
        ),
    )


def _figures(run: RunFolder, found: dict[str, Any], counts: Sequence[int]) -> list[tuple[str, str]]:
    """In numbers; what training said last beside what held-out pictures say."""
    figures = [
        ("codes", count(len(counts))),
        ("used by held-out cells", count(sum(n > 0 for n in counts))),
        ("held-out cells", count(sum(counts))),
        ("perplexity on them", short(float(found["perplexity"]))),
    ]
    learned = points(read_lines(run.pretrain / "metrics.jsonl"), "mvm/perplexity")
    if learned and (last := number(learned[-1][1])) is not None:
        figures.append(("perplexity at the end of training", short(last)))
    figures.append(("dead at the end of training", count(len(found["dead"]))))
    return figures


def _unused_in_words(counts: Sequence[int], dead: Sequence[int]) -> str:
    unused = [code for code, n in enumerate(counts) if not n]
    words = [
        f"Dead (unused for a while) at the end of training: {_named(dead)}."
        if dead
        else "No code was dead when training ended.",
        f"No held-out cell is assigned to {_named(unused)}."
        if unused
        else "Every code has a held-out cell.",
        "Perplexity is the number of codes that, all used equally often, would have the same "
        "entropy. Its curve, and that of dead codes, are with the training curves.",
    ]
    return " ".join(words)


def _named(codes: Sequence[int]) -> str:
    named = ", ".join(str(code) for code in codes[:_MOST_NAMED])
    more = len(codes) - _MOST_NAMED
    return f"{named} and {count(more)} more" if more > 0 else named


def _shares(counts: Sequence[int]) -> Element:
    """A column a code, the most used first, beside the line where all would be alike."""
    ranked = sorted(counts, reverse=True)
    width, height, top = len(ranked), 100.0, max(ranked)
    path = "".join(
        f"M{place} {height}v{-height * n / top:.1f}h1V{height}"
        for place, n in enumerate(ranked)
        if n
    )
    even = height - height * sum(ranked) / len(ranked) / top
    said = (
        f"the most used first: from {count(ranked[0])} to {count(ranked[-1])}. Dashed: all alike."
    )
    drawing = h(
        "svg",
        {
            "viewBox": f"0 0 {width} {height:g}",
            "preserveAspectRatio": "none",
            "role": "img",
            "class": "shares",
            "aria-label": said,
        },
        h("path", {"class": "column", "d": path}),
        h("path", {"class": "even", "d": f"M0 {even:.1f}H{width}"}),
    )
    heading = h("h3", "Cells of each code ", h("small", said))
    return h("figure", {"class": "chart"}, heading, drawing)


def _code(one: dict[str, Any], counts: Sequence[int], pictures: Pictures) -> Element:
    number_of_cells = counts[int(one["code"])]
    share = percent(number_of_cells / sum(counts))
    strip = strip_of(one["patches"], pictures)
    shown = h("span", {"class": "lost"}, "not readable")
    if strip is not None:
        said = f"{len(one['patches'])} patches of pictures that have code {one['code']}"
        shown = h(
            "img",
            {
                "src": data_uri(_jpeg(strip), "JPEG"),
                "alt": said,
                "loading": "lazy",
                "width": strip.width,
                "height": strip.height,
            },
        )
    words = h(
        "p",
        h("b", f"code {one['code']}"),
        " ",
        h("small", f"{count(number_of_cells)} cells, {share}"),
    )
    return h("li", words, shown)


def strip_of(patches: Sequence[dict[str, Any]], pictures: Pictures) -> Image.Image | None:
    """The patches in a row, their cells framed; None where no picture can be read."""
    cut = [_cut(patch["key"], patch["box"], pictures) for patch in patches]
    tiles = [tile for tile in cut if tile is not None]
    if not tiles:
        return None
    step = _PATCH_PX + _GAP_PX
    strip = Image.new("RGB", (step * len(tiles) - _GAP_PX, _PATCH_PX), "white")
    for place, tile in enumerate(tiles):
        strip.paste(tile, (place * step, 0))
    return strip


def _cut(key: str, box: Sequence[float], pictures: Pictures) -> Image.Image | None:
    """A cell with half a cell around it; what lies outside of the picture is grey."""
    sample = pictures.find(key)
    if sample is None:
        return None
    try:
        small = reduced(sample.image, longest_px=_LONGEST_PX)
    except ShardError:
        return None
    scale = small.picture.width / small.width
    x0, y0, x1, y1 = (scale * v for v in box)
    half_x, half_y = (x1 - x0) / 2, (y1 - y0) / 2
    around = (x0 - half_x, y0 - half_y, x1 + half_x, y1 + half_y)
    size = (_PATCH_PX, _PATCH_PX)
    tile = small.picture.transform(
        size, Image.Transform.EXTENT, around, Image.Resampling.BICUBIC, fillcolor=_OUTSIDE
    )
    return _framed(tile)


def _framed(tile: Image.Image) -> Image.Image:
    """A light line around a dark one around the middle half."""
    draw = ImageDraw.Draw(tile)
    low, high = _PATCH_PX // 4, 3 * _PATCH_PX // 4
    draw.rectangle((low - 1, low - 1, high, high), outline=(0, 0, 0))
    draw.rectangle((low - 2, low - 2, high + 1, high + 1), outline=(255, 255, 255))
    return tile


def _jpeg(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=_QUALITY, optimize=True)
    return out.getvalue()
