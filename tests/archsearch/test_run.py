"""The whole way through, once, on a space that takes seconds; then every command on the run that it left."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from command_line import ENVIRONMENT, Outcome, command, run_command

from archsearch.checkpoint import Checkpoint
from archsearch.search.claims import CUT_OFF_TWICE
from archsearch.spec import ArchSpec
from tests.archsearch.spaces import MEASURED

pytestmark = pytest.mark.slow

SPACE = """
[model]
name = "tiny"
hidden_size = 64
vocab_size = 300
layers = 2

[[operators]]
kind = "short_conv"

[[operators]]
kind = "gqa"
heads = 2
kv_heads = 1
head_dim = 32

[ffn]
intermediate_size = 64

[workloads]
prefill = [16]
decode = [32, 64]

[measure]
passes = 1
max_passes = 1
rounds = 2
min_time_ms = 10

[search]
trials = 4
recall_steps = 5
text_steps = 3

[train]
tokens = 12000
data = ["TEXTS"]
"""
LAYOUTS = 4
"""Two operators, one width, two layers."""
DOCUMENT = {"name", "spec_id", "device", "parameters", "workloads", "memory"}
WORKLOAD = {
    "phase",
    "tokens",
    "context",
    "batch",
    "precision",
    "threads",
    "predicted_ms",
    "low_ms",
    "high_ms",
    "extrapolated",
    "measured_ms",
    "measured_p95_ms",
}


@pytest.fixture(scope="module")
def space(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("space") / "space.toml"
    path.write_text(SPACE.replace("TEXTS", str(texts)))
    return path


@pytest.fixture(scope="module")
def finished(space: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A finished run and how the command ended. Tests that write work on a copy (`copy`)."""
    run = tmp_path_factory.mktemp("runs") / "run"
    return run, run_command("run", space, "--run", run, "--json")


@pytest.fixture
def copy(finished: tuple[Path, Outcome], tmp_path: Path) -> Path:
    """A copy of the finished run, which may be changed."""
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def samples(run: Path) -> dict[tuple[str, int], bytes]:
    """Every round that was measured, with its raw samples."""
    with closing(sqlite3.connect(f"file:{run / 'measurements.db'}?mode=ro", uri=True)) as db:
        return {(key, number): wall for key, number, wall in db.execute("SELECT key, number, wall FROM rounds")}


def test_every_stage_leaves_its_files(finished: tuple[Path, Outcome], space: Path) -> None:
    run, ended = finished
    assert ended.status == 0, ended.err
    document = ended.document
    assert set(document) == {"spec", "search", "bench", "report"}
    assert Path(document["report"]) == run / "report.html"
    assert (run / "space.toml").read_bytes() == space.read_bytes()
    spec = ArchSpec.read(run / "spec.toml")
    assert ArchSpec.from_dict(document["spec"]) == spec
    assert spec.origin["device"] == "local"
    assert spec.origin["evidence"]
    assert set(spec.origin["predicted"]) == {"decode_ms@32", "decode_ms@64", "prefill_ms@16", "memory_mb@32", "memory_mb@64", "parameters"}
    assert Checkpoint.open(run / "checkpoint").spec == spec
    assert (run / "export" / "model.onnx").is_file()
    page = (run / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert spec.spec_id in page or spec.pattern in page


def test_the_search_document(finished: tuple[Path, Outcome]) -> None:
    run, ended = finished
    search = ended.document["search"]
    assert set(search) == {"feasible", "front", "best", "unreachable", "proposed", "given_up"}
    assert search["feasible"] is True
    assert search["unreachable"] == {}
    assert 1 <= len(search["front"]) <= LAYOUTS
    for point in search["front"]:
        assert set(point) == {"spec", "spec_id", "quality", "costs", "evidence", "trained"}
        assert ArchSpec.from_dict(point["spec"]).spec_id == point["spec_id"]
        assert ArchSpec.read(run / "front" / f"{point['spec_id']}.toml").spec_id == point["spec_id"]
    assert search["best"] in search["front"]
    assert ended.document["spec"]["layers"] == search["best"]["spec"]["layers"]


def test_the_trained_model_was_measured_beside_its_prediction(finished: tuple[Path, Outcome]) -> None:
    bench = finished[1].document["bench"]
    assert set(bench) == DOCUMENT
    assert bench["device"] == "local"
    assert bench["spec_id"] == ArchSpec.read(finished[0] / "spec.toml").spec_id
    measured = [(row["phase"], row["tokens"], row["context"]) for row in bench["workloads"]]
    assert measured == [("prefill", 16, 0), ("decode", 1, 32), ("decode", 1, 64)]
    for row in bench["workloads"]:
        assert set(row) == WORKLOAD | {"drift"}
        assert row["low_ms"] <= row["predicted_ms"] <= row["high_ms"]
        assert row["measured_ms"] > 0
        assert row["measured_p95_ms"] > 0
    assert [row["context"] for row in bench["memory"]] == [32, 64]
    assert all(row["predicted_mb"] > 0 and row["measured_mb"] > 0 for row in bench["memory"])


def test_the_same_command_again_does_nothing_again(copy: Path, space: Path) -> None:
    before = samples(copy)
    names = ("quality.jsonl", "limits.json", "checkpoint/checkpoint.json", "checkpoint/metrics.jsonl", "export/model.onnx")
    files = {name: (copy / name).read_bytes() for name in names}
    choice = ArchSpec.read(copy / "spec.toml")
    again = run_command("run", space, "--run", copy, "--json")
    assert again.status == 0, again.err
    assert samples(copy) == before
    assert [name for name in names if (copy / name).read_bytes() != files[name]] == []
    assert ArchSpec.read(copy / "spec.toml") == choice


def test_predict(copy: Path, call: Callable[..., Outcome]) -> None:
    ended = call("predict", copy / "spec.toml", "--run", copy, "--device", "local", "--json")
    assert (ended.status, ended.err) == (0, "")
    document = ended.document
    assert set(document) == DOCUMENT
    for row in document["workloads"]:
        assert set(row) == WORKLOAD
        assert row["low_ms"] <= row["predicted_ms"] <= row["high_ms"]
        assert row["measured_ms"] is None
        assert row["measured_p95_ms"] is None
    assert [set(row) for row in document["memory"]] == [{"context", "predicted_mb", "measured_mb"}] * 2
    assert call("predict", copy / "spec.toml", "--run", copy).status == 0, "the tables for people"


def test_predict_another_depth_and_a_block_that_was_not_measured(copy: Path, tmp_path: Path, call: Callable[..., Outcome]) -> None:
    document = json.loads(ArchSpec.read(copy / "spec.toml").to_json())
    document["layers"] *= 3
    path = tmp_path / "deep.json"
    path.write_text(json.dumps(document))
    assert call("predict", path, "--run", copy, "--json").status == 0
    document["layers"][0]["ffn"]["intermediate_size"] = 96
    path.write_text(json.dumps(document))
    ended = call("predict", path, "--run", copy)
    assert ended.status == 1
    assert "/96 was not measured" in ended.error
    assert "archsearch profile" in ended.error


def test_bench_of_an_onnx_file(copy: Path, call: Callable[..., Outcome]) -> None:
    before = len(samples(copy))
    ended = call("bench", copy / "export" / "model.onnx", "--run", copy, "--decode", "48", "--json")
    assert ended.status == 0, ended.err
    (row,) = ended.document["workloads"]
    assert set(ended.document) == DOCUMENT
    assert (row["phase"], row["tokens"], row["context"]) == ("decode", 1, 48)
    assert row["measured_ms"] > 0
    assert row["predicted_ms"] > 0, "between the measured contexts"
    assert len(samples(copy)) > before, "kept with the run"
    alone = call("bench", copy / "export" / "model.onnx", "--decode", "8", "--json")
    assert alone.status == 0, alone.err
    assert alone.document["workloads"][0]["predicted_ms"] is None
    assert alone.document["memory"][0]["predicted_mb"] is None


def test_search_with_other_budgets_trains_nothing_again(copy: Path, space: Path, call: Callable[..., Outcome]) -> None:
    """What kept the first budgets was trained already: all four layouts."""
    trained = (copy / "quality.jsonl").read_bytes()
    costs = [point["costs"]["parameters"] for point in json.loads((copy / "search.json").read_text())["front"]]
    limit = max(costs)
    ended = call("search", space, "--run", copy, "--budget", f"parameters<={limit}", "--budget", "decode_ms@64<=10000", "--json")
    assert ended.status == 0, ended.err
    assert ended.document["feasible"] is True
    assert all(point["costs"]["parameters"] <= limit for point in ended.document["front"])
    assert (copy / "quality.jsonl").read_bytes() == trained


def test_a_choice_beside_another_checkpoint_goes_elsewhere_and_says_so(copy: Path, space: Path, call: Callable[..., Outcome]) -> None:
    chosen = (copy / "spec.toml").read_bytes()
    (copy / "checkpoint" / "spec.toml").write_text("torn")  # so that it is not the checkpoint of any choice
    ended = call("search", space, "--run", copy, "--resolve")
    assert ended.status == 0, ended.err
    said = " ".join(ended.out.split())
    assert "is left as it is: it belongs to the trained checkpoint" in said
    assert "choice.toml" in said
    assert (copy / "spec.toml").read_bytes() == chosen
    assert (copy / "choice.toml").exists()


def test_confirm_and_the_same_layouts_at_a_larger_width(copy: Path, space: Path, call: Callable[..., Outcome]) -> None:
    arguments = ("confirm", space, "--run", copy, "--top", "2", "--controls", "1", "--longer", "1", "--workers", "1")
    refused = call(*arguments, "--tokens-per-parameter", "20")
    assert refused.status == 2
    assert "give --width 256" in refused.error
    assert "multiple of 64" in call(*arguments, "--width", "100").error
    wide = call(*arguments, "--width", "64", "--tokens-per-parameter", "0.02", "--json")
    assert wide.status == 0, wide.err
    document = wide.document
    (at,) = document["scale"]["widths"]
    assert at["width"] == 64
    assert {row["spec_id"] for row in at["standings"]} == {row["spec_id"] for row in document["standings"]}
    assert all(len(row["text_bits_per_byte"]) == 2 for row in at["standings"])
    assert document["scale"]["holds"] in (True, False, None)
    assert json.loads((copy / "confirmation.json").read_text()) == document
    lines = (copy / "scale.jsonl").read_text()
    shown = call(*arguments, "--width", "64", "--tokens-per-parameter", "0.02")
    assert "width 64: 0.02 tokens a parameter" in shown.out
    assert document["scale"]["why"] in " ".join(shown.out.split())
    assert (copy / "scale.jsonl").read_text() == lines  # nothing was trained again
    assert call("report", "--run", copy, "--out", copy / "r.html").status == 0
    page = (copy / "r.html").read_text()
    assert '<h2 id="confirmed-title">Confirmed by training</h2>' in page
    assert '<option value="1">width 64</option>' in page


def test_what_was_given_up_is_said_everywhere_and_tried_again_when_asked_for(copy: Path, space: Path, call: Callable[..., Outcome]) -> None:
    """A book in which the last layout was cut off twice."""
    with closing(sqlite3.connect(copy / "study.db")) as db, db:
        trial, number = db.execute("SELECT trial_id, number FROM trials WHERE state = 'COMPLETE' ORDER BY number DESC").fetchone()
        db.execute("UPDATE trials SET state = 'FAIL' WHERE trial_id = ?", (trial,))
        reason = (trial, "reason", json.dumps(CUT_OFF_TWICE))
        db.execute("INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, ?, ?)", reason)
    for arguments in ((), ("--resolve",)):
        said = call("search", space, "--run", copy, *arguments)
        assert said.status == 0, said.err
        assert f"trial {number}: its process ended while it was trained, for the second time" in " ".join(said.out.split())
        assert "--retry" in said.out
    assert [lost["trial"] for lost in json.loads((copy / "search.json").read_text())["given_up"]] == [number]
    assert call("report", "--run", copy, "--out", copy / "r.html").status == 0
    page = (copy / "r.html").read_text()
    assert "What could not be measured or trained" in page
    assert f"small trainings, trial {number}" in page
    assert "give one of them" in call("search", space, "--run", copy, "--retry", "--resolve").error
    again = call("search", space, "--run", copy, "--retry", "--json")
    assert again.status == 0, again.err
    assert again.document["given_up"] == []


def test_impossible_budgets_say_what_can_be_reached(copy: Path, space: Path, call: Callable[..., Outcome]) -> None:
    chosen = (copy / "spec.toml").read_bytes()
    ended = call("search", space, "--run", copy, "--budget", "decode_ms@64<=1e-6", "--budget", "parameters<=1e9", "--json")
    assert ended.status == 1
    document = ended.document
    assert (document["feasible"], document["front"], document["best"]) == (False, [], None)
    reached = document["unreachable"]["decode_ms@64"]
    assert reached["limit"] == 1e-6
    assert reached["best_reachable"] > 1e-6
    assert "decode_ms@64<=1e-06 (best reachable " in ended.error
    assert "loosen" in ended.error
    assert (copy / "spec.toml").read_bytes() == chosen, "the choice that was made before is kept"
    plain = call("search", space, "--run", copy, "--budget", "decode_ms@64<=1e-6")
    assert plain.status == 1
    assert "best reachable" in plain.out


def test_best_reachable_is_the_least_of_all_layouts(copy: Path, space: Path, call: Callable[..., Outcome]) -> None:
    from archsearch.run import load_table
    from archsearch.space import Space

    document = call("search", space, "--run", copy, "--budget", "decode_ms@64<=1e-6", "--budget", "memory_mb@64<=1e-3", "--json").document
    parsed, table = Space.read(space), load_table(copy, "local")
    specs = [parsed.spec([first, second]) for first in parsed.blocks for second in parsed.blocks]
    assert len(specs) == LAYOUTS
    for name, entry in document["unreachable"].items():
        assert entry["best_reachable"] == pytest.approx(min(table.costs(spec)[name].value for spec in specs), rel=1e-9), name


def test_report(copy: Path, tmp_path: Path, call: Callable[..., Outcome]) -> None:
    out = tmp_path / "new" / "page.html"
    ended = call("report", "--run", copy, "--out", out, "--json")
    assert ended.status == 0, ended.err
    assert ended.document == {"report": str(out), "bytes": out.stat().st_size}


@pytest.mark.parametrize("name", ["search.json", "export/export.json", "study.db"])
def test_damaged_results_are_named(name: str, copy: Path, space: Path, tmp_path: Path, call: Callable[..., Outcome]) -> None:
    path = copy / name
    path.write_bytes(b"\x00damaged" * 200)
    ended = call("search", space, "--run", copy) if name == "study.db" else call("report", "--run", copy, "--out", tmp_path / "page.html")
    assert ended.status == 1
    assert str(path) in ended.error
    assert any(way in ended.error for way in ("remove it", "move it away"))
    assert not (tmp_path / "page.html").exists()


def test_merge_twice_adds_nothing(copy: Path, tmp_path: Path, call: Callable[..., Outcome]) -> None:
    into = tmp_path / "all.db"
    first = call("merge", into, copy / "measurements.db", "--json")
    assert first.status == 0, first.err
    assert first.document["added"]["rounds"] == len(samples(copy)) > 0
    second = call("merge", into, copy / "measurements.db", "--json")
    assert second.status == 0
    assert set(second.document["added"].values()) == {0}


def test_export_in_another_precision(copy: Path, tmp_path: Path, call: Callable[..., Outcome]) -> None:
    ended = call("export", copy / "checkpoint", "--to", "onnx", "--precision", "fp32", "--out", tmp_path / "onnx", "--json")
    assert ended.status == 0, ended.err
    assert (tmp_path / "onnx" / "model.onnx").is_file()
    assert isinstance(ended.document, dict)


def test_a_device_that_was_not_measured(copy: Path, call: Callable[..., Outcome]) -> None:
    ended = call("predict", copy / "spec.toml", "--run", copy, "--device", "adb:phone")
    assert ended.status == 1
    assert "nothing was measured on adb:phone" in ended.error
    assert "local" in ended.error


def wait_for_rounds(run: Path, process: subprocess.Popen[Any], count: int) -> None:
    for _ in range(1200):
        assert process.poll() is None, "ended before it could be killed"
        if (run / "measurements.db").exists():
            try:
                if len(samples(run)) >= count:
                    return
            except sqlite3.OperationalError:
                pass  # the tables are not there yet
        time.sleep(0.05)
    pytest.fail(f"no {count} rounds within a minute")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_a_killed_profile_goes_on(space: Path, tmp_path: Path, number: signal.Signals) -> None:
    slow = tmp_path / "space.toml"
    slow.write_text(space.read_text().replace("min_time_ms = 10", "min_time_ms = 60").replace("rounds = 2", "rounds = 4"))
    run = tmp_path / "run"
    arguments = ("profile", slow, "--run", run, "--json")
    process = subprocess.Popen(command(*arguments), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for_rounds(run, process, 5)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    if number == signal.SIGINT:
        assert process.returncode == 1
        assert "the same command goes on where it stopped" in err
        assert "Traceback" not in err
    before = samples(run)
    wanted = MEASURED * 4
    assert 5 <= len(before) < wanted
    ended = run_command(*arguments)
    assert ended.status == 0, ended.err
    assert ended.document["failed"] == []
    assert ended.document["partial"] == 0
    after = samples(run)
    assert len(after) == wanted
    assert {key: after[key] for key in before} == before, "what was measured before is not measured again"
