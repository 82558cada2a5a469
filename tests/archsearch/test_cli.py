"""Names, options and documents of the command line: others script against them."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import ENVIRONMENT, Outcome, command, run_command
from rich.console import Console

from archsearch import __version__
from archsearch.cli import main
from archsearch.cli.tables import count, interval, milliseconds
from archsearch.spec import ArchSpec

EXAMPLES = Path(__file__).parents[2] / "examples"
LFM2 = EXAMPLES / "lfm2-350m.toml"
COMMANDS = {
    "devices": set[str](),
    "spec": {"--to"},
    "plan": {"--tokens", "--budget-flops", "--inference-tokens", "--law", "--mfu", "--accelerator", "--t2", "--run"},
    "profile": {"--run", "--device"},
    "predict": {"--run", "--device"},
    "bench": {"--run", "--device"},
    "search": {"--run", "--device", "--budget", "--trials", "--seed", "--storage"},
    "train": {"--data", "--out", "--tokens", "--resume"},
    "export": {"--to", "--out"},
    "import": {"--out", "--tokenizer", "--name"},
    "report": {"--run", "--out"},
    "run": {"--run", "--device", "--budget"},
    "merge": set[str](),
    "calibrate": {"--run", "--device", "--layouts", "--seed", "--again"},
    "compare": {"--across", "--device-a", "--device-b"},
    "doctor": {"--device", "--threads"},
    "validate": {"--run", "--layouts", "--seeds", "--task", "--storage"},
    "confirm": {"--run", "--top", "--controls", "--seeds", "--storage"},
    "worker": {"--workers", "--idle", "--heartbeat"},
    "agent build": {"--abi", "--ndk", "--ort-aar"},
}
"""The options that docs/architecture.md and scripts rely on; every command has --json and --help besides."""

Call = Callable[..., Outcome]


def test_the_commands_are_these(call: Call) -> None:
    ended = call("--help")
    assert ended.status == 0
    listed = re.findall(r"^│ (\w+) ", ended.out, flags=re.MULTILINE)
    assert set(listed) == {name.split()[0] for name in COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_the_options_and_shows_an_example(name: str, call: Call) -> None:
    ended = call(*name.split(), "--help")
    assert ended.status == 0
    assert ended.err == ""
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", ended.out))
    assert options >= COMMANDS[name] | {"--json", "--help"}
    assert re.search(rf"Examples?: archsearch {name}", ended.out)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_parse(name: str, call: Call) -> None:
    """An example that names an option its command does not have would be told so as wrong usage."""
    listed, _, examples = call(*name.split(), "--help").out.partition("Example")
    words = examples.partition("archsearch ")[2].split("\n\n")[0].split()
    assert words[: len(name.split())] == name.split()
    used = {word for word in words if word.startswith("--")}
    assert used <= set(re.findall(r"--[a-z][a-z0-9-]*", listed))


def test_version_and_no_command(call: Call) -> None:
    assert call("--version").out == f"archsearch {__version__}\n"
    assert call().status == 2
    assert call("spec", LFM2, "--jsn").status == 2


# -- devices and spec: in full ------------------------------------------------------------------------------------------------


def test_devices(call: Call) -> None:
    ended = call("devices", "--json")
    assert (ended.status, ended.err) == (0, "")
    (local, *_) = ended.document["devices"]
    assert local["device_id"] == "local"
    assert local["cores"] >= 1
    assert local["available"] is True
    assert local["runtime"].startswith("onnxruntime")
    assert "local" in call("devices").out


def test_spec(call: Call) -> None:
    ended = call("spec", LFM2, "--json")
    assert (ended.status, ended.err) == (0, "")
    document = ended.document
    assert document["parameters"] == 354_483_968 == sum(document["parts"].values())
    assert document["embedding_share"] == pytest.approx(65536 * 1024 / 354_483_968)
    assert ArchSpec.from_dict(document["spec"]) == ArchSpec.read(LFM2)
    people = call("spec", LFM2)
    assert people.status == 0
    assert "354,483,968" in people.out
    assert "18.9 %" in people.out


def test_spec_converts(call: Call, tmp_path: Path) -> None:
    spec = ArchSpec.read(LFM2)
    toml = call("spec", LFM2, "--to", "toml").out
    assert ArchSpec.from_dict(tomllib.loads(toml)) == spec
    as_json = tmp_path / "spec.json"
    as_json.write_text(call("spec", LFM2, "--to", "json").out)
    assert ArchSpec.read(as_json) == spec
    assert call("spec", as_json, "--to", "toml").out == toml, "there and back"
    config = json.loads(call("spec", LFM2, "--to", "hf").out)
    assert config["model_type"] == "lfm2"
    assert [i for i, kind in enumerate(config["layer_types"]) if kind == "full_attention"] == [2, 5, 8, 10, 12, 14]


def test_spec_that_hugging_face_has_no_class_for_gets_ours(call: Call, tmp_path: Path, tiny_spec: ArchSpec) -> None:
    path = tmp_path / "tiny.toml"
    tiny_spec.write(path)
    config = json.loads(call("spec", path, "--to", "hf").out)
    assert config["architectures"] == ["ArchsearchForCausalLM"]
    assert config["layers"] == tiny_spec.to_dict()["layers"]


# -- results on stdout, everything else on stderr ------------------------------------------------------------------------------


def test_a_real_process() -> None:
    ended = run_command("spec", LFM2, "--json")
    assert (ended.status, ended.err) == (0, "")
    assert ended.document["name"] == "lfm2-350m"
    assert run_command("spec", "nothing.toml").status == 2
    assert run_command("report", "--run", "nowhere", "--out", "x.html").error.startswith("error: nowhere: holds no run")


def test_debug_shows_where_it_happened(call: Call) -> None:
    ended = call("--debug", "spec", "nothing.toml")
    assert ended.status == 2
    assert "Traceback" in ended.err
    assert ended.err.splitlines()[-1] == "error: nothing.toml: no such file"
    assert "Traceback" not in call("spec", "nothing.toml").err


def test_a_reader_who_has_seen_enough(tmp_path: Path) -> None:
    """`archsearch ... | head -1` ends without a complaint."""
    script = f"{' '.join(command('spec', str(LFM2), '--to', 'toml'))} | head -1"
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert ended.stdout == 'name = "lfm2-350m"\n'
    assert ended.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["devices"],
        ["spec", str(LFM2)],
        ["spec", str(LFM2), "--to", "hf"],
        ["predict", str(LFM2), "--run", "run"],
    ],
    ids=lambda arguments: " ".join(Path(word).name for word in arguments),
)
def test_torch_is_not_imported_by_what_must_answer_at_once(arguments: list[str], tmp_path: Path) -> None:
    measurements_of_all_blocks(tmp_path / "run")
    code = f"""
import sys
from archsearch.cli import main
try:
    main({arguments!r})
except SystemExit as end:
    assert end.code == 0, end.code
heavy = {{"torch", "optuna", "transformers"}} & set(sys.modules)
assert not heavy, heavy
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path, check=False)
    assert ended.returncode == 0, ended.stderr


def test_nothing_is_coloured_where_nobody_looks() -> None:
    environment = {key: value for key, value in ENVIRONMENT.items() if key != "NO_COLOR"}
    ended = subprocess.run(command("spec", str(LFM2)), capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0
    assert "\x1b" not in ended.stdout + ended.stderr


def measurements_of_all_blocks(run: Path) -> None:
    """A run that knows enough of LFM2-350M to predict it: one invented round of everything."""
    from archsearch.cases import block_subject, head_subject, measurement_key
    from archsearch.store import Store
    from archsearch.workload import Workload
    from devices.base import DeviceInfo
    from devices.plan import MachineState, RoundResult

    spec, state = ArchSpec.read(LFM2), MachineState(time_unix_s=0.0)
    info = DeviceInfo(device_id="local", name="m", fingerprint="f" * 16, system="s", cpu="c", cores=2, memory_bytes=2**30, runtime="r")
    workload = Workload(phase="decode", tokens=1, context=64)
    with Store(run / "measurements.db") as store:
        store.add_device(info)
        subjects = [block_subject(block, spec.dims, 2) for block in spec.block_counts()]
        for subject in (*subjects, head_subject(spec.dims, spec.vocab_size, spec.tie_embeddings)):
            key = measurement_key(subject.subject_id, workload, fingerprint=info.fingerprint, runtime="r", purpose="latency")
            store.plan(
                key,
                fingerprint=info.fingerprint,
                subject_id=subject.subject_id,
                subject=subject.to_dict() | {"label": subject.label},
                copies=subject.copies,
                purpose="latency",
                workload=workload,
                runtime="r",
                planned=1,
            )
            result = RoundResult(case_id=key, round=0, wall_ns=(1_000_000,) * 3, cpu_ns=None, before=state, after=state)
            store.add_round(key, "s", 0, result)


# -- figures for people ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.123456, "0.123"), (1.0, "1"), (12.345, "12.3"), (999.4, "999"), (1234.5, "1,234"), (98765.4, "98,765")],
)
def test_milliseconds(value: float | None, shown: str) -> None:
    assert milliseconds(value) == shown


def test_counts_and_intervals() -> None:
    assert [count(n) for n in (0, 999, 12_345, 1_000_000, 354_483_968, 1_170_000_000)] == ["0", "999", "12,345", "1M", "354M", "1.17B"]
    assert interval(2.0, 1.5, 2.5) == "-25/+25 %"
    assert interval(2.0, 2.0, 2.0) == "", "one round tells of no spread"
    assert interval(None, None, None) == ""


def test_a_bar_without_a_terminal_prints_a_line_for_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    from archsearch.cli.progress import Bar

    with Bar("profile") as bar:
        for phase, total in (("export", 5), ("latency", 100)):
            for done in range(1, total + 1):
                bar.update(done, total, note=phase, seconds_left=total - done)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert sum("export" in line for line in lines) == 5
    assert 10 <= sum("latency" in line for line in lines) <= 12, "the second phase starts anew"
    assert "100/100 latency" in lines[-1]


@pytest.mark.parametrize("name", ["adb:R58N30", "adb:192.168.100.77:5555", "adb:adb-R58N30ABCDE-xYzAbC (2)._adb-tls-connect._tcp"])
def test_bars_of_several_devices_fit_a_line_each(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from archsearch.cli import progress

    written = io.StringIO()
    monkeypatch.setattr(progress, "stderr", Console(file=written, force_terminal=True, width=80))
    with progress.side_by_side("profile", ["local", name]) as bars:
        for bar in bars.values():
            bar.update(123, 456, note="latency gqa2/1024 decode@65536 int4 in some more words", seconds_left=5000)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue()).replace("\r", "\n").splitlines()
    last = [line for line in shown if "123/456" in line][-2:]
    cut = name[:23] + "…" if len(name) > 24 else name
    assert [line.partition(" ━")[0].strip() for line in last] == ["local", cut]
    assert all("1:23:20 left latency gqa2" in " ".join(line.split()) for line in last)
    assert max(map(len, shown)) <= 80


def test_a_title_is_not_torn_by_a_narrow_table(capsys: pytest.CaptureFixture[str]) -> None:
    from archsearch.cli import tables

    title = "adb:127.0.0.1:7611: ms a block at hidden size 256, int4, 1 thread(s)"
    console = Console(width=80, highlight=False)
    console.print(tables.table(["block", "decode"], [["conv3/512", "0.1"]], title=title))
    assert title in [line.strip() for line in capsys.readouterr().out.splitlines()]


def test_the_terminal_width_is_not_assumed() -> None:
    narrow = subprocess.run(
        command("devices"), capture_output=True, text=True, env={**os.environ, **ENVIRONMENT, "COLUMNS": "40"}, check=False
    )
    assert narrow.returncode == 0
    assert max(map(len, narrow.stdout.splitlines())) <= 40


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "s.toml"], "the same command with --resume goes on"),
        (["train", "s.toml", "--resume"], "interrupted; the same command goes on"),
        (["profile", "s.toml"], "interrupted; the same command goes on"),
    ],
)
def test_an_interrupt_names_the_command_that_goes_on(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("archsearch.cli.app.app", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1
    assert says in capsys.readouterr().err
