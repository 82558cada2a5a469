"""The yardstick itself: what counts as the same, and that every kind of damage is longer than it."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch

from archsearch.errors import CheckpointError, InputError
from archsearch.model import LanguageModel
from archsearch.parity import (
    DECODE,
    PROMPT,
    blockwise,
    build,
    decode_logits,
    measure_parity,
    probe_lengths,
    relative_error,
    round_to_int8,
    torch_logits,
)
from archsearch.spec import ArchSpec
from operators.costs import model_weights
from operators.graph import random_weights

CONV = {"kind": "short_conv", "kernel_size": 3}
GQA = {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 16}
SWA = {"kind": "swa", "heads": 4, "kv_heads": 2, "head_dim": 16, "window": 8}


def spec_of(*operators, **overrides):
    layers = [{"operator": operator, "ffn": {"intermediate_size": 96}} for operator in operators]
    return ArchSpec.from_dict({"name": "test", "hidden_size": 64, "vocab_size": 100, "layers": layers} | overrides)


def weights_of(spec):
    names = model_weights(spec.layers, spec.dims, vocab_size=spec.vocab_size, tie_embeddings=spec.tie_embeddings)
    return dict(random_weights(names, seed=1))


class TorchDecoder:
    """A runtime that is torch itself, step by step; `damage` is added to the logits of one position."""

    def __init__(self, spec, weights, damage=None):
        self.model, self.damage = build(spec, weights), damage or {}

    def start(self, positions):
        self.state, self.seen = None, 0

    @torch.inference_mode()
    def step(self, ids):
        logits, self.state = self.model(torch.tensor([list(ids)]), self.state)
        self.seen += len(ids)
        return logits[0, -1].numpy() + np.float32(self.damage.get(self.seen, 0)) * np.arange(logits.shape[-1], dtype=np.float32)


def measured(spec, decoder, tmp_path, **options):
    weights = options.pop("weights", None) or weights_of(spec)
    defaults = {"format": "onnx", "precision": "fp32", "path": tmp_path, "max_context": 256}
    defaults["rounding"] = blockwise(spec, weights, options.get("precision", "fp32"))
    return measure_parity(decoder, spec, weights, **(defaults | options))


def test_relative_error_ignores_what_softmax_ignores():
    logits = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    assert relative_error(logits + 3, logits) < 1e-6
    assert relative_error(logits * 1.1, logits) == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_never_passes(bad, tmp_path):
    logits = np.ones((2, 3), np.float32) * np.arange(3, dtype=np.float32)
    broken = logits.copy()
    broken[1, 1] = bad
    with np.errstate(invalid="ignore"):
        assert math.isnan(relative_error(broken, logits))
    spec = spec_of(CONV, GQA)
    with np.errstate(invalid="ignore"):
        report = measured(spec, TorchDecoder(spec, weights_of(spec), damage={PROMPT + 3: bad}), tmp_path)
    assert not report.holds
    assert report.quality is None


def test_torch_agrees_with_itself_step_by_step(tmp_path):
    spec = spec_of(CONV, SWA, GQA)
    report = measured(spec, TorchDecoder(spec, weights_of(spec)), tmp_path)
    assert report.holds
    assert report.relative_error < 1e-5
    assert report.greedy_agreement == 1
    assert report.decoded_tokens == 64
    assert report.quality.text == "greedy continuation"
    assert report.quality.bits_per_byte is None
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["path"] == str(tmp_path)


@pytest.mark.parametrize("position", [PROMPT, PROMPT + 1, PROMPT + DECODE], ids=["prefill", "first decode", "last decode"])
def test_one_wrong_position_is_enough(position, tmp_path):
    spec = spec_of(CONV, GQA)
    assert not measured(spec, TorchDecoder(spec, weights_of(spec), damage={position: 1e-3}), tmp_path).holds


def test_weights_that_differ_a_little_do_not_pass(tmp_path):
    spec = spec_of(CONV, GQA)
    weights = weights_of(spec)
    other = weights | {"layers.0.operator_norm.weight": weights["layers.0.operator_norm.weight"] * np.float32(1.01)}
    assert not measured(spec, TorchDecoder(spec, other), tmp_path, weights=weights).holds


def test_held_out_text_gives_bits_per_byte(tmp_path):
    spec = spec_of(CONV, GQA)
    weights = weights_of(spec)
    held_out = np.random.default_rng(0).integers(0, 100, 150).tolist()
    sizes = np.full(100, 2)
    report = measured(spec, TorchDecoder(spec, weights), tmp_path, held_out=held_out, token_bytes_V=sizes)
    log_probabilities = torch.from_numpy(torch_logits(build(spec, weights), held_out, 0)).double().log_softmax(-1)
    nats = -sum(float(log_probabilities[t, held_out[t + 1]]) for t in range(149))
    assert report.quality.text == "held-out text"
    assert report.quality.tokens == 150
    assert report.quality.bits_per_byte_fp32 == pytest.approx(nats / math.log(2) / (149 * 2), rel=1e-6)
    assert report.quality.bits_per_byte == pytest.approx(report.quality.bits_per_byte_fp32, rel=1e-4)


def test_quality_is_measured_against_the_weights_as_trained(tmp_path):
    """An exact int4 runtime holds parity with the rounded weights and still shows what rounding them cost."""
    from operators.quantize import dequantized

    spec = spec_of(CONV, GQA)
    weights = weights_of(spec)
    names = model_weights(spec.layers, spec.dims, vocab_size=100, tie_embeddings=True)
    report = measured(spec, TorchDecoder(spec, dequantized(weights, names, "int4")), tmp_path, precision="int4")
    assert report.relative_error < 1e-5
    assert report.quality.kl_nats > 1e-3
    assert report.quality.mean_logit_difference > 0.01
    assert report.quality.top1_agreement < 1
    assert report.activation_rounding > 1e-3


def test_short_held_out_text_is_still_scored(tmp_path):
    spec = spec_of(CONV, GQA)
    report = measured(spec, TorchDecoder(spec, weights_of(spec)), tmp_path, held_out=[1, 2, 3])
    assert report.prompt_tokens == PROMPT
    assert report.quality.tokens == 3


def test_tokens_of_another_vocabulary_are_refused(tmp_path):
    spec = spec_of(CONV, GQA)
    with pytest.raises(InputError, match="held_out: token ids must be 0 to 99"):
        measured(spec, TorchDecoder(spec, weights_of(spec)), tmp_path, held_out=[1, 100])


def test_probe_fills_windows_before_it_decodes():
    assert probe_lengths(spec_of(CONV, GQA), 8192) == (64, 64)
    assert probe_lengths(spec_of(SWA | {"window": 256}, GQA), 8192) == (264, 64)
    assert probe_lengths(spec_of(SWA | {"window": 1024}), 8192) == (1024 + 56, 64)  # a buffer of 1088 rows is moved on the way
    assert probe_lengths(spec_of(SWA | {"window": 4096}), 1024) == (1024 - 64, 64)
    with pytest.raises(InputError, match="max_context: 64 positions have no room for the 65 tokens"):
        probe_lengths(spec_of(GQA), 64)


@pytest.mark.parametrize("granularity", [32, None])
@pytest.mark.parametrize("channels", [64, 40])
def test_rounding_to_int8(granularity, channels):
    x = torch.randn(3, channels, generator=torch.Generator().manual_seed(0))
    rounded = round_to_int8(x, granularity)
    blocks = x.split(granularity or channels, dim=-1)
    assert rounded.shape == x.shape
    for block, found in zip(blocks, rounded.split(granularity or channels, dim=-1), strict=True):
        step = block.abs().amax(-1, keepdim=True) / 127
        assert ((found - block).abs() <= step / 2 * 1.001).all()
        assert torch.allclose((found / step).round(), found / step, atol=1e-3)
    assert torch.equal(round_to_int8(torch.zeros(2, 8), 32), torch.zeros(2, 8))


def test_machines_whose_kernels_are_not_known_get_the_wider_estimate(tmp_path, monkeypatch):
    spec = spec_of(CONV, GQA)
    estimates = {}
    for machine in ("x86_64", "aarch64"):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        estimates[machine] = measured(spec, TorchDecoder(spec, weights_of(spec)), tmp_path, precision="int8").activation_rounding
    assert estimates["aarch64"] >= estimates["x86_64"] > 0


def test_rounding_reaches_every_product_and_the_head():
    """Each linear weight's input is rounded: rounding all but one of them gives other logits."""
    spec = spec_of(CONV, GQA)
    model = build(spec, weights_of(spec))
    linear = {w.name for w in model_weights(spec.layers, spec.dims, vocab_size=100, tie_embeddings=True) if w.linear}
    ids, by_32 = list(range(20)), partial(round_to_int8, granularity=32)
    everything = torch_logits(model, ids, 0, rounding=(linear, by_32))
    assert relative_error(torch_logits(model, ids, 0, rounding=(set(), by_32)), torch_logits(model, ids, 0)) > 1e-4
    for name in sorted(linear - {"embed_tokens.weight"}):
        assert not np.array_equal(torch_logits(model, ids, 0, rounding=(linear - {name}, by_32)), everything), name
    assert np.array_equal(torch_logits(model, ids, 0), torch_logits(model, ids, 0))


def test_weights_of_another_architecture_are_a_damaged_checkpoint():
    spec = spec_of(CONV, GQA)
    with pytest.raises(CheckpointError, match=r"the weights are not those of test: .*layers\.1"):
        build(spec, {name: value for name, value in weights_of(spec).items() if not name.startswith("layers.1.")})


def test_decode_reads_the_prompt_once_and_then_token_by_token():
    class Recorder:
        def start(self, positions):
            self.calls = [positions]

        def step(self, ids):
            self.calls.append(list(ids))
            return np.zeros(3, np.float32)

    recorder = Recorder()
    assert decode_logits(recorder, [5, 6, 7, 8], 2).shape == (3, 3)
    assert recorder.calls == [4, [5, 6], [7], [8]]


def test_build_is_for_evaluation():
    model = build(spec_of(CONV, GQA), weights_of(spec_of(CONV, GQA)))
    assert isinstance(model, LanguageModel)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
