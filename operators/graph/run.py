"""Run a graph step by step with its caches, for comparing outputs. Timing is the business of `devices`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from operators.graph.info import GraphInfo, InputFeed, read_info
from operators.specs import GraphError


class Runner:
    """A decoding session: `start`, then `step` as often as there is room in the caches."""

    def __init__(self, path: Path | str, *, threads: int = 1) -> None:
        # Its official builds report models to their maker unless they are told not to, before they are imported.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        self._runtime = onnxruntime
        self.info: GraphInfo = read_info(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.batch = self.capacity = self.seen = 0
        self._states: dict[str, Any] = {}

    def start(self, *, batch: int = 1, capacity: int) -> None:
        """Empty caches with room for `capacity` positions."""
        self.batch, self.capacity, self.seen = batch, capacity, 0
        feeds = self.info.feeds(batch=batch, tokens=capacity, context=0)
        names = {state.input for state in self.info.states}
        self._states = {feed.name: self._value(np.zeros(feed.shape, feed.dtype)) for feed in feeds if feed.name in names}

    def step(self, values: np.ndarray) -> np.ndarray:
        """One prefill or decode step on `input_ids` [B, T] or `hidden` [B, T, D]; returns logits or hidden states.

        Raises:
            GraphError: the caches are full.
        """
        tokens = values.shape[1]
        if self.seen + tokens > self.capacity:
            raise GraphError(f"the caches have room for {self.capacity} positions, {self.seen + tokens} are asked for")
        binding = self.session.io_binding()
        for feed in self.info.feeds(batch=self.batch, tokens=tokens, context=self.seen):
            if feed.name not in self._states:
                binding.bind_ortvalue_input(feed.name, self._value(self._content(feed, values)))
        for state in self.info.states:
            binding.bind_ortvalue_input(state.input, self._states[state.input])
            if state.shared:
                binding.bind_ortvalue_output(state.output, self._states[state.input])
            else:
                binding.bind_output(state.output)
        binding.bind_output(self.info.output)
        self.session.run_with_iobinding(binding)
        names = [*(state.output for state in self.info.states), self.info.output]
        results = dict(zip(names, binding.get_outputs(), strict=True))
        for state in self.info.states:
            if not state.shared:
                self._states[state.input] = results[state.output]
        self.seen += tokens
        return np.array(results[self.info.output].numpy())

    def _content(self, feed: InputFeed, values: np.ndarray) -> np.ndarray:
        if feed.name in ("input_ids", "hidden"):
            return np.ascontiguousarray(values, dtype=feed.dtype)
        if feed.name == "position_ids":
            return np.broadcast_to(np.arange(self.seen, self.seen + feed.shape[1]), feed.shape).astype(feed.dtype)
        return np.full(feed.shape, feed.value, feed.dtype)

    def _value(self, array: np.ndarray) -> Any:
        return self._runtime.OrtValue.ortvalue_from_numpy(array)
