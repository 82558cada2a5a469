"""GQA and SWA: the contract, and what is particular to them."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from operators import reference
from operators.attention import AttentionModule, band, rotary, rotate
from operators.specs import GqaSpec, ModelDims, SwaSpec
from tests.contracts.operator_suite import OperatorSuite, training_elements
from tests.operators.cases import GQA, SWA

DIMS = ModelDims(hidden_size=16)


class TestGqa(OperatorSuite):
    @pytest.fixture(params=GQA, ids=str)
    def case(self, request):
        return request.param


class TestSwa(OperatorSuite):
    @pytest.fixture(params=SWA, ids=str)
    def case(self, request):
        return request.param


def swa(window):
    torch.manual_seed(0)
    return AttentionModule(SwaSpec(heads=4, kv_heads=2, head_dim=8, window=window), DIMS).double()


def gqa():
    torch.manual_seed(0)
    return AttentionModule(GqaSpec(heads=4, kv_heads=2, head_dim=8), DIMS).double()


@pytest.mark.parametrize("window", [1, 2, 16, 130])
@pytest.mark.parametrize("steps", [0, 3], ids=["prefill", "after a state"])
def test_swa_sees_exactly_its_window(window, steps):
    """A change of token t is felt by token t + window - 1, and not by t + window."""
    module, t, tokens = swa(window), 7, 7 + window + 20
    x_BTD = torch.randn(1, tokens, DIMS.hidden_size, dtype=torch.float64)
    changed_BTD = x_BTD.clone()
    changed_BTD[:, t] += 1

    def outputs(x_BTD):
        first, state = module(x_BTD[:, : tokens - steps])
        return torch.cat([first, *([module(x_BTD[:, tokens - steps :], state)[0]] if steps else [])], dim=1)

    difference_T = (outputs(changed_BTD) - outputs(x_BTD)).abs().amax(dim=(0, 2)).detach().numpy()
    assert np.flatnonzero(difference_T > 1e-12).tolist() == list(range(t, t + window))


@pytest.mark.parametrize("window", [40, 41, 10_000])
def test_window_as_long_as_the_sequence_is_full_attention(window):
    x_BTD = torch.randn(2, 40, DIMS.hidden_size, dtype=torch.float64)
    assert_allclose(swa(window)(x_BTD)[0].detach(), gqa()(x_BTD)[0].detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", [1, 4, 100])
@pytest.mark.parametrize("tokens", [3, 50])
def test_swa_state_holds_its_window_and_no_more(window, tokens):
    keys, values, position = swa(window)(torch.randn(2, tokens, DIMS.hidden_size, dtype=torch.float64))[1]
    kept = min(tokens, window - 1)
    for tensor in (keys, values):
        assert tensor.shape == (2, 2, kept, 8)
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    assert position == tokens


def test_position_goes_on_long_after_the_window():
    """500 steps with a window of 4: the reference numbers its tokens by itself."""
    module = swa(4)
    x_BTD = torch.randn(1, 500, DIMS.hidden_size, dtype=torch.float64)
    state, outputs = None, []
    with torch.no_grad():
        for t in range(500):
            y_BTD, state = module(x_BTD[:, t : t + 1], state)
            outputs.append(y_BTD)
    weights = {name: value.numpy() for name, value in module.state_dict().items()}
    expected_BTD, _ = reference.attention(SwaSpec(heads=4, kv_heads=2, head_dim=8, window=4), DIMS, weights, x_BTD.numpy())
    assert_allclose(torch.cat(outputs, dim=1), expected_BTD, rtol=1e-9, atol=1e-9)
    assert state[2] == 500


def test_the_work_of_a_window_grows_with_the_length_alone():
    """Four times the tokens, four times the elements that forward and backward pass touch."""
    short, long = (training_elements(swa(100), tokens, DIMS.hidden_size) for tokens in (512, 2048))
    assert 3.8 < long / short < 4.2


def test_queries_and_keys_are_normalised():
    """Ten times the query and key projections change nothing but what eps does."""
    module, x_BTD = gqa(), torch.randn(1, 12, DIMS.hidden_size, dtype=torch.float64)
    y_BTD, _ = module(x_BTD)
    with torch.no_grad():
        module.q_proj.weight.mul_(10)
        module.k_proj.weight.mul_(10)
    assert_allclose(module(x_BTD)[0].detach(), y_BTD.detach(), rtol=0, atol=1e-3)


def test_rotation_is_multiplication_by_complex_phases():
    """Channel i and i + K/2 are real and imaginary part; both versions, at positions up to a million."""
    K, theta = 16, 1e6
    positions = np.array([0, 1, 17, 4096, 1_000_000])
    x_TK = np.random.default_rng(0).standard_normal((len(positions), K))
    phases = np.exp(1j * positions[:, None] / theta ** (np.arange(K // 2) * 2 / K))
    turned = (x_TK[:, : K // 2] + 1j * x_TK[:, K // 2 :]) * phases
    expected_TK = np.concatenate([turned.real, turned.imag], axis=1)
    cos, sin = rotary(torch.from_numpy(positions), K, theta)
    assert_allclose(rotate(torch.from_numpy(x_TK)[None, None], cos, sin)[0, 0], expected_TK, rtol=1e-9, atol=1e-9)
    for row, (position, x_K) in enumerate(zip(positions, x_TK, strict=True)):
        assert_allclose(reference.rotate(x_K, int(position), theta), expected_TK[row], rtol=1e-9, atol=1e-9)


def test_band_is_the_textbook_mask():
    rows = ["x....", "xx...", "xxx..", ".xxx.", "..xxx"]
    expected = torch.tensor([[mark == "x" for mark in row] for row in rows])
    assert torch.equal(band(5, 5, 3, torch.device("cpu")), expected)
    assert torch.equal(band(2, 5, 3, torch.device("cpu")), expected[-2:])
