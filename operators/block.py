"""One layer: a token mixer and an FFN, each behind an RMSNorm and a residual connection."""

from __future__ import annotations

from inspect import signature

from torch import Tensor, nn

from operators.documents import Documents
from operators.ffn import Ffn
from operators.kinds import operator_for
from operators.norm import RMSNorm
from operators.specs import BlockSpec, ModelDims

State = tuple[Tensor, ...]
"""What an operator's module remembers of a sequence; its class says what the tensors are."""


class Block(nn.Module):
    """`x += operator(operator_norm(x)); x += ffn(ffn_norm(x))`; [B, T, D] -> [B, T, D]."""

    def __init__(self, spec: BlockSpec, dims: ModelDims) -> None:
        super().__init__()
        self.operator_norm = RMSNorm(dims.hidden_size, dims.norm_eps)
        self.operator = operator_for(spec.operator).module(spec.operator, dims)
        self.ffn_norm = RMSNorm(dims.hidden_size, dims.norm_eps)
        self.ffn = Ffn(spec.ffn, dims)

    @property
    def knows_documents(self) -> bool:
        """Whether the operator can keep packed documents apart."""
        return "documents" in signature(self.operator.forward).parameters

    def forward(self, x_BTD: Tensor, state: State | None = None, documents: Documents | None = None) -> tuple[Tensor, State]:
        """`state=None` starts a sequence; the new state is always returned, and the given one left as it was.

        With `documents`, a whole sequence of which each document stands alone; it is not begun with a state, nor gone on with.
        """
        normed_BTD = self.operator_norm(x_BTD)
        mixed_BTD, state = self.operator(normed_BTD, state) if documents is None else self.operator(normed_BTD, None, documents)
        x_BTD = x_BTD + mixed_BTD
        x_BTD = x_BTD + self.ffn(self.ffn_norm(x_BTD))
        return x_BTD, state
