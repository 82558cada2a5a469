"""Where a study is kept: any Optuna storage, SQLite unless told otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from archsearch.errors import StoreError


def study_url(run_dir: Path, storage: str | None) -> str:
    """The URL that was given, else the run directory's own file."""
    return storage or f"sqlite:///{(run_dir / 'study.db').resolve()}"


def open_storage(url: str) -> Any:
    """An Optuna storage. SQLite is put into WAL mode with patience for a second process.

    Raises:
        StoreError: the database is corrupt, unreachable, or no Optuna storage.
    """
    import optuna
    from sqlalchemy import event

    def configure(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA busy_timeout = 60000")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.close()

    with storage_errors(url, opening=True):
        if url.startswith("redis"):
            return optuna.storages.get_storage(url)
        if not url.startswith("sqlite"):
            return optuna.storages.RDBStorage(url)
        if url.startswith("sqlite:///") and url != "sqlite:///:memory:":
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
        event.listen(storage.engine, "connect", configure)
        storage.engine.dispose()
        return storage


@contextlib.contextmanager
def storage_errors(url: str, *, opening: bool = False) -> Iterator[None]:
    """Turn what a database may throw into one line; while `opening`, everything that a wrong URL or driver may throw too.

    Raises:
        StoreError: in place of SQLAlchemy's, Optuna's and the operating system's own.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    expected: tuple[type[Exception], ...] = (SQLAlchemyError, StorageInternalError)
    if opening:
        expected += (ImportError, OSError, RuntimeError, ValueError)
    try:
        yield
    except expected as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
        why = " ".join(str(cause).split("\n")[0].split())
        if "full" in why or "disk I/O" in why:
            hint = "what was stored is safe: free some space and run the same command"
            raise StoreError(f"{shown(url)}: the disk is full or failing ({why}); {hint}") from error
        hint = "move it away to search anew, or give another --storage"
        raise StoreError(f"{shown(url)}: cannot be used as the study's storage ({why}); {hint}") from error


def shown(url: str) -> str:
    """The URL without its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return url
