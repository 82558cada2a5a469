"""Where a study is kept: any Optuna storage, SQLite unless told otherwise."""

from __future__ import annotations

import contextlib
import random
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from archsearch.errors import StoreError

RETRIES = 1
"""A trial whose worker was killed is tried once more: what kills two workers may be the trial itself."""

QUEUE = "archsearch trainings"
"""The study that is the queue of workers (`archsearch.search.queue`)."""

OPENINGS = 8
"""Attempts to open a storage whose tables others are making at the same moment."""


def study_url(run_dir: Path, storage: str | None) -> str:
    """The URL that was given, else the run directory's own file."""
    return with_driver(storage) if storage else f"sqlite:///{(run_dir / 'study.db').resolve()}"


def with_driver(url: str) -> str:
    """`postgresql://` as psycopg 3 serves it: that is the driver of our `postgres` extra, SQLAlchemy's choice depends on its version."""
    for scheme in ("postgresql://", "postgres://"):
        if url.startswith(scheme):
            return "postgresql+psycopg://" + url.removeprefix(scheme)
    return url


def is_database(url: str) -> bool:
    """Whether several processes may share it and notice when one of them dies."""
    return url.startswith(("sqlite://", "postgres", "mysql", "mariadb"))


def open_storage(url: str, *, heartbeat_s: int | None = None, grace_s: int | None = None) -> Any:
    """An Optuna storage. SQLite is put into WAL mode with patience for a second process.

    Args:
        heartbeat_s, grace_s: a process writes a sign of life this often for the trial it runs; after `grace_s` without one anybody
            may fail the trial, which puts it into the queue once more (`optuna.storages.fail_stale_trials`). Databases only.

    Raises:
        StoreError: the database is corrupt, unreachable, or no Optuna storage.
    """
    import optuna
    from sqlalchemy import event

    options: dict[str, Any] = {}
    with storage_errors(url, opening=True), experimental_is_known():
        if heartbeat_s is not None:
            retry = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)
            options = {"heartbeat_interval": heartbeat_s, "grace_period": grace_s, "heartbeat_stale_trial_callback": retry}
        if url.startswith("redis"):
            return optuna.storages.get_storage(url)
        if not url.startswith("sqlite"):
            # Idle connections are what a server with a thousand workers runs out of: ask whether one still works, keep few.
            pool = {"pool_pre_ping": True, "pool_size": 1, "max_overflow": 4, "pool_recycle": 300}
            return _database(with_driver(url), engine_kwargs=pool, **options)
        if url.startswith("sqlite:///") and url != "sqlite:///:memory:":
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        storage = _database(url, engine_kwargs={"connect_args": {"timeout": 60}}, **options)
        event.listen(storage.engine, "connect", _configure_sqlite)
        storage.engine.dispose()
        return storage


def require_search(url: str) -> None:
    """That a database holds a search of ours; nothing is made where there is none.

    Raises:
        StoreError: it does not exist, holds no search, or cannot be reached.
    """
    import optuna
    from sqlalchemy import create_engine, inspect
    from sqlalchemy.engine import make_url

    hint = "correct the URL, start the search first, or give --wait to wait for one"
    with storage_errors(url, opening=True):
        place = make_url(with_driver(url))
    if place.drivername.startswith("sqlite") and not (place.database and Path(place.database).exists()):
        raise StoreError(f"{shown(url)}: no such database; {hint}")
    with storage_errors(url, opening=True):
        engine = create_engine(place)
        try:
            is_optuna = inspect(engine).has_table("studies")  # before Optuna, which would make its tables
        finally:
            engine.dispose()
        studies = optuna.get_all_study_summaries(open_storage(url)) if is_optuna else []
    if not any("space_id" in study.user_attrs or study.study_name == QUEUE for study in studies):
        raise StoreError(f"{shown(url)}: holds no search of archsearch; {hint}")


def _database(url: str, **options: Any) -> Any:
    """The storage, its tables made where there are none. Where two processes make them at once, one fails, and finds them made."""
    import optuna
    from sqlalchemy.exc import DBAPIError, IntegrityError

    for left in reversed(range(OPENINGS)):
        try:
            return optuna.storages.RDBStorage(url, **options)
        except DBAPIError as error:
            if not left or not (isinstance(error, IntegrityError) or "already exists" in str(error)):
                raise
            time.sleep(random.uniform(0.1, 0.5))
    raise AssertionError("the last attempt returns or raises")


def _configure_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout = 60000")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()


@contextlib.contextmanager
def experimental_is_known() -> Iterator[None]:
    """Optuna calls its heartbeat and the names of objectives experimental, once a process."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


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
        away = "move it away to search anew" if url.startswith("sqlite") else "see that the server runs and lets you in"
        hint = f"{away}, or give another --storage"
        raise StoreError(f"{shown(url)}: cannot be used as the study's storage ({why}); {hint}") from error


def shown(url: str) -> str:
    """The URL without its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return url
