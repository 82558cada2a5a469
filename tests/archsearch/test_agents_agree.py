"""The two agents compute the same bits on what is really measured: every operator at every precision, and a whole model."""

from __future__ import annotations

from pathlib import Path

import pytest

from archsearch.cases import Subject, block_subject, make_case, model_subject, write_subject
from archsearch.spec import ArchSpec
from archsearch.workload import Workload
from devices.local import LocalDevice
from devices.plan import Case, Failed, OutputsResult, RunPlan
from operators.graph import read_info
from operators.specs import PRECISIONS, BlockSpec, FfnSpec, GlaSpec, GqaSpec, ModelDims, OperatorSpec, Precision, ShortConvSpec, SwaSpec
from tests.devices.c_agent import c_device

DIMS = ModelDims(hidden_size=64)
OPERATORS: dict[str, OperatorSpec] = {
    "conv": ShortConvSpec(kernel_size=3),
    "gqa": GqaSpec(heads=4, kv_heads=2, head_dim=16),
    "swa": SwaSpec(heads=4, kv_heads=2, head_dim=16, window=8),
    "gla": GlaSpec(heads=2),
}
CONTEXT = 24


def blocks(*operators: OperatorSpec) -> tuple[BlockSpec, ...]:
    return tuple(BlockSpec(operator=operator, ffn=FfnSpec(intermediate_size=128)) for operator in operators)


def cases(subject: Subject, name: str, directory: Path, precision: Precision) -> list[Case]:
    path = write_subject(subject, directory, precision=precision, max_context=CONTEXT + 1)
    decode = Workload(phase="decode", tokens=1, context=CONTEXT, precision=precision)
    prefill = Workload(phase="prefill", tokens=17, context=0, precision=precision)
    return [make_case(f"{name} {precision} {workload.label}", path, read_info(path), workload) for workload in (decode, prefill)]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_outputs_and_states_agree_bit_by_bit(precision: Precision, tmp_path: Path) -> None:
    spec = ArchSpec(name="tiny", hidden_size=64, vocab_size=96, layers=blocks(*OPERATORS.values()))
    asked = cases(model_subject(spec), "model", tmp_path, precision)
    for name, operator in OPERATORS.items():
        asked += cases(block_subject(*blocks(operator), DIMS, 2), name, tmp_path, precision)
    plan = RunPlan(cases=tuple(asked), purpose="outputs", min_runs=3, seed=11)
    ours, theirs = computed(c_device(), plan), computed(LocalDevice(), plan)
    assert ours == theirs
    assert set(ours) == {case.case_id for case in asked}
    assert all(len(digests) > 1 for digests in ours.values()), "a block has its states among the outputs"


def computed(device: LocalDevice, plan: RunPlan) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for event in device.run(plan):
        assert not isinstance(event, Failed), event
        if isinstance(event, OutputsResult):
            found[event.case_id] = event.sha256
    return found
