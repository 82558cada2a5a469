from __future__ import annotations

import itertools
from pathlib import Path

import psutil
import pytest

from archsearch.chains import PREFILL_COPIES, SHORT_COPIES, curve_copies, long_copies
from archsearch.profile import profile
from archsearch.space import Space
from archsearch.store import Store
from devices import open_device
from tests.archsearch.fake_device import FakeDevice
from tests.archsearch.spaces import MEASURED, MEMORY, small


def rows(run_dir: Path):  # type: ignore[no-untyped-def]
    with Store(run_dir / "measurements.db", create=False) as store:
        return store.rows()


def test_every_block_is_measured_for_every_workload(tmp_path: Path) -> None:
    space, device = Space.from_dict(small()), FakeDevice()
    events = list(profile(space, tmp_path, device))
    latency = [row for row in rows(tmp_path) if row.purpose == "latency"]
    # Two blocks, and embedding with head: prefill; decode at two contexts, chains of two lengths; and at the lesser, one more of one block.
    assert len(latency) == MEASURED
    assert all(row.status == "done" and sorted(row.rounds) == [0, 1, 2, 3] for row in latency)
    copies = {(row.workload.phase, row.copies) for row in latency if row.subject["kind"] == "block"}
    dims = space.all_dims[0]
    curve, longest = curve_copies(space, dims, "fp32"), [long_copies(space, block, dims, "fp32") for block in space.blocks]
    assert copies == {("prefill", PREFILL_COPIES), *(("decode", n) for n in (SHORT_COPIES, *curve, *longest))}
    memory = [row for row in rows(tmp_path) if row.purpose == "memory"]
    assert [row.status for row in memory] == ["done"] * MEMORY
    assert events[-1].stage == "finished"
    assert all(0 <= event.done <= event.total for event in events)
    last = [event for event in events if event.stage == "latency"][-1]
    assert last.done == last.total


def test_an_interrupted_profile_measures_exactly_the_rest(tmp_path: Path) -> None:
    space, first = Space.from_dict(small()), FakeDevice()
    events = profile(space, tmp_path, first)
    for event in events:
        if event.stage == "latency" and len(first.measured) == 7:
            events.close()
    second = FakeDevice()
    list(profile(space, tmp_path, second))
    assert len(first.measured) + len(second.measured) == MEASURED * 4
    assert second.memory == []
    assert all(row.status == "done" for row in rows(tmp_path))
    third = FakeDevice()
    list(profile(space, tmp_path, third))
    assert third.measured == []


def test_a_failure_is_stored_and_the_rest_goes_on(tmp_path: Path) -> None:
    space = Space.from_dict(small())
    list(profile(space, tmp_path / "whole", FakeDevice()))
    broken = next(row for row in rows(tmp_path / "whole") if row.purpose == "latency" and row.subject["label"] == "conv3/96")
    device = FakeDevice(broken=frozenset({broken.key}))
    events = list(profile(space, tmp_path / "run", device))
    assert all(event.done <= event.total and (event.seconds_left or 0) >= 0 for event in events)
    failed = [event for event in events if event.failed]
    assert {event.failed for event in failed} == {"crashed: killed by SIGSEGV"}
    found = {row.key: row for row in rows(tmp_path / "run")}
    assert (found[broken.key].status, found[broken.key].reason) == ("failed", "crashed")
    assert all(row.status == "done" for key, row in found.items() if key != broken.key)

    again = FakeDevice()
    list(profile(space, tmp_path / "run", again))
    assert again.measured == []
    retried = FakeDevice()
    list(profile(space, tmp_path / "run", retried, retry_failed=True))
    assert {key for key, _ in retried.measured} == {broken.key}
    assert all(row.status == "done" for row in rows(tmp_path / "run"))


def test_models_that_do_not_fit_together_are_measured_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Little:
        available = 1_500_000

    device = FakeDevice()
    cases: list[int] = []
    inner = device.run
    monkeypatch.setattr(device, "run", lambda plan: (cases.append(len(plan.cases)), inner(plan))[1])
    monkeypatch.setattr(psutil, "virtual_memory", Little)
    list(profile(Space.from_dict(small()), tmp_path, device))
    assert len([count for count in cases if count > 1]) > 2
    assert all(row.status == "done" for row in rows(tmp_path))


def test_seconds_left_shrink_to_nothing(tmp_path: Path) -> None:
    events = list(profile(Space.from_dict(small()), tmp_path, FakeDevice()))
    assert events[-1].seconds_left == 0.0
    assert all(event.seconds_left is None or event.seconds_left >= 0 for event in events)


def test_on_this_machine(tmp_path: Path) -> None:
    space = Space.from_dict(
        small(measure={"precision": "int4", "passes": 1, "max_passes": 1, "rounds": 1, "min_time_ms": 2, "min_runs": 3})
    )
    list(profile(space, tmp_path, open_device("local")))
    found = rows(tmp_path)
    assert all(row.status == "done" for row in found)
    latency = [row for row in found if row.purpose == "latency"]
    assert all(len(row.rounds[0]) >= 3 and row.rounds[0].min() > 0 for row in latency)
    peaks = [row.memory[0] for row in found if row.purpose == "memory"]
    assert all(0 < peak["base_bytes"] < peak["peak_bytes"] for peak in peaks)


def test_a_graph_that_was_left_unchecked_is_checked_by_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[Path] = []

    def check(path: Path, *_: object, **__: object) -> float:
        checked.append(path)
        if len(checked) == 1:
            raise KeyboardInterrupt
        return 0.0

    monkeypatch.setattr("archsearch.profile.check_blocks", check)
    space = Space.from_dict(small())
    with pytest.raises(KeyboardInterrupt):
        list(profile(space, tmp_path, FakeDevice()))
    list(profile(space, tmp_path, FakeDevice()))
    assert checked[0] == checked[1]
    assert len(set(checked)) == len(space.blocks)


def test_operators_and_ffns_are_measured_apart_unless_asked_otherwise(tmp_path: Path) -> None:
    ffn = {"intermediate_size": [64, 96, 128]}
    apart = Space.from_dict(small(ffn=ffn))
    whole = Space.from_dict(small(ffn=ffn, measure={"precision": "fp32", "separate": False}))
    labels = {}
    for name, space in (("apart", apart), ("whole", whole)):
        list(profile(space, tmp_path / name, FakeDevice()))
        labels[name] = {row.subject["label"] for row in rows(tmp_path / name) if row.subject["kind"] == "block"}
    assert labels["apart"] == {"conv3/64", "conv3/96", "conv3/128", "gqa2/128"}
    assert labels["whole"] == labels["apart"] | {"gqa2/64", "gqa2/96"}


def test_what_is_uncertain_gets_further_passes_and_nothing_else(tmp_path: Path) -> None:
    space = Space.from_dict(small())
    assert (space.measure.passes, space.measure.max_passes) == (2, 6)
    steady = FakeDevice()
    list(profile(space, tmp_path / "steady", steady))
    shaky_key = next(row.key for row in rows(tmp_path / "steady") if row.purpose == "latency" and row.subject["label"] == "gqa2/96")
    turn = itertools.count()
    noisy = FakeDevice(lambda case: 1000 + (next(turn) % 5) * 100 if case.case_id == shaky_key else 1000)
    events = list(profile(space, tmp_path / "noisy", noisy))
    rounds = {row.key: len(row.rounds) for row in rows(tmp_path / "noisy") if row.purpose == "latency"}
    assert rounds.pop(shaky_key) == 6 * space.measure.rounds
    assert set(rounds.values()) == {2 * space.measure.rounds}
    assert all(row.status == "done" for row in rows(tmp_path / "noisy"))
    assert events[-1].done == events[-1].total
    again = FakeDevice()
    list(profile(space, tmp_path / "noisy", again))
    assert again.measured == []


def test_an_interrupted_further_pass_goes_on(tmp_path: Path) -> None:
    space = Space.from_dict(small())
    turn = itertools.count()
    first = FakeDevice(lambda case: 1000 + (next(turn) % 5) * 100)
    base = MEASURED * 4
    events = profile(space, tmp_path, first)
    for event in events:
        if event.stage == "latency" and len(first.measured) == base + 3:
            events.close()
    second = FakeDevice(lambda case: 1000)
    list(profile(space, tmp_path, second))
    assert all(row.status == "done" for row in rows(tmp_path))
    measured = {row.key: len(row.rounds) for row in rows(tmp_path) if row.purpose == "latency"}
    assert sum(measured.values()) == len(first.measured) + len(second.measured)
    assert max(measured.values()) <= space.measure.max_passes * space.measure.rounds
