"""A pretraining step of ours compared with the released SOHO's, on the same work, and the share of
each saving.

    python -m benchmarks.training.soho_step [--rounds 5] [--threads 2] [--size res18|tiny] [--parts]
    python -m benchmarks.training.soho_step --size r101 [--device cuda] [--precision bf16]

Forward and backward of 2 pictures of 608 x 800 with 4 captions of 16 word pieces each, dropout 0.1,
no optimizer. `benchmarks/training/soho_released.py` works as the released code does, with its
waste. Both have the same weights and masks and are checked first, without dropout, to give the same
loss and the same gradients. They take turns within a round; printed are medians over the rounds,
seconds of the clock and of all threads (CPU), the median and the spread of the rounds' ratios, and
the arithmetic that torch counts, of convolutions and matrix products.
--parts leaves out one waste of the released code at a time.

Size r101 is ResNet-101 and 12 layers, ours alone, beside its arithmetic: what torch counts, against
what this device reaches in the same run on a plain large matrix product.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training.soho_released import ReleasedSoho, Waste
from stages.pretrain.config import PretrainConfig
from stages.pretrain.data.batch import Batch
from stages.pretrain.model import PretrainModel, make_objectives
from stages.pretrain.objectives.config import MlmConfig, MvmConfig, OmvmConfig, PraConfig
from stages.student.build import make_student
from stages.student.checkpoints.soho import official_name
from stages.student.config import StudentConfig
from stages.student.vision.neck_config import DictionaryConfig, SohoNeckConfig

NUM_PICTURES, NUM_CAPTIONS, NUM_TOKENS = 2, 4, 16
CLS, MASK = 101, 103
RELEASED_NECK = SohoNeckConfig(
    dictionary=DictionaryConfig(
        num_codes=2048,
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
)
RES18 = StudentConfig(
    stem_width=64,
    widths=(64, 128, 256, 512),
    depths=(2, 2, 2, 2),
    frozen_stages=1,
    neck=RELEASED_NECK,
    hidden_size=768,
    num_layers=3,
    num_heads=12,
    ffn_size=3072,
    dropout=0.1,
    max_tokens=512,
    mlm_head="tied",
    itm_head="linear",
)
OBJECTIVES = PretrainConfig(
    mlm=MlmConfig(matched_only=False, mean_epsilon=1e-6),
    omvm=OmvmConfig(weight=0.0),
    pra=PraConfig(weight=0.0),
    mvm=MvmConfig(
        weight=1.0, rule="released", temperature=1.0, matched_only=False, mean_epsilon=1e-6
    ),
)


class Size(NamedTuple):
    """A student, its words, and a picture's height, width before padding to `pad_px`."""

    student: StudentConfig
    vocab_size: int
    height_px: int
    width_px: int


SIZES = {
    "res18": Size(RES18, 30_522, 600, 800),
    "r101": Size(
        replace(
            RES18,
            widths=(256, 512, 1024, 2048),
            depths=(3, 4, 23, 3),
            block="bottleneck",
            num_layers=12,
        ),
        30_522,
        600,
        800,
    ),
    "tiny": Size(
        replace(
            RES18,
            stem_width=8,
            widths=(8, 8, 16, 16),
            depths=(1, 1, 1, 2),
            hidden_size=32,
            num_heads=2,
            ffn_size=64,
            num_layers=2,
        ),
        200,
        120,
        190,
    ),
}


class Took(NamedTuple):
    """Seconds of the clock and of all threads."""

    clock: float
    cpu: float


def main() -> None:
    """Check that both variants give the same, then time them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", choices=SIZES, default="res18")
    parser.add_argument("--parts", action="store_true", help="leave out one waste at a time")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, size = torch.device(options.device), SIZES[options.size]
    model = make_model(size, device)
    batch = make_batch(size, model).to(device)
    print(
        f"{options.device}, {options.threads} threads, torch {torch.__version__}, "
        f"{options.size}, {options.precision}, {options.rounds} rounds"
    )
    if options.size == "r101" or options.precision == "bf16" or device.type != "cpu":
        show_use(model, batch, options.precision, options.rounds)
        return
    released = ReleasedSoho(model.student, Waste()).train()
    check_same(model, released, batch)
    variants: dict[str, nn.Module] = {"released": released}
    if options.parts:
        for waste in fields(Waste):
            less = Waste(**{waste.name: False})
            variants[f"without {waste.name}"] = ReleasedSoho(model.student, less).train()
    variants["ours"] = model
    show_ratios(variants, batch, options.rounds)


def make_model(size: Size, device: torch.device) -> PretrainModel:
    """Our student in training, by SOHO's three objectives as released."""
    torch.manual_seed(0)
    student = make_student(
        size.student, vocab_size=size.vocab_size, pad_id=0, label_names=["thing"], feature_size=8
    )
    return PretrainModel(student, make_objectives(OBJECTIVES)).to(device).train()


def make_batch(size: Size, model: PretrainModel) -> Batch:
    """Noise for pictures and texts, 15 % of the pieces hidden, every other pair mismatched, and one
    pair with a code hidden (1.5 % of them in the released code)."""
    grid = model.student.grid
    num_pairs = NUM_PICTURES * NUM_CAPTIONS
    height, width = (-(-px // grid.pad_px) * grid.pad_px for px in (size.height_px, size.width_px))
    num_cells = (height // grid.cell_px) * (width // grid.cell_px)
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(MASK + 1, size.vocab_size, (num_pairs, NUM_TOKENS), generator=random)
    tokens[:, 0] = CLS
    hidden = torch.rand(tokens.shape, generator=random) < 0.15
    hidden[:, 0] = False
    pixels = torch.zeros(NUM_PICTURES, 3, height, width)
    pixels[:, :, : size.height_px, : size.width_px] = torch.randn(
        NUM_PICTURES, 3, size.height_px, size.width_px, generator=random
    )
    anchors = torch.full((num_pairs, 1), -1)
    anchors[2] = 0
    none = torch.zeros(NUM_PICTURES, 1)
    return Batch(
        keys=[str(n) for n in range(NUM_PICTURES)],
        views=[str(n) for n in range(NUM_PICTURES)],
        pixels=pixels,
        sizes_px=torch.tensor([[size.height_px, size.width_px]] * NUM_PICTURES),
        first_row=torch.arange(NUM_PICTURES),
        picture=torch.arange(NUM_PICTURES).repeat_interleave(NUM_CAPTIONS),
        tokens=torch.where(hidden, MASK, tokens),
        texts=tokens,
        is_true=torch.ones(num_pairs, dtype=torch.bool),
        ordinary=tokens > MASK,
        words=torch.where(tokens > MASK, torch.arange(tokens.shape[1]), -1),
        matched=torch.arange(num_pairs) % 2 == 0,
        swapped=torch.zeros(0, dtype=torch.long),
        masked_cells=torch.zeros(num_pairs, num_cells, dtype=torch.bool),
        regions=none[..., None],
        score=none,
        label=none.long() - 1,
        top_label=none[..., None].long(),
        top_score=none[..., None],
        feature=none[..., None],
        phrases=torch.zeros(num_pairs, 1, NUM_TOKENS, dtype=torch.bool),
        similarity=torch.zeros(num_pairs, 1, 1),
        mlm_labels=torch.where(hidden, tokens, -100),
        masked_objects=torch.full((num_pairs, 1), -1),
        anchors=anchors,
        mvm_labels=torch.full((num_pairs, num_cells), -100),
    )


def check_same(model: PretrainModel, released: ReleasedSoho, batch: Batch) -> None:
    """Stops unless loss and gradients agree; prints how nearly.

    In the CNN rounding can flip a ReLU's or a pooling's choice: there, the whole of a gradient.
    """
    with without_dropout(model), without_dropout(released):
        losses = [forward(net, batch) for net in (model, released)]
        for net, loss in zip((model, released), losses):
            net.zero_grad()
            loss.backward()
    theirs = dict(released.named_parameters())
    apart, apart_in_cnn = 0.0, 0.0
    for name, weight in model.student.named_parameters():
        official = official_name(name)
        if weight.grad is None or official is None or official.endswith("key.bias"):
            continue  # a key's bias has no gradient but rounding
        other = theirs[official].grad
        assert other is not None, name
        norm = float(other.norm().clamp(min=1e-6))  # some are nothing but rounding
        distance = float((weight.grad.flatten() - other.flatten()).norm()) / norm
        if official.startswith("backbone"):
            apart_in_cnn = max(apart_in_cnn, distance)
        else:
            apart = max(apart, distance)
    ours, released_loss = (float(loss.detach()) for loss in losses)
    print(
        f"the same loss, {ours:.6f} and {released_loss:.6f}; gradients within {apart:.0e} of "
        f"their norm, in the CNN {apart_in_cnn:.0e}"
    )
    assert abs(ours - released_loss) < 1e-5 * released_loss
    assert apart < 1e-3 and apart_in_cnn < 5e-2


def forward(net: nn.Module, batch: Batch) -> torch.Tensor:
    """The loss of either; ours writes its masks into the batch, so it gets a copy."""
    result = net(copy.copy(batch))
    return result[0] if isinstance(result, tuple) else result


@contextmanager
def without_dropout(net: nn.Module) -> Iterator[None]:
    """Within it nothing is dropped."""
    dropouts = [part for part in net.modules() if isinstance(part, nn.Dropout)]
    shares = [part.p for part in dropouts]
    for part in dropouts:
        part.p = 0.0
    yield
    for part, p in zip(dropouts, shares):
        part.p = p


def show_ratios(variants: dict[str, nn.Module], batch: Batch, num_rounds: int) -> None:
    """Prints each variant's seconds and its ratio to the released code, over interleaved rounds."""
    took: dict[str, list[Took]] = {name: [] for name in variants}
    for number in range(num_rounds + 1):  # the first is for warming up
        for name, net in variants.items():
            net.zero_grad(set_to_none=True)
            seconds = measured(lambda: forward(net, batch).backward(), batch.pixels.device)
            if number:
                took[name].append(seconds)
    print(f"{'':20} clock s    CPU s   of the released: clock (spread), CPU (spread)   work")
    work = {name: flops(net, batch) for name, net in variants.items()}
    for name, all_took in took.items():
        shares = [sorted(a[i] / b[i] for a, b in zip(all_took, took["released"])) for i in (0, 1)]
        clock, cpu = (statistics.median(one[i] for one in all_took) for i in (0, 1))
        print(
            f"{name:20} {clock:7.2f} {cpu:8.2f}   "
            + ", ".join(
                f"{statistics.median(share):.2f} ({share[0]:.2f} to {share[-1]:.2f})"
                for share in shares
            )
            + f"   {work[name] / 1e9:.0f} GFLOP, {work[name] / work['released']:.2f}"
        )


def flops(net: nn.Module, batch: Batch) -> int:
    """Additions and multiplications of a forward and backward pass, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        forward(net, batch).backward()
    return counter.get_total_flops()


def show_use(model: PretrainModel, batch: Batch, precision: str, num_rounds: int) -> None:
    """Prints seconds of our step, its arithmetic, and its share of what the device reaches."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model.to(dtype)
    batch.pixels = batch.pixels.to(dtype)
    work = flops(model, batch)
    device = batch.pixels.device
    side = 8192 if device.type == "cuda" else 1024
    square = torch.randn(side, side, device=device, dtype=dtype)
    peak = 2 * side**3 / min(measured(lambda: square @ square, device).clock for _ in range(8))
    took = []
    for _ in range(num_rounds):
        model.zero_grad(set_to_none=True)
        took.append(measured(lambda: forward(model, batch).backward(), device).clock)
    seconds = statistics.median(took)
    rate = work / seconds
    print(
        f"ours {seconds:.3f} s ({min(took):.3f} to {max(took):.3f}), {work / 1e9:.0f} GFLOP: "
        f"{rate / 1e9:.0f} GFLOP/s, {rate / peak:.0%} of a {precision} matrix product's "
        f"{peak / 1e9:.0f}"
    )


def measured(variant: Callable[[], object], device: torch.device) -> Took:
    """How long `variant` took, to the end of what it started on the device."""
    began, began_cpu = time.perf_counter(), time.process_time()
    variant()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return Took(time.perf_counter() - began, time.process_time() - began_cpu)


if __name__ == "__main__":
    main()
