"""Documents, and the readers that find them: text files, folders, JSONL, Parquet, the Python standard library."""

from __future__ import annotations

import json
import logging
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

from archsearch.errors import FileFormatError, InputError

log = logging.getLogger(__name__)

JSONL_SUFFIXES = (".jsonl", ".ndjson")
TEXT_SUFFIXES = (
    *(".txt", ".text", ".md", ".rst", ".tex", ".html", ".htm", ".css", ".xml", ".csv", ".tsv", ".json", ".yaml", ".yml", ".toml"),
    *(".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".go", ".java", ".js", ".ts", ".kt", ".rs", ".rb", ".php"),
    *(".swift", ".scala", ".jl", ".lua", ".pl", ".r", ".sh", ".sql"),
)
"""What is taken for text inside a folder; a file that is named itself may have any suffix."""

RENAME = "name the one that holds the text with --text-field"

STDLIB_SKIPPED = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "_bundled", "encodings"})
"""Not in the default corpus: installed packages, tests (not every distribution ships them), generated code-page tables."""


@dataclass(frozen=True)
class Document:
    """One text; `name` says where it was found ("notes.txt", "web.jsonl:17")."""

    name: str
    text: str

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the UTF-8 bytes: what documents are told apart and split by."""
        return sha256(self.text.encode()).digest()


def read_source(path: Path, *, text_field: str = "text") -> Iterator[Document]:
    """The documents of one file or folder, in a fixed order (a folder's files sorted by path). Empty ones are left out.

    JSON lines and Parquet give a document a row, from `text_field`; any other file is one document of UTF-8 text.
    Hidden files, and inside folders files that are not text, are passed over.

    Raises:
        InputError: nothing there, or it cannot be read.
        FileFormatError: not UTF-8, not JSON, or `text_field` is missing or no string; names file and line.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; --data takes text files, folders, .jsonl and .parquet")
    if not path.is_dir():
        yield from _read_file(path, path.name, text_field)
        return
    files = list(_walk(path, suffixes=(*TEXT_SUFFIXES, *JSONL_SUFFIXES, ".parquet")))
    if not files:
        raise InputError(f"{path}: no text in this folder; looked for .jsonl, .parquet and text such as .txt, .md, .py")
    for file in files:
        try:
            yield from _read_file(file, file.relative_to(path).as_posix(), text_field)
        except _NotText as error:
            log.warning("%s; passed over", error)


def stdlib_documents() -> Iterator[Document]:
    """The Python standard library's own sources: the corpus that every machine has. Fixed for one Python version.

    Raises:
        InputError: this Python was installed without its sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = False
    for file in _walk(root, skip=STDLIB_SKIPPED, suffixes=(".py",)):
        try:
            text = file.read_bytes().decode()
        except (OSError, UnicodeDecodeError):
            continue  # a source in another encoding; the same files on every run
        if text:
            found = True
            yield Document(file.relative_to(root).as_posix(), text)
    if not found:
        raise InputError(f"{root}: this Python has no library sources to train on; give a text with --data")


class _NotText(FileFormatError):
    """Not UTF-8: fatal where the file was named, passed over inside a folder."""


def _walk(root: Path, *, suffixes: tuple[str, ...], skip: frozenset[str] = frozenset()) -> Iterator[Path]:
    def fail(error: OSError) -> NoReturn:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from error

    for folder, folders, files in os.walk(root, onerror=fail):
        folders[:] = sorted(name for name in folders if name not in skip and not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(suffixes):
                yield Path(folder, name)


def _read_file(path: Path, name: str, text_field: str) -> Iterator[Document]:
    reader: Callable[[Path, str, str], Iterator[Document]] = _read_text
    if path.suffix.lower() in JSONL_SUFFIXES:
        reader = _read_jsonl
    elif path.suffix.lower() == ".parquet":
        reader = _read_parquet
    try:
        yield from reader(path, name, text_field)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_text(path: Path, name: str, text_field: str) -> Iterator[Document]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _NotText(path, None, f"is not UTF-8 text (byte {error.start}); convert it, or leave it out") from error
    if text:
        yield Document(name, text)


def _read_jsonl(path: Path, name: str, text_field: str) -> Iterator[Document]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except UnicodeDecodeError as error:
                raise FileFormatError(f"{path}:{number}", None, "is not UTF-8") from error
            except (ValueError, RecursionError) as error:
                raise FileFormatError(f"{path}:{number}", None, f"is not valid JSON: {error}; a line must be one object") from error
            if not isinstance(row, dict):
                raise FileFormatError(f"{path}:{number}", None, f"must be a JSON object with the field {text_field!r}")
            if text_field not in row:
                raise FileFormatError(f"{path}:{number}", text_field, f"missing; the line has {_names(row)}; {RENAME}")
            text = row[text_field]
            if not isinstance(text, str):
                raise FileFormatError(f"{path}:{number}", text_field, f"must be a string, got {type(text).__name__}")
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise FileFormatError(f"{path}:{number}", text_field, "holds half a surrogate pair, which is no text")
            if text:
                yield Document(f"{name}:{number}", text)


def _read_parquet(path: Path, name: str, text_field: str) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if text_field not in schema.names:
                raise FileFormatError(path, text_field, f"no such column; the file has {_names(schema.names)}; {RENAME}")
            column = schema.field(text_field).type
            if not (pa.types.is_string(column) or pa.types.is_large_string(column)):
                raise FileFormatError(path, text_field, f"must be a column of strings, is {column}")
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    if text:
                        yield Document(f"{name}:{number}", text)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise FileFormatError(path, None, f"is not a readable Parquet file: {str(error).splitlines()[0]}") from error


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "no fields"
