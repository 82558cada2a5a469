"""The narrow copy of a layout that is trained in its place: same depth, same operators in the same order, 64 channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from archsearch.spec import ArchSpec
from operators.kinds import operator_for
from operators.specs import BlockSpec, FfnSpec, GlaSpec, ModelDims, OperatorSpec, SpecError

HIDDEN = 64
HEADS = 4
SMALLEST_WINDOW = 8


def narrow(spec: ArchSpec, *, vocab_size: int, tokens: int, context: int) -> ArchSpec:
    """The copy of a layout for sequences of `tokens`.

    Kept: depth, order, kernel sizes, the ratio of FFN width to hidden size (rounded to 8), the ratio of query to key/value
    heads as far as four heads allow. A window shrinks as the context does, `window * tokens / context`, but not below 8:
    what matters is whether it spans the distance to what has to be recalled.

    Args:
        context: the context the layout is meant for; windows are judged against it.

    Raises:
        SpecError: an operator of somebody else's cannot be built that narrow.
    """
    dims = replace(spec.dims, hidden_size=HIDDEN)
    layers = tuple(
        BlockSpec(operator=_operator(block.operator, spec.dims, dims, tokens, context), ffn=_ffn(block.ffn, spec.hidden_size))
        for block in spec.layers
    )
    return ArchSpec(
        name=f"{spec.name} (narrow)",
        hidden_size=HIDDEN,
        vocab_size=vocab_size,
        layers=layers,
        norm_eps=spec.norm_eps,
        rope_theta=spec.rope_theta,
    )


def _ffn(ffn: FfnSpec, hidden_size: int) -> FfnSpec:
    return FfnSpec(intermediate_size=max(8, 8 * round(ffn.intermediate_size * HIDDEN / hidden_size / 8)))


def _operator(spec: OperatorSpec, full: ModelDims, dims: ModelDims, tokens: int, context: int) -> OperatorSpec:
    """The first way to make it narrow that its own check allows."""
    problem: SpecError | None = None
    for candidate in _candidates(spec, full, tokens, context):
        try:
            operator_for(candidate).check(candidate, dims)
            return candidate
        except SpecError as error:
            problem = problem or error
    assert problem is not None
    raise SpecError(
        problem.field,
        f"{spec.kind} cannot be narrowed to {HIDDEN} channels for the small trainings ({problem.problem}); give it dimensions that fit",
    ) from problem


def _candidates(spec: OperatorSpec, full: ModelDims, tokens: int, context: int) -> Iterator[OperatorSpec]:
    """By the names of its fields, so that operators of somebody else's are treated like ours."""
    names = {field.name for field in fields(spec)}
    changes: dict[str, Any] = {}
    if "window" in names:
        changes["window"] = min(tokens, max(SMALLEST_WINDOW, round(_get(spec, "window") * tokens / max(context, 1))))
    if {"heads", "kv_heads", "head_dim"} <= names:
        changes |= {"heads": HEADS, "kv_heads": _kv_heads(_get(spec, "heads"), _get(spec, "kv_heads")), "head_dim": HIDDEN // HEADS}
    if isinstance(spec, GlaSpec):
        yield _gla(spec)
        return
    yield replace(spec, **changes)
    scaled = {  # whatever grew with the hidden size shrinks with it
        field.name: max(1, round(value * HIDDEN / full.hidden_size))
        for field in fields(spec)
        if field.name not in changes and type(value := _get(spec, field.name)) is int and value >= full.hidden_size / 4
    }
    yield replace(spec, **changes, **scaled)
    if "heads" in names and "heads" not in changes:
        for heads in range(min(HEADS, _get(spec, "heads")), 0, -1):
            yield replace(spec, **(changes | scaled | {"heads": heads}))


def _gla(spec: GlaSpec) -> GlaSpec:
    """As many heads as four allow, and as many whole channels for each as come nearest to the ratio."""
    heads = min(spec.heads, HEADS)
    keys, values = (max(1, round(HIDDEN * ratio / heads)) * heads for ratio in (spec.expand_k, spec.expand_v))
    return replace(spec, heads=heads, expand_k=keys / HIDDEN, expand_v=values / HIDDEN, gate_rank=min(spec.gate_rank, HIDDEN // 4))


def _kv_heads(heads: int, kv_heads: int) -> int:
    """1, 2 or 4 of four heads, nearest to the spec's ratio from below."""
    return max(n for n in (1, 2, HEADS) if n <= max(1, HEADS * kv_heads / heads))


def _get(spec: OperatorSpec, name: str) -> Any:
    return getattr(spec, name)
