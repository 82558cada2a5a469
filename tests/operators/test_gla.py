"""Gated linear attention: the contract, and what is particular to it."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from operators.gla import CHUNK, GlaModule, chunked, step
from operators.specs import GlaSpec, ModelDims
from tests.contracts.operator_suite import OperatorSuite, training_elements
from tests.operators.cases import GLA


class TestGla(OperatorSuite):
    @pytest.fixture(params=GLA, ids=str)
    def case(self, request):
        return request.param


def tensors(tokens, decay, *, dtype=torch.float64, heads=2, K=8, V=6, batch=2):
    """q, k, v, log-decays and a first state; `decay` is the strongest log-decay of a step."""
    rng = torch.Generator().manual_seed(0)
    q, k = (torch.randn(batch, heads, tokens, K, generator=rng, dtype=torch.float64) for _ in range(2))
    v = torch.randn(batch, heads, tokens, V, generator=rng, dtype=torch.float64)
    g = decay * torch.rand(batch, heads, tokens, K, generator=rng, dtype=torch.float64)
    S = torch.randn(batch, heads, K, V, generator=rng, dtype=torch.float64)
    return [x.to(dtype) for x in (q, k, v, g, S)]


@pytest.mark.parametrize("tokens", [1, 5, CHUNK, CHUNK + 1, 2 * CHUNK + 7])
def test_chunks_equal_the_parallel_form(tokens):
    """`o_i = sum_{j<=i} (q_i * exp(G_i - G_j)) k_j v_j` and the first state's share, written out as in the paper's section 4.1."""
    q, k, v, g, S = tensors(tokens, -0.5)
    G = g.cumsum(2)
    decays = (G[:, :, :, None] - G[:, :, None]).exp()
    scores = torch.einsum("bhik,bhijk,bhjk->bhij", q, decays, k).tril()
    expected = scores @ v + (q * G.exp()) @ S
    o, _ = chunked(q, k, v, g, S)
    assert_allclose(o, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("decay", [0.0, -0.1, -5.0, -50.0, -1000.0])
def test_float32_is_safe_whatever_the_decay(decay):
    """Decays of a chunk sum up to 64,000 here; a separate exp(-G) would overflow beyond 88."""
    exact = tensors(130, decay)
    rough = [x.float().requires_grad_() for x in exact]
    o, S = chunked(*rough)
    outputs, state = [], exact[4]
    for t in range(130):
        y, state = step(*(x[:, :, t : t + 1] for x in exact[:4]), state)
        outputs.append(y)
    expected = torch.cat(outputs, dim=2)
    assert_allclose(o.detach(), expected, rtol=0, atol=3e-6 * float(expected.abs().max()))
    assert_allclose(S.detach(), state, rtol=0, atol=3e-6 * float(state.abs().max()))
    (o.sum() + S.sum()).backward()
    assert all(torch.isfinite(x.grad).all() for x in rough)


def test_gates_follow_the_published_formula():
    """With zero input the log-decay is logsigmoid(bias) / 16, channel by channel: the state fades by that and nothing enters."""
    D = 8
    module = GlaModule(GlaSpec(heads=2), ModelDims(hidden_size=D)).double()
    bias = torch.tensor([-3.0, 0.0, 2.0, 40.0], dtype=torch.float64)
    with torch.no_grad():
        module.gk_proj[1].bias.copy_(bias)
    S_BHKV = torch.ones(1, 2, 2, 4, dtype=torch.float64)
    _, (faded_BHKV,) = module(torch.zeros(1, 100, D, dtype=torch.float64), (S_BHKV,))
    expected = (1 / (1 + np.exp(-bias.numpy()))) ** (100 / 16)
    assert_allclose(faded_BHKV[0, :, :, 0].flatten().detach(), expected, rtol=1e-9)


def test_only_the_up_projection_of_the_gate_has_a_bias():
    module = GlaModule(GlaSpec(heads=2), ModelDims(hidden_size=8))
    assert [name for name, _ in module.named_parameters() if "bias" in name] == ["gk_proj.1.bias"]


def test_state_stays_float32_under_bfloat16():
    module = GlaModule(GlaSpec(heads=2), ModelDims(hidden_size=8)).bfloat16()
    y_BTD, (S_BHKV,) = module(torch.randn(1, 70, 8, dtype=torch.bfloat16))
    assert y_BTD.dtype == torch.bfloat16
    assert S_BHKV.dtype == torch.float32
    y_BTD, (S_BHKV,) = module(torch.randn(1, 1, 8, dtype=torch.bfloat16), (S_BHKV,))
    assert y_BTD.dtype == torch.bfloat16
    assert S_BHKV.dtype == torch.float32


def test_the_work_grows_with_the_length_alone():
    """Four times the tokens, four times the elements that forward and backward pass touch."""
    module = GlaModule(GlaSpec(heads=2), ModelDims(hidden_size=16)).double()
    short, long = (training_elements(module, tokens, 16) for tokens in (512, 2048))
    assert 3.8 < long / short < 4.2
