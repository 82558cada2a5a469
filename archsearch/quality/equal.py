"""Layouts with as many parameters as each other: mixers differ in size, so a fair comparison gives what one saves to its FFNs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from archsearch.quality.proxy import narrow
from archsearch.spec import ArchSpec
from operators.costs import model_parameters
from operators.specs import FfnSpec

STEP = 8
"""FFN widths of the narrow copies are multiples of this (see `narrow`)."""


def copy_parameters(spec: ArchSpec, *, context: int) -> int:
    """Parameters of the narrow copy on bytes, its embedding included (the same for all)."""
    copy = narrow(spec, vocab_size=256, tokens=128, context=context)
    return model_parameters(copy.layers, copy.dims, vocab_size=copy.vocab_size, tie_embeddings=copy.tie_embeddings)


def equal_parameters(specs: Sequence[ArchSpec], *, context: int) -> list[ArchSpec]:
    """The layouts with FFN widths changed so that their narrow copies are equally large, as nearly as one step of one FFN allows.

    The size is that of the copy in the middle. All FFNs of a layout become equally wide, the first ones by one step wider where
    that does not divide.

    Raises:
        ValueError: a layout's operators alone are larger than that.
    """
    sizes = sorted(copy_parameters(spec, context=context) for spec in specs)
    target = sizes[len(sizes) // 2]
    return [_sized(spec, target, context) for spec in specs]


def _sized(spec: ArchSpec, target: int, context: int) -> ArchSpec:
    def with_steps(steps: Sequence[int]) -> ArchSpec:
        from archsearch.quality.proxy import HIDDEN

        widths = [round(STEP * count * spec.hidden_size / HIDDEN) for count in steps]
        layers = (replace(block, ffn=FfnSpec(intermediate_size=w)) for block, w in zip(spec.layers, widths, strict=True))
        return replace(spec, layers=tuple(layers))

    depth = len(spec.layers)
    one, two = (copy_parameters(with_steps([count] * depth), context=context) for count in (1, 2))
    each = (two - one) / depth
    steps = depth + round((target - one) / each)
    if steps < depth:
        raise ValueError(f"{spec.pattern}: its operators alone have more than {target:,} parameters")
    return with_steps([steps // depth + (i < steps % depth) for i in range(depth)])
