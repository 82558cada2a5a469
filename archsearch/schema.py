"""What a file of measurements consists of, by version, and how an older one is brought up to date.

Tables: `devices`, `series` (one process that measured: its conditions), `measurements` (what was to be measured, or why it
failed), `rounds` (raw samples, little-endian int64 nanoseconds) and `memory`.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from archsearch.errors import StoreError

SCHEMA_VERSION = 3
"""1: first. 2: the peak of loading. 3: the machine during a round."""

SCHEMA = """
CREATE TABLE devices (fingerprint TEXT PRIMARY KEY, device_id TEXT NOT NULL, info TEXT NOT NULL);
CREATE TABLE series (series_id TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, conditions TEXT NOT NULL, state TEXT NOT NULL);
CREATE TABLE measurements (
    key TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, subject_id TEXT NOT NULL, subject TEXT NOT NULL, copies INTEGER NOT NULL,
    purpose TEXT NOT NULL, phase TEXT NOT NULL, tokens INTEGER NOT NULL, context INTEGER NOT NULL, batch INTEGER NOT NULL,
    precision TEXT NOT NULL, threads INTEGER NOT NULL, runtime TEXT NOT NULL, planned INTEGER NOT NULL, created_unix_s REAL NOT NULL,
    load_ns INTEGER, first_run_ns INTEGER, reason TEXT, detail TEXT);
CREATE TABLE rounds (
    key TEXT NOT NULL, number INTEGER NOT NULL, series_id TEXT NOT NULL, wall BLOB NOT NULL, cpu BLOB,
    before TEXT NOT NULL, after TEXT NOT NULL, during TEXT,
    PRIMARY KEY (key, number));
CREATE TABLE memory (
    key TEXT NOT NULL, series_id TEXT NOT NULL, base_bytes INTEGER NOT NULL, loaded_bytes INTEGER NOT NULL, peak_bytes INTEGER NOT NULL,
    pss_bytes INTEGER, anonymous_bytes INTEGER, load_peak_bytes INTEGER, PRIMARY KEY (key, series_id));
CREATE INDEX measurements_subject ON measurements (fingerprint, subject_id);
"""
TABLES = ("devices", "series", "measurements", "rounds", "memory")


def check_ours(db: sqlite3.Connection, path: Path) -> None:
    """Before anything is written, also the journal mode: a file that is somebody else's stays as it is.

    Raises:
        StoreError: it is no file of measurements, or one of a newer version.
    """
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise StoreError(f"{path}: written by a newer archsearch (schema {version}); update archsearch, or choose another --run")
    if version == 0 and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise StoreError(f"{path}: a database, but not one of archsearch; choose another --run")


def migrate(db: sqlite3.Connection) -> None:
    """Make the tables, or bring those of an earlier version up to date; within a transaction."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version == SCHEMA_VERSION:
        return
    if version == 0:
        for statement in SCHEMA.split(";"):
            db.execute(statement)
    else:
        if version == 1:
            db.execute("ALTER TABLE memory ADD COLUMN load_peak_bytes INTEGER")
        db.execute("ALTER TABLE rounds ADD COLUMN during TEXT")
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
