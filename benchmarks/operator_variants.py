"""How else an operator could be written into a graph, and what that would cost: ratios to the graph that is written now.

    python benchmarks/operator_variants.py [--hidden 1024 --ffn 4608 --blocks 4 --steps 120 --context 512 --prefill 128]

All variants of a block run interleaved in shuffled order in this process, three sessions of each (a session's place in memory alone
is worth 1 to 3 %), each step a true one on growing caches. The time is that of the thread, which other processes do not add to; with
several threads (`--threads 2`, which wait by spinning) the wall's.
Printed: the median over sessions of the mean step, and the lowest and highest ratio of single sessions to the baseline's median.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np

from operators import costs
from operators.builtin import Swa
from operators.graph import MICROSOFT, GraphBuilder, Runner, emit, write_blocks
from operators.specs import BlockSpec, FfnSpec, GlaSpec, GqaSpec, ModelDims, OperatorSpec, ShortConvSpec, StateSpec, SwaSpec

SESSIONS = 3
Variant = Callable[[], contextlib.AbstractContextManager[object]]


@contextlib.contextmanager
def _replace(target: object, name: str, make: Callable[[Callable], Callable]) -> Iterator[None]:
    with patch.object(target, name, make(getattr(target, name))):
        yield


def apart(_linear: Callable) -> Callable:
    """Each of several weights in a product of its own."""

    def linear(graph: GraphBuilder, x: str, *names: str, quantized: bool = True) -> str:
        parts = [_linear(graph, x, name, quantized=quantized) for name in names]
        return parts[0] if len(parts) == 1 else graph.node("Concat", parts, axis=-1)

    return linear


def unsplit(_split: Callable) -> Callable:
    """Splitting what `apart` has joined gives the parts again; the runtime does not see through that."""

    def split(graph: GraphBuilder, x: str, sizes: tuple[int, ...], hint: str) -> tuple[str, ...]:
        joined = next((node for node in graph._nodes if node.op_type == "Concat" and x in node.output), None)
        if joined is None:
            return _split(graph, x, sizes, hint)
        graph._nodes.remove(joined)
        return tuple(joined.input)

    return split


@contextlib.contextmanager
def products_apart() -> Iterator[None]:
    with _replace(GraphBuilder, "linear", apart), _replace(GraphBuilder, "split", unsplit):
        yield


def plain_silu(graph: GraphBuilder, x: str) -> str:
    return graph.node("Mul", [x, graph.node("Sigmoid", [x])])


def plain_add_and_norm(graph: GraphBuilder, residual: str, delta: str | None, weight: str) -> tuple[str, str]:
    total = residual if delta is None else graph.node("Add", [residual, delta])
    return graph.rms_norm(total, weight), total


def exact_inputs(_node: Callable) -> Callable:
    """Accuracy level 0: inputs of quantised products stay float."""

    def node(graph: GraphBuilder, op: str, inputs: list[str], **attributes: object) -> str:
        return _node(graph, op, inputs, **attributes | ({"accuracy_level": 0} if op == "MatMulNBits" else {}))

    return node


def in_float32(_linear: Callable) -> Callable:
    """Products in float32."""

    def linear(graph: GraphBuilder, x: str, *names: str, quantized: bool = True) -> str:
        return _linear(graph, x, *names, quantized=False)

    return linear


def in_int8(_linear: Callable) -> Callable:
    """`MatMulNBits` with 8 bits, in blocks of 128."""

    def linear(graph: GraphBuilder, x: str, *names: str, quantized: bool = True) -> str:
        with patch.object(graph, "precision", "int8"):
            return _linear(graph, x, *names, quantized=quantized)

    return linear


def dynamic_int8(_linear: Callable) -> Callable:
    """`DynamicQuantizeMatMul`: inputs rounded to int8 as one tensor, a scale for each output channel.

    Weights use 7 bits: AVX2's product of bytes saturates beyond.
    """

    def linear(graph: GraphBuilder, x: str, *names: str, quantized: bool = True) -> str:
        hint = "+".join(names)
        matrix = np.concatenate([graph.weight(name) for name in names])
        scales = np.abs(matrix).max(1) / 63
        levels = np.rint(matrix / scales[:, None]).astype(np.int8)
        inputs = [x, graph.constant(f"{hint}.int8", np.ascontiguousarray(levels.T)), graph.constant(f"{hint}.scales", scales)]
        return graph.node("DynamicQuantizeMatMul", inputs, domain=MICROSOFT, hint=f"{hint}.out")

    return linear


def blocks_of(size: int) -> Variant:
    """One scale for so many weights."""

    @contextlib.contextmanager
    def variant() -> Iterator[None]:
        with patch.dict(costs.GROUPS, dict.fromkeys(costs.GROUPS, size)):
            yield

    return variant


@contextlib.contextmanager
def in_int8_blocks_of_32() -> Iterator[None]:
    with blocks_of(32)(), _replace(GraphBuilder, "linear", in_int8):
        yield


def plain_conv(graph: GraphBuilder, spec: ShortConvSpec, dims: ModelDims, prefix: str, x: str, past: tuple[str, ...]) -> emit.Emitted:
    """Standard operators: the past before the input, Conv along time, channels first."""
    D, k = dims.hidden_size, spec.kernel_size
    gate_in, gate_out, h = graph.split(graph.linear(x, f"{prefix}in_proj.weight"), (D, D, D), f"{prefix}gates")
    both = graph.node("Concat", [past[0], graph.node("Mul", [gate_in, h])], axis=1)
    starts, ends, axis = (graph.constant(f"rows.{v}", np.array([v], np.int64)) for v in (1 - k, np.iinfo(np.int64).max, 1))
    present = graph.node("Slice", [both, starts, ends, axis])
    taps = graph.constant(f"{prefix}conv.weight", graph.weight(f"{prefix}conv.weight"))
    mixed = graph.node("Conv", [graph.node("Transpose", [both], perm=[0, 2, 1]), taps], group=D)
    gated = graph.node("Mul", [gate_out, graph.node("Transpose", [mixed], perm=[0, 2, 1])])
    return graph.linear(gated, f"{prefix}out_proj.weight"), (present,)


def gated_norm(_node: Callable) -> Callable:
    """GLA's output norm and gate in one GatedRMSNorm."""

    def node(graph: GraphBuilder, op: str, inputs: list[str], **attributes: object) -> str:
        made = {name: n for n in graph._nodes for name in n.output}
        if op == "Mul" and str(attributes.get("hint", "")).endswith("operator.gated"):
            silu = made[inputs[1]]
            norm = made[made[inputs[0]].input[0]]
            packed = made[norm.input[0]].input[0]
            options = {"activation": "silu", "epsilon": graph.dims.norm_eps}
            return _node(graph, "GatedRMSNorm", [packed, norm.input[1], silu.input[0]], domain=MICROSOFT, **options)
        return _node(graph, op, inputs, **attributes)

    return node


def slack(rows: int) -> Variant:
    """A windowed cache with more rows than the window."""

    def states(_operator: Swa, spec: SwaSpec, dims: ModelDims) -> tuple[StateSpec, ...]:
        shape = ("batch", spec.kv_heads, spec.window + rows, spec.head_dim)
        return tuple(StateSpec(name=name, shape=shape, shared=True) for name in ("key", "value"))

    return lambda: patch.object(Swa, "states", states)


def variants(hidden: int) -> dict[str, tuple[OperatorSpec, dict[str, Variant]]]:
    heads = {"heads": hidden // 64, "kv_heads": max(1, hidden // 128), "head_dim": 64}
    common: dict[str, Variant] = {
        "products apart": products_apart,
        "Sigmoid and Mul for QuickGelu": lambda: patch.object(GraphBuilder, "silu", plain_silu),
        "Add and norm apart": lambda: patch.object(GraphBuilder, "add_and_norm", plain_add_and_norm),
        "accuracy level 0": lambda: _replace(GraphBuilder, "node", exact_inputs),
    }
    products: dict[str, Variant] = {
        "accuracy level 0": common["accuracy level 0"],
        "blocks of 64": blocks_of(64),
        "blocks of 128": blocks_of(128),
        "8 bits": lambda: _replace(GraphBuilder, "linear", in_int8),
        "8 bits, blocks of 32": in_int8_blocks_of_32,
        "DynamicQuantizeMatMul": lambda: _replace(GraphBuilder, "linear", dynamic_int8),
        "float32": lambda: _replace(GraphBuilder, "linear", in_float32),
    }
    table: dict[str, tuple[OperatorSpec, dict[str, Variant]]] = {
        "conv3": (ShortConvSpec(), common | {"Concat, Conv, Slice": lambda: patch.object(emit, "short_conv", plain_conv)}),
        "products": (ShortConvSpec(), products),
        "gqa": (GqaSpec(**heads), {"products apart": products_apart}),
        "gla4": (GlaSpec(heads=4), {"GatedRMSNorm": lambda: _replace(GraphBuilder, "node", gated_norm)}),
    }
    slacks = {"the window alone": slack(0)} | {f"{rows} rows more": slack(rows) for rows in (16, 64)}
    return table | {f"swa{window}": (SwaSpec(**heads, window=window), slacks) for window in (256, 512, 1024)}


class Stepper:
    """A decoding session whose steps are timed without the binding of their inputs."""

    def __init__(self, path: Path, prefill: np.ndarray, capacity: int, threads: int) -> None:
        self.runner = Runner(path, threads=threads)
        self.clock = time.thread_time_ns if threads == 1 else time.perf_counter_ns
        self.prefill, self.capacity = prefill, capacity
        self.times: dict[str, list[int]] = {"decode": [], "prefill": []}

    def run(self, x_BTD: np.ndarray, phase: str | None) -> None:
        session, run = self.runner.session, self.runner.session.run_with_iobinding
        spent = 0

        def timed(binding: object) -> None:
            nonlocal spent
            begun = self.clock()
            run(binding)
            spent = self.clock() - begun

        with patch.object(session, "run_with_iobinding", timed):
            self.runner.step(x_BTD)
        if phase:
            self.times[phase].append(spent)

    def start(self, context: int) -> None:
        self.runner.start(batch=1, capacity=self.capacity)
        if context:
            self.run(self.prefill[:, :context], None)


def compare(name: str, spec: OperatorSpec, found: dict[str, Variant], options: argparse.Namespace, folder: Path) -> None:
    dims, rng = ModelDims(hidden_size=options.hidden), np.random.default_rng(0)
    blocks = [BlockSpec(operator=spec, ffn=FfnSpec(intermediate_size=options.ffn))] * options.blocks
    context = max(options.context, getattr(spec, "window", 0))
    capacity = max(context + options.steps + 8, options.prefill)
    x_BTD = rng.standard_normal((1, max(context, options.prefill), options.hidden)).astype(np.float32)
    labels = {"as written": contextlib.nullcontext, **found}
    for label, variant in labels.items():
        with variant():
            write_blocks(folder / f"{label}.onnx", blocks, dims, precision=options.precision, max_context=capacity)
    steppers: dict[str, list[Stepper]] = {label: [] for label in labels}
    for label in rng.permutation(list(labels) * SESSIONS):  # who comes first is placed differently
        steppers[label].append(Stepper(folder / f"{label}.onnx", x_BTD, capacity, options.threads))
    everyone = [stepper for group in steppers.values() for stepper in group]
    for _ in range(options.steps // 20):
        for i in rng.permutation(len(everyone)):
            everyone[i].start(0)
            everyone[i].run(x_BTD[:, : options.prefill], "prefill")
    for stepper in everyone:
        stepper.start(context)
    for step in range(options.steps + 5):
        for i in rng.permutation(len(everyone)):
            everyone[i].run(x_BTD[:, :1], "decode" if step >= 5 else None)
    for phase in ("decode", "prefill"):
        means = {label: [trimmed_mean(stepper.times[phase]) for stepper in group] for label, group in steppers.items()}
        base = float(np.median(means["as written"]))
        for label, values in means.items():
            ratios = np.array(values) / base
            print(f"{name:8} {phase:8} {label:30} {np.median(values) / options.blocks / 1e6:8.3f} ms a block"
                  f"  {np.median(ratios):6.3f} [{ratios.min():.3f}, {ratios.max():.3f}]", flush=True)  # fmt: skip


def trimmed_mean(times: list[int]) -> float:
    """The mean without the longest twentieth: compactions of a cache count, what the machine did in between does not."""
    return float(np.mean(np.sort(times)[: -max(1, len(times) // 20)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shape = {"hidden": 1024, "ffn": 4608, "blocks": 4, "steps": 120, "context": 512, "prefill": 128, "threads": 1}
    for option, default in shape.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--only", help="names of operators, separated by commas")
    options = parser.parse_args()
    for name, (spec, found) in variants(options.hidden).items():
        if options.only is None or name in options.only.split(","):
            with tempfile.TemporaryDirectory() as folder:
                compare(name, spec, found, options, Path(folder))


if __name__ == "__main__":
    main()
