"""Non-maximum suppression against the greedy loop that defines it."""

from __future__ import annotations

import pytest
import torch

from stages.detector.ops import nms as nms_file
from stages.detector.ops.boxes import iou
from stages.detector.ops.nms import nms, nms_of_pictures, pushes_out


def slow_nms(
    boxes: torch.Tensor, scores: torch.Tensor, group_of: torch.Tensor, threshold: float
) -> list[int]:
    """Take the best box left, drop those of its group that overlap it by more, go on."""
    groups, by_score = group_of.tolist(), scores.tolist()
    left = sorted(range(len(boxes)), key=lambda index: (-by_score[index], index))
    overlap = iou(boxes, boxes).tolist()
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [
            other
            for other in left
            if groups[other] != groups[best] or overlap[best][other] <= threshold
        ]
    return kept


def crowd(num: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes in clusters on a coarse lattice, so that overlaps, chains and ties are frequent."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randint(0, 60, (max(num // 8, 1), 2), generator=random)
    corner = centres[torch.randint(0, len(centres), (num,), generator=random)]
    corner = corner + torch.randint(-8, 9, (num, 2), generator=random)
    sides = torch.randint(0, 20, (num, 2), generator=random)
    boxes = torch.cat([corner, corner + sides], 1).float()
    scores = torch.randint(0, 12, (num,), generator=random) / 12
    return boxes, scores, torch.randint(0, 3, (num,), generator=random)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("num", [0, 1, 2, 17, 200])
def test_keeps_what_the_greedy_loop_keeps(num: int, threshold: float) -> None:
    """Oracle: `slow_nms`, in the same order, ties included."""
    for seed in range(5):
        boxes, scores, groups = crowd(num, seed)
        kept = nms(boxes, scores, groups, threshold=threshold)
        assert kept.tolist() == slow_nms(boxes, scores, groups, threshold)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_blocks_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: `slow_nms`, whatever the size of the blocks; `max_kept` gives its first ones."""
    monkeypatch.setattr(nms_file, "BLOCK_BOXES_CPU", block)
    boxes, scores, groups = crowd(150, 9)
    expected = slow_nms(boxes, scores, groups, 0.4)
    assert nms(boxes, scores, groups, threshold=0.4).tolist() == expected
    for most in (0, 1, 10, 1000):
        kept = nms(boxes, scores, groups, threshold=0.4, max_kept=most)
        assert kept.tolist() == expected[:most]


@pytest.mark.parametrize("block", [7, 64, 256])
@pytest.mark.parametrize("most", [None, 0, 5, 1000])
def test_pictures_do_not_change_each_other(
    block: int, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: `slow_nms` of each picture alone; pictures of many boxes, of few and of none."""
    monkeypatch.setattr(nms_file, "BLOCK_BOXES_CPU", block)
    pictures = [crowd(num, seed) for seed, num in enumerate((150, 0, 3, 40, 0))]
    boxes, scores, groups = (torch.cat(parts) for parts in zip(*pictures))
    counts = [len(picture[0]) for picture in pictures]
    kept, num_kept = nms_of_pictures(boxes, scores, groups, counts, threshold=0.4, max_kept=most)
    first = 0
    for picture, count, own in zip(pictures, counts, kept.split(num_kept), strict=True):
        expected = slow_nms(*picture, 0.4)[:most]
        assert (own - first).tolist() == expected
        first += count


def test_a_threshold_is_compared_in_double() -> None:
    """Oracle: numpy in double, at overlaps next to thresholds that single precision has not."""
    for tenths in range(1, 10):
        sides = torch.tensor([[0.0, 0, 10, 1]]), torch.tensor([[0.0, 0, tenths, 1]])
        overlap = float(iou(*sides)[0, 0])
        for threshold in (tenths / 10, overlap, overlap - 1e-9, overlap + 1e-9):
            assert bool(pushes_out(*sides, threshold)[0, 0]) == (overlap > threshold)


def test_a_long_chain_settles() -> None:
    """Oracle: by hand; each box overlaps only its neighbours, so every other one stays."""
    start = torch.arange(40) * 5.0
    boxes = torch.stack([start, torch.zeros(40), start + 10, torch.ones(40)], 1)
    kept = nms(boxes, torch.arange(40, 0, -1).float(), torch.zeros(40), threshold=0.2)
    assert kept.tolist() == list(range(0, 40, 2))


def test_an_overlap_of_exactly_the_threshold_stays() -> None:
    """Oracle: two boxes of IoU 1/2 by hand; a lower threshold parts them, as do two groups."""
    boxes = torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1]])
    scores, same = torch.tensor([0.9, 0.8]), torch.tensor([0, 0])
    assert nms(boxes, scores, same, threshold=0.5).tolist() == [0, 1]
    assert nms(boxes, scores, same, threshold=0.49).tolist() == [0]
    assert nms(boxes, scores, torch.tensor([0, 1]), threshold=0.49).tolist() == [0, 1]


def test_inclusive_boxes_count_their_last_pixel_and_go_at_the_threshold() -> None:
    """Oracle: by hand: 10 pixels a side and 5 of them shared, IoU 50 / 150; with the far edge
    exclusive it is 36 / 126. A box of one pixel has an area of 1."""
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 5, 9, 14], [20, 20, 20, 20], [20, 20, 20, 20]])
    scores, same = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.zeros(4)
    third = float(torch.tensor(50.0) / 150)
    above = float(torch.nextafter(torch.tensor(third), torch.tensor(1.0)))
    how = dict(inclusive=True)
    assert nms(boxes, scores, same, threshold=third, **how).tolist() == [0, 2]
    assert nms(boxes, scores, same, threshold=above, **how).tolist() == [0, 1, 2]
    assert nms(boxes, scores, same, threshold=0.3).tolist() == [0, 1, 2, 3]


def test_a_picture_of_few_boxes_keeps_no_other_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of its boxes are looked at, though fewer stay than are wanted. Oracle: the number of
    blocks, and each picture alone."""
    x = torch.arange(2000.0) * 20
    apart = torch.stack([x, x * 0, x + 10, x * 0 + 10], 1)
    boxes, counts = torch.cat([apart[:1].repeat(7, 1), apart]), [7, 2000]
    scores, groups = torch.arange(2007.0).flip(0), torch.zeros(2007, dtype=torch.long)
    blocks: list[int] = []
    settle = nms_file._settle
    monkeypatch.setattr(nms_file, "_settle", lambda *given: (blocks.append(1), settle(*given))[1])
    kept, num_kept = nms_of_pictures(boxes, scores, groups, counts, threshold=0.5, max_kept=5)
    assert (kept.tolist(), num_kept) == ([0, 7, 8, 9, 10, 11], [1, 5])
    assert len(blocks) == 1
