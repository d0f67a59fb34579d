"""Heads on a student that does not learn, and what they read of its encoders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import mean, pstdev

import pytest
import torch
from pretrain_fixtures import TINY, tiny_student, toy_samples, toy_tokenizer, write_objects
from safetensors.torch import load_file

from stages.student.processor import StudentProcessor
from stages.transfer.config import FinetuneConfig
from stages.transfer.finetuning.finetune_task import finetune_task
from stages.transfer.heads.encoder_inputs import encoder_inputs, num_encoder_inputs
from stages.transfer.task_folder import TaskStudent


def test_encoder_inputs() -> None:
    """Oracle: the student's own calls on a pair alone, and the fits by a loop over pieces; the row
    is the same, but for rounding, beside a longer text and a larger picture."""
    student = tiny_student(replace(TINY, itc_size=6, itc_text_layers=(0, -1), pra_size=5))
    processor = StudentProcessor.of(student, toy_tokenizer())
    pictures = [torch.randint(256, (32, 32, 3), dtype=torch.uint8),
                torch.randint(256, (32, 64, 3), dtype=torch.uint8)]  # fmt: skip
    texts = ["a red star", "a blue circle above a red star and a green moon"]

    def row(images: list[torch.Tensor], said: list[str]) -> torch.Tensor:
        inputs = processor(images, said)
        with torch.no_grad():
            cells = student.encode_image(inputs["pixel_values"], inputs["sizes_px"])
            picture = torch.zeros(len(said), dtype=torch.long)
            return encoder_inputs(student, cells, picture=picture, tokens=inputs["input_ids"])[0]

    found = row(pictures[:1], texts[:1])
    assert len(found) == num_encoder_inputs(student.config) == 3 * 32 + 6
    torch.testing.assert_close(row(pictures, texts), found, rtol=1e-4, atol=1e-5)
    inputs = processor(pictures[:1], texts[:1])
    with torch.no_grad():
        cells = student.encode_image(inputs["pixel_values"], inputs["sizes_px"])
        encoded = student.encode_texts(inputs["input_ids"])[0]
        text = student.embed_texts(inputs["input_ids"])[0]
        own = student.embed_pictures(cells)[0]
        last = encoded[:, 32:]
        fits = [
            float(student.align_head(piece[None, None], cells.features).max())
            * TINY.pra_temperature
            for piece in last
        ]
    inner = fits[1:-1]
    summary = [float(text @ own), mean(inner), min(inner), max(inner), pstdev(inner), fits[0]]
    wanted = torch.cat([encoded[1:-1].mean(dim=0), last[0], torch.tensor(summary)])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inputs", ["fusion", "encoders"])
def test_a_head_alone(inputs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the student's weights, statistics and bank stay those of its folder to the bit; over
    three epochs each picture goes once into the CNN for training; and the saved head predicts."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    images = write_objects(tmp_path / "images", list(toy_samples(24, 6)))
    student = tiny_student(replace(TINY, itc_size=6, itc_bank_size=3))
    assert student.query_bank is not None
    student.query_bank.fill(torch.ones(3, 6), torch.ones(3, 6))
    student.save_pretrained(str(tmp_path / "student"))
    StudentProcessor.of(student, toy_tokenizer()).save_pretrained(tmp_path / "student")
    seen: list[int] = []
    whole = type(student.grid).forward

    def counted(self: torch.nn.Module, pixels: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(len(pixels))
        return whole(self, pixels, *rest)

    monkeypatch.setattr(type(student.grid), "forward", counted)
    config = FinetuneConfig(
        task="snli_ve",
        inputs=inputs,
        train_student=False,
        num_steps=9,
        micro_batch_size=8,
        micro_batches_per_step=1,
        validate_steps=9,
    )
    finetune_task(config, seed=0, images=images, student=tmp_path / "student", out=tmp_path / "out")
    assert sum(seen) == 24 + 6 + 2  # training, scoring, and two to see what the head needs
    before, after = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "student", tmp_path / "out" / "last")
    )
    for name, weight in before.items():
        own = after[name][: len(weight)] if weight.dim() else after[name]  # new token types behind
        assert torch.equal(weight, own), name
    taught = TaskStudent.load(tmp_path / "out" / "student")
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert taught.task.name == "snli_ve" and len(lines) == 18
    assert json.loads(lines[0])["prediction"]["label"] in taught.task.labels


def test_settings_that_do_not_fit() -> None:
    """Oracle: ValueError naming the setting; a student without a contrastive head."""
    for task, fields, message in (
        ("vcr", {"inputs": "encoders"}, "inputs: got encoders with task vcr"),
        ("grounding", {"train_student": False}, "train_student: got false with task grounding"),
        ("vqa", {"inputs": "text"}, "inputs: got 'text'"),
    ):
        with pytest.raises(ValueError, match=message):
            FinetuneConfig(task=task, **fields)
    with pytest.raises(ValueError, match="student without a contrastive head"):
        num_encoder_inputs(tiny_student().config)
