"""A corpus: documents from several sources, without repeats, each source split by hash into training and held-out ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import platformdirs

from archsearch.data.documents import Document, read_source, stdlib_documents
from archsearch.data.progress import Progress, Ticker
from archsearch.data.sources import Source, parse_sources
from archsearch.errors import InputError

HELD_OUT = 0.05
"""Share of the documents held out."""
HELD_OUT_BYTES = 0.02
"""At least this share of the bytes is held out, so that a source of a few documents has a test set too."""
FEW = 20
"""With fewer documents than this, or one that outweighs a quarter of all, texts are cut into pieces before the split."""
STDLIB = Source("")
"""The standard library: what is read where no source is given."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One source of a corpus, read once.

    Attributes:
        folder: where the text of a data set of the hub was cached; None for what lies on disk anyway.
        fingerprint: hash over the documents' hashes in order; equal for equal text, wherever it lies.
        documents, text_bytes: what earlier sources hold too is left out.
        threshold: documents whose hash is not above it are held out.
        piece_bytes: texts are cut into pieces of this size; 0 leaves them whole.
    """

    source: Source
    folder: Path | None
    fingerprint: str
    documents: int
    text_bytes: int
    threshold: bytes = field(repr=False)
    piece_bytes: int = 0

    @property
    def name(self) -> str:
        return self.source.location or "the standard library"

    def is_held_out(self, document: Document) -> bool:
        """Decided by the document's own hash, so that it does not depend on order or neighbours."""
        return document.digest <= self.threshold


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Made by `open_corpus` or `default_corpus`, which read everything once; iterating reads it again, so memory stays small.

    Attributes:
        parts: one a source, those that hold nothing of their own left out.
    """

    parts: tuple[Part, ...]
    text_field: str = "text"

    @property
    def sources(self) -> tuple[Source, ...]:
        """Empty for the standard library."""
        return tuple(part.source for part in self.parts if part.source != STDLIB)

    @property
    def weighted(self) -> bool:
        return self.parts[0].source.weight is not None

    @property
    def fingerprint(self) -> str:
        return sha256("".join(part.fingerprint for part in self.parts).encode()).hexdigest()

    @property
    def documents(self) -> int:
        return sum(part.documents for part in self.parts)

    @property
    def text_bytes(self) -> int:
        return sum(part.text_bytes for part in self.parts)

    def by_part(self) -> Iterator[tuple[Part, Document]]:
        """All documents with the source they belong to, in the order of the sources. A text that an earlier source holds is not read again.

        Raises:
            InputError, FileFormatError: as `read_source`.
        """
        seen: set[bytes] = set()
        for part in self.parts:
            for document in _read(part.source, part.folder, self.text_field, part.piece_bytes, seen):
                yield part, document

    def read(self) -> Iterator[Document]:
        """All documents; see `by_part`."""
        return (document for _, document in self.by_part())

    def training(self) -> Iterator[Document]:
        return (document for part, document in self.by_part() if not part.is_held_out(document))

    def held_out(self) -> Iterator[Document]:
        return (document for part, document in self.by_part() if part.is_held_out(document))


def open_corpus(
    sources: Sequence[Path | str] = (), *, text_field: str = "text", cache_dir: Path | None = None, progress: Progress | None = None
) -> Corpus:
    """Read and check every source once. Without sources, the standard library.

    Args:
        sources: files, folders and data sets of the hub, each with a weight or none (see `Source.parse`).
        cache_dir: where data sets of the hub are kept; by default the user's cache folder.

    Raises:
        InputError: a source is missing, unreadable or empty, the weights make no sense, or there is too little text to hold any out.
        FileFormatError: a file that does not say what it should.
    """
    parsed = parse_sources(sources) or (STDLIB,)
    folders = [_fetch(source, text_field, cache_dir, progress) for source in parsed]
    ticker = Ticker(progress, "reading", sum(map(_size, parsed, folders)))
    parts, seen = [], set[bytes]()
    for source, folder in zip(parsed, folders, strict=True):
        part = _scan(source, folder, text_field, seen, ticker)
        if part is not None:
            parts.append(part)
        elif source.weight:
            raise InputError(f"{source.location}: holds nothing that an earlier source does not hold; leave it out")
    if not any(part.threshold for part in parts):
        where = ", ".join(source.location for source in parsed) or "the standard library"
        size = sum(part.text_bytes for part in parts)
        raise InputError(f"{where}: {size} bytes of distinct text; too little to train on and hold some out, give more")
    return Corpus(parts=tuple(parts), text_field=text_field)


def default_corpus() -> Corpus:
    """The Python standard library's own sources (see `stdlib_documents`)."""
    return open_corpus()


def _fetch(source: Source, text_field: str, cache_dir: Path | None, progress: Progress | None) -> Path | None:
    if not source.on_hub:
        return None
    from archsearch.data.hub import cached

    return cached(source.location, cache_dir or platformdirs.user_cache_path("archsearch"), text_field=text_field, progress=progress)


def _size(source: Source, folder: Path | None) -> int:
    """Bytes on disk, for the progress only; 0 where that says nothing about the text."""
    path = folder or Path(source.location)
    if source == STDLIB or folder or path.suffix == ".parquet":
        return 0
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _scan(source: Source, folder: Path | None, text_field: str, seen: set[bytes], ticker: Ticker) -> Part | None:
    """Read a source: hashes and sizes of its documents, and what follows from them. None if earlier ones hold all of it.

    Raises:
        InputError: it holds no text at all.
    """
    piece_bytes = 0
    digests, sizes = _hashes(_read(source, folder, text_field, 0, seen), ticker)
    if not digests:
        if not any(True for _ in _read(source, folder, text_field, 0, set())):
            raise InputError(f"{source.location}: 0 bytes of distinct text; leave it out, or put some text in")
        return None
    if len(sizes) < FEW or max(sizes) > sum(sizes) / 4:
        piece_bytes = min(max(sum(sizes) // (2 * FEW), 64), 1 << 16)
        seen.difference_update(digests)
        digests, sizes = _hashes(_read(source, folder, text_field, piece_bytes, seen), None)
    return Part(
        source=source,
        folder=folder,
        fingerprint=sha256(b"".join(digests)).hexdigest(),
        documents=len(digests),
        text_bytes=sum(sizes),
        threshold=_threshold(digests, sizes),
        piece_bytes=piece_bytes,
    )


def _hashes(documents: Iterable[Document], ticker: Ticker | None) -> tuple[list[bytes], list[int]]:
    digests, sizes = [], []
    for document in documents:
        digests.append(document.digest)
        sizes.append(len(document.text.encode()))
        if ticker:
            ticker.add(sizes[-1])
    return digests, sizes


def _threshold(digests: list[bytes], sizes: list[int]) -> bytes:
    """The greatest hash to hold out: a fixed one, or a higher one where that would hold out too few bytes.

    Empty, which holds out nothing, where there is one document only.
    """
    fixed = int(HELD_OUT * 2**64).to_bytes(8, "big").ljust(32, b"\xff")
    ranked = sorted(zip(digests, sizes, strict=True))[:-1]  # something must be left to train on
    wanted, held = HELD_OUT_BYTES * sum(sizes), 0
    threshold = b""
    for digest, size in ranked:
        if threshold and held >= wanted and digest > fixed:
            break
        threshold, held = digest, held + size
    return threshold


def _read(source: Source, folder: Path | None, text_field: str, piece_bytes: int, seen: set[bytes]) -> Iterator[Document]:
    """Documents, or their pieces, that are not in `seen`, which they are added to. Whole texts are compared before they are cut:
    a text that one source holds whole and another in pieces would else be trained on here and held out there."""
    if folder:
        documents = read_source(folder)
    else:
        documents = read_source(Path(source.location), text_field=text_field) if source != STDLIB else stdlib_documents()
    for whole in documents:
        if whole.digest in seen:
            continue
        seen.add(whole.digest)
        for document in _pieces(whole, piece_bytes) if piece_bytes else ():
            if document.digest not in seen or document.digest == whole.digest:  # a short text is one piece
                seen.add(document.digest)
                yield document
        if not piece_bytes:
            yield whole


def _pieces(document: Document, size: int) -> Iterator[Document]:
    """Pieces of about `size` bytes, cut at line ends where the lines are not longer than that themselves."""
    lines = document.text.splitlines(keepends=True)
    parts = [line[i : i + size] for line in lines for i in range(0, len(line), size)]
    piece: list[str] = []
    held = number = 0
    for part in parts:
        piece.append(part)
        held += len(part.encode())
        if held >= size:
            number += 1
            yield Document(f"{document.name}#{number}", "".join(piece))
            piece, held = [], 0
    if piece:
        yield Document(f"{document.name}#{number + 1}", "".join(piece))
