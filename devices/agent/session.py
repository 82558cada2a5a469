"""A model loaded with ONNX Runtime, and one of its cases bound to buffers that stay."""

from __future__ import annotations

import hashlib
import re
import zlib
from typing import Any

import numpy as np
import onnxruntime

from devices.plan import Case, Feed, RunPlan


def load(path: str, plan: RunPlan) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = plan.threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = plan.memory_arena
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if plan.allow_spinning else "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def content(feed: Feed, seed: int) -> np.ndarray:
    """The array a feed describes; made in place, so that peak memory is the array's own."""
    values = np.zeros(feed.shape, feed.dtype)
    generator = np.random.default_rng([seed, zlib.crc32(feed.name.encode())])
    match feed.fill:
        case "constant":
            values.fill(feed.value)
        case "normal" if values.dtype == np.float32:
            generator.standard_normal(out=values, dtype=np.float32)
            values *= np.float32(feed.scale)
        case "normal":
            values[...] = generator.standard_normal(feed.shape) * feed.scale
        case "integers":
            values[...] = generator.integers(0, feed.high, feed.shape)
    return values


class BoundCase:
    """All inputs and outputs of a case in fixed buffers; states are updated in place or swapped after every run."""

    def __init__(self, session: onnxruntime.InferenceSession, case: Case, seed: int) -> None:
        self.session = session
        self._arrays: list[np.ndarray] = []
        inputs = {feed.name: self._value(content(feed, seed)) for feed in case.feeds}
        self._outputs = {state.output: inputs[state.input] for state in case.states if state.shared}
        swapped = {state.output: state.input for state in case.states if not state.shared}
        twins = {name: self._value(np.zeros_like(inputs[source].numpy())) for name, source in swapped.items()}
        free = [output.name for output in session.get_outputs() if output.name not in self._outputs and output.name not in swapped]

        first = self._bind(inputs, self._outputs | twins)
        for name in free:
            first.bind_output(name)
        session.run_with_iobinding(first)
        order = [output.name for output in session.get_outputs()]
        made = dict(zip([*self._outputs, *twins, *free], first.get_outputs(), strict=True))
        fixed = self._outputs | {name: made[name] for name in free}

        # After the first run the new states lie in the twins: from there on the two sets change places.
        back = {source: twins[name] for name, source in swapped.items()}
        self._bindings = [
            self._bind(inputs | back, fixed | {name: inputs[source] for name, source in swapped.items()}),
            self._bind(inputs, fixed | twins),
        ]
        self._results = [
            fixed | {name: inputs[source] for name, source in swapped.items()},
            fixed | twins,
        ]
        if not swapped:
            self._bindings, self._results = self._bindings[1:], self._results[1:]
        self._order, self._turn = order, 0

    def _value(self, array: np.ndarray) -> Any:
        self._arrays.append(array)  # the value borrows the array's memory
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)

    def _bind(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> onnxruntime.IOBinding:
        binding = self.session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        return binding

    def run(self) -> None:
        turn = self._turn
        self.session.run_with_iobinding(self._bindings[turn])
        self._turn = (turn + 1) % len(self._bindings)

    def digests(self) -> dict[str, str]:
        """SHA-256 of every output of the latest run."""
        results = self._results[self._turn - 1]
        return {name: hashlib.sha256(np.ascontiguousarray(results[name].numpy()).tobytes()).hexdigest() for name in self._order}


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or re.search(r"bad_alloc|bad allocation|Failed to allocate memory|out of memory", str(error), re.I) is not None
