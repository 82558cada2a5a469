"""From a corpus to tokens on disk: prepared once, cached by content, memory-mapped."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import platformdirs

from archsearch.data.corpus import Corpus
from archsearch.data.documents import Document
from archsearch.data.tokenizer import MIN_VOCAB, Tokenizer, read_tokenizer, train_tokenizer
from archsearch.errors import ArchsearchError, InputError, RunError
from archsearch.files import write_atomic

log = logging.getLogger(__name__)

FORMAT = 1
"""Part of every cache key: raise it when the same corpus would give other tokens."""
TOKENIZER_BYTES = 1 << 26
"""At most about this much training text goes into a tokenizer, chosen by hash."""

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


@dataclass(frozen=True, kw_only=True)
class TokenData:
    """A tokenised corpus. Both streams begin with the end-of-document token, and every document ends with one."""

    corpus: Corpus
    tokenizer: Tokenizer
    training: Tokens
    held_out: Tokens
    training_bytes: int
    held_out_bytes: int

    @property
    def fingerprint(self) -> str:
        """Equal for equal tokens, which is what an exact resume needs."""
        return _tokens_key(self.corpus, self.tokenizer)


def prepare(corpus: Corpus, vocab_size: int, *, tokenizer: Tokenizer | None = None, cache_dir: Path | None = None) -> TokenData:
    """Tokens of a corpus, from the cache if they were made before.

    Args:
        tokenizer: instead of one trained on the training split.
        cache_dir: by default the user's cache folder.

    Raises:
        InputError: `vocab_size` is too small.
        RunError: the cache cannot be written.
    """
    if vocab_size < MIN_VOCAB:
        raise InputError(f"vocab_size: must be at least {MIN_VOCAB} (256 bytes and the end of a document), got {vocab_size}")
    cache = cache_dir or platformdirs.user_cache_path("archsearch")
    if tokenizer is None:
        tokenizer = _trained_tokenizer(corpus, vocab_size, cache)
    elif tokenizer.vocab_size > vocab_size:
        raise InputError(f"the tokenizer has {tokenizer.vocab_size} tokens, the spec's vocab_size is {vocab_size}; raise it in the spec")
    folder = cache / "tokens" / _tokens_key(corpus, tokenizer)
    if not _is_complete(folder):
        _write_tokens(corpus, tokenizer, folder)
    meta = json.loads((folder / "meta.json").read_text())
    return TokenData(
        corpus=corpus,
        tokenizer=tokenizer,
        training=np.memmap(folder / "training.bin", dtype=meta["dtype"], mode="r"),
        held_out=np.memmap(folder / "held_out.bin", dtype=meta["dtype"], mode="r"),
        training_bytes=meta["training"]["bytes"],
        held_out_bytes=meta["held_out"]["bytes"],
    )


def _trained_tokenizer(corpus: Corpus, vocab_size: int, cache: Path) -> Tokenizer:
    key = _key("tokenizer", corpus.fingerprint, corpus.threshold.hex(), vocab_size)
    path = cache / "tokenizers" / f"{key}.json"
    if path.exists():
        with suppress(ArchsearchError):  # a cache that went bad is made again
            return read_tokenizer(path, vocab_size=vocab_size)
    log.info("training a tokenizer of %d tokens on %.1f MB", vocab_size, min(corpus.text_bytes, TOKENIZER_BYTES) / 1e6)
    share = TOKENIZER_BYTES / corpus.text_bytes
    # the last bytes of the hash choose the sample; the first ones chose the split
    texts = (d.text for d in corpus.training() if int.from_bytes(d.digest[-8:]) < share * 2**64)
    tokenizer = train_tokenizer(texts, vocab_size)
    write_atomic(path, tokenizer.to_json())
    return tokenizer


def _write_tokens(corpus: Corpus, tokenizer: Tokenizer, folder: Path) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name[:8]}-"))
        try:
            meta: dict[str, object] = {"dtype": dtype.name}
            for split, documents in (("training", corpus.training()), ("held_out", corpus.held_out())):
                meta[split] = _write_split(partial / f"{split}.bin", documents, tokenizer, dtype)
            (partial / "meta.json").write_text(json.dumps(meta))
            try:
                partial.rename(folder)
            except OSError:
                if not _is_complete(folder):  # otherwise another process was faster, with the same tokens
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise RunError(f"{folder}: tokens cannot be cached: {error.strerror}; free some space or set XDG_CACHE_HOME") from error


def _write_split(path: Path, documents: Iterator[Document], tokenizer: Tokenizer, dtype: np.dtype[np.generic]) -> dict[str, int]:
    end = np.array([tokenizer.end_of_document], dtype=dtype)
    tokens, size = 1, 0
    with path.open("wb") as file:
        end.tofile(file)
        while some := list(islice(documents, 64)):
            for document, ids in zip(some, tokenizer.encode_batch([d.text for d in some]), strict=True):
                ids_T = np.array(ids, dtype=dtype)
                document_bytes = len(document.text.encode())
                if int(tokenizer.token_bytes_V[ids_T].sum(dtype=np.int64)) != document_bytes:
                    raise InputError(f"{document.name}: the tokenizer loses bytes of this text; use a byte-level one without normalizer")
                ids_T.tofile(file)
                end.tofile(file)
                tokens += len(ids) + 1
                size += document_bytes
    return {"tokens": tokens, "bytes": size}


def _is_complete(folder: Path) -> bool:
    try:
        meta = json.loads((folder / "meta.json").read_text())
        item = np.dtype(meta["dtype"]).itemsize
        return all((folder / f"{split}.bin").stat().st_size == meta[split]["tokens"] * item for split in ("training", "held_out"))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _tokens_key(corpus: Corpus, tokenizer: Tokenizer) -> str:
    return _key("tokens", corpus.fingerprint, corpus.threshold.hex(), sha256(tokenizer.to_json().encode()).hexdigest())


def _key(*parts: object) -> str:
    return sha256("\n".join(map(str, (FORMAT, *parts))).encode()).hexdigest()[:32]
