"""Toy files of tasks say of the scenes what is true of them. Oracle: each scene's own truth, found
by its picture's bytes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from pretrain_fixtures import toy_samples, write_objects

from stages.transfer.example import Example
from stages.transfer.task_config import TaskDataConfig
from stages.transfer.tasks import TASKS
from stages.transfer.toy_tasks.write import write_task_files

Things = list[str]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image shards of 24 and 16 scenes."""
    return write_objects(tmp_path_factory.mktemp("toy") / "images", list(toy_samples(24, 16)))


def _examples(name: str, images: Path, out: Path) -> tuple[Example, ...]:
    files = TaskDataConfig(**write_task_files(name, images, out))
    return TASKS[name].read(files, "heldout").examples


def _things_of_pictures() -> dict[bytes, Things]:
    found = {}
    for sample in toy_samples(24, 16):
        truth = sample.info["truth"]
        found[sample.image] = [f"{c} {s}" for c, s in zip(truth["attributes"], truth["labels"])]
    return found


def test_nlvr2_sentences_are_true_of_one_pair_and_false_of_another(
    images: Path, tmp_path: Path
) -> None:
    """Also: a sentence's two pairs are one group of consistency."""
    known = _things_of_pictures()
    labels: dict[tuple[str, str], Counter] = {}
    for example in _examples("nlvr2", images, tmp_path):
        things = [known[path.read_bytes()] for path in example.images]
        text = str(example.texts[0])
        if text.startswith("One of the pictures shows a "):
            thing = text.removeprefix("One of the pictures shows a ").rstrip(".")
            is_true = thing in things[0] + things[1]
        else:
            shape = text.split()[3]
            assert text == f"There is a {shape} in both pictures."
            is_true = all(shape in {thing.split()[1] for thing in one} for one in things)
        assert example.label == str(is_true), (example.id, text)
        _, number, _, sentence = example.id.split("-")
        labels.setdefault((number, sentence), Counter())[example.label] += 1
    assert len(labels) > 8 and all(c == {"True": 1, "False": 1} for c in labels.values())


def test_one_answer_and_one_rationale_of_vcr_are_true(images: Path, tmp_path: Path) -> None:
    """The answer says the color of the tagged thing; the rationale names another thing that is
    there."""
    known = _things_of_pictures()
    for example in _examples("vcr", images, tmp_path):
        things = known[example.images[0].read_bytes()]
        answers = [" ".join(text[-1][1].split()[-3:-1]) for text in example.texts[:4]]
        assert [thing in things for thing in answers] == [n == example.label[0] for n in range(4)]
        start = 4 * (1 + example.label[0])
        said = [" ".join(text[-1][1].split()[-3:-1]) for text in example.texts[start : start + 4]]
        assert [thing in things for thing in said] == [n == example.label[1] for n in range(4)]
        assert said[example.label[1]] != answers[example.label[0]]
