"""The cross-entropy of a linear head, without ever holding the logits of all tokens.

Shapes: N tokens, C tokens of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK = 512
"""Tokens whose logits exist at once: the vocabulary makes them the largest tensor there is. Fewer would mean more passes over the
gradient of the head's weight, which every chunk adds to (timed in docs/LOG.md)."""

BLOCK = 1 << 21
"""Logits whose softmax is taken at once: fp32 values exist for these alone."""


def linear_cross_entropy(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, ignore_index: int = -100) -> Tensor:
    """`F.cross_entropy(x @ weight.T, targets)`, the mean in nats over the targets that are not `ignore_index`; zero if there are none.

    The gradients are made in the forward pass, while a chunk's logits are at hand: `softmax(logits) - one_hot(target)` is all that
    they need, so nothing is computed twice (the idea of Liger-Kernel's FusedLinearCrossEntropy, arXiv 2410.10989). They can be
    taken once; there is no second derivative. Under autocast the products are in its dtype, softmax and sums in fp32.
    """
    loss: Tensor = _LinearCrossEntropy.apply(x_ND, weight_VD, targets_N, ignore_index)  # type: ignore[no-untyped-call]
    return loss


def token_losses(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """The cross-entropy of each token in nats, [N], a chunk of logits at a time."""
    parts = zip(torch.split(x_ND, CHUNK), torch.split(targets_N, CHUNK), strict=True)
    return torch.cat([F.cross_entropy(F.linear(x_CD, weight_VD).float(), targets_C, reduction="none") for x_CD, targets_C in parts])


def _gradient_(logits_CV: Tensor, target_C1: Tensor, wide: torch.dtype) -> Tensor:
    """Log-probabilities of the targets, [C, 1]. The logits, which are the largest tensor of a training step, become their gradient."""
    rows = max(1, BLOCK // logits_CV.shape[1])
    found = []
    for logits_rV, target_r1 in zip(torch.split(logits_CV, rows), torch.split(target_C1, rows), strict=True):
        log_p_rV = F.log_softmax(logits_rV, dim=-1, dtype=wide)
        found.append(log_p_rV.gather(1, target_r1))
        grad_rV = log_p_rV.exp_().scatter_add_(1, target_r1, torch.full_like(target_r1, -1, dtype=wide))
        logits_rV.copy_(grad_rV)
    return torch.cat(found)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, ignore_index: int) -> Tensor:
        device = x_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_ND.dtype
        wide = torch.promote_types(dtype, torch.float32)
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        head_VD = weight_VD.to(dtype)
        counted_N = targets_N != ignore_index
        count = counted_N.sum().clamp(min=1)
        total = torch.zeros((), dtype=wide, device=x_ND.device)
        grad_x_ND = torch.empty_like(x_ND) if needs_x else None
        grad_weight_VD = torch.zeros_like(weight_VD) if needs_weight else None
        with torch.autocast(device, enabled=False):
            for first in range(0, len(x_ND), CHUNK):
                chunk = slice(first, first + CHUNK)
                x_CD, counted_C1 = x_ND[chunk].to(dtype), counted_N[chunk, None]
                target_C1 = targets_N[chunk, None].where(counted_C1, 0)
                grad_CV = F.linear(x_CD, head_VD)  # logits, for one line more
                total -= _gradient_(grad_CV, target_C1, wide).where(counted_C1, 0).sum()
                if grad_x_ND is not None:
                    grad_x_ND[chunk] = (grad_CV @ head_VD).where(counted_C1, 0)
                if grad_weight_VD is None:
                    continue
                x_CD = x_CD.where(counted_C1, 0)
                if grad_weight_VD.dtype == dtype:
                    grad_weight_VD.addmm_(grad_CV.mT, x_CD)
                else:
                    grad_weight_VD += grad_CV.mT @ x_CD
        ctx.gradients, ctx.count = (grad_x_ND, grad_weight_VD), count
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        scale = grad_loss / ctx.count
        grad_x_ND, grad_weight_VD = (None if gradient is None else gradient.mul_(scale.to(gradient.dtype)) for gradient in ctx.gradients)
        ctx.gradients = None
        return grad_x_ND, grad_weight_VD, None, None
