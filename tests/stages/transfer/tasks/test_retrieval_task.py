"""The retrieval task on a student with a contrastive head: training, shortlist, and what it
loses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pretrain_fixtures import TINY, tiny_student, toy_samples, toy_tokenizer, write_objects

from stages.student.processor import StudentProcessor
from stages.transfer.example import Example
from stages.transfer.retrieval_matrix import BEHIND, row_scorer, shortlist_scorer, shortlisted
from stages.transfer.task_batch import collate
from stages.transfer.task_config import TaskDataConfig
from stages.transfer.tasks.retrieval import RetrievalTask
from stages.transfer.toy_tasks.write import write_task_files


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Example, ...]:
    """Six toy scenes with their captions."""
    root = tmp_path_factory.mktemp("retrieval")
    images = write_objects(root / "images", list(toy_samples(24, 6)))
    return RetrievalTask.read(
        TaskDataConfig(**write_task_files("retrieval", images, root / "files")), "heldout"
    ).examples


def test_a_shortlist_is_the_matrix_where_it_holds_all(examples: tuple[Example, ...]) -> None:
    """Oracle: contrastive logits of all pairs by the student's own calls, plus the full matrix of
    the matching head: on a list of all exactly that, on a list of one for the listed pairs alone,
    the others behind; the share of captions whose picture is listed is counted by hand."""
    student = tiny_student(replace(TINY, itc_size=6))
    processor = StudentProcessor.of(student, toy_tokenizer())
    texts = [str(text) for e in examples for text in e.texts]
    rows = row_scorer(student, processor, texts)
    inputs = processor([e.images[0] for e in examples], texts)
    with torch.no_grad():
        cells = student.encode_image(inputs["pixel_values"], inputs["sizes_px"])
        contrast = student.compare(
            student.embed_texts(inputs["input_ids"]), student.embed_pictures(cells)
        ).T
    wanted = contrast + torch.tensor([rows((e,))[e.id] for e in examples])
    task = RetrievalTask({})
    for num_best in (len(texts), 1):
        scorer = shortlist_scorer(student, processor, texts, examples, num_best=num_best)
        found = {e.id: scorer((e,))[e.id] for e in examples}
        listed = shortlisted(contrast, num_best)
        given = torch.where(listed, wanted, contrast + BEHIND)
        matrix = torch.tensor([found[e.id] for e in examples])
        torch.testing.assert_close(matrix, given, rtol=1e-4, atol=1e-3)
    scores = task.score(examples, found)
    owner = torch.arange(len(examples)).repeat_interleave(
        torch.tensor([len(e.texts) for e in examples])
    )
    kept = listed[owner, torch.arange(len(texts))].double().mean()
    assert scores["text_to_image_listed"]["value"] == pytest.approx(float(kept))
    assert scores["text_to_image_r1"]["value"] <= float(kept)


def test_the_contrastive_head_is_trained_too(examples: tuple[Example, ...]) -> None:
    """Oracle: a gradient for the head's weights, the CNN run once, and a loss that falls when each
    text's own picture is the only one with a high logit."""
    student = tiny_student(replace(TINY, itc_size=6))
    batch = collate(
        examples[:3], StudentProcessor.of(student, toy_tokenizer()), lambda e: e.texts, cell_px=16
    )
    task = RetrievalTask({})
    logits = task.logits(student, torch.nn.Identity(), batch)
    assert logits.shape == (len(batch.tokens), 3 + 3)
    loss = task.loss(logits, batch)
    loss.backward()
    assert all(p.grad is not None for p in student.contrastive_head.parameters())
    sure = logits.detach().clone()
    sure[:, 3:] = 20 * torch.nn.functional.one_hot(batch.picture[:, 0], 3)
    assert task.loss(sure, batch) < loss
    several = torch.tensor([float(len(examples[n].texts)) for n in range(3)]).log().mean() / 2
    matching = task.loss(sure[:, :3], batch)
    torch.testing.assert_close(task.loss(sure, batch) - matching, several, rtol=1e-3, atol=1e-3)


def test_a_student_without_the_head_is_refused(examples: tuple[Example, ...]) -> None:
    """Oracle: ValueError of the student."""
    student = tiny_student()
    with pytest.raises(ValueError, match="itc_size"):
        shortlist_scorer(
            student, StudentProcessor.of(student, toy_tokenizer()), ["a"], examples, num_best=1
        )
