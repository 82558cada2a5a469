"""Whatever is wrong: one line that names the file, the field and the way out; 2 for wrong usage, 1 for a failure; nothing lost."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import ENVIRONMENT, Outcome

from archsearch.checkpoint import save_checkpoint
from archsearch.data import train_tokenizer
from archsearch.model import LanguageModel
from archsearch.spec import ArchSpec
from archsearch.store import Store
from archsearch.workload import Workload
from devices.base import DeviceInfo
from devices.plan import Failed

SPACE = """
[model]
hidden_size = 64
vocab_size = 300
layers = 2

[[operators]]
kind = "short_conv"

[[operators]]
kind = "gqa"
heads = 4
kv_heads = 2
head_dim = 16

[ffn]
intermediate_size = 64

[workloads]
prefill = [16]
decode = [32]

[measure]
passes = 1
max_passes = 1
rounds = 2
min_time_ms = 5

[budgets]
"decode_ms@32" = 5.0
"""

Call = Callable[..., Outcome]


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "space.toml"
    path.write_text(SPACE)
    return path


@pytest.fixture
def spec(tmp_path: Path, tiny_spec: ArchSpec) -> Path:
    path = tmp_path / "spec.toml"
    tiny_spec.write(path)
    return path


# -- spaces ----------------------------------------------------------------------------------------------------------------

WRONG_SPACES = {
    "unknown table": ("[ffn]", "[fnn]", "fnn", "unknown key"),
    "unknown key": ("layers = 2", "layers = 2\ndepth = 3", "model.depth", "unknown key"),
    "unknown key of an operator": ("head_dim = 16", "head_dim = 16\nbias = true", "operators.1.bias", "unknown key"),
    "unknown operator": ('kind = "short_conv"', 'kind = "mamba"', "operators.0.kind", "known: short_conv, swa, gla, gqa"),
    "no kind": ('kind = "short_conv"', "", "operators.0.kind", "missing"),
    "wrong type": ("vocab_size = 300", 'vocab_size = "300"', "model.vocab_size", "integer"),
    "wrong type of a choice": ("hidden_size = 64", 'hidden_size = "64"', "model.hidden_size.0", "integer"),
    "wrong type in a list": ("decode = [32]", "decode = [32, 1.5]", "workloads.decode.1", "integer"),
    "heads that do not divide": ("kv_heads = 2", "kv_heads = [2, 3]", "operators.1.kv_heads", "4 heads do not divide among 3"),
    "window of zero": ('kind = "gqa"', 'kind = "swa"\nwindow = 0', "operators.1.window", "at least 1"),
    "no layers": ("layers = 2", "layers = 0", "model.layers.0", "greater than or equal to 1"),
    "an empty choice": ("layers = 2", "layers = []", "model.layers", "at least 1 item"),
    "the same choice twice": ("decode = [32]", "decode = [32, 32]", "workloads.decode", "given twice"),
    "nothing to measure": ("prefill = [16]\ndecode = [32]", "prefill = []\ndecode = []", "workloads", "nothing would be measured"),
    "unknown precision": ("passes = 1", 'precision = "int3"', "measure.precision.0", "'fp32', 'int8', 'int4' or 'int4g128'"),
    "endless measuring": ("min_time_ms = 5", "min_time_ms = inf", "measure.min_time_ms", "finite"),
    "unknown metric": ('"decode_ms@32" = 5.0', '"decode@32" = 5.0', "budgets", "did you mean decode_ms?"),
    "metric without context": ('"decode_ms@32" = 5.0', '"decode_ms" = 5.0', "budgets", "needs a number of tokens behind @"),
    "negative budget": ("5.0", "-5.0", "budgets", "must be a positive number"),
    "budget of text": ("5.0", '"fast"', "budgets", "budget 'decode_ms@32': 'fast' is no number"),
    "no operators": ("[[operators]]", "[[operator]]", "operator", "unknown key"),
    "negative seed": ("[budgets]", "[search]\nseed = -1\n[budgets]", "search.seed", "greater than or equal to 0"),
    "minutes and tokens": ("[budgets]", "[train]\nminutes = 1\ntokens = 5\n[budgets]", "train", "exclude each other"),
    "broken TOML": ("[model]", "[model", None, "not valid TOML"),
}


@pytest.mark.parametrize("command", ["profile", "search", "run"])
@pytest.mark.parametrize("name", WRONG_SPACES)
def test_wrong_spaces(name: str, command: str, space: Path, tmp_path: Path, call: Call) -> None:
    old, new, field, says = WRONG_SPACES[name]
    text = SPACE.replace(old, new, -1 if name == "no operators" else 1)
    assert text != SPACE
    space.write_text(text)
    run = tmp_path / "run"
    ended = call(command, space, "--run", run)
    assert ended.status == 2
    assert ended.out == ""
    assert ended.error.startswith(f"error: {space}: {field}: " if field else f"error: {space}: ")
    assert says in ended.error
    assert not run.exists(), "nothing half made is left behind"


@pytest.mark.parametrize("command", ["profile", "search", "run"])
def test_errors_as_json_are_one_document(command: str, space: Path, tmp_path: Path, call: Call) -> None:
    space.write_text(SPACE.replace("layers = 2", "layers = 2\ndepth = 3"))
    ended = call(command, space, "--run", tmp_path / "run", "--json")
    assert ended.status == 2
    assert ended.document["error"]["path"] == str(space)
    assert ended.document["error"]["field"] == "model.depth"
    assert ended.document["error"]["message"] in ended.error


@pytest.mark.parametrize("command", ["profile", "search", "run"])
def test_a_run_directory_that_cannot_be_one(command: str, space: Path, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    ended = call(command, space, "--run", file)
    assert ended.status == 2
    assert ended.error == f"error: {file}: is a file, not a directory; choose another --run"
    assert file.read_text() == "precious"


@pytest.mark.parametrize("command", ["profile", "search", "run"])
def test_the_run_of_another_space(command: str, space: Path, tmp_path: Path, call: Call) -> None:
    run = tmp_path / "run"
    run.mkdir()
    other = SPACE.replace("layers = 2", "layers = 3")
    (run / "space.toml").write_text(other)
    ended = call(command, space, "--run", run)
    assert ended.status == 2
    assert f"{run}: holds the run of another space" in ended.error
    assert "choose another --run" in ended.error
    assert (run / "space.toml").read_text() == other


def test_missing_text_is_told_before_anything_is_measured(space: Path, tmp_path: Path, call: Call) -> None:
    space.write_text(SPACE + '\n[train]\ndata = ["nowhere.txt"]\n')
    ended = call("run", space, "--run", tmp_path / "run")
    assert ended.status == 2
    assert ended.error.startswith(f"error: {space}: train.data: nowhere.txt: no such file or folder")
    assert not (tmp_path / "run").exists()


# -- budgets, devices, options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["search", "run"])
@pytest.mark.parametrize(
    "budget", ["fast", "decode_ms@4096", "decode_ms@4096<=", "decode_ms@4096<20", "decode_ms<=20", "speed@3<=1", "parameters<=many"]
)
def test_budgets_that_do_not_parse(budget: str, command: str, space: Path, tmp_path: Path, call: Call) -> None:
    run = tmp_path / "run"
    ended = call(command, space, "--run", run, "--budget", budget)
    assert ended.status == 2
    assert f"budget {budget.partition('<=')[0]}"[:12] in ended.error.replace("'", "")
    assert "decode_ms@" in ended.error, "says what does parse"
    assert not run.exists()


@pytest.mark.parametrize("command", ["profile", "run"])
@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("moon", "there are: local"),
        ("adb:", "there are: local"),
        ("adb:nobody", "is not attached: switch USB debugging on"),
        ("cuda:9", "there are: local"),
    ],
)
def test_unknown_devices(device: str, says: str, command: str, space: Path, tmp_path: Path, call: Call) -> None:
    run = tmp_path / "run"
    ended = call(command, space, "--run", run, "--device", device)
    assert ended.status == 2
    assert device in ended.error
    assert says in ended.error
    assert not run.exists()


def test_bench_on_an_unknown_device(spec: Path, call: Call) -> None:
    ended = call("bench", spec, "--device", "moon")
    assert ended.status == 2
    assert "'moon' is no device" in ended.error


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["spec"],
        ["spec", "x.toml", "--to", "yaml"],
        ["spec", "x.toml", "--unknown"],
        ["profile", "x.toml"],
        ["search", "x.toml", "--run", "r", "--trials", "none"],
        ["search", "x.toml", "--run", "r", "--trials", "0"],
        ["train", "x.toml"],
        ["export", "c", "--to", "pt", "--out", "o"],
        ["report", "--run", "r"],
        ["merge", "into.db"],
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments: list[str], call: Call) -> None:
    ended = call(*arguments)
    assert ended.status == 2
    assert ended.out == ""
    assert "Traceback" not in ended.err
    assert "Usage: archsearch" in ended.err


# -- files that are missing or broken -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["spec", "nothing.toml"], 2, "nothing.toml: no such file"),
        (["profile", "nothing.toml", "--run", "run"], 2, "nothing.toml: no such file"),
        (["run", "nothing.toml", "--run", "run"], 2, "nothing.toml: no such file"),
        (["predict", "spec.toml", "--run", "run"], 1, "run/measurements.db: no measurements here; `archsearch profile"),
        (["search", "space.toml", "--run", "run"], 1, "run/measurements.db: no measurements here; `archsearch profile"),
        (["bench", "nothing.onnx"], 2, "nothing.onnx: no such file or folder; give a spec"),
        (["bench", "spec.toml", "--run", "run"], 1, "run/measurements.db: no measurements here"),
        (["bench", "spec.toml", "--precision", "int3"], 2, "--precision int3: not one of fp32, int8, int4"),
        (["bench", "empty"], 2, "empty: holds neither a checkpoint nor a model.onnx"),
        (["train", "nothing.toml", "--out", "c"], 2, "nothing.toml: no such file"),
        (["train", "spec.toml", "--out", "c", "--data", "nothing.txt"], 2, "nothing.txt"),
        (["export", "nothing", "--to", "onnx", "--out", "o"], 1, "nothing: no such checkpoint folder"),
        (["export", "empty", "--to", "hf", "--out", "o"], 1, "empty: holds no checkpoint"),
        (["report", "--run", "nothing", "--out", "page.html"], 2, "nothing: holds no run; `archsearch profile"),
        (["merge", "all.db", "nothing.db"], 1, "nothing.db: no measurements here"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_missing_files(
    arguments: list[str], status: int, says: str, space: Path, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    ended = call(*arguments)
    assert ended.status == status, ended.err
    assert says in ended.error
    assert not (tmp_path / "page.html").exists()
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "c").exists()


def test_a_file_that_is_no_model(tmp_path: Path, call: Call) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(random.Random(0).randbytes(4096))
    ended = call("bench", path)
    assert ended.status == 1
    assert str(path) in ended.error


# -- databases ----------------------------------------------------------------------------------------------------------------

INFO = DeviceInfo(
    device_id="local", name="m", fingerprint="f" * 16, system="s", cpu="c", cores=2, memory_bytes=2**30, runtime="onnxruntime 1"
)


def make_database(path: Path, count: int = 400, *, device_id: str = "local") -> None:
    """Several pages of planned measurements of another machine, all failed."""
    with Store(path) as store:
        store.add_device(replace(INFO, device_id=device_id))
        for i in range(count):
            store.plan(
                f"{i:032}",
                fingerprint=INFO.fingerprint,
                subject_id=f"{i:016}",
                subject={"kind": "block", "label": "conv3/64"},
                copies=1,
                purpose="latency",
                workload=Workload(phase="decode", tokens=1, context=32),
                runtime="onnxruntime 1",
                planned=1,
            )
            store.add_failure(f"{i:032}", Failed(case_id=f"{i:032}", reason="crash", detail="x" * 100))


def damaged(path: Path, how: str) -> None:
    if how == "random bytes":
        path.write_bytes(random.Random(0).randbytes(20_000))
    elif how == "another database":
        import sqlite3

        db = sqlite3.connect(path)
        db.execute("CREATE TABLE recipes (name TEXT)")
        db.close()
    else:
        make_database(path)
        content = path.read_bytes()
        assert len(content) > 100_000
        path.write_bytes(content[: len(content) // 2] if how == "truncated" else content[:8192] + bytes(60_000) + content[68_192:])


@pytest.mark.parametrize("how", ["random bytes", "truncated", "zeroed pages", "another database"])
@pytest.mark.parametrize("command", ["profile", "predict", "bench", "search", "merge from", "merge into"])
def test_corrupt_databases(how: str, command: str, space: Path, spec: Path, tmp_path: Path, call: Call) -> None:
    run = tmp_path / "run"
    run.mkdir()
    path = run / "measurements.db"
    damaged(path, how)
    content = path.read_bytes()
    other = tmp_path / "other.db"
    make_database(other, 3)
    arguments: dict[str, list[Any]] = {
        "profile": ["profile", space, "--run", run],
        "predict": ["predict", spec, "--run", run],
        "bench": ["bench", spec, "--run", run],
        "search": ["search", space, "--run", run],
        "merge from": ["merge", other, path],
        "merge into": ["merge", path, other],
    }
    ended = call(*arguments[command])
    assert ended.status == 1, ended.err
    assert str(path) in ended.error
    assert any(way in ended.error for way in ("move it away", "choose another"))
    if how in ("random bytes", "another database"):
        assert path.read_bytes() == content, "what may be rescued is left alone"
    if command == "merge from":
        with Store(other) as store:
            assert len(store.rows()) == 3, "nothing of a broken file is taken"


# -- checkpoints --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_spec: ArchSpec) -> Path:
    from safetensors.torch import save_file

    def write(folder: Path) -> None:
        weights = {name: tensor.contiguous() for name, tensor in LanguageModel(tiny_spec).state_dict().items()}
        save_file(weights, folder / "model.safetensors")
        (folder / "tokenizer.json").write_text(train_tokenizer(["some text"], 257).to_json())

    save_checkpoint(tmp_path / "checkpoint", tiny_spec, 3, write)
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("command", ["export", "bench"])
@pytest.mark.parametrize("file", ["model.safetensors", "spec.toml", "checkpoint.json"])
def test_corrupt_checkpoints(file: str, command: str, checkpoint: Path, tmp_path: Path, call: Call) -> None:
    path = checkpoint / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    out = tmp_path / "out"
    arguments = {"export": ["export", checkpoint, "--to", "onnx", "--out", out], "bench": ["bench", checkpoint, "--decode", "8"]}
    ended = call(*arguments[command])
    assert ended.status == 1
    assert str(path) in ended.error
    assert "copy the checkpoint again, or train again" in ended.error
    assert not out.exists()


# -- a full disk --------------------------------------------------------------------------------------------------------------


def run_with_file_limit(limit: int, *arguments: str | Path) -> Outcome:
    """The command, where no file may grow beyond `limit` bytes: writing fails as on a full disk."""
    ended = subprocess.run(
        [sys.executable, "-m", "archsearch", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)),
    )
    return Outcome(ended.returncode, ended.stdout, ended.stderr)


@pytest.mark.parametrize("limit", [100, 20_000])
def test_a_full_disk_while_profiling(limit: int, space: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = run_with_file_limit(limit, "profile", space, "--run", run)
    assert ended.status == 1, ended.err
    assert str(run) in ended.error
    assert "space" in ended.error
    assert not [path for path in run.rglob("model.onnx") if not path.parent.name.isalnum()], "no half-written model is taken for one"


def test_what_was_measured_before_the_disk_was_full_is_kept(space: Path, tmp_path: Path) -> None:
    from archsearch.run import load_table

    run = tmp_path / "run"
    database = run / "measurements.db"
    run.mkdir()
    make_database(database, device_id="adb:old")
    space.write_text(SPACE.replace("rounds = 2", "rounds = 40"))
    ended = run_with_file_limit(database.stat().st_size + 200_000, "profile", space, "--run", run)
    assert ended.status == 1, ended.err
    assert "the disk is full" in ended.error
    assert "free some space and run the same command" in ended.error
    with Store(database) as store:
        kept = sum(len(row.rounds) + len(row.memory) for row in store.rows())
        assert len(store.rows()) > 400
    assert kept > 0
    assert len(load_table(run, "adb:old").failed) == 400


def test_a_report_on_a_full_disk_leaves_the_old_one(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "spec.json"
    out.write_text("old")
    code = f"from pathlib import Path; from archsearch.files import write_atomic; write_atomic(Path({str(out)!r}), 'x' * 5000)"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY)),
    )
    assert ended.returncode == 1
    assert "free some space or choose another place" in ended.stderr
    assert out.read_text() == "old"
    assert json.dumps(sorted(entry.name for entry in tmp_path.iterdir())) == json.dumps(["spec.json", "spec.toml"])
