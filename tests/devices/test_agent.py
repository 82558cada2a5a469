"""The Python agent's parts: the timed loop with a clock of our own, inputs by the documented rule, what it refuses, what it says."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from devices import health, measure_limits
from devices.agent import limits, memory, session
from devices.agent.feeds import CHUNK, content
from devices.agent.timing import timed_runs
from devices.base import AgentError
from devices.local import LocalDevice
from devices.plan import (
    Case,
    Conditions,
    Event,
    Failed,
    Feed,
    LimitResult,
    Loaded,
    Look,
    MachineState,
    MemoryResult,
    OutputsResult,
    RoundResult,
    RunPlan,
    Started,
    StatePair,
)
from devices.protocol import decode_event, decode_plan, decode_state, encode_event, encode_plan
from tests.contracts import agent_models as models

CASE = Case(
    case_id="case",
    model=Path("/models/model.onnx"),
    feeds=(Feed(name="x", dtype="int64", shape=(2, 3), fill="integers", high=7), Feed(name="s", dtype="float32", shape=(1,))),
    states=(StatePair(input="s", output="t", shared=True),),
)
STATE = MachineState(time_unix_s=1.5, load_1m=0.5, clock_mhz=(2000.0, 2100.5), steal_ticks=3, on_battery=False, huge_page_share=0.5)


class FakeMachine:
    """A clock that moves only while something runs: the n-th run takes `durations[n]` of wall time and half of it on the CPU."""

    def __init__(self, durations: Sequence[int]) -> None:
        self.durations = list(durations)
        self.now = 1_000
        self.used = 50
        self.runs = 0

    def run(self) -> None:
        duration = self.durations[min(self.runs, len(self.durations) - 1)]
        self.runs += 1
        self.now += duration
        self.used += duration // 2

    def timed(self, plan: RunPlan, *, cpu: bool = True) -> tuple[list[int], list[int] | None]:
        return timed_runs(self.run, plan, wall=lambda: self.now, cpu=(lambda: self.used) if cpu else None)


def loop(**settings: int) -> RunPlan:
    return RunPlan(cases=(CASE,), **({"warmup_runs": 0, "min_runs": 1, "min_time_ns": 0} | settings))  # type: ignore[arg-type]


def test_every_timed_run_is_a_sample_and_warm_up_is_none() -> None:
    machine = FakeMachine([900, 800, 10, 20, 30])
    assert machine.timed(loop(warmup_runs=2, min_runs=3)) == ([10, 20, 30], [5, 10, 15])
    assert machine.runs == 5


def test_runs_go_on_until_both_least_count_and_least_time_are_reached() -> None:
    assert FakeMachine([10]).timed(loop(min_runs=2, min_time_ns=45))[0] == [10] * 5
    assert FakeMachine([10]).timed(loop(min_runs=7, min_time_ns=45))[0] == [10] * 7
    assert FakeMachine([100]).timed(loop(min_runs=1, min_time_ns=45))[0] == [100]
    # Warm-up does not count towards the time.
    assert FakeMachine([1_000, 10]).timed(loop(warmup_runs=1, min_time_ns=30))[0] == [10] * 3


def test_without_a_cpu_clock_there_are_no_cpu_times() -> None:
    assert FakeMachine([10]).timed(loop(min_runs=2), cpu=False) == ([10, 10], None)


def test_once_a_second_somebody_may_look_but_never_within_a_run() -> None:
    machine, looks = FakeMachine([400_000_000]), []

    def look() -> None:
        looks.append(machine.now)
        machine.now += 70_000_000  # looking takes time of its own, and is in no sample

    plan = loop(min_runs=8)
    wall_ns, _ = timed_runs(machine.run, plan, wall=lambda: machine.now, cpu=None, look=look)
    assert wall_ns == [400_000_000] * 8
    assert looks == [1_200_001_000, 2_470_001_000]


def test_files_of_before_are_still_read() -> None:
    assert decode_state({"time_unix_s": 1.5, "clock_mhz": [2000.0]}) == MachineState(time_unix_s=1.5, clock_mhz=(2000.0,))


# -- inputs --------------------------------------------------------------------------------------------------------------


def splitmix(name: str, seed: int, index: int) -> int:
    """The documented rule in plain integers, as an agent in another language would write it."""
    key = 0xCBF29CE484222325
    for byte in name.encode():
        key = (key ^ byte) * 0x100000001B3 % 2**64
    z = ((key ^ seed) + (index + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("name", ["x", "past_conv.0", "größe"])
def test_inputs_follow_the_documented_rule(name: str, seed: int) -> None:
    normal = content(Feed(name=name, dtype="float32", shape=(3, CHUNK // 2), fill="normal", scale=0.5), seed).reshape(-1)
    integers = content(Feed(name=name, dtype="int64", shape=(5,), fill="integers", high=65536), seed)
    for index in (0, 1, 4, CHUNK - 1, CHUNK, 3 * (CHUNK // 2) - 1):
        z = splitmix(name, seed, index)
        lanes = sum((z >> shift) & 0xFFFF for shift in (0, 16, 32, 48)) - 2 * 65535
        assert normal[index] == np.float32(lanes * (0.5 / math.sqrt((2**32 - 1) / 3)))
        if index < 5:
            assert integers[index] == ((z >> 32) * 65536) >> 32


def test_splitmix_is_the_published_one() -> None:
    # Steele, Lea and Flood's generator from state 0 begins so; it pins the constants of both implementations.
    key = 0xCBF29CE484222325
    assert [splitmix("", key, index) for index in range(3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_inputs_are_distributed_as_they_say() -> None:
    normal = content(Feed(name="x", dtype="float32", shape=(1000, 1000), fill="normal", scale=2.0), 1)
    assert abs(float(normal.mean())) < 0.01
    assert abs(float(normal.std()) - 2.0) < 0.01
    assert abs(float((np.abs(normal) < 2.0).mean()) - 0.6827) < 0.02
    integers = content(Feed(name="x", dtype="int64", shape=(70_000,), fill="integers", high=7), 1)
    assert np.bincount(integers, minlength=7).min() > 9_500
    assert integers.max() == 6


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool"])
def test_inputs_have_the_type_and_shape_asked_for(dtype: str) -> None:
    constant = content(Feed(name="x", dtype=dtype, shape=(2, 0, 3), fill="constant", value=1.0), 0)
    assert (constant.dtype, constant.shape) == (np.dtype(dtype), (2, 0, 3))
    assert content(Feed(name="x", dtype=dtype, shape=(), fill="constant", value=1.0), 0) == 1
    assert not content(Feed(name="x", dtype=dtype, shape=(4,)), 0).any()


# -- plans and events as text ------------------------------------------------------------------------------------------------


def test_a_plan_survives_the_wire() -> None:
    plan = RunPlan(cases=(CASE,), cores=(1, 3), done=(("case", 1),), memory_limit_bytes=5, seed=9, max_wait_s=0.5)
    assert decode_plan(encode_plan(plan)) == plan
    assert decode_plan(encode_plan(RunPlan(cases=(), purpose="limits"))) == RunPlan(cases=(), purpose="limits")


def test_a_plan_travels_with_absolute_paths_and_plain_numbers() -> None:
    feed = Feed(name="x", dtype="float32", shape=(np.int64(2), 3))  # type: ignore[arg-type]
    plan = RunPlan(cases=(replace(CASE, model=Path("here.onnx"), feeds=(feed,), states=()),))
    (case,) = decode_plan(encode_plan(plan)).cases
    assert case.model == Path.cwd() / "here.onnx"
    assert case.feeds[0].shape == (2, 3)
    with pytest.raises(TypeError, match="no place in a plan"):
        encode_plan(replace(plan, cases=(replace(case, feeds=(replace(feed, value=object()),)),)))  # type: ignore[arg-type]


CONDITIONS = Conditions(
    agent="x", runtime="y", threads=2, cores=(0, 1), allow_spinning=False, memory_arena=True, huge_pages=None, governor="performance"
)
EVENTS: list[Event] = [
    Started(conditions=CONDITIONS, state=STATE),
    Loaded(case_id="case", load_ns=1, first_run_ns=2),
    RoundResult(case_id="case", round=0, wall_ns=(1, 2), cpu_ns=None, before=STATE, after=STATE),
    RoundResult(case_id="case", round=0, wall_ns=(1, 2), cpu_ns=(0, 1), before=STATE, after=STATE),
    MemoryResult(case_id="case", base_bytes=1, loaded_bytes=2, peak_bytes=3, pss_bytes=None, anonymous_bytes=4),
    OutputsResult(case_id="case", sha256={"y": "00"}),
    Look(case_id="case", round=1, state=replace(STATE, throttled=True, clock_limit_mhz=(1800.0,))),
    LimitResult(limit="read_bandwidth", threads=1, amount=5, wall_ns=(1,), method="m", before=STATE, after=STATE),
    Failed(case_id="case", reason="timeout", detail="too slow: größer"),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_survives_the_wire(event: Event) -> None:
    import json

    line = encode_event(event)
    assert "\n" not in line
    assert decode_event(json.loads(line)) == event


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"cases": (CASE, CASE)}, r"share an id: \['case'\]"),
        ({"cases": ()}, "takes some cases, not 0"),
        ({"purpose": "memory", "cases": (CASE, replace(CASE, case_id="b"))}, "takes 1 cases, not 2"),
        ({"purpose": "limits"}, "takes 0 cases, not 1"),
        ({"threads": 0}, "threads must be at least 1, not 0"),
        ({"rounds": 0}, "rounds must be"),
        ({"min_runs": -1}, "min_runs must be"),
    ],
)
def test_plans_that_cannot_be_are_refused(change: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        replace(RunPlan(cases=(CASE,)), **change)


# -- the process ---------------------------------------------------------------------------------------------------------------


def test_cores_that_are_not_there_are_refused(tmp_path: Path) -> None:
    plan = RunPlan(cases=(models.plain_case(models.plain(tmp_path)),), cores=(4095,))
    with pytest.raises(AgentError, match=r"cannot pin to the cores 4095: this machine offers \d"):
        list(LocalDevice().run(plan))


def test_without_a_plan_the_agent_says_who_starts_it() -> None:
    done = subprocess.run([sys.executable, "-m", "devices.agent"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "started by archsearch" in done.stderr


def test_what_libraries_print_does_not_reach_the_host() -> None:
    script = "import os; from devices.agent.__main__ import private_stdout; out = private_stdout(); "
    script += "os.write(1, b'noise'); print('noise', flush=True); print('ours', file=out)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "ours\n"
    assert done.stderr == "noisenoise\n"


def test_a_busy_machine_is_waited_for_and_flagged(tmp_path: Path) -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        plan = RunPlan(
            cases=(models.plain_case(models.plain(tmp_path)),), rounds=1, min_time_ns=200_000_000, max_wait_s=0.6, timeout_s=60.0
        )
        (result,) = (event for event in LocalDevice().run(plan) if isinstance(event, RoundResult))
    finally:
        busy.kill()
        busy.wait()
    if (os.cpu_count() or 1) > 8:
        pytest.skip("one busy loop is less than a tenth of this machine")
    assert result.before.waited_s == pytest.approx(0.6)
    assert "busy" in health.flags([result.before, result.after])


@pytest.mark.parametrize(("threads", "spinning", "arena"), [(1, False, False), (2, True, True)])
def test_sessions_are_configured_as_the_plan_says(tmp_path: Path, threads: int, spinning: bool, arena: bool) -> None:
    model = models.plain(tmp_path)
    plan = RunPlan(cases=(models.plain_case(model),), threads=threads, allow_spinning=spinning, memory_arena=arena)
    options = session.load(str(model), plan).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads, options.enable_cpu_mem_arena) == (threads, 1, arena)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == str(int(spinning))


# -- memory and limits -----------------------------------------------------------------------------------------------------------


def test_models_that_fit_are_let_through(tmp_path: Path) -> None:
    memory.refuse_unfit(models.plain(tmp_path))


def test_memory_readings_agree() -> None:
    resident, peak, rollup = memory.resident(), memory.peak(), memory.rollup()
    assert 0 < resident <= peak * 1.01
    if not rollup:
        pytest.skip("only Linux sums up a process's mappings")
    assert 0.5 < rollup["Rss"] / resident < 2
    block = np.ones(300 * 2**20, np.uint8)
    share = memory.huge_page_share()
    assert share is not None
    assert 0 <= share <= 1
    del block


def test_limits_of_this_machine() -> None:
    found = {(result.limit, result.threads): result for result in measure_limits(LocalDevice(), threads=(1,), min_time_ns=1)}
    read, multiply = found["read_bandwidth", 1], found["fp32_matmul", 1]
    assert len(read.wall_ns) >= 5
    assert read.amount >= limits.CACHES * limits.last_level_cache() or read.amount == limits.read_bytes()
    assert multiply.amount == 2 * 1024**3
    # Between a telephone of 2010 and a supercomputer: a wrong unit or factor of a thousand does not pass.
    assert 1e8 < read.per_second < 1e13
    assert 1e8 < multiply.per_second < 1e14
    assert "MiB" in read.method


def test_limits_that_cannot_be_measured_are_an_error() -> None:
    with pytest.raises(AgentError, match="limits of local cannot be measured: memory ran out"):
        measure_limits(Unlucky())


class Unlucky(LocalDevice):
    def run(self, plan: RunPlan) -> Iterator[Event]:
        yield Failed(case_id="limits", reason="out_of_memory", detail="memory ran out")
