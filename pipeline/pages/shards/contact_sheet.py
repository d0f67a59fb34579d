"""The contact sheet of `boxless view`: a PNG of small pictures with boxes, and in short what the
page says of each.

Drawn with Pillow and the font that comes with it, dark on light.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw

from pipeline.pages.html import shortened
from pipeline.pages.palette import colour
from pipeline.pages.shards.counts import Counts, Losses, commonest
from pipeline.pages.shards.fonts import font, plain
from pipeline.pages.shards.histograms import Bin, count_bins, score_bins
from pipeline.pages.shards.phrases import similarity
from pipeline.pages.shards.picture_svg import NUM_NAMED, NUM_TAGGED, is_dashed, tag_texts
from pipeline.pages.shards.sample_view import Caption, Mark, Scene
from pipeline.pages.shards.shard_browser import Broken, ShardBrowser
from pipeline.pages.shards.summary_text import (
    head_line,
    objects_in_words,
    reasons,
    shard_figures,
    title,
)
from pipeline.pages.shards.tag_placement import Tag, place_tags
from pipeline.pages.shards.text_layout import Flow, Style

LONGEST_PX = 640
"""The longest side of the pictures as they are read; on the sheet they are smaller."""

_TILE_PX, _PICTURE_PX = 428, 330
_GAP_PX, _MARGIN_PX, _PADDING_PX = 14, 24, 10
_MOST_COLUMNS = 4
_HEAD_LETTERS_PX, _LETTERS_PX, _SMALL_PX = 30, 14, 12
_MOST_LINES = 5
_MOST_CAPTIONS, _LONGEST_CAPTION = 2, 200
# Beside an object's name: number, score and the gaps; and for "and 92 more" in the last line.
_ROOM_PX, _REST_PX = 64, 84
_MOST_LABELS, _MOST_REASONS = 8, 3
_GROUND, _CARD, _INK, _QUIET, _RULE = "#f7f7f5", "#ffffff", "#1d1e24", "#5d606b", "#d8d8d6"
_ACCENT, _BAD, _TRACK = "#2456c4", "#b3261e", "#e9eaee"
_CHART_PX, _HEAD_ROOM_PX = (300, 96), 620

_FAINT = "80"  # alpha: a half

_PLAIN = Style(_LETTERS_PX, _INK)
_SOFT = Style(_SMALL_PX, _QUIET)
_WRONG = Style(_SMALL_PX, _BAD)


def sheet_png(
    browser: ShardBrowser, shown: Sequence[Scene | Broken], counts: Counts, losses: Losses
) -> bytes:
    """The sheet as a PNG: a head, then the pictures in rows."""
    tiles = [_wreck(one) if isinstance(one, Broken) else _tile(one) for one in shown]
    num_columns = max(2, min(_MOST_COLUMNS, len(tiles)))
    rows = [tiles[start : start + num_columns] for start in range(0, len(tiles), num_columns)]
    width = 2 * _MARGIN_PX + num_columns * (_TILE_PX + _GAP_PX) - _GAP_PX
    head = _head(browser, counts, losses, width - 2 * _MARGIN_PX)
    tall = [max(tile.height for tile in row) + 2 * _PADDING_PX for row in rows]
    height = 2 * _MARGIN_PX + head.height + sum(tall) + _GAP_PX * len(rows)
    sheet = Image.new("RGB", (width, height), _GROUND)
    sheet.paste(head, (_MARGIN_PX, _MARGIN_PX))
    top = _MARGIN_PX + head.height + _GAP_PX
    for row, high in zip(rows, tall):
        for column, tile in enumerate(row):
            left = _MARGIN_PX + column * (_TILE_PX + _GAP_PX)
            _card(sheet, (left, top, left + _TILE_PX, top + high))
            sheet.paste(tile, (left + _PADDING_PX, top + _PADDING_PX))
        top += high + _GAP_PX
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def _card(sheet: Image.Image, place: tuple[int, int, int, int]) -> None:
    ImageDraw.Draw(sheet).rounded_rectangle(place, 8, fill=_CARD, outline=_RULE)


def _head(browser: ShardBrowser, counts: Counts, losses: Losses, width: int) -> Image.Image:
    """Title and figures, with small charts beside them, or below where there is no room."""
    charts = _charts(counts)
    is_beside = charts is not None and width - charts.width >= _HEAD_ROOM_PX
    flow = Flow(width - charts.width - 40 if charts and is_beside else width)
    flow.add(title(browser), Style(_HEAD_LETTERS_PX, _INK))
    flow.end_line(6)
    flow.add(head_line(browser, counts), Style(_LETTERS_PX, _QUIET))
    flow.end_line(4)
    for name, value in shard_figures(browser, counts, losses):
        flow.add(f"{name} {value}", _PLAIN, after_px=22)
    flow.end_line(4)
    if losses.num_failed:
        common = reasons(losses).most_common(_MOST_REASONS)
        said = "; ".join(f"{reason} ({number})" for reason, number in common)
        flow.add(f"failed: {said or 'reasons not read'}", Style(_LETTERS_PX, _BAD))
        flow.end_line(4)
    for word in browser.words:
        flow.add(word, Style(_LETTERS_PX, _BAD))
        flow.end_line(4)
    if counts.labels:
        pairs = commonest(counts.labels, _MOST_LABELS)
        said = ", ".join(f"{name.split(',')[0]} {number:,}" for name, number in pairs)
        flow.add(f"commonest: {said}", _PLAIN)
        flow.end_line(4)
    if charts is None:
        return _on_ground((width, flow.height), flow)
    if is_beside:
        head = _on_ground((width, max(flow.height, charts.height)), flow)
        head.paste(charts, (width - charts.width, 0))
        return head
    head = _on_ground((width, flow.height + charts.height + 8), flow)
    head.paste(charts, (0, flow.height + 8))
    return head


def _on_ground(size: tuple[int, int], flow: Flow) -> Image.Image:
    image = Image.new("RGB", size, _GROUND)
    flow.draw(image, (0, 0))
    return image


def _charts(counts: Counts) -> Image.Image | None:
    """Histograms side by side; None where no objects are known."""
    if not counts.a_picture:
        return None
    bins = count_bins(counts.a_picture)
    charts = [_histogram("objects a picture", bins)]
    if counts.scores.any():
        charts.append(_histogram("scores", score_bins(counts)))
    wide, high = charts[0].size
    both = Image.new("RGB", (wide * len(charts) + 40 * (len(charts) - 1), high), _GROUND)
    for place, chart in enumerate(charts):
        both.paste(chart, (place * (wide + 40), 0))
    return both


def _histogram(said: str, bins: Sequence[Bin]) -> Image.Image:
    wide, high = _CHART_PX
    below, above = 18, 18
    chart = Image.new("RGB", (wide, above + high + below), _GROUND)
    pen = ImageDraw.Draw(chart)
    most = max(1, *(one.number for one in bins))
    small = font(_SMALL_PX)
    pen.text((0, 0), f"{said}, at most {most:,}", fill=_QUIET, font=small)
    foot = above + high
    for place, one in enumerate(bins):
        left, right = place * wide // len(bins), (place + 1) * wide // len(bins)
        if one.number:
            top = foot - max(1, round(one.number / most * high))
            pen.rectangle((left, top, max(left, right - 2), foot), fill=_ACCENT)
    pen.line((0, foot, wide, foot), fill=_RULE)
    pen.text((0, foot + 3), f"{bins[0].start:g}", fill=_QUIET, font=small)
    last = bins[-1].name.split(" to ")[-1]
    pen.text((wide, foot + 3), last, fill=_QUIET, font=small, anchor="ra")
    return chart


def _tile(scene: Scene) -> Image.Image:
    """A picture with its boxes, and below it objects and captions."""
    facts = f"{scene.picture.width} x {scene.picture.height}, {objects_in_words(scene)}"
    flow = Flow(_TILE_PX - 2 * _PADDING_PX)
    for word in scene.words:
        flow.add(word, _WRONG)
        flow.end_line(2)
    _objects(flow, scene)
    for caption in scene.captions[:_MOST_CAPTIONS]:
        _caption(flow, caption)
    return _assembled(scene.key, facts, _drawn(scene), flow)


def _wreck(broken: Broken) -> Image.Image:
    """What stands for a sample that cannot be shown."""
    size = (_TILE_PX - 2 * _PADDING_PX, _PICTURE_PX // 2)
    ground = Image.new("RGB", size, _TRACK)
    pen = ImageDraw.Draw(ground)
    for left in range(-size[1], size[0], 24):
        pen.line((left, size[1], left + size[1], 0), fill=_CARD, width=8)
    wide = pen.textlength("damaged", font(22)) + 24
    middle = (size[0] / 2, size[1] / 2)
    pen.rectangle(
        (middle[0] - wide / 2, middle[1] - 20, middle[0] + wide / 2, middle[1] + 20), fill=_CARD
    )
    pen.text(middle, "damaged", fill=_BAD, font=font(22), anchor="mm")
    flow = Flow(size[0])
    flow.add(shortened(broken.reason), _PLAIN)
    flow.end_line(2)
    return _assembled(broken.key, "cannot be shown", ground, flow)


def _assembled(key: str, facts: str, picture: Image.Image, flow: Flow) -> Image.Image:
    width = _TILE_PX - 2 * _PADDING_PX
    top = 22
    tile = Image.new("RGB", (width, top + picture.height + 8 + flow.height), _CARD)
    pen = ImageDraw.Draw(tile)
    reported = plain(facts)
    pen.text((width, 2), reported, fill=_QUIET, font=font(_SMALL_PX), anchor="ra")
    room = width - pen.textlength(reported, font(_SMALL_PX)) - 12
    pen.text((0, 0), _cut_to(key, room), fill=_INK, font=font(_LETTERS_PX))
    tile.paste(picture, ((width - picture.width) // 2, top))
    flow.draw(tile, (0, top + picture.height + 8))
    return tile


def _cut_to(text: str, room: float) -> str:
    """The text, or its beginning where it is wider than the room."""
    letters = plain(text)
    if font(_LETTERS_PX).getlength(letters) <= room:
        return letters
    while letters and font(_LETTERS_PX).getlength(letters + "...") > room:
        letters = letters[:-1]
    return letters + "..."


def _drawn(scene: Scene) -> Image.Image:
    """The picture with its boxes, as the page draws them."""
    width, height = scene.picture.width, scene.picture.height
    scale = min((_TILE_PX - 2 * _PADDING_PX) / width, _PICTURE_PX / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = scene.picture.picture.resize(size, Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(picture, "RGBA")
    places = [_scaled(mark.box, size, (width, height)) for mark in scene.marks]
    for mark, place in reversed(list(zip(scene.marks, places))):
        if mark.number <= NUM_TAGGED:
            _frame(pen, mark, place)
        else:
            pen.rectangle(place, outline=colour(mark.number - 1) + _FAINT)
    for box in scene.truth:
        _dots(pen, _scaled(box, size, (width, height)))
    _draw_tags(pen, scene.marks[:NUM_TAGGED], places, size, len(scene.marks) <= NUM_NAMED)
    return picture


def _scaled(
    box: Sequence[float], size: tuple[int, int], original: tuple[int, int]
) -> tuple[float, float, float, float]:
    """A box in pixels of the drawn picture; its outer edge lies on the last ones at most."""
    x, y = size[0] / original[0], size[1] / original[1]
    x0, y0, x1, y1 = box
    right, low = size[0] - 1, size[1] - 1
    return min(x0 * x, right), min(y0 * y, low), min(x1 * x, right), min(y1 * y, low)


def _frame(pen: ImageDraw.ImageDraw, mark: Mark, place: tuple[float, float, float, float]) -> None:
    x0, y0, x1, y1 = (round(side) for side in place)
    pen.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=(0, 0, 0, 150), width=4)
    if not is_dashed(mark.number):
        pen.rectangle((x0, y0, x1, y1), outline=colour(mark.number - 1), width=2)
        return
    for start in range(0, max(x1 - x0, y1 - y0) + 1, 10):
        for y in (y0, y1 - 1):
            pen.rectangle(
                (min(x0 + start, x1), y, min(x0 + start + 6, x1), y + 1),
                fill=colour(mark.number - 1),
            )
        for x in (x0, x1 - 1):
            pen.rectangle(
                (x, min(y0 + start, y1), x + 1, min(y0 + start + 6, y1)),
                fill=colour(mark.number - 1),
            )


def _dots(pen: ImageDraw.ImageDraw, place: tuple[float, float, float, float]) -> None:
    x0, y0, x1, y1 = (round(side) for side in place)
    spots = [(x, y) for x in range(x0, x1 + 1, 6) for y in (y0, y1)]
    spots += [(x, y) for y in range(y0, y1 + 1, 6) for x in (x0, x1)]
    for x, y in spots:
        pen.rectangle((x - 1, y - 1, x + 1, y + 1), fill=(0, 0, 0, 190))
        pen.point((x, y), fill="#ffffff")


def _draw_tags(
    pen: ImageDraw.ImageDraw,
    marks: Sequence[Mark],
    places: Sequence[tuple[float, float, float, float]],
    size: tuple[int, int],
    is_named: bool,
) -> None:
    texts = [tag_texts(mark, is_named=is_named) for mark in marks]
    sizes = [(_tag_size(long) if long else None, _tag_size(short)) for long, short in texts]
    for mark, tag, (long, short) in zip(marks, place_tags(places, sizes, size), texts):
        if tag is not None:
            _draw_tag(pen, tag, long if tag.is_long and long else short, mark.number)


def _tag_size(text: str) -> tuple[float, float]:
    return font(_SMALL_PX).getlength(plain(text)) + 7, 16


def _draw_tag(pen: ImageDraw.ImageDraw, tag: Tag, text: str, number: int) -> None:
    place = (tag.x0, tag.y0, tag.x0 + tag.width - 1, tag.y0 + tag.height - 1)
    pen.rectangle(place, fill=colour(number - 1), outline=(0, 0, 0, 140))
    pen.text(
        (tag.x0 + 4, tag.y0 + tag.height / 2),
        plain(text),
        fill="#000000",
        font=font(_SMALL_PX),
        anchor="lm",
    )


def _objects(flow: Flow, scene: Scene) -> None:
    """Number, name and score of as many objects as there is room for."""
    for place, mark in enumerate(scene.marks):
        score = "" if mark.score is None else f"{100 * mark.score:.0f}"
        wide = font(_LETTERS_PX).getlength(plain(mark.name)) + _ROOM_PX
        if flow.num_lines_with(wide + _REST_PX) > _MOST_LINES:
            flow.add(f"and {len(scene.marks) - place:,} more", _SOFT)
            break
        if flow.num_lines_with(wide) > flow.num_lines_with(0):
            flow.break_line()
        flow.add_whole(str(mark.number), _chip(mark.number), after_px=2)
        flow.add_whole(mark.name, _PLAIN, after_px=4)
        flow.add_whole(score, _SOFT, after_px=12 if mark.true is not False else 3)
        if mark.true is False:
            flow.add_whole("wrong", _WRONG, after_px=12)
    flow.end_line(5)


def _chip(number: int) -> Style:
    return Style(_SMALL_PX, "#000000", ground=colour(number - 1))


def _caption(flow: Flow, caption: Caption) -> None:
    """The caption with its phrases underlined in the colours of the objects that they mean."""
    at = 0
    for phrase in caption.phrases:
        if phrase.end > _LONGEST_CAPTION:
            break
        flow.add(caption.text[at : phrase.start], _PLAIN)
        text = caption.text[phrase.start : phrase.end]
        if phrase.numbers:
            flow.add(
                text, Style(_LETTERS_PX, _INK, underline=colour(phrase.numbers[0] - 1)), after_px=2
            )
            flow.add_whole(str(phrase.numbers[0]), _chip(phrase.numbers[0]))
            if phrase.similarity is not None:
                flow.add_whole(similarity(phrase.similarity), _SOFT)
        else:
            flow.add(text, Style(_LETTERS_PX, _INK, underline=_QUIET, is_dotted=True))
        at = phrase.end
    rest = caption.text[at:]
    flow.add(
        rest
        if len(caption.text) <= _LONGEST_CAPTION
        else caption.text[at:_LONGEST_CAPTION] + "...",
        _PLAIN,
    )
    flow.end_line(3)
