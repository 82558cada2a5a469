"""What a layout's structure says for nothing (tier T0): a filter for proposals, never called quality.

A layout that recalls from anywhere in its context needs a layer that can look anywhere, and before it one that moves tokens
to their neighbours: an induction head is a pair of such layers (arXiv 2209.11895; for convolutions, arXiv 2312.04927).
"""

from __future__ import annotations

from dataclasses import dataclass

from archsearch.spec import ArchSpec
from operators.kinds import operator_for
from operators.specs import ModelDims, OperatorSpec


@dataclass(frozen=True, slots=True)
class Structure:
    """
    Attributes:
        reach: tokens that the last layer can get anything from; None when there is no limit.
        looks_anywhere: some layer keeps every token of the context.
        shifts_first: some layer that mixes tokens comes before the first that keeps them all.
    """

    reach: int | None
    looks_anywhere: bool
    shifts_first: bool

    @property
    def can_recall(self) -> bool:
        return self.looks_anywhere and self.shifts_first


def structure(spec: ArchSpec) -> Structure:
    """Read off the operators' states: a full-context cache looks anywhere; `window` and `kernel_size` limit the reach."""
    reach: int | None = 1
    looks_anywhere = shifts_first = False
    for i, block in enumerate(spec.layers):
        if keeps_all(block.operator, spec.dims):
            shifts_first = shifts_first or (i > 0 and not looks_anywhere)
            looks_anywhere = True
        step = getattr(block.operator, "window", getattr(block.operator, "kernel_size", None))
        reach = None if reach is None or step is None else reach + step - 1
    # Of global layers alone, the first one shifts for the second.
    shifts_first = shifts_first or sum(keeps_all(block.operator, spec.dims) for block in spec.layers) > 1
    return Structure(reach=reach, looks_anywhere=looks_anywhere, shifts_first=shifts_first)


def keeps_all(operator: OperatorSpec, dims: ModelDims) -> bool:
    """Whether a layer keeps something of every token, so that its memory grows with the context."""
    return any("cache" in state.shape for state in operator_for(operator).states(operator, dims))
