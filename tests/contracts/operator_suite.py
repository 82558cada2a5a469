"""What every operator has to satisfy, ours or yours: subclass, and say which specs to try.

    from tests.contracts.operator_suite import OperatorCase, OperatorSuite

    class TestMyOperator(OperatorSuite):
        @pytest.fixture(params=[OperatorCase(MyOperator(), MySpec(size=4))], ids=str)
        def case(self, request):
            return request.param

Reference = torch = torch in pieces = torch step by step; the past does not see the future; a batch does not mix;
gradients flow. Weights and inputs are float64 and random, so the tolerances are those of rounding, not of approximation.
"""

from __future__ import annotations

import inspect
import itertools
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.utils._python_dispatch import TorchDispatchMode

from operators.documents import Documents
from operators.kinds import Operator
from operators.specs import ModelDims, OperatorSpec

DIMS = ModelDims(hidden_size=24)
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
LENGTHS = (1, 2, 3, 7, 63, 64, 65, 70)
PIECES = {
    "step by step": (1,) * 12,
    "prefill then steps": (20, *(1,) * 8),
    "long prefill then steps": (65, 1, 1, 1),
    "uneven": (1, 3, 64, 2),
    "steps then prefill": (1, 1, 66),
}


@dataclass(frozen=True)
class OperatorCase:
    """One spec to try.

    Attributes:
        idle: weights that have no influence with this spec (as q and k have none with a window of one); their gradient must be zero.
    """

    operator: Operator
    spec: OperatorSpec
    dims: ModelDims = DIMS
    idle: tuple[str, ...] = ()

    def __str__(self) -> str:
        """As a test id: "swa-heads4-kv_heads2-head_dim8-window5-hidden24"."""
        sizes = [f"{field.name}{getattr(self.spec, field.name)}" for field in fields(self.spec)]
        return "-".join([self.operator.kind, *sizes, f"hidden{self.dims.hidden_size}"])

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """Random float64 weights that keep activations of order one; norms are near one."""
        rng = np.random.default_rng(0)
        weights = {}
        for weight in self.operator.weights(self.spec, self.dims):
            values = rng.standard_normal(weight.shape)
            weights[weight.name] = 1 + 0.1 * values if "norm" in weight.name else values / np.prod(weight.shape[1:]) ** 0.5
        return weights

    def module(self) -> torch.nn.Module:
        """The torch module in float64 with `weights`."""
        module = self.operator.module(self.spec, self.dims).double()
        module.load_state_dict({name: torch.from_numpy(value) for name, value in self.weights.items()})
        return module

    def inputs(self, tokens: int, *, batch: int = 1, seed: int = 1) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal((batch, tokens, self.dims.hidden_size))

    def reference(self, x_BTD: np.ndarray, state: object = None) -> tuple[np.ndarray, object]:
        return self.operator.reference(self.spec, self.dims, self.weights, x_BTD, state)


class Elements(TorchDispatchMode):
    """Elements of all tensors that operations return, views included: a measure of the work that does not depend on the machine."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.count += value.numel()
        return result


def training_elements(module: torch.nn.Module, tokens: int, hidden_size: int) -> int:
    """Of a forward and backward pass over one sequence."""
    x_BTD = torch.randn(1, tokens, hidden_size, dtype=torch.float64, requires_grad=True)
    with Elements() as elements:
        module(x_BTD)[0].sum().backward()
    return elements.count


def largest_gradient(tensor: torch.Tensor, token: int | None = None) -> float:
    """Largest magnitude in the gradient of a weight, or of one token of an input [B, T, D]; zero where there is none."""
    if tensor.grad is None:
        return 0.0
    return float((tensor.grad if token is None else tensor.grad[:, token]).abs().max())


def gradient_of(parameter: torch.nn.Parameter) -> torch.Tensor:
    """A copy of the gradient; zeros where there is none."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()


class OperatorSuite:
    """The contract of `operators.kinds.Operator`, as far as reference and torch go."""

    @pytest.fixture
    def case(self) -> OperatorCase:
        raise NotImplementedError("override the fixture `case` with the specs to try")

    @pytest.fixture(params=PIECES.values(), ids=PIECES.keys())
    def pieces(self, request) -> tuple[int, ...]:
        """Lengths in which a sequence is handed over, the state carried between them."""
        return request.param

    def test_describes_itself(self, case):
        case.operator.check(case.spec, case.dims)
        assert case.operator.spec_type is type(case.spec)
        assert 0 < len(case.operator.label(case.spec)) <= 8
        assert case.operator.family

    def test_weights_are_those_of_the_module(self, case):
        specs = case.operator.weights(case.spec, case.dims)
        module = case.operator.module(case.spec, case.dims)
        assert {weight.name: weight.shape for weight in specs} == {name: tuple(value.shape) for name, value in module.state_dict().items()}
        assert len({weight.name for weight in specs}) == len(specs)
        assert all(len(weight.shape) == 2 for weight in specs if weight.linear)

    def test_states_have_distinct_names_and_whole_sizes(self, case):
        states = case.operator.states(case.spec, case.dims)
        assert len({state.name for state in states}) == len(states)
        for state in states:
            assert state.shape[0] == "batch"
            assert all(size > 0 for size in state.resolve(batch=2, cache=16))
            assert state.bytes(batch=2, cache=16) == 2 * state.bytes(batch=1, cache=16)

    def test_flops_grow_with_the_tokens(self, case):
        flops = [case.operator.mixing_flops(case.spec, case.dims, tokens=tokens, context=100) for tokens in (0, 1, 2, 50)]
        assert flops[0] == 0
        assert all(isinstance(value, int) for value in flops)
        assert all(more > less for less, more in itertools.pairwise(flops))

    @pytest.mark.parametrize("batch", [1, 3])
    @pytest.mark.parametrize("tokens", LENGTHS)
    def test_torch_equals_reference(self, case, tokens, batch):
        x_BTD = case.inputs(tokens, batch=batch)
        y_BTD, _ = case.module()(torch.from_numpy(x_BTD))
        assert y_BTD.shape == x_BTD.shape
        assert_allclose(y_BTD.detach().numpy(), case.reference(x_BTD)[0], **TOLERANCE)

    def test_torch_in_pieces_equals_reference(self, case, pieces):
        x_BTD = case.inputs(sum(pieces), batch=2)
        module, state, parts = case.module(), None, []
        for part_BTD in torch.split(torch.from_numpy(x_BTD), pieces, dim=1):
            y_BTD, state = module(part_BTD, state)
            parts.append(y_BTD.detach().numpy())
        assert_allclose(np.concatenate(parts, axis=1), case.reference(x_BTD)[0], **TOLERANCE)

    def test_reference_in_pieces_equals_reference(self, case, pieces):
        x_BTD = case.inputs(sum(pieces), batch=2)
        state, parts = None, []
        for part_BTD in np.split(x_BTD, np.cumsum(pieces)[:-1], axis=1):
            y_BTD, state = case.reference(part_BTD, state)
            parts.append(y_BTD)
        assert_allclose(np.concatenate(parts, axis=1), case.reference(x_BTD)[0], **TOLERANCE)

    def test_state_is_tensors_and_is_left_as_it_was(self, case):
        module = case.module()
        x_BTD = torch.from_numpy(case.inputs(10, batch=2))
        _, state = module(x_BTD[:, :7])
        assert isinstance(state, tuple)
        assert all(isinstance(tensor, torch.Tensor) for tensor in state)
        copies = [tensor.clone() for tensor in state]
        first, _ = module(x_BTD[:, 7:], state)
        second, _ = module(x_BTD[:, 7:], state)
        assert torch.equal(first, second)
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(state, copies, strict=True))

    def test_future_does_not_change_the_past(self, case):
        module = case.module()
        x_BTD = torch.from_numpy(case.inputs(70, batch=2))
        y_BTD, _ = module(x_BTD)
        for t in (1, 40, 69):
            changed_BTD = x_BTD.clone()
            changed_BTD[:, t:] += 1.0
            other_BTD, _ = module(changed_BTD)
            assert_allclose(other_BTD[:, :t].detach(), y_BTD[:, :t].detach(), rtol=0, atol=1e-12)
            assert (other_BTD[:, t] - y_BTD[:, t]).abs().max() > 1e-3

    def test_sequences_of_a_batch_do_not_mix(self, case):
        module = case.module()
        x_BTD = torch.from_numpy(case.inputs(9, batch=3))
        _, state = module(x_BTD[:, :5])
        together_BTD, _ = module(x_BTD[:, 5:], state)
        for b in range(3):
            _, alone = module(x_BTD[b : b + 1, :5])
            alone_BTD, _ = module(x_BTD[b : b + 1, 5:], alone)
            assert_allclose(together_BTD[b : b + 1].detach(), alone_BTD.detach(), **TOLERANCE)

    def test_packed_documents_are_as_if_alone(self, case):
        """Outputs and gradients; and from one document to another no gradient flows at all."""
        module = case.module()
        if "documents" not in inspect.signature(module.forward).parameters:
            pytest.skip("takes no documents, so that a training with --isolate-documents refuses it")
        lengths = (1, 2, 64, 3, 30)
        x_BTD, along_BTD = (torch.from_numpy(case.inputs(100, batch=2, seed=seed)) for seed in (1, 2))
        starts_BT = torch.zeros(2, 100, dtype=torch.bool)
        starts_BT[0, np.cumsum((0, *lengths[:-1]))] = True
        starts_BT[1, 50] = True
        x_BTD.requires_grad_()
        y_BTD, _ = module(x_BTD, None, Documents(starts_BT))
        (y_BTD * along_BTD).sum().backward()
        together = [x_BTD.grad.clone(), *(gradient_of(parameter) for parameter in module.parameters())]
        x_BTD.grad = None
        module.zero_grad()
        for row, pieces in ((0, lengths), (1, (50, 50))):
            for one_TD, y_TD, along_TD in zip(*(torch.split(whole[row], pieces) for whole in (x_BTD, y_BTD, along_BTD)), strict=True):
                alone_BTD, _ = module(one_TD[None])
                (alone_BTD * along_TD).sum().backward(retain_graph=True)
                assert_allclose(y_TD.detach(), alone_BTD[0].detach(), **TOLERANCE)
        for packed, alone in zip(together, [x_BTD.grad, *(gradient_of(p) for p in module.parameters())], strict=True):
            assert_allclose(packed, alone, rtol=1e-9, atol=1e-8)
        x_BTD.grad = None
        y_BTD, _ = module(x_BTD, None, Documents(starts_BT))
        y_BTD[1, 50:].sum().backward()
        assert not x_BTD.grad[0].any()
        assert not x_BTD.grad[1, :50].any()
        assert x_BTD.grad[1, 50:].any()

    def test_gradients_reach_every_weight_and_the_first_token(self, case):
        module = case.module()
        x_BTD = torch.from_numpy(case.inputs(70, batch=2)).requires_grad_()
        y_BTD, _ = module(x_BTD)
        (y_BTD * torch.from_numpy(case.inputs(70, batch=2, seed=2))).sum().backward()
        largest = {name: largest_gradient(parameter) for name, parameter in module.named_parameters()}
        assert all(np.isfinite(value) for value in largest.values())
        assert {name for name, value in largest.items() if value < 1e-6} == set(case.idle)
        assert largest_gradient(x_BTD, 0) > 1e-6

    def test_gradients_equal_those_of_the_step_form(self, case):
        x_BTD, along_BTD = case.inputs(70), torch.from_numpy(case.inputs(70, seed=2))
        gradients = []
        for pieces in ((70,), (1,) * 70):
            module, x = case.module(), torch.from_numpy(x_BTD).requires_grad_()
            state, outputs = None, []
            for part_BTD in torch.split(x, pieces, dim=1):
                y_BTD, state = module(part_BTD, state)
                outputs.append(y_BTD)
            (torch.cat(outputs, dim=1) * along_BTD).sum().backward()
            gradients.append([x.grad, *(parameter.grad for parameter in module.parameters())])
        for whole, stepped in zip(*gradients, strict=True):
            assert_allclose(whole.numpy(), stepped.numpy(), rtol=1e-9, atol=1e-8)

    def test_float32_differs_by_rounding_only(self, case):
        x_BTD = case.inputs(200, batch=2)
        y_BTD, _ = case.module().float()(torch.from_numpy(x_BTD).float())
        expected_BTD, _ = case.reference(x_BTD)
        error = np.sqrt(np.mean((y_BTD.detach().numpy() - expected_BTD) ** 2) / np.mean(expected_BTD**2))
        assert error < 2e-6
