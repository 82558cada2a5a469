"""What an ONNX file takes and gives, read from the file itself: ours, or a published LFM2-style model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
from google.protobuf.message import DecodeError

from operators.specs import GraphError

Role = Literal["ids", "hidden", "mask", "positions", "state", "kept"]
DTYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.INT32: "int32",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphInput:
    name: str
    dtype: str
    shape: tuple[int | str, ...]
    """Symbols are "batch", "tokens", "total" (context and tokens) and "cache" (rows of a full-context cache)."""
    role: Role


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphState:
    """A state input and the output that replaces it; `shared` ones are updated in place."""

    input: str
    output: str
    shared: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class InputFeed:
    """How to fill one input for a workload; `fill` as in `devices.plan.Feed`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    fill: Literal["zeros", "normal", "constant", "integers"]
    value: float = 0.0
    scale: float = 1.0
    high: int = 0


@dataclass(frozen=True, kw_only=True)
class GraphInfo:
    """The interface of an ONNX file."""

    path: Path
    inputs: tuple[GraphInput, ...]
    states: tuple[GraphState, ...]
    output: str
    """The output that is no state: "logits" or "hidden_out"."""
    vocab_size: int
    metadata: Mapping[str, str]

    @property
    def max_context(self) -> int | None:
        """Most positions the file has rotary embeddings for; None where it does not say."""
        value = self.metadata.get("archsearch.max_context")
        return int(value) if value else None

    def feeds(self, *, batch: int, tokens: int, context: int) -> tuple[InputFeed, ...]:
        """Every input for `tokens` new tokens after `context` old ones.

        Raises:
            GraphError: more positions than the file has rotary embeddings for, or several tokens on a cache in a batch.
        """
        total = context + tokens
        if self.max_context is not None and total > self.max_context:
            raise GraphError(
                f"{self.path.name} holds {self.max_context} positions, {total} are asked for; write it with a larger max_context"
            )
        if batch > 1 and tokens > 1 and context > 0 and any(state.shared for state in self.states):
            raise GraphError("the runtime's attention takes several tokens after a context for one sequence only, not for a batch")
        sizes = {"batch": batch, "tokens": tokens, "total": total, "cache": total}
        return tuple(self._feed(value, tuple(sizes[d] if isinstance(d, str) else d for d in value.shape), context) for value in self.inputs)

    def _feed(self, value: GraphInput, shape: tuple[int, ...], context: int) -> InputFeed:
        match value.role:
            case "ids":
                return InputFeed(name=value.name, dtype=value.dtype, shape=shape, fill="integers", high=self.vocab_size)
            case "mask":
                return InputFeed(name=value.name, dtype=value.dtype, shape=shape, fill="constant", value=1.0)
            case "positions":
                return InputFeed(name=value.name, dtype=value.dtype, shape=shape, fill="constant", value=float(context))
            case "kept":
                return InputFeed(name=value.name, dtype=value.dtype, shape=shape, fill="constant", value=1.0)
            case "state":
                return InputFeed(name=value.name, dtype=value.dtype, shape=shape, fill="normal" if context else "zeros", scale=0.5)
            case "hidden":
                return InputFeed(name=value.name, dtype=value.dtype, shape=shape, fill="normal")


def read_info(path: Path | str) -> GraphInfo:
    """Read the interface of a file.

    Raises:
        GraphError: no such file, no ONNX file, or inputs that are not those of a decoder with caches.
    """
    path = Path(path)
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise GraphError(f"{path}: cannot be read as ONNX: {' '.join(str(error).split())}") from error
    graph = model.graph
    if not graph.input:
        raise GraphError(f"{path}: holds no graph with inputs; is it an ONNX model?")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    initializers = {tensor.name for tensor in graph.initializer}
    inputs = tuple(_input(path, value) for value in graph.input if value.name not in initializers)
    outputs = [value.name for value in graph.output]
    in_place = {name for node in graph.node if node.op_type == "GroupQueryAttention" for name in node.input[3:5]}  # past key and value
    states = tuple(_state(path, value, outputs, metadata, in_place) for value in inputs if value.role == "state")
    rest = [name for name in outputs if name not in {state.output for state in states}]
    if not rest:
        raise GraphError(f"{path}: has no output beside its caches")
    main = next((value for value in graph.output if value.name == rest[0]), None)
    last = main.type.tensor_type.shape.dim[-1].dim_value if main is not None and main.type.tensor_type.shape.dim else 0
    return GraphInfo(path=path, inputs=inputs, states=states, output=rest[0], vocab_size=last, metadata=metadata)


def _input(path: Path, value: onnx.ValueInfoProto) -> GraphInput:
    tensor = value.type.tensor_type
    if tensor.elem_type not in DTYPES:
        raise GraphError(f"{path}: input {value.name!r} has an element type that is not supported")
    role = _role(path, value.name)
    shape = tuple(d.dim_value or _symbol(d.dim_param, position, role) for position, d in enumerate(tensor.shape.dim))
    return GraphInput(name=value.name, dtype=DTYPES[tensor.elem_type], shape=shape, role=role)


def _role(path: Path, name: str) -> Role:
    known: dict[str, Role] = {
        "input_ids": "ids",
        "hidden": "hidden",
        "attention_mask": "mask",
        "position_ids": "positions",
        "num_logits_to_keep": "kept",
    }
    if name in known:
        return known[name]
    if name.startswith("past"):
        return "state"
    raise GraphError(f"{path}: the input {name!r} is not one of a decoder with caches (input_ids, attention_mask, past_*)")


def _symbol(name: str, position: int, role: Role) -> str:
    if name in ("batch", "tokens", "total", "cache"):
        return name
    if position == 0:
        return "batch"
    return {"mask": "total", "state": "cache"}.get(role, "tokens")


def _state(path: Path, value: GraphInput, outputs: list[str], metadata: Mapping[str, str], in_place: set[str]) -> GraphState:
    output = re.sub(r"^past_key_values\.", "present.", value.name)
    output = re.sub(r"^past_", "present_", output) if output == value.name else output
    if output not in outputs:
        raise GraphError(f"{path}: the state {value.name!r} has no output {output!r} that replaces it")
    if "archsearch.shared_states" in metadata:
        return GraphState(input=value.name, output=output, shared=value.name in json.loads(metadata["archsearch.shared_states"]))
    if "cache" in value.shape and value.name not in in_place:
        raise GraphError(f"{path}: its caches grow without GroupQueryAttention; only caches that are updated in place can be measured")
    return GraphState(input=value.name, output=output, shared=value.name in in_place)
