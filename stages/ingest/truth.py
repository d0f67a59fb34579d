"""Ground truth, fitted to the picture it came with; reached from `stages.ingest.sample`."""

from __future__ import annotations

from typing import Any

Truth = dict[str, Any]

# Corpora round: up to this far outside is cut off without a word, and a narrower box is no box.
ROUNDING_PX = 1.0


def fit_truth(
    truth: Truth, *, width: int, height: int, size_px: tuple[int, int] | None
) -> tuple[Truth | None, list[str]]:
    """The truth with its boxes inside the picture, and notes on what was changed.

    truth: "boxes" (xyxy, pixels), "labels", "attributes" row by row, and where they are known
    "phrases" (a list a caption of {"start", "end", "object": row}). Boxes without area and those
    outside of the picture are dropped, with their phrases; those that stick out are cut. Where
    `size_px` says that the boxes were drawn on a picture of another size, there is no truth.
    """
    if size_px is not None and size_px != (width, height):
        note = f"truth dropped: made for {size_px[0]} x {size_px[1]} pixels, not {width} x {height}"
        return None, [note]
    boxes, rows, notes = [], [], []
    for row, box in enumerate(truth["boxes"]):
        cut, note = _fit_box(box, width=width, height=height)
        if note:
            notes.append(f"{note} (object {row})")
        if cut:
            boxes.append(cut)
            rows.append(row)
    fitted = {
        **truth,
        "boxes": boxes,
        "labels": [truth["labels"][row] for row in rows],
        "attributes": [truth["attributes"][row] for row in rows],
    }
    if "phrases" in truth:
        new_row = {row: i for i, row in enumerate(rows)}
        fitted["phrases"] = [
            [{**p, "object": new_row[p["object"]]} for p in phrases if p["object"] in new_row]
            for phrases in truth["phrases"]
        ]
    return fitted, notes


def keep_captions(truth: Truth, kept: list[int]) -> Truth:
    """The truth for some of the captions only, by number."""
    chosen = dict(truth)
    for name in ("phrases", "captions"):
        if name in truth:
            chosen[name] = [truth[name][i] for i in kept]
    return chosen


def finite_numbers(values: object, *, count: int) -> list[float] | None:
    """`values` as floats where it is a list of `count` finite numbers, else None."""
    if not isinstance(values, list) or len(values) != count:
        return None
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        return None
    # Bounded, as an integer of JSON can be too long for a float.
    return [float(v) for v in values] if all(abs(v) < 1e9 for v in values) else None


def _fit_box(box: list[float], *, width: int, height: int) -> tuple[list[float] | None, str]:
    said = f"[{', '.join(f'{v:g}' for v in box)}]"
    x0, y0, x1, y1 = box
    if x1 - x0 < ROUNDING_PX or y1 - y0 < ROUNDING_PX:
        return None, f"box without area: {said}"
    cut = [max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))]
    if cut[2] - cut[0] < ROUNDING_PX or cut[3] - cut[1] < ROUNDING_PX:
        return None, f"box outside of the picture: {said} on {width} x {height}"
    if max(abs(a - b) for a, b in zip(box, cut)) > ROUNDING_PX:
        return cut, f"box cut to the picture: {said} on {width} x {height}"
    return cut, ""
