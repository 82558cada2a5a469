"""Our own operators, described without torch or onnx: LFM2's gated short convolution and GQA, SWA, GLA.

Weights are named as in transformers' Lfm2 checkpoints where LFM2 has them, else as in flash-linear-attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from operators.kinds import Operator
from operators.specs import GlaSpec, GqaSpec, ModelDims, ShortConvSpec, SpecError, StateSpec, SwaSpec, WeightSpec

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from operators.graph import GraphBuilder


def _positive(field: str, value: int) -> None:
    if value < 1:
        raise SpecError(field, f"must be at least 1, got {value}")


class ShortConv(Operator):
    spec_type = ShortConvSpec
    family = "conv"

    def label(self, spec: ShortConvSpec) -> str:
        return f"conv{spec.kernel_size}"

    def check(self, spec: ShortConvSpec, dims: ModelDims) -> None:
        if spec.kernel_size < 2:
            raise SpecError("kernel_size", f"must be at least 2 to look back at all, got {spec.kernel_size}")

    def weights(self, spec: ShortConvSpec, dims: ModelDims) -> tuple[WeightSpec, ...]:
        D = dims.hidden_size
        return (
            WeightSpec(name="in_proj.weight", shape=(3 * D, D), linear=True),
            WeightSpec(name="conv.weight", shape=(D, 1, spec.kernel_size), linear=False),
            WeightSpec(name="out_proj.weight", shape=(D, D), linear=True),
        )

    def states(self, spec: ShortConvSpec, dims: ModelDims) -> tuple[StateSpec, ...]:
        return (StateSpec(name="conv", shape=("batch", spec.kernel_size - 1, dims.hidden_size)),)

    def mixing_flops(self, spec: ShortConvSpec, dims: ModelDims, *, tokens: int, context: int) -> int:
        return tokens * dims.hidden_size * (2 * spec.kernel_size + 2)

    def reference(
        self, spec: Any, dims: ModelDims, weights: Mapping[str, np.ndarray], x_BTD: np.ndarray, state: Any = None
    ) -> tuple[np.ndarray, Any]:
        from operators.reference import short_conv

        return short_conv(spec, dims, weights, x_BTD, state)

    def module(self, spec: ShortConvSpec, dims: ModelDims) -> nn.Module:
        from operators.short_conv import ShortConvModule

        return ShortConvModule(spec, dims)

    def emit(
        self, graph: GraphBuilder, spec: Any, dims: ModelDims, prefix: str, x: str, past: tuple[str, ...]
    ) -> tuple[str, tuple[str, ...]]:
        from operators.graph.emit import short_conv

        return short_conv(graph, spec, dims, prefix, x, past)


class _Attention(Operator):
    """What GQA and SWA share: everything but how far back a token sees."""

    def check(self, spec: Any, dims: ModelDims) -> None:
        for field in ("heads", "kv_heads", "head_dim"):
            _positive(field, getattr(spec, field))
        if spec.heads % spec.kv_heads:
            raise SpecError("kv_heads", f"{spec.heads} heads do not divide among {spec.kv_heads} key/value heads")
        if spec.head_dim % 16:
            raise SpecError("head_dim", f"must be a multiple of 16 (the runtime's attention rotates no other), got {spec.head_dim}")

    def weights(self, spec: GqaSpec | SwaSpec, dims: ModelDims) -> tuple[WeightSpec, ...]:
        D, q, kv = dims.hidden_size, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        return (
            WeightSpec(name="q_proj.weight", shape=(q, D), linear=True),
            WeightSpec(name="k_proj.weight", shape=(kv, D), linear=True),
            WeightSpec(name="v_proj.weight", shape=(kv, D), linear=True),
            WeightSpec(name="out_proj.weight", shape=(D, q), linear=True),
            WeightSpec(name="q_layernorm.weight", shape=(spec.head_dim,), linear=False),
            WeightSpec(name="k_layernorm.weight", shape=(spec.head_dim,), linear=False),
        )

    def reference(
        self, spec: Any, dims: ModelDims, weights: Mapping[str, np.ndarray], x_BTD: np.ndarray, state: Any = None
    ) -> tuple[np.ndarray, Any]:
        from operators.reference import attention

        return attention(spec, dims, weights, x_BTD, state)

    def module(self, spec: GqaSpec | SwaSpec, dims: ModelDims) -> nn.Module:
        from operators.attention import AttentionModule

        return AttentionModule(spec, dims)

    def emit(
        self, graph: GraphBuilder, spec: Any, dims: ModelDims, prefix: str, x: str, past: tuple[str, ...]
    ) -> tuple[str, tuple[str, ...]]:
        from operators.graph.emit import attention

        return attention(graph, spec, dims, prefix, x, past)


class Gqa(_Attention):
    spec_type = GqaSpec
    family = "gqa"

    def label(self, spec: GqaSpec) -> str:
        return f"gqa{spec.kv_heads}"

    def states(self, spec: GqaSpec, dims: ModelDims) -> tuple[StateSpec, ...]:
        shape = ("batch", spec.kv_heads, "cache", spec.head_dim)
        return tuple(StateSpec(name=name, shape=shape, shared=True) for name in ("key", "value"))

    def mixing_flops(self, spec: GqaSpec, dims: ModelDims, *, tokens: int, context: int) -> int:
        pairs = tokens * context + tokens * (tokens + 1) // 2
        return 4 * spec.heads * spec.head_dim * pairs


SLACK = 16
"""A windowed cache has one row beyond the window for so many in it."""


class Swa(_Attention):
    spec_type = SwaSpec
    family = "swa"

    def label(self, spec: SwaSpec) -> str:
        return f"swa{spec.window}"

    def check(self, spec: SwaSpec, dims: ModelDims) -> None:
        super().check(spec, dims)
        _positive("window", spec.window)

    def states(self, spec: SwaSpec, dims: ModelDims) -> tuple[StateSpec, ...]:
        """The window and a sixteenth more: a full buffer makes the runtime move the window, which exactly `window` rows are at
        every step, and `window + slack` rows once in `slack + 1` steps (docs/operators.md has what that is worth)."""
        shape = ("batch", spec.kv_heads, spec.window + spec.window // SLACK, spec.head_dim)
        return tuple(StateSpec(name=name, shape=shape, shared=True) for name in ("key", "value"))

    def mixing_flops(self, spec: SwaSpec, dims: ModelDims, *, tokens: int, context: int) -> int:
        growing = min(tokens, max(0, spec.window - context))  # tokens whose window is not full yet
        pairs = growing * context + growing * (growing + 1) // 2 + (tokens - growing) * spec.window
        return 4 * spec.heads * spec.head_dim * pairs


class Gla(Operator):
    spec_type = GlaSpec
    family = "gla"

    def label(self, spec: GlaSpec) -> str:
        return f"gla{spec.heads}"

    def key_size(self, spec: GlaSpec, dims: ModelDims) -> int:
        return int(dims.hidden_size * spec.expand_k)

    def value_size(self, spec: GlaSpec, dims: ModelDims) -> int:
        return int(dims.hidden_size * spec.expand_v)

    def check(self, spec: GlaSpec, dims: ModelDims) -> None:
        for field in ("heads", "gate_rank"):
            _positive(field, getattr(spec, field))
        if spec.gate_normalizer <= 0:
            raise SpecError("gate_normalizer", f"must be positive, got {spec.gate_normalizer}")
        for field, size in (("expand_k", dims.hidden_size * spec.expand_k), ("expand_v", dims.hidden_size * spec.expand_v)):
            if size < 1 or size != int(size):
                raise SpecError(field, f"hidden size {dims.hidden_size} x {getattr(spec, field)} is no whole number of channels")
            if int(size) % spec.heads:
                raise SpecError("heads", f"{int(size)} channels ({field}) do not divide among {spec.heads} heads")

    def weights(self, spec: GlaSpec, dims: ModelDims) -> tuple[WeightSpec, ...]:
        D, K, V = dims.hidden_size, self.key_size(spec, dims), self.value_size(spec, dims)
        return (
            WeightSpec(name="q_proj.weight", shape=(K, D), linear=True),
            WeightSpec(name="k_proj.weight", shape=(K, D), linear=True),
            WeightSpec(name="v_proj.weight", shape=(V, D), linear=True),
            WeightSpec(name="g_proj.weight", shape=(V, D), linear=True),
            WeightSpec(name="gk_proj.0.weight", shape=(spec.gate_rank, D), linear=False),
            WeightSpec(name="gk_proj.1.weight", shape=(K, spec.gate_rank), linear=False),
            WeightSpec(name="gk_proj.1.bias", shape=(K,), linear=False),
            WeightSpec(name="g_norm.weight", shape=(V // spec.heads,), linear=False),
            WeightSpec(name="o_proj.weight", shape=(D, V), linear=True),
        )

    def states(self, spec: GlaSpec, dims: ModelDims) -> tuple[StateSpec, ...]:
        K, V = self.key_size(spec, dims) // spec.heads, self.value_size(spec, dims) // spec.heads
        return (StateSpec(name="gla", shape=("batch", spec.heads, K, V)),)

    def mixing_flops(self, spec: GlaSpec, dims: ModelDims, *, tokens: int, context: int) -> int:
        K, V = self.key_size(spec, dims), self.value_size(spec, dims)
        low_rank = 2 * spec.gate_rank * (dims.hidden_size + K)
        recurrence = 5 * K * V // spec.heads
        return tokens * (low_rank + recurrence)

    def reference(
        self, spec: Any, dims: ModelDims, weights: Mapping[str, np.ndarray], x_BTD: np.ndarray, state: Any = None
    ) -> tuple[np.ndarray, Any]:
        from operators.reference import gla

        return gla(spec, dims, weights, x_BTD, state)

    def module(self, spec: GlaSpec, dims: ModelDims) -> nn.Module:
        from operators.gla import GlaModule

        return GlaModule(spec, dims)

    def emit(
        self, graph: GraphBuilder, spec: Any, dims: ModelDims, prefix: str, x: str, past: tuple[str, ...]
    ) -> tuple[str, tuple[str, ...]]:
        from operators.graph.emit import gla

        return gla(graph, spec, dims, prefix, x, past)


BUILTIN: tuple[Operator, ...] = (ShortConv(), Swa(), Gla(), Gqa())
