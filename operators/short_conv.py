"""LFM2's gated short convolution (arXiv 2511.23404)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from operators.documents import Documents
from operators.specs import ModelDims, ShortConvSpec


class ShortConvModule(nn.Module):
    """`out_proj(C * conv(B * x))` with `B, C, x = chunk(in_proj(h), 3)`: causal, depthwise, no biases, no activation.

    State: (columns,), the last k-1 columns of `B * x`, [B, k-1, D]; zeros at the start of a sequence.
    """

    def __init__(self, spec: ShortConvSpec, dims: ModelDims) -> None:
        super().__init__()
        D = dims.hidden_size
        self.kernel_size = spec.kernel_size
        self.in_proj = nn.Linear(D, 3 * D, bias=False)
        self.conv = nn.Conv1d(D, D, spec.kernel_size, groups=D, bias=False)
        self.out_proj = nn.Linear(D, D, bias=False)

    def forward(
        self, x_BTD: Tensor, state: tuple[Tensor, ...] | None = None, documents: Documents | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        B, T, D = x_BTD.shape
        gate_in_BTD, gate_out_BTD, h_BTD = self.in_proj(x_BTD).chunk(3, dim=-1)
        gated_BTD = gate_in_BTD * h_BTD
        past_BkD = gated_BTD.new_zeros(B, self.kernel_size - 1, D) if state is None else state[0]
        columns_BSD = torch.cat([past_BkD, gated_BTD], dim=1)
        mixed_BTD = self.conv(columns_BSD.mT).mT if documents is None else self._conv_apart(columns_BSD, documents)
        # A copy, for a view would keep the columns of the whole prompt alive.
        return self.out_proj(gate_out_BTD * mixed_BTD), (columns_BSD[:, T:].clone(),)

    def _conv_apart(self, columns_BSD: Tensor, documents: Documents) -> Tensor:
        """The convolution tap by tap; a token that is the p-th of its document has p columns behind it, the others count as zeros."""
        T = documents.position_BT.shape[1]
        taps_kD = self.conv.weight[:, 0].mT
        mixed_BTD = taps_kD[-1] * columns_BSD[:, -T:]
        for back in range(1, self.kernel_size):
            first = self.kernel_size - 1 - back
            inside_BT1 = (documents.position_BT >= back)[..., None]
            mixed_BTD = mixed_BTD + taps_kD[first] * columns_BSD[:, first : first + T].where(inside_BT1, 0)
        return mixed_BTD
