"""RMSNorm, the gated convolution and the rotary embedding as autograd functions, for training on a CPU.

Beside the matrix products, a training step is many small operations. torch differentiates each one on its own, with a dozen passes over a
tensor where four do. A function here computes what the plain form beside its caller does; the plain form stays for all else:
inference, states, packed documents, GPUs, torch.compile (which fuses by itself). Gradients can be taken once; there is no second
derivative. Sums and inner results are in fp32 or wider.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def by_hand(x: Tensor) -> bool:
    """Whether the functions here are what is wanted for `x`."""
    return x.requires_grad and x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`weight * x / sqrt(mean(x^2) + eps)` over the last dimension, in the dtype of x."""
    y: Tensor = _RmsNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return y


def gated_conv(gates_BT3D: Tensor, taps_kD: Tensor) -> Tensor:
    """`C * conv(B * x)` with `B, C, x = chunk(gates, 3)`: causal, depthwise, zeros before the start; [B, T, D]."""
    y_BTD: Tensor = _GatedConv.apply(gates_BT3D, taps_kD)  # type: ignore[no-untyped-call]
    return y_BTD


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair of channels (i, i + K/2) of x [..., K] turned by its angle. cos and sin [..., K/2] get no gradient."""
    y: Tensor = _Rotate.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return y


class _RmsNorm(torch.autograd.Function):
    """With r = 1/sqrt(mean(x^2) + eps): `dx = r (w g) - x r^3 mean(w g x)`, `dw = sum(g x r)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide_x = _wide(x)
        scale: Tensor = torch.linalg.vector_norm(wide_x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide_x * scale).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        wide_x, wide_weight, grad = _wide(x), _wide(weight), _wide(grad)
        along_ND = (grad * wide_x).reshape(-1, x.shape[-1])
        mean = (along_ND @ wide_weight).view_as(scale).div_(x.shape[-1])
        grad_x = (grad * wide_weight).mul_(scale).sub_(wide_x * mean.mul_(scale**3))
        return grad_x.to(x.dtype), (scale.flatten() @ along_ND).to(weight.dtype), None


class _GatedConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates_BT3D: Tensor, taps_kD: Tensor) -> Tensor:
        in_BTD, out_BTD, x_BTD = _wide(gates_BT3D).chunk(3, dim=-1)
        gated_BTD = in_BTD * x_BTD
        mixed_BTD = gated_BTD * taps_kD[-1]
        for back in _backs(gated_BTD, taps_kD):
            mixed_BTD[:, back:] += gated_BTD[:, :-back] * taps_kD[-1 - back]
        ctx.save_for_backward(gates_BT3D, taps_kD, gated_BTD, mixed_BTD)
        return (out_BTD * mixed_BTD).to(gates_BT3D.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor, Tensor]:
        gates_BT3D, taps_kD, gated_BTD, mixed_BTD = ctx.saved_tensors
        in_BTD, out_BTD, x_BTD = _wide(gates_BT3D).chunk(3, dim=-1)
        grad_BTD = _wide(grad_BTD)
        grad_mixed_BTD = grad_BTD * out_BTD
        grad_gated_BTD, grad_taps_kD = grad_mixed_BTD * taps_kD[-1], torch.zeros_like(taps_kD)
        grad_taps_kD[-1] = (grad_mixed_BTD * gated_BTD).sum((0, 1))
        for back in _backs(gated_BTD, taps_kD):
            grad_gated_BTD[:, :-back] += grad_mixed_BTD[:, back:] * taps_kD[-1 - back]
            grad_taps_kD[-1 - back] = (grad_mixed_BTD[:, back:] * gated_BTD[:, :-back]).sum((0, 1))
        parts = (grad_gated_BTD * x_BTD, grad_BTD * mixed_BTD, grad_gated_BTD * in_BTD)
        return torch.cat(parts, dim=-1).to(gates_BT3D.dtype), grad_taps_kD


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, -sin), None, None


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _backs(x_BTD: Tensor, taps_kD: Tensor) -> range:
    """How far back the taps before the last look, as far as there are tokens."""
    return range(1, min(len(taps_kD), x_BTD.shape[1]))


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide_x = _wide(x)
    turned = torch.empty_like(wide_x)
    (first, second), (into_first, into_second) = wide_x.chunk(2, dim=-1), turned.chunk(2, dim=-1)
    torch.mul(first, cos, out=into_first).sub_(second * sin)
    torch.mul(second, cos, out=into_second).add_(first * sin)
    return turned.to(x.dtype)
