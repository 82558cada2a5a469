"""`GraphBuilder`: writes nodes, weights in the chosen precision, and the parts that several operators share."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from operators.costs import BITS, group_size
from operators.graph.weight_file import WeightFile
from operators.quantize import Quantized, quantize
from operators.specs import GraphError, ModelDims, Precision, StateSpec, WeightSpec

MICROSOFT = "com.microsoft"
OPSET = 21


class GraphBuilder:
    """An ONNX graph under construction; a context manager that leaves nothing behind when it is left without `save`.

    Emitters call `linear`, `rms_norm`, `silu`, `node` and `constant`; attention also `sequence_lengths` and `rotary_caches`.
    All values are float32; weights of `linear` are stored in `precision`.
    """

    def __init__(
        self,
        path: Path,
        dims: ModelDims,
        precision: Precision,
        specs: Iterable[WeightSpec],
        weights: Mapping[str, np.ndarray],
        max_context: int,
    ) -> None:
        if max_context < 1:
            raise GraphError(f"max_context: must be at least 1, got {max_context}")
        self.path = Path(path)
        self.dims = dims
        self.precision: Precision = precision
        self.shapes = {spec.name: spec.shape for spec in specs}
        self.weights = weights
        self.max_context = max_context
        self._nodes: list[onnx.NodeProto] = []
        self.initializers = WeightFile(self.path)
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._used: Counter[str] = Counter()
        self._lengths: tuple[str, str] | None = None

    def __enter__(self) -> GraphBuilder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.initializers.discard()

    def name(self, hint: str) -> str:
        """A value name that is not in use yet."""
        self._used[hint] += 1
        return hint if self._used[hint] == 1 else f"{hint}_{self._used[hint]}"

    def node(self, op: str, inputs: Sequence[str], *, domain: str = "", hint: str | None = None, **attributes: Any) -> str:
        """Append a node with one output and return its name; an input "" is left out. Fused operators are in `MICROSOFT`."""
        return self.nodes(op, inputs, 1, domain=domain, hint=hint, **attributes)[0]

    def nodes(
        self, op: str, inputs: Sequence[str], outputs: int, *, domain: str = "", hint: str | None = None, **attributes: Any
    ) -> tuple[str, ...]:
        """Append a node with several outputs and return their names."""
        base = hint or op.lower()
        names = tuple(self.name(f"{base}.{i}" if outputs > 1 else base) for i in range(outputs))
        self._append(op, inputs, names, domain, attributes)
        return names

    def _append(self, op: str, inputs: Sequence[str], outputs: Sequence[str], domain: str, attributes: Mapping[str, Any]) -> None:
        node = helper.make_node(op, list(inputs), list(outputs), name=f"{op}_{len(self._nodes)}", domain=domain, **attributes)
        self._nodes.append(node)

    def constant(self, name: str, value: np.ndarray) -> str:
        """An initializer; the same name twice is the same tensor."""
        if name not in self.initializers:
            self.initializers.add(name, value)
        return name

    def weight(self, name: str) -> np.ndarray:
        """A weight by its full name.

        Raises:
            GraphError: it was not given, or the operator says that it has no such weight, or one of another shape.
        """
        if name not in self.shapes:
            raise GraphError(f"{name!r} is none of the weights that its operator names")
        if name not in self.weights:
            raise GraphError(f"no weight {name!r} was given")
        value = np.asarray(self.weights[name], np.float32)
        if value.shape != self.shapes[name]:
            raise GraphError(f"the weight {name!r} has the shape {value.shape}, not {self.shapes[name]}")
        return value

    def linear(self, x: str, *names: str, quantized: bool = True) -> str:
        """`x @ W.T` for one weight [out, in], or for several that are stacked into one product along `out`.

        `quantized=False` keeps fp32 whatever the graph's precision: small, sensitive weights.
        """
        hint = "+".join(names)
        matrix = np.concatenate([self.weight(name) for name in names]) if len(names) > 1 else self.weight(names[0])
        if self.precision == "fp32" or not quantized:
            return self.node("MatMul", [x, self.constant(f"{hint}.T", matrix.T)], hint=f"{hint}.out")
        self.store_quantized(hint, matrix)
        return self.quantized_product(x, hint, matrix.shape)

    def store_quantized(self, name: str, matrix: np.ndarray) -> Quantized:
        """Add a matrix [out, in] in the graph's precision, as `NAME.q` and `NAME.scales`."""
        packed = quantize(matrix, self.precision)
        self.constant(f"{name}.q", packed.data)
        self.constant(f"{name}.scales", packed.scales)
        return packed

    def quantized_product(self, x: str, name: str, shape: tuple[int, ...]) -> str:
        """`x @ W.T` with what `store_quantized` has stored; the runtime rounds `x` to int8 in blocks (accuracy level 4)."""
        return self.node(
            "MatMulNBits",
            [x, f"{name}.q", f"{name}.scales"],
            domain=MICROSOFT,
            hint=f"{name}.out",
            N=shape[0],
            K=shape[1],
            bits=BITS[self.precision],
            block_size=group_size(self.precision, shape[1]),
            accuracy_level=4,
        )

    def rms_norm(self, x: str, weight: str) -> str:
        """RMSNorm over the last axis."""
        gamma = self.constant(weight, self.weight(weight))
        return self.node("SimplifiedLayerNormalization", [x, gamma], hint=f"{weight}.out", axis=-1, epsilon=self.dims.norm_eps)

    def add_and_norm(self, residual: str, delta: str | None, weight: str) -> tuple[str, str]:
        """`(norm(residual + delta), residual + delta)` in one node; without a delta, a plain norm."""
        if delta is None:
            return self.rms_norm(residual, weight), residual
        gamma = self.constant(weight, self.weight(weight))
        normed, total = self.name(f"{weight}.out"), self.name(f"{weight}.sum")
        inputs, outputs = [delta, residual, gamma], [normed, "", "", total]
        self._append("SkipSimplifiedLayerNormalization", inputs, outputs, MICROSOFT, {"epsilon": self.dims.norm_eps})
        return normed, total

    def silu(self, x: str) -> str:
        """`x * sigmoid(x)`, which is QuickGelu with alpha 1."""
        return self.node("QuickGelu", [x], domain=MICROSOFT, hint="silu", alpha=1.0)

    def split(self, x: str, sizes: Sequence[int], hint: str) -> tuple[str, ...]:
        """Split the last axis."""
        lengths = self.constant("split." + "x".join(map(str, sizes)), np.array(sizes, np.int64))
        return self.nodes("Split", [x, lengths], len(sizes), hint=hint, axis=-1)

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """ONNX's Reshape: 0 keeps a dimension, -1 is what is left."""
        target = self.constant("shape." + "x".join(map(str, shape)), np.array(shape, np.int64))
        return self.node("Reshape", [x, target], hint="reshaped")

    def sequence_lengths(self) -> tuple[str, str]:
        """`(seqlens_k, total_sequence_length)` as `GroupQueryAttention` wants them, from the input `attention_mask`, once a graph.

        The mask is all ones: sequences of a batch have equal length.
        """
        if self._lengths is None:
            self.add_input("attention_mask", TensorProto.INT64, ("batch", "total"))
            axis, one = self.constant("axis.1", np.array([1], np.int64)), self.constant("one", np.array(1, np.int64))
            lengths = self.node("ReduceSum", ["attention_mask", axis], hint="lengths", keepdims=0)
            last = self.node("Cast", [self.node("Sub", [lengths, one], hint="last_position")], hint="seqlens_k", to=TensorProto.INT32)
            shape = self.node("Shape", ["attention_mask"], hint="mask_shape", start=1, end=2)
            scalar = self.node("Squeeze", [shape], hint="total_length")
            total = self.node("Cast", [scalar], hint="total_sequence_length", to=TensorProto.INT32)
            self._lengths = (last, total)
        return self._lengths

    def rotary_caches(self, head_dim: int) -> tuple[str, str]:
        """Cosines and sines [max_context, head_dim/2], shared by all layers."""
        name = f"rotary{head_dim}"
        if f"{name}.cos" not in self.initializers:
            frequencies = self.dims.rope_theta ** (-np.arange(0, head_dim, 2) / head_dim)
            angles = np.arange(self.max_context)[:, None] * frequencies
            self.constant(f"{name}.cos", np.cos(angles).astype(np.float32))
            self.constant(f"{name}.sin", np.sin(angles).astype(np.float32))
        return f"{name}.cos", f"{name}.sin"

    def add_input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def add_output(self, source: str, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        """Make a value a graph output under a public name.

        Raises:
            GraphError: nothing computes the value.
        """
        if any(source == value.name for value in (*self.inputs, *self.outputs)):
            source = self.node("Identity", [source])  # one value cannot have two public names
        for node in reversed(self._nodes):
            for i, output in enumerate(node.output):
                if output == source:
                    node.output[i] = name
                    self._rename_uses(source, name)
                    self.outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
                    return name
        raise GraphError(f"{source!r} is no node's output and cannot become the output {name!r}")

    def _rename_uses(self, old: str, new: str) -> None:
        for node in self._nodes:
            for i, value in enumerate(node.input):
                if value == old:
                    node.input[i] = new

    def add_state(self, state: StateSpec, layer: int) -> str:
        return self.add_input(state_names(state.name, layer)[0], TensorProto.FLOAT, state.shape)

    def save(self, metadata: Mapping[str, str]) -> None:
        """Write the model; large weights go to `NAME.data` beside it, aligned for mapping."""
        initializers = self.initializers.close()
        graph = helper.make_graph(self._nodes, self.path.stem, self.inputs, self.outputs, initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="archsearch", ir_version=10)
        helper.set_model_props(model, dict(metadata))
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            partial.write_bytes(model.SerializeToString())
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)


def state_names(state: str, layer: int) -> tuple[str, str]:
    """Input and output name of a layer's state, as published LFM2 models name theirs."""
    if state in ("key", "value"):
        return f"past_key_values.{layer}.{state}", f"present.{layer}.{state}"
    return f"past_{state}.{layer}", f"present_{state}.{layer}"
