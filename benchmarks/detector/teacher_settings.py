"""Scores a trained teacher again with other inference settings.

    python -m benchmarks.detector.teacher_settings RUN/teacher RUN/images
        [--set picture.inference_mirror=true] [--set choice.iou=0.3] ...

Fields are those of `teach.net`; what is not set is the teacher's own. Scores are those of `boxless
teach` on the held-out pictures; the last line tells the CPU seconds a picture.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from sharding.format.catalog import read_catalog
from stages.detector.evaluation.evaluate import score_teacher, scores_in_words
from stages.detector.net_config import TeacherConfig
from stages.detector.net_json import net_from_json, net_to_json
from stages.detector.predictor import Teacher
from stages.detector.teacher_folder import load_teacher
from stages.detector.training.labeled_pictures import LabeledPictures

PARTS = ("picture", "proposals", "choice")  # those that no weights depend on


def main() -> None:
    """Print the scores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("teacher", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="PART.FIELD=VALUE")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    teacher = load_teacher(options.teacher)
    assert isinstance(teacher, Teacher), "a null teacher has no settings"
    teacher.model.config = changed(teacher.model.config, options.set)
    teacher.model.proposal_network.config = teacher.model.config.proposals
    about = read_catalog(options.images).metadata
    heldout = LabeledPictures(
        options.images,
        "heldout",
        label_names=list(about["label_names"]),
        attribute_names=list(about.get("attribute_names", [])),
    )
    before = time.process_time()
    for line in scores_in_words(score_teacher(teacher, heldout)):
        print(line)
    seconds = (time.process_time() - before) / max(len(heldout), 1)
    print(f"{len(heldout)} pictures, {seconds:.2f} CPU seconds a picture")


def changed(config: TeacherConfig, settings: list[str]) -> TeacherConfig:
    """The net's config with PART.FIELD=VALUE, values in YAML, of parts that hold no weights."""
    net: dict[str, Any] = net_to_json(config)
    for setting in settings:
        name, _, value = setting.partition("=")
        part, _, field = name.partition(".")
        known = dataclasses.asdict(config).get(part, {})
        if part not in PARTS or field not in known:
            raise SystemExit(f"--set: got {setting!r}, expected a field of {', '.join(PARTS)}")
        net[part][field] = yaml.safe_load(value)
    return net_from_json(net)


if __name__ == "__main__":
    main()
