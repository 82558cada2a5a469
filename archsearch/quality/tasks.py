"""What the small trainings are, how long they take, and what came of one. Without torch, which whoever only reads results need not load."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from archsearch.quality.proxy import narrow
from archsearch.spec import ArchSpec

Task = Literal["recall", "text", "selective_copy", "noisy_recall"]
TASKS: tuple[Task, ...] = ("recall", "text")
"""What the search trains on unless a space asks for more (`search.tasks`)."""
ALL_TASKS: tuple[Task, ...] = ("recall", "text", "selective_copy", "noisy_recall")
SYNTHETIC: tuple[Task, ...] = ("recall", "selective_copy", "noisy_recall")
"""Tasks with a rule to be found: solved or not."""

KEYS, PAIRS, QUERIES = 16, 8, 24
RECALL_TOKENS = 2 * (PAIRS + QUERIES)
SOLVED = 0.9
"""Accuracy from which recall counts as solved; a model that has found the rule goes on to 1.0 within tens of steps."""
TEXT_TOKENS, TEXT_BATCH = 128, 8
HELD_OUT_WINDOWS = 128
BATCH = 32

SYMBOLS, COPIED, GAPS = 16, 8, 32
BLANK, MARK = SYMBOLS, SYMBOLS + 1
COPY_VOCAB, COPY_TOKENS = SYMBOLS + 2, GAPS + 1 + COPIED
NOISY_PAIRS, NOISY_QUERIES, NOISE_KINDS, NOISE = 6, 16, 16, 20
NOISY_VOCAB = 2 * SYMBOLS + NOISE_KINDS
NOISY_TOKENS = 2 * (NOISY_PAIRS + NOISY_QUERIES) + NOISE

CHECK_EVERY = 25
TEXT_CHECKS = 4
FIRST_RUNG = 0.3
"""Successive halving looks first at the first check from this share of the steps on: earlier orders agree too little with the last
(docs/quality.md)."""
VERSION = 3
"""Raised when the same settings would give other results. 1: first. 2: 24 queries; held-out windows from every document.
3: smaller steps on text, with a learning rate of their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QualitySettings:
    """How long the small trainings are; part of the identity of their results. `recall_steps` is for every synthetic task."""

    recall_steps: int = 400
    text_steps: int = 300
    context: int = 4096
    """The context the layouts are meant for (see `narrow`)."""

    def steps(self, task: Task) -> int:
        return self.text_steps if task == "text" else self.recall_steps

    def check_every(self, task: Task) -> int:
        """Steps between two looks at what was learned; there is one at the end in any case."""
        return -(-self.text_steps // TEXT_CHECKS) if task == "text" else CHECK_EVERY

    def first_rung(self, task: Task) -> int | None:
        """Steps after which successive halving looks first; None where there is no look before the end."""
        every, steps = self.check_every(task), self.steps(task)
        rung = every * math.ceil(FIRST_RUNG * steps / every)
        return rung if rung < steps else None


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityResult:
    """What one small training found.

    Attributes:
        value: accuracy in [0, 1] on a synthetic task, or held-out bits a byte.
        status: "resolved", or "unresolved" for a synthetic task that was not solved within the steps it was given.
        steps: steps trained; for solved recall, until it was solved.
        curve: (step, value) at every check.
    """

    task: Task
    value: float
    status: Literal["resolved", "unresolved"]
    steps: int
    tokens: int
    seconds: float
    seed: int
    curve: tuple[tuple[int, float], ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> QualityResult:
        return cls(**(data | {"curve": tuple((int(step), float(value)) for step, value in data["curve"])}))


def shape_of(task: Task) -> tuple[int, int]:
    """Vocabulary and tokens of a task's sequences."""
    match task:
        case "text":
            return 256, TEXT_TOKENS
        case "recall":
            return 2 * KEYS, RECALL_TOKENS
        case "selective_copy":
            return COPY_VOCAB, COPY_TOKENS
        case "noisy_recall":
            return NOISY_VOCAB, NOISY_TOKENS


def settings_key(spec: ArchSpec, task: Task, settings: QualitySettings, seed: int, until: int | None = None) -> str:
    """Identity of a result: the narrow layout, the task, its length and where it was stopped, the seed. The same copy, the same key."""
    vocab, tokens = shape_of(task)
    copy = narrow(spec, vocab_size=vocab, tokens=tokens, context=settings.context)
    steps = settings.steps(task)
    what: dict[str, Any] = {"copy": copy.spec_id, "task": task, "steps": steps, "seed": seed, "version": VERSION}
    if until is not None:
        what["until"] = until
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]
