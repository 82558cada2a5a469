"""What an operator is, as data: frozen dataclasses without torch.

Legend for shapes, here and in the whole package: B batch, T tokens, D hidden size, H query heads, N key/value heads,
K key channels of a head, V value channels of a head, W window, C context (tokens already in the cache).

The dataclasses carry `__pydantic_config__`, so that whoever reads them from a file can have pydantic check them
strictly (unknown keys and wrong types refused); impossible combinations are refused by `Operator.check`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

STRICT: dict[str, Any] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}

Precision = Literal["fp32", "int8", "int4", "int4g128"]
"""Of linear weights: float32, or integers that share a scale in groups along a row (`operators.costs.group_size`)."""
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8", "int4", "int4g128")


class OperatorError(Exception):
    """Anything this package refuses to do.

    OperatorError
    ├── SpecError              a spec that cannot be built: `field` and `problem` say why
    ├── UnknownOperatorError   a `kind` that no installed package provides
    └── GraphError             a graph that cannot be written or does not hold what it should
    """


class SpecError(OperatorError, ValueError):
    """A spec that cannot be built; `field` is the dotted path of the offending field."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class UnknownOperatorError(SpecError):
    """A `kind` that neither this package nor an installed entry point provides."""


class GraphError(OperatorError):
    """An ONNX graph that cannot be written, or does not hold what is asked of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelDims:
    """What all layers of a model share."""

    hidden_size: int
    norm_eps: float = 1e-5
    rope_theta: float = 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorSpec:
    """Base of every operator's spec. `kind` is the tag in files and the key of the registry (`operators.kinds`)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    kind: ClassVar[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShortConvSpec(OperatorSpec):
    """LFM2's gated short convolution: `out(C * causal_depthwise_conv(B * x))`."""

    kind: ClassVar[str] = "short_conv"
    kernel_size: int = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class GqaSpec(OperatorSpec):
    """Grouped-query attention over the whole context, RMSNorm on q and k, rotary positions."""

    kind: ClassVar[str] = "gqa"
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SwaSpec(OperatorSpec):
    """Sliding-window attention: as GQA, each token sees the last `window` tokens, itself included."""

    kind: ClassVar[str] = "swa"
    heads: int
    kv_heads: int
    head_dim: int
    window: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GlaSpec(OperatorSpec):
    """Gated linear attention (arXiv 2312.06635): a matrix state with a per-channel decay on the keys."""

    kind: ClassVar[str] = "gla"
    heads: int
    expand_k: float = 0.5
    expand_v: float = 1.0
    gate_rank: int = 16
    gate_normalizer: float = 16.0


@dataclass(frozen=True, kw_only=True, slots=True)
class FfnSpec:
    """SwiGLU feed-forward network: `w2(silu(w1 x) * w3 x)`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    intermediate_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSpec:
    """One layer: a token mixer and an FFN, each behind an RMSNorm and a residual connection."""

    operator: OperatorSpec
    ffn: FfnSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightSpec:
    """One weight tensor of an operator. `linear` ones ([out, in]) are stored in the model's precision, others in fp32."""

    name: str
    shape: tuple[int, ...]
    linear: bool

    @property
    def size(self) -> int:
        """Number of parameters."""
        n = 1
        for d in self.shape:
            n *= d
        return n


@dataclass(frozen=True, kw_only=True, slots=True)
class StateSpec:
    """One cache tensor of an operator, as the ONNX graph carries it.

    `shape` may name "batch" and "cache" (the number of positions a full-context cache has room for).
    A `shared` state is one buffer that is input and output at once (a KV cache, updated in place); the others are
    ping-ponged between two buffers.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: Literal["float32"] = "float32"
    shared: bool = False

    def resolve(self, *, batch: int, cache: int) -> tuple[int, ...]:
        """The shape in numbers."""
        sizes = {"batch": batch, "cache": cache}
        return tuple(sizes[d] if isinstance(d, str) else d for d in self.shape)

    def bytes(self, *, batch: int, cache: int) -> int:
        """Bytes of the tensor (fp32), counted once whether shared or ping-ponged."""
        n = 4
        for d in self.resolve(batch=batch, cache=cache):
            n *= d
        return n
