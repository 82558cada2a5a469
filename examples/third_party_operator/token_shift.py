"""A token mixer that archsearch does not have: RWKV's token shift (arXiv 2305.13048, equations 11 and 12, without its memory).

    m_t = x_{t-1} + mix * (x_t - x_{t-1})
    y_t = out(sigmoid(r m_t) * v m_t)

It remembers one token. docs/add-an-operator.md walks through this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from operators.kinds import Operator
from operators.specs import ModelDims, OperatorSpec, SpecError, StateSpec, WeightSpec

if TYPE_CHECKING:
    from torch import nn

    from operators.graph import GraphBuilder


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenShiftSpec(OperatorSpec):
    """`{ kind = "token_shift", expand = 1.0 }` in a spec or a space."""

    kind: ClassVar[str] = "token_shift"
    expand: float = 1.0
    """Inner channels as a multiple of the hidden size."""


class TokenShift(Operator):
    spec_type = TokenShiftSpec
    family = "shift"

    def label(self, spec: TokenShiftSpec) -> str:
        return f"shift{spec.expand:g}"

    def check(self, spec: TokenShiftSpec, dims: ModelDims) -> None:
        if self.channels(spec, dims) < 1:
            raise SpecError("expand", f"must leave at least one channel, got {spec.expand}")

    def channels(self, spec: TokenShiftSpec, dims: ModelDims) -> int:
        return int(spec.expand * dims.hidden_size)

    def weights(self, spec: TokenShiftSpec, dims: ModelDims) -> tuple[WeightSpec, ...]:
        D, E = dims.hidden_size, self.channels(spec, dims)
        return (
            WeightSpec(name="mix", shape=(D,), linear=False),
            WeightSpec(name="r_proj.weight", shape=(E, D), linear=True),
            WeightSpec(name="v_proj.weight", shape=(E, D), linear=True),
            WeightSpec(name="out_proj.weight", shape=(D, E), linear=True),
        )

    def states(self, spec: TokenShiftSpec, dims: ModelDims) -> tuple[StateSpec, ...]:
        return (StateSpec(name="shift", shape=("batch", 1, dims.hidden_size)),)

    def mixing_flops(self, spec: TokenShiftSpec, dims: ModelDims, *, tokens: int, context: int) -> int:
        return tokens * (3 * dims.hidden_size + self.channels(spec, dims))

    def reference(
        self, spec: Any, dims: ModelDims, weights: Mapping[str, np.ndarray], x_BTD: np.ndarray, state: Any = None
    ) -> tuple[np.ndarray, Any]:
        from operators.reference import linear, sigmoid

        before_BD = np.zeros_like(x_BTD[:, 0]) if state is None else state
        outputs = []
        for x_BD in np.moveaxis(x_BTD, 1, 0):
            mixed_BD = before_BD + weights["mix"] * (x_BD - before_BD)
            gated_BE = sigmoid(linear(weights, "r_proj", mixed_BD)) * linear(weights, "v_proj", mixed_BD)
            outputs.append(linear(weights, "out_proj", gated_BE))
            before_BD = x_BD
        return np.stack(outputs, axis=1), before_BD

    def module(self, spec: TokenShiftSpec, dims: ModelDims) -> nn.Module:
        import torch
        from torch import Tensor, nn

        D, E = dims.hidden_size, self.channels(spec, dims)

        class Module(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.mix = nn.Parameter(torch.full((D,), 0.5))
                self.r_proj = nn.Linear(D, E, bias=False)
                self.v_proj = nn.Linear(D, E, bias=False)
                self.out_proj = nn.Linear(E, D, bias=False)

            def forward(self, x_BTD: Tensor, state: Any = None, documents: Any = None) -> tuple[Tensor, Any]:
                (before_B1D,) = (torch.zeros_like(x_BTD[:, :1]),) if state is None else state
                shifted_BTD = torch.cat([before_B1D, x_BTD[:, :-1]], dim=1)
                if documents is not None:
                    shifted_BTD = shifted_BTD.masked_fill(documents.starts_BT[..., None], 0.0)
                mixed_BTD = shifted_BTD + self.mix * (x_BTD - shifted_BTD)
                gated_BTE = torch.sigmoid(self.r_proj(mixed_BTD)) * self.v_proj(mixed_BTD)
                return self.out_proj(gated_BTE), (x_BTD[:, -1:],)

        return Module()

    def emit(
        self, graph: GraphBuilder, spec: Any, dims: ModelDims, prefix: str, x: str, past: tuple[str, ...]
    ) -> tuple[str, tuple[str, ...]]:
        def rows(name: str, first: int, end: int) -> str:
            bounds = (graph.constant(f"row.{value}", np.array([value], np.int64)) for value in (first, end, 1))
            return graph.node("Slice", [name, *bounds])

        last = np.iinfo(np.int64).max
        both = graph.node("Concat", [past[0], x], axis=1)
        shifted, present = rows(both, 0, -1), rows(both, -1, last)
        mix = graph.constant(f"{prefix}mix", graph.weight(f"{prefix}mix"))
        mixed = graph.node("Add", [shifted, graph.node("Mul", [mix, graph.node("Sub", [x, shifted])])])
        E = self.channels(spec, dims)
        r, v = graph.split(graph.linear(mixed, f"{prefix}r_proj.weight", f"{prefix}v_proj.weight"), (E, E), f"{prefix}rv")
        gated = graph.node("Mul", [graph.node("Sigmoid", [r]), v])
        return graph.linear(gated, f"{prefix}out_proj.weight"), (present,)
