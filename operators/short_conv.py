"""LFM2's gated short convolution (arXiv 2511.23404)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from operators import functions
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
        gates_BT3D = self.in_proj(x_BTD)
        if state is None and documents is None and functions.by_hand(gates_BT3D):
            mixed_BTD = functions.gated_conv(gates_BT3D, self._taps_kD.contiguous())
            return self.out_proj(mixed_BTD), (self._last_columns(gates_BT3D),)
        gate_in_BTD, gate_out_BTD, h_BTD = gates_BT3D.chunk(3, dim=-1)
        gated_BTD = gate_in_BTD * h_BTD
        past_BkD = gated_BTD.new_zeros(B, self.kernel_size - 1, D) if state is None else state[0]
        columns_BSD = torch.cat([past_BkD, gated_BTD], dim=1)
        mixed_BTD = self.conv(columns_BSD.mT).mT if documents is None else self._conv_apart(columns_BSD, documents)
        # A copy, for a view would keep the columns of the whole prompt alive.
        return self.out_proj(gate_out_BTD * mixed_BTD), (columns_BSD[:, T:].clone(),)

    @property
    def _taps_kD(self) -> Tensor:
        return self.conv.weight[:, 0].mT

    def _last_columns(self, gates_BT3D: Tensor) -> Tensor:
        """The state after a sequence from its start."""
        T, kept = gates_BT3D.shape[1], self.kernel_size - 1
        gate_in_BkD, _, h_BkD = gates_BT3D[:, max(0, T - kept) :].chunk(3, dim=-1)
        return F.pad(gate_in_BkD * h_BkD, (0, 0, max(0, kept - T), 0))

    def _conv_apart(self, columns_BSD: Tensor, documents: Documents) -> Tensor:
        """The convolution tap by tap; a token that is the p-th of its document has p columns behind it, the others count as zeros."""
        T = documents.position_BT.shape[1]
        taps_kD = self._taps_kD
        mixed_BTD = taps_kD[-1] * columns_BSD[:, -T:]
        for back in range(1, self.kernel_size):
            first = self.kernel_size - 1 - back
            inside_BT1 = (documents.position_BT >= back)[..., None]
            mixed_BTD = mixed_BTD + taps_kD[first] * columns_BSD[:, first : first + T].where(inside_BT1, 0)
        return mixed_BTD
