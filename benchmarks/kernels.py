"""The two kernels that decide a model's speed, alone and with cold weights or caches: products in each form of their weights,
attention in each form of its cache.

    python benchmarks/kernels.py [--only products,attention,rounding --threads 1,2]

Products: twelve pairs 1024 -> 4608 -> 1024 in a chain (two of them for 512 rows), which no cache holds; printed is the speed at which
what the runtime keeps of them is read, and how much they compute. Attention: six layers of 16 heads on 8, each with a cache of its own.
All forms run interleaved in shuffled order in one process; median of six rounds, and the fastest and slowest. Threads that wait spin.
Nothing timed here is compared with a reference: what is taken into a graph is (`operators/graph/check.py`). Rounding prints what blocks of
each size cost: RMS of what rounding changes, relative to the weights', for normal and for heavy-tailed (Laplace) ones.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable, Mapping

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from operators.quantize import dequantize, quantize_in_blocks

D, F, PAIRS = 1024, 4608, 12
LAYERS, HEADS, KV_HEADS, HEAD_DIM = 6, 16, 8, 64
ROUNDS = 6
FORMS = {  # bits, block, accuracy level, zero points
    "4 bits, blocks of 32": (4, 32, 4, False),
    "4 bits, blocks of 64": (4, 64, 4, False),
    "4 bits, blocks of 128": (4, 128, 4, False),
    "4 bits, blocks of 32, zero points": (4, 32, 4, True),
    "4 bits, blocks of 32, level 0": (4, 32, 0, False),
    "8 bits, blocks of 32": (8, 32, 4, False),
    "8 bits, blocks of 128": (8, 128, 4, False),
    "DynamicQuantizeMatMul": None,
    "float32": None,
}
CACHES = {  # element type, the operator's attributes
    "float32": (TensorProto.FLOAT, {}),
    "float16": (TensorProto.FLOAT16, {}),
    "int8, one scale": (TensorProto.INT8, {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR", "kv_cache_bit_width": 8}),
    "int8, a scale a channel": (TensorProto.INT8, {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}),
}
SCALE = 0.04
"""Of the int8 caches: values of variance one then use a fifth of the range."""


def session(nodes: list, inputs: list, outputs: list, initializers: list, threads: int) -> onnxruntime.InferenceSession:
    graph = helper.make_graph(nodes, "kernels", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_cpu_mem_arena, options.log_severity_level = threads, False, 3
    content = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def kept_bytes(form: str, weights: int) -> float:
    """What MLAS reads of so many weights. Its packed blocks hold a float32 scale and, for the product of sums of inputs with offsets,
    a float32 of that; `DynamicQuantizeMatMul` has one scale a column, which is left out."""
    parameters = FORMS[form]
    if parameters is None:
        return weights * (4.0 if form == "float32" else 1.0)
    bits, block, level, _ = parameters
    return weights * (bits / 8 + (8 if level == 4 else 4) / block)


def products(form: str, pairs: int, threads: int) -> onnxruntime.InferenceSession:
    rng, nodes, initializers, parameters = np.random.default_rng(0), [], [], FORMS[form]
    for i, (K, N) in enumerate([(D, F), (F, D)] * pairs):
        x, y = f"y{i - 1}" if i else "x", f"y{i}"
        if parameters is None:
            matrix = (rng.random((K, N), np.float32) - 0.5) * (12 / K) ** 0.5
            if form == "float32":
                initializers.append(numpy_helper.from_array(matrix, f"w{i}"))
                nodes.append(helper.make_node("MatMul", [x, f"w{i}"], [y]))
                continue
            scales = np.abs(matrix).max(0) / 127
            initializers.append(numpy_helper.from_array(np.rint(matrix / scales).astype(np.int8), f"w{i}"))
            initializers.append(numpy_helper.from_array(scales, f"s{i}"))
            nodes.append(helper.make_node("DynamicQuantizeMatMul", [x, f"w{i}", f"s{i}"], [y], domain="com.microsoft"))
            continue
        bits, block, level, zero_points = parameters
        given = [x, f"w{i}", f"s{i}"]
        blocks = K // block
        initializers.append(numpy_helper.from_array(rng.integers(0, 256, (N, blocks, block * bits // 8), dtype=np.uint8), f"w{i}"))
        initializers.append(numpy_helper.from_array(np.full((N, blocks), K**-0.5 * (0.22 if bits == 4 else 0.0135), np.float32), f"s{i}"))
        if zero_points:
            initializers.append(numpy_helper.from_array(np.full((N, -(-blocks * bits // 8)), 0x88, np.uint8), f"z{i}"))
            given.append(f"z{i}")
        attributes = {"N": N, "K": K, "bits": bits, "block_size": block, "accuracy_level": level}
        nodes.append(helper.make_node("MatMulNBits", given, [y], domain="com.microsoft", **attributes))
    value = helper.make_tensor_value_info
    outputs = [value(f"y{2 * pairs - 1}", TensorProto.FLOAT, [1, "tokens", D])]
    return session(nodes, [value("x", TensorProto.FLOAT, [1, "tokens", D])], outputs, initializers, threads)


class Attention:
    """Layers of attention on full caches, updated in place."""

    def __init__(self, form: str, threads: int, tokens: int, context: int) -> None:
        element, attributes = CACHES[form]
        half = element == TensorProto.FLOAT16
        rng, value = np.random.default_rng(0), helper.make_tensor_value_info
        angles = np.arange(context + tokens)[:, None] * 1e6 ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        dtype = np.float16 if half else np.float32
        sizes = np.array([HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM])
        scale = np.full(KV_HEADS * HEAD_DIM if "PER_CHANNEL" in attributes.values() else 1, SCALE, np.float32)
        constants = {"cos": np.cos(angles).astype(dtype), "sin": np.sin(angles).astype(dtype), "sizes": sizes, "scale": scale}
        nodes, inputs, outputs = [], [], []
        given = {
            "x": rng.standard_normal((1, tokens, int(sizes.sum()))).astype(np.float32),
            "last": np.array([context + tokens - 1], np.int32),
            "total": np.array(context + tokens, np.int32),
        }
        inputs += [value("x", TensorProto.FLOAT, [1, tokens, int(sizes.sum())])]
        inputs += [value("last", TensorProto.INT32, [1]), value("total", TensorProto.INT32, [])]
        shape = [1, KV_HEADS, context + tokens, HEAD_DIM]
        for i in range(LAYERS):
            for name in ("key", "value"):
                inputs.append(value(f"past_{name}.{i}", element, shape))
                outputs.append(value(f"present_{name}.{i}", element, shape))
                real = rng.standard_normal(shape).astype(np.float32)
                as_int8 = element == TensorProto.INT8
                given[f"past_{name}.{i}"] = np.clip(np.rint(real / SCALE), -127, 127).astype(np.int8) if as_int8 else real.astype(dtype)
            parts = [f"{name}.{i}" for name in "qkv"]
            nodes.append(helper.make_node("Split", ["x", "sizes"], parts, axis=-1))
            if half:
                nodes += [helper.make_node("Cast", [part], [f"{part}.half"], to=element) for part in parts]
                parts = [f"{part}.half" for part in parts]
            parts += [f"past_key.{i}", f"past_value.{i}", "last", "total", "cos", "sin"]
            parts += ["", "", "", "scale", "scale"] if attributes else []
            made = [f"y{i}", f"present_key.{i}", f"present_value.{i}"]
            shared = {"num_heads": HEADS, "kv_num_heads": KV_HEADS, "do_rotary": 1}
            nodes.append(helper.make_node("GroupQueryAttention", parts, made, domain="com.microsoft", **shared, **attributes))
            outputs.append(value(f"y{i}", TensorProto.FLOAT16 if half else TensorProto.FLOAT, [1, tokens, HEADS * HEAD_DIM]))
        constant = [numpy_helper.from_array(array, name) for name, array in constants.items()]
        self.session = session(nodes, inputs, outputs, constant, threads)
        self.arrays = given  # the values borrow their memory
        self.binding = self.session.io_binding()
        for name, array in given.items():
            borrowed = onnxruntime.OrtValue.ortvalue_from_numpy(array)
            self.binding.bind_ortvalue_input(name, borrowed)
            if name.startswith("past"):
                self.binding.bind_ortvalue_output(name.replace("past", "present"), borrowed)
        for i in range(LAYERS):
            self.binding.bind_output(f"y{i}")

    def run(self) -> None:
        self.session.run_with_iobinding(self.binding)


def rounds(calls: Mapping[str, Callable[[], object]], least_s: float = 0.1) -> dict[str, list[float]]:
    """Seconds a call, the median of each round."""
    rng, found = np.random.default_rng(0), {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(ROUNDS):
        for name in rng.permutation(list(calls)):
            times, begun = [], time.perf_counter()
            while len(times) < 2 or time.perf_counter() - begun < least_s:
                before = time.perf_counter()
                calls[name]()
                times.append(time.perf_counter() - before)
            found[name].append(float(np.median(times)))
    return found


def report(title: str, found: Mapping[str, list[float]], note: Callable[[str, float], str] = lambda _name, _s: "") -> None:
    base = np.array(next(iter(found.values())))
    for name, values in found.items():
        ms, ratio = np.array(values) * 1e3, float(np.median(np.array(values) / base))
        spread = f"{np.median(ms):8.2f} ms ({ms.min():.2f}-{ms.max():.2f})"
        print(f"{title:34} {name:34} {spread:28} {ratio:.2f}  {note(name, float(np.median(values)))}", flush=True)


def rounding() -> None:
    rng = np.random.default_rng(0)
    for name, weights in {"normal": rng.standard_normal((1024, 1024)), "Laplace": rng.laplace(size=(1024, 1024))}.items():
        matrix = weights.astype(np.float32)
        for bits, block in itertools.product((4, 8), (32, 64, 128)):
            change = dequantize(quantize_in_blocks(matrix, bits, block)) - matrix
            print(f"{name} weights in {bits} bits, blocks of {block}: {np.sqrt(np.mean(change**2) / np.mean(matrix**2)):.2%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="products,attention,rounding")
    parser.add_argument("--threads", default="1,2")
    options = parser.parse_args()
    if "rounding" in options.only:
        rounding()
    for threads in map(int, options.threads.split(",")):
        for rows, pairs in ((1, PAIRS), (512, 2)) if "products" in options.only else ():
            x = np.random.default_rng(0).standard_normal((1, rows, D)).astype(np.float32)
            sessions = {form: products(form, pairs, threads) for form in FORMS}
            weights = 2 * pairs * D * F
            found = rounds({form: lambda made=made, x=x: made.run(None, {"x": x}) for form, made in sessions.items()})

            def note(form: str, seconds: float, weights: int = weights, rows: int = rows) -> str:
                return f"{kept_bytes(form, weights) / seconds / 1e9:6.1f} GB/s {2 * weights * rows / seconds / 1e9:7.0f} GFLOP/s"

            report(f"products, {rows} rows, {threads} thread(s)", found, note)
        for tokens, context in ((1, 1024), (1, 4096), (512, 0)) if "attention" in options.only else ():
            made = {form: Attention(form, threads, tokens, context).run for form in CACHES}
            report(f"attention, {tokens} after {context}, {threads} thread(s)", rounds(made))


if __name__ == "__main__":
    main()
