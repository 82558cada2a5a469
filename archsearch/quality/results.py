"""A file of small trainings' results: one JSON line each, written when it exists, so that nothing finished is trained twice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from archsearch.errors import RunError
from archsearch.quality.micro import QualityResult


class ResultFile:
    """Results by the identity of their training (`Training.key`).

    Raises:
        RunError: `path` is there but cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cache = _read(path)

    def __contains__(self, key: str) -> bool:
        return key in self.cache

    def get(self, key: str) -> QualityResult | None:
        return self.cache.get(key)

    def keep(self, key: str, result: QualityResult) -> None:
        """Add a line and flush it to disk.

        Raises:
            RunError: it cannot be written.
        """
        append_line(self.path, {"key": key, **result.to_dict()})
        self.cache[key] = result


def append_line(path: Path, data: dict[str, Any]) -> None:
    """Add a JSON line to a file and flush it to disk: one write to the end, so that a killed process leaves a torn last line at worst.

    Raises:
        RunError: it cannot be written.
    """
    line = json.dumps(data) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            if file.tell() and not _ends_with_newline(path):
                line = "\n" + line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}; free some space and run the same command again") from error


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _read(path: Path) -> dict[str, QualityResult]:
    if not path.exists():
        return {}
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}; move it away to train anew") from error
    found = {}
    for line in lines:
        try:
            data = json.loads(line)
            key = data.pop("key")
            found[key] = QualityResult.from_dict(data)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # torn by a kill: that training is repeated
    return found
