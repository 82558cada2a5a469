"""Byte-level BPE: any text goes in and comes back as it was, and every token stands for a known number of bytes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as _Tokenizer

from archsearch.errors import FileFormatError, InputError

END_OF_DOCUMENT = "<|endoftext|>"
END_TOKENS = (END_OF_DOCUMENT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
"""Looked for in this order in a tokenizer from a file."""
MIN_VOCAB = 256 + 1

SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Llama 3's pre-tokenizer, which LFM2 uses too, so that other runtimes know what to do with our tokenizer.json."""


class Tokenizer:
    """A byte-level tokenizer with an end-of-document token.

    Attributes:
        vocab_size: number of tokens, specials included.
        end_of_document: id of the token between documents.
        token_bytes_V: uint8/uint16 bytes of text behind each id; 0 for special tokens.
    """

    def __init__(self, inner: _Tokenizer, *, path: Path | None = None) -> None:
        """
        Raises:
            FileFormatError: not byte-level, or without an end-of-document token.
        """
        if type(inner.decoder).__name__ != "ByteLevel":
            raise FileFormatError(path, "decoder", "must be ByteLevel, so that any text can be written and its bytes counted")
        self._inner = inner
        self._inner.encode_special_tokens = True  # "<|endoftext|>" inside a document is text
        self.vocab_size = inner.get_vocab_size(with_added_tokens=True)
        special = {id for id, token in inner.get_added_tokens_decoder().items() if token.special}
        end = next((inner.token_to_id(token) for token in END_TOKENS if inner.token_to_id(token) in special), None)
        if end is None:
            raise FileFormatError(path, "added_tokens", f"needs an end-of-document token, one of {', '.join(END_TOKENS)}")
        self.end_of_document: int = end
        self.token_bytes_V = np.zeros(self.vocab_size, dtype=np.uint16)
        added = inner.get_added_tokens_decoder()
        for token, id in inner.get_vocab(with_added_tokens=True).items():
            if id in added:
                self.token_bytes_V[id] = 0 if id in special else len(token.encode())
            else:
                self.token_bytes_V[id] = len(token)  # byte-level BPE writes every byte as one character

    def encode(self, text: str) -> list[int]:
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._inner.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text with the special tokens written out; bytes that are no UTF-8 (a cut character) become U+FFFD."""
        return str(self._inner.decode(list(ids), skip_special_tokens=False))

    def vocabulary(self) -> dict[str, int]:
        """Every token, specials included, and its id."""
        return dict(self._inner.get_vocab(with_added_tokens=True))

    def to_json(self) -> str:
        """The content of a tokenizer.json."""
        return str(self._inner.to_str())


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-pair encoding over the bytes of `texts`; fewer tokens than `vocab_size` if the texts hold no more pairs.

    Raises:
        InputError: no room for the 256 bytes and the end-of-document token.
    """
    if vocab_size < MIN_VOCAB:
        raise InputError(f"vocab_size: must be at least {MIN_VOCAB} (256 bytes and the end of a document), got {vocab_size}")
    inner = _Tokenizer(models.BPE(ignore_merges=True))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return Tokenizer(inner)


def read_tokenizer(path: Path, *, vocab_size: int | None = None) -> Tokenizer:
    """A tokenizer.json, or the one in a folder (a checkpoint, a model of Hugging Face).

    Raises:
        FileFormatError: missing, no tokenizer, not byte-level, or with more tokens than `vocab_size`.
    """
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        inner = _Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileFormatError(path, None, "no such file") from error
    except Exception as error:  # tokenizers raises bare Exception
        raise FileFormatError(path, None, f"is no tokenizer.json: {error}") from error
    tokenizer = Tokenizer(inner, path=path)
    if vocab_size is not None and tokenizer.vocab_size > vocab_size:
        raise FileFormatError(path, None, f"has {tokenizer.vocab_size} tokens, the spec's vocab_size is {vocab_size}; raise it in the spec")
    return tokenizer
