"""The student's tokenizer: WordPiece trained on the corpus, or a published one by name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import WordPieceTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from boxless.errors import BoxlessError
from stages.student.text.token_types import Spans

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train_tokenizer(captions: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer of at most `vocab_size` entries, as BERT's uncased one.

    Deterministic: the same captions in any order give the same entries.
    """
    captions = list(captions)
    trained = _wordpiece({})
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS + _inner_letters(trained, captions),
        show_progress=False,
    )
    trained.train_from_iterator(captions, trainer)
    tokenizer = _wordpiece(trained.get_vocab())
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    cls, sep = (SPECIAL_TOKENS.index(token) for token in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    return wrap(tokenizer)


def _wordpiece(vocab: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _inner_letters(tokenizer: Tokenizer, captions: Iterable[str]) -> list[str]:
    """Every letter within a word, as a piece ("##a"), sorted.

    The trainer would number these in the order of a hash table, another one in every process, and
    that number decides between pairs of equal count. Given as special pieces they have their
    numbers before it counts.
    """
    words = (
        word
        for text in captions
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(
            tokenizer.normalizer.normalize_str(text)
        )
    )
    return sorted({f"##{letter}" for word in words for letter in word[1:]})


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The same tokenizer with the Hugging Face interface."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def encodable(text: str) -> str:
    """The text as a tokenizer takes it: with "?" for half a character, as JSON may hold one and as
    a command line gives bytes that are not UTF-8. Its length stays."""
    return text.encode("utf-8", "replace").decode()


def is_blank(text: str) -> bool:
    """Whether a text has nothing to read: only spaces, line ends, and characters that are not
    printed, which tokenizers leave out."""
    return not any(letter.isprintable() and not letter.isspace() for letter in text)


def encodable_spans(spans: Spans) -> Spans:
    """The parts of a text, each as `encodable` makes it."""
    return tuple((kind, encodable(words)) for kind, words in spans)


def load_tokenizer(name_or_folder: str | Path) -> PreTrainedTokenizerFast:
    """A tokenizer by name or from a student folder. Raises OSError where it cannot be reached,
    ValueError where the folder has none, or a damaged one."""
    folder = Path(name_or_folder)
    if (folder / "tokenizer.json").exists():
        try:
            return PreTrainedTokenizerFast.from_pretrained(str(folder))
        except Exception as error:  # transformers and tokenizers raise nearly everything
            raise BoxlessError(
                f"{folder}: got tokenizer files that cannot be read ({error}), expected a complete "
                "tokenizer.json and tokenizer_config.json; copy them again from where they came"
            ) from None
    if (folder / "preprocessor_config.json").exists():
        raise BoxlessError(
            f"{folder}: got no tokenizer.json, expected one as save_pretrained writes it; copy it "
            "again from where it came"
        )
    # A published name may need another class; AutoTokenizer knows, but warns at a student's
    # config.json, whose model type it does not.
    tokenizer = AutoTokenizer.from_pretrained(str(name_or_folder))
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise BoxlessError(
            f"{name_or_folder}: got a {type(tokenizer).__name__}, expected a tokenizer that has a "
            "tokenizer.json; AutoTokenizer.from_pretrained(...).save_pretrained(...) of a version "
            "that converts it writes one"
        )
    return tokenizer
