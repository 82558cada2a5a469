"""Gated linear attention (arXiv 2312.06635), in chunks for training and one step at a time for decoding.

Shapes: H heads, K and V channels of a head, C tokens of a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from operators.norm import RMSNorm
from operators.specs import GlaSpec, ModelDims

GlaState = tuple[Tensor]

CHUNK = 64
SUBCHUNK = 16
"""Within a chunk, decays are taken between sub-chunks of this length, so that no exponent is ever positive."""


class GlaModule(nn.Module):
    """`o_t = q_t S_t / sqrt(K)` with `S_t = diag(exp g_t) S_{t-1} + k_t v_t^T`; then RMSNorm per head, a swish gate, `o_proj`.

    State: S, [B, H, K, V]; zeros at the start of a sequence.
    """

    def __init__(self, spec: GlaSpec, dims: ModelDims) -> None:
        super().__init__()
        D, keys, values = dims.hidden_size, int(dims.hidden_size * spec.expand_k), int(dims.hidden_size * spec.expand_v)
        self.heads, self.gate_normalizer = spec.heads, spec.gate_normalizer
        self.q_proj = nn.Linear(D, keys, bias=False)
        self.k_proj = nn.Linear(D, keys, bias=False)
        self.v_proj = nn.Linear(D, values, bias=False)
        self.g_proj = nn.Linear(D, values, bias=False)
        self.gk_proj = nn.Sequential(nn.Linear(D, spec.gate_rank, bias=False), nn.Linear(spec.gate_rank, keys))
        self.g_norm = RMSNorm(values // spec.heads, dims.norm_eps)
        self.o_proj = nn.Linear(values, D, bias=False)

    def forward(self, x_BTD: Tensor, state: GlaState | None = None) -> tuple[Tensor, GlaState]:
        q_BHTK = self._split(self.q_proj(x_BTD))
        k_BHTK = self._split(self.k_proj(x_BTD))
        v_BHTV = self._split(self.v_proj(x_BTD))
        decay_BHTK = self._split(F.logsigmoid(self.gk_proj(x_BTD)) / self.gate_normalizer)
        B, H, T, K = q_BHTK.shape
        S_BHKV = state[0] if state is not None else q_BHTK.new_zeros(B, H, K, v_BHTV.shape[-1])
        scan = step if T == 1 else chunked
        o_BHTV, S_BHKV = scan(q_BHTK * K**-0.5, k_BHTK, v_BHTV, decay_BHTK, S_BHKV)
        gated_BTD = self.g_norm(o_BHTV).transpose(1, 2).flatten(2) * F.silu(self.g_proj(x_BTD))
        return self.o_proj(gated_BTD), (S_BHKV,)

    def _split(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def step(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, S_BHKV: Tensor) -> tuple[Tensor, Tensor]:
    """One token: the recurrence itself."""
    S_BHKV = decay.exp().transpose(2, 3) * S_BHKV + k.transpose(2, 3) * v
    return q @ S_BHKV, S_BHKV


def chunked(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, S_BHKV: Tensor) -> tuple[Tensor, Tensor]:
    """Many tokens, `CHUNK` at a time (section 4 of the paper): all exponents are differences of cumulated log-decays and
    therefore at most zero."""
    outputs = []
    for first in range(0, q.shape[2], CHUNK):
        part = slice(first, first + CHUNK)
        o, S_BHKV = _chunk(q[:, :, part], k[:, :, part], v[:, :, part], decay[:, :, part].cumsum(2), S_BHKV)
        outputs.append(o)
    return torch.cat(outputs, dim=2), S_BHKV


def _chunk(q: Tensor, k: Tensor, v: Tensor, G: Tensor, S_BHKV: Tensor) -> tuple[Tensor, Tensor]:
    """One chunk; G is the sum of log-decays from its first token on, [B, H, C, K]."""
    rows = []
    for first in range(0, q.shape[2], SUBCHUNK):
        own = slice(first, first + SUBCHUNK)
        q_own, k_own, G_own = q[:, :, own], k[:, :, own], G[:, :, own]
        # Among the sub-chunk's own tokens: each pair's decay by itself, masked before the exponential.
        difference = G_own[:, :, :, None] - G_own[:, :, None]
        causal = torch.ones(q_own.shape[2], q_own.shape[2], dtype=torch.bool, device=q.device).tril()
        pair = difference.masked_fill(~causal[:, :, None], float("-inf")).exp()
        scores = torch.einsum("bhik,bhjk,bhijk->bhij", q_own, k_own, pair)
        o = scores @ v[:, :, own]
        if first:
            # Towards earlier tokens of the chunk: both decays relative to the last token before the sub-chunk.
            pivot = G[:, :, first - 1 : first]
            earlier = (q_own * (G_own - pivot).exp()) @ (k[:, :, :first] * (pivot - G[:, :, :first]).exp()).transpose(2, 3)
            o = o + earlier @ v[:, :, :first]
        rows.append(o)
    total = G[:, :, -1:]
    output = torch.cat(rows, dim=2) + (q * G.exp()) @ S_BHKV
    S_BHKV = total.exp().transpose(2, 3) * S_BHKV + (k * (total - G).exp()).transpose(2, 3) @ v
    return output, S_BHKV
