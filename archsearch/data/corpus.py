"""A corpus: documents from several sources, without repeats, split by hash into training and held-out ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from archsearch.data.documents import Document, read_source, stdlib_documents
from archsearch.errors import InputError

HELD_OUT = 0.05
"""Share of the documents held out."""
HELD_OUT_BYTES = 0.02
"""At least this share of the bytes is held out, so that a corpus of a few documents has a test set too."""
FEW = 20
"""With fewer documents than this, or one that outweighs a quarter of all, texts are cut into pieces before the split."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Made by `open_corpus` or `default_corpus`, which read everything once; iterating reads it again, so memory stays small.

    Attributes:
        sources: files and folders; empty for the standard library.
        fingerprint: hash over the documents' hashes in order; equal for equal text, wherever it lies.
        documents, text_bytes: of the whole corpus, repeats left out.
        threshold: documents whose hash is not above it are held out.
        piece_bytes: texts are cut into pieces of this size; 0 leaves them whole.
    """

    sources: tuple[Path, ...]
    text_field: str = "text"
    fingerprint: str
    documents: int
    text_bytes: int
    threshold: bytes = field(repr=False)
    piece_bytes: int = 0

    def is_held_out(self, document: Document) -> bool:
        """Decided by the document's own hash, so that it does not depend on order or neighbours."""
        return document.digest <= self.threshold

    def read(self) -> Iterator[Document]:
        """All documents, in the order of the sources.

        Raises:
            InputError, FileFormatError: as `read_source`.
        """
        return _read(self.sources, self.text_field, self.piece_bytes)

    def training(self) -> Iterator[Document]:
        return (document for document in self.read() if not self.is_held_out(document))

    def held_out(self) -> Iterator[Document]:
        return (document for document in self.read() if self.is_held_out(document))


def open_corpus(sources: Sequence[Path | str] = (), *, text_field: str = "text") -> Corpus:
    """Read and check every source once. Without sources, the standard library.

    Raises:
        InputError: a source is missing or unreadable, or there is too little text to hold any out.
        FileFormatError: a file that does not say what it should.
    """
    paths = tuple(Path(source).absolute() for source in sources)
    digests, sizes = _scan(paths, text_field, piece_bytes=0)
    piece_bytes = 0
    if sizes and (len(sizes) < FEW or max(sizes) > sum(sizes) / 4):
        piece_bytes = min(max(sum(sizes) // (2 * FEW), 64), 1 << 16)
        digests, sizes = _scan(paths, text_field, piece_bytes=piece_bytes)
    where = ", ".join(map(str, paths)) or "the standard library"
    if len(digests) < 2:
        raise InputError(f"{where}: {sum(sizes)} bytes of distinct text; too little to train on and hold some out, give more")
    return Corpus(
        sources=paths,
        text_field=text_field,
        fingerprint=sha256(b"".join(digests)).hexdigest(),
        documents=len(digests),
        text_bytes=sum(sizes),
        threshold=_threshold(digests, sizes),
        piece_bytes=piece_bytes,
    )


def default_corpus() -> Corpus:
    """The Python standard library's own sources (see `stdlib_documents`)."""
    return open_corpus()


def _threshold(digests: list[bytes], sizes: list[int]) -> bytes:
    """The greatest hash to hold out: a fixed one, or a higher one where that would hold out too few bytes."""
    fixed = int(HELD_OUT * 2**64).to_bytes(8, "big").ljust(32, b"\xff")
    ranked = sorted(zip(digests, sizes, strict=True))[:-1]  # something must be left to train on
    wanted, held = HELD_OUT_BYTES * sum(sizes), 0
    threshold = ranked[0][0]
    for digest, size in ranked:
        if held >= wanted and digest > fixed:
            break
        threshold, held = digest, held + size
    return threshold


def _scan(paths: tuple[Path, ...], text_field: str, piece_bytes: int) -> tuple[list[bytes], list[int]]:
    digests, sizes = [], []
    for document in _read(paths, text_field, piece_bytes):
        digests.append(document.digest)
        sizes.append(len(document.text.encode()))
    return digests, sizes


def _read(paths: tuple[Path, ...], text_field: str, piece_bytes: int) -> Iterator[Document]:
    seen: set[bytes] = set()
    sources = (read_source(path, text_field=text_field) for path in paths) if paths else (stdlib_documents(),)
    for source in sources:
        for whole in source:
            for document in _pieces(whole, piece_bytes) if piece_bytes else (whole,):
                if document.digest not in seen:
                    seen.add(document.digest)
                    yield document


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
