"""From a corpus to tokens on disk: prepared once, cached by content, memory-mapped."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import chain, groupby
from pathlib import Path

import platformdirs
from filelock import FileLock

from archsearch.data.batches import Batches, BatchSource, mixed
from archsearch.data.corpus import Corpus, Part
from archsearch.data.progress import Progress, Ticker
from archsearch.data.shards import read_shards, write_shards
from archsearch.data.streams import TokenStream
from archsearch.data.tokenizer import MIN_VOCAB, Tokenizer, read_tokenizer, train_tokenizer
from archsearch.errors import ArchsearchError, InputError, RunError
from archsearch.files import write_atomic

log = logging.getLogger(__name__)

FORMAT = 2
"""Part of every cache key: raise it when the same corpus would give other tokens."""
TOKENIZER_BYTES = 1 << 26
"""At most about this much training text goes into a tokenizer, chosen by hash."""


@dataclass(frozen=True, kw_only=True)
class PartTokens:
    """A tokenised source. Both streams begin with the end-of-document token, and every document ends with one."""

    name: str
    weight: float | None
    training: TokenStream
    held_out: TokenStream
    training_bytes: int
    held_out_bytes: int


@dataclass(frozen=True, kw_only=True)
class TokenData:
    """A tokenised corpus, source by source."""

    corpus: Corpus
    tokenizer: Tokenizer
    parts: tuple[PartTokens, ...]

    @cached_property
    def training(self) -> TokenStream:
        """All that may be trained on: the streams of the sources one after the other."""
        streams = [part.training for part in self.parts if part.weight != 0]
        return TokenStream(streams, streams[0].dtype)

    @cached_property
    def held_out(self) -> TokenStream:
        return TokenStream([part.held_out for part in self.parts], self.parts[0].held_out.dtype)

    @property
    def training_bytes(self) -> int:
        return sum(part.training_bytes for part in self.parts)

    @property
    def held_out_bytes(self) -> int:
        return sum(part.held_out_bytes for part in self.parts)

    @property
    def fingerprint(self) -> str:
        """Equal for equal tokens in equal shares, which is what an exact resume needs."""
        return _key("corpus", *((_tokens_key(part, self.tokenizer), part.source.weight) for part in self.corpus.parts))

    def batches(self, sequence: int, batch: int, seed: int = 0) -> BatchSource:
        """What is trained on at which step: by weight where there are weights, else every token once an epoch.

        Raises:
            InputError: too little text for sequences of this length.
        """
        if not self.corpus.weighted:
            return Batches(self.training, sequence, batch, seed)
        names, weights = [part.name for part in self.parts], [part.weight or 0.0 for part in self.parts]
        return mixed([part.training for part in self.parts], names, weights, sequence, batch, seed)


def prepare(
    corpus: Corpus,
    vocab_size: int,
    *,
    tokenizer: Tokenizer | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> TokenData:
    """Tokens of a corpus, from the cache if they were made before; what was made before an interruption is not made again.

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
    try:
        (cache / "tokens").mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache / "tokens" / ".lock")  # of several processes (torchrun) one makes the tokens, the others wait
        lock.acquire()
    except OSError as error:
        raise RunError(f"{cache}: tokens cannot be cached: {error.strerror}; free some space or set XDG_CACHE_HOME") from error
    try:
        if tokenizer is None:
            tokenizer = _trained_tokenizer(corpus, vocab_size, cache, progress)
        elif tokenizer.vocab_size > vocab_size:
            has = f"the tokenizer has {tokenizer.vocab_size} tokens"
            raise InputError(f"{has}, the spec's vocab_size is {vocab_size}; raise it in the spec")
        folders = [cache / "tokens" / _tokens_key(part, tokenizer) for part in corpus.parts]
        if not all(map(read_shards, folders)):
            _tokenise(corpus, tokenizer, folders, progress)
    finally:
        lock.release()
    return TokenData(
        corpus=corpus, tokenizer=tokenizer, parts=tuple(_opened(part, folder) for part, folder in zip(corpus.parts, folders, strict=True))
    )


def _opened(part: Part, folder: Path) -> PartTokens:
    shards = read_shards(folder)
    if shards is None:
        raise RunError(f"{folder}: tokens vanished from the cache; start again, and they are made anew")
    streams, sizes = shards
    return PartTokens(
        name=part.name,
        weight=part.source.weight,
        training=streams["training"],
        held_out=streams["held_out"],
        training_bytes=sizes["training"],
        held_out_bytes=sizes["held_out"],
    )


def _trained_tokenizer(corpus: Corpus, vocab_size: int, cache: Path, progress: Progress | None) -> Tokenizer:
    parts = [(part.fingerprint, part.threshold.hex(), part.source.weight) for part in corpus.parts]
    path = cache / "tokenizers" / f"{_key('tokenizer', *parts, vocab_size)}.json"
    if path.exists():
        with suppress(ArchsearchError):  # a cache that went bad is made again
            return read_tokenizer(path, vocab_size=vocab_size)
    log.info("training a tokenizer of %d tokens on %.1f MB", vocab_size, min(corpus.text_bytes, TOKENIZER_BYTES) / 1e6)
    ticker = Ticker(progress, "tokenizer", min(corpus.text_bytes, TOKENIZER_BYTES))
    tokenizer = train_tokenizer(_sample(corpus, ticker), vocab_size)
    write_atomic(path, tokenizer.to_json())
    return tokenizer


def _sample(corpus: Corpus, ticker: Ticker) -> Iterator[str]:
    """Training text, from every source as much as its weight says, if there is that much."""
    weights = sum(part.source.weight or 0.0 for part in corpus.parts)
    share = {
        part.fingerprint: TOKENIZER_BYTES * (part.source.weight / weights / part.text_bytes if part.source.weight else 0.0)
        if corpus.weighted
        else TOKENIZER_BYTES / corpus.text_bytes
        for part in corpus.parts
    }
    for part, document in corpus.by_part():
        # the last bytes of the hash choose the sample; the first ones chose the split
        if not part.is_held_out(document) and int.from_bytes(document.digest[-8:]) < share[part.fingerprint] * 2**64:
            ticker.add(len(document.text.encode()))
            yield document.text


def _tokenise(corpus: Corpus, tokenizer: Tokenizer, folders: list[Path], progress: Progress | None) -> None:
    """One pass over the corpus. Sources that are complete are read as well, since later ones leave out what they hold."""
    missing = {part.fingerprint: folder for part, folder in zip(corpus.parts, folders, strict=True) if not read_shards(folder)}
    ticker = Ticker(progress, "tokenising", sum(part.text_bytes for part in corpus.parts if part.fingerprint in missing))
    for fingerprint, group in groupby(corpus.by_part(), key=lambda pair: pair[0].fingerprint):
        if fingerprint in missing:
            part, first = next(group)
            documents = (document for _, document in group)
            write_shards(missing[fingerprint], part, chain([first], documents), tokenizer, ticker)


def _tokens_key(part: Part, tokenizer: Tokenizer) -> str:
    return _key("tokens", part.fingerprint, part.threshold.hex(), sha256(tokenizer.to_json().encode()).hexdigest())


def _key(*parts: object) -> str:
    return sha256("\n".join(map(str, (FORMAT, *parts))).encode()).hexdigest()[:32]
