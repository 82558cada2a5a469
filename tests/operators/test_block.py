"""The parts of a block that are no token mixer, and the whole block."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from operators import reference
from operators.block import Block
from operators.costs import block_weights
from operators.ffn import Ffn
from operators.norm import RMSNorm
from operators.specs import BlockSpec, FfnSpec, ModelDims
from tests.operators.cases import GLA, GQA, SHORT_CONV, SWA

TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


def arrays(module):
    return {name: value.numpy() for name, value in module.state_dict().items()}


def randomise(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(noise / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 1 + 0.1 * noise)
    return module


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_rms_norm_is_its_formula(eps):
    norm = randomise(RMSNorm(6, eps).double())
    x = torch.randn(2, 3, 6, dtype=torch.float64) * torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)[:, None]
    weight = norm.weight.detach().numpy()
    expected = np.empty(x.shape)
    for b, t in np.ndindex(2, 3):
        row = x[b, t].numpy()
        expected[b, t] = weight * row / (sum(row**2) / 6 + eps) ** 0.5
    assert_allclose(norm(x).detach(), expected, **TOLERANCE)
    assert_allclose(reference.rms_norm(x.numpy(), weight, eps), expected, **TOLERANCE)


def test_ffn_is_its_formula():
    ffn = randomise(Ffn(FfnSpec(intermediate_size=10), ModelDims(hidden_size=6)).double())
    x = 10 * torch.randn(2, 3, 6, dtype=torch.float64)
    w1, w2, w3 = (ffn.get_parameter(f"{name}.weight").detach().numpy() for name in ("w1", "w2", "w3"))
    gate = x.numpy() @ w1.T
    expected = (gate / (1 + np.exp(-gate)) * (x.numpy() @ w3.T)) @ w2.T
    assert_allclose(ffn(x).detach(), expected, **TOLERANCE)
    assert_allclose(reference.ffn(arrays(ffn), x.numpy()), expected, **TOLERANCE)


@pytest.mark.parametrize("case", [SHORT_CONV[1], GQA[0], SWA[1], GLA[1]], ids=str)
def test_block_equals_reference(case):
    spec = BlockSpec(operator=case.spec, ffn=FfnSpec(intermediate_size=20))
    block = randomise(Block(spec, case.dims).double())
    shapes = {name: value.shape for name, value in arrays(block).items()}
    assert shapes == {weight.name: weight.shape for weight in block_weights(spec, case.dims)}
    x_BTD = 3 * case.inputs(30, batch=2)
    expected_BTD, _ = reference.block(spec, case.dims, arrays(block), x_BTD)
    state, parts = None, []
    for part_BTD in torch.split(torch.from_numpy(x_BTD), (20, 1, 9), dim=1):
        y_BTD, state = block(part_BTD, state)
        parts.append(y_BTD.detach().numpy())
    assert_allclose(np.concatenate(parts, axis=1), expected_BTD, **TOLERANCE)
