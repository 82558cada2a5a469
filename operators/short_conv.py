"""LFM2's gated short convolution (arXiv 2511.23404)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from operators.specs import ModelDims, ShortConvSpec

ConvState = tuple[Tensor]


class ShortConvModule(nn.Module):
    """`out_proj(C * conv(B * x))` with `B, C, x = chunk(in_proj(h), 3)`: causal, depthwise, no bias, no activation.

    State: the last k-1 columns of `B * x`, [B, k-1, D]; zeros at the start of a sequence.
    """

    def __init__(self, spec: ShortConvSpec, dims: ModelDims) -> None:
        super().__init__()
        D = dims.hidden_size
        self.kernel_size = spec.kernel_size
        self.in_proj = nn.Linear(D, 3 * D, bias=False)
        self.conv = nn.Conv1d(D, D, spec.kernel_size, groups=D, bias=False)
        self.out_proj = nn.Linear(D, D, bias=False)

    def forward(self, x_BTD: Tensor, state: ConvState | None = None) -> tuple[Tensor, ConvState]:
        gate_in_BTD, gate_out_BTD, h_BTD = self.in_proj(x_BTD).chunk(3, dim=-1)
        gated_BTD = gate_in_BTD * h_BTD
        past = state[0] if state is not None else gated_BTD.new_zeros(len(x_BTD), self.kernel_size - 1, x_BTD.shape[-1])
        padded_BTD = torch.cat([past, gated_BTD], dim=1)
        mixed_BTD = F.conv1d(padded_BTD.transpose(1, 2), self.conv.weight, groups=x_BTD.shape[-1]).transpose(1, 2)
        return self.out_proj(gate_out_BTD * mixed_BTD), (padded_BTD[:, -(self.kernel_size - 1) :],)
