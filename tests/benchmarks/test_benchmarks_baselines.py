"""The simple methods that a student is measured beside, on a folder of drawn pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel

from benchmarks.transfer import baselines
from stages.student.text.tokenizer import train_tokenizer

COLOURS = ("red", "green", "blue", "white", "black", "yellow")


def _folder(root: Path) -> Path:
    """Six pictures a split, each of one colour, which its two captions name; the one box covers the
    left half."""
    for split in ("train", "dev"):
        images, captions, boxes, lines = [], [], [], []
        (root / "images" / split).mkdir(parents=True)
        for number, colour in enumerate(COLOURS):
            name = f"{number}.png"
            Image.new("RGB", (64, 32), colour).save(root / "images" / split / name)
            images.append({"id": number, "file_name": name, "width": 64, "height": 32})
            for text in (f"a {colour} picture", f"all is {colour}"):
                captions.append({"image_id": number, "caption": text})
            boxes.append({"image_id": number, "bbox": [0, 0, 48, 32], "category_id": 1})
            phrases = [[[0, 5, 1, "other", [0]]], [[0, 3, 2, "other", []]]]
            lines.append(json.dumps({"image_id": number, "phrases": phrases}))
        data = {"images": images, "annotations": captions}
        (root / f"captions_{split}.json").write_text(json.dumps(data))
        data = {"images": images, "annotations": boxes}
        (root / f"instances_{split}.json").write_text(json.dumps(data))
        (root / f"phrases_{split}.jsonl").write_text("\n".join(lines))
    return root


def test_pointing_by_hand(tmp_path: Path) -> None:
    """Oracle: a box of 48 x 32 in 64 x 32 is three quarters of the picture and holds its centre;
    the phrase without a box does not count."""
    found = baselines.pointing(_folder(tmp_path), "dev", 4)
    assert found == {"random": 0.75, "center": 1.0, "num": 4}


def test_the_table_has_a_row_for_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: CCA tells six pure colours that six words name apart: all train captions are among
    the dev ones, so with next to no ridge R@1 is 100 both ways. The student's row is its scores
    file."""
    torch.manual_seed(0)
    resnet = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1] * 4, layer_type="basic"
    )
    ResNetModel(resnet).save_pretrained(tmp_path / "cnn")
    tokenizer = train_tokenizer(["all is a picture " + " ".join(COLOURS)] * 9, vocab_size=120)
    tokenizer.save_pretrained(tmp_path / "text")
    bert = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertModel(bert).save_pretrained(tmp_path / "text")
    scores = {
        f"{way}_r{k}": {"value": k / 16, "chance": 0.1}
        for way in ("image_to_text", "text_to_image")
        for k in (1, 5, 10)
    }
    (tmp_path / "scores.json").write_text(
        json.dumps({**scores, "phrase_grounding": {"value": 0.5}})
    )
    monkeypatch.setattr(baselines, "RIDGE", 1e-6)
    monkeypatch.setattr(baselines, "HEAD_STEPS", 3)
    baselines.main(
        [
            str(_folder(tmp_path / "photos")),
            f"--cnn={tmp_path / 'cnn'}",
            f"--text={tmp_path / 'text'}",
            f"--scores={tmp_path / 'scores.json'}",
            "--minutes=0.0001",
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}
    assert rows["CCA"].count("100.0 / 100.0 / 100.0") == 2
    assert rows["student"].count("6.2 / 31.2 / 62.5") == 2
    assert {"chance", "two linear heads, InfoNCE", "dual encoder, 0.0001 minutes"} <= rows.keys()
    assert any("pointing at 6 boxed phrases, %: random 75.0" in line for line in lines)
