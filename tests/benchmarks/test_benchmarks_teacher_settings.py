"""`benchmarks.detector.teacher_settings`: which settings of a finished teacher it changes."""

from __future__ import annotations

import pytest

from benchmarks.detector.teacher_settings import changed
from stages.detector.net_config import ChoiceConfig, PictureConfig, TeacherConfig


def test_settings_change_their_fields_alone() -> None:
    """Oracle: the config written by hand."""
    config = TeacherConfig(choice=ChoiceConfig(num_top=3))
    settings = ["picture.inference_scales=[1.0, 1.3]", "choice.iou=0.3"]
    assert changed(config, settings) == TeacherConfig(
        picture=PictureConfig(inference_scales=(1.0, 1.3)), choice=ChoiceConfig(num_top=3, iou=0.3)
    )
    assert changed(config, []) == config


@pytest.mark.parametrize("setting", ["choice.none=1", "backbone.stem_width=3", "iou"])
def test_others_are_refused(setting: str) -> None:
    """Oracle: the words; a backbone's sizes are its weights'."""
    with pytest.raises(SystemExit, match="expected a field of picture, proposals, choice"):
        changed(TeacherConfig(), [setting])
