"""The measurements: one SQLite file in WAL mode. What was acknowledged survives kill -9; files of several machines merge.

What is in it: `archsearch.schema`. Nothing derived is stored.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from archsearch import schema
from archsearch.errors import StoreError
from archsearch.snapshot import snapshot
from archsearch.workload import Workload
from devices.base import DeviceInfo
from devices.plan import Failed, Loaded, MachineState, MemoryResult, RoundResult, Started


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement with everything known of it."""

    key: str
    fingerprint: str
    subject_id: str
    subject: dict[str, Any]
    copies: int
    purpose: str
    workload: Workload
    runtime: str
    planned: int
    load_ns: int | None
    first_run_ns: int | None
    reason: str | None
    detail: str | None
    rounds: dict[int, np.ndarray]
    """Wall nanoseconds of every timed run, by round."""
    cpu: dict[int, np.ndarray]
    looks: dict[int, tuple[dict[str, Any], ...]]
    """The machine before, during and after each round."""
    series: tuple[str, ...]
    processes: dict[int, str]
    """The series that measured each round."""
    memory: tuple[dict[str, Any], ...]

    @property
    def mixed(self) -> bool:
        """Whether it is of a chain of different blocks: a model has a vocabulary, and one that was benched is told by its name alone."""
        return self.subject["kind"] == "model" and "blocks" in self.subject and "vocab_size" not in self.subject

    @property
    def states(self) -> tuple[dict[str, Any], ...]:
        """The looks of all rounds, in order."""
        return tuple(look for number in sorted(self.looks) for look in self.looks[number])

    @property
    def status(self) -> str:
        """ "done", "partial" or "failed"."""
        if self.reason:
            return "failed"
        return "done" if len(self.rounds) + len(self.memory) >= self.planned else "partial"


class Store:
    """Open (and, unless `create=False`, make) a measurements file.

    Raises:
        StoreError: not a database, corrupt, of a newer version, or not writable; the message says what to do.
    """

    def __init__(self, path: Path | str, *, create: bool = True) -> None:
        self.path = Path(path)
        if not create and not self.path.exists():
            raise StoreError(f"{self.path}: no measurements here; `archsearch profile SPACE --run {self.path.parent}` makes them")
        with self._guard():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            schema.check_ours(self._db, self.path)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            with self.transaction():
                schema.migrate(self._db)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise self._explained(error) from error
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror or error}") from error

    def _explained(self, error: sqlite3.DatabaseError) -> StoreError:
        text = str(error)
        if "full" in text or "disk I/O" in text:
            return StoreError(
                f"{self.path}: the disk is full or failing ({text}); what was stored is safe: free some space and run the same command"
            )
        if "readonly" in text or "unable to open" in text:
            return StoreError(f"{self.path}: cannot be written ({text}); check its permissions, or choose another --run")
        if "locked" in text:
            return StoreError(f"{self.path}: another process holds it ({text}); wait for it to end")
        return StoreError(
            f"{self.path}: corrupt or not a database ({text}); move it away to measure anew, or rescue it with sqlite3's .recover"
        )

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, durable at the end."""
        with self._guard():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                with contextlib.suppress(sqlite3.DatabaseError):
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- writing ---------------------------------------------------------------------------------------------------------

    def add_device(self, info: DeviceInfo) -> None:
        with self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO devices VALUES (?, ?, ?)", (info.fingerprint, info.device_id, json.dumps(asdict(info))))

    def plan(
        self,
        key: str,
        *,
        fingerprint: str,
        subject_id: str,
        subject: dict[str, Any],
        copies: int,
        purpose: str,
        workload: Workload,
        runtime: str,
        planned: int,
    ) -> None:
        """Note what is to be measured; a measurement that is known already only learns how many rounds are wanted now."""
        w = workload
        with self.transaction() as db:
            db.execute(
                "INSERT INTO measurements VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,NULL,NULL,NULL,NULL) "
                "ON CONFLICT (key) DO UPDATE SET planned = excluded.planned",
                (
                    key,
                    fingerprint,
                    subject_id,
                    json.dumps(subject),
                    copies,
                    purpose,
                    w.phase,
                    w.tokens,
                    w.context,
                    w.batch,
                    w.precision,
                    w.threads,
                    runtime,
                    planned,
                    time.time(),
                ),
            )

    def start_series(self, fingerprint: str, event: Started) -> str:
        series_id = uuid.uuid4().hex
        with self.transaction() as db:
            db.execute(
                "INSERT INTO series VALUES (?, ?, ?, ?)",
                (series_id, fingerprint, json.dumps(asdict(event.conditions)), json.dumps(asdict(event.state))),
            )
        return series_id

    def add_loaded(self, key: str, event: Loaded) -> None:
        with self.transaction() as db:
            db.execute("UPDATE measurements SET load_ns = ?, first_run_ns = ? WHERE key = ?", (event.load_ns, event.first_run_ns, key))

    def add_round(self, key: str, series_id: str, number: int, event: RoundResult, during: Sequence[MachineState] = ()) -> None:
        """Store one round; durable on return. Clears an earlier failure."""
        cpu = _pack(event.cpu_ns) if event.cpu_ns is not None else None
        looks = json.dumps([asdict(state) for state in during]) if during else None
        states = (json.dumps(asdict(event.before)), json.dumps(asdict(event.after)), looks)
        with self.transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO rounds VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (key, number, series_id, _pack(event.wall_ns), cpu, *states),
            )
            db.execute("UPDATE measurements SET reason = NULL, detail = NULL WHERE key = ?", (key,))

    def add_memory(self, key: str, series_id: str, event: MemoryResult) -> None:
        values = (key, series_id, event.base_bytes, event.loaded_bytes, event.peak_bytes, event.pss_bytes, event.anonymous_bytes)
        with self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO memory VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*values, event.load_peak_bytes))
            db.execute("UPDATE measurements SET reason = NULL, detail = NULL WHERE key = ?", (key,))

    def add_failure(self, key: str, event: Failed) -> None:
        with self.transaction() as db:
            db.execute("UPDATE measurements SET reason = ?, detail = ? WHERE key = ?", (event.reason, event.detail, key))

    def check(self) -> None:
        """Read every page.

        Raises:
            StoreError: some are damaged.
        """
        with self._guard():
            found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise self._explained(sqlite3.DatabaseError(" ".join(found.split())))

    def merge(self, sources: Sequence[Path | str]) -> dict[str, int]:
        """Bring in the measurements of other files, which are only read; doing it twice adds nothing.

        Returns:
            Rows added to each table.

        Raises:
            StoreError: a source is missing, corrupt, or of another version; nothing of it is taken then.
        """
        added = dict.fromkeys(schema.TABLES, 0)
        for source in sources:
            with snapshot(Path(source)) as copy:
                try:
                    with Store(copy, create=False) as opened:  # brings an older schema up to date, in the copy alone
                        opened.check()
                except StoreError as error:
                    raise StoreError(str(error).replace(str(copy), str(source))) from error
                self._take(copy, added)
        return added

    def _take(self, source: Path, added: dict[str, int]) -> None:
        with self._guard():
            self._db.execute("ATTACH ? AS source", (str(source),))
        try:
            with self.transaction() as db:
                for table in schema.TABLES:
                    added[table] += db.execute(f"INSERT OR IGNORE INTO {table} SELECT * FROM source.{table}").rowcount
                db.execute(  # as in `add_round`: a success clears a failure
                    "UPDATE measurements SET reason = NULL, detail = NULL WHERE reason IS NOT NULL AND key IN "
                    "(SELECT key FROM source.measurements WHERE reason IS NULL AND "
                    "(key IN (SELECT key FROM source.rounds) OR key IN (SELECT key FROM source.memory)))"
                )
        finally:
            self._db.execute("DETACH source")

    # -- reading ---------------------------------------------------------------------------------------------------------

    def devices(self) -> list[dict[str, Any]]:
        with self._guard():
            return [json.loads(row["info"]) for row in self._db.execute("SELECT info FROM devices ORDER BY rowid")]

    def conditions(self) -> dict[str, dict[str, Any]]:
        """Conditions and first state of every series: {"conditions": ..., "state": ..., "fingerprint": ...} by id."""
        with self._guard():
            return {
                row["series_id"]: {
                    "conditions": json.loads(row["conditions"]),
                    "state": json.loads(row["state"]),
                    "fingerprint": row["fingerprint"],
                }
                for row in self._db.execute("SELECT * FROM series ORDER BY rowid")
            }

    def done_rounds(self, key: str) -> set[int]:
        with self._guard():
            return {row[0] for row in self._db.execute("SELECT number FROM rounds WHERE key = ?", (key,))}

    def status(self, key: str) -> str | None:
        """Status of one measurement, None when it was never planned."""
        return next((row.status for row in self.rows(key=key)), None)

    def rows(self, *, fingerprint: str | None = None, key: str | None = None) -> list[Row]:
        """All measurements, in the order in which they were planned."""
        where, values = [], []
        for column, value in (("fingerprint", fingerprint), ("key", key)):
            if value is not None:
                where.append(f"{column} = ?")
                values.append(value)
        clause = f"WHERE {' AND '.join(where)}" if where else ""
        keys = f"key IN (SELECT key FROM measurements {clause})"
        with self._guard():
            found = self._db.execute(f"SELECT * FROM measurements {clause} ORDER BY rowid", values).fetchall()
            rounds: dict[str, list[sqlite3.Row]] = {}
            for row in self._db.execute(f"SELECT * FROM rounds WHERE {keys} ORDER BY number", values):
                rounds.setdefault(row["key"], []).append(row)
            memory: dict[str, list[dict[str, Any]]] = {}
            for row in self._db.execute(f"SELECT * FROM memory WHERE {keys} ORDER BY rowid", values):
                memory.setdefault(row["key"], []).append(dict(row))
        return [_row(row, rounds.get(row["key"], []), memory.get(row["key"], [])) for row in found]

    def to_parquet(self, path: Path) -> None:
        """One line a timed run, for pandas, DuckDB and friends; complete or not at all."""
        import pandas as pd

        lines = [
            {
                "device": row.fingerprint,
                "subject_id": row.subject_id,
                "label": row.subject.get("label"),
                "copies": row.copies,
                **asdict(row.workload),
                "round": number,
                "sample": i,
                "wall_ns": int(ns),
            }
            for row in self.rows()
            for number, samples in row.rounds.items()
            for i, ns in enumerate(samples)
        ]
        temporary = path.with_name(f".{path.name}.partial")
        try:
            pd.DataFrame(lines).to_parquet(temporary, index=False)
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StoreError(f"{path}: cannot be written: {error.strerror or error}") from error


def _pack(samples: Sequence[int]) -> bytes:
    return np.asarray(samples, "<i8").tobytes()


def _looks(entry: sqlite3.Row) -> tuple[dict[str, Any], ...]:
    return json.loads(entry["before"]), *json.loads(entry["during"] or "[]"), json.loads(entry["after"])


def _row(row: sqlite3.Row, rounds: list[sqlite3.Row], memory: list[dict[str, Any]]) -> Row:
    fields = {name: row[name] for name in ("phase", "tokens", "context", "batch", "precision", "threads")}
    return Row(
        key=row["key"],
        fingerprint=row["fingerprint"],
        subject_id=row["subject_id"],
        subject=json.loads(row["subject"]),
        copies=row["copies"],
        purpose=row["purpose"],
        workload=Workload(**fields),
        runtime=row["runtime"],
        planned=row["planned"],
        load_ns=row["load_ns"],
        first_run_ns=row["first_run_ns"],
        reason=row["reason"],
        detail=row["detail"],
        rounds={entry["number"]: np.frombuffer(entry["wall"], "<i8") for entry in rounds},
        cpu={entry["number"]: np.frombuffer(entry["cpu"], "<i8") for entry in rounds if entry["cpu"] is not None},
        looks={entry["number"]: _looks(entry) for entry in rounds},
        series=tuple(dict.fromkeys([*(entry["series_id"] for entry in rounds), *(entry["series_id"] for entry in memory)])),
        processes={entry["number"]: entry["series_id"] for entry in rounds},
        memory=tuple(memory),
    )
