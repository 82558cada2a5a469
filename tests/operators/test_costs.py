"""Analytic costs against the published models, the real modules, the bytes of real quantisation, and torch's FLOP counter."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from operators.block import Block
from operators.costs import block_costs, block_weights, head_weights, model_parameters, model_weights, weight_bytes
from operators.quantize import quantize
from operators.specs import BlockSpec, FfnSpec, GlaSpec, GqaSpec, ModelDims, ShortConvSpec, SwaSpec, WeightSpec
from tests.operators.cases import ALL

DIMS = ModelDims(hidden_size=64)
CONV, GQA = ShortConvSpec(kernel_size=3), GqaSpec(heads=4, kv_heads=2, head_dim=16)
SWA, GLA = SwaSpec(heads=4, kv_heads=2, head_dim=16, window=8), GlaSpec(heads=4)


def block_of(operator):
    return BlockSpec(operator=operator, ffn=FfnSpec(intermediate_size=96))


@pytest.mark.parametrize(
    ("hidden_size", "heads", "intermediate_size", "parameters"),
    [(1024, 16, 4608, 354_483_968), (2048, 32, 8192, 1_170_340_608)],
    ids=["LFM2-350M", "LFM2-1.2B"],
)
def test_parameters_of_published_models(hidden_size, heads, intermediate_size, parameters):
    attention = GqaSpec(heads=heads, kv_heads=8, head_dim=64)
    layers = [attention if i in (2, 5, 8, 10, 12, 14) else ShortConvSpec(kernel_size=3) for i in range(16)]
    blocks = [BlockSpec(operator=operator, ffn=FfnSpec(intermediate_size=intermediate_size)) for operator in layers]
    assert model_parameters(blocks, ModelDims(hidden_size=hidden_size), vocab_size=65_536, tie_embeddings=True) == parameters


@pytest.mark.parametrize("case", ALL, ids=str)
def test_parameters_are_those_of_the_module(case):
    spec = BlockSpec(operator=case.spec, ffn=FfnSpec(intermediate_size=40))
    block, costs = Block(spec, case.dims), block_costs(spec, case.dims)
    assert costs.parameters == sum(parameter.numel() for parameter in block.parameters())
    assert costs.operator_parameters == sum(parameter.numel() for parameter in block.operator.parameters())
    assert costs.ffn_parameters == sum(parameter.numel() for parameter in block.ffn.parameters())
    assert costs.parameters - costs.operator_parameters - costs.ffn_parameters == 2 * case.dims.hidden_size


def test_names_of_a_whole_model():
    blocks = [block_of(CONV), block_of(GQA)]
    tied, untied = (model_weights(blocks, DIMS, vocab_size=100, tie_embeddings=tie) for tie in (True, False))
    assert [weight.name for weight in tied][:2] == ["embed_tokens.weight", "layers.0.operator_norm.weight"]
    assert tied[-1].name == "embedding_norm.weight"
    assert [weight.name for weight in untied][-2:] == ["embedding_norm.weight", "lm_head.weight"]
    for weights, tie in ((tied, True), (untied, False)):
        assert sum(weight.size for weight in weights) == model_parameters(blocks, DIMS, vocab_size=100, tie_embeddings=tie)
    assert sum(weight.size for weight in head_weights(DIMS, 100, True)) == 100 * 64 + 64


@pytest.mark.parametrize("columns", [32, 64, 40, 1, 256, 192])
@pytest.mark.parametrize("precision", ["int8", "int4", "int4g128"])
def test_quantised_bytes_are_those_of_the_quantiser(columns, precision):
    packed = quantize(np.random.default_rng(0).standard_normal((12, columns)).astype(np.float32), precision)
    spec = WeightSpec(name="w", shape=(12, columns), linear=True)
    assert weight_bytes(spec, precision) == packed.data.nbytes + packed.scales.nbytes
    assert weight_bytes(spec, "fp32") == 4 * 12 * columns


def test_only_linear_weights_are_quantised():
    costs = block_costs(block_of(CONV), DIMS)
    linear = 3 * 64 * 64 + 64 * 64 + 3 * 64 * 96
    other = 2 * 64 + 3 * 64
    assert costs.weight_bytes("fp32") == 4 * (linear + other)
    scales = (4 * 64 * 64 + 2 * 96 * 64) // 64 + 64 * 96 // 32  # rows of 64 are one group each, rows of 96 three
    assert costs.weight_bytes("int8") == linear + 4 * scales + 4 * other
    assert costs.weight_bytes("int4") == linear // 2 + linear // 32 * 4 + 4 * other


def test_state_bytes():
    def state_bytes(operator, **at):
        return block_costs(block_of(operator), DIMS).state_bytes(**at)

    assert state_bytes(CONV, batch=3, cache=1000) == 4 * 3 * 2 * 64
    assert state_bytes(GQA, batch=3, cache=1000) == 4 * 3 * 2 * 1000 * 2 * 16
    assert state_bytes(SWA, batch=3, cache=1000) == state_bytes(SWA, batch=3, cache=9_000_000) == 4 * 3 * 2 * 8 * 2 * 16
    assert state_bytes(GLA, batch=3, cache=1000) == 4 * 3 * 4 * (32 // 4) * (64 // 4)


@pytest.mark.parametrize("case", ALL, ids=str)
def test_flops_of_pieces_add_up(case):
    costs = block_costs(BlockSpec(operator=case.spec, ffn=FfnSpec(intermediate_size=40)), case.dims)
    whole = costs.flops(tokens=100, context=7)
    assert whole == costs.flops(tokens=60, context=7) + costs.flops(tokens=40, context=67)
    assert whole == sum(costs.flops(tokens=1, context=7 + t) for t in range(100))


def counted(block, x_BTD, state=None):
    # Of the fused attention and of what is written out for training on a CPU, the counter knows nothing.
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        block(x_BTD, state)
    return counter.get_total_flops()


@pytest.mark.parametrize("context", [0, 3, 30])
@pytest.mark.parametrize("operator", [CONV, GQA, SWA, GLA], ids=lambda spec: spec.kind)
def test_decode_flops_are_those_that_torch_counts(operator, context):
    """torch counts matrix products and convolutions only, so what it leaves out is taken off: the convolution's two gates, the decay
    of GLA's state."""
    spec = block_of(operator)
    block, state = Block(spec, DIMS), None
    if context:
        _, state = block(torch.randn(1, context, 64))
    uncounted = {"short_conv": 2 * 64, "gla": 32 * 64 // 4}.get(operator.kind, 0)
    assert counted(block, torch.randn(1, 1, 64), state) == block_costs(spec, DIMS).flops(tokens=1, context=context) - uncounted


def test_prefill_flops_are_those_that_torch_counts():
    """For full attention torch counts the square, of which the causal half is needed."""
    tokens = 40
    conv, gqa = (block_costs(block_of(operator), DIMS).flops(tokens=tokens, context=0) for operator in (CONV, GQA))
    assert counted(Block(block_of(CONV), DIMS), torch.randn(1, tokens, 64)) == conv - tokens * 2 * 64
    unseen = tokens * (tokens - 1) // 2
    assert counted(Block(block_of(GQA), DIMS), torch.randn(1, tokens, 64)) == gqa + 4 * 64 * unseen


def test_linear_flops_are_two_a_weight_and_token():
    costs = block_costs(block_of(CONV), DIMS)
    linear = sum(weight.size for weight in block_weights(block_of(CONV), DIMS) if weight.linear)
    mixing = 64 * (2 * 3 + 2)
    assert costs.flops(tokens=10, context=5) == 10 * (2 * linear + mixing)
