"""Comparisons at equal size: FFN widths solved for it, and a baseline beside what is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_fakes import DECODE, METRICS, AnalyticTable, FakeEvaluator, as_evaluator, as_table

from archsearch.budgets import Metric, held_from_table, parse_held
from archsearch.errors import BudgetError, FileFormatError, InputError
from archsearch.search import Searcher, resolve, trials_frame
from archsearch.search.baseline import read_baseline
from archsearch.search.feasible import CostModel
from archsearch.search.inner import InnerSearch
from archsearch.search.sizes import held, sizes_of, solved
from archsearch.search.table import CostArrays
from archsearch.space import Space
from archsearch.spec import ArchSpec
from operators.costs import model_parameters, model_weights, weight_bytes

TABLE: dict[str, Any] = {
    "model": {"hidden_size": 256, "vocab_size": 1000, "layers": [8, 10]},
    "operators": [
        {"kind": "short_conv", "kernel_size": [3, 7]},
        {"kind": "gqa", "heads": 4, "kv_heads": [1, 2], "head_dim": 64},
        {"kind": "gla", "heads": 4},
    ],
    "ffn": {"intermediate_size": [384, 512, 640, 768, 896]},
    "workloads": {"prefill": [512], "decode": [4096]},
    "measure": {"precision": "int8"},
}
SPACE = Space.from_dict(TABLE)


def parameters(spec: ArchSpec) -> int:
    return model_parameters(spec.layers, spec.dims, vocab_size=spec.vocab_size, tie_embeddings=spec.tie_embeddings)


def layouts(draw: Any) -> ArchSpec:
    depth = draw(st.sampled_from(SPACE.depths))
    return SPACE.spec([draw(st.sampled_from(SPACE.blocks)) for _ in range(depth)])


layout = st.composite(layouts)()


@settings(max_examples=30, deadline=None)
@given(spec=layout)
def test_sizes_are_those_of_the_weights(spec: ArchSpec) -> None:
    weights = model_weights(spec.layers, spec.dims, vocab_size=spec.vocab_size, tie_embeddings=True)
    embedding = sum(weight.size for weight in weights if weight.name == "embed_tokens.weight")
    sizes = sizes_of(SPACE, spec)
    assert sizes["parameters"] == parameters(spec)
    assert sizes["non_embedding_parameters"] == parameters(spec) - embedding
    assert sizes["weights_mb"] == pytest.approx(sum(weight_bytes(weight, "int8") for weight in weights) / 1e6)


@settings(max_examples=60, deadline=None)
@given(spec=layout, target=st.floats(4e6, 9e6))
def test_solved_widths_come_as_near_as_one_step(spec: ArchSpec, target: float) -> None:
    """The operators stay; the size is within half a step of one layer, or at the end of what the widths allow."""
    budgets = parse_held(f"parameters={target!r}+-1%")
    model = CostModel(SPACE, as_table(AnalyticTable()), METRICS, budgets)
    found = solved(spec, model, held(budgets)[0])
    assert [block.operator for block in found.layers] == [block.operator for block in spec.layers]
    step = 3 * 256 * 128
    widths = {block.ffn.intermediate_size for block in found.layers}
    at_the_end = (widths == {384} and parameters(found) > target) or (widths == {896} and parameters(found) < target)
    assert at_the_end or abs(parameters(found) - target) <= step / 2 + 1
    assert len(widths) <= 2


def test_the_inner_search_holds_sizes() -> None:
    budgets = parse_held("non_embedding_parameters=5.5M+-1%")
    model = CostModel(SPACE, as_table(AnalyticTable()), METRICS, budgets)
    arrays = CostArrays(model, METRICS)
    rng = np.random.default_rng(0)
    sample = arrays.evaluate(arrays.codec.random(2000, rng)).feasible.mean()
    search = InnerSearch(arrays, lambda layouts: layouts.codes.sum(axis=1) * 1.0, latency=DECODE, seed=0)
    front = search.run(evaluations=3000)
    assert len(front)
    for spec in arrays.codec.decode(front.layouts):
        assert abs(sizes_of(SPACE, spec)["non_embedding_parameters"] / 5.5e6 - 1) <= 0.01 + 1e-9
    # Most of what is looked at is at that size; of random layouts hardly any is.
    column = arrays.metrics.index(Metric("non_embedding_parameters"))
    resized = search._resized(arrays.codec.random(500, rng), held(budgets)[0])
    near = np.abs(arrays.values(resized)[:, column] / 5.5e6 - 1) <= 0.01
    assert sample < 0.15
    assert near.mean() > 0.4  # ten layers of gla are too large at any width, eight of conv too small


def searcher_of(run_dir: Path, *held_sizes: str, baseline: ArchSpec | None = None, trials: int = 8) -> Searcher:
    sizes = sizes_of(SPACE, baseline) if baseline else None
    budgets = [budget for text in held_sizes for budget in parse_held(text, sizes)]
    evaluator = as_evaluator(FakeEvaluator(run_dir / "trained"))
    return Searcher(SPACE, as_table(AnalyticTable()), evaluator, run_dir, budgets=budgets, trials=trials, baseline=baseline)


def test_everything_that_is_trained_has_the_size_that_is_held(tmp_path: Path) -> None:
    searcher = searcher_of(tmp_path, "parameters=6.2M+-1%", trials=10)
    list(searcher.run())
    assert len(searcher.points) == 10
    assert all(abs(parameters(point.spec) / 6.2e6 - 1) <= 0.01 for point in searcher.points)
    sources = set(trials_frame(searcher.url, searcher.study_name)["source"])
    assert {"all gqa", "LFM2's pattern", "model"} <= sources


def parent() -> ArchSpec:
    conv, gqa = SPACE.operators[0], SPACE.operators[3]
    wide = next(block for block in SPACE.blocks if block.operator == conv and block.ffn.intermediate_size == 768)
    attention = next(block for block in SPACE.blocks if block.operator == gqa and block.ffn.intermediate_size == 768)
    return SPACE.spec([wide, wide, attention, wide, attention, wide, attention, wide], name="parent")


def test_a_baseline_is_trained_first_and_compared_with(tmp_path: Path) -> None:
    searcher = searcher_of(tmp_path, "parameters=baseline", baseline=parent())
    events = list(searcher.run())
    assert events[0].pattern == parent().pattern
    result = searcher.result()
    document = json.loads(json.dumps(result.to_dict()))["baseline"]
    assert document["spec_id"] == parent().spec_id
    assert document["feasible"]
    assert result.best is not None
    for name, value in result.best.costs.values.items():
        assert document["difference"][name] == pytest.approx(value / document["costs"][name] - 1)
    assert abs(document["difference"]["parameters"]) <= 0.01
    own = next(point for point in searcher.points if point.spec.spec_id == parent().spec_id)
    assert document["difference"]["text_bits_per_byte"] == pytest.approx(result.best.quality.text.value / own.quality.text.value - 1)


def test_a_baseline_over_budget_is_compared_and_not_trained(tmp_path: Path) -> None:
    searcher = searcher_of(tmp_path, "parameters=5M", baseline=parent())
    list(searcher.run())
    document = searcher.result().to_dict()["baseline"]
    assert not document["feasible"]
    assert document["reason"].startswith("parameters ")
    assert document["quality"] is None
    assert document["difference"]["decode_ms@4096"] < 0
    frame = trials_frame(searcher.url, searcher.study_name)
    assert list(frame[frame["source"] == "baseline"]["state"]) == ["refused"]


def test_a_size_that_no_layout_has_is_impossible(tmp_path: Path) -> None:
    result = resolve(searcher_of(tmp_path, "parameters=90M"))
    assert not result.feasible
    largest = max(parameters(SPACE.spec([block] * 10)) for block in SPACE.blocks)
    assert result.unreachable["parameters>="]["best_reachable"] == largest
    assert result.unreachable["parameters>="]["enough"] == largest


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vocab_size": 2000}, "vocab_size 2000"),
        ({"hidden_size": 128}, "hidden_size 128"),
        ({"layers": parent().layers[:3]}, "layers 3"),
    ],
)
def test_a_baseline_outside_the_space_is_told_what_is_lacking(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    from dataclasses import replace

    path = tmp_path / "parent.toml"
    replace(parent(), **change).write(path)
    with pytest.raises(InputError, match=says):
        read_baseline(path, SPACE)
    other = Space.from_dict(TABLE | {"operators": [{"kind": "short_conv"}], "ffn": {"intermediate_size": [640]}})
    parent().write(path)
    with pytest.raises(InputError, match=r"lacks operator gqa2, ffn.intermediate_size 768; add it"):
        read_baseline(path, other)
    assert read_baseline(path, SPACE).spec_id == parent().spec_id


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("decode_ms@4096=5", "cannot be held"),
        ("parameters", "cannot be held"),
        ("parameters=baseline", "no baseline"),
        ("parameters=many", "is no number"),
        ("parameters=5M+-0%", "between 0 and 100 %"),
        ("parameters=5M+-x%", "is no number"),
    ],
)
def test_what_cannot_be_held_is_refused(text: str, says: str) -> None:
    with pytest.raises(BudgetError, match=says):
        parse_held(text)


def test_a_space_file_may_hold_sizes() -> None:
    assert held_from_table({"parameters": 6.2e6, "within": 0.02}) == ("parameters=6200000.0+-2%",)
    space = Space.from_dict(TABLE | {"hold": {"weights_mb": "baseline"}})
    assert space.hold == ("weights_mb=baseline+-1%",)
    assert space.space_id == SPACE.space_id
    with pytest.raises(FileFormatError, match=r"hold: .*cannot be held"):
        Space.from_dict(TABLE | {"hold": {"memory_mb@4096": 5}})
    with pytest.raises(FileFormatError, match="hold: within"):
        Space.from_dict(TABLE | {"hold": {"parameters": 5, "within": "1%"}})
