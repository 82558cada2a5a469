"""Tokens of one source on disk: shards of some 64 MB of text each, made one after the other, never twice.

    00000.training.bin, 00000.held_out.bin, ...   tokens, uint16 or uint32
    meta.json                                     what is there, and how many documents of the source are in it

A shard is written whole, then meta.json says that it counts: whatever happens, the next start goes on after the last one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from archsearch.data.corpus import Part
from archsearch.data.documents import Document
from archsearch.data.progress import Ticker
from archsearch.data.streams import TokenStream
from archsearch.data.tokenizer import Tokenizer
from archsearch.errors import InputError
from archsearch.files import write_atomic

SHARD_BYTES = 1 << 26
"""Text of a shard: what an interruption loses at most."""
SPLITS = ("training", "held_out")
META = "meta.json"


def read_shards(folder: Path) -> tuple[dict[str, TokenStream], dict[str, int]] | None:
    """(streams, bytes of text) of both splits; None if they are not all there."""
    meta = _read_meta(folder)
    if meta is None or not meta["done"]:
        return None
    streams = {}
    for split in SPLITS:
        files = [(folder / f"{i:05}.{split}.bin", shard[split]) for i, shard in enumerate(meta["shards"])]
        maps = [np.memmap(path, dtype=meta["dtype"], mode="r") for path, tokens in files if tokens]
        streams[split] = TokenStream(maps, meta["dtype"])
    return streams, meta["bytes"]


def write_shards(folder: Path, part: Part, documents: Iterator[Document], tokenizer: Tokenizer, ticker: Ticker) -> None:
    """Make what is missing.

    Raises:
        InputError: the tokenizer does not give the text back.
        RunError: the disk is full; what was written stays and counts.
    """
    meta = _read_meta(folder)
    if meta is None:
        shutil.rmtree(folder, ignore_errors=True)
        dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
        meta = {"dtype": dtype.name, "done": False, "documents": 0, "shards": [], "bytes": dict.fromkeys(SPLITS, 0)}
    for document in islice(documents, meta["documents"]):
        ticker.add(len(document.text.encode()))
    encoded = _encoded(documents, tokenizer)
    while not meta["done"]:
        # Both streams begin with the end-of-document token, and every document ends with one.
        begin = np.array([] if meta["shards"] else [tokenizer.end_of_document], meta["dtype"])
        arrays = {split: [begin] for split in SPLITS}
        size = 0
        for document, ids in encoded:
            split = "held_out" if part.is_held_out(document) else "training"
            arrays[split].append(np.array([*ids, tokenizer.end_of_document], meta["dtype"]))
            document_bytes = _check(document, arrays[split][-1], tokenizer)
            meta["bytes"][split] += document_bytes
            meta["documents"] += 1
            ticker.add(document_bytes)
            if (size := size + document_bytes) >= SHARD_BYTES:
                break
        else:
            meta["done"] = True
        number = len(meta["shards"])
        shard = {split: np.concatenate(arrays[split]) for split in SPLITS}
        for split, ids_T in shard.items():
            write_atomic(folder / f"{number:05}.{split}.bin", ids_T.tobytes())
        meta["shards"].append({split: len(ids_T) for split, ids_T in shard.items()})
        write_atomic(folder / META, json.dumps(meta))


def _encoded(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[tuple[Document, list[int]]]:
    iterator = iter(documents)
    while some := list(islice(iterator, 64)):  # the tokenizer shares a batch among the cores
        yield from zip(some, tokenizer.encode_batch([document.text for document in some]), strict=True)


def _check(document: Document, ids_T: Any, tokenizer: Tokenizer) -> int:
    size = len(document.text.encode())
    if int(tokenizer.token_bytes_V[ids_T].sum(dtype=np.int64)) != size:
        raise InputError(f"{document.name}: the tokenizer loses bytes of this text; use a byte-level one without normalizer")
    return size


def _read_meta(folder: Path) -> dict[str, Any] | None:
    """What was written so far; None where that is nothing, or damaged."""
    try:
        meta: dict[str, Any] = json.loads((folder / META).read_text())
        item = np.dtype(meta["dtype"]).itemsize
        for number, shard in enumerate(meta["shards"]):
            for split in SPLITS:
                if (folder / f"{number:05}.{split}.bin").stat().st_size != shard[split] * item:
                    return None
        return meta
    except (OSError, ValueError, KeyError, TypeError):
        return None
