"""Gated linear attention (arXiv 2312.06635), in chunks for whole sequences and as the recurrence for single tokens.

Shapes: B batch, H heads, T tokens, K and V channels of a head; a sequence is cut into N chunks of C tokens, and those into
M sub-chunks of c tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from operators.norm import RMSNorm
from operators.specs import GlaSpec, ModelDims

CHUNK = 64
SUBCHUNK = 8


class GlaModule(nn.Module):
    """`S_t = diag(exp g_t) S_{t-1} + k_t v_t^T`, `o_t = q_t S_t / sqrt(K)`; then an RMSNorm per head, a swish gate, `o_proj`.

    Log-decays `g = logsigmoid(up(down(x))) / gate_normalizer` go through a bottleneck of `gate_rank` channels.
    State: (S,), [B, H, K, V], in float32 or wider whatever the weights are.
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

    def forward(self, x_BTD: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        q, k, v, gate = (self._heads(layer(x_BTD)).to(wide) for layer in (self.q_proj, self.k_proj, self.v_proj, self.gk_proj))
        decay = F.logsigmoid(gate) / self.gate_normalizer
        B, H, T, K = q.shape
        S_BHKV = q.new_zeros(B, H, K, v.shape[-1]) if state is None else state[0]
        o_BHTV, S_BHKV = (step if T == 1 else chunked)(q * K**-0.5, k, v, decay, S_BHKV)
        o_BTD = self.g_norm(o_BHTV.to(x_BTD.dtype)).transpose(1, 2).flatten(2)
        return self.o_proj(o_BTD * F.silu(self.g_proj(x_BTD))), (S_BHKV,)

    def _heads(self, x_BTD: Tensor) -> Tensor:
        B, T, _ = x_BTD.shape
        return x_BTD.view(B, T, self.heads, -1).transpose(1, 2)


def step(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, S_BHKV: Tensor) -> tuple[Tensor, Tensor]:
    """One token, [B, H, 1, K or V]: the recurrence itself (section 4.1 of the paper)."""
    S_BHKV = decay.exp().mT * S_BHKV + k.mT @ v
    return q @ S_BHKV, S_BHKV


def chunked(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, S_BHKV: Tensor) -> tuple[Tensor, Tensor]:
    """Many tokens, [B, H, T, K or V]: in parallel within chunks, the recurrence from chunk to chunk (sections 4.2 and 4.3).

    The end is padded with tokens of zero keys and no decay, which leave the state as it is.
    """
    T = q.shape[2]
    length = min(CHUNK, T + -T % SUBCHUNK)
    q, k, v, decay = (torch.unflatten(F.pad(x, (0, 0, 0, -T % length)), 2, (-1, length)) for x in (q, k, v, decay))
    G_BHNCK = decay.cumsum(-2)  # log-decay from before the chunk to each of its tokens
    total = G_BHNCK[..., -1:, :]
    added_BHNKV = (k * (total - G_BHNCK).exp()).mT @ v
    kept_BHNK1 = total.exp().mT
    before = []
    for n in range(added_BHNKV.shape[2]):
        before.append(S_BHKV)
        S_BHKV = kept_BHNK1[:, :, n] * S_BHKV + added_BHNKV[:, :, n]
    o_BHNCV = (q * G_BHNCK.exp()) @ torch.stack(before, dim=2) + _within_chunk(q, k, v, G_BHNCK)
    return o_BHNCV.flatten(2, 3)[:, :, :T], S_BHKV


def _within_chunk(q: Tensor, k: Tensor, v: Tensor, G: Tensor) -> Tensor:
    """What the tokens of a chunk see of each other: `sum_d q_id k_jd exp(G_id - G_jd)` times `v_j`, over j <= i.

    `exp(-G)` by itself overflows where decays are strong, so every exponent here is a difference that is at most zero:
    pair by pair among the tokens of a sub-chunk; towards earlier sub-chunks, by way of the token just before the own one.
    """
    q_m, k_m, v_m, G_m = (torch.unflatten(x, -2, (-1, SUBCHUNK)) for x in (q, k, v, G))  # [B, H, N, M, c, K or V]
    later = torch.ones(SUBCHUNK, SUBCHUNK, dtype=torch.bool, device=q.device).triu(1)
    pair = (G_m[..., :, None, :] - G_m[..., None, :, :]).masked_fill(later[..., None], float("-inf")).exp()
    scores = ((k_m[..., None, :, :] * pair) @ q_m[..., None]).squeeze(-1)
    o_m = scores @ v_m
    parts = [o_m[..., 0, :, :]]
    for m in range(1, q_m.shape[-3]):
        first = m * SUBCHUNK
        pivot = G[..., first - 1 : first, :]
        towards = (q_m[..., m, :, :] * (G_m[..., m, :, :] - pivot).exp()) @ (k[..., :first, :] * (pivot - G[..., :first, :]).exp()).mT
        parts.append(o_m[..., m, :, :] + towards @ v[..., :first, :])
    return torch.cat(parts, dim=-2)
