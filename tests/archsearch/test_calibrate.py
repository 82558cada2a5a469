"""Calibration against devices whose law is known: parts that add up, machines that drift, models that cost more than their parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w

from archsearch.calibrate import CalibrateResult, calibrate
from archsearch.calibration import CalibrationCard
from archsearch.cli.calibrate_command import print_card
from archsearch.errors import InputError, RunError
from archsearch.held_out import held_out, held_out_contexts
from archsearch.profile import profile
from archsearch.report import collect
from archsearch.run import load_table
from archsearch.space import Space
from archsearch.store import Store
from archsearch.workload import Workload
from devices import open_device
from devices.plan import Case, Event, RoundResult, RunPlan
from tests.archsearch.command_line import run_command
from tests.archsearch.fake_device import INFO, FakeDevice
from tests.archsearch.spaces import small

MODEL = {"name": "small", "hidden_size": 64, "vocab_size": 512, "layers": [3, 4]}
FFN = {"intermediate_size": [64, 96]}


def law(case: Case) -> float:
    """Nanoseconds: 50 µs a layer, 0.2 ns a byte of weights, 100 ns a position of a growing cache, 30 µs for a vocabulary."""
    layers = {state.input.split(".")[1] for state in case.states}
    growing = sum(100 * feed.shape[2] for feed in case.feeds if feed.name.endswith(".key"))
    weights = 0.2 * sum(file.stat().st_size for file in case.model.parent.glob("*.data"))
    return 50_000 * len(layers) + weights + growing + (30_000 if any(feed.name == "input_ids" for feed in case.feeds) else 0)


def is_model(case: Case) -> bool:
    names = {feed.name for feed in case.feeds}
    return "input_ids" in names and bool(case.states)


class Lawful(FakeDevice):
    """`factor(case)` scales the law."""

    def __init__(self, factor: Callable[[Case], float] = lambda case: 1.0, broken: frozenset[str] = frozenset()) -> None:
        super().__init__(lambda case: round(law(case) * factor(case)), broken)


class Walking(FakeDevice):
    """50 µs a layer, and `price` nanoseconds for each byte of the whole model that a cache of 400 kB misses."""

    def __init__(self, price: float) -> None:
        super().__init__(self._nanoseconds)
        self.price = price

    def _nanoseconds(self, case: Case) -> int:
        layers = len({state.input.split(".")[1] for state in case.states})
        vocabulary = any(feed.name == "input_ids" for feed in case.feeds)
        walk = sum(file.stat().st_size for file in case.model.parent.glob("model.onnx*"))
        prefill = any(feed.name in ("input_ids", "hidden") and feed.shape[1] > 1 for feed in case.feeds)
        missed = 0.0 if prefill else 1 / (1 + (400_000 / max(walk, 1)) ** 4)
        return round(50_000 * (layers + vocabulary) + self.price * walk * missed)


class Stopped(Exception):
    pass


class Stopping(Lawful):
    """Dies after so many rounds."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def run(self, plan: RunPlan) -> Iterator[Event]:
        for event in super().run(plan):
            if isinstance(event, RoundResult):
                self.after -= 1
                if self.after < 0:
                    raise Stopped
            yield event


def space(**changes: object) -> Space:
    return Space.from_dict(small(model=MODEL, ffn=FFN, **changes))


def profiled(path: Path, **changes: object) -> Path:
    list(profile(space(**changes), path, Lawful()))
    return path


def calibrated(run_dir: Path, device: FakeDevice, **options: object) -> CalibrationCard:
    result = CalibrateResult()
    settings = {"layouts": 6, "memory_layouts": 2, "passes": 1, "rounds": 2} | options
    list(calibrate(space(), run_dir, device, load_table(run_dir, "local"), result=result, **settings))  # type: ignore[arg-type]
    assert result.card is not None
    return result.card


def test_held_out_layouts_differ_mix_operators_and_depend_on_the_seed() -> None:
    layouts = held_out(space(), 12)
    specs = [spec for _, spec in layouts]
    assert len({spec.spec_id for spec in specs}) == len({spec.name for spec in specs}) == 12
    assert {kind for kind, _ in layouts} == {"structured", "random"}
    assert all(len(set(spec.layers)) > 1 for spec in specs)
    assert {len(spec.layers) for spec in specs} == {3, 4}
    assert {layer.ffn for spec in specs for layer in spec.layers} == set(space().ffns)
    assert [spec.spec_id for _, spec in held_out(space(), 12)] == [spec.spec_id for spec in specs]
    assert [spec.spec_id for _, spec in held_out(space(), 12, seed=1)] != [spec.spec_id for spec in specs]


def test_a_tiny_space_gives_what_it_has() -> None:
    single = Space.from_dict(small(operators=[{"kind": "short_conv", "kernel_size": 3}]))
    assert len(held_out(single, 12)) == 1


def test_contexts_between_the_measured_ones_are_held_out() -> None:
    assert held_out_contexts(space()) == (45,)
    assert held_out_contexts(space(workloads={"prefill": [16], "decode": [0, 32]})) == ()


def test_parts_that_add_up_have_no_error(tmp_path: Path) -> None:
    card = calibrated(profiled(tmp_path), Lawful())
    assert len(card.summary()) == 4  # one prefill, two decode, one between
    for line in card.summary():
        assert line["worst"] < 2e-3, line
        assert line["drift_low"] == pytest.approx(1)
        assert line["drift_high"] == pytest.approx(1)
    assert [case.interpolated for case in card.cases].count(True) == 6
    decode = [line for line in card.summary() if line["phase"] == "decode"]
    assert all(line["rank_correlation"] > 0.9 for line in decode)  # layouts of equal parts tie
    assert {entry.phase for entry in card.memory} == {"load", "prefill", "decode"}


def test_a_machine_that_drifted_is_corrected_for(tmp_path: Path) -> None:
    card = calibrated(profiled(tmp_path), Lawful(lambda case: 1.1))
    for case in card.cases:
        assert case.drift == pytest.approx(1.1, rel=1e-3)
        assert case.error == pytest.approx(0, abs=2e-3)
        assert case.uncorrected_error == pytest.approx(1 / 1.1 - 1, abs=2e-3)


def test_memory_that_got_dearer_is_told_apart_from_computing(tmp_path: Path) -> None:
    """A neighbour takes cache and bandwidth: models drift by what they walk, and prefill not at all."""
    list(profile(space(), tmp_path, Walking(price=0.2)))
    card = calibrated(tmp_path, Walking(price=0.3), layouts=8)
    decode = [case for case in card.cases if case.workload.phase == "decode"]
    assert max(abs(case.error) for case in decode) < 0.02
    assert min(case.drift for case in decode) > 1.03
    assert max(case.drift for case in decode) - min(case.drift for case in decode) > 0.01, "each by its own share"
    assert all(case.drift == pytest.approx(1, abs=1e-3) for case in card.cases if case.workload.phase == "prefill")


def test_a_machine_that_is_another_one_is_refused_and_may_be_measured_again(tmp_path: Path) -> None:
    run_dir = profiled(tmp_path)
    with pytest.raises(RunError, match=r"take 1\.50 times what they took.*--again"):
        calibrated(run_dir, Lawful(lambda case: 1.5))
    assert not (run_dir / "calibration.json").exists()
    with pytest.raises(RunError, match="take 1\\.50 times"):  # without --again, what was measured stands
        calibrated(run_dir, Lawful())
    assert calibrated(run_dir, Lawful(), again=True).cases[0].drift == pytest.approx(1)


class Turning(Lawful):
    """Every second process is another machine, so to speak."""

    def __init__(self) -> None:
        super().__init__(lambda case: 1.5 if self.processes % 2 else 1.0)
        self.processes = 0

    def run(self, plan: RunPlan) -> Iterator[Event]:
        self.processes += plan.purpose == "latency"
        yield from super().run(plan)


def test_processes_that_do_not_count_are_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = calibrated(profiled(tmp_path), Turning(), passes=2, layouts=3)
    assert {case.left_out for case in card.cases} == {1}
    assert all(abs(case.error) < 2e-3 for case in card.cases)
    print_card(card)
    assert f"left out: {len(card.cases)} measurements" in capsys.readouterr().out


def test_a_chain_that_failed_at_a_workload_is_no_reference_there(tmp_path: Path) -> None:
    list(profile(space(), tmp_path / "whole", Lawful()))
    with Store(tmp_path / "whole" / "measurements.db") as store:
        rows = [row for row in store.rows() if row.purpose == "latency" and row.subject["label"] == "gqa2/96"]
    broken = frozenset(row.key for row in rows if row.workload.context == 64)
    list(profile(space(), tmp_path / "run", Lawful(broken=broken)))
    card = calibrated(tmp_path / "run", Lawful(broken=broken))
    assert all(abs(case.error) < 5e-3 for case in card.cases if case.workload.context == 32)


def test_a_model_that_costs_more_than_its_parts_widens_the_intervals(tmp_path: Path) -> None:
    run_dir = profiled(tmp_path)
    before = load_table(run_dir, "local")
    spec = held_out(space(), 1)[0][1]
    workload = Workload(phase="decode", tokens=1, context=64, precision="fp32")
    assert before.latency(spec, workload).relative < 1e-3
    card = calibrated(run_dir, Lawful(lambda case: 1.06 if is_model(case) else 1.0), layouts=9)
    for line in card.summary():
        assert line["median"] == pytest.approx(1 - 1 / 1.06, rel=0.05)
        assert line["bias"] < 0
        assert line["coverage"] == 0
        assert (line["tested"], line["coverage_widened"]) == (0, None)
    table = load_table(run_dir, "local")
    after = table.latency(spec, workload)
    assert after.value == before.latency(spec, workload).value
    assert after.low < after.value < 1.06 * after.value <= 1.002 * after.high
    assert table.latency(spec, workload, widen=False) == before.latency(spec, workload)
    unseen = Workload(phase="decode", tokens=1, context=50, precision="fp32")
    assert table.latency(spec, unseen).relative > 0.05


def test_an_interrupted_calibration_measures_exactly_the_rest(tmp_path: Path) -> None:
    run_dir = profiled(tmp_path / "stopped")
    with pytest.raises(Stopped):
        calibrated(run_dir, Stopping(after=20))
    second = Lawful()
    calibrated(run_dir, second)
    whole = Lawful()
    calibrated(profiled(tmp_path / "whole"), whole)
    assert len(second.measured) == len(whole.measured) - 20
    third = Lawful()
    calibrated(run_dir, third)
    assert third.measured == []
    assert third.memory == []


def test_other_layouts_test_what_an_earlier_calibration_widened(tmp_path: Path) -> None:
    run_dir = profiled(tmp_path)
    calibrated(run_dir, Lawful(lambda case: 1.06 if is_model(case) else 1.0), layouts=9)
    same = calibrated(run_dir, Lawful(), layouts=9)
    assert {line["tested"] for line in same.summary()} == {0}, "what taught the widening does not test it"
    kept = calibrated(run_dir, Lawful(lambda case: 1.06 if is_model(case) else 1.0), layouts=9, seed=1)
    for line in kept.summary():
        assert 0 < line["tested"] <= 9
        assert line["coverage_widened"] >= 0.8
    lost = calibrated(run_dir, Lawful(lambda case: 1.2 if is_model(case) else 1.0), layouts=9, seed=2)
    assert {line["coverage_widened"] for line in lost.summary()} == {0.0}


def test_few_layouts_widen_nothing(tmp_path: Path) -> None:
    run_dir = profiled(tmp_path)
    card = calibrated(run_dir, Lawful(lambda case: 1.06 if is_model(case) else 1.0), layouts=8)
    assert {line["widening"] for line in card.summary()} == {None}
    assert load_table(run_dir, "local").widenings == {}


@pytest.mark.parametrize("changed", [{"runtime": "onnxruntime 9.9"}, {"fingerprint": "e" * 12}])
def test_another_machine_or_runtime_than_the_table_s_is_refused(tmp_path: Path, changed: dict[str, str]) -> None:
    run_dir = profiled(tmp_path)

    class Another(Lawful):
        info = replace(INFO, **changed)  # type: ignore[assignment]

    with pytest.raises(InputError, match=r"was profiled on f+ with onnxruntime 0\.0, and this device is .*profile it first"):
        calibrated(run_dir, Another())


def test_what_an_earlier_version_measured_is_no_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("archsearch.cases.GRAPH_VERSION", 3)
        run_dir = profiled(tmp_path)
    with pytest.raises(InputError, match=r"profiled by an earlier version.*profile it again"):
        calibrated(run_dir, Lawful())
    assert calibrated(profiled(run_dir), Lawful()).cases, "what is measured again stands beside it"


def test_the_report_shows_the_card_and_says_where_there_is_none(tmp_path: Path) -> None:
    run_dir = profiled(tmp_path)
    (run_dir / "space.toml").write_text(tomli_w.dumps(small(model=MODEL, ffn=FFN)))
    before = collect(run_dir)
    assert before.held_out == before.calibration == ()
    assert any("archsearch calibrate" in line for line in before.advice)
    card = calibrated(run_dir, Lawful(lambda case: 1.06 if is_model(case) else 1.0), layouts=9)
    after = collect(run_dir)
    assert not any("archsearch calibrate" in line for line in after.advice)
    assert [row.error for row in after.held_out] == [case.error for case in card.cases]
    assert {row.workload for row in after.calibration} >= {"decode@45", "memory, load", "memory, prefill", "memory, decode"}
    (run_dir / "calibration.json").write_text("[]")
    with pytest.raises(RunError, match=r"calibration\.json.*remove it"):
        collect(run_dir)


def test_widenings_of_another_runtime_do_not_count(tmp_path: Path) -> None:
    run_dir = profiled(tmp_path)
    calibrated(run_dir, Lawful(), layouts=9)
    path = run_dir / "calibration.json"
    cards = json.loads(path.read_text())
    assert load_table(run_dir, "local").widenings
    for card in cards.values():
        card["runtime"] = "onnxruntime 9.9"
    path.write_text(json.dumps(cards))
    assert not load_table(run_dir, "local").widenings


@pytest.mark.parametrize(
    "content", ["{", '{"ffffffffffff": {}}', "[]", '{"ffffffffffff": {"runtime": "onnxruntime 0.0", "summary": [{}]}}']
)
def test_a_damaged_card_is_named(tmp_path: Path, content: str) -> None:
    run_dir = profiled(tmp_path)
    (run_dir / "calibration.json").write_text(content)
    with pytest.raises(RunError, match=r"calibration\.json.*remove it"):
        load_table(run_dir, "local")


def test_the_command_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way with real graphs and the real agent, small; its numbers are whatever this machine gives."""
    file = tmp_path / "space.toml"
    quick = {"precision": "fp32", "passes": 1, "max_passes": 1, "rounds": 2, "min_time_ms": 2}
    file.write_text(tomli_w.dumps(small(measure=quick)))
    run_dir = tmp_path / "run"
    assert run_command("profile", str(file), "--run", str(run_dir)).status == 0
    options = ("--layouts", "2", "--memory-layouts", "1", "--passes", "1", "--rounds", "1")
    with monkeypatch.context() as patched:
        patched.setattr("archsearch.calibrate.LARGEST_DRIFT", 1e9)  # two rounds on a busy machine tell nothing of drift
        measured = CalibrateResult()
        opened = open_device("local")
        sizes = {"layouts": 2, "memory_layouts": 1, "passes": 1, "rounds": 1}
        list(calibrate(Space.read(file), run_dir, opened, load_table(run_dir, "local"), result=measured, **sizes))
    assert measured.card is not None
    done = run_command("calibrate", "--run", str(run_dir), *options, "--json")
    steady = [case for case in measured.card.cases if 0.8 <= case.drift <= 1.25]
    if steady:
        assert [line["error"] for line in done.document["cases"]] == [case.error for case in steady]
    else:
        assert (done.status, "the machine has changed" in done.err) == (1, True)
    document = measured.card.to_dict()
    assert {line["phase"] for line in document["memory"]} == {"load", "prefill", "decode"}
    assert len(document["layouts"]) == 2
    assert all(line["measured_ms"] > 0 for line in document["cases"])


def test_calibrating_what_is_no_run_says_so(tmp_path: Path) -> None:
    done = run_command("calibrate", "--run", str(tmp_path))
    assert done.status == 2
    assert "not a run" in done.err
    assert "archsearch profile" in done.err
