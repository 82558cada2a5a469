"""RMSNorm, the only normalisation of this family of models."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from operators import functions


class RMSNorm(nn.Module):
    """`weight * x / sqrt(mean(x^2) + eps)` over the last dimension (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if functions.by_hand(x):
            return functions.rms_norm(x, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)
