"""A student folder as people expect it: saved, loaded, scored; in half precision, in shards."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pretrain_fixtures import TINY, tiny_student, toy_tokenizer

from stages.student.network import Student, StudentNetConfig
from stages.student.processor import FILE, StudentProcessor

DOCS = Path(__file__).parents[2] / "docs/students.md"
TEXTS = ["a red circle", "the small blue star is above the square"]


def _picture(height: int = 27, width: int = 41) -> Image.Image:
    random = np.random.default_rng(height)
    return Image.fromarray(random.integers(0, 256, (height, width, 3)).astype(np.uint8))


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """A student folder as `boxless pretrain` leaves it."""
    student = tiny_student()
    student.save_pretrained(tmp_path / "student")
    StudentProcessor.of(student, toy_tokenizer()).save_pretrained(tmp_path / "student")
    return tmp_path / "student"


def test_the_lines_of_the_guide(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the first Python in docs/students.md, five lines, prints the probabilities that the
    parts give when called by hand."""
    code = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    assert code and code[1].count("\n") == 5
    (folder.parent / "runs/toy").mkdir(parents=True)
    folder.rename(folder.parent / "runs/toy/student")
    _picture().save(folder.parent / "scene.jpg")
    monkeypatch.chdir(folder.parent)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code[1], {})
    student, tokenizer = tiny_student(), toy_tokenizer()
    tokens = tokenizer(["a red circle", "a blue star"], padding=True, return_tensors="pt")
    processor = StudentProcessor.of(student, tokenizer)
    pixels = processor([Path("scene.jpg").read_bytes()], ["x"])["pixel_values"]
    with torch.no_grad():
        cells = student.encode_image(pixels, torch.tensor([[32, 49]]))
        hidden = student.fuse(cells, picture=torch.tensor([0, 0]), tokens=tokens["input_ids"])
        wanted = student.itm_head(hidden.text[:, 0]).softmax(dim=-1)[:, 1]
    got = [float(number) for number in re.findall(r"0\.\d+", printed.getvalue())]
    assert got == pytest.approx(wanted.tolist(), abs=1e-4)


@torch.no_grad()
def test_pairs_and_one_picture_for_all(folder: Path) -> None:
    """Oracle: each pair alone, in whatever form its picture comes; other numbers are refused."""
    student = Student.from_pretrained(folder).eval()
    processor = StudentProcessor.from_pretrained(folder)
    large = _picture(64, 50)
    data = io.BytesIO()
    large.save(data, "PNG")
    large.save(folder / "large.png")
    pairs = student(**processor([_picture(), data.getvalue()], TEXTS))
    first = student(**processor([_picture()], TEXTS))
    second = student(**processor([folder / "large.png"], TEXTS))
    torch.testing.assert_close(pairs.logits[0], first.logits[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(pairs.logits[1], second.logits[1], rtol=1e-4, atol=1e-6)
    assert pairs.cells.shape[:2] == pairs.inside.shape == (2, 12)
    assert pairs.text.shape[1] == processor([large], TEXTS)["input_ids"].shape[1]
    with pytest.raises(ValueError, match="got 2 pictures and 3 texts"):
        student(**processor([large, large], [*TEXTS, "red"]))


def test_the_processor_comes_back(folder: Path) -> None:
    """Oracle: the same tensors; its file names the sizes and ImageNet's mean; texts are cut to the
    student's length. A folder without the file is named."""
    processor = StudentProcessor.from_pretrained(folder)
    mine = StudentProcessor.of(tiny_student(), toy_tokenizer())
    got, wanted = (p([_picture(), _picture(80, 20)], TEXTS) for p in (processor, mine))
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    said = json.loads((folder / FILE).read_text())
    assert (said["shorter_px"], said["longer_px"], said["pad_px"]) == (32, 64, 16)
    assert said["image_mean"] == [0.485, 0.456, 0.406]
    assert processor([_picture()], ["red " * 99])["input_ids"].shape == (1, TINY.max_tokens)
    (folder / FILE).write_text("{}")
    with pytest.raises(ValueError, match="got no whole number shorter_px"):
        StudentProcessor.from_pretrained(folder)
    (folder / FILE).unlink()
    with pytest.raises(ValueError, match="preprocessor_config.json: got no such file"):
        StudentProcessor.from_pretrained(folder)


def test_a_photograph_comes_upright(tmp_path: Path) -> None:
    """Oracle: the picture turned by hand; 6 in EXIF's orientation is a quarter turn clockwise."""
    processor = StudentProcessor.of(tiny_student(), toy_tokenizer())
    lying = _picture(32, 48)
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(tmp_path / "lying.png", exif=exif)
    got = processor([tmp_path / "lying.png"], ["red"])
    wanted = processor([lying.transpose(Image.Transpose.ROTATE_270)], ["red"])
    assert got["sizes_px"].tolist() == [[48, 32]] and torch.equal(
        got["pixel_values"], wanted["pixel_values"]
    )


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_folders(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """Oracle: logits near those in float32, whether the folder is loaded in half precision or was
    saved in it; saved and loaded again, the same bits."""
    inputs = StudentProcessor.from_pretrained(folder)([_picture()], TEXTS)
    wanted = Student.from_pretrained(folder).eval()(**inputs).logits
    half = Student.from_pretrained(folder, dtype=dtype).eval()
    assert half.dtype == dtype
    got = half(**inputs).logits
    torch.testing.assert_close(got.float(), wanted, rtol=0.05, atol=0.02)
    half.save_pretrained(tmp_path / "half")
    again = Student.from_pretrained(tmp_path / "half", dtype="auto").eval()
    assert again.dtype == dtype and torch.equal(again(**inputs).logits, got)


@torch.no_grad()
def test_a_student_in_several_files(tmp_path: Path) -> None:
    """Oracle: the logits of the student that was saved, to the bit."""
    student = tiny_student()
    student.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    inputs = StudentProcessor.of(student, toy_tokenizer())([_picture()], TEXTS)
    again = Student.from_pretrained(tmp_path).eval()
    assert torch.equal(again(**inputs).logits, student(**inputs).logits)


def test_auto_classes_when_asked(folder: Path) -> None:
    """Oracle: another process: importing registers nothing; after `register_auto`, which may be
    called twice, AutoConfig and AutoModel give our classes."""
    code = f"""
from transformers import AutoConfig, AutoModel
from stages.student.network import Student, StudentNetConfig, register_auto
try:
    AutoConfig.from_pretrained({str(folder)!r})
except ValueError:
    register_auto()
    register_auto()
    assert type(AutoConfig.from_pretrained({str(folder)!r})) is StudentNetConfig
    assert type(AutoModel.from_pretrained({str(folder)!r})) is Student
    print("fine")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=DOCS.parents[1]
    )
    assert done.stdout == "fine\n", done.stderr
    assert StudentNetConfig.model_type == "boxless-student"
