"""Small ONNX models for trying agents, made with onnx.helper alone, and what the runtime itself makes of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from devices.agent.feeds import content
from devices.plan import Case, Feed, StatePair

FLOAT = TensorProto.FLOAT
WIDTH = 8


Shape = list[Any]


def save(
    path: Path, nodes: Sequence[onnx.NodeProto], inputs: dict[str, Shape], outputs: dict[str, Shape], weights: dict[str, np.ndarray]
) -> Path:
    """A model file; inputs and outputs are float32 unless their shape begins with a numpy type."""

    def value(name: str, shape: Shape) -> onnx.ValueInfoProto:
        dtype, shape = (helper.np_dtype_to_tensor_dtype(np.dtype(shape[0])), shape[1:]) if isinstance(shape[0], type) else (FLOAT, shape)
        return helper.make_tensor_value_info(name, dtype, shape)

    graph = helper.make_graph(
        list(nodes),
        "test",
        [value(name, shape) for name, shape in inputs.items()],
        [value(name, shape) for name, shape in outputs.items()],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def plain(directory: Path, *, width: int = WIDTH, name: str = "plain") -> Path:
    """y = tanh(x W), W a constant of width x width."""
    weight = np.random.default_rng(0).standard_normal((width, width), np.float32) / np.float32(width**0.5)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Tanh", ["h"], ["y"])]
    return save(directory / f"{name}.onnx", nodes, {"x": ["batch", width]}, {"y": ["batch", width]}, {"w": weight})


def recurrent(directory: Path) -> Path:
    """s' = s / 2 + x; y = s' + s: a state that goes on changing, and an output that needs the old and the new one."""
    nodes = [
        helper.make_node("Mul", ["s", "half"], ["decayed"]),
        helper.make_node("Add", ["decayed", "x"], ["s_new"]),
        helper.make_node("Sub", ["decayed", "x"], ["y"]),
    ]
    return save(
        directory / "recurrent.onnx",
        nodes,
        {"x": ["batch", WIDTH], "s": ["batch", WIDTH]},
        {"y": ["batch", WIDTH], "s_new": ["batch", WIDTH]},
        {"half": np.array(0.5, np.float32)},
    )


def growing(directory: Path) -> Path:
    """s' = s with x behind it: a cache that grows by concatenation."""
    nodes = [helper.make_node("Concat", ["s", "x"], ["s_new"], axis=0), helper.make_node("ReduceSum", ["s_new"], ["y"], keepdims=1)]
    return save(directory / "growing.onnx", nodes, {"x": [1, WIDTH], "s": ["past", WIDTH]}, {"y": [1, 1], "s_new": ["total", WIDTH]}, {})


def attention(directory: Path) -> Path:
    """One head of the runtime's own cached attention, whose past and present are meant to share a buffer."""
    node = helper.make_node(
        "GroupQueryAttention",
        ["q", "k", "v", "past_k", "past_v", "seqlens", "total"],
        ["y", "present_k", "present_v"],
        domain="com.microsoft",
        num_heads=2,
        kv_num_heads=1,
    )
    cache = ["batch", 1, "room", WIDTH]
    return save(
        directory / "attention.onnx",
        [node],
        {
            "q": ["batch", "tokens", 2 * WIDTH],
            "k": ["batch", "tokens", WIDTH],
            "v": ["batch", "tokens", WIDTH],
            "past_k": cache,
            "past_v": cache,
            "seqlens": [np.int32, "batch"],
            "total": [np.int32, 1],
        },
        {"y": ["batch", "tokens", 2 * WIDTH], "present_k": cache, "present_v": cache},
        {},
    )


def outer(directory: Path) -> Path:
    """y = x times a row of a million ones: 4 MiB of output for each row of x."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return save(directory / "outer.onnx", nodes, {"x": ["rows", 1]}, {"y": ["rows", 2**20]}, {"w": np.ones((1, 2**20), np.float32)})


def plain_case(model: Path, case_id: str = "plain", *, batch: int = 2, width: int = WIDTH) -> Case:
    return Case(case_id=case_id, model=model, feeds=(Feed(name="x", dtype="float32", shape=(batch, width), fill="normal"),))


def recurrent_case(model: Path, case_id: str, *, shared: bool, batch: int = 2) -> Case:
    feeds = tuple(Feed(name=name, dtype="float32", shape=(batch, WIDTH), fill="normal", scale=0.5) for name in ("x", "s"))
    return Case(case_id=case_id, model=model, feeds=feeds, states=(StatePair(input="s", output="s_new", shared=shared),))


def growing_case(model: Path) -> Case:
    feeds = tuple(Feed(name=name, dtype="float32", shape=(rows, WIDTH), fill="normal") for name, rows in (("x", 1), ("s", 5)))
    return Case(case_id="growing", model=model, feeds=feeds, states=(StatePair(input="s", output="s_new", shared=False),))


def attention_case(model: Path, *, context: int = 6, room: int = 9) -> Case:
    """One more token after `context`, in caches with room for `room`."""
    normal = {"q": (1, 1, 2 * WIDTH), "k": (1, 1, WIDTH), "v": (1, 1, WIDTH), "past_k": (1, 1, room, WIDTH), "past_v": (1, 1, room, WIDTH)}
    feeds = [Feed(name=name, dtype="float32", shape=shape, fill="normal") for name, shape in normal.items()]
    feeds.append(Feed(name="seqlens", dtype="int32", shape=(1,), fill="constant", value=context))
    feeds.append(Feed(name="total", dtype="int32", shape=(1,), fill="constant", value=context + 1))
    states = tuple(StatePair(input=f"past_{x}", output=f"present_{x}", shared=True) for x in "kv")
    return Case(case_id="attention", model=model, feeds=tuple(feeds), states=states)


def expected(case: Case, runs: int, *, seed: int) -> dict[str, str]:
    """SHA-256 of every output after `runs` runs of the runtime, without any of an agent's arrangements.

    Every run gets fresh arrays; states come from the run before where their shape lets them. Only a shared state has one buffer, since
    sharing is what the model is told to compute with.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(case.model), options, providers=["CPUExecutionProvider"])
    inputs = {feed.name: content(feed, seed) for feed in case.feeds}
    names = [output.name for output in session.get_outputs()]
    sources = {state.output: state for state in case.states}
    outputs: dict[str, np.ndarray] = {}
    for _ in range(runs):
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array.copy()) for name, array in inputs.items()}
        binding = session.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name in names:
            if name in sources and sources[name].shared:
                binding.bind_ortvalue_output(name, values[sources[name].input])
            else:
                binding.bind_output(name)
        session.run_with_iobinding(binding)
        outputs = dict(zip(names, (value.numpy().copy() for value in binding.get_outputs()), strict=True))
        for state in case.states:
            if outputs[state.output].shape == inputs[state.input].shape:
                inputs[state.input] = outputs[state.output]
    return {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in outputs.items()}
