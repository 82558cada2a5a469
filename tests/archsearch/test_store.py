from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from archsearch.errors import StoreError
from archsearch.schema import SCHEMA, SCHEMA_VERSION
from archsearch.series import stored
from archsearch.store import Store
from archsearch.workload import Workload
from devices.plan import Event, Failed, Loaded, Look, MemoryResult, RoundResult, RunPlan, Started
from devices.protocol import decode_state
from tests.archsearch.fake_device import CONDITIONS, INFO, NOW

WORKLOAD = Workload(phase="decode", tokens=1, context=64)


def planned(store: Store, key: str = "k", *, rounds: int = 2, fingerprint: str = INFO.fingerprint) -> str:
    store.add_device(INFO)
    store.plan(
        key,
        fingerprint=fingerprint,
        subject_id="s",
        subject={"kind": "block", "label": "conv3/96"},
        copies=2,
        purpose="latency",
        workload=WORKLOAD,
        runtime="r",
        planned=rounds,
    )
    return store.start_series(fingerprint, Started(conditions=CONDITIONS, state=NOW))


def a_round(number: int, *samples: int) -> RoundResult:
    return RoundResult(case_id="k", round=number, wall_ns=samples, cpu_ns=samples, before=NOW, after=NOW)


def test_raw_samples_come_back_as_they_went_in(tmp_path: Path) -> None:
    with Store(tmp_path / "m.db") as store:
        series = planned(store)
        store.add_loaded("k", Loaded(case_id="k", load_ns=7, first_run_ns=8))
        store.add_round("k", series, 0, a_round(0, 3, 2**40))
        assert store.rows()[0].status == "partial"
        store.add_round("k", series, 1, a_round(1, 5))
    row = Store(tmp_path / "m.db", create=False).rows()[0]
    assert row.status == "done"
    assert [list(samples) for samples in row.rounds.values()] == [[3, 2**40], [5]]
    assert list(row.cpu[0]) == [3, 2**40]
    assert (row.load_ns, row.first_run_ns, row.workload, row.copies) == (7, 8, WORKLOAD, 2)
    assert row.series == (series,)


def test_the_machine_during_a_round_is_kept_between_before_and_after(tmp_path: Path) -> None:
    hot = replace(NOW, temperature_c=88.0, throttled=True, clock_limit_mhz=(1800.0,))
    events = [
        Started(conditions=CONDITIONS, state=NOW),
        Look(case_id="k", round=0, state=NOW),
        Look(case_id="k", round=0, state=hot),
        a_round(0, 1),
        a_round(1, 1),
    ]

    class Fake:
        def run(self, plan: RunPlan) -> Iterator[Event]:
            yield from events

    with Store(tmp_path / "m.db") as store:
        planned(store)
        assert list(stored(store, Fake(), RunPlan(cases=(), purpose="limits"), fingerprint=INFO.fingerprint)) == events
        (row,) = store.rows()
    states = [decode_state(state) for state in row.states]
    assert [state.temperature_c for state in states] == [NOW.temperature_c] * 2 + [88.0] + [NOW.temperature_c] * 3
    assert states[2] == hot


def test_a_failure_keeps_its_reason_until_a_round_succeeds(tmp_path: Path) -> None:
    with Store(tmp_path / "m.db") as store:
        series = planned(store, rounds=1)
        store.add_failure("k", Failed(case_id="k", reason="timeout", detail="silent for 3 s"))
        assert (store.rows()[0].status, store.rows()[0].reason, store.rows()[0].detail) == ("failed", "timeout", "silent for 3 s")
        store.add_round("k", series, 0, a_round(0, 1))
        assert store.status("k") == "done"


WRITER = """
import sys
from archsearch.store import Store
from tests.archsearch.test_store import planned, a_round
with Store(sys.argv[1]) as store:
    series = planned(store, rounds=10**6)
    for number in range(10**6):
        store.add_round("k", series, number, a_round(number, *range(50)))
        print(number, flush=True)
"""


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    for _ in range(2):
        path.unlink(missing_ok=True)
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(20)][-1]
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged = max([acknowledged, *(int(line) for line in writer.stdout.read().split())])
        writer.wait()
        writer.stdout.close()
        with Store(path, create=False) as store:
            assert set(range(acknowledged + 1)) <= store.done_rounds("k")
            store.check()


def test_merging_twice_adds_nothing(tmp_path: Path) -> None:
    for name, fingerprint in (("a", "a" * 12), ("b", "b" * 12)):
        with Store(tmp_path / f"{name}.db") as store:
            series = planned(store, f"key-{name}", fingerprint=fingerprint)
            store.add_round(f"key-{name}", series, 0, a_round(0, 1, 2))
            memory = MemoryResult(case_id="k", base_bytes=1, loaded_bytes=2, peak_bytes=3, pss_bytes=None, anonymous_bytes=None)
            store.add_memory(f"key-{name}", series, memory)
    with Store(tmp_path / "into.db") as into:
        sources = [tmp_path / "a.db", tmp_path / "b.db"]
        first = into.merge(sources)
        assert (first["measurements"], first["rounds"], first["memory"], first["series"]) == (2, 2, 2, 2)
        assert set(into.merge(sources).values()) == {0}
        assert {row.fingerprint for row in into.rows()} == {"a" * 12, "b" * 12}


def corrupt_middle(path: Path) -> None:
    with Store(path) as store:
        series = planned(store, rounds=300)
        for number in range(300):
            store.add_round("k", series, number, a_round(number, *range(100)))
    data = bytearray(path.read_bytes())
    data[4096 * 3 : 4096 * 8] = os.urandom(4096 * 5)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.write_bytes(os.urandom(5000)), "not a database"),
        (lambda path: sqlite3.connect(path).executescript("CREATE TABLE other (x);"), "not one of archsearch"),
        (lambda path: sqlite3.connect(path).executescript(f"PRAGMA user_version = {SCHEMA_VERSION + 1};"), "newer archsearch"),
        (lambda path: path.mkdir(), "unable to open"),
        (corrupt_middle, "corrupt"),
    ],
    ids=["random bytes", "another database", "newer schema", "a folder", "damaged pages"],
)
def test_files_that_cannot_be_used_are_refused_in_one_line(tmp_path: Path, spoil, says: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "m.db"
    connection = spoil(path)
    if hasattr(connection, "connection"):
        connection.connection.close()
    with pytest.raises(StoreError) as caught, Store(path) as store:
        store.check()
        store.rows()
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_full_disk_says_so_and_keeps_what_was_stored(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    with Store(path) as store:
        series = planned(store, rounds=10**6)
        store.add_round("k", series, 0, a_round(0, 1, 2, 3))
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages + 1}")
        with pytest.raises(StoreError, match="free some space and run the same command"):
            for number in range(1, 100):
                store.add_round("k", series, number, a_round(number, *range(2000)))
    with Store(path) as store:
        assert list(store.rows()[0].rounds[0]) == [1, 2, 3]


def test_missing_measurements_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="archsearch profile"):
        Store(tmp_path / "none.db", create=False)


def test_two_processes_write_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    Store(path).close()
    program = WRITER.replace("10**6", "40").replace('"k"', "sys.argv[2]").replace("planned(store,", "planned(store, sys.argv[2],")
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path), name], stdout=subprocess.DEVNULL) for name in ("k1", "k2")]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    with Store(path) as store:
        assert [len(row.rounds) for row in store.rows()] == [40, 40]


def test_parquet_has_a_line_for_every_run(tmp_path: Path) -> None:
    import pandas as pd

    with Store(tmp_path / "m.db") as store:
        series = planned(store)
        store.add_round("k", series, 0, a_round(0, 10, 20))
        store.add_round("k", series, 1, a_round(1, 30))
        store.to_parquet(tmp_path / "m.parquet")
    frame = pd.read_parquet(tmp_path / "m.parquet")
    assert list(frame["wall_ns"]) == [10, 20, 30]
    assert list(frame["round"]) == [0, 0, 1]
    assert np.all(frame["context"] == 64)
    assert sorted(file.name for file in tmp_path.glob("*parquet*")) == ["m.parquet"]


def test_a_success_that_is_merged_clears_a_failure(tmp_path: Path) -> None:
    for name in ("failed", "done"):
        with Store(tmp_path / f"{name}.db") as store:
            series = planned(store, rounds=1)
            if name == "done":
                store.add_round("k", series, 0, a_round(0, 1))
            else:
                store.add_failure("k", Failed(case_id="k", reason="timeout", detail="silent"))
    with Store(tmp_path / "failed.db") as into:
        into.merge([tmp_path / "done.db"])
        assert into.status("k") == "done"


def test_what_is_merged_is_only_read(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    with Store(folder / "m.db") as store:
        series = planned(store, rounds=1)
        store.add_round("k", series, 0, a_round(0, 1))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    folder.chmod(0o555)
    (folder / "m.db").chmod(0o444)
    try:
        with Store(tmp_path / "all.db") as into:
            assert into.merge([folder / "m.db"])["rounds"] == 1
    finally:
        folder.chmod(0o755)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_file_of_schema_1_is_brought_up_to_date_and_keeps_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "measurements.db"
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.executescript(SCHEMA.replace(" load_peak_bytes INTEGER,", "").replace(" during TEXT,", ""))
        old.execute("INSERT INTO memory VALUES ('k', 's', 1, 2, 3, NULL, NULL)")
        old.execute("INSERT INTO rounds VALUES ('k', 0, 's', x'', NULL, '{}', '{}')")
        old.execute("PRAGMA user_version = 1")
        old.commit()
    for _ in range(2):
        with Store(path):
            pass
    with contextlib.closing(sqlite3.connect(path)) as new:
        assert new.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        assert new.execute("SELECT peak_bytes, load_peak_bytes FROM memory").fetchall() == [(3, None)]
        assert new.execute("SELECT number, during FROM rounds").fetchall() == [(0, None)]
    with Store(tmp_path / "fresh.db") as fresh:
        fresh.merge([path])
