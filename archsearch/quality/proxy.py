"""The narrow copy of a layout that is trained in its place: same depth, same operators in the same order, 64 channels or more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from archsearch.spec import ArchSpec
from operators.kinds import operator_for
from operators.specs import BlockSpec, FfnSpec, GlaSpec, ModelDims, OperatorSpec, SpecError

HIDDEN = 64
HEADS = 4
HEAD_DIM = 64
"""Of copies wide enough for more than four heads, as published models have it."""
SMALLEST_WINDOW = 8


def narrow(spec: ArchSpec, *, vocab_size: int, tokens: int, context: int, hidden: int = HIDDEN) -> ArchSpec:
    """The copy of a layout for sequences of `tokens`, `hidden` channels wide.

    Kept: depth, order, kernel sizes, the ratio of FFN width to hidden size (rounded to 8), the ratio of query to key/value
    heads as far as the heads allow: four, and more of 64 channels from a width of 320 on. A window shrinks as the context
    does, `window * tokens / context`, but not below 8: what matters is whether it spans the distance to what has to be recalled.

    Args:
        context: the context the layout is meant for; windows are judged against it.

    Raises:
        SpecError: an operator of somebody else's cannot be built that narrow.
    """
    dims = replace(spec.dims, hidden_size=hidden)
    layers = tuple(
        BlockSpec(operator=_operator(block.operator, spec.dims, dims, tokens, context), ffn=_ffn(block.ffn, spec.hidden_size, hidden))
        for block in spec.layers
    )
    return ArchSpec(
        name=f"{spec.name} (narrow)",
        hidden_size=hidden,
        vocab_size=vocab_size,
        layers=layers,
        norm_eps=spec.norm_eps,
        rope_theta=spec.rope_theta,
    )


def _ffn(ffn: FfnSpec, hidden_size: int, hidden: int) -> FfnSpec:
    return FfnSpec(intermediate_size=max(8, 8 * round(ffn.intermediate_size * hidden / hidden_size / 8)))


def _operator(spec: OperatorSpec, full: ModelDims, dims: ModelDims, tokens: int, context: int) -> OperatorSpec:
    """The first way to make it narrow that its own check allows."""
    problem: SpecError | None = None
    for candidate in _candidates(spec, full, dims.hidden_size, tokens, context):
        try:
            operator_for(candidate).check(candidate, dims)
            return candidate
        except SpecError as error:
            problem = problem or error
    assert problem is not None
    raise SpecError(
        problem.field,
        f"{spec.kind} cannot be narrowed to {dims.hidden_size} channels for small trainings ({problem.problem}); give it other dimensions",
    ) from problem


def _candidates(spec: OperatorSpec, full: ModelDims, hidden: int, tokens: int, context: int) -> Iterator[OperatorSpec]:
    """By the names of its fields, so that operators of somebody else's are treated like ours."""
    names = {field.name for field in fields(spec)}
    changes: dict[str, Any] = {}
    if "window" in names:
        changes["window"] = min(tokens, max(SMALLEST_WINDOW, round(_get(spec, "window") * tokens / max(context, 1))))
    if {"heads", "kv_heads", "head_dim"} <= names:
        heads = max(HEADS, hidden // HEAD_DIM)
        kv_heads = _kv_heads(_get(spec, "heads"), _get(spec, "kv_heads"), heads)
        changes |= {"heads": heads, "kv_heads": kv_heads, "head_dim": hidden // heads}
    if isinstance(spec, GlaSpec):
        yield _gla(spec, hidden)
        return
    yield replace(spec, **changes)
    scaled = {  # whatever grew with the hidden size shrinks with it
        field.name: max(1, round(value * hidden / full.hidden_size))
        for field in fields(spec)
        if field.name not in changes and type(value := _get(spec, field.name)) is int and value >= full.hidden_size / 4
    }
    yield replace(spec, **changes, **scaled)
    if "heads" in names and "heads" not in changes:
        for heads in range(min(HEADS, _get(spec, "heads")), 0, -1):
            yield replace(spec, **(changes | scaled | {"heads": heads}))


def _gla(spec: GlaSpec, hidden: int) -> GlaSpec:
    """As many heads as four allow, and as many whole channels for each as come nearest to the ratio."""
    heads = min(spec.heads, HEADS)
    keys, values = (max(1, round(hidden * ratio / heads)) * heads for ratio in (spec.expand_k, spec.expand_v))
    return replace(spec, heads=heads, expand_k=keys / hidden, expand_v=values / hidden, gate_rank=min(spec.gate_rank, hidden // 4))


def _kv_heads(heads: int, kv_heads: int, wanted: int) -> int:
    """Of so many heads, the share that is nearest to the spec's ratio from below and divides them: 1, 2 or 4 of four."""
    return max(n for n in range(1, wanted + 1) if wanted % n == 0 and n <= max(1, wanted * kv_heads / heads))


def _get(spec: OperatorSpec, name: str) -> Any:
    return getattr(spec, name)
