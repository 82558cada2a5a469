"""The SwiGLU feed-forward network (arXiv 2002.05202)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from operators.specs import FfnSpec, ModelDims


class Ffn(nn.Module):
    """`w2(silu(w1 x) * w3 x)`, no biases; [B, T, D] -> [B, T, D]."""

    def __init__(self, spec: FfnSpec, dims: ModelDims) -> None:
        super().__init__()
        D, hidden = dims.hidden_size, spec.intermediate_size
        self.w1 = nn.Linear(D, hidden, bias=False)
        self.w3 = nn.Linear(D, hidden, bias=False)
        self.w2 = nn.Linear(hidden, D, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = self.w2(F.silu(self.w1(x_BTD)) * self.w3(x_BTD))
        return y_BTD
