"""The narrow copy of a layout that is trained in its place: same depth, same operators in the same order, 64 channels."""

from __future__ import annotations

from dataclasses import replace

from archsearch.spec import ArchSpec
from operators.kinds import operator_for
from operators.specs import BlockSpec, FfnSpec, GlaSpec, GqaSpec, ModelDims, OperatorSpec, SpecError, SwaSpec

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
    """
    dims = replace(spec.dims, hidden_size=HIDDEN)
    layers = tuple(
        BlockSpec(operator=_operator(block.operator, dims, tokens, context), ffn=_ffn(block.ffn, spec.hidden_size)) for block in spec.layers
    )
    return ArchSpec(
        name=f"{spec.name} (narrow)", hidden_size=HIDDEN, vocab_size=vocab_size, layers=layers, norm_eps=spec.norm_eps, rope_theta=spec.rope_theta
    )


def _ffn(ffn: FfnSpec, hidden_size: int) -> FfnSpec:
    return FfnSpec(intermediate_size=max(8, 8 * round(ffn.intermediate_size * HIDDEN / hidden_size / 8)))


def _operator(spec: OperatorSpec, dims: ModelDims, tokens: int, context: int) -> OperatorSpec:
    match spec:
        case SwaSpec():
            window = max(SMALLEST_WINDOW, round(spec.window * tokens / max(context, 1)))
            return SwaSpec(heads=HEADS, kv_heads=_kv_heads(spec), head_dim=HIDDEN // HEADS, window=min(window, tokens))
        case GqaSpec():
            return GqaSpec(heads=HEADS, kv_heads=_kv_heads(spec), head_dim=HIDDEN // HEADS)
        case GlaSpec():
            return replace(spec, heads=min(spec.heads, HEADS))
    # An operator of somebody else's: as it is, if it can be built that narrow.
    try:
        operator_for(spec).check(spec, dims)
    except SpecError as error:
        raise SpecError(
            error.field, f"{spec.kind} cannot be narrowed to {HIDDEN} channels for the small trainings ({error.problem}); give it dimensions that fit"
        ) from error
    return spec


def _kv_heads(spec: GqaSpec | SwaSpec) -> int:
    """1, 2 or 4 of four heads, nearest to the spec's ratio from below."""
    wanted = HEADS * spec.kv_heads / spec.heads
    return max(n for n in (1, 2, HEADS) if n <= max(1, wanted))
