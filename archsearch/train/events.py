"""What a training tells about itself while it runs. `to_dict` is the line that goes into metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from archsearch.train.settings import Kind, TrainPlan


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Loss on held-out text.

    Attributes:
        bits_per_byte: comparable across tokenizers and vocabularies.
        nats_per_token: mean cross-entropy.
        tokens, text_bytes: what was scored.
        sources: bits per byte of each source, where there are several.
    """

    bits_per_byte: float
    nats_per_token: float
    tokens: int
    text_bytes: int
    sources: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A continuation by the model. `reference` is how the held-out document really went on."""

    prompt: str
    text: str
    reference: str | None
    temperature: float


@dataclass(frozen=True, kw_only=True)
class Started:
    """The first event. `step` is above 0 when a training goes on; `parallel` says how several processes share the model out."""

    step: int
    plan: TrainPlan
    resumed: bool
    processes: int = 1
    parallel: Kind | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """After an update.

    Attributes:
        step: updates so far.
        tokens: training tokens so far.
        loss: mean cross-entropy of the batch in nats a token, before the update.
        learning_rate: of this update.
        grad_norm: before clipping.
        tokens_per_s: over the last updates, evaluations and saves left out.
        eta_s: estimated seconds until all updates are done.
        seconds: of training so far, all sessions added up.
    """

    step: int
    tokens: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_s: float
    eta_s: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """After an evaluation on held-out text. `seconds` as in `Step`."""

    step: int
    tokens: int
    held_out: HeldOut
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The machine is slower than it was when the time budget was planned: `last_step` updates will be made, not `planned`."""

    step: int
    last_step: int
    planned: int


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint stands; `final` when the training is done."""

    step: int
    path: Path
    final: bool


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Texts that the trained model wrote."""

    step: int
    samples: tuple[Sample, ...]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The last event.

    Attributes:
        before, after: held-out loss of the initial and of the final weights.
        seconds: wall-clock time of the training, all its sessions added up.
    """

    step: int
    tokens: int
    path: Path
    before: HeldOut
    after: HeldOut
    seconds: float


TrainEvent = Started | Step | Evaluated | Cut | Saved | Sampled | Finished


def to_dict(event: TrainEvent) -> dict[str, Any]:
    """Plain data, `event` first: "started", "step", "evaluated", "cut", "saved", "sampled", "finished"."""
    return {"event": type(event).__name__.lower(), **_plain(asdict(event))}


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in data.items()}
