"""What our operators refuse, and under which field."""

import subprocess
import sys

import pytest

from operators.kinds import operator_for, operator_kinds
from operators.specs import GlaSpec, GqaSpec, ModelDims, ShortConvSpec, SpecError, SwaSpec, UnknownOperatorError

DIMS = ModelDims(hidden_size=64)


def gqa(**fields):
    return GqaSpec(**({"heads": 4, "kv_heads": 2, "head_dim": 16} | fields))


def swa(**fields):
    return SwaSpec(**({"heads": 4, "kv_heads": 2, "head_dim": 16, "window": 8} | fields))


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (ShortConvSpec(kernel_size=1), "kernel_size"),
        (ShortConvSpec(kernel_size=-3), "kernel_size"),
        *[(make(**{field: value}), field) for make in (gqa, swa) for field in ("heads", "kv_heads", "head_dim") for value in (0, -1)],
        *[(make(heads=4, kv_heads=3), "kv_heads") for make in (gqa, swa)],
        *[(make(head_dim=size), "head_dim") for make in (gqa, swa) for size in (8, 12, 24)],
        (swa(window=0), "window"),
        (GlaSpec(heads=0), "heads"),
        (GlaSpec(heads=3), "heads"),
        (GlaSpec(heads=4, gate_rank=0), "gate_rank"),
        (GlaSpec(heads=4, gate_normalizer=0.0), "gate_normalizer"),
        (GlaSpec(heads=4, expand_k=0.0), "expand_k"),
        (GlaSpec(heads=4, expand_v=0.3), "expand_v"),
    ],
    ids=str,
)
def test_impossible_dimensions_are_refused(spec, field):
    with pytest.raises(SpecError) as caught:
        operator_for(spec).check(spec, DIMS)
    assert caught.value.field == field
    assert caught.value.problem


@pytest.mark.parametrize("spec", [ShortConvSpec(), gqa(), swa(), swa(window=1), GlaSpec(heads=4)], ids=str)
def test_possible_dimensions_are_not(spec):
    operator_for(spec).check(spec, DIMS)


def test_unknown_operator_names_the_known_ones():
    with pytest.raises(UnknownOperatorError, match="'mamba3'; known: short_conv, swa, gla, gqa"):
        operator_for("mamba3")


def test_labels_tell_the_operators_apart():
    labels = {operator_for(spec).label(spec) for spec in (ShortConvSpec(), gqa(), swa(), GlaSpec(heads=4))}
    assert labels == {"conv3", "gqa2", "swa8", "gla4"}
    assert {operator.family for operator in operator_kinds().values()} == {"conv", "swa", "gla", "gqa"}


@pytest.mark.parametrize("window", [1, 8, 256, 4096])
def test_windowed_cache_holds_the_window_and_a_sixteenth_more_at_any_context(window):
    states = operator_for("swa").states(swa(window=window), DIMS)
    rows = window + window // 16
    assert {state.bytes(batch=1, cache=cache) for state in states for cache in (window, 100_000)} == {4 * 2 * rows * 16}


def test_specs_and_costs_are_known_without_torch():
    code = "import sys, operators.costs, operators.kinds; operators.kinds.operator_kinds(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
