"""The check before timing passes right graphs and catches wrong ones: each mistake here is one that somebody could make."""

from dataclasses import replace

import numpy as np
import pytest

from operators.builtin import SLACK
from operators.costs import model_weights
from operators.graph import GraphBuilder, Runner, chain_weights, check_blocks, check_model, emit, random_weights, write_blocks, write_model
from operators.graph.check import DECODE, probe_length
from operators.specs import PRECISIONS, BlockSpec, FfnSpec, GlaSpec, GqaSpec, GraphError, ModelDims, ShortConvSpec, SwaSpec

DIMS = ModelDims(hidden_size=64)
FFN = FfnSpec(intermediate_size=96)
CONV = ShortConvSpec(kernel_size=3)
GQA = GqaSpec(heads=4, kv_heads=2, head_dim=16)
SWA = SwaSpec(heads=4, kv_heads=2, head_dim=16, window=8)
GLA = GlaSpec(heads=4, gate_normalizer=1.0)


def block(operator):
    return BlockSpec(operator=operator, ffn=FFN)


def weights_of(operator, dims=DIMS):
    return dict(random_weights(chain_weights([block(operator)], dims), 0))


def write(path, operator, precision, *, weights=None, dims=DIMS):
    write_blocks(path, [block(operator)], dims, precision=precision, max_context=64, weights=weights or weights_of(operator))


def check(path, operator, precision):
    return check_blocks(path, [block(operator)], DIMS, weights_of(operator), precision=precision, decode=16)


@pytest.fixture(params=PRECISIONS)
def precision(request):
    return request.param


@pytest.fixture
def path(tmp_path):
    return tmp_path / "block.onnx"


@pytest.mark.parametrize("operator", [CONV, GQA, SWA, GLA], ids=lambda spec: spec.kind)
def test_right_graphs_pass(operator, precision, path):
    write(path, operator, precision)
    assert check(path, operator, precision) < (1e-5 if precision == "fp32" else 0.025)


# -- mistakes in what is written: (operator, what is done to the weights) ---------------------------------------------------------


def swap_gates(weights):
    name = "layers.0.operator.in_proj.weight"
    weights[name] = weights[name].reshape(3, -1, DIMS.hidden_size)[[1, 0, 2]].reshape(weights[name].shape)


def reverse_taps(weights):
    weights["layers.0.operator.conv.weight"] = weights["layers.0.operator.conv.weight"][..., ::-1]


def swap_keys_and_values(weights):
    names = "layers.0.operator.k_proj.weight", "layers.0.operator.v_proj.weight"
    weights.update(zip(names, [weights[name] for name in reversed(names)], strict=True))


def forget_q_norm(weights):
    weights["layers.0.operator.q_layernorm.weight"] = np.ones_like(weights["layers.0.operator.q_layernorm.weight"])


def forget_gate_bias(weights):
    weights["layers.0.operator.gk_proj.1.bias"] = np.zeros_like(weights["layers.0.operator.gk_proj.1.bias"])


def swap_gate_and_up(weights):
    names = "layers.0.ffn.w1.weight", "layers.0.ffn.w3.weight"
    weights.update(zip(names, [weights[name] for name in reversed(names)], strict=True))


@pytest.mark.parametrize(
    ("operator", "spoil"),
    [
        (CONV, swap_gates),
        (CONV, reverse_taps),
        (GQA, swap_keys_and_values),
        (SWA, forget_q_norm),
        (GQA, forget_q_norm),
        (GLA, forget_gate_bias),
        (GLA, swap_gate_and_up),
    ],
    ids=lambda value: getattr(value, "kind", None) or value.__name__,
)
def test_wrong_weights_are_caught(operator, spoil, precision, path):
    weights = weights_of(operator)
    spoil(weights)
    write(path, operator, precision, weights=weights)
    caught(path, operator, precision)


@pytest.mark.parametrize(
    ("operator", "wrong"),
    [
        (SWA, replace(SWA, window=7)),
        (SWA, replace(SWA, window=9)),
        (SWA, GQA),
        (GQA, replace(SWA, window=12)),
        (GLA, replace(GLA, gate_normalizer=2.0)),
    ],
    ids=["window one short", "window one long", "no window", "a window", "another decay"],
)
def test_another_operator_is_caught(operator, wrong, precision, path):
    write(path, wrong, precision, weights=weights_of(operator))
    caught(path, operator, precision)


@pytest.mark.parametrize("operator", [GQA, SWA], ids=lambda spec: spec.kind)
@pytest.mark.parametrize("dims", [replace(DIMS, rope_theta=1e4), replace(DIMS, norm_eps=0.1)], ids=["rope_theta", "norm_eps"])
def test_other_dimensions_are_caught(operator, dims, precision, path):
    write(path, operator, precision, dims=dims, weights=weights_of(operator))
    caught(path, operator, precision)


# -- mistakes in how it is written -----------------------------------------------------------------------------------------------


def test_a_dropped_norm_is_caught(precision, path, monkeypatch):
    norm = emit._head_norm
    monkeypatch.setattr(emit, "_head_norm", lambda graph, x, size, name: x if "q_layernorm" in name else norm(graph, x, size, name))
    write(path, GQA, precision)
    caught(path, GQA, precision)


def test_a_dropped_activation_is_caught(precision, path, monkeypatch):
    monkeypatch.setattr(GraphBuilder, "silu", lambda graph, x: x)
    write(path, CONV, precision)
    caught(path, CONV, precision)


def test_wrong_positions_are_caught(precision, path, monkeypatch):
    tables = GraphBuilder.rotary_caches

    def late(graph, head_dim):
        """From the last token of the prefill on, one position too far."""
        names = tables(graph, head_dim)
        frequencies = graph.dims.rope_theta ** (-np.arange(0, head_dim, 2) / head_dim)
        angles = (np.arange(64) + (np.arange(64) > 11))[:, None] * frequencies
        for name, values in zip(names, (np.cos(angles), np.sin(angles)), strict=True):
            graph.constant(f"{name}.late", values.astype(np.float32))
        return tuple(f"{name}.late" for name in names)

    monkeypatch.setattr(GraphBuilder, "rotary_caches", late)
    write(path, GQA, precision)
    caught(path, GQA, precision)


# -- mistakes in how it is run ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", [CONV, GLA], ids=lambda spec: spec.kind)
def test_a_stale_state_is_caught(operator, precision, path, monkeypatch):
    write(path, operator, precision)
    step = Runner.step

    def forgetful(runner, values):
        before = dict(runner._states)
        output = step(runner, values)
        runner._states = before
        return output

    monkeypatch.setattr(Runner, "step", forgetful)
    caught(path, operator, precision)


@pytest.mark.parametrize("operator", [SWA, GQA], ids=lambda spec: spec.kind)
def test_a_mask_that_does_not_grow_is_caught(operator, precision, path, monkeypatch):
    write(path, operator, precision)
    step = Runner.step

    def stuck(runner, values):
        output = step(runner, values)
        runner.seen = min(runner.seen, 12)
        return output

    monkeypatch.setattr(Runner, "step", stuck)
    caught(path, operator, precision)


def caught(path, operator, precision):
    with pytest.raises(GraphError, match=r"block\.onnx computes something else than its reference: relative error"):
        check(path, operator, precision)


# -- whole models ----------------------------------------------------------------------------------------------------------------

SIZES = {"vocab_size": 50, "tie_embeddings": True}


@pytest.mark.parametrize("blocks", [(), (block(CONV), block(GQA), block(GLA), block(SWA))], ids=["head", "four layers"])
@pytest.mark.parametrize("sizes", [SIZES, SIZES | {"tie_embeddings": False}], ids=["tied", "untied"])
@pytest.mark.parametrize("logits", ["last", "all"])
@pytest.mark.parametrize("dims", [DIMS, ModelDims(hidden_size=48)], ids=["64", "48"])
def test_right_models_pass(blocks, sizes, logits, dims, precision, tmp_path):
    path = tmp_path / "model.onnx"
    weights = random_weights(model_weights(blocks, dims, **sizes), 0)
    write_model(path, blocks, dims, precision=precision, max_context=64, weights=weights, logits=logits, **sizes)
    check_model(path, blocks, dims, weights, precision=precision, **sizes)
    check_model(path, blocks, dims, weights, precision=precision, batch=2, **sizes)


def test_layers_in_the_wrong_order_are_caught(precision, tmp_path):
    blocks = (block(CONV), block(GQA))
    weights = dict(random_weights(model_weights(blocks, DIMS, **SIZES), 0))
    write_model(tmp_path / "model.onnx", blocks, DIMS, precision=precision, max_context=64, weights=weights, **SIZES)
    names = [name for name in weights if name.startswith("layers.0.ffn")]
    for name in names:
        other = name.replace("layers.0", "layers.1")
        weights[name], weights[other] = weights[other], weights[name]
    with pytest.raises(GraphError, match="computes something else"):
        check_model(tmp_path / "model.onnx", blocks, DIMS, weights, precision=precision, **SIZES)


def test_not_a_number_is_caught(path):
    weights = weights_of(CONV)
    weights["layers.0.ffn.w2.weight"] = np.full_like(weights["layers.0.ffn.w2.weight"], np.nan)
    write(path, CONV, "fp32", weights=weights)
    caught(path, CONV, "fp32")


@pytest.mark.parametrize("window", [1, 5, 16, 64, 100, 256, 512])
def test_the_probe_overflows_a_windows_buffer_and_has_it_moved_while_decoding(window):
    """The runtime moves a buffer of `window + slack` rows when it is full, and then every `slack + 1` tokens."""
    slack = window // SLACK
    prefill = probe_length([block(replace(SWA, window=window))])
    assert prefill > window + slack
    assert any((total - window - slack - 1) % (slack + 1) == 0 for total in range(prefill + 1, prefill + DECODE + 1))
