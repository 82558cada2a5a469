"""Grouped-query attention over the whole context (GQA) or a sliding window of it (SWA), as LFM2 and LFM3 have it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from operators.norm import RMSNorm
from operators.specs import GqaSpec, ModelDims, SwaSpec

KvState = tuple[Tensor, Tensor, int]


def rotary(positions_T: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, head_dim/2] of the rotary embedding (arXiv 2104.09864), computed in float64."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions_T.device) / head_dim)
    angles = positions_T.double()[:, None] * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_BHTK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of each head ("rotate-half", as Llama and LFM2 do)."""
    first, second = x_BHTK.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class AttentionModule(nn.Module):
    """Causal attention with RMSNorm on q and k before the rotary embedding; `window` tokens back where the spec has one.

    State: keys and values [B, N, T, K] after norm and rotation (the last window-1 of them where there is a window),
    and the number of tokens seen, which is the next position.
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

    def forward(self, x_BTD: Tensor, state: KvState | None = None) -> tuple[Tensor, KvState]:
        B, T, _ = x_BTD.shape
        seen = state[2] if state is not None else 0
        cos, sin = rotary(torch.arange(seen, seen + T, device=x_BTD.device), self.head_dim, self.theta, x_BTD.dtype)
        q_BHTK = rotate(self.q_layernorm(self._split(self.q_proj(x_BTD), self.heads)), cos, sin)
        k_BNTK = rotate(self.k_layernorm(self._split(self.k_proj(x_BTD), self.kv_heads)), cos, sin)
        v_BNTK = self._split(self.v_proj(x_BTD), self.kv_heads)
        if state is not None:
            k_BNTK, v_BNTK = torch.cat([state[0], k_BNTK], dim=2), torch.cat([state[1], v_BNTK], dim=2)
        y_BHTK = self._attend(q_BHTK, k_BNTK, v_BNTK)
        if self.window is not None:
            kept = max(0, k_BNTK.shape[2] - (self.window - 1))
            k_BNTK, v_BNTK = k_BNTK[:, :, kept:], v_BNTK[:, :, kept:]
        return self.out_proj(y_BHTK.transpose(1, 2).reshape(B, T, -1)), (k_BNTK, v_BNTK, seen + T)

    def _split(self, x_BTD: Tensor, heads: int) -> Tensor:
        return x_BTD.unflatten(-1, (heads, self.head_dim)).transpose(1, 2)

    def _attend(self, q_BHTK: Tensor, k_BNSK: Tensor, v_BNSK: Tensor) -> Tensor:
        T, S = q_BHTK.shape[2], k_BNSK.shape[2]
        grouped = self.heads != self.kv_heads
        if self.window is None or self.window >= S:
            if T == S:
                return F.scaled_dot_product_attention(q_BHTK, k_BNSK, v_BNSK, is_causal=True, enable_gqa=grouped)
            mask = None if T == 1 else _band(T, S, None, q_BHTK.device)
            return F.scaled_dot_product_attention(q_BHTK, k_BNSK, v_BNSK, attn_mask=mask, enable_gqa=grouped)
        # Blocks of `window` queries, each with the keys it can see: T x 2W work in place of T x S.
        parts = []
        for first in range(0, T, self.window):
            last = min(first + self.window, T)
            low = max(0, S - T + first - self.window + 1)
            high = S - T + last
            mask = _band(last - first, high - low, self.window, q_BHTK.device)
            parts.append(
                F.scaled_dot_product_attention(
                    q_BHTK[:, :, first:last], k_BNSK[:, :, low:high], v_BNSK[:, :, low:high], attn_mask=mask, enable_gqa=grouped
                )
            )
        return torch.cat(parts, dim=2)


def _band(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """[queries, keys], true where a query may look; the last query stands at the last key."""
    age = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)[None, :]
    seen = age >= 0
    return seen if window is None else seen & (age < window)
