"""Specs survive their files, know their identity, and say which field is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archsearch.budget import parameter_budget
from archsearch.errors import FileFormatError
from archsearch.spec import ArchSpec
from operators.specs import BlockSpec, FfnSpec, GlaSpec, GqaSpec, ShortConvSpec, SwaSpec

EXAMPLES = Path(__file__).parents[2] / "examples"

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
HIDDEN = st.sampled_from([64, 128, 256, 1024])


@st.composite
def attention(draw: st.DrawFn) -> GqaSpec | SwaSpec:
    kv_heads = draw(st.integers(1, 8))
    sizes = {"kv_heads": kv_heads, "heads": kv_heads * draw(st.integers(1, 8)), "head_dim": 16 * draw(st.integers(1, 8))}
    window = draw(st.none() | st.integers(1, 4096))
    return GqaSpec(**sizes) if window is None else SwaSpec(**sizes, window=window)


@st.composite
def specs(draw: st.DrawFn) -> ArchSpec:
    operators = st.one_of(
        st.builds(ShortConvSpec, kernel_size=st.integers(2, 9)),
        attention(),
        st.builds(GlaSpec, heads=st.sampled_from([1, 2, 4]), gate_rank=st.integers(1, 64), gate_normalizer=st.floats(0.1, 1e6)),
    )
    ffns = st.builds(FfnSpec, intermediate_size=st.integers(1, 100_000))
    return ArchSpec(
        name=draw(TEXT),
        hidden_size=draw(HIDDEN),
        vocab_size=draw(st.integers(2, 200_000)),
        tie_embeddings=draw(st.booleans()),
        norm_eps=draw(st.floats(1e-12, 1e-2)),
        rope_theta=draw(st.floats(1e-3, 1e18)),
        layers=tuple(draw(st.lists(st.builds(BlockSpec, operator=operators, ffn=ffns), min_size=1, max_size=6))),
        origin=draw(st.dictionaries(TEXT, st.integers(-(2**63), 2**63 - 1) | st.floats(-1e9, 1e9) | TEXT, max_size=3)),
    )


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spec=specs(), suffix=st.sampled_from([".toml", ".json"]))
def test_a_file_gives_back_what_was_written(spec: ArchSpec, suffix: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / f"round_trip{suffix}"
    spec.write(path)
    again = ArchSpec.read(path)
    assert again == spec
    assert again.name == spec.name
    assert again.origin == spec.origin
    assert again.spec_id == spec.spec_id


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spec=specs(), name=TEXT)
def test_the_id_is_of_the_architecture_alone(spec: ArchSpec, name: str) -> None:
    assert replace(spec, name=name, origin={"trial": 3}).spec_id == spec.spec_id
    assert replace(spec, vocab_size=spec.vocab_size + 1).spec_id != spec.spec_id
    assert replace(spec, tie_embeddings=not spec.tie_embeddings).spec_id != spec.spec_id
    assert replace(spec, layers=(*spec.layers, spec.layers[0])).spec_id != spec.spec_id


def test_the_id_tells_the_order_of_layers(tiny_spec: ArchSpec) -> None:
    assert replace(tiny_spec, layers=tiny_spec.layers[::-1]).spec_id != tiny_spec.spec_id


def test_the_pattern_folds_runs(tiny_spec: ArchSpec) -> None:
    conv, swa, gla, gqa = tiny_spec.layers
    assert tiny_spec.pattern == "conv3, swa8, gla2, gqa1"
    assert replace(tiny_spec, layers=(conv, conv, gqa, conv, swa, swa, swa, gla)).pattern == "conv3 x2, gqa1, conv3, swa8 x3, gla2"


def test_the_example_is_the_published_model() -> None:
    spec = ArchSpec.read(EXAMPLES / "lfm2-350m.toml")
    assert parameter_budget(spec).total == 354_483_968
    assert [i for i, block in enumerate(spec.layers) if isinstance(block.operator, GqaSpec)] == [2, 5, 8, 10, 12, 14]
    assert spec.pattern.startswith("conv3 x2, gqa8")


def test_dates_in_the_origin_become_text(tmp_path: Path, tiny_spec: ArchSpec) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(tiny_spec.to_toml().replace("\n[[layers]]", "\n[origin]\ndate = 2026-11-23\n\n[[layers]]", 1))
    spec = ArchSpec.read(path)
    assert spec.origin == {"date": "2026-11-23"}
    assert json.loads(spec.to_json())["origin"] == {"date": "2026-11-23"}


def change(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set the value at a dotted path; None deletes it."""
    *way, last = (int(part) if part.isdecimal() else part for part in key.split("."))

    def apply(data: dict[str, Any]) -> None:
        target: Any = data
        for part in way:
            target = target[part]
        if value is None:
            del target[last]
        else:
            target[last] = value

    return apply


GQA = {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 16}
WRONG = {
    "unknown key": (change("hiden_size", 3), "hiden_size", "unknown key"),
    "unknown key of an operator": (change("layers.0.operator.kernel", 3), "layers.0.operator.kernel", "unknown key"),
    "unknown key of a layer": (change("layers.0.norm", 3), "layers.0.norm", "unknown key"),
    "missing": (change("vocab_size", None), "vocab_size", "missing"),
    "text for a number": (change("hidden_size", "32"), "hidden_size", "integer"),
    "float for an integer": (change("hidden_size", 32.0), "hidden_size", "integer"),
    "bool for an integer": (change("hidden_size", True), "hidden_size", "integer"),
    "number for a table": (change("layers.1", 3), "layers.1", "must be a table, got 3"),
    "infinite": (change("norm_eps", float("inf")), "norm_eps", "finite"),
    "no layers": (change("layers", []), "layers", "at least 1 item"),
    "unknown operator": (change("layers.2.operator", {"kind": "mamba"}), "layers.2.operator.kind", "known: short_conv, swa, gla, gqa"),
    "no kind": (change("layers.2.operator", {"heads": 2}), "layers.2.operator.kind", "missing"),
    "heads that do not divide": (change("layers.3.operator", GQA | {"kv_heads": 3}), "layers.3.operator.kv_heads", "do not divide"),
    "window of zero": (change("layers.1.operator.window", 0), "layers.1.operator.window", "at least 1"),
    "missing field of an operator": (change("layers.1.operator.window", None), "layers.1.operator.window", "missing"),
    "channels that do not divide": (change("layers.2.operator.heads", 3), "layers.2.operator.heads", "do not divide"),
    "infinite expansion": (change("layers.2.operator.expand_k", float("inf")), "layers.2.operator.expand_k", "finite"),
    "no width": (change("layers.0.ffn.intermediate_size", 0), "layers.0.ffn.intermediate_size", "at least 1"),
    "null in the origin": (change("origin", {"a": {"b": None}}), "origin", "null"),
}


@pytest.mark.parametrize(("apply", "field", "says"), WRONG.values(), ids=WRONG.keys())
def test_wrong_data_is_refused_with_its_field(apply: Callable[[dict[str, Any]], None], field: str, says: str, tiny_spec: ArchSpec) -> None:
    data = json.loads(tiny_spec.to_json())
    apply(data)
    with pytest.raises(FileFormatError) as refusal:
        ArchSpec.from_dict(data, path="my.toml")
    assert refusal.value.field == field
    assert says in refusal.value.problem
    assert str(refusal.value).startswith(f"my.toml: {field}: ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("spec.toml", b"name = ", "is not valid TOML"),
        ("spec.json", b'{"name": ', "is not valid JSON"),
        ("spec.json", b"[]", "must hold a table"),
        ("spec.toml", b"\xff\xfe\x00", "cannot be read"),
        ("spec.toml", None, "no such file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileFormatError, match=says) as refusal:
        ArchSpec.read(path)
    assert str(path) in str(refusal.value)


def test_a_folder_is_no_spec(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="cannot be read"):
        ArchSpec.read(tmp_path)
