"""A file of small trainings' results: one JSON line each, written when it exists, so that nothing finished is trained twice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from archsearch.errors import RunError
from archsearch.quality.tasks import QualityResult


class ResultFile:
    """Results by the identity of their training (`Training.key`).

    Raises:
        RunError: `path` is there but cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cache: dict[str, QualityResult] = {}
        self._read_to = 0
        self.refresh()

    def refresh(self) -> None:
        """Take up what other processes have added since.

        Raises:
            RunError: the file cannot be read.
        """
        found, self._read_to = _read(self.path, self._read_to)
        self.cache |= found

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


def _read(path: Path, start: int) -> tuple[dict[str, QualityResult], int]:
    """Results from byte `start` on, and where the last whole line ends."""
    try:
        if not path.exists() or path.stat().st_size == start:
            return {}, start
        with path.open("rb") as file:
            file.seek(start)
            text = file.read()
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}; move it away to train anew") from error
    found = {}
    for line in text.splitlines():
        try:
            data = json.loads(line)
            key = data.pop("key")
            found[key] = QualityResult.from_dict(data)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # torn by a kill: that training is repeated
    return found, start + text.rfind(b"\n") + 1
