"""What the ONNX graph of every operator has to satisfy, ours or yours: subclass beside `OperatorSuite`, with the same cases.

    class TestMyOperatorInOnnx(OnnxSuite):
        @pytest.fixture(params=[OperatorCase(MyOperator(), MySpec(size=4))], ids=str)
        def case(self, request):
            return request.param

The operator is put into a block and written in every precision; reference = prefill = prefill then decode = prefill in chunks,
for one sequence and for a batch. The operator must be registered, by us or through an entry point.

The tolerances: fp32 differs by rounding, 1e-6 is seen. In int8 and int4 the reference has the same rounded weights and, on x86, rounds
the inputs of its products as the runtime does, so that 1e-6 is seen again, and 2e-3 where a value lies so near a step that the
two round it differently. Elsewhere kernels round in their own ways, and the error may be as large as rounding makes it.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest

from operators import reference
from operators.costs import block_costs
from operators.graph import Runner, chain_weights, random_weights, write_blocks
from operators.graph.check import FP32_TOLERANCE, ROUNDING_MARGIN, relative_error
from operators.quantize import dequantized, with_rounded_inputs
from operators.specs import PRECISIONS, BlockSpec, FfnSpec, Precision
from tests.contracts.operator_suite import OperatorCase

FFN = FfnSpec(intermediate_size=48)
TOKENS = 104
PIECES = {
    "prefill": (TOKENS,),
    "prefill then decode": (20, *(1,) * 50),
    "full windows then decode": (72, *(1,) * 32),
    "decode from the first token": (1,) * 40,
}
CHUNKS = {"short chunks": (5, 3, 1, 7, 2), "long chunks": (30, 1, 1, 70), "chunks then decode": (9, 60, *(1,) * 20)}
FLIP_TOLERANCE = 5e-3
KERNELS_ARE_KNOWN = platform.machine().lower() in ("x86_64", "amd64")


class OnnxSuite:
    """The contract of `operators.kinds.Operator.emit`."""

    @pytest.fixture
    def case(self) -> OperatorCase:
        raise NotImplementedError("override the fixture `case` with the specs to try")

    @pytest.fixture(params=PRECISIONS)
    def precision(self, request) -> Precision:
        return request.param

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory) -> Path:
        return tmp_path_factory.mktemp("graphs")

    @pytest.mark.parametrize("batch", [1, 2])
    @pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES.keys())
    def test_graph_equals_reference(self, case, precision, pieces, batch, folder):
        agrees(case, precision, pieces, batch, folder)

    @pytest.mark.parametrize("pieces", CHUNKS.values(), ids=CHUNKS.keys())
    def test_chunked_prefill_equals_reference(self, case, precision, pieces, folder):
        agrees(case, precision, pieces, 1, folder)

    def test_started_again_it_has_forgotten(self, case, folder):
        runner = graph(case, "fp32", folder)
        x_BTD = inputs(case, 1)[:, :30]
        outputs = []
        for _ in range(2):
            runner.start(batch=1, capacity=30)
            outputs.append(np.concatenate([runner.step(x_BTD[:, :20]), *(runner.step(x_BTD[:, t : t + 1]) for t in range(20, 30))], axis=1))
        assert np.array_equal(*outputs)

    def test_caches_are_those_that_the_operator_describes(self, case, precision, folder):
        info = graph(case, precision, folder).info
        states = case.operator.states(case.spec, case.dims)
        assert [state.shared for state in info.states] == [state.shared for state in states]
        feeds = {feed.name: feed for feed in info.feeds(batch=2, tokens=1, context=99)}
        assert [feeds[state.input].shape for state in info.states] == [state.resolve(batch=2, cache=100) for state in states]
        stored = sum(4 * int(np.prod(feeds[state.input].shape)) for state in info.states)
        assert stored == block_costs(block(case), case.dims).state_bytes(batch=2, cache=100)

    def test_file_holds_the_bytes_that_the_costs_say(self, case, precision, folder):
        model = onnx.load(graph(case, precision, folder).info.path)
        stored = sum(len(tensor.raw_data) for tensor in model.graph.initializer if tensor.name.startswith("layers."))
        assert stored == block_costs(block(case), case.dims).weight_bytes(precision)


def block(case: OperatorCase) -> BlockSpec:
    return BlockSpec(operator=case.spec, ffn=FFN)


@cache
def graph(case: OperatorCase, precision: Precision, folder: Path) -> Runner:
    path = folder / f"{case}-{precision}.onnx"
    write_blocks(path, [block(case)], case.dims, precision=precision, max_context=TOKENS, weights=weights(case))
    return Runner(path)


@cache
def weights(case: OperatorCase):
    return random_weights(chain_weights([block(case)], case.dims), seed=1)


def inputs(case: OperatorCase, batch: int) -> np.ndarray:
    return np.random.default_rng(2).standard_normal((batch, TOKENS, case.dims.hidden_size)).astype(np.float32)


@cache
def expected(case: OperatorCase, precision: Precision, batch: int, rounded: bool) -> np.ndarray:
    """What the block adds to its input, by the reference over the whole sequence; the past does not see what follows."""
    specs = chain_weights([block(case)], case.dims)
    own = dequantized(weights(case), specs, precision)
    if rounded:
        own = with_rounded_inputs(own, specs, precision)
    x_BTD = inputs(case, batch)
    return reference.block(block(case), case.dims, reference.part(own, "layers.0."), x_BTD)[0] - x_BTD


def agrees(case: OperatorCase, precision: Precision, pieces: tuple[int, ...], batch: int, folder: Path) -> None:
    """Run the pieces one after the other and compare every position."""
    x_BTD = inputs(case, batch)[:, : sum(pieces)]
    runner = graph(case, precision, folder)
    runner.start(batch=batch, capacity=sum(pieces))
    parts = [runner.step(part_BTD) for part_BTD in np.split(x_BTD, np.cumsum(pieces)[:-1], axis=1)]
    found_BTD = np.concatenate(parts, axis=1) - x_BTD
    exact_BTD = expected(case, precision, batch, False)[:, : sum(pieces)]
    if precision == "fp32":
        assert relative_error(found_BTD, exact_BTD) < FP32_TOLERANCE
        return
    rounded_BTD = expected(case, precision, batch, True)[:, : sum(pieces)]
    if KERNELS_ARE_KNOWN:
        assert relative_error(found_BTD, rounded_BTD) < FLIP_TOLERANCE
    else:
        assert relative_error(found_BTD, exact_BTD) < ROUNDING_MARGIN * relative_error(rounded_BTD, exact_BTD)
