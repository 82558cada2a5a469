"""Gated linear attention (arXiv 2312.06635), in chunks for whole sequences and as the recurrence for single tokens.

Shapes: B batch, H heads, T tokens, K and V channels of a head; a sequence is cut into N chunks of C tokens, and those into
M sub-chunks of c tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from operators.documents import Documents
from operators.norm import RMSNorm
from operators.specs import GlaSpec, ModelDims

CHUNK = 64
SUBCHUNK = 8
FORGET = -1e4
"""Log-decay that leaves nothing: its exponential is exactly zero in every precision; minus infinity times zero would be no number."""


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

    def forward(
        self, x_BTD: Tensor, state: tuple[Tensor, ...] | None = None, documents: Documents | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        q, k, v, gate = (self._heads(layer(x_BTD)).to(wide) for layer in (self.q_proj, self.k_proj, self.v_proj, self.gk_proj))
        decay = F.logsigmoid(gate) / self.gate_normalizer
        if documents is not None:
            decay = decay.masked_fill(documents.starts_BT[:, None, :, None], FORGET)
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
    o_BHNCV, to_end_BHNCK = _within_chunk(q, k, v, decay)
    from_start_BHNCK = decay.cumsum(-2)
    kept_BHNK1 = from_start_BHNCK[..., -1:, :].exp().mT
    added_BHNKV = (k * to_end_BHNCK.exp()).mT @ v
    before = []
    # Unbound rather than indexed, here and below: the gradient of an index is a whole tensor of zeros, for every n anew.
    for kept_BHK1, added_BHKV in zip(kept_BHNK1.unbind(2), added_BHNKV.unbind(2), strict=True):
        before.append(S_BHKV)
        S_BHKV = kept_BHK1 * S_BHKV + added_BHKV
    o_BHNCV = o_BHNCV + (q * from_start_BHNCK.exp()) @ torch.stack(before, dim=2)
    return o_BHNCV.flatten(2, 3)[:, :, :T], S_BHKV


def _within_chunk(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """What the tokens of a chunk see of each other, `o_i = sum_{j<=i} sum_d (q_id k_jd exp(decay from j to i)_d) v_j`,
    and the log-decay from each token to the end of the chunk.

    Every exponent is a plain sum of log-decays, never a difference of two sums: so none is positive, as in `exp(-G)`, which
    overflows, and none loses its digits to a strong decay elsewhere. Among the c tokens of a sub-chunk, pair by pair;
    towards earlier ones, from j to the end of its sub-chunk and on to the start of i's.
    """
    q_McK, k_McK, v_McV, decay_McK = (torch.unflatten(x, -2, (-1, SUBCHUNK)) for x in (q, k, v, decay))  # behind B, H, N
    later_cc = torch.ones(SUBCHUNK, SUBCHUNK, dtype=decay.dtype, device=decay.device).tril(-1)
    pair_MccK = (decay_McK[..., :, None, :] * later_cc[..., None]).cumsum(-3)  # [i, j]: over the tokens after j, up to i
    scores_Mcc = ((k_McK[..., None, :, :] * pair_MccK.exp()) @ q_McK[..., None]).squeeze(-1).tril()
    near_McV = scores_Mcc @ v_McV
    from_start_McK, to_end_McK = decay_McK.cumsum(-2), pair_MccK[..., -1, :, :]
    q_start_McK = q_McK * from_start_McK.exp()
    through_M1K = from_start_McK[..., -1:, :]
    by_subchunk = zip(*(x.unbind(-3) for x in (q_start_McK, k_McK, v_McV, near_McV, to_end_McK, through_M1K)), strict=True)
    _, k_SK, v_SV, first_cV, passed_SK, _ = next(by_subchunk)
    parts = [first_cV]
    for q_cK, k_cK, v_cV, near_cV, to_end_cK, through_1K in by_subchunk:
        far_cS = q_cK @ (k_SK * passed_SK.exp()).mT
        parts.append(near_cV + far_cS @ v_SV)
        k_SK, v_SV = torch.cat([k_SK, k_cK], dim=-2), torch.cat([v_SV, v_cV], dim=-2)
        passed_SK = torch.cat([passed_SK + through_1K, to_end_cK], dim=-2)
    return torch.cat(parts, dim=-2), passed_SK
