"""Token types of texts in several parts (VCR: question, answer, rationale), and person tags.

Facts are those of KD-VLP's wrapper in VL-InterpreT (IntelLabs/VL-InterpreT,
app/database/models/kdvlp.py): question and answer are [CLS] q [SEP] a [SEP], of the types 0 x (len
q + 2), 2 x (len a + 1); 81 tags are added to bert-base-cased's vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import AddedToken, PreTrainedTokenizerFast

from boxless.errors import BoxlessError

IMAGE_TOKEN_TYPE = 1
TOKEN_TYPES = {"question": 0, "answer": 2, "rationale": 3}
"""Rows of the token type embedding; row 1 is the picture's cells. A plain text has row 0."""
NUM_VCR_TOKEN_TYPES = 4

Spans = Sequence[tuple[str, str]]
"""The parts of a text in order: (a name in TOKEN_TYPES, the words)."""


def add_person_tags(tokenizer: PreTrainedTokenizerFast, num_tags: int) -> None:
    """Add [PERSON_0], [PERSON_1] ... to a tokenizer, each a piece that nothing splits or
    lower-cases. Tags that it has already stay where they are."""
    tags = [AddedToken(f"[PERSON_{n}]", normalized=False) for n in range(num_tags)]
    tokenizer.add_tokens(tags)


def encode_spans(
    tokenizer: PreTrainedTokenizerFast, spans: Spans, *, max_tokens: int
) -> tuple[list[int], list[int]]:
    """[CLS] first [SEP] second [SEP] ... and the token type of each piece.

    A text that is too long loses pieces from the end of its longest part, one by one (ours).
    Raises ValueError on a part of another name, on no part, and on more parts than `max_tokens` can
    hold.
    """
    unknown = [kind for kind, _ in spans if kind not in TOKEN_TYPES]
    if unknown or not spans:
        raise BoxlessError(
            f"texts: got parts {[kind for kind, _ in spans]}, expected one or more of "
            f"{', '.join(TOKEN_TYPES)}"
        )
    if len(spans) + 1 > max_tokens:
        raise BoxlessError(
            f"texts: got {len(spans)} parts, expected fewer: {max_tokens} pieces fit"
        )
    parts = [tokenizer(words, add_special_tokens=False)["input_ids"] for _, words in spans]
    while sum(map(len, parts)) + len(parts) + 1 > max_tokens:
        max(parts, key=len).pop()
    tokens, types = [tokenizer.cls_token_id], [TOKEN_TYPES[spans[0][0]]]
    for (kind, _), part in zip(spans, parts):
        tokens += [*part, tokenizer.sep_token_id]
        types += [TOKEN_TYPES[kind]] * (len(part) + 1)
    return tokens, types
