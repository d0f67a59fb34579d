"""A student folder as people expect it: saved, loaded, scored; in half precision, in shards."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pretrain_fixtures import TINY, tiny_student, toy_tokenizer

from boxless.errors import BoxlessError
from stages.student.network import Student
from stages.student.network_config import StudentNetConfig
from stages.student.processor import FILE, StudentProcessor

DOCS = Path(__file__).parents[3] / "docs/students.md"
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
    """Oracle: the first Python in docs/students.md, six lines, prints the probabilities that the
    parts give when called by hand."""
    code = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    assert code and code[1].count("\n") == 6
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
        hidden = student.fuse(cells, picture=torch.tensor([0, 0]), input_ids=tokens["input_ids"])
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


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        ({"input_ids": torch.zeros(0, 4, dtype=torch.long)}, "got 1 pictures and 0 texts"),
        ({"pixel_values": torch.zeros(0, 3, 32, 32)}, "got 0 pictures and 2 texts"),
        ({"input_ids": torch.zeros(600, dtype=torch.long)}, r"input_ids: got \[600\], expected a"),
        ({"input_ids": [[1, 2]]}, r"input_ids: got list, expected a tensor \[B, T\]"),
        ({"input_ids": torch.zeros(1, 600, dtype=torch.long)}, "got 600 word pieces, expected at"),
        ({"pixel_values": torch.zeros(3, 32, 32)}, r"pixel_values: got \[3, 32, 32\], expected"),
        ({"sizes_px": torch.tensor([32, 32])}, r"sizes_px: got \[2\], expected a tensor \[N, 2\]"),
    ],
)
def test_tensors_of_other_shapes_are_refused(change: dict[str, Any], reported: str) -> None:
    """Before PyTorch fails in some layer. Oracle: by hand, name, shape and what was expected."""
    student = tiny_student()
    inputs = StudentProcessor.of(student, toy_tokenizer())([_picture()], TEXTS)
    with pytest.raises(BoxlessError, match=reported):
        student(**{**inputs, **change})


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
    with pytest.raises(ValueError, match="got no whole number above 0 for shorter_px"):
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


def test_double_precision_runs_through() -> None:
    """Oracle: the logits in float32, as near as its statistics, which stay in it; with gradients,
    as PyTorch mixes the two without them."""
    student, inputs = tiny_student().eval(), _inputs()
    wanted = student(**inputs).logits
    got = student.double()(**inputs).logits
    assert got.dtype == torch.float64
    torch.testing.assert_close(got.float(), wanted, rtol=1e-4, atol=1e-5)


def test_the_processor_takes_other_values_and_a_subfolder(folder: Path) -> None:
    """Oracle: by hand; other values were passed over without a word."""
    processor = StudentProcessor.from_pretrained(folder.parent, subfolder=folder.name, max_tokens=5)
    assert processor(_picture(), TEXTS)["input_ids"].shape[1] == 5
    assert processor.shorter_px == StudentProcessor.from_pretrained(folder).shorter_px
    with pytest.raises(BoxlessError, match="no whole number above 0 for max_tokens"):
        StudentProcessor.from_pretrained(folder, max_tokens=0)


@torch.no_grad()
def test_a_student_in_several_files(tmp_path: Path) -> None:
    """Oracle: the logits of the student that was saved, to the bit."""
    student = tiny_student()
    student.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    inputs = StudentProcessor.of(student, toy_tokenizer())([_picture()], TEXTS)
    again = Student.from_pretrained(tmp_path).eval()
    assert torch.equal(again(**inputs).logits, student(**inputs).logits)


def test_auto_classes_open_a_saved_folder(folder: Path, tmp_path: Path) -> None:
    """Oracle: Boxless's own classes on the same folder, in a process that never imported Boxless;
    what it saves again opens the same way. Nothing is registered by that: only after
    `register_auto`, which may be called twice, the Auto classes need no trust."""
    _picture().save(tmp_path / "scene.png")
    code = """
import sys
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor
folder, picture, again = sys.argv[1:]
assert "boxless" not in sys.modules
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "boxless-student"
student = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert set(AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)(picture)) == {
    "pixel_values", "sizes_px"}
print("logits", student(**processor(picture, "a red circle")).logits.tolist())
student.save_pretrained(again)
AutoModel.from_pretrained(again, trust_remote_code=True)
from stages.student.network import Student, register_auto
from stages.student.network_config import StudentNetConfig
try:
    AutoConfig.from_pretrained(folder, trust_remote_code=False)
except ValueError:
    register_auto()
    register_auto()
    assert type(AutoConfig.from_pretrained(folder)) is StudentNetConfig
    assert type(AutoModel.from_pretrained(folder)) is Student
    print("registered")
"""
    ended = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tmp_path / "scene.png"), str(tmp_path / "b")],
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1",
             "PYTHONPATH": str(DOCS.parents[1])},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert ended.returncode == 0 and ended.stdout.endswith("registered\n"), ended.stderr
    assert StudentNetConfig.model_type == "boxless-student"
    student, processor = (c.from_pretrained(folder) for c in (Student, StudentProcessor))
    logits = student.eval()(**processor(str(tmp_path / "scene.png"), "a red circle")).logits
    (printed,) = [line for line in ended.stdout.splitlines() if line.startswith("logits")]
    torch.testing.assert_close(torch.tensor(json.loads(printed.removeprefix("logits"))), logits)


def test_return_dict_false_gives_a_tuple() -> None:
    """Oracle: the values of the named output, in order."""
    student, inputs = tiny_student().eval(), _inputs()
    named, plain = student(**inputs), student(**inputs, return_dict=False)
    assert isinstance(plain, tuple) and len(plain) == 4
    assert all(torch.equal(a, b) for a, b in zip(named.values(), plain))


@pytest.mark.parametrize(
    "given", ["output_attentions", "output_hidden_states", "labels", "attention_mask", "config"]
)
def test_what_forward_does_not_do_is_refused_by_name(given: str) -> None:
    """Oracle: by hand, the name and what to do instead; false and null, as transformers passes
    them, ask for nothing, and what is missing is named."""
    student, inputs = tiny_student().eval(), _inputs()
    wanted = student(**inputs).logits
    off = student(**inputs, labels=None, output_attentions=False, output_hidden_states=None)
    assert torch.equal(off.logits, wanted)
    others = {} if given == "config" else {given: torch.ones(1, 4)}
    if given == "config":
        given = student.config.output_hidden_states = "output_hidden_states"
    instead = "trace_attention" if given.startswith("output") else "pad id"
    with pytest.raises(BoxlessError, match=f"^{given}: .*expected only what .*{instead}"):
        student(**inputs, **others)
    with pytest.raises(BoxlessError, match="^pixel_values: got NoneType, expected a tensor"):
        tiny_student()(input_ids=inputs["input_ids"])


def test_what_is_pushed_to_a_hub_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: of each way to push, the files of a folder that was saved without; a stub takes the
    place of the hub."""
    student, pushed = tiny_student(), []
    processor = StudentProcessor.of(student, toy_tokenizer())

    class Hub:
        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Repository", (), {"repo_id": repo_id})

        def create_commit(self, repo_id: str, operations: Any, **_: Any) -> None:
            pushed.append((repo_id, {operation.path_in_repo for operation in operations}))

    for module in ("utils.hub", "modeling_utils"):
        monkeypatch.setattr(f"transformers.{module}.hf_api", Hub)
    card = type("Card", (), {"save": staticmethod(lambda path: Path(path).touch())})
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *_, **__: card)
    for number, part in enumerate((student, processor)):
        part.save_pretrained(tmp_path / f"saved-{number}")
        files = {path.name for path in (tmp_path / f"saved-{number}").iterdir()}
        part.save_pretrained(tmp_path / f"both-{number}", push_to_hub=True)
        part.save_pretrained(tmp_path / "c", push_to_hub=True, repo_id="me/named")
        part.push_to_hub("me/pushed")
        names, found = zip(*pushed)
        assert names == (f"both-{number}", "me/named", "me/pushed")
        assert all(one - {"README.md"} == files for one in found)
        pushed.clear()


@pytest.mark.parametrize("change", [5, -3])
def test_token_embeddings_are_resized_as_in_transformers(change: int, tmp_path: Path) -> None:
    """Oracle: rows of before, bit for bit; scores of pictures and texts unchanged to the last
    digit; the MLM head has as many outputs; the saved student comes back with them."""
    student = tiny_student().eval()
    words, before = student.get_input_embeddings().weight.clone(), student(**_inputs("a")).logits
    size = len(words) + change
    assert student.resize_token_embeddings(size) is student.get_input_embeddings()
    student.save_pretrained(tmp_path)
    for one in (student, Student.from_pretrained(tmp_path).eval()):
        assert len(one.word_embeddings) == size and one.config.bert["vocab_size"] == size
        assert one.config.vocab_size == size
        num_same = min(size, len(words))
        assert torch.equal(one.word_embeddings[:num_same], words[:num_same])
        # Of weights that lie elsewhere in memory the last digit of a product may differ.
        torch.testing.assert_close(one(**_inputs("a")).logits, before, rtol=0, atol=1e-6)
        assert one.pad_id == tiny_student().pad_id
        assert one.mlm_head(torch.zeros(1, words.shape[1]), one.word_embeddings).shape == (1, size)


def test_sizes_are_named_as_in_transformers() -> None:
    """Oracle: the sizes of the network's own parts."""
    student = tiny_student()
    config, layers = student.config, student.fusion.layer
    assert config.hidden_size == student.word_embeddings.shape[1]
    assert config.num_hidden_layers == len(layers)
    assert config.num_attention_heads == layers[0].attention.self.num_attention_heads
    assert config.vocab_size == len(student.word_embeddings)


def test_gradient_checkpointing_is_switched_as_in_transformers() -> None:
    """Oracle: the gradients without it, bit for bit; the layers run a second time."""
    gradients = []
    for is_on in (False, True):
        student = tiny_student().train()
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        student.fusion.layer[0].attention.register_forward_pre_hook(count)
        if is_on:
            student.gradient_checkpointing_enable()
            assert student.is_gradient_checkpointing
        torch.manual_seed(0)
        student(**_inputs()).logits.sum().backward()
        assert calls == 1 + is_on
        gradients.append(student.word_embeddings.grad)
    assert torch.equal(*gradients)
    student.gradient_checkpointing_disable()
    assert not student.is_gradient_checkpointing


def _inputs(text: str = "a red circle") -> dict[str, torch.Tensor]:
    processor = StudentProcessor.of(tiny_student(), toy_tokenizer())
    return dict(processor(_picture(), text))
