"""Muon in fp32, for machines on which torch's own, which iterates in bf16, is slow."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration; Jordan et al. 2024 (kellerjordan.github.io/posts/muon), as torch has them."""
ITERATIONS = 5


class MuonFp32(torch.optim.Optimizer):
    """Momentum, made nearly orthogonal, for matrices: `torch.optim.Muon` with Nesterov momentum and `match_rms_adamw`, to rounding.

    On a CPU without bf16 instructions torch's takes 28 times as long (docs/LOG.md).
    """

    def __init__(self, matrices: Iterable[Tensor], *, lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update; its root mean square is about 0.2 learning rates, as AdamW's (arXiv 2502.16982)."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                average = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonal(matrix.grad.lerp(average, group["momentum"]))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-0.2 * math.sqrt(max(matrix.shape)) * group["lr"])


def orthogonal(x_MN: Tensor) -> Tensor:
    """Singular values moved to between about 0.7 and 1.2 by Newton-Schulz iterations, singular vectors kept."""
    a, b, c = COEFFICIENTS
    wide = x_MN.T if x_MN.shape[0] > x_MN.shape[1] else x_MN
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if x_MN.shape[0] > x_MN.shape[1] else wide
