"""How each of our operators is written into a graph: one function each, with the runtime's fused operators."""

from __future__ import annotations

import numpy as np

from operators.graph.builder import MICROSOFT, GraphBuilder
from operators.specs import FfnSpec, GlaSpec, GqaSpec, ModelDims, ShortConvSpec, SwaSpec

Emitted = tuple[str, tuple[str, ...]]


def short_conv(graph: GraphBuilder, spec: ShortConvSpec, dims: ModelDims, prefix: str, x: str, past: tuple[str, ...]) -> Emitted:
    """Gated short convolution around `CausalConvWithState`, channels last, so that nothing is transposed."""
    D = dims.hidden_size
    projected = graph.linear(x, f"{prefix}in_proj.weight")
    gate_in, gate_out, h = graph.split(projected, (D, D, D), f"{prefix}gates")
    gated = graph.node("Mul", [gate_in, h], hint=f"{prefix}gated")
    taps = graph.constant(f"{prefix}conv.weight", graph.weight(f"{prefix}conv.weight"))
    mixed, present = graph.nodes(
        "CausalConvWithState", [gated, taps, "", past[0]], 2, domain=MICROSOFT, hint=f"{prefix}conv", channels_last=1
    )
    y = graph.linear(graph.node("Mul", [gate_out, mixed], hint=f"{prefix}mixed"), f"{prefix}out_proj.weight")
    return y, (present,)


def attention(graph: GraphBuilder, spec: GqaSpec | SwaSpec, dims: ModelDims, prefix: str, x: str, past: tuple[str, ...]) -> Emitted:
    """`GroupQueryAttention` with rotation inside; RMSNorm on q and k before it, since the CPU kernel does not take their weights.

    A window uses the operator's windowed cache: the buffer holds the window and a little more whatever the context, so that it is
    not moved at every step (`operators.builtin.SLACK`).
    """
    q_size, kv_size = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    projected = graph.linear(x, *(f"{prefix}{name}_proj.weight" for name in "qkv"))
    q, k, v = graph.split(projected, (q_size, kv_size, kv_size), f"{prefix}qkv")
    q, k = (_head_norm(graph, value, spec.head_dim, f"{prefix}{name}_layernorm.weight") for name, value in (("q", q), ("k", k)))
    window = {"local_window_size": spec.window, "sliding_window_cache": 1} if isinstance(spec, SwaSpec) else {}
    y, key, value = graph.nodes(
        "GroupQueryAttention",
        [q, k, v, *past, *graph.sequence_lengths(), *graph.rotary_caches(spec.head_dim)],
        3,
        domain=MICROSOFT,
        hint=f"{prefix}attention",
        num_heads=spec.heads,
        kv_num_heads=spec.kv_heads,
        do_rotary=1,
        **window,
    )
    return graph.linear(y, f"{prefix}out_proj.weight"), (key, value)


def _head_norm(graph: GraphBuilder, x: str, head_dim: int, weight: str) -> str:
    heads = graph.reshape(x, (0, 0, -1, head_dim))
    return graph.reshape(graph.rms_norm(heads, weight), (0, 0, -1))


def gla(graph: GraphBuilder, spec: GlaSpec, dims: ModelDims, prefix: str, x: str, past: tuple[str, ...]) -> Emitted:
    """Gated linear attention around `LinearAttention` with a decay for each key channel.

    The log-decay `logsigmoid(z) / c` is `softplus(-z) * (-1/c)`; the minus is folded into the up projection.
    """
    keys, values = int(dims.hidden_size * spec.expand_k), int(dims.hidden_size * spec.expand_v)
    projected = graph.linear(x, *(f"{prefix}{name}_proj.weight" for name in "qkvg"))
    q, k, v, g = graph.split(projected, (keys, keys, values, values), f"{prefix}qkvg")
    low_rank = graph.linear(x, f"{prefix}gk_proj.0.weight", quantized=False)
    up = graph.constant(f"{prefix}gk_proj.1.negated", -graph.weight(f"{prefix}gk_proj.1.weight").T)
    bias = graph.constant(f"{prefix}gk_proj.1.bias.negated", -graph.weight(f"{prefix}gk_proj.1.bias"))
    negated = graph.node("Add", [graph.node("MatMul", [low_rank, up], hint=f"{prefix}gate_up"), bias], hint=f"{prefix}gate")
    factor = graph.constant(f"gate_factor.{spec.gate_normalizer}", np.array(-1 / spec.gate_normalizer, np.float32))
    decay = graph.node("Mul", [graph.node("Softplus", [negated], hint=f"{prefix}softplus"), factor], hint=f"{prefix}log_decay")
    o, present = graph.nodes(
        "LinearAttention",
        [q, k, v, past[0], decay],
        2,
        domain=MICROSOFT,
        hint=f"{prefix}linear_attention",
        q_num_heads=spec.heads,
        kv_num_heads=spec.heads,
        update_rule="gated",
    )
    normed = _head_norm(graph, o, values // spec.heads, f"{prefix}g_norm.weight")
    y = graph.linear(graph.node("Mul", [normed, graph.silu(g)], hint=f"{prefix}gated"), f"{prefix}o_proj.weight")
    return y, (present,)


def ffn(graph: GraphBuilder, spec: FfnSpec, prefix: str, x: str) -> str:
    """SwiGLU with gate and up in one product."""
    both = graph.linear(x, f"{prefix}w1.weight", f"{prefix}w3.weight")
    gate, up = graph.split(both, (spec.intermediate_size, spec.intermediate_size), f"{prefix}gate_up")
    return graph.linear(graph.node("Mul", [graph.silu(gate), up], hint=f"{prefix}gated"), f"{prefix}w2.weight")
