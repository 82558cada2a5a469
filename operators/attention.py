"""Grouped-query attention over the whole context (GQA) or a sliding window of it (SWA), as LFM2 and LFM3 have it."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from operators import functions
from operators.documents import Documents
from operators.norm import RMSNorm
from operators.specs import GqaSpec, ModelDims, SwaSpec

QUERY_BLOCK = 128
"""Fewest queries that are handled at once where not all keys are seen, so that a narrow window does not mean many tiny products."""


def rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [..., head_dim/2] of the rotary embedding (arXiv 2104.09864), float64: angles may be large."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim)
    angles = positions[..., None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x_BHTK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of channels (i, i + K/2), as Llama and LFM2 do ("rotate-half")."""
    wide = torch.promote_types(x_BHTK.dtype, torch.float32)
    cos, sin = cos.to(wide), sin.to(wide)
    if functions.by_hand(x_BHTK):
        return functions.rotate(x_BHTK, cos, sin)
    first, second = x_BHTK.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_BHTK.dtype)


class AttentionModule(nn.Module):
    """Causal attention with an RMSNorm over head_dim on q and k, then the rotary embedding; no biases.

    State: (keys, values, position). Keys and values are [B, N, S, K], after norm and rotation: of all tokens seen, or
    of the last `window` - 1. `position` is the number of tokens seen, int64 without dimensions.
    """

    def __init__(self, spec: GqaSpec | SwaSpec, dims: ModelDims) -> None:
        super().__init__()
        D = dims.hidden_size
        self.heads, self.kv_heads, self.head_dim = spec.heads, spec.kv_heads, spec.head_dim
        self.window = spec.window if isinstance(spec, SwaSpec) else None
        self.theta = dims.rope_theta
        self.q_proj = nn.Linear(D, spec.heads * spec.head_dim, bias=False)
        self.k_proj = nn.Linear(D, spec.kv_heads * spec.head_dim, bias=False)
        self.v_proj = nn.Linear(D, spec.kv_heads * spec.head_dim, bias=False)
        self.out_proj = nn.Linear(spec.heads * spec.head_dim, D, bias=False)
        self.q_layernorm = RMSNorm(spec.head_dim, dims.norm_eps)
        self.k_layernorm = RMSNorm(spec.head_dim, dims.norm_eps)

    def forward(
        self, x_BTD: Tensor, state: tuple[Tensor, ...] | None = None, documents: Documents | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        T = x_BTD.shape[1]
        position = torch.zeros((), dtype=torch.int64, device=x_BTD.device) if state is None else state[2]
        positions = position + torch.arange(T, device=x_BTD.device) if documents is None else documents.position_BT[:, None]
        cos, sin = rotary(positions, self.head_dim, self.theta)
        q_BHTK = rotate(self.q_layernorm(self._split(self.q_proj(x_BTD))).transpose(1, 2), cos, sin)
        k_BNSK = rotate(self.k_layernorm(self._split(self.k_proj(x_BTD))).transpose(1, 2), cos, sin)
        v_BNSK = self._split(self.v_proj(x_BTD)).transpose(1, 2)
        if state is not None:
            k_BNSK, v_BNSK = torch.cat([state[0], k_BNSK], dim=2), torch.cat([state[1], v_BNSK], dim=2)
        y_BHTK = self._attend(q_BHTK, k_BNSK, v_BNSK, documents)
        if self.window is not None:
            first = max(0, k_BNSK.shape[2] - (self.window - 1))
            # A copy, for a view would keep the keys and values of the whole prompt alive.
            k_BNSK, v_BNSK = k_BNSK[:, :, first:].clone(), v_BNSK[:, :, first:].clone()
        return self.out_proj(y_BHTK.transpose(1, 2).flatten(2)), (k_BNSK, v_BNSK, position + T)

    def _split(self, x_BTD: Tensor) -> Tensor:
        B, T, _ = x_BTD.shape
        return x_BTD.view(B, T, -1, self.head_dim)

    def _attend(self, q_BHTK: Tensor, k_BNSK: Tensor, v_BNSK: Tensor, documents: Documents | None) -> Tensor:
        T, S = q_BHTK.shape[2], k_BNSK.shape[2]
        window = min(self.window or S, S)
        if window == S and documents is None:
            if T == S:
                return self._sdpa(q_BHTK, k_BNSK, v_BNSK, causal=True)
            return self._sdpa(q_BHTK, k_BNSK, v_BNSK, None if T == 1 else band(T, S, S, q_BHTK.device))
        # Queries in blocks, each with the keys that it can see: T x 2W work in place of T x S. Keys are cut once and joined for each
        # block, for the gradient of a slice is a whole tensor of zeros, for every block anew.
        length = max(self.window or 0, QUERY_BLOCK)
        past = [S - T] if S > T else []
        cuts = [*past, *(min(length, T - first) for first in range(0, T, length))]
        starts = [0, *accumulate(cuts)]
        keys, values = torch.split(k_BNSK, cuts, dim=2), torch.split(v_BNSK, cuts, dim=2)
        parts = []
        for n, q_BHtK in enumerate(torch.split(q_BHTK, length, dim=2), start=len(past)):
            low, high = max(0, starts[n] - window + 1), starts[n + 1]
            if documents is not None:
                low = max(low, documents.earliest_T[starts[n]])
            seen = slice(bisect_right(starts, low) - 1, n + 1)
            skipped = low - starts[seen.start]
            k_BNsK, v_BNsK = (torch.cat(some[seen], dim=2)[:, :, skipped:] for some in (keys, values))
            mask = band(cuts[n], high - low, window, q_BHTK.device)
            if documents is not None:
                index_BT = documents.index_BT
                mask = mask & (index_BT[:, None, starts[n] : high, None] == index_BT[:, None, None, low:high])
            parts.append(self._sdpa(q_BHtK, k_BNsK, v_BNsK, mask))
        return torch.cat(parts, dim=2)

    def _sdpa(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=self.heads != self.kv_heads)


def band(queries: int, keys: int, window: int, device: torch.device) -> Tensor:
    """[queries, keys], true where a query may look: itself and `window` - 1 keys before it. The last query stands at the last key."""
    age = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return (age >= 0) & (age < window)
