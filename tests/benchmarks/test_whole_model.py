"""The arithmetic of the comparison with other runtimes: limits, ratios round by round, rounds that are added to earlier ones."""

import json
import sys
from pathlib import Path

import pytest

from archsearch.spec import ArchSpec
from operators.costs import model_weights, weight_bytes

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SPEC = ArchSpec.read(BENCHMARKS.parent / "examples" / "lfm2-350m.toml")


@pytest.fixture
def whole_model(monkeypatch):
    """The benchmark is a script beside the modules that it imports."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import whole_model

    yield whole_model
    for name in ("whole_model", "rivals"):
        sys.modules.pop(name, None)


def round_of(number, runtime, threads=2, **tokens_per_s):
    return {"round": number, "runtime": runtime, "threads": threads, "others_share": 0.0, "tokens_per_s": tokens_per_s}


def limit(name, per_second, threads=2):
    return {"threads": threads, "limit": name, "per_second": per_second}


@pytest.mark.parametrize(("precision", "bits"), [("int4", 4 + 32 / 32), ("int4g128", 4 + 32 / 128)])  # a 32-bit scale for a group
def test_decode_is_held_against_reading_the_stored_weights_once_a_token(whole_model, precision, bits):
    weights = model_weights(SPEC.layers, SPEC.dims, vocab_size=SPEC.vocab_size, tie_embeddings=SPEC.tie_embeddings)
    stored = sum(weight_bytes(weight, precision) for weight in weights)
    assert stored == pytest.approx(354.5e6 * bits / 8, rel=2e-3)
    found = whole_model.roofs(SPEC, precision, ["decode@0", "prefill@512"], [limit("read_bandwidth", 40e9)])
    assert found == {(2, "decode@0", "read_bandwidth"): pytest.approx(40e9 / stored)}


def test_prefill_is_held_against_both_kinds_of_arithmetic(whole_model):
    found = whole_model.roofs(SPEC, "int4", ["prefill@512", "decode@0"], [limit("fp32_matmul", 200e9), limit("int8_matmul", 800e9)])
    assert set(found) == {(2, "prefill@512", "fp32_matmul"), (2, "prefill@512", "int8_matmul")}
    assert found[2, "prefill@512", "int8_matmul"] == pytest.approx(4 * found[2, "prefill@512", "fp32_matmul"])
    in_layers = sum(weight.size for weight in model_weights(SPEC.layers, SPEC.dims, vocab_size=1, tie_embeddings=True) if weight.linear)
    assert 0.95 < found[2, "prefill@512", "fp32_matmul"] * 2 * in_layers / 200e9 < 1  # attention and one row of logits are the rest


def test_the_fastest_of_several_measurements_is_the_limit(whole_model):
    several = [
        limit("read_bandwidth", 30e9),
        limit("read_bandwidth", 41e9),
        limit("read_bandwidth", 35e9),
        limit("read_bandwidth", 90e9, 1),
    ]
    assert whole_model.roofs(SPEC, "int4", ["decode@0"], several) == whole_model.roofs(SPEC, "int4", ["decode@0"], several[1::2])


def test_ratios_are_taken_within_a_round(whole_model):
    rounds = [
        round_of(0, "a", **{"decode@0": [10.0, 12.0, 50.0]}),  # a round's value is the median of its samples
        round_of(0, "b", **{"decode@0": [6.0]}),
        round_of(1, "a", **{"decode@0": [20.0]}),  # b failed in this one
        round_of(2, "a", **{"decode@0": [9.0]}),
        round_of(2, "b", **{"decode@0": [3.0]}),
        round_of(2, "b", threads=1, **{"decode@0": [1.0]}),
    ]
    speeds = whole_model.medians(rounds)
    assert speeds["decode@0", 2, "a"] == {0: 12.0, 1: 20.0, 2: 9.0}
    assert whole_model.ratios(speeds["decode@0", 2, "a"], speeds["decode@0", 2, "b"]) == [2.0, 3.0]


def test_what_other_programs_disturbed_is_left_out(whole_model):
    rounds = [round_of(0, "a") | {"others_share": share} for share in (0.02, 0.1, 0.11)]
    assert whole_model.undisturbed(rounds, 0.1) == rounds[:2]


def test_the_table_names_every_runtime_that_was_measured_and_no_other(whole_model):
    int4, int4g128 = whole_model.OURS
    rounds = [
        round_of(0, int4, **{"decode@0": [80.0]}),
        round_of(0, int4g128, **{"decode@0": [96.0]}),
        round_of(0, "llama.cpp Q4_0", **{"decode@0": [100.0]}),
    ]
    roof = {"int4": {(2, "decode@0", "read_bandwidth"): 160.0}, "int4g128": {(2, "decode@0", "read_bandwidth"): 192.0}}
    cells = [list(column.cells) for column in whole_model.table(rounds, ["decode@0", "prefill@512"], [1, 2], roof).columns]
    assert cells[2] == [int4, int4g128, "llama.cpp Q4_0"]
    assert cells[4] == ["50% read", "50% read", "62% read"]  # each of ours of its own limit, a rival of int4's
    assert cells[5] == ["", "0.83 (0.83-0.83)", "0.80 (0.80-0.80)"]
    assert cells[6] == ["1.20 (1.20-1.20)", "", "0.96 (0.96-0.96)"]


def test_rounds_of_an_earlier_run_are_kept_and_those_of_another_spec_refused(whole_model, tmp_path):
    path = tmp_path / "samples.json"
    assert whole_model.read_rounds(path, SPEC) == whole_model.read_rounds(None, SPEC) == ([], [])
    kept = {"spec": SPEC.name, "machine": "m", "limits": [limit("read_bandwidth", 1e9)], "rounds": [round_of(3, "a")]}
    path.write_text(json.dumps(kept))
    assert whole_model.read_rounds(path, SPEC) == (kept["limits"], kept["rounds"])
    path.write_text(json.dumps(kept | {"spec": "another"}))
    with pytest.raises(SystemExit, match="holds rounds of 'another'"):
        whole_model.read_rounds(path, SPEC)


@pytest.mark.parametrize("workload", ["", "prefill", "prefill@0", "decode@x", "train@4"])
def test_what_is_no_workload_is_refused(whole_model, workload):
    with pytest.raises(ValueError, match="is no workload"):
        sys.modules["rivals"].tokens_of(workload)
