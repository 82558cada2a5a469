"""metrics.jsonl: the events of a training, one a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from archsearch.errors import RunError
from archsearch.train.events import TrainEvent, to_dict

METRICS = "metrics.jsonl"


class MetricsFile:
    """Appends lines; `sync` makes sure that they stay.

    Raises:
        RunError: the disk is full or cannot be written.
    """

    def __init__(self, out: Path, keep_bytes: int) -> None:
        """Cut off what was written after the checkpoint that holds `keep_bytes`."""
        self._path = out / METRICS
        try:
            out.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab")
            self._file.truncate(min(keep_bytes, self._file.tell()))
            self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise self._failed(error) from error

    def write(self, event: TrainEvent) -> None:
        try:
            self._file.write(json.dumps(to_dict(event), allow_nan=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error

    def sync(self) -> int:
        """Flush to disk; the length of the file."""
        try:
            os.fsync(self._file.fileno())
            return self._file.tell()
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        self._file.close()

    def _failed(self, error: OSError) -> RunError:
        return RunError(f"{self._path}: cannot be written: {error.strerror}; free some space, then go on with --resume")


def read_metrics(out: Path | str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that a crash cut off is left out.

    Raises:
        RunError: there is no such file, or a line before the last is damaged.
    """
    path = Path(out) / METRICS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise RunError(f"{path}:{number}: is not valid JSON: {error}") from error
    return rows
