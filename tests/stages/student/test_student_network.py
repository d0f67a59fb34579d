"""The student as a whole: saving and loading, sharing of cells, masks, published weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretrain_fixtures import TINY, tiny_student, toy_samples, toy_tokenizer
from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel

from stages.student.build import make_student
from stages.student.config import StudentConfig
from stages.student.network import Student
from stages.student.text.tokenizer import SPECIAL_TOKENS, load_tokenizer, train_tokenizer

PIXELS = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
SIZES = torch.tensor([[32, 48], [20, 48]])
TOKENS = torch.tensor([[2, 7, 8, 9, 3, 0], [2, 9, 9, 3, 0, 0], [2, 5, 6, 7, 8, 3]])
PICTURE = torch.tensor([0, 0, 1])


@torch.no_grad()
def _outputs(student: Student) -> list[torch.Tensor]:
    """Everything a student says of two pictures and three texts."""
    cells = student.encode_image(PIXELS, SIZES)
    hidden = student.fuse(cells, picture=PICTURE, input_ids=TOKENS)
    label, feature = student.object_head(hidden.cells[:, 0])
    return [
        hidden.text,
        hidden.cells,
        label,
        feature,
        student.itm_head(hidden.text[:, 0]),
        student.mlm_head(hidden.text[:, 1], student.word_embeddings),
        student.align_head(hidden.text, hidden.cells),
    ]


def test_a_saved_student_comes_back_whole(tmp_path: Path) -> None:
    """Oracle: bit-equal outputs of every head, weights and buffers (those that are not saved too),
    and nothing but safetensors and json on disk, and the file by which transformers' Auto classes
    find Boxless."""
    student = tiny_student()
    student.save_pretrained(tmp_path)
    again = Student.from_pretrained(tmp_path).eval()
    for got, expected in zip(_outputs(again), _outputs(student)):
        assert torch.equal(got, expected)
    for kind in ("named_parameters", "named_buffers"):
        mine, other = (dict(getattr(s, kind)()) for s in (student, again))
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert again.config.label_names == student.config.label_names
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors", ".py"}


def test_the_cnn_runs_once_a_picture() -> None:
    """Oracle: three texts that share the cells of two pictures give what three repeated pictures
    give; the CNN is called once."""
    student, calls = tiny_student(), []
    student.grid.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    shared = _outputs(student)
    assert calls == [2]
    with torch.no_grad():
        cells = student.encode_image(PIXELS[PICTURE], SIZES[PICTURE])
        repeated = student.fuse(cells, picture=torch.arange(3), input_ids=TOKENS)
    torch.testing.assert_close(repeated.text, shared[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(repeated.cells, shared[1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_masked_cells_are_hidden_from_everything() -> None:
    """Oracle: outputs do not change with the features of masked cells, and do with those of
    others; masking one pair leaves the other pair of the same picture as it was."""
    student = tiny_student()
    cells = student.encode_image(PIXELS, SIZES)
    masked = torch.zeros(3, cells.features.shape[1], dtype=torch.bool)
    masked[0, 2] = True
    plain = student.fuse(cells, picture=PICTURE, input_ids=TOKENS)
    first = student.fuse(cells, picture=PICTURE, input_ids=TOKENS, masked_cells=masked)
    assert torch.equal(first.text[1:], plain.text[1:])
    assert not torch.allclose(first.text[0], plain.text[0], atol=1e-4)
    for column, hidden_from_it in ((2, True), (3, False)):
        features = cells.features.clone()
        features[0, column] = torch.randn(TINY.hidden_size)
        other = student.fuse(
            replace(cells, features=features),
            picture=PICTURE,
            input_ids=TOKENS,
            masked_cells=masked,
        )
        assert torch.allclose(other.text[0], first.text[0], atol=1e-6) == hidden_from_it


def test_half_precision_runs_through() -> None:
    """Oracle: a bfloat16 student gives bfloat16 outputs near those in full precision."""
    student = tiny_student()
    full = _outputs(student)
    student.bfloat16()
    with torch.no_grad():
        cells = student.encode_image(PIXELS, SIZES)
        hidden = student.fuse(cells, picture=PICTURE, input_ids=TOKENS)
    assert hidden.text.dtype == torch.bfloat16
    assert (hidden.text.float() - full[0]).abs().mean() < 0.05


def test_published_weights_come_from_folders(tmp_path: Path) -> None:
    """Oracle: a random ResNet and a random BERT of 3 layers saved by transformers. The student has
    their sizes, the same CNN features, the same embeddings, and their first 2 layers."""
    torch.manual_seed(1)
    cnn = ResNetModel(
        ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 12, 20], depths=[1, 2, 1], layer_type="bottleneck"
        )
    ).eval()
    text = BertModel(
        BertConfig(
            vocab_size=50,
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=40,
            max_position_embeddings=30,
        )
    ).eval()
    cnn.save_pretrained(tmp_path / "cnn")
    text.save_pretrained(tmp_path / "text")
    config = replace(
        TINY,
        pretrained_cnn=str(tmp_path / "cnn"),
        pretrained_text=str(tmp_path / "text"),
        num_layers=2,
    )
    student = make_student(
        config, vocab_size=50, pad_id=0, label_names=["a"], feature_size=4
    ).eval()
    assert student.grid.cell_px == 32 and len(student.fusion.layer) == 2
    pixels = torch.randn(1, 3, 64, 64)
    tokens = torch.tensor([[2, 7, 8, 3]])
    with torch.no_grad():
        torch.testing.assert_close(
            student.grid.resnet(pixels).last_hidden_state, cnn(pixels).last_hidden_state
        )
        embedded = text.embeddings(tokens)
        assert torch.equal(student.embeddings(tokens), embedded)
        layers = text.encoder.layer[:2]
        for layer in layers:
            embedded = layer(embedded)
        torch.testing.assert_close(
            student.fusion(student.embeddings(tokens)).last_hidden_state, embedded
        )
    student.save_pretrained(tmp_path / "student")
    again = Student.from_pretrained(tmp_path / "student").eval()
    for name, value in student.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize(
    "field, value",
    [
        ("widths", (8,)),
        ("block", "vgg"),
        ("hidden_size", 30),
        ("shorter_px", 0),
        ("shorter_px", 999),
        ("max_tokens", 3),
    ],
)
def test_settings_that_cannot_be(field: str, value: object) -> None:
    """Oracle: ValueError naming the field."""
    with pytest.raises(ValueError, match=field):
        StudentConfig(**{field: value})  # type: ignore[arg-type]


def test_a_tokenizer_does_not_depend_on_the_order_of_captions() -> None:
    """Oracle: the same json from captions in two orders, and special pieces first."""
    captions = [text for s in toy_samples(24, 6) for text in s.info["captions"]]
    one = train_tokenizer(captions, vocab_size=90)
    two = train_tokenizer(reversed(captions), vocab_size=90)
    assert one.backend_tokenizer.to_str() == two.backend_tokenizer.to_str()
    assert "##e" in one.get_vocab()
    assert one.convert_ids_to_tokens([0, 1, 2, 3, 4]) == SPECIAL_TOKENS and len(one) <= 90


def test_a_tokenizer_comes_back_from_its_folder(tmp_path: Path) -> None:
    """Oracle: the same pieces, offsets that cut the caption, lower case, [CLS] ... [SEP] around,
    and [UNK] for what the corpus never had."""
    tokenizer = toy_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    text = "The RED circle above a small blue star 中"
    ids = tokenizer(text)["input_ids"]
    assert again(text)["input_ids"] == ids == again(text.lower())["input_ids"]
    assert (ids[0], ids[-1]) == (again.cls_token_id, again.sep_token_id)
    assert ids[-2] == again.unk_token_id
    assert again.decode(ids[1:-2]) == text[:-2].lower()
    assert tokenizer.all_special_tokens == again.all_special_tokens
    assert sorted(again.all_special_tokens) == sorted(SPECIAL_TOKENS)
    offsets = again(text, return_offsets_mapping=True)["offset_mapping"]
    assert "".join(text[a:b] for a, b in offsets) == text.replace(" ", "")
