"""The plain recurrences in float64 numpy, one token after the other: what every faster version is compared with.

Meant to be read beside the papers. Shapes: B batch, T tokens, S tokens seen, D hidden size, H query heads, N key/value heads,
K and V channels of a head.

Weights are a mapping of the operator's own names ("in_proj.weight") to arrays; linear ones are [out, in].
States are what was seen, unpacked; `None` starts a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from operators.kinds import operator_for
from operators.quantize import RoundedInputs
from operators.specs import BlockSpec, GlaSpec, GqaSpec, ModelDims, ShortConvSpec, SwaSpec

Array = npt.NDArray[np.float64]
Weights = Mapping[str, np.ndarray]


def sigmoid(x: Array) -> Array:
    y: Array = np.exp(-np.logaddexp(0.0, -x))
    return y


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def linear(weights: Weights, name: str, x: np.ndarray) -> Array:
    """`x @ W.T`; where W is marked so, x is rounded to int8 as the runtime's quantised products do."""
    weight, x = weights[f"{name}.weight"], np.asarray(x, np.float64)
    if isinstance(weight, RoundedInputs):
        x = weight.round_inputs(x)
    y: Array = x @ np.asarray(weight, np.float64).T
    return y


def rms_norm(x: Array, weight: np.ndarray, eps: float) -> Array:
    """`weight * x / sqrt(mean(x^2) + eps)` over the last axis (arXiv 1910.07467)."""
    y: Array = np.asarray(weight, np.float64) * x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
    return y


def rotate(x: Array, position: int, theta: float) -> Array:
    """Rotary embedding of one position (arXiv 2104.09864): pairs are (i, i + K/2), as Llama and LFM2 have them."""
    K = x.shape[-1]
    angles = position * theta ** (-np.arange(0, K, 2) / K)
    first, second = x[..., : K // 2], x[..., K // 2 :]
    return np.concatenate([first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)], axis=-1)


def short_conv(spec: ShortConvSpec, dims: ModelDims, weights: Weights, x_BTD: np.ndarray, state: Any = None) -> tuple[Array, Any]:
    """`y_t = out(C_t * sum_j w_j (B h)_{t-k+1+j})` with `B, C, h = chunk(in(x), 3)` (arXiv 2511.23404).

    State: the last k-1 columns of `B h`.
    """
    gate_in_BTD, gate_out_BTD, h_BTD = np.split(linear(weights, "in_proj", x_BTD), 3, axis=-1)
    taps_Dk = np.asarray(weights["conv.weight"], np.float64)[:, 0]
    columns = [np.zeros_like(h_BTD[:, 0])] * (spec.kernel_size - 1) if state is None else list(state)
    mixed = []
    for gated_BD in np.moveaxis(gate_in_BTD * h_BTD, 1, 0):
        columns.append(gated_BD)
        mixed.append(sum(taps_Dk[:, j] * column_BD for j, column_BD in enumerate(columns)))
        columns.pop(0)
    return linear(weights, "out_proj", gate_out_BTD * np.stack(mixed, axis=1)), columns


def attention(spec: GqaSpec | SwaSpec, dims: ModelDims, weights: Weights, x_BTD: np.ndarray, state: Any = None) -> tuple[Array, Any]:
    """`o_t = sum_s softmax_s(q_t k_s / sqrt(K)) v_s` over all s <= t, or the last `window` of them; query heads share keys
    and values in groups (arXiv 2305.13245).

    State: the keys, normalised and rotated, and the values of every token seen.
    """
    B, T, _ = x_BTD.shape
    q_BTHK = linear(weights, "q_proj", x_BTD).reshape(B, T, spec.heads, spec.head_dim)
    k_BTNK = linear(weights, "k_proj", x_BTD).reshape(B, T, spec.kv_heads, spec.head_dim)
    v_BTNK = linear(weights, "v_proj", x_BTD).reshape(B, T, spec.kv_heads, spec.head_dim)
    q_BTHK = rms_norm(q_BTHK, weights["q_layernorm.weight"], dims.norm_eps)
    k_BTNK = rms_norm(k_BTNK, weights["k_layernorm.weight"], dims.norm_eps)
    keys, values = ([], []) if state is None else ([*state[0]], [*state[1]])
    outputs = []
    for t in range(T):
        position = len(keys)
        q_BHK = rotate(q_BTHK[:, t], position, dims.rope_theta)
        keys.append(rotate(k_BTNK[:, t], position, dims.rope_theta))
        values.append(v_BTNK[:, t])
        first = max(0, position + 1 - spec.window) if isinstance(spec, SwaSpec) else 0
        k_BSHK = np.repeat(np.stack(keys[first:], axis=1), spec.heads // spec.kv_heads, axis=2)
        v_BSHK = np.repeat(np.stack(values[first:], axis=1), spec.heads // spec.kv_heads, axis=2)
        scores_BHS = np.einsum("bhk,bshk->bhs", q_BHK, k_BSHK) / np.sqrt(spec.head_dim)
        shares_BHS = np.exp(scores_BHS - scores_BHS.max(-1, keepdims=True))
        shares_BHS /= shares_BHS.sum(-1, keepdims=True)
        outputs.append(np.einsum("bhs,bshk->bhk", shares_BHS, v_BSHK))
    return linear(weights, "out_proj", np.stack(outputs, axis=1).reshape(B, T, -1)), (keys, values)


def gla(spec: GlaSpec, dims: ModelDims, weights: Weights, x_BTD: np.ndarray, state: Any = None) -> tuple[Array, Any]:
    """`S_t = diag(exp g_t) S_{t-1} + k_t v_t^T`, `o_t = (q_t / sqrt(K)) S_t`, with `g = logsigmoid(W2 W1 x + b) / c`; the output is
    `o_proj(RMSNorm(o) * silu(g_proj x))` (arXiv 2312.06635, sections 4.1 and 4.4).

    State: S, [B, H, K, V].
    """
    B, T, _ = x_BTD.shape
    q, k, v = (linear(weights, f"{name}_proj", x_BTD).reshape(B, T, spec.heads, -1) for name in "qkv")
    z_BTD = linear(weights, "gk_proj.1", linear(weights, "gk_proj.0", x_BTD)) + np.asarray(weights["gk_proj.1.bias"], np.float64)
    g_BTHK = (-np.logaddexp(0.0, -z_BTD) / spec.gate_normalizer).reshape(k.shape)
    S_BHKV = np.zeros((B, spec.heads, k.shape[-1], v.shape[-1])) if state is None else state
    outputs = []
    for t in range(T):
        S_BHKV = np.exp(g_BTHK[:, t])[..., None] * S_BHKV + np.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        outputs.append(np.einsum("bhk,bhkv->bhv", q[:, t], S_BHKV) / np.sqrt(k.shape[-1]))
    o_BTHV = rms_norm(np.stack(outputs, axis=1), weights["g_norm.weight"], dims.norm_eps)
    return linear(weights, "o_proj", o_BTHV.reshape(B, T, -1) * silu(linear(weights, "g_proj", x_BTD))), S_BHKV


def ffn(weights: Weights, x: Array) -> Array:
    """SwiGLU: `w2(silu(w1 x) * w3 x)` (arXiv 2002.05202)."""
    return linear(weights, "w2", silu(linear(weights, "w1", x)) * linear(weights, "w3", x))


def block(spec: BlockSpec, dims: ModelDims, weights: Weights, x_BTD: np.ndarray, state: Any = None) -> tuple[Array, Any]:
    """`x + operator(norm(x))`, then `x + ffn(norm(x))`; the state is the operator's."""
    x_BTD = np.asarray(x_BTD, np.float64)
    normed = rms_norm(x_BTD, weights["operator_norm.weight"], dims.norm_eps)
    mixed, state = operator_for(spec.operator).reference(spec.operator, dims, part(weights, "operator."), normed, state)
    x_BTD = x_BTD + mixed
    return x_BTD + ffn(part(weights, "ffn."), rms_norm(x_BTD, weights["ffn_norm.weight"], dims.norm_eps)), state


def model(blocks: Sequence[BlockSpec], dims: ModelDims, weights: Weights, ids_BT: np.ndarray, state: Any = None) -> tuple[Array, Any]:
    """A whole language model: logits [B, T, V] and the state of every layer."""
    x_BTD = np.asarray(weights["embed_tokens.weight"], np.float64)[ids_BT]
    states = []
    for i, spec in enumerate(blocks):
        x_BTD, new = block(spec, dims, part(weights, f"layers.{i}."), x_BTD, None if state is None else state[i])
        states.append(new)
    head = "lm_head" if "lm_head.weight" in weights else "embed_tokens"
    return linear(weights, head, rms_norm(x_BTD, weights["embedding_norm.weight"], dims.norm_eps)), states


def part(weights: Weights, prefix: str) -> dict[str, np.ndarray]:
    """The weights under a prefix, without it."""
    return {name[len(prefix) :]: weights[name] for name in weights if name.startswith(prefix)}
