"""The gated short convolution: the contract, and what is particular to it."""

import numpy as np
import pytest
import torch

from operators.short_conv import ShortConvModule
from operators.specs import ModelDims, ShortConvSpec
from tests.contracts.operator_suite import OperatorSuite
from tests.operators.cases import SHORT_CONV


class TestShortConv(OperatorSuite):
    @pytest.fixture(params=SHORT_CONV, ids=str)
    def case(self, request):
        return request.param


@pytest.mark.parametrize("kernel_size", [2, 3, 7])
def test_reaches_back_kernel_size_minus_one_tokens(kernel_size):
    torch.manual_seed(0)
    module = ShortConvModule(ShortConvSpec(kernel_size=kernel_size), ModelDims(hidden_size=8)).double()
    x_BTD = torch.randn(1, 20, 8, dtype=torch.float64)
    changed_BTD = x_BTD.clone()
    changed_BTD[:, 5] += 1
    difference_T = (module(changed_BTD)[0] - module(x_BTD)[0]).abs().amax(dim=(0, 2))
    assert np.flatnonzero(difference_T.detach().numpy() > 1e-12).tolist() == list(range(5, 5 + kernel_size))


def test_gates_are_in_the_order_of_the_published_weights():
    """B, C, x: with B = 2 and C = 3 everywhere and the last tap one, the output is 6 x."""
    D = 4
    module = ShortConvModule(ShortConvSpec(kernel_size=3), ModelDims(hidden_size=D)).double()
    x_BTD = torch.rand(1, 5, D, dtype=torch.float64) + 1
    x_BTD[..., 0] = 1.0  # channel 0 is a constant that the gates can read
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.in_proj.weight[:D, 0] = 2.0
        module.in_proj.weight[D : 2 * D, 0] = 3.0
        module.in_proj.weight[2 * D :] = torch.eye(D)
        module.conv.weight[:, 0, -1] = 1.0
        module.out_proj.weight.copy_(torch.eye(D))
    np.testing.assert_allclose(module(x_BTD)[0].detach(), 6 * x_BTD, rtol=1e-12)


def test_state_holds_its_columns_and_no_more():
    module = ShortConvModule(ShortConvSpec(kernel_size=3), ModelDims(hidden_size=8))
    _, (columns_BkD,) = module(torch.randn(2, 100, 8))
    assert columns_BkD.shape == (2, 2, 8)
    assert columns_BkD.untyped_storage().nbytes() == columns_BkD.nbytes
