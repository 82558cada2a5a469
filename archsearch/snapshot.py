"""A measurements file as it is now, in a folder of its own: what is only read is never written beside."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from archsearch.errors import StoreError


@contextlib.contextmanager
def snapshot(file: Path) -> Iterator[Path]:
    """A copy that is gone afterwards; what waits in the file's WAL is in it.

    Raises:
        StoreError: nothing is there, or no SQLite database.
    """
    if not file.exists():
        raise StoreError(f"{file}: no measurements here")
    with tempfile.TemporaryDirectory(prefix="archsearch-") as temporary:
        copy = Path(temporary) / "measurements.db"
        try:
            source, target = sqlite3.connect(_read_only(file), uri=True), sqlite3.connect(copy)
            try:
                source.backup(target)
            finally:
                source.close()
                target.close()
        except sqlite3.Error as error:
            if not isinstance(error, sqlite3.OperationalError):
                how = "move it away, or rescue it with sqlite3's .recover"
                raise StoreError(f"{file}: cannot be read: corrupt or not a database ({error}); {how}") from error
            how = "copy it, with its -wal file, to a folder that can be written"
            raise StoreError(f"{file}: cannot be read as measurements ({error}); {how}") from error
        yield copy


def _read_only(file: Path) -> str:
    """SQLite makes -wal and -shm files even for a reader, unless the file is declared immutable: so it is, where no WAL waits."""
    wal = file.with_name(f"{file.name}-wal")
    waits = wal.exists() and wal.stat().st_size > 0
    return f"{file.resolve().as_uri()}?{'mode=ro' if waits else 'mode=ro&immutable=1'}"
