"""Hugging Face data sets, streamed once into the cache as Parquet; from then on they are files like any other.

    hf:REPO?config=NAME&split=train&documents=N&field=text&revision=REV

REPO is a data set's name on the hub, or a local folder that `datasets` can load or has saved (`save_to_disk`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pyarrow as pa
import pyarrow.parquet as pq

from archsearch.data.progress import Progress, Ticker
from archsearch.data.sources import HUB
from archsearch.errors import FileFormatError, InputError, RunError
from archsearch.files import read_json, write_atomic

log = logging.getLogger(__name__)

MOST_DOCUMENTS = 1_000_000
"""Taken where the location does not say how many: many data sets on the hub are larger than any disk."""
PART_BYTES = 1 << 26
"""Text of a Parquet part: what an interruption loses at most."""
PROGRESS = ".progress.json"
KEYS = ("config", "split", "documents", "field", "revision")
EXTRA = "install it with: pip install 'archsearch[data]'"


@dataclass(frozen=True, kw_only=True)
class HubSet:
    """A data set as a location names it."""

    repo: str
    config: str | None = None
    split: str = "train"
    documents: int = MOST_DOCUMENTS
    field: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, location: str) -> HubSet:
        """
        Raises:
            InputError: no repository, an unknown key, or a number of documents that is none.
        """
        repo, _, query = location.removeprefix(HUB).partition("?")
        options: dict[str, Any] = dict(parse_qsl(query, keep_blank_values=True))
        unknown = [key for key in options if key not in KEYS]
        if not repo or unknown:
            what = f"unknown option {unknown[0]!r}" if unknown else "names no data set"
            raise InputError(f"{location}: {what}; it should look like hf:REPO?{'&'.join(f'{key}=...' for key in KEYS)}")
        if "documents" in options:
            if not options["documents"].isdecimal() or not int(options["documents"]):
                raise InputError(f"{location}: documents: must be a whole number above 0, got {options['documents']!r}")
            options["documents"] = int(options["documents"])
        return cls(repo=repo, **options)

    @property
    def local(self) -> Path | None:
        return Path(self.repo) if Path(self.repo).is_dir() else None

    def key(self, field: str) -> str:
        """Of the cache: the request and, for a local folder, its files' sizes and times."""
        files: list[object] = []
        if self.local:
            entries = sorted(path for path in self.local.rglob("*") if path.is_file())
            files = [(path.relative_to(self.local).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in entries]
        repo = str(self.local.absolute()) if self.local else self.repo
        parts = [repo, self.config, self.split, self.documents, field, self.revision, files]
        return sha256(json.dumps(parts).encode()).hexdigest()[:32]


def cached(location: str, cache: Path, *, text_field: str = "text", progress: Progress | None = None) -> Path:
    """The folder of Parquet files (column `text`) that holds the data set; streamed first, from where an interruption left off.

    Raises:
        InputError: the package `datasets` is missing, or there is no such data set, configuration or split.
        FileFormatError: no such column, or one that holds no strings.
        RunError: the connection broke (the same command goes on), or the cache cannot be written.
    """
    wanted = HubSet.parse(location)
    field = wanted.field or text_field
    folder = cache / "hub" / wanted.key(field)
    state = read_json(folder / PROGRESS) if (folder / PROGRESS).exists() else {"parts": 0, "documents": 0, "state": None, "done": False}
    if not state["done"]:
        _stream(wanted, location, field, folder, state, progress)
    return folder


def _stream(wanted: HubSet, location: str, field: str, folder: Path, state: dict[str, Any], progress: Progress | None) -> None:
    rows = _open(wanted, location)
    if rows.column_names is not None and field not in rows.column_names:
        names = ", ".join(repr(name) for name in rows.column_names)
        raise FileFormatError(location, field, f"no such column; the data set has {names}; name the one that holds the text with field=")
    if state["state"]:
        rows.load_state_dict(state["state"])
    ticker = Ticker(progress, "streaming", wanted.documents, done=state["documents"])
    texts: list[str] = []
    held = 0
    for text in _texts(rows, location, field, wanted.documents - state["documents"], state["documents"]):
        texts.append(text)
        held += len(text)
        state["documents"] += 1
        ticker.add(1)
        if held >= PART_BYTES:
            _keep(folder, texts, state, rows.state_dict())
            texts, held = [], 0
    if state["documents"] == MOST_DOCUMENTS == wanted.documents:
        log.warning("%s: took the first %d documents; say how many with documents=N", location, MOST_DOCUMENTS)
    state["done"] = True
    _keep(folder, texts, state, None)


def _keep(folder: Path, texts: list[str], state: dict[str, Any], position: Any) -> None:
    """Write a part, then what says that it counts."""
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": pa.array(texts, pa.large_string())}), buffer, compression="zstd")
    write_atomic(folder / f"part-{state['parts']:05}.parquet", buffer.getvalue().to_pybytes())
    state["parts"] += 1
    state["state"] = position
    write_atomic(folder / PROGRESS, json.dumps(state))


def _open(wanted: HubSet, location: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise InputError(f"{location}: needs the package 'datasets'; {EXTRA}") from error
    try:
        if wanted.local and any((wanted.local / name).exists() for name in ("state.json", "dataset_dict.json")):  # save_to_disk
            saved = datasets.load_from_disk(str(wanted.local))
            return (saved[wanted.split] if isinstance(saved, datasets.DatasetDict) else saved).to_iterable_dataset()
        rows = datasets.load_dataset(wanted.repo, wanted.config, split=wanted.split, revision=wanted.revision, streaming=True)
        return rows if rows.column_names is not None else rows._resolve_features()
    except Exception as error:  # datasets and what it is built on raise many kinds
        known = str(error).strip().splitlines()
        raise InputError(f"{location}: cannot be opened: {known[0] if known else type(error).__name__}") from error


def _texts(rows: Any, location: str, field: str, most: int, first: int) -> Iterator[str]:
    """At most `most` texts that are not empty."""
    iterator = iter(rows)
    while most > 0:
        try:
            row = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            raise RunError(f"{location}: broke off after {first} documents: {error}; the same command goes on from there") from error
        text = row.get(field)
        if text is not None and not isinstance(text, str):
            raise FileFormatError(location, field, f"must be a column of strings, holds {type(text).__name__}")
        if text:
            first, most = first + 1, most - 1
            yield text
