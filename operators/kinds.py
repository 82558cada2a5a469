"""The registry of operator kinds: ours, and those that installed packages add through the entry point group
`archsearch.operators`. An entry point names an `Operator` instance (or a class without arguments).

No torch and no onnx here: `module` and `emit` import what they need when they are called.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from operators.specs import ModelDims, OperatorSpec, StateSpec, UnknownOperatorError, WeightSpec

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from operators.graph import GraphBuilder

ENTRY_POINT_GROUP = "archsearch.operators"


class Operator(ABC):
    """Everything the toolkit knows about one kind of operator.

    Five things make an operator: what it weighs (`weights`), what it remembers (`states`), what it computes
    (`reference`), how it is trained (`module`), and how a device runs it (`emit`).
    `tests/contracts/operator_suite.py` checks that they agree.
    """

    spec_type: type[OperatorSpec]
    family: str
    """Groups operators in reports ("conv", "gla", "swa", "gqa", or a name of your own)."""

    @property
    def kind(self) -> str:
        return self.spec_type.kind

    @abstractmethod
    def label(self, spec: Any) -> str:
        """A name of at most eight characters for plots, such as "swa256"."""

    @abstractmethod
    def check(self, spec: Any, dims: ModelDims) -> None:
        """Refuse dimensions that cannot be built.

        Raises:
            SpecError: naming the offending field of the spec.
        """

    @abstractmethod
    def weights(self, spec: Any, dims: ModelDims) -> tuple[WeightSpec, ...]:
        """The weight tensors, named as in the torch module's `state_dict`."""

    @abstractmethod
    def states(self, spec: Any, dims: ModelDims) -> tuple[StateSpec, ...]:
        """The cache tensors the ONNX graph takes and returns, in order."""

    @abstractmethod
    def mixing_flops(self, spec: Any, dims: ModelDims, *, tokens: int, context: int) -> int:
        """FLOPs (a multiply-add is two) beside the linear weights, for `tokens` new tokens after `context` old ones, batch 1."""

    @abstractmethod
    def reference(
        self, spec: Any, dims: ModelDims, weights: Mapping[str, np.ndarray], x_BTD: np.ndarray, state: Any = None
    ) -> tuple[np.ndarray, Any]:
        """The plain recurrence in float64: `(y_BTD, state)`; `state=None` starts a sequence."""

    @abstractmethod
    def module(self, spec: Any, dims: ModelDims) -> nn.Module:
        """The torch module: `forward(x_BTD, state=None) -> (y_BTD, state)`, with or without a state."""

    @abstractmethod
    def emit(
        self, graph: GraphBuilder, spec: Any, dims: ModelDims, prefix: str, x: str, past: tuple[str, ...]
    ) -> tuple[str, tuple[str, ...]]:
        """Write the operator into an ONNX graph.

        Args:
            graph: the graph under construction; knows the weights and the precision.
            prefix: prepended to weight names ("layers.3.operator.") and used for node names.
            x: name of the input value, [B, T, D].
            past: names of the input states, in the order of `states`.

        Returns:
            The name of the output value [B, T, D], and the names of the new states.
        """


@cache
def operator_kinds() -> Mapping[str, Operator]:
    """All kinds by name: ours first, then entry points in the order of their names.

    Raises:
        OperatorError: an entry point that does not load, is no `Operator`, or takes a name that is in use.
    """
    from operators.builtin import BUILTIN
    from operators.specs import OperatorError

    kinds: dict[str, Operator] = {operator.kind: operator for operator in BUILTIN}
    for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda e: e.name):
        try:
            found = entry.load()
        except Exception as error:
            raise OperatorError(f"entry point {entry.name} = {entry.value} does not load: {error}") from error
        operator = found() if isinstance(found, type) else found
        if not isinstance(operator, Operator):
            raise OperatorError(f"entry point {entry.name} = {entry.value} is not an operators.Operator")
        if operator.kind in kinds:
            raise OperatorError(f"entry point {entry.name} = {entry.value}: the kind {operator.kind!r} is already taken")
        kinds[operator.kind] = operator
    return kinds


def operator_for(spec: OperatorSpec | str) -> Operator:
    """The operator that a spec, or the name of a kind, belongs to.

    Raises:
        UnknownOperatorError: no installed package provides the kind.
    """
    kind = spec if isinstance(spec, str) else spec.kind
    kinds = operator_kinds()
    if kind not in kinds:
        raise UnknownOperatorError("kind", f"unknown operator {kind!r}; known: {', '.join(kinds)}")
    return kinds[kind]
