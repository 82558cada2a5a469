"""The contract suite on an operator of somebody else's, and on faulty versions of it: each fault must be found."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from operators.kinds import Operator
from operators.specs import OperatorSpec, StateSpec, WeightSpec
from tests.contracts.operator_suite import OperatorCase, OperatorSuite


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanSpec(OperatorSpec):
    """`y_t = out((x_1 + ... + x_t) / t)`."""

    kind: ClassVar[str] = "mean"
    fault: str = ""


class MeanModule(nn.Module):
    def __init__(self, spec, dims):
        super().__init__()
        self.fault = spec.fault
        self.out_proj = nn.Linear(dims.hidden_size, dims.hidden_size, bias=False)

    def forward(self, x_BTD, state=None, documents=None):
        x_BTD = x_BTD.roll(-1, dims=1) if self.fault == "sees the next token" else x_BTD
        x_BTD = x_BTD + 0.01 * x_BTD.mean(0) if self.fault == "mixes the batch" else x_BTD
        if state is None or self.fault == "forgets":
            state = (torch.zeros_like(x_BTD[:, :1]), torch.zeros((), dtype=torch.int64))
        sum_B1D, count = state
        ages_T1 = count + torch.arange(1, x_BTD.shape[1] + 1)[:, None]
        sums_BTD = sum_B1D + x_BTD.cumsum(1)
        if documents is not None:
            same_BTT = (documents.index_BT[:, :, None] == documents.index_BT[:, None, :]).tril()
            ages_T1 = 1 + documents.position_BT[..., None]
            sums_BTD = sums_BTD if self.fault == "sees its neighbours" else same_BTT.to(x_BTD.dtype) @ x_BTD
        if self.fault == "changes its state":
            count.add_(x_BTD.shape[1])
        means_BTD = (sums_BTD / ages_T1).detach() if self.fault == "cuts the gradient" else sums_BTD / ages_T1
        means_BTD = means_BTD.float().to(x_BTD.dtype) if self.fault == "rounds" else means_BTD
        return self.out_proj(means_BTD), (sums_BTD[:, -1:], count if self.fault == "changes its state" else count + x_BTD.shape[1])


class Mean(Operator):
    spec_type = MeanSpec
    family = "mean"

    def label(self, spec):
        return "mean"

    def check(self, spec, dims):
        pass

    def weights(self, spec, dims):
        columns = dims.hidden_size + (spec.fault == "misstates its weights")
        return (WeightSpec(name="out_proj.weight", shape=(dims.hidden_size, columns), linear=True),)

    def states(self, spec, dims):
        return (StateSpec(name="sum", shape=("batch", dims.hidden_size)), StateSpec(name="count", shape=("batch", 1)))

    def mixing_flops(self, spec, dims, *, tokens, context):
        return 2 * tokens * dims.hidden_size

    def reference(self, spec, dims, weights, x_BTD, state=None):
        total, count = (0.0, 0) if state is None else state
        means = []
        for x_BD in np.moveaxis(x_BTD, 1, 0):
            total, count = total + x_BD, count + 1
            means.append(total / count)
        return np.stack(means, axis=1) @ weights["out_proj.weight"].T, (total, count)

    def module(self, spec, dims):
        return MeanModule(spec, dims)

    def emit(self, graph, spec, dims, prefix, x, past):
        raise NotImplementedError("this test is about the torch half")


class TestMean(OperatorSuite):
    @pytest.fixture(params=[OperatorCase(Mean(), MeanSpec())], ids=str)
    def case(self, request):
        return request.param


@pytest.mark.parametrize(
    ("fault", "test", "arguments"),
    [
        ("misstates its weights", "test_weights_are_those_of_the_module", {}),
        ("rounds", "test_torch_equals_reference", {"tokens": 7, "batch": 1}),
        ("forgets", "test_torch_in_pieces_equals_reference", {"pieces": (3, 1, 1)}),
        ("changes its state", "test_state_is_tensors_and_is_left_as_it_was", {}),
        ("sees the next token", "test_future_does_not_change_the_past", {}),
        ("mixes the batch", "test_sequences_of_a_batch_do_not_mix", {}),
        ("cuts the gradient", "test_gradients_reach_every_weight_and_the_first_token", {}),
        ("forgets", "test_gradients_equal_those_of_the_step_form", {}),
        ("sees its neighbours", "test_packed_documents_are_as_if_alone", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_faults_are_found(fault, test, arguments):
    healthy, faulty = (OperatorCase(Mean(), MeanSpec(fault=name)) for name in ("", fault))
    getattr(OperatorSuite(), test)(healthy, **arguments)
    with pytest.raises(AssertionError):
        getattr(OperatorSuite(), test)(faulty, **arguments)
