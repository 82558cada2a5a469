from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from archsearch.bench import BenchResult, bench, onnx_target, spec_target
from archsearch.errors import InputError, RunError
from archsearch.predict import CostTable
from archsearch.profile import profile
from archsearch.space import Space
from archsearch.store import Store
from archsearch.workload import Workload
from devices import open_device
from devices.plan import RunPlan
from operators.costs import model_weights
from operators.graph import random_weights
from operators.specs import GraphError
from tests.archsearch.fake_device import FakeDevice
from tests.archsearch.spaces import small


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    space = Space.from_dict(
        small(measure={"precision": "int4", "passes": 1, "max_passes": 1, "rounds": 2, "min_time_ms": 3, "min_runs": 3})
    )
    list(profile(space, path, open_device("local")))
    return path


@pytest.fixture(scope="module")
def space() -> Space:
    return Space.from_dict(small(measure={"precision": "int4"}))


def table_of(run_dir: Path) -> CostTable:
    with Store(run_dir / "measurements.db") as store:
        return CostTable.load(store)


def test_a_model_is_measured_beside_its_prediction_and_its_parts(run_dir: Path, space: Space) -> None:
    spec = space.spec(space.blocks, name="both")
    target = spec_target(spec, ["int4"], run_dir / "models", max_context=space.positions)
    result = BenchResult()
    options = {"run_dir": run_dir, "table": table_of(run_dir), "passes": 1, "rounds": 2, "min_time_ms": 3.0}
    events = list(bench(target, open_device("local"), space.workloads(), result=result, **options))  # type: ignore[arg-type]
    assert events[-1].done == events[-1].total
    rows = result.document["workloads"]
    assert [(row["phase"], row["tokens"], row["context"]) for row in rows] == [("prefill", 16, 0), ("decode", 1, 32), ("decode", 1, 64)]
    for row in rows:
        assert 0 < row["measured_ms"] <= row["measured_p95_ms"] * 1.0001
        assert row["low_ms"] <= row["predicted_ms"] <= row["high_ms"]
        assert row["drift"] > 0
    assert all(entry["measured_mb"] > 20 and entry["predicted_mb"] > 20 for entry in result.document["memory"])

    class NoDevice(FakeDevice):
        info = open_device("local").info  # type: ignore[assignment]

        def run(self, plan: RunPlan):  # type: ignore[no-untyped-def]
            raise AssertionError("everything is measured already")

    again = BenchResult()
    list(bench(target, NoDevice(), space.workloads(), result=again, **options))  # type: ignore[arg-type]
    assert again.document == result.document
    # What was benched is no chain of the table: predictions stay what they were.
    assert table_of(run_dir).memory(spec, 16, phase="prefill") == options["table"].memory(spec, 16, phase="prefill")  # type: ignore[attr-defined]


def test_a_spec_without_a_run_is_measured_without_a_prediction(tmp_path: Path, space: Space) -> None:
    spec = space.spec(space.blocks)
    target = spec_target(spec, ["fp32"], tmp_path / "models", max_context=70)
    workloads = [Workload(phase="decode", tokens=1, context=64, precision="fp32")]
    result = BenchResult()
    list(bench(target, FakeDevice(lambda case: 2_000_000), workloads, run_dir=tmp_path, result=result))
    (row,) = result.document["workloads"]
    assert (row["measured_ms"], row["predicted_ms"], row["drift"]) == (2.0, None, None)


def test_a_model_that_crashes_says_so(tmp_path: Path, space: Space) -> None:
    class Broken(FakeDevice):
        def run(self, plan: RunPlan):  # type: ignore[no-untyped-def]
            self.broken = frozenset(case.case_id for case in plan.cases)
            return super().run(plan)

    target = spec_target(space.spec(space.blocks), ["fp32"], tmp_path / "models", max_context=70)
    workloads = [Workload(phase="decode", tokens=1, context=64, precision="fp32")]
    with pytest.raises(RunError, match="crashed: killed by SIGSEGV"):
        list(bench(target, Broken(), workloads, run_dir=tmp_path, result=BenchResult()))


def test_an_onnx_file_tells_its_spec_and_precision(run_dir: Path, space: Space) -> None:
    spec = space.spec(space.blocks, name="both")
    target = spec_target(spec, ["int4"], run_dir / "models", max_context=space.positions)
    read = onnx_target(target.files["int4"])
    assert list(read.files) == ["int4"]
    assert read.spec is not None
    assert read.spec.spec_id == spec.spec_id
    with pytest.raises(InputError, match="cannot be benched in fp32"):
        workloads = [Workload(phase="decode", tokens=1, context=8, precision="fp32")]
        list(bench(read, FakeDevice(), workloads, run_dir=run_dir, result=BenchResult()))


def foreign(path: Path, *, past: str = "past_conv.0", present: str = "present_conv.0") -> Path:
    """A decoder that somebody else exported, with the names of the published LFM2 models."""
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
    state = helper.make_tensor_value_info(past, TensorProto.FLOAT, ["batch_size", 4, 3])
    new = helper.make_tensor_value_info(present, TensorProto.FLOAT, ["batch_size", 4, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", "sequence_length", 7])
    table = helper.make_tensor("table", TensorProto.FLOAT, [7, 7], np.eye(7, dtype=np.float32).tobytes(), raw=True)
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["logits"]), helper.make_node("Tanh", [past], [present])]
    graph = helper.make_graph(nodes, "foreign", [ids, state], [logits, new], [table])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def test_a_foreign_decoder_is_measured_by_its_names(tmp_path: Path) -> None:
    target = onnx_target(foreign(tmp_path / "foreign.onnx"))
    assert target.spec is None
    workloads = [Workload(phase="prefill", tokens=5, context=0), Workload(phase="decode", tokens=1, context=9)]
    result = BenchResult()
    list(bench(target, open_device("local"), workloads, run_dir=tmp_path, passes=1, rounds=1, min_time_ms=1.0, result=result))
    assert result.document["name"] == "foreign"
    assert result.document["parameters"] is None
    assert all(row["measured_ms"] > 0 and row["predicted_ms"] is None for row in result.document["workloads"])


@pytest.mark.parametrize(
    ("names", "says"),
    [({"present": "new_state"}, "has no output 'present_conv.0'"), ({"past": "memory"}, "is not one of a decoder")],
)
def test_other_models_are_refused_with_the_reason(tmp_path: Path, names: dict[str, str], says: str) -> None:
    with pytest.raises(GraphError, match=says):
        onnx_target(foreign(tmp_path / "other.onnx", **names))


def test_what_is_no_onnx_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "noise.onnx"
    path.write_bytes(b"this is no protobuf" * 100)
    with pytest.raises(GraphError, match=r"noise\.onnx"):
        onnx_target(path)


def test_a_checkpoint_is_not_taken_for_its_bare_spec(tmp_path: Path, space: Space) -> None:
    spec = space.spec(space.blocks)
    names = model_weights(spec.layers, spec.dims, vocab_size=spec.vocab_size, tie_embeddings=True)
    bare = spec_target(spec, ["fp32"], tmp_path, max_context=70)
    trained = [spec_target(spec, ["fp32"], tmp_path, max_context=70, weights=random_weights(names, seed)) for seed in (1, 2)]
    targets = [bare, *trained]
    assert len({target.subject_id for target in targets}) == 3
    assert len({target.files["fp32"].read_bytes() for target in targets}) == 3
