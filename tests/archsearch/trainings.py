"""What the tests of the trainer share: settings of a training of seconds, and what its end consists of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from archsearch.checkpoint import Checkpoint
from archsearch.train import (
    TrainEvent,
    TrainSettings,
    read_metrics,
)

SETTINGS = TrainSettings(
    tokens=12 * 4 * 32,
    sequence=32,
    batch=4,
    micro_batch=2,
    evaluations=3,
    eval_tokens=128,
    sample_tokens=8,
    threads=1,
    dtype="fp32",
    products="blas",
)


def state(out: Path) -> Mapping[str, np.ndarray[Any, Any]]:
    """Weights and moments."""
    opened = Checkpoint.open(out)
    return opened.weights() | dict(load_file(opened.file("optimizer.safetensors")))


def assert_same_training(one: Path, two: Path) -> None:
    """Bit for bit the same weights, moments, losses and order of data."""
    a, b = state(one), state(two)
    assert a.keys() == b.keys()
    assert [name for name in a if a[name].tobytes() != b[name].tobytes()] == []
    kept = ("step", "tokens", "loss", "learning_rate", "grad_norm")
    rows_a, rows_b = ([{key: row[key] for key in kept if key in row} for row in read_metrics(out) if "loss" in row] for out in (one, two))
    assert rows_a == rows_b
    assert Checkpoint.open(one).step == len(rows_a)
    held_a, held_b = ([row["held_out"] for row in read_metrics(out) if row["event"] == "evaluated"] for out in (one, two))
    assert held_a == held_b
    assert json.loads((one / "samples.json").read_text()) == json.loads((two / "samples.json").read_text())


def until(events: Iterator[TrainEvent], kinds: Any) -> Iterator[TrainEvent]:
    """Events up to the first of these kinds; then the training is closed."""
    for event in events:
        yield event
        if isinstance(event, kinds):
            break
    events.close()  # type: ignore[attr-defined]


def go_on_until(events: Iterator[TrainEvent], kind: type[Any]) -> Iterator[TrainEvent]:
    """Events up to the first of this kind; the training stays open."""
    for event in events:
        yield event
        if isinstance(event, kind):
            return
