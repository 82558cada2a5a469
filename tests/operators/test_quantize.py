"""Weights in blocks: how far values move, and that the runtime reads and computes exactly what we say it does."""

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose
from onnx import TensorProto, helper, numpy_helper

from operators import quantize as module
from operators.costs import BITS, GROUPS, group_size
from operators.quantize import RoundedInputs, dequantize, dequantized, quantize, with_rounded_inputs
from operators.specs import WeightSpec
from tests.contracts.onnx_suite import KERNELS_ARE_KNOWN

SHAPES = [(7, 32), (64, 64), (5, 40), (3, 24), (96, 100), (33, 256), (5, 192)]


def matrix(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(op, order, feeds, constants, **attributes):
    """One node of com.microsoft in the runtime; `order` names its inputs."""
    kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in feeds.items()}
    inputs = [helper.make_tensor_value_info(name, kinds[name], value.shape) for name, value in feeds.items()]
    node = helper.make_node(op, order, ["y"], domain="com.microsoft", **attributes)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], op, inputs, [output], [numpy_helper.from_array(value, name) for name, value in constants.items()])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]


def product(x, packed, accuracy_level):
    return run(
        "MatMulNBits",
        ["x", "data", "scales"],
        {"x": x},
        {"data": packed.data, "scales": packed.scales},
        N=len(packed.data),
        K=packed.columns,
        bits=packed.bits,
        block_size=packed.block,
        accuracy_level=accuracy_level,
    )


def relative_error(found, expected):
    return np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))


QUANTIZED = pytest.mark.parametrize("precision", ["int8", "int4", "int4g128"])


@QUANTIZED
@settings(max_examples=60, deadline=None)
@given(
    weight=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=70),
        elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False).filter(lambda v: v == 0 or abs(v) > 1e-6),
    )
)
def test_no_value_moves_further_than_half_a_step(weight, precision):
    packed = quantize(weight, precision)
    bits, block = BITS[precision], group_size(precision, weight.shape[1])
    assert packed.data.shape == (len(weight), -(-weight.shape[1] // block), block * bits // 8)
    assert packed.block == block
    steps = np.repeat(np.abs(packed.scales), block, axis=1)[:, : weight.shape[1]]
    moved = np.abs(dequantize(packed) - weight)
    # The extreme of a block is exact; one of the same size and the other sign is a whole step away, at the end of the scale.
    extreme = np.abs(weight) >= steps * ((1 << (bits - 1)) - 0.5)
    slack = 1e-5 * np.abs(weight)
    assert (moved <= np.where(extreme, 1.0, 0.5) * steps + slack).all()


@QUANTIZED
def test_zeros_stay_zeros_and_extremes_are_exact(precision):
    weight = matrix((4, 256))
    weight[1] = 0
    back, block = dequantize(quantize(weight, precision)), GROUPS[precision]
    assert (back[1] == 0).all()
    blocked, rounded = weight.reshape(4, -1, block), back.reshape(4, -1, block)
    at = np.abs(blocked).argmax(-1)[..., None]
    assert_allclose(np.take_along_axis(rounded, at, -1), np.take_along_axis(blocked, at, -1), rtol=1e-6)


@QUANTIZED
def test_parts_do_not_show(precision, monkeypatch):
    weight = matrix((50, 70))
    whole = quantize(weight, precision)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 7 * 70)
    parts = quantize(weight, precision)
    assert np.array_equal(whole.data, parts.data)
    assert np.array_equal(whole.scales, parts.scales)


@QUANTIZED
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_runtime_computes_with_the_same_weights(shape, precision):
    packed, x = quantize(matrix(shape), precision), matrix((9, shape[1]), seed=1)
    expected = x.astype(np.float64) @ dequantize(packed).astype(np.float64).T
    assert relative_error(product(x, packed, accuracy_level=0), expected) < 1e-6


@pytest.mark.skipif(not KERNELS_ARE_KNOWN, reason="how this processor's kernels round their inputs is not known")
@pytest.mark.parametrize("tokens", [1, 9])
@QUANTIZED
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_runtime_rounds_its_inputs_as_rounded_inputs_does(shape, precision, tokens):
    packed, x = quantize(matrix(shape), precision), matrix((tokens, shape[1]), seed=1)
    weight = with_rounded_inputs({"w": dequantize(packed)}, [WeightSpec(name="w", shape=shape, linear=True)], precision)["w"]
    assert isinstance(weight, RoundedInputs)
    exact = x.astype(np.float64) @ np.asarray(weight, np.float64).T
    rounded = weight.round_inputs(x.astype(np.float64)) @ np.asarray(weight, np.float64).T
    assert relative_error(rounded, exact) > 1e-3  # it does round
    assert relative_error(product(x, packed, accuracy_level=4), rounded) < 1e-6


@QUANTIZED
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_runtime_reads_the_same_rows(shape, precision):
    packed, ids = quantize(matrix(shape), precision), np.array([[0, shape[0] - 1, 1], [2, 2, 0]])
    rows = run(
        "GatherBlockQuantized",
        ["data", "ids", "scales"],
        {"ids": ids},
        {"data": packed.data, "scales": packed.scales[..., None]},
        bits=packed.bits,
        block_size=packed.block,
        gather_axis=0,
        quantize_axis=2,
    )
    assert_allclose(rows.reshape(2, 3, -1)[..., : shape[1]], dequantize(packed)[ids], rtol=1e-6)


@pytest.mark.parametrize(
    ("columns", "size"), [(4608, 128), (1024, 128), (192, 64), (320, 64), (96, 32), (40, 32), (24, 32), (1, 32)], ids=str
)
def test_rows_are_whole_in_groups_of_at_most_128_where_they_can_be(columns, size):
    assert group_size("int8", columns) == group_size("int4g128", columns) == size
    assert group_size("int4", columns) == 32


@pytest.mark.parametrize("group", [32, None])
def test_rounded_inputs_have_255_levels_in_each_group(group):
    weight = np.zeros((3, 70)).view(RoundedInputs)
    weight.group = group
    x = matrix((2, 5, 70)).astype(np.float64)
    x[0, 0] = 0
    rounded = weight.round_inputs(x)
    assert (rounded[0, 0] == 0).all()
    for part in np.split(np.arange(70), [32, 64] if group else []):
        step = np.abs(x[..., part]).max(-1, keepdims=True) / 127
        assert (np.abs(rounded[..., part] - x[..., part]) <= step / 2 + 1e-12).all()
        assert_allclose(np.abs(rounded[..., part]).max(-1), np.abs(x[..., part]).max(-1))


def test_only_linear_weights_are_rounded():
    specs = [WeightSpec(name="a", shape=(4, 40), linear=True), WeightSpec(name="b", shape=(4, 40), linear=False)]
    weights = {"a": matrix((4, 40)), "b": matrix((4, 40), seed=1)}
    assert dequantized(weights, specs, "fp32") == weights
    rounded = dequantized(weights, specs, "int4")
    assert rounded["b"] is weights["b"]
    assert 0.01 < relative_error(rounded["a"], weights["a"]) < 0.15
    assert relative_error(dequantized(weights, specs, "int8")["a"], weights["a"]) < 0.01
    marked = with_rounded_inputs(weights, specs, "int4")
    assert isinstance(marked["a"], RoundedInputs)
    assert not isinstance(marked["b"], RoundedInputs)
