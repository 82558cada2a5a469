"""The plain recurrences in float64 numpy, one token after the other: what every faster version is compared with.

Weights are a mapping of the operator's own names ("in_proj.weight") to arrays; linear ones are [out, in].
States are plain lists of what was seen; `None` starts a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from operators.kinds import operator_for
from operators.specs import BlockSpec, GlaSpec, GqaSpec, ModelDims, ShortConvSpec, SwaSpec

Weights = Mapping[str, np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def linear(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return x @ np.asarray(weights[f"{name}.weight"], np.float64).T


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """`weight * x / sqrt(mean(x^2) + eps)` over the last axis (arXiv 1910.07467)."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * np.asarray(weight, np.float64)


def rotate(x: np.ndarray, position: int, theta: float) -> np.ndarray:
    """Rotary embedding of one position (arXiv 2104.09864): pairs are (i, i + K/2), as Llama and LFM2 have them."""
    K = x.shape[-1]
    angles = position * theta ** (-np.arange(0, K, 2) / K)
    first, second = x[..., : K // 2], x[..., K // 2 :]
    return np.concatenate([first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)], axis=-1)


def short_conv(spec: ShortConvSpec, dims: ModelDims, weights: Weights, x_BTD: np.ndarray, state: Any = None) -> tuple[np.ndarray, Any]:
    """`y_t = out(C_t * sum_j w_j (B x)_{t-k+1+j})` with `B, C, x = chunk(in(h), 3)` (arXiv 2511.23404)."""
    taps_Dk = np.asarray(weights["conv.weight"], np.float64)[:, 0]
    seen = list(state) if state is not None else [np.zeros((len(x_BTD), dims.hidden_size))] * (spec.kernel_size - 1)
    outputs = []
    for x_BD in np.moveaxis(np.asarray(x_BTD, np.float64), 1, 0):
        gate_in, gate_out, h = np.split(linear(weights, "in_proj", x_BD), 3, axis=-1)
        seen = [*seen, gate_in * h][-spec.kernel_size :]
        mixed = sum(taps_Dk[:, j] * column for j, column in enumerate(seen))
        outputs.append(linear(weights, "out_proj", gate_out * mixed))
        seen = seen[1:]
    return np.stack(outputs, axis=1), seen


def attention(spec: GqaSpec | SwaSpec, dims: ModelDims, weights: Weights, x_BTD: np.ndarray, state: Any = None) -> tuple[np.ndarray, Any]:
    """Softmax attention of each token over itself and those before it, the last `window` of them if the spec has one."""
    keys, values = ([], []) if state is None else ([*state[0]], [*state[1]])
    window = spec.window if isinstance(spec, SwaSpec) else None
    group = spec.heads // spec.kv_heads
    outputs = []
    for x_BD in np.moveaxis(np.asarray(x_BTD, np.float64), 1, 0):
        position = len(keys)
        q_BHK = linear(weights, "q_proj", x_BD).reshape(len(x_BD), spec.heads, spec.head_dim)
        k_BNK = linear(weights, "k_proj", x_BD).reshape(len(x_BD), spec.kv_heads, spec.head_dim)
        q_BHK = rotate(rms_norm(q_BHK, weights["q_layernorm.weight"], dims.norm_eps), position, dims.rope_theta)
        k_BNK = rotate(rms_norm(k_BNK, weights["k_layernorm.weight"], dims.norm_eps), position, dims.rope_theta)
        keys.append(k_BNK)
        values.append(linear(weights, "v_proj", x_BD).reshape(k_BNK.shape))
        visible = slice(0 if window is None else max(0, len(keys) - window), None)
        k_BSHK = np.repeat(np.stack(keys[visible], axis=1), group, axis=2)
        v_BSHK = np.repeat(np.stack(values[visible], axis=1), group, axis=2)
        scores_BHS = np.einsum("bhk,bshk->bhs", q_BHK, k_BSHK) / np.sqrt(spec.head_dim)
        shares = np.exp(scores_BHS - scores_BHS.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        y_BHK = np.einsum("bhs,bshk->bhk", shares, v_BSHK)
        outputs.append(linear(weights, "out_proj", y_BHK.reshape(len(x_BD), -1)))
    return np.stack(outputs, axis=1), (keys, values)


def gla(spec: GlaSpec, dims: ModelDims, weights: Weights, x_BTD: np.ndarray, state: Any = None) -> tuple[np.ndarray, Any]:
    """`S_t = diag(exp g_t) S_{t-1} + k_t v_t^T`, `o_t = q_t S_t / sqrt(K)` (arXiv 2312.06635, equations 4 to 6)."""
    outputs = []
    S_BHKV = 0.0 if state is None else state
    for x_BD in np.moveaxis(np.asarray(x_BTD, np.float64), 1, 0):
        q, k, v = (linear(weights, name, x_BD).reshape(len(x_BD), spec.heads, -1) for name in ("q_proj", "k_proj", "v_proj"))
        gate = linear(weights, "gk_proj.1", linear(weights, "gk_proj.0", x_BD)) + np.asarray(weights["gk_proj.1.bias"], np.float64)
        log_decay = (-np.logaddexp(0.0, -gate) / spec.gate_normalizer).reshape(k.shape)
        S_BHKV = np.exp(log_decay)[..., None] * S_BHKV + k[..., None] * v[..., None, :]
        o_BHV = np.einsum("bhk,bhkv->bhv", q, S_BHKV) / np.sqrt(q.shape[-1])
        o_BHV = rms_norm(o_BHV, weights["g_norm.weight"], dims.norm_eps)
        outputs.append(linear(weights, "o_proj", o_BHV.reshape(len(x_BD), -1) * silu(linear(weights, "g_proj", x_BD))))
    return np.stack(outputs, axis=1), S_BHKV


def ffn(weights: Weights, x: np.ndarray) -> np.ndarray:
    """SwiGLU: `w2(silu(w1 x) * w3 x)` (arXiv 2002.05202)."""
    return linear(weights, "w2", silu(linear(weights, "w1", x)) * linear(weights, "w3", x))


def block(spec: BlockSpec, dims: ModelDims, weights: Weights, x_BTD: np.ndarray, state: Any = None) -> tuple[np.ndarray, Any]:
    """A layer: both residual branches."""
    x_BTD = np.asarray(x_BTD, np.float64)
    normed = rms_norm(x_BTD, weights["operator_norm.weight"], dims.norm_eps)
    mixed, state = operator_for(spec.operator).reference(spec.operator, dims, part(weights, "operator."), normed, state)
    x_BTD = x_BTD + mixed
    return x_BTD + ffn(part(weights, "ffn."), rms_norm(x_BTD, weights["ffn_norm.weight"], dims.norm_eps)), state


def model(blocks: Sequence[BlockSpec], dims: ModelDims, weights: Weights, ids_BT: np.ndarray, state: Any = None) -> tuple[np.ndarray, Any]:
    """A whole language model: logits [B, T, V] and the state of every layer."""
    x_BTD = np.asarray(weights["embed_tokens.weight"], np.float64)[ids_BT]
    states = []
    for i, spec in enumerate(blocks):
        x_BTD, new = block(spec, dims, part(weights, f"layers.{i}."), x_BTD, None if state is None else state[i])
        states.append(new)
    head = weights.get("lm_head.weight", weights["embed_tokens.weight"])
    return rms_norm(x_BTD, weights["embedding_norm.weight"], dims.norm_eps) @ np.asarray(head, np.float64).T, states


def part(weights: Weights, prefix: str) -> dict[str, np.ndarray]:
    """The weights under a prefix, without it."""
    return {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}
