"""A model loaded with ONNX Runtime, and one of its cases bound to buffers that stay."""

from __future__ import annotations

import hashlib
import re
import time
from typing import Any

import numpy as np
import onnxruntime

from devices.agent.feeds import content
from devices.plan import Case, RunPlan


def load(path: str, plan: RunPlan) -> onnxruntime.InferenceSession:
    """A session as every agent configures it. Weights in external files are mapped, not read; prepacking then copies what it needs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = plan.threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = plan.memory_arena
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if plan.allow_spinning else "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class BoundCase:
    """All inputs and outputs of a case in fixed buffers; states are updated in place or swapped after every run.

    Making one runs it once: that run tells the outputs' shapes and pays for lazy initialisation, `first_run_ns`.

    Raises:
        ValueError: a state that has no feed.
    """

    def __init__(self, session: onnxruntime.InferenceSession, case: Case, seed: int) -> None:
        self._session = session
        self._arrays = {feed.name: content(feed, seed) for feed in case.feeds}  # the values below borrow their memory
        given = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in self._arrays.items()}
        if orphans := [state.input for state in case.states if state.input not in given]:
            raise ValueError(f"the states {', '.join(orphans)} have no feed")
        shared = {state.output: given[state.input] for state in case.states if state.shared}
        order = [output.name for output in session.get_outputs()]
        free = [name for name in order if name not in shared]

        first = self._bind(given, shared)
        for name in free:
            first.bind_output(name)
        before = time.perf_counter_ns()
        session.run_with_iobinding(first)
        self.first_run_ns = time.perf_counter_ns() - before

        made = dict(zip([*shared, *free], first.get_outputs(), strict=True))
        swapped = {
            state.output: state.input
            for state in case.states
            if not state.shared and tuple(made[state.output].shape()) == self._arrays[state.input].shape
        }
        # The first run has left the new states in `made`: the next one reads them there and writes to the inputs' buffers.
        there = (given, made)
        back = (
            given | {source: made[name] for name, source in swapped.items()},
            made | {name: given[source] for name, source in swapped.items()},
        )
        pairs = [back, there] if swapped else [there]
        self._bindings = [self._bind(inputs, outputs) for inputs, outputs in pairs]
        self._results = [{name: outputs[name] for name in order} for _, outputs in pairs]
        self._turn = 0

    def _bind(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> onnxruntime.IOBinding:
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        return binding

    def run(self) -> None:
        """One run; the states advance."""
        turn = self._turn
        self._session.run_with_iobinding(self._bindings[turn])
        self._turn = (turn + 1) % len(self._bindings)

    def digests(self) -> dict[str, str]:
        """SHA-256 of every output of the latest run."""
        results = self._results[self._turn - 1]
        return {name: hashlib.sha256(np.ascontiguousarray(value.numpy()).tobytes()).hexdigest() for name, value in results.items()}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of the runtime, or of Python, says that memory ran out."""
    said = re.search(r"bad_alloc|bad allocation|Failed to allocate memory|out of memory", str(error), re.IGNORECASE)
    return isinstance(error, MemoryError) or said is not None
