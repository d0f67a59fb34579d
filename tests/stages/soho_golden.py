"""The released SOHO model in small, as recorded, and ours with the same weights.

`tests/data/golden/soho_official_tiny.npz` was made from researchmm/soho at 95824a8 (float32, CPU).
It holds no weights: a rule makes them from the official names and shapes.
"""

from __future__ import annotations

import functools
import zlib
from pathlib import Path

import numpy as np
import torch

from stages.pretrain.config import ItmConfig, MlmConfig, MvmConfig
from stages.pretrain.data.batch import Batch
from stages.student.build import make_student
from stages.student.config import StudentConfig
from stages.student.network import Student
from stages.student.vision.neck_config import DictionaryConfig, SohoNeckConfig

GOLDEN = dict(np.load(Path(__file__).parent.parent / "data/golden/soho_official_tiny.npz"))
RELEASED_NECK = SohoNeckConfig(
    dictionary=DictionaryConfig(
        num_codes=32,
        start="random",
        decay=0.4,
        smoothing=1e-5,
        revive_after_steps=0,
        update="forward",
        count_padding=True,
    ),
    width_mask="height",
    count_captions=True,
    drop_edge=True,
    keep_padding_blank=False,
)
CONFIG = StudentConfig(
    stem_width=64,
    widths=(64, 128, 256, 512),
    depths=(2, 2, 2, 2),
    frozen_stages=1,
    neck=RELEASED_NECK,
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    ffn_size=128,
    max_tokens=512,
    mlm_head="tied",
    itm_head="linear",
)
MLM = MlmConfig(matched_only=False, mean_epsilon=1e-6)
MVM = MvmConfig(
    rule="released", probability=0.5, temperature=1.0, matched_only=False, mean_epsilon=1e-6
)
ITM = ItmConfig()


def official_weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight of an official name by the fixture's rule; checked against its recorded sums."""
    key = {
        "mask_l_fc.weight": "language.bert.embeddings.word_embeddings.weight",
        "neck.vq.embed_avg": "neck.vq.embed",
    }.get(key, key)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.startswith("neck.vq.cluster"):
        return np.ones(shape, np.float32)
    random = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("running_var"):
        return (1 + 0.1 * random.random(shape)).astype(np.float32)
    x = random.standard_normal(shape)
    if len(shape) == 1:
        x = 0.1 * x + key.endswith("weight")
    elif key != "neck.vq.embed":
        gain = 0.5 if key.startswith("neck.conv.") else 1.0
        gain = np.sqrt(2) if key.startswith("backbone.") else gain
        x *= gain / np.sqrt(np.prod(shape[1:]))
        if len(shape) == 4:
            x -= x.mean(axis=(1, 2, 3), keepdims=True)
    return x.astype(np.float32)


def official_weights() -> dict[str, torch.Tensor]:
    """All 180 entries of the official state_dict, to be changed as one likes."""
    return {name: weight.clone() for name, weight in _official_weights().items()}


@functools.lru_cache(maxsize=1)
def _official_weights() -> dict[str, torch.Tensor]:
    weights = {}
    for key, text in zip(GOLDEN["weights/keys"].tolist(), GOLDEN["weights/shapes"].tolist()):
        shape = tuple(int(size) for size in text.split("x")) if text else ()
        weights[key] = torch.from_numpy(np.asarray(official_weight(key, shape)))
    return weights


def new_student() -> Student:
    """A student of the fixture's sizes with weights of its own."""
    torch.manual_seed(0)
    return make_student(CONFIG, vocab_size=1000, pad_id=0, label_names=["thing"], feature_size=8)


def golden_batch(section: str) -> Batch:
    """The inputs of a section, with its recorded draws."""
    sizes = torch.from_numpy(GOLDEN["in/img_shape"])
    pixels = (torch.from_numpy(GOLDEN["in/img_u8"]).float() - 128) / 64
    if section == "pad288":
        sizes = sizes.clone()
        sizes[0] = torch.tensor([256, 200])
        pixels[0, :, :, 200:] = 0
        pixels = torch.nn.functional.pad(pixels, (0, 32, 0, 32))
    tokens = torch.from_numpy(GOLDEN["in/language_tokens"]).flatten(0, 1)
    position = torch.from_numpy(GOLDEN[f"{section}/mask/tmp_pos"])
    drawn = torch.from_numpy(GOLDEN[f"{section}/mask/bernoulli"]) == 1
    none = torch.zeros(2, 1)
    return Batch(
        keys=["0", "1"],
        views=["0", "1"],
        pixels=pixels,
        sizes_px=sizes,
        picture=torch.tensor([0, 0, 1, 1]),
        tokens=tokens,
        texts=tokens,
        is_true=torch.ones(4, dtype=torch.bool),
        ordinary=tokens > 103,
        matched=torch.from_numpy(GOLDEN["in/next_label"]).flatten() == 1,
        masked_cells=torch.zeros(4, 16, dtype=torch.bool),
        regions=none[..., None],
        score=none.float(),
        label=none.long() - 1,
        top_label=none[..., None].long(),
        top_score=none[..., None],
        feature=none[..., None],
        phrases=torch.zeros(4, 1, 16, dtype=torch.bool),
        similarity=torch.zeros(4, 1, 1),
        mlm_labels=torch.from_numpy(GOLDEN["in/mask_labels"]).flatten(0, 1),
        hidden_objects=torch.full((4, 1), -1),
        anchors=torch.where(drawn, position, -1)[:, None],
        mvm_labels=torch.full((4, 16), -100),
    )
