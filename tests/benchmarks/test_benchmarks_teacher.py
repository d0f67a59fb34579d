"""The teacher's benchmark: its made-up weights make a net that sees, its stopwatch adds up."""

from __future__ import annotations

import pytest

from benchmarks.detector import teacher
from benchmarks.detector.detector_weights import make_weights
from stages.detector.checkpoints.families import DETECTRON2
from stages.detector.checkpoints.weights import num_names, read_net
from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.predictor import Teacher

NUM_LABELS = 6


@pytest.mark.parametrize("has_pyramid", [False, True], ids=["C4", "FPN"])
def test_made_up_weights_see_objects(has_pyramid: bool) -> None:
    """Oracle: `read_net`, which leaves no array over, and a photograph on which a net with sane
    activations finds objects of several labels, each with scores of its own."""
    picture = teacher.read_photograph(None)
    weights = make_weights(
        picture, depth=50, has_pyramid=has_pyramid, num_labels=NUM_LABELS, width=8
    )
    config, state = read_net(weights, DETECTRON2)
    labels, attributes = num_names(config, state)
    assert (labels, attributes) == (NUM_LABELS, 0)
    net = FasterRCNN(config, num_labels=labels, num_attributes=0)
    net.load_state_dict(state)
    names = [str(number) for number in range(labels)]
    found = Teacher(net, label_names=names, attribute_names=[], fingerprint="test")
    with teacher.stopwatch(teacher.our_parts(net), lambda: 0.0) as passed:
        (array,) = found.detect([found.prepare(picture[::2, ::2])])
    assert set(passed) == {part.part for part in teacher.our_parts(net)}
    assert len(set(array["label"])) > 3 and len(array) > 30
    assert len(set(array["top_score"][:, -1])) > 30


def test_the_stopwatch_counts_nothing_twice() -> None:
    """Oracle: by hand, with a clock that moves on by one whenever it is looked at."""

    class Steps:
        def inner(self) -> None:
            pass

        def outer(self) -> None:
            self.inner()
            self.inner()

    time = iter(range(100))
    parts = [teacher.Part(Steps, "outer", "outer"), teacher.Part(Steps, "inner", "inner")]
    with teacher.stopwatch(parts, lambda: float(next(time))) as passed:
        Steps().outer()
    assert passed == {"outer": 5 - 2, "inner": 2}
    Steps().outer()
    assert next(time) == 6
