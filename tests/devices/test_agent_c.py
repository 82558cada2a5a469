"""The C agent: under the same contract as the Python agent, equal to it in all that is not time, and hard to confuse."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import helper

from devices import health
from devices.base import AgentError
from devices.build import FLAGS, compile_program
from devices.bundle import ENTRY, LIBRARY
from devices.local import LocalDevice
from devices.plan import Case, Conditions, Feed, LimitResult, Look, MachineState, MemoryResult, OutputsResult, RoundResult, RunPlan, Started
from devices.protocol import encode_plan
from devices.recipes import LIBRARIES, Program, agent_files, installed_library
from tests.contracts import agent_models as models
from tests.contracts.agent_suite import SHORT, AgentSuite, agents, events, failures
from tests.devices.c_agent import c_bundle, c_device


class TestCAgent(AgentSuite):
    @pytest.fixture(autouse=True)
    def _built(self) -> None:
        self.host = f"from devices.local import LocalDevice; device = LocalDevice(({str(c_bundle().entry)!r},))"


# -- the same as the Python agent ----------------------------------------------------------------------------------------------


def computed(device: LocalDevice, plan: RunPlan) -> dict[str, dict[str, str]]:
    found = events(device, plan)
    assert not failures(found)
    return {event.case_id: event.sha256 for event in found if isinstance(event, OutputsResult)}


DTYPES = ("float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool")
FILLS = {
    "normal": {"scale": 0.5},
    "large": {"fill": "normal", "scale": 15_000.0},  # close to the end of the halves
    "tiny": {"fill": "normal", "scale": 1e-6},  # subnormal halves
    "integers": {"high": 65536},
    "constant": {"value": 3.0},
    "zeros": {},
}


def echo(directory: Path, dtype: str) -> Path:
    """y = x, in whatever type."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    value = [helper.make_tensor_value_info(name, kind, ["n"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "echo", value[:1], value[1:])
    path = directory / f"{dtype}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.mark.parametrize("seed", [0, 2**64 - 3])
def test_every_input_has_the_same_bits(tmp_path: Path, seed: int) -> None:
    cases = []
    for dtype in DTYPES:
        model = echo(tmp_path, dtype)
        for name, settings in FILLS.items():
            if name == "large" and not dtype.startswith("float"):
                continue  # the conversion of a number that an integer cannot hold is not defined in C
            fill = {"fill": name} | settings
            feed = Feed(name="x", dtype=dtype, shape=(1001,), **fill)  # type: ignore[arg-type]
            cases.append(Case(case_id=f"{dtype} {name}", model=model, feeds=(feed,)))
    plan = RunPlan(cases=tuple(cases), purpose="outputs", min_runs=1, seed=seed)
    ours = computed(c_device(), plan)
    assert ours == computed(LocalDevice(), plan)
    assert ours == {case.case_id: models.expected(case, 1, seed=seed) for case in cases}
    assert len({tuple(digests.values()) for digests in ours.values()}) > 2 * len(DTYPES), "were they all alike, nothing would be compared"


def test_names_that_are_no_ascii_travel_both_ways(tmp_path: Path) -> None:
    place = tmp_path / 'größe "1" \\ \t'
    place.mkdir()
    case = models.plain_case(models.plain(place), 'Fälle: "a" \\ \u0001 \U0001f600 \ud83d'.encode("utf-8", "replace").decode())
    plan = RunPlan(cases=(case,), purpose="outputs", min_runs=1)
    assert computed(c_device(), plan) == computed(LocalDevice(), plan)
    assert list(computed(c_device(), plan)) == [case.case_id]


def test_file_names_that_are_no_unicode_are_found(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.onnx"))
    shutil.copyfile(models.plain(tmp_path), odd)
    assert computed(c_device(), RunPlan(cases=(models.plain_case(odd),), purpose="outputs", min_runs=1))["plain"]


def test_conditions_and_states_tell_the_same(tmp_path: Path) -> None:
    plan = RunPlan(cases=(models.plain_case(models.plain(tmp_path)),), rounds=1, **SHORT)
    told: list[tuple[Conditions, MachineState]] = []
    for device in (c_device(), LocalDevice()):
        found = events(device, plan)
        (conditions,) = (event.conditions for event in found if isinstance(event, Started))
        told.append((replace(conditions, agent=""), next(event.after for event in found if isinstance(event, RoundResult))))
    (ours, our_state), (theirs, their_state) = told
    assert ours == theirs
    ours_known, theirs_known = ({key: value is not None for key, value in asdict(state).items()} for state in (our_state, their_state))
    assert ours_known | {"busy_other_share": None} == theirs_known | {"busy_other_share": None}, "null where the other agent knows"
    assert our_state.available_bytes == pytest.approx(their_state.available_bytes, rel=0.3)
    assert len(our_state.clock_mhz or ()) == len(their_state.clock_mhz or ())


def test_memory_is_less_than_python_takes_by_what_the_interpreter_takes(tmp_path: Path) -> None:
    plan = RunPlan(cases=(models.plain_case(models.plain(tmp_path, width=2048), width=2048),), purpose="memory", min_runs=2)
    ours, theirs = ((next(e for e in events(device, plan) if isinstance(e, MemoryResult))) for device in (c_device(), LocalDevice()))
    assert ours.base_bytes < theirs.base_bytes
    grown, expected = (result.peak_bytes - result.base_bytes for result in (ours, theirs))
    assert grown == pytest.approx(expected, rel=0.25)
    assert ours.pss_bytes is not None
    assert ours.anonymous_bytes is not None
    assert ours.anonymous_bytes <= ours.peak_bytes


@pytest.mark.parametrize("device", [pytest.param(c_device, id="c"), pytest.param(LocalDevice, id="python")])
def test_a_long_round_tells_of_the_machine_once_a_second(device: type[LocalDevice], tmp_path: Path) -> None:
    plan = RunPlan(cases=(models.plain_case(models.plain(tmp_path), "long"),), rounds=1, **(SHORT | {"min_time_ns": 2_500_000_000}))
    found = events(device(), plan)
    looks = [event for event in found if isinstance(event, Look)]
    (result,) = (event for event in found if isinstance(event, RoundResult))
    assert [(look.case_id, look.round) for look in looks] == [("long", 0)] * 2
    times = [result.before.time_unix_s, *(look.state.time_unix_s for look in looks), result.after.time_unix_s]
    assert times == sorted(times)
    assert times[2] - times[1] >= 1.0
    assert found.index(looks[-1]) < found.index(result)


def test_both_limits_are_measured() -> None:
    found = events(c_device(), RunPlan(cases=(), purpose="limits", threads=2, min_runs=3, min_time_ns=0))
    read, multiply = (event for event in found if isinstance(event, LimitResult))
    assert (read.limit, multiply.limit) == ("read_bandwidth", "fp32_matmul")
    assert len(read.wall_ns) == len(multiply.wall_ns) == 3
    assert (read.threads, multiply.amount) == (2, 2 * 1024**3)
    # Between a telephone of 2010 and a supercomputer: a wrong unit or factor of a thousand does not pass.
    assert 1e8 < read.per_second < 1e13
    assert 1e8 < multiply.per_second < 1e14


# -- what it is started with -------------------------------------------------------------------------------------------------


def start(text: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([c_bundle().entry, *arguments], input=text, capture_output=True, check=False, timeout=60)


def test_the_version_tells_of_agent_and_runtime() -> None:
    done = start(b"", "--version")
    assert done.returncode == 0
    assert done.stdout.decode() == f"{c_bundle().agent} {c_bundle().runtime} CPUExecutionProvider\n"


def test_it_runs_from_any_working_directory(tmp_path: Path) -> None:
    done = subprocess.run([f"./{c_bundle().entry.name}", "--version"], cwd=c_bundle().folder, capture_output=True, check=True)
    elsewhere = subprocess.run([c_bundle().entry, "--version"], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout == elsewhere.stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), b"it is started by archsearch"),
        (("--nonsense",), b"usage: agent"),
        (("--runtime",), b"usage: agent"),
        (("--version", "--runtime", "/no/such/library.so"), b"ONNX Runtime cannot be opened: /no/such/library.so"),
        (("--version", "--runtime", "libm.so.6"), b"libm.so.6 is no ONNX Runtime"),
    ],
)
def test_a_wrong_start_says_why(arguments: tuple[str, ...], problem: bytes) -> None:
    done = start(b"", *arguments)
    assert done.returncode == 1
    assert problem in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert done.stdout == b""


GOOD = json.loads(
    encode_plan(RunPlan(cases=(Case(case_id="a", model=Path("/m.onnx"), feeds=(Feed(name="x", dtype="float32", shape=(1,)),)),)))
)


def changed(**fields: object) -> str:
    return json.dumps(GOOD | fields)


def with_feed(**fields: object) -> str:
    case = GOOD["cases"][0]
    return changed(cases=[case | {"feeds": [case["feeds"][0] | fields]}])


@pytest.mark.parametrize(
    ("plan", "problem"),
    [
        ("{", "expected a string at byte 1"),
        ("[1, 2", "expected ',' or ']' at byte 5"),
        ('{"cases": [}', "expected a value at byte 11"),
        ('{"a" 1}', "expected ':' at byte 5"),
        ('{"a": 01}', "expected ',' or '}' at byte 7"),
        ('{"a": 1.}', "expected a digit"),
        ('{"a": 1e}', "expected a digit"),
        ('{"a": -}', "expected a value"),
        ('{"a": tru}', "expected a value"),
        ('{"a": 1} x', "something behind the value at byte 9"),
        ('{"a": "b}', "a string without end"),
        ('{"a": "\\x"}', "unknown escape"),
        ('{"a": "\\u12g4"}', "four hexadecimal digits"),
        ('{"a": "\\ud800"}', "half of a surrogate pair"),
        ('{"a": "\\u0000"}', "a NUL in a string"),
        ('{"a": "\t"}', "a control character"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "the plan: expected an object"),
        ("{}", "cases is missing"),
        (changed(nonsense=1), "the plan: unknown key nonsense"),
        (changed()[:-1] + ', "seed": 1}', "two values for seed"),
        (changed(threads=0), "threads must be at least 1, not 0"),
        (changed(threads=1.5), "threads: expected a whole number"),
        (changed(threads="2"), "threads: expected a whole number"),
        (changed(threads=2**63), "threads: expected a whole number"),
        (changed(rounds=-1), "rounds must be at least 1, not -1"),
        (changed(purpose="fun"), "purpose: unknown: fun"),
        (changed(cores=[-1]), "cores must be at least 0"),
        (changed(done=[["a"]]), "done: expected pairs"),
        (changed(allow_spinning=1), "allow_spinning: expected true or false"),
        (changed(cases={}), "cases: expected an array"),
        (changed(cases=[]), "a plan without cases"),
        (changed(cases=GOOD["cases"] * 2), "share the id a"),
        (changed(cases=GOOD["cases"], purpose="limits"), "limits takes no cases"),
        (changed(cases=[{"case_id": "a"}]), "cases: model is missing"),
        (with_feed(shape=[-1]), "shape must be at least 0"),
        (with_feed(shape=[2**70]), "shape: expected a whole number"),
        (with_feed(fill="noise"), "fill: unknown: noise"),
        (with_feed(scale="1"), "scale: expected a number"),
    ],
)
def test_a_plan_that_is_none_is_an_error_in_one_line(plan: str, problem: str) -> None:
    done = start(plan.encode() + b"\n")
    said = done.stderr.decode()
    assert done.returncode == 1
    assert said.startswith("agent: the plan on stdin is not understood: ")
    assert problem in said
    assert said.count("\n") == 1
    assert done.stdout == b""


def test_bytes_that_are_no_text_are_an_error() -> None:
    for text in (b'{"a": "\xff"}', b'{"a": "\xc0\x80"}', b'{"a": "\xed\xa0\x80"}', b'{"a": "\xf5\x80\x80\x80"}', b'{"a": "\xe2\x82"}'):
        assert b"no UTF-8" in start(text + b"\n").stderr


def test_what_json_allows_is_understood() -> None:
    model = r'"\/no\/such\u00e9\ud83d\ude00"'
    text = json.dumps(GOOD).replace('"/m.onnx"', model).replace(", ", " ,\r\n\t").replace("\n", " ")
    done = start(text.encode() + b"\n")
    assert done.returncode == 3, "it has begun, and has left with its host, which closed stdin"
    assert not done.stderr


def test_an_impossible_size_fails_its_case_alone(tmp_path: Path) -> None:
    good = models.plain_case(models.plain(tmp_path), "good")
    vast = Case(case_id="vast", model=good.model, feeds=(Feed(name="x", dtype="float32", shape=(2**40, 2**40)),))
    found = events(c_device(), RunPlan(cases=(vast, good), rounds=1, **SHORT))
    assert {name: event.reason for name, event in failures(found).items()} == {"vast": "out_of_memory"}


def test_cores_that_are_not_there_are_refused(tmp_path: Path) -> None:
    plan = RunPlan(cases=(models.plain_case(models.plain(tmp_path)),), cores=(0, 4095))
    with pytest.raises(AgentError, match=r"cannot pin to the cores 0, 4095: this machine offers \d"):
        list(c_device().run(plan))


def test_it_measures_with_one_thread_and_waits_with_another(tmp_path: Path) -> None:
    run = c_device().run(RunPlan(cases=(models.plain_case(models.plain(tmp_path)),), rounds=1000, max_wait_s=0.0))
    while not isinstance(next(run), RoundResult):
        pass
    (agent,) = agents()
    threads, connections = agent.num_threads(), agent.net_connections()
    files = [file.path for file in agent.open_files() if file.path.endswith(".db")]
    run.close()  # type: ignore[attr-defined]
    assert (threads, connections, files) == (2, [], []), "the runtime's telemetry is at work"


PROGRAM = Program(name=ENTRY, files=agent_files(), options=LIBRARIES)


# -- the compiler's and the sanitizers' opinion --------------------------------------------------------------------------------


@pytest.mark.parametrize("compiler", ["gcc", "clang", "aarch64-linux-gnu-gcc"])
def test_there_is_nothing_to_warn_of(compiler: str, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    compile_program((compiler,), PROGRAM, tmp_path, flags=(*FLAGS, "-Werror", "-Wshadow"))


def test_the_sanitizers_find_nothing(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here")
    flags = ("-std=c11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
    compile_program(("gcc",), PROGRAM, tmp_path, flags=flags)
    (tmp_path / LIBRARY).symlink_to(installed_library())
    device = LocalDevice((str(tmp_path / "agent"),))
    recurrent = models.recurrent(tmp_path)
    cases = (
        models.recurrent_case(recurrent, "swapped", shared=False),
        models.recurrent_case(recurrent, "in place", shared=True),
        models.growing_case(models.growing(tmp_path)),
        models.attention_case(models.attention(tmp_path)),
        Case(case_id="missing", model=tmp_path / "missing.onnx", feeds=()),
        Case(case_id="shape", model=recurrent, feeds=(Feed(name="x", dtype="float32", shape=(2, 3)),)),
    )
    plans = [RunPlan(cases=cases, purpose="outputs", min_runs=3), RunPlan(cases=cases, rounds=2, threads=2, **SHORT)]
    plans += [RunPlan(cases=cases[:1], purpose="memory"), RunPlan(cases=(), purpose="limits", min_runs=1, min_time_ns=0)]
    for plan in plans:
        found = events(device, plan)
        assert {name: event.reason for name, event in failures(found).items() if event.reason == "crashed"} == {}
        assert sum(isinstance(event, Started) for event in found) == 1


# -- another machine's files -----------------------------------------------------------------------------------------------------


def test_both_agents_read_a_phones_files_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if shutil.which("gcc") is None or (os.cpu_count() or 1) < 2 or len(cores) < 2:
        pytest.skip("needs gcc and two cores")
    (tmp_path / "bin").mkdir()
    root = tmp_path / "sys"
    tree = {
        "class/thermal/thermal_zone0": {"type": "battery", "temp": "61000"},
        "class/thermal/thermal_zone1": {"type": "cpu-0-0-usr", "temp": "48500"},
        "class/thermal/thermal_zone2": {"type": "BIG", "temp": "51"},
        "class/thermal/thermal_zone3": {"type": "gpuss-0", "temp": "70000"},
        "class/thermal/thermal_zone4": {"type": "cpu-broken", "temp": "-40000"},
        "class/thermal/cooling_device0": {"type": "thermal-cpufreq-0", "cur_state": "0"},
        "class/thermal/cooling_device1": {"type": "panel0-backlight", "cur_state": "7"},
        "class/thermal/cooling_device2": {"type": "thermal-cpufreq-4", "cur_state": "2"},
        "class/power_supply/battery": {"type": "Battery", "status": "Discharging"},
        "class/power_supply/mouse": {"type": "Battery", "scope": "Device", "status": "Charging"},
        "kernel/mm/transparent_hugepage": {"enabled": "always [madvise] never"},
    }
    for core in range(os.cpu_count() or 1):
        big = core == cores[0]  # were it not for its speed, the last core would be taken
        clocks = {"scaling_cur_freq": "1500000", "scaling_max_freq": "2841600" if big else "1804800", "cpuinfo_max_freq": "3000000"}
        tree[f"devices/system/cpu/cpu{core}/cpufreq"] = clocks | {"scaling_governor": "schedutil" if big else "performance"}
        tree[f"devices/system/cpu/cpu{core}"] = {"cpu_capacity": "1024" if big else "325"}
        tree[f"devices/system/cpu/cpu{core}/topology"] = {"thread_siblings_list": str(core)}
    for folder, files in tree.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (root / folder / name).write_text(text + "\n")
    compile_program(("gcc",), replace(PROGRAM, options=(f'-DSYS="{root}"', *LIBRARIES)), tmp_path / "bin", flags=(*FLAGS, "-Werror"))
    (tmp_path / "bin" / LIBRARY).symlink_to(installed_library())
    plan = RunPlan(cases=(models.plain_case(models.plain(tmp_path)),), rounds=1, **(SHORT | {"max_wait_s": 0.3}), max_temperature_c=45.0)
    found = events(LocalDevice((str(tmp_path / "bin" / ENTRY),)), plan)
    (conditions,) = (event.conditions for event in found if isinstance(event, Started))
    (state,) = (event.before for event in found if isinstance(event, RoundResult))

    monkeypatch.setattr(health, "CPU_DIR", root / "devices/system/cpu")
    monkeypatch.setattr(health, "THERMAL_DIR", root / "class/thermal")
    monkeypatch.setattr(health, "HUGE_PAGES", root / "kernel/mm/transparent_hugepage/enabled")
    monkeypatch.setattr(psutil, "sensors_temperatures", dict, raising=False)
    assert (state.temperature_c, state.throttled, state.on_battery) == (51.0, True, True)
    assert (state.temperature_c, state.throttled) == (health.temperature(), health.throttled())
    assert state.clock_limit_mhz == health.clock_limits()
    assert state.clock_mhz == (1500.0,) * (os.cpu_count() or 1)
    assert conditions.cores == health.fastest_cores(1) == (cores[0],)
    assert conditions.governor == health.governor() == "performance+schedutil"
    assert conditions.huge_pages == health.huge_pages() == "madvise"
    assert state.waited_s == pytest.approx(0.3), "it is hotter than the plan allows"
