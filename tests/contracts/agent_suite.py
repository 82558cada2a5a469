"""What every agent has to satisfy, in whatever language: subclass, and give a device that runs plans with it.

    from tests.contracts.agent_suite import AgentSuite

    class TestMyAgent(AgentSuite):
        host = "from my.place import MyDevice; device = MyDevice()"

What it computes is bit by bit what the runtime computes; samples, rounds and conditions are what the plan asked for; each thing
that can go wrong with a case fails that case alone, with its reason; and no agent outlives its host.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from devices.base import Device
from devices.plan import Case, Event, Failed, Feed, Loaded, MemoryResult, OutputsResult, RoundResult, RunPlan, Started, StatePair
from tests.contracts import agent_models as models

SHORT = {"warmup_runs": 1, "min_runs": 3, "min_time_ns": 0, "max_wait_s": 0.0}
LONG_NS = 500_000_000
PATIENCE_S = 60.0
MIB = 2**20


def events(device: Device, plan: RunPlan) -> list[Event]:
    return list(device.run(plan))


def failures(found: list[Event]) -> dict[str, Failed]:
    return {event.case_id: event for event in found if isinstance(event, Failed)}


def rounds(found: list[Event]) -> list[tuple[str, int]]:
    return sorted((event.case_id, event.round) for event in found if isinstance(event, RoundResult))


def agents() -> list[psutil.Process]:
    """The programs that this process has started on this machine and that still run.

    Not the helpers of other tests' workers, nor what runs on a phone for tests, which has namespaces of its own.
    """
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
            helper = any("multiprocessing" in word for word in process.cmdline())
            if process.status() != psutil.STATUS_ZOMBIE and not helper and _namespace(process.pid) == _namespace(os.getpid()):
                found.append(process)
    return found


def _namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/user")


def gone(process: psutil.Process) -> bool:
    """Whether a process ends within reason; one that nobody waits for counts as ended."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


class AgentSuite:
    host: str
    """Python statements that make `device`, the device under test."""

    def agents(self) -> list[psutil.Process]:
        """The agents that this process, or a program that it has started, has running now."""
        return agents()

    def agents_of(self, host: psutil.Process) -> list[psutil.Process]:
        """The agents of another host."""
        return host.children(recursive=True)

    @pytest.fixture
    def device(self) -> Device:
        names: dict[str, Device] = {}
        exec(self.host, {}, names)
        return names["device"]

    @pytest.fixture
    def plain(self, tmp_path: Path) -> Case:
        return models.plain_case(models.plain(tmp_path), "good")

    # -- what is computed ------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("runs", [1, 2, 3])
    def test_outputs_and_states_are_bit_by_bit_those_of_the_runtime(self, device: Device, tmp_path: Path, runs: int) -> None:
        recurrent = models.recurrent(tmp_path)
        cases = (
            models.plain_case(models.plain(tmp_path)),
            models.recurrent_case(recurrent, "swapped", shared=False),
            models.recurrent_case(recurrent, "swapped, another batch", shared=False, batch=3),
            models.recurrent_case(recurrent, "in place", shared=True),
            models.growing_case(models.growing(tmp_path)),
            models.attention_case(models.attention(tmp_path)),
        )
        found = events(device, RunPlan(cases=cases, purpose="outputs", min_runs=runs, seed=5))
        computed = {event.case_id: event.sha256 for event in found if isinstance(event, OutputsResult)}
        assert not failures(found)
        assert computed == {case.case_id: models.expected(case, runs, seed=5) for case in cases}

    def test_states_advance_and_the_seed_decides_the_inputs(self, device: Device, tmp_path: Path) -> None:
        # Guards the test above: had neither runs nor seed any influence, it would compare nothing.
        case = models.recurrent_case(models.recurrent(tmp_path), "case", shared=False)
        digests = {(runs, seed): models.expected(case, runs, seed=seed)["s_new"] for runs in (1, 2, 3) for seed in (5, 6)}
        assert len(set(digests.values())) == len(digests)
        found = events(device, RunPlan(cases=(case,), purpose="outputs", min_runs=2, seed=6))
        assert [event.sha256["s_new"] for event in found if isinstance(event, OutputsResult)] == [digests[2, 6]]

    # -- what is measured ------------------------------------------------------------------------------------------------

    def test_a_series_is_what_the_plan_says(self, device: Device, tmp_path: Path) -> None:
        model = models.recurrent(tmp_path)
        cases = (
            models.plain_case(models.plain(tmp_path), "a"),
            models.recurrent_case(model, "b", shared=False),
            models.recurrent_case(model, "c", shared=True, batch=4),
        )
        plan = RunPlan(cases=cases, rounds=3, min_runs=4, min_time_ns=2_000_000, warmup_runs=1, max_wait_s=0.0, done=(("b", 0), ("b", 2)))
        found = events(device, plan)
        assert isinstance(found[0], Started)
        assert sorted(event.case_id for event in found if isinstance(event, Loaded)) == ["a", "b", "c"]
        assert rounds(found) == [("a", 0), ("a", 1), ("a", 2), ("b", 1), ("c", 0), ("c", 1), ("c", 2)]
        assert [event.round for event in found if isinstance(event, RoundResult)] == [0, 0, 1, 1, 1, 2, 2], "rounds are not interleaved"
        for event in found:
            match event:
                case Loaded():
                    assert event.load_ns > 0
                    assert event.first_run_ns > 0
                case RoundResult():
                    assert len(event.wall_ns) >= 4
                    assert min(event.wall_ns) > 0
                    assert event.cpu_ns is not None, "one thread: CPU time tells more than wall time"
                    assert len(event.cpu_ns) == len(event.wall_ns)
                    assert event.before.time_unix_s <= event.after.time_unix_s

    def test_the_order_of_the_cases_is_shuffled_anew_in_every_round(self, device: Device, tmp_path: Path) -> None:
        model = models.plain(tmp_path)
        cases = tuple(models.plain_case(model, name) for name in "abcdef")
        found = events(device, RunPlan(cases=cases, rounds=3, **SHORT))
        done = [event.case_id for event in found if isinstance(event, RoundResult)]
        orders = [done[first : first + len(cases)] for first in range(0, len(done), len(cases))]
        assert [sorted(order) for order in orders] == [list("abcdef")] * 3
        assert len({tuple(order) for order in orders}) == 3, "three of 720 orders agree by chance once in 240 seeds; take another"

    def test_a_round_lasts_as_long_as_the_plan_says(self, device: Device, plain: Case) -> None:
        found = events(device, RunPlan(cases=(plain,), rounds=1, **(SHORT | {"min_time_ns": 50_000_000})))
        (result,) = (event for event in found if isinstance(event, RoundResult))
        # A run of microseconds: the loop's own overhead is within the time that must have passed, not within the samples.
        assert result.after.time_unix_s - result.before.time_unix_s >= 0.05
        assert len(result.wall_ns) > 100
        if result.before.preemptions is not None:
            assert result.after.preemptions is not None
            assert 0 <= result.before.preemptions <= result.after.preemptions

    def test_conditions_say_what_held(self, device: Device, plain: Case) -> None:
        (first,) = (event.conditions for event in events(device, RunPlan(cases=(plain,), rounds=1, **SHORT)) if isinstance(event, Started))
        assert first.runtime.startswith("onnxruntime ")
        assert (first.threads, first.allow_spinning, first.memory_arena) == (1, False, False)
        if first.cores is None:
            pytest.skip("processes cannot be pinned on this platform")
        assert len(first.cores) == 1
        other = next((core for core in sorted(os.sched_getaffinity(0)) if core not in first.cores), first.cores[0])
        plan = RunPlan(cases=(plain,), rounds=1, threads=2, cores=(other,), allow_spinning=True, memory_arena=True, **SHORT)
        found = events(device, plan)
        (second,) = (event.conditions for event in found if isinstance(event, Started))
        assert (second.threads, second.allow_spinning, second.memory_arena, second.cores) == (2, True, True, (other,))
        assert [event.cpu_ns for event in found if isinstance(event, RoundResult)] == [None], "a thread's CPU time says little of two"

    def test_memory_is_that_of_the_model_and_its_buffers(self, device: Device, tmp_path: Path) -> None:
        weight, rows = 64 * MIB, 24
        model = models.plain(tmp_path, width=4096, name="wide")
        outer = models.outer(tmp_path)
        loaded = self._memory(device, models.plain_case(model, width=4096, batch=1))
        ran = self._memory(device, models.plain_case(outer, width=1, batch=rows))
        for result in (loaded, ran):
            assert 0 < result.base_bytes <= result.loaded_bytes <= result.peak_bytes
        assert weight * 0.95 <= loaded.loaded_bytes - loaded.base_bytes <= weight * 3
        assert rows * 4 * MIB * 0.95 <= ran.peak_bytes - ran.loaded_bytes <= rows * 4 * MIB * 2

    def _memory(self, device: Device, case: Case) -> MemoryResult:
        found = events(device, RunPlan(cases=(case,), purpose="memory", min_runs=2))
        assert not failures(found)
        (result,) = (event for event in found if isinstance(event, MemoryResult))
        return result

    # -- what goes wrong -------------------------------------------------------------------------------------------------

    def test_a_bad_case_fails_alone_and_says_why(self, device: Device, tmp_path: Path, plain: Case) -> None:
        corrupt = tmp_path / "corrupt.onnx"
        corrupt.write_bytes(plain.model.read_bytes()[:-40] + b"\xff" * 40)
        empty = tmp_path / "empty.onnx"
        empty.touch()
        x, s = (Feed(name=name, dtype="float32", shape=(2, models.WIDTH), fill="normal") for name in "xs")
        recurrent = models.recurrent(tmp_path)
        bad = {
            "missing": Case(case_id="missing", model=tmp_path / "missing.onnx", feeds=(x,)),
            "corrupt": Case(case_id="corrupt", model=corrupt, feeds=(x,)),
            "empty": Case(case_id="empty", model=empty, feeds=(x,)),
            "unknown input": Case(case_id="unknown input", model=plain.model, feeds=(x, Feed(name="z", dtype="float32", shape=(1,)))),
            "no feed": Case(case_id="no feed", model=recurrent, feeds=(x,)),
            "no feed for a state": Case(
                case_id="no feed for a state", model=recurrent, feeds=(x,), states=(StatePair(input="s", output="s_new", shared=True),)
            ),
            "no such output": Case(
                case_id="no such output", model=recurrent, feeds=(x, s), states=(StatePair(input="s", output="t", shared=False),)
            ),
            "shape": Case(case_id="shape", model=plain.model, feeds=(Feed(name="x", dtype="float32", shape=(2, 3)),)),
            "type": Case(case_id="type", model=plain.model, feeds=(Feed(name="x", dtype="float64", shape=(2, models.WIDTH)),)),
            "no such type": Case(case_id="no such type", model=plain.model, feeds=(Feed(name="x", dtype="float33", shape=(2, 8)),)),
        }
        found = events(device, RunPlan(cases=(*bad.values(), plain), rounds=2, **SHORT))
        reasons = {case_id: event.reason for case_id, event in failures(found).items()}
        assert reasons == dict.fromkeys(bad, "run_failed") | dict.fromkeys(("missing", "corrupt", "empty"), "load_failed")
        assert rounds(found) == [("good", 0), ("good", 1)]
        for event in failures(found).values():
            assert event.detail
            assert "\n" not in event.detail
        assert "missing.onnx" in failures(found)["missing"].detail

    def test_what_does_not_fit_in_memory_fails_alone(self, device: Device, tmp_path: Path, plain: Case) -> None:
        large = models.plain_case(models.outer(tmp_path), "large", width=1, batch=2048)  # 8 GiB of output
        found = events(device, RunPlan(cases=(large, plain), rounds=1, memory_limit_bytes=6 * 2**30, **SHORT))
        assert failures(found)["large"].reason == "out_of_memory"
        assert rounds(found) == [("good", 0)]

    def test_a_model_larger_than_the_machine_is_not_loaded(self, device: Device, tmp_path: Path, plain: Case) -> None:
        directory = tmp_path / "vast"
        directory.mkdir()
        model = models.plain(directory)
        data = directory / f"{model.name}.data"
        with data.open("wb") as file:
            file.truncate(4 * psutil.virtual_memory().total)  # a hole: takes no room on the disk
        found = events(device, RunPlan(cases=(models.plain_case(model, "vast"), plain), rounds=1, **SHORT))
        assert failures(found)["vast"].reason == "out_of_memory"
        assert "MB" in failures(found)["vast"].detail
        assert rounds(found) == [("good", 0)]

    @pytest.mark.parametrize(
        ("how", "reason"),
        [
            pytest.param(signal.SIGSEGV, "crashed", id="SIGSEGV"),
            pytest.param(signal.SIGABRT, "crashed", id="SIGABRT"),
            pytest.param(signal.SIGKILL, "out_of_memory", id="SIGKILL"),
        ],
    )
    def test_a_dead_agent_costs_the_running_case_alone(self, device: Device, tmp_path: Path, how: signal.Signals, reason: str) -> None:
        found = self._strike(device, tmp_path, how)
        (failed,) = failures(found).values()
        assert failed.reason == reason
        assert how.name in failed.detail

    def test_a_hanging_agent_costs_the_running_case_alone(self, device: Device, tmp_path: Path) -> None:
        (failed,) = failures(self._strike(device, tmp_path, signal.SIGSTOP, timeout_s=5.0)).values()
        assert failed.reason == "timeout"
        assert "5 s" in failed.detail

    def _strike(self, device: Device, tmp_path: Path, how: signal.Signals, *, timeout_s: float = PATIENCE_S) -> list[Event]:
        """Signal the agent after its first round of the first case, and check that all else is measured once, the rest by a second process.

        All cases have work left then, so that whichever is running is the one that fails.
        """
        cases = tuple(models.plain_case(models.plain(tmp_path), name) for name in ("a", "b", "c"))
        plan = RunPlan(cases=cases, rounds=2, timeout_s=timeout_s, **(SHORT | {"min_time_ns": LONG_NS}))
        found: list[Event] = []
        struck = None
        for event in device.run(plan):
            found.append(event)
            if struck is None and isinstance(event, RoundResult):
                (struck,) = self.agents()
                struck.send_signal(how)
        assert struck is not None
        assert gone(struck)
        assert not self.agents()
        (lost,) = failures(found)
        assert [name for name, _ in rounds(found) if name == lost] in ([], [lost])
        survivors = [case.case_id for case in cases if case.case_id != lost]
        assert [done for done in rounds(found) if done[0] != lost] == sorted((name, number) for name in survivors for number in (0, 1))
        assert sum(isinstance(event, Started) for event in found) == 2
        return found

    # -- nothing is left behind ------------------------------------------------------------------------------------------

    def test_closing_the_run_ends_the_agent(self, device: Device, plain: Case) -> None:
        run = device.run(RunPlan(cases=(plain,), rounds=1000, **(SHORT | {"min_time_ns": LONG_NS})))
        while not isinstance(next(run), RoundResult):
            pass
        (agent,) = self.agents()
        run.close()  # type: ignore[attr-defined]
        assert not agent.is_running()
        assert not self.agents()

    @pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda how: how.name)
    def test_no_agent_outlives_its_host(self, plain: Case, how: signal.Signals) -> None:
        with self._host_in_its_own_process(plain) as host:
            (agent,) = self.agents_of(psutil.Process(host.pid))
            host.send_signal(how)
            host.wait(timeout=PATIENCE_S)
            assert gone(agent)

    @contextlib.contextmanager
    def _host_in_its_own_process(self, case: Case) -> Iterator[subprocess.Popen[str]]:
        script = f"""
import signal
from devices.plan import Case, Feed, Loaded, RunPlan
from pathlib import Path, PosixPath, WindowsPath
{self.host}
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with it ignored
# The round is so long that an agent which only notices when it next speaks to its host would not notice in time.
for event in device.run(RunPlan(cases=({case!r},), rounds=1, max_wait_s=0.0, min_time_ns=int(10 * {PATIENCE_S} * 1e9))):
    if isinstance(event, Loaded):
        print("measuring", flush=True)
"""
        host = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        try:
            assert host.stdout is not None
            assert host.stdout.readline() == "measuring\n"
            yield host
        finally:
            host.kill()
            host.wait()
            if host.stdout is not None:
                host.stdout.close()
