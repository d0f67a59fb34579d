"""Detectors of transformers as teachers, each a small random model that the test makes and
saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from sharding.format.schema import check_objects
from stages.detector.transformers_config import TransformersConfig
from stages.detector.transformers_teacher import (
    CaptionLabels,
    TransformersError,
    TransformersTeacher,
    load_transformers,
)

CPU = torch.device("cpu")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "dog", "red", "ball", "man", "tree"]
NAMES = ["dog", "red ball", "man", "tree"]


def save_tokenizer(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)


def save_detr(folder: Path) -> None:
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1],
        out_features=["stage4"], layer_type="basic",
    )  # fmt: skip
    config = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        backbone_config=backbone, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, num_queries=12, id2label=dict(enumerate(NAMES)),
    )  # fmt: skip
    transformers.DetrForObjectDetection(config).save_pretrained(folder)
    transformers.DetrImageProcessorPil(
        size={"shortest_edge": 64, "longest_edge": 96}
    ).save_pretrained(folder)


def save_owl(folder: Path) -> None:
    config = transformers.OwlViTConfig(
        text_config=dict(vocab_size=len(WORDS), hidden_size=16, intermediate_size=16,
                         num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=16),
        vision_config=dict(hidden_size=24, intermediate_size=16, num_hidden_layers=1,
                           num_attention_heads=2, image_size=64, patch_size=16),
        projection_dim=16,
    )  # fmt: skip
    transformers.OwlViTForObjectDetection(config).save_pretrained(folder)
    transformers.OwlViTImageProcessorPil(
        size={"height": 64, "width": 64}, do_center_crop=False
    ).save_pretrained(folder)
    save_tokenizer(folder)


def save_grounding_dino(folder: Path) -> None:
    backbone = transformers.SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_indices=[2, 3, 4],
    )  # fmt: skip
    text = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    config = transformers.GroundingDinoConfig(
        backbone_config=backbone, text_config=text, use_pretrained_backbone=False, backbone=None,
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=12,
        num_feature_levels=4, max_text_len=16,
    )  # fmt: skip
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    transformers.GroundingDinoImageProcessorPil(
        size={"shortest_edge": 64, "longest_edge": 96}
    ).save_pretrained(folder)
    save_tokenizer(folder)


KINDS = {"detr": save_detr, "owlvit": save_owl, "grounding-dino": save_grounding_dino}


def make(folder: Path, kind: str, **settings: Any) -> TransformersTeacher:
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        KINDS[kind](folder)
    (folder / "names.txt").write_text("\n".join(NAMES))
    config = TransformersConfig(
        model=str(folder), labels=None if kind == "detr" else str(folder / "names.txt"),
        **{"score_threshold": 0.0, "iou": 1.0, "num_top": 3, **settings},
    )  # fmt: skip
    return load_transformers(config, CPU)


def pictures(num: int = 2) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return [
        torch.randint(0, 256, (48, 72, 3), dtype=torch.uint8, generator=random) for _ in range(num)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_objects_are_of_the_schema_and_depend_on_no_other_picture(
    tmp_path: Path, kind: str
) -> None:
    """Oracle: `check_objects`; a picture alone gives the same bytes as among others; boxes lie in
    the picture; the label's score is the best of the soft label."""
    teacher = make(tmp_path, kind)
    prepared = [teacher.prepare(picture) for picture in pictures()]
    together = teacher.detect(prepared)
    for one, objects in zip(prepared, together):
        check_objects(objects)
        (alone,) = teacher.detect([one])
        assert alone.tobytes() == objects.tobytes()
        assert len(objects) > 0 and objects["feature"].shape[1] == teacher.feature_size
        assert (objects["box"][:, 2] <= 72).all() and (objects["box"][:, 3] <= 48).all()
        assert np.array_equal(objects["score"], objects["top_score"][:, 0])
        assert np.array_equal(objects["label"], objects["top_label"][:, 0])
    assert not np.array_equal(together[0]["box"], together[1]["box"])


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_or_scores_that_are_not_finite_are_an_error(tmp_path: Path, kind: str) -> None:
    """Comparisons with NaN are false, so they would pass for a picture without objects."""
    teacher = make(tmp_path, kind)
    with torch.no_grad():
        for weight in teacher._model.parameters():
            weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        teacher.detect([teacher.prepare(pictures(1)[0])])


def test_boxes_and_scores_are_those_of_transformers_own_reading(tmp_path: Path) -> None:
    """Oracle: DETR's image processor's post_process_object_detection; features are the rows of the
    model's last_hidden_state."""
    teacher = make(tmp_path, "detr", max_objects=100)
    (picture,) = pictures(1)
    prepared = teacher.prepare(picture)
    (objects,) = teacher.detect([prepared])
    model = transformers.DetrForObjectDetection.from_pretrained(tmp_path).eval()
    processor = transformers.DetrImageProcessorPil.from_pretrained(tmp_path)
    with torch.no_grad():
        seen = model(**processor(images=picture.numpy(), return_tensors="pt"))
    (wanted,) = processor.post_process_object_detection(seen, 0.0, target_sizes=[(48, 72)])
    order = wanted["scores"].argsort(descending=True)
    assert len(objects) == len(order)
    scores = wanted["scores"][order].numpy()
    np.testing.assert_allclose(objects["score"].astype("f4"), scores, atol=1e-3)
    boxes = wanted["boxes"][order].clamp(min=0)
    boxes = torch.minimum(boxes, torch.tensor([72.0, 48, 72, 48])).numpy()
    np.testing.assert_allclose(objects["box"], boxes, atol=1e-2)
    assert np.array_equal(objects["label"], wanted["labels"][order].numpy())
    features = seen.last_hidden_state[0][order].numpy()
    np.testing.assert_allclose(objects["feature"].astype("f4"), features, atol=1e-2)


def test_names_in_pieces_give_owl_vit_s_scores_of_all_at_once(tmp_path: Path) -> None:
    """Oracle: OWL-ViT scores each name by itself, so the scores of every label are those of one
    text; the best object of the picture is the same."""
    whole, pieces = make(tmp_path, "owlvit"), make(tmp_path, "owlvit", labels_per_prompt=1)
    prepared = whole.prepare(pictures(1)[0])
    (first,), (second,) = whole.detect([prepared]), pieces.detect([prepared])
    assert first["score"][0] == second["score"][0] and first["label"][0] == second["label"][0]
    assert whole.fingerprint != pieces.fingerprint


def test_a_name_s_score_is_the_best_of_its_tokens(tmp_path: Path) -> None:
    """Oracle: transformers' logits of the text "dog. red ball. man. tree.", tokens by hand."""
    teacher = make(tmp_path, "grounding-dino", max_objects=100)
    prepared = teacher.prepare(pictures(1)[0])
    (objects,) = teacher.detect([prepared])
    model = transformers.GroundingDinoForObjectDetection.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    inputs = tokenizer("dog. red ball. man. tree.", return_tensors="pt")
    with torch.no_grad():
        seen = model(pixel_values=prepared.pixels.permute(2, 0, 1)[None], **inputs)
    scores = seen.logits[0].sigmoid()  # [CLS] dog . red ball . man . tree . [SEP]
    by_name = torch.stack([scores[:, 1], scores[:, 3:5].amax(1), scores[:, 6], scores[:, 8]], 1)
    best = by_name.amax(1).sort(descending=True).values[: len(objects)].numpy()
    np.testing.assert_allclose(objects["score"].astype("f4"), best, atol=1e-3)


def test_folders_and_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Oracle: a message that begins with the field at fault."""
    with pytest.raises(TransformersError, match="^model: got .*config.json"):
        load_transformers(TransformersConfig(model=str(tmp_path / "nothing")), CPU)
    make(tmp_path, "owlvit")
    with pytest.raises(TransformersError, match="^labels: got null"):
        load_transformers(TransformersConfig(model=str(tmp_path)), CPU)


def test_a_text_too_long_goes_by_halves(tmp_path: Path) -> None:
    """Oracle: eight names have more tokens than the model's text; asked by fours they are the
    halves, so the bytes are the same."""
    whole = make(tmp_path, "grounding-dino", labels_per_prompt=8)
    halves = make(tmp_path, "grounding-dino", labels_per_prompt=4)
    for teacher in (whole, halves):
        teacher.label_names = NAMES + NAMES
    prepared = whole.prepare(pictures(1)[0])
    (first,), (second,) = whole.detect([prepared]), halves.detect([prepared])
    assert first.tobytes() == second.tobytes() and len(first) > 0


@pytest.mark.parametrize("kind", ["owlvit", "grounding-dino"])
def test_asked_for_phrases_an_object_has_a_score_of_each(tmp_path: Path, kind: str) -> None:
    """Oracle: the same model asked for the same texts as names; an object's label is that of its
    best phrase, and its score that phrase's. Without phrases there is no object."""
    torch.manual_seed(0)
    KINDS[kind](tmp_path)
    phrases = ("red ball", "dog", "man")
    (tmp_path / "names.txt").write_text("\n".join(phrases))
    settings: dict[str, Any] = dict(model=str(tmp_path), score_threshold=0.0, iou=1.0)
    numbers = {"red ball": 1, "dog": 2, "man": 3}
    labels = CaptionLabels(["thing", "ball", "dog", "man"], numbers.__getitem__)
    asked = load_transformers(TransformersConfig(**settings, prompts="captions"), CPU, labels)
    named = load_transformers(
        TransformersConfig(**settings, labels=str(tmp_path / "names.txt")), CPU
    )
    prepared = asked.prepare(pictures(1)[0])
    (objects,) = asked.detect([prepared._replace(prompts=phrases)])
    (wanted,) = named.detect([prepared])
    assert len(objects) == len(wanted) > 0 and objects["by_prompt"].shape[1] == 3
    np.testing.assert_array_equal(objects["box"], wanted["box"])
    np.testing.assert_array_equal(objects["score"], wanted["score"])
    np.testing.assert_array_equal(objects["by_prompt"].argmax(1), wanted["label"])
    np.testing.assert_array_equal(objects["label"], wanted["label"] + 1)
    assert len(asked.detect([prepared])[0]) == 0
    assert asked.fingerprint != named.fingerprint


def test_captions_are_for_the_zero_shot_kind(tmp_path: Path) -> None:
    """Oracle: a message that begins with the field at fault."""
    save_detr(tmp_path)
    config = TransformersConfig(model=str(tmp_path), prompts="captions")
    with pytest.raises(TransformersError, match="^prompts: got 'captions'"):
        load_transformers(config, CPU, CaptionLabels(["thing"], lambda text: 0))
    with pytest.raises(ValueError, match="^labels: got 'a.txt' with prompts 'captions'"):
        TransformersConfig(model="m", labels="a.txt", prompts="captions")
