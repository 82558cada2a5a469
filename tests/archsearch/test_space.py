from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from archsearch.errors import FileFormatError
from archsearch.space import Space
from operators.specs import GqaSpec, ShortConvSpec
from tests.archsearch.spaces import small

DESIGN = """
[model]
hidden_size = 1024
vocab_size = 65536
layers = 16

[[operators]]
kind = "short_conv"
kernel_size = [3, 7]

[[operators]]
kind = "gqa"
heads = 16
kv_heads = [4, 8]
head_dim = 64

[ffn]
intermediate_size = [2560, 4608]

[workloads]
prefill = [512]
decode = [1024, 4096]

[measure]
precision = "int4"
threads = 2

[budgets]
"decode_ms@4096" = 20.0
"prefill_ms@512" = 900.0
"memory_mb@4096" = 400.0
"""


def test_reads_the_documented_example(tmp_path: Path) -> None:
    path = tmp_path / "space.toml"
    path.write_text(DESIGN)
    space = Space.read(path)
    assert space.operators == (
        ShortConvSpec(kernel_size=3),
        ShortConvSpec(kernel_size=7),
        GqaSpec(heads=16, kv_heads=4, head_dim=64),
        GqaSpec(heads=16, kv_heads=8, head_dim=64),
    )
    assert len(space.blocks) == 8
    assert space.size == 8**16
    assert [workload.label for workload in space.workloads()] == ["prefill@512", "decode@1024", "decode@4096"]
    assert (space.precision, space.threads, space.batch, space.max_context) == ("int4", 2, 1, 4097)
    assert [str(budget) for budget in space.budgets] == ["decode_ms@4096<=20", "prefill_ms@512<=900", "memory_mb@4096<=400"]


def test_lists_multiply_workloads_and_depths() -> None:
    data = small(measure={"precision": ["fp32", "int4"], "threads": [1, 2]})
    data["model"] = data["model"] | {"layers": [2, 3], "hidden_size": [64, 128]}
    data["workloads"] = {"prefill": 16, "decode": [32], "batch": [1, 2]}
    space = Space.from_dict(data)
    assert space.size == 2 * (2**2 + 2**3)
    assert len(space.workloads()) == 2 * 2 * 2 * 2
    assert space.workloads("int4", 2)[0].precision == "int4"


def edited(path: str, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(small())
    *parents, last = path.split(".")
    place: Any = data
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
    if isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "field", "says"),
    [
        ("modle", {}, "modle", "unknown key"),
        ("model.hiden_size", 3, "model.hiden_size", "unknown key"),
        ("model.layers", "six", "model.layers", "integer"),
        ("model.layers", 0, "model.layers", "greater than or equal to 1"),
        ("operators.0.kind", "mamba", "operators.0.kind", "unknown operator 'mamba'"),
        ("operators.0.kernel", 3, "operators.0.kernel", "unknown key"),
        ("operators.1.kv_heads", 3, "operators.1.kv_heads", "do not divide"),
        ("operators.1.kv_heads", [2, 3], "operators.1.kv_heads", "do not divide"),
        ("operators.1", {"kind": "swa", "heads": 4, "kv_heads": 2, "head_dim": 16, "window": 0}, "operators.1.window", "at least 1"),
        ("operators", [], "operators", "at least 1 item"),
        ("ffn.intermediate_size", [96, 96], "ffn.intermediate_size", "twice"),
        ("ffn.intermediate_size", 0, "ffn.intermediate_size", "at least 1"),
        ("workloads", {"prefill": [], "decode": []}, "workloads", "nothing would be measured"),
        ("measure.precision", "int3", "measure.precision", "int4"),
        ("budgets", {"decode_sm@64": 3.0}, "budgets", "decode_ms"),
        ("budgets", {"decode_ms": 3.0}, "budgets", "behind @"),
        ("budgets", {"parameters": -1.0}, "budgets", "positive"),
    ],
)
def test_bad_input_names_the_field(path: str, value: Any, field: str, says: str) -> None:
    with pytest.raises(FileFormatError) as caught:
        Space.from_dict(edited(path, value), path="space.toml")
    message = str(caught.value)
    assert message.startswith("space.toml: ")
    assert field in message
    assert says in message
    assert "\n" not in message


def test_identity_is_what_may_be_chosen() -> None:
    space = Space.from_dict(small())
    same = Space.from_dict(small(workloads={"prefill": [8], "decode": [8]}, budgets={"parameters": 1e6}))
    other = Space.from_dict(small(ffn={"intermediate_size": 128}))
    assert space.space_id == same.space_id != other.space_id
