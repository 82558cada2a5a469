"""Findings from states and rounds that are known, and one real short series."""

from __future__ import annotations

from dataclasses import replace

import pytest

from archsearch.doctor import STEADY, Diagnosis, Finding, examine, judge
from archsearch.errors import RunError
from archsearch.space import MeasureSettings
from devices import open_device
from devices.plan import Conditions, MachineState
from tests.archsearch.command_line import run_command
from tests.archsearch.fake_device import CONDITIONS, FakeDevice

QUIET = [MachineState(time_unix_s=float(i), busy_other_share=0.01, steal_ticks=0, available_bytes=8 << 30) for i in range(8)]
GOOD = replace(CONDITIONS, huge_pages="madvise", governor="performance", extra={"glibc_tunables": "glibc.malloc.hugetlb=1"})
STEADY_ROUNDS = [[5.0, 5.01, 5.02, 5.0], [5.01, 5.0, 5.02, 5.01], [5.0, 5.02, 5.01, 5.0]]


def marks(rounds: list[list[float]], conditions: Conditions = GOOD, states: list[MachineState] = QUIET) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in judge(rounds, conditions, states)[0]:
        found.setdefault(finding.mark, []).append(finding)
    return found


def test_a_quiet_machine_has_nothing_to_mend_and_narrow_intervals() -> None:
    assert set(marks(STEADY_ROUNDS)) == {"ok"}
    expected = judge(STEADY_ROUNDS, GOOD, QUIET)[1]
    assert 0 < expected < STEADY
    assert "predictions to 3 % are possible" in Diagnosis(expected=expected).verdict


def test_slow_rounds_are_counted_and_widen_the_intervals() -> None:
    rounds = [[5.0, 7.5, 5.0, 7.6], [5.0, 5.1, 7.4, 5.0], [7.7, 5.0, 5.1, 7.5]]
    slow = next(finding for finding in marks(rounds)["mend"] if finding.what == "rounds")
    assert slow.said.startswith("42% of the rounds took more than 1.2 times")
    assert slow.mend is not None
    assert judge(rounds, GOOD, QUIET)[1] > judge(STEADY_ROUNDS, GOOD, QUIET)[1]
    expected = judge(rounds, GOOD, QUIET)[1]
    assert slow.costs is not None
    assert 0.5 * expected < slow.costs <= expected, "nothing else is wrong with them"


def test_processes_that_differ_are_told_apart_from_rounds_that_do() -> None:
    found = marks([[5.0] * 4, [5.5] * 4, [5.0] * 4])
    assert [finding.what for finding in found["mend"]] == ["processes"]
    assert "differ by 10.0%" in found["mend"][0].said
    assert found["mend"][0].costs == pytest.approx(judge([[5.0] * 4, [5.5] * 4, [5.0] * 4], GOOD, QUIET)[1])
    wide = Diagnosis(expected=judge([[5.0] * 4, [5.5] * 4, [5.9] * 4], GOOD, QUIET)[1])
    assert "mend what is marked" in wide.verdict


@pytest.mark.parametrize(
    ("conditions", "states", "word"),
    [
        (replace(GOOD, governor="powersave"), QUIET, "powersave"),
        (replace(GOOD, huge_pages="never"), QUIET, "huge pages are off"),
        (GOOD, [replace(state, busy_other_share=0.4) for state in QUIET], "40%"),
        (GOOD, [replace(state, steal_ticks=20 * i) for i, state in enumerate(QUIET)], "hypervisor"),
        (GOOD, [replace(state, on_battery=True) for state in QUIET], "battery"),
    ],
)
def test_what_the_machine_says_is_passed_on(conditions: Conditions, states: list[MachineState], word: str) -> None:
    found = marks(STEADY_ROUNDS, conditions, states)["mend"]
    assert len(found) == 1
    assert word in found[0].said


def test_a_machine_that_tells_nothing_is_judged_by_its_rounds() -> None:
    bare = replace(CONDITIONS, huge_pages=None, governor=None)
    found = marks(STEADY_ROUNDS, bare, [MachineState(time_unix_s=0.0)])
    assert {finding.what for finding in found["ok"]} == {"rounds", "processes"}
    assert {finding.what for finding in found["note"]} == {"huge pages", "clock"}


def test_a_device_that_cannot_measure_says_why() -> None:
    class Broken(FakeDevice):
        def run(self, plan):  # type: ignore[no-untyped-def]
            self.broken = frozenset(case.case_id for case in plan.cases)
            return super().run(plan)

    with pytest.raises(RunError, match="local cannot measure: crashed: killed by SIGSEGV"):
        list(examine(Broken(), diagnosis=Diagnosis()))


def test_a_real_series() -> None:
    diagnosis = Diagnosis()
    events = list(examine(open_device("local"), settings=MeasureSettings(min_time_ms=10), diagnosis=diagnosis))
    assert events[-1].done == events[-1].total == len(events)
    assert all(time_ms > 0 for rounds in diagnosis.rounds_ms for time_ms in rounds)
    assert {"rounds", "processes"} <= {finding.what for finding in diagnosis.findings}


def test_more_threads_than_cores_are_named() -> None:
    diagnosis = Diagnosis()
    list(examine(FakeDevice(), threads=3, diagnosis=diagnosis))  # it has two cores
    assert diagnosis.findings[0].what == "threads"
    within = Diagnosis()
    list(examine(FakeDevice(), threads=2, diagnosis=within))
    assert "threads" not in {finding.what for finding in within.findings}


def test_the_command_gives_one_document() -> None:
    document = run_command("doctor", "--json").document
    assert document["verdict"].startswith("a profile with default settings finds times to about")
    assert len(document["rounds_ms"]) == 3


def test_the_verdict_knows_that_rounds_of_one_process_belong_together() -> None:
    """Steady rounds in processes that differ by 5 % are no reason for confidence."""
    apart = [[5.0, 5.01, 5.0, 5.01], [5.25, 5.26, 5.25, 5.26], [5.5, 5.51, 5.5, 5.51]]
    assert judge(apart, GOOD, QUIET)[1] > 0.03


def test_huge_pages_are_only_called_right_when_they_are() -> None:
    unasked = replace(GOOD, extra={})
    assert "huge pages" not in {finding.what for finding in marks(STEADY_ROUNDS, unasked).get("ok", [])}
    scattered = [replace(state, huge_page_share=0.2) for state in QUIET]
    found = marks(STEADY_ROUNDS, GOOD, scattered)
    assert "huge pages" not in {finding.what for finding in found["ok"]}
    assert "20%" in found["mend"][0].said
