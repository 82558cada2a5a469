"""The autograd functions for a CPU compute what the plain forms do, gradients included, and are what a training uses."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from operators import functions
from operators.attention import rotary, rotate
from operators.norm import RMSNorm
from operators.short_conv import ShortConvModule
from operators.specs import ModelDims, ShortConvSpec

D = 12


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype).requires_grad_()


def angles(tokens: int) -> tuple[Tensor, Tensor]:
    return rotary(torch.arange(tokens), D, 10_000.0)


@pytest.mark.parametrize("tokens", [1, 2, 3, 9])
@pytest.mark.parametrize("taps", [1, 3, 7])
def test_gradients_of_the_gated_convolution_are_those_of_its_values(tokens: int, taps: int) -> None:
    assert gradcheck(functions.gated_conv, (random(2, tokens, 3 * 2), random(taps, 2, seed=1)))


def test_gradients_of_norm_and_rotation_are_those_of_their_values() -> None:
    assert gradcheck(lambda x, weight: functions.rms_norm(x, weight, 1e-3), (random(2, 3, 4, D), random(D, seed=1)))
    turned = random(2, 5, 3, D).transpose(1, 2)  # [B, H, T, K], as attention cuts it
    assert gradcheck(lambda x: functions.rotate(x, *angles(5)), (turned,))


def modules() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    dims = ModelDims(hidden_size=D, norm_eps=1e-5, rope_theta=1e4)
    norm = RMSNorm(D, 1e-5)
    torch.nn.init.normal_(norm.weight)

    class Rotation(torch.nn.Module):
        def forward(self, x_BTD: Tensor) -> Tensor:
            return rotate(x_BTD[:, None], *angles(x_BTD.shape[1]))

    class Convolution(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = ShortConvModule(ShortConvSpec(kernel_size=3), dims)

        def forward(self, x_BTD: Tensor) -> Tensor:
            y_BTD, (columns_BkD,) = self.inner(x_BTD)
            return torch.cat([y_BTD, columns_BkD], dim=1)

    return {"norm": norm, "rotation": Rotation(), "short_conv": Convolution()}


@pytest.mark.parametrize("name", ["norm", "rotation", "short_conv"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5), ("bf16 autocast", 3e-2)])
@pytest.mark.parametrize("tokens", [1, 40])
def test_a_training_sees_what_the_plain_form_computes(
    name: str, dtype: str, tolerance: float, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = modules()[name].to(torch.float64 if dtype == "float64" else torch.float32)
    found: list[list[Tensor]] = []
    calls: list[bool] = []
    real = functions.by_hand

    def asked(x: Tensor) -> bool:
        """The functions the first time, the plain forms the second."""
        calls.append(real(x))
        return calls[-1] and not found

    monkeypatch.setattr(functions, "by_hand", asked)
    for _ in range(2):
        module.zero_grad()
        x_BTD = random(2, tokens, D, seed=3, dtype=next(module.parameters(), torch.empty(0, dtype=torch.float64)).dtype)
        with torch.autocast("cpu", torch.bfloat16) if dtype == "bf16 autocast" else nullcontext():
            y = module(x_BTD)
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y))
        found.append([y.detach(), x_BTD.grad, *(parameter.grad for parameter in module.parameters())])
    assert len(calls) == 2
    assert all(calls), "a training on a CPU takes the functions"
    for fast, plain in zip(*found, strict=True):
        assert fast.dtype == plain.dtype
        torch.testing.assert_close(fast, plain, rtol=tolerance, atol=tolerance * max(1.0, plain.abs().max().item()))


def test_inference_and_compilers_keep_the_plain_form() -> None:
    x = random(2, D)
    assert functions.by_hand(x)
    assert not functions.by_hand(x.detach())
    with torch.no_grad():
        assert not functions.by_hand(x)
    traced = torch.compile(lambda t: t * 2 if functions.by_hand(t) else t * 3, backend="eager", fullgraph=True)
    assert torch.equal(traced(x), x * 3)
