"""Two profiles of one space beside each other."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from archsearch.cli.compare_command import print_comparison
from archsearch.compare import Comparison, Side, compare, load_side
from archsearch.errors import InputError, StoreError
from archsearch.profile import profile
from archsearch.space import Space
from archsearch.store import Store
from devices.base import DeviceInfo
from devices.plan import Event, RunPlan, Started
from tests.archsearch.command_line import run_command
from tests.archsearch.fake_device import CONDITIONS, INFO, FakeDevice
from tests.archsearch.spaces import MEASURED, small


class Noisy(FakeDevice):
    """A device of a known speed, 3 % of noise, and conditions of its own."""

    def __init__(self, factor: float, seed: int, *, info: DeviceInfo = INFO, **conditions: object) -> None:
        draw = random.Random(seed)
        super().__init__(lambda case: round(100_000 * factor * draw.gauss(1, 0.03)))
        self._info, self._conditions = info, replace(CONDITIONS, **conditions)  # type: ignore[arg-type]

    @property
    def info(self) -> DeviceInfo:
        return self._info

    def run(self, plan: RunPlan) -> Iterator[Event]:
        for event in super().run(plan):
            yield replace(event, conditions=self._conditions) if isinstance(event, Started) else event


def profiled(path: Path, device: FakeDevice, **measure: object) -> Path:
    settings = {"precision": "fp32", "passes": 2, "max_passes": 2, "rounds": 5, **measure}
    list(profile(Space.from_dict(small(measure=settings)), path, device))
    return path


def compared(a: Path, b: Path, *across: str) -> Comparison:
    return compare(load_side(a), load_side(b), across=across)


def test_a_known_ratio_is_found_and_covered(tmp_path: Path) -> None:
    four = {"passes": 4, "max_passes": 4}  # of two processes, no interval is narrow
    a, b = profiled(tmp_path / "a", Noisy(1, 1), **four), profiled(tmp_path / "b", Noisy(1.2, 2), **four)
    found = compared(a, b)
    assert len(found.pairs) == MEASURED
    assert found.mean == pytest.approx(1.2, rel=0.02)
    assert found.mean_low <= 1.2 <= found.mean_high
    assert {pair.verdict for pair in found.pairs} == {"slower"}
    assert {pair.verdict for pair in compared(b, a).pairs} == {"faster"}
    assert compared(b, a).mean == pytest.approx(1 / found.mean)
    assert sum(pair.low <= 1.2 <= pair.high for pair in found.pairs) >= MEASURED - 2


def test_equal_machines_show_no_difference(tmp_path: Path) -> None:
    found = compared(profiled(tmp_path / "a", Noisy(1, 1)), profiled(tmp_path / "b", Noisy(1, 2)))
    assert [pair.verdict for pair in found.pairs].count("no difference shown") >= MEASURED - 1
    assert found.mean == pytest.approx(1, abs=0.02)


def test_intervals_know_that_processes_differ(tmp_path: Path) -> None:
    """Two profiles of one machine whose processes differ by 3 % and whose rounds hardly do: resampling two processes covers too little."""

    class Shifting(Noisy):
        def run(self, plan: RunPlan) -> Iterator[Event]:
            shift = random.Random(self.seed + plan.seed).gauss(1, 0.03)
            self.nanoseconds = lambda case: round(100_000 * shift)
            return super().run(plan)

    covered = []
    for seed in range(0, 24, 2):
        sides = []
        for which in (seed, seed + 1):
            device = Shifting(1, which)
            device.seed = 1000 * which  # type: ignore[attr-defined]
            sides.append(load_side(profiled(tmp_path / str(which), device, rounds=2)))
        covered += [pair.low <= 1 <= pair.high for pair in compare(*sides).pairs[:1]]
    assert sum(covered) >= 9  # nine of ten of these 12 are claimed; resampling alone covers half


def test_peaks_of_memory_stand_beside_each_other(tmp_path: Path) -> None:
    a, b = profiled(tmp_path / "a", Noisy(1, 1)), profiled(tmp_path / "b", Noisy(1, 2))
    found = compared(a, b)
    assert {pair.ratio for pair in found.memory} == {1.0}
    chains = {(p, n) for p in ("prefill", "decode") for n in (1, 4)}
    assert {(pair.workload.phase, pair.copies) for pair in found.memory} == {*chains, ("prefill", 2)}  # one of each block: two
    assert "peak memory of 11 processes, B/A: median 1.000" in run_command("compare", a, b).out


def test_too_few_rounds_are_said_to_be(tmp_path: Path) -> None:
    few = {"passes": 1, "max_passes": 1, "rounds": 3}
    found = compared(profiled(tmp_path / "a", Noisy(1, 1), **few), profiled(tmp_path / "b", Noisy(2, 2), **few))
    assert {(pair.verdict, pair.p) for pair in found.pairs} == {("too few rounds", None)}


@pytest.mark.parametrize(
    ("condition", "device"),
    [
        ("huge_pages", Noisy(1, 2, huge_pages="never")),
        ("governor", Noisy(1, 2, governor="powersave")),
        ("cores", Noisy(1, 2, cores=(0, 1))),
        ("glibc_tunables", Noisy(1, 2, extra={"glibc_tunables": "glibc.malloc.hugetlb=1"})),
        ("device", Noisy(1, 2, info=replace(INFO, fingerprint="e" * 12))),
        ("runtime", Noisy(1, 2, info=replace(INFO, runtime="onnxruntime 9.9"))),
    ],
)
def test_runs_that_are_not_alike_are_refused_by_name(tmp_path: Path, condition: str, device: FakeDevice) -> None:
    a, b = profiled(tmp_path / "a", Noisy(1, 1)), profiled(tmp_path / "b", device)
    with pytest.raises(InputError, match=f"not alike: {condition} is .*--across {condition}"):
        compared(a, b)
    assert set(compared(a, b, condition).differs) == {condition}
    other = "agent" if condition != "agent" else "governor"
    with pytest.raises(InputError, match="not alike"):
        compared(a, b, other)


def test_all_that_differs_is_named_at_once(tmp_path: Path) -> None:
    a, b = profiled(tmp_path / "a", Noisy(1, 1)), profiled(tmp_path / "b", Noisy(1, 2, huge_pages="never", governor="powersave"))
    with pytest.raises(InputError, match=r"huge_pages is .*, and governor is .*--across huge_pages --across governor if"):
        compared(a, b)
    assert set(compared(a, b, "huge_pages", "governor").differs) == {"huge_pages", "governor"}


def test_conditions_are_held_against_each_other_subject_by_subject(tmp_path: Path) -> None:
    a, b = load_side(profiled(tmp_path / "a", Noisy(1, 1))), load_side(profiled(tmp_path / "b", Noisy(1, 2)))

    def mixed(side: Side, odd: int) -> Side:
        plain = next(iter(side.conditions.values()))
        other = {**plain, "conditions": {**plain["conditions"], "governor": "powersave"}}
        rows = {key: replace(row, series=(str(i % 2),)) for i, (key, row) in enumerate(side.rows.items())}
        return replace(side, rows=rows, conditions={str(odd): other, str(1 - odd): plain})

    compare(mixed(a, 0), mixed(b, 0))
    with pytest.raises(InputError, match="not alike: governor is"):
        compare(mixed(a, 0), mixed(b, 1))


def test_a_pair_takes_one_line_of_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = compared(profiled(tmp_path / "a", Noisy(1, 1)), profiled(tmp_path / "b", Noisy(1, 2)))
    monkeypatch.setattr("archsearch.cli.tables.stdout", Console(width=80, highlight=False))
    print_comparison(found)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for pair in found.pairs:
        assert any(pair.label in line and pair.workload.label in line and f"{pair.ratio:.3f}" in line for line in lines)
    assert sum("@" in line for line in lines) == len(found.pairs)
    assert len({(pair.label, pair.copies, pair.workload) for pair in found.pairs}) == len(found.pairs)
    assert any("no difference shown" in line for line in lines)


def test_bad_input_is_named(tmp_path: Path) -> None:
    a = profiled(tmp_path / "a", Noisy(1, 1))
    with pytest.raises(StoreError, match="no measurements here"):
        load_side(tmp_path / "nothing")
    (tmp_path / "text.db").write_text("not a database, but long enough to be read as one " * 20)
    with pytest.raises(StoreError, match=r"text\.db: cannot be read"):
        load_side(tmp_path / "text.db")
    with pytest.raises(InputError, match="--across weather: not one of device"):
        compared(a, a, "weather")
    elsewhere = tmp_path / "elsewhere"
    list(profile(Space.from_dict(small(workloads={"prefill": [8], "decode": []})), elsewhere, Noisy(1, 1)))
    with pytest.raises(InputError, match="no measurement in common"):
        compared(a, elsewhere)


def test_several_devices_in_one_file_need_a_name(tmp_path: Path) -> None:
    run = profiled(tmp_path / "run", Noisy(1, 1))
    profiled(run, Noisy(1.5, 2, info=replace(INFO, device_id="other", fingerprint="e" * 12)))
    with pytest.raises(InputError, match=r"several devices.*--device-a"):
        load_side(run)
    found = compare(load_side(run, "local"), load_side(run, "other"), across=["device"])
    assert found.mean == pytest.approx(1.5, rel=0.03)
    with pytest.raises(InputError, match="third was not measured here"):
        load_side(run, "third")


def test_what_is_read_is_not_changed(tmp_path: Path) -> None:
    a = profiled(tmp_path / "a", Noisy(1, 1))
    with Store(a / "measurements.db"):
        pass  # its WAL is written back

    def contents() -> dict[Path, tuple[int, bytes]]:
        return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in a.iterdir() if file.is_file()}

    before = contents()
    compared(a, a)
    assert contents() == before  # nor is a -wal or -shm file left beside it


def test_what_waits_in_a_wal_is_read_too(tmp_path: Path) -> None:
    a = profiled(tmp_path / "a", Noisy(1, 1))
    rows = load_side(a).rows
    with Store(a / "measurements.db") as store:
        key = next(iter(rows.values())).key
        with store.transaction() as db:
            db.execute("DELETE FROM rounds WHERE key = ?", (key,))
        assert (a / "measurements.db-wal").stat().st_size > 0
        assert len(load_side(a).rows) == len(rows) - 1


def test_the_command(tmp_path: Path) -> None:
    a, b = profiled(tmp_path / "a", Noisy(1, 1)), profiled(tmp_path / "b", Noisy(1.2, 2))
    document = run_command("compare", a, b, "--json").document
    assert document["geometric_mean"]["ratio"] == pytest.approx(1.2, rel=0.02)
    ratios = [pair["ratio"] for pair in run_command("compare", a, b, "--sort", "ratio", "--json").document["pairs"]]
    assert ratios == sorted((pair["ratio"] for pair in document["pairs"]), reverse=True)
    shown = run_command("compare", a, b)
    assert shown.status == 0
    assert "geometric mean of the ratios: 1." in shown.out
    refused = run_command("compare", a, profiled(tmp_path / "c", Noisy(1, 3, governor="powersave")))
    assert refused.status == 2
    assert "governor" in refused.error


def test_what_an_earlier_runtime_measured_is_left_out_and_counted(tmp_path: Path) -> None:
    run = profiled(tmp_path / "run", Noisy(3, 1))
    profiled(run, Noisy(1, 2, info=replace(INFO, runtime="onnxruntime 9.9")))
    found = compared(run, profiled(tmp_path / "new", Noisy(1, 3, info=replace(INFO, runtime="onnxruntime 9.9"))))
    assert found.other_runtimes == (MEASURED, 0)
    assert found.mean == pytest.approx(1, abs=0.03)
