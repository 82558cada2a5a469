from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from archsearch.budgets import Metric
from archsearch.cases import block_subject
from archsearch.chains import long_copies
from archsearch.errors import MissingMeasurement
from archsearch.estimate import summary
from archsearch.memory import MB
from archsearch.predict import CostTable
from archsearch.profile import profile
from archsearch.space import Space
from archsearch.spec import ArchSpec
from archsearch.store import Store
from archsearch.workload import Workload
from devices.base import DeviceInfo
from devices.plan import Case, Failed
from operators.costs import block_costs, model_parameters
from tests.archsearch.fake_device import INFO, FakeDevice
from tests.archsearch.spaces import small


def microseconds(case: Case) -> int:
    """A made-up law: attention costs 10 ns a position, everything 1 µs a layer, 100 ns a token."""
    names = [state.input for state in case.states]
    layers = {name.split(".")[1] for name in names}
    growing = [feed for feed in case.feeds if feed.name.endswith(".key")]
    tokens = next(feed.shape[1] for feed in case.feeds if feed.name in ("hidden", "input_ids"))
    return 1000 * max(1, len(layers)) + sum(10 * feed.shape[2] for feed in growing) + 100 * tokens


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    list(profile(Space.from_dict(small()), path, FakeDevice(microseconds)))
    return path


@pytest.fixture(scope="module")
def table(run_dir: Path) -> CostTable:
    with Store(run_dir / "measurements.db") as store:
        return CostTable.load(store)


@pytest.fixture(scope="module")
def space() -> Space:
    return Space.from_dict(small())


def copies_of_both(space: Space) -> int:
    """The blocks of `small()` have long chains of one length."""
    (n,) = {long_copies(space, block, space.all_dims[0], "fp32") for block in space.blocks}
    return n


def decode(context: int) -> Workload:
    return Workload(phase="decode", tokens=1, context=context, precision="fp32")


def test_a_model_is_the_sum_of_its_parts(space: Space, table: CostTable) -> None:
    conv, gqa = space.blocks
    n = copies_of_both(space)
    # Per block: 1 µs, 100 ns of a token shared by the chain, and for attention 10 ns for each of 64 + 1 rows.
    conv_ns, gqa_ns, head_ns = 1000 + 100 / n, 1000 + 650 + 100 / n, 1000 + 100
    for a, b in itertools.product((0, 1, 3), (1, 2)):
        spec = space.spec([conv] * a + [gqa] * b)
        estimate = table.latency(spec, decode(64))
        assert estimate.value * 1e6 == pytest.approx(a * conv_ns + b * gqa_ns + head_ns)
        assert (estimate.low, estimate.high) == (estimate.value, estimate.value)
        assert not estimate.extrapolated


def test_between_and_beyond_the_measured_contexts(space: Space, table: CostTable) -> None:
    conv, gqa = space.blocks
    dims, n = space.all_dims[0], copies_of_both(space)
    between = table.block(gqa, dims, decode(48))
    assert between.value * 1e6 == pytest.approx(1000 + 490 + 100 / n)
    assert not between.extrapolated
    beyond = table.block(gqa, dims, decode(1024))
    assert beyond.value * 1e6 == pytest.approx(1000 + 10250 + 100 / n)
    assert beyond.extrapolated
    fixed = table.block(conv, dims, decode(100_000))
    assert fixed.value == table.block(conv, dims, decode(64)).value
    assert not fixed.extrapolated


def test_the_interval_covers_the_rounds_and_adds_in_quadrature() -> None:
    steady, shaky = summary(np.full(6, 5e6)), summary(np.array([4e6, 5e6, 5e6, 6e6, 5e6, 5e6]))
    assert (steady.low, steady.value, steady.high) == (5.0, 5.0, 5.0)
    assert 4.0 <= shaky.low <= shaky.value == 5.0 <= shaky.high <= 6.0
    assert shaky.high > shaky.low
    assert summary(np.array([4e6, 6e6, 5e6])) == summary(np.array([4e6, 6e6, 5e6]))
    assert summary(np.array([7e6])).low == 7.0


def test_copies_of_a_block_share_their_error(space: Space, tmp_path: Path) -> None:
    noise = itertools.cycle([900, 1000, 1100])
    list(profile(space, tmp_path, FakeDevice(lambda case: 1000 * next(noise))))
    with Store(tmp_path / "measurements.db") as store:
        table = CostTable.load(store)
    conv, gqa = space.blocks
    dims = space.all_dims[0]
    one, other, head = table.block(conv, dims, decode(64)), table.block(gqa, dims, decode(64)), table.head(space.spec([conv]), decode(64))
    mixed = table.latency(space.spec([conv, conv, gqa]), decode(64))
    width = ((2 * (one.high - one.value)) ** 2 + (other.high - other.value) ** 2 + (head.high - head.value) ** 2) ** 0.5
    assert mixed.high - mixed.value == pytest.approx(width)


def test_memory_is_taken_apart_by_difference(space: Space, table: CostTable, run_dir: Path) -> None:
    conv, gqa = space.blocks
    dims = space.all_dims[0]
    with Store(run_dir / "measurements.db") as store:
        peaks = {(row.subject_id, row.copies): row.memory[0]["peak_bytes"] for row in store.rows() if row.purpose == "memory"}
    for block in (conv, gqa):
        few, many = (peaks[block_subject(block, dims, n).subject_id, n] for n in (1, copies_of_both(space)))
        each = (many - few) / (copies_of_both(space) - 1)
        caches = block_costs(block, dims).state_bytes(batch=1, cache=65)
        stored = block_costs(block, dims).weight_bytes("fp32")
        assert table.block_memory(block, dims, "fp32").weights == pytest.approx(max(each - caches, stored))
    spec = space.spec([conv, gqa])
    near, far = table.memory(spec, 64), table.memory(spec, 1064)
    assert far.total - near.total == 1000 * 2 * 2 * 16 * 4  # keys and values of two heads of 16 channels, fp32
    assert near.process == 50_000_000


@pytest.mark.parametrize("layers", [(0, 0), (0, 1), (1, 1, 1)])
def test_additive_values_are_the_whole(space: Space, table: CostTable, layers: tuple[int, ...]) -> None:
    spec = space.spec([space.blocks[i] for i in layers])
    for metric in (*table.metrics(), Metric("decode_ms", 100), Metric("memory_mb", 100)):
        assert table.point(spec, spec.block_counts(), metric) == pytest.approx(table.cost(spec, metric).value)


def test_what_was_not_measured_is_refused_with_the_way_out(space: Space, table: CostTable, run_dir: Path) -> None:
    spec = space.spec(space.blocks)
    with pytest.raises(MissingMeasurement, match=r"decode, int4, 1 thread.*archsearch profile"):
        table.latency(spec, Workload(phase="decode", tokens=1, context=64, precision="int4"))
    wider = Space.from_dict(small(ffn={"intermediate_size": 128}))
    with pytest.raises(MissingMeasurement, match="conv3/128 was not measured"):
        table.latency(wider.spec(wider.blocks), decode(64))
    with (
        Store(run_dir / "measurements.db") as store,
        pytest.raises(MissingMeasurement, match="nothing was measured on adb:X; measured: local"),
    ):
        CostTable.load(store, device="adb:X")


def test_the_document_has_the_documented_fields(space: Space, table: CostTable) -> None:
    spec: ArchSpec = space.spec(space.blocks, name="both")
    document = table.document(spec)
    assert list(document) == ["name", "spec_id", "device", "parameters", "workloads", "memory"]
    assert (document["name"], document["spec_id"], document["device"]) == ("both", spec.spec_id, "local")
    assert document["parameters"] == model_parameters(spec.layers, spec.dims, vocab_size=512, tie_embeddings=True)
    expected = ["phase", "tokens", "context", "batch", "precision", "threads"]
    expected += ["predicted_ms", "low_ms", "high_ms", "extrapolated", "measured_ms", "measured_p95_ms"]
    assert [list(row) for row in document["workloads"]] == [expected] * 3
    assert all(row["measured_ms"] is None for row in document["workloads"])
    assert [list(row) for row in document["memory"]] == [["context", "predicted_mb", "measured_mb"]] * 2
    assert document["memory"][0]["predicted_mb"] == table.memory(spec, 32).total / MB


def test_measurements_of_another_runtime_or_of_failures_do_not_predict(space: Space, tmp_path: Path) -> None:
    class Newer(FakeDevice):
        @property
        def info(self) -> DeviceInfo:
            return replace(INFO, runtime="onnxruntime 9.9")

    list(profile(space, tmp_path, FakeDevice(lambda case: 1_000_000)))
    list(profile(space, tmp_path, Newer(lambda case: 9_000_000)))
    spec = space.spec(space.blocks)
    with Store(tmp_path / "measurements.db") as store:
        table = CostTable.load(store)
        assert table.head(spec, decode(64)).value == 9.0
        broken = next(
            row for row in table.rows if row.subject["kind"] == "head" and row.workload == decode(64) and row.purpose == "latency"
        )
        store.add_failure(broken.key, Failed(case_id=broken.key, reason="crashed", detail="killed"))
        with pytest.raises(MissingMeasurement, match=r"embedding\+head was not measured.*crashed: killed"):
            failed = CostTable(
                [row for row in store.rows() if row.workload == decode(64) and row.runtime == "onnxruntime 9.9"], device="local"
            )
            failed.head(spec, decode(64))


def test_a_block_whose_part_failed_says_which_and_how_to_measure_it_again(tmp_path: Path) -> None:
    measure = {"precision": "fp32", "passes": 1, "rounds": 2, "separate": True}
    space = Space.from_dict(small(ffn={"intermediate_size": [64, 96]}, measure=measure))
    list(profile(space, tmp_path, FakeDevice()))
    conv, *_ = space.blocks
    with Store(tmp_path / "measurements.db") as store:
        for row in store.rows():
            if row.subject["label"] == "conv3/64" and row.purpose == "latency":
                store.add_failure(row.key, Failed(case_id=row.key, reason="timeout", detail="no sign of life"))
        table = CostTable.load(store)
    gqa = next(block for block in space.blocks if block.operator != conv.operator and block.ffn.intermediate_size == 64)
    with pytest.raises(MissingMeasurement, match=r"gqa2/64 was not measured .*\(conv3/64 failed: timeout: .*\); .*--retry-failed"):
        table.block(gqa, space.all_dims[0], decode(64))


def by_size(case: Case) -> int:
    """A law in which operator and FFN add up: time goes by the weights' bytes, and attention by its cache."""
    size = sum(file.stat().st_size for file in case.model.parent.glob("*.data"))
    return microseconds(case) + size // 10


def test_blocks_that_were_not_measured_are_put_together_from_others(tmp_path: Path) -> None:
    ffn = {"intermediate_size": [64, 96, 128]}
    tables = {}
    for separate in (True, False):
        measure = {"precision": "fp32", "passes": 1, "rounds": 2, "separate": separate}
        list(profile(Space.from_dict(small(ffn=ffn, measure=measure)), tmp_path / str(separate), FakeDevice(by_size)))
        with Store(tmp_path / str(separate) / "measurements.db") as store:
            tables[separate] = CostTable.load(store)
    space = Space.from_dict(small(ffn=ffn))
    spec = space.spec([space.blocks[0], *space.blocks[-3:]])
    unmeasured = set(space.blocks) - set(space.measured_blocks)
    assert unmeasured & set(spec.layers)
    for workload in space.workloads():
        assert tables[True].latency(spec, workload).value == pytest.approx(tables[False].latency(spec, workload).value, rel=0.01)
    assert tables[True].memory(spec, 64).total == pytest.approx(tables[False].memory(spec, 64).total, rel=0.01)
    for block in unmeasured:
        parts = tables[True].parts(block, space.all_dims[0], space.workloads()[0])
        assert sorted(parts.values()) == [-1, 1, 1]
        assert block not in parts
        assert tables[False].parts(block, space.all_dims[0], space.workloads()[0]) == {block: 1}
    counts = tables[True].part_counts(spec, space.workloads()[0])
    assert sum(counts.values()) == len(spec.layers)


def test_a_prefill_of_different_blocks_needs_what_one_of_each_needs(space: Space, run_dir: Path) -> None:
    """Buffers of other sizes leave gaps, which chains of a single block do not show."""
    conv, gqa = space.blocks
    workload = Workload(phase="prefill", tokens=16, context=0, precision="fp32")
    with Store(run_dir / "measurements.db") as store:
        rows = store.rows()
    (mixed,) = (row for row in rows if row.mixed)
    assert (mixed.workload, mixed.copies, mixed.purpose) == (workload, 2, "memory")
    more = replace(mixed, memory=tuple(entry | {"peak_bytes": entry["peak_bytes"] + 40_000_000} for entry in mixed.memory))
    tables = [CostTable([*(row for row in rows if row.key != mixed.key), *extra], device="local") for extra in ((), (mixed,), (more,))]
    without, plain, gaps = (t.peaks.model(space.spec([conv, gqa]), workload, "prefill").total for t in tables)
    assert without <= plain <= gaps
    assert gaps - plain == pytest.approx(40_000_000, abs=1_000_000)
    alone = [t.peaks.model(space.spec([gqa, gqa]), workload, "prefill").total for t in tables]
    assert alone[0] == alone[1] == alone[2]
