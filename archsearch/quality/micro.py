"""The small trainings: associative recall, its relatives, and bytes of text. Deterministic by seed, on one thread.

Recall (after MQAR, arXiv 2312.04927): 8 of 16 keys are each given one of 16 values, then 24 queries repeat keys and the model
must answer with their values; chance is 1/16. Text: bytes of the training corpus, scored on held-out documents.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from archsearch.model import LanguageModel
from archsearch.quality import states
from archsearch.quality.proxy import HIDDEN, narrow
from archsearch.quality.synthetic import noisy_recall_batch, selective_copy_batch
from archsearch.quality.tasks import (
    BATCH,
    HELD_OUT_WINDOWS,
    KEYS,
    PAIRS,
    QUERIES,
    SOLVED,
    TEXT_BATCH,
    TEXT_TOKENS,
    QualityResult,
    QualitySettings,
    Task,
    shape_of,
)
from archsearch.spec import ArchSpec

LEARNING_RATES: dict[Task, float] = {"recall": 3e-3, "text": 6e-3, "selective_copy": 3e-3, "noisy_recall": 3e-3}
WARMUP = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """Where a training ends before its last step (`until`), and the file where what it has learned is kept, so that the same training
    goes on from there: the result is the same to the last bit, only cheaper. Without a file it begins anew."""

    until: int | None = None
    state: Path | None = None


def evaluate(spec: ArchSpec, task: Task, settings: QualitySettings, seed: int, stop: Stop | None = None) -> QualityResult:
    """Train the narrow copy of a layout on a task."""
    stop = stop or Stop()
    return text(spec, settings, seed, stop) if task == "text" else synthetic(spec, task, settings, seed, stop)


def recall_batch(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences [batch, RECALL_TOKENS] and targets: at every query the value that answers it, elsewhere -100."""
    values = torch.randint(KEYS, 2 * KEYS, (batch, PAIRS), generator=generator)
    keys = torch.rand(batch, KEYS, generator=generator).argsort(1)[:, :PAIRS]
    asked = torch.randint(PAIRS, (batch, QUERIES), generator=generator)
    told = torch.stack([keys, values], -1).flatten(1)
    queries = torch.stack([keys.gather(1, asked), values.gather(1, asked)], -1).flatten(1)
    ids = torch.cat([told, queries], 1)
    targets = torch.full_like(ids, -100)
    targets[:, 2 * PAIRS :: 2] = ids[:, 2 * PAIRS + 1 :: 2]
    return ids, targets


def synthetic(spec: ArchSpec, task: Task, settings: QualitySettings, seed: int, stop: Stop) -> QualityResult:
    """Train on a synthetic task until it is solved or the steps are used up."""
    make = {"recall": recall_batch, "selective_copy": selective_copy_batch, "noisy_recall": noisy_recall_batch}[task]
    vocab_size, length = shape_of(task)
    model = build(narrow(spec, vocab_size=vocab_size, tokens=length, context=settings.context), seed)
    generator, examiner = torch.Generator().manual_seed(seed + 1), torch.Generator().manual_seed(seed + 2)
    exam_ids, exam_targets = make(128, examiner)

    def exam() -> float:
        with torch.inference_mode():
            answers = model(exam_ids)[0].argmax(-1)
        asked = exam_targets >= 0
        return float((answers == exam_targets)[asked].double().mean())

    curve, steps, seconds = train(
        model,
        task,
        settings.recall_steps,
        lambda: make(BATCH, generator),
        exam,
        check_every=settings.check_every(task),
        good_enough=lambda accuracy: accuracy >= SOLVED,
        stop=stop,
    )
    value = curve[-1][1]
    status: Literal["resolved", "unresolved"] = "resolved" if value >= SOLVED else "unresolved"
    tokens = steps * BATCH * length
    return QualityResult(task=task, value=value, status=status, steps=steps, tokens=tokens, seconds=seconds, seed=seed, curve=curve)


def text(spec: ArchSpec, settings: QualitySettings, seed: int, stop: Stop) -> QualityResult:
    """Train on bytes; the value is bits a byte on held-out documents."""
    training, held_out = corpus_bytes()
    model = build(narrow(spec, vocab_size=256, tokens=TEXT_TOKENS, context=settings.context), seed)
    generator = np.random.default_rng(seed + 1)

    def batch() -> tuple[Tensor, Tensor]:
        ids = windows(training, generator.integers(0, len(training) - TEXT_TOKENS - 1, TEXT_BATCH))
        return ids[:, :-1], ids[:, 1:]

    # Spread evenly over all held-out documents: the first ones alone are two or three modules of one style.
    exam_starts = np.linspace(0, len(held_out) - TEXT_TOKENS - 1, HELD_OUT_WINDOWS).astype(int)
    exam_ids = windows(held_out, exam_starts)

    def exam() -> float:
        with torch.inference_mode():
            return float(model.loss(exam_ids[:, :-1], exam_ids[:, 1:])) / math.log(2)

    check_every = settings.check_every("text")
    curve, steps, seconds = train(
        model, "text", settings.text_steps, batch, exam, check_every=check_every, good_enough=lambda _: False, stop=stop
    )
    tokens, value = steps * TEXT_BATCH * TEXT_TOKENS, curve[-1][1]
    return QualityResult(task="text", value=value, status="resolved", steps=steps, tokens=tokens, seconds=seconds, seed=seed, curve=curve)


def windows(data: np.ndarray, starts: np.ndarray) -> Tensor:
    """[len(starts), TEXT_TOKENS + 1]"""
    return torch.from_numpy(np.stack([data[start : start + TEXT_TOKENS + 1] for start in starts]).astype(np.int64))


def build(spec: ArchSpec, seed: int) -> LanguageModel:
    """The narrow model, its matrices drawn with a standard deviation of 1/sqrt(hidden): at 64 channels the usual 0.02 leaves
    recall on its plateau about half as long again (docs/LOG.md)."""
    torch.manual_seed(seed)
    model = LanguageModel(spec)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(HIDDEN**-0.5 / 0.02)
    return model


def train(
    model: LanguageModel,
    task: Task,
    steps: int,
    batch: Callable[[], tuple[Tensor, Tensor]],
    exam: Callable[[], float],
    *,
    check_every: int,
    good_enough: Callable[[float], bool],
    stop: Stop,
) -> tuple[tuple[tuple[int, float], ...], int, float]:
    """AdamW with warm-up and a cosine to a tenth over `steps`; returns the curve, the steps taken and the CPU seconds."""
    peak = LEARNING_RATES[task]
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    begun = time.process_time()
    curve: list[tuple[int, float]] = []
    step, spent = states.load(stop.state, model, optimizer, curve)
    for _ in range(step):
        batch()  # what comes next is what would have come
    last = stop.until or steps
    while step < last:
        step += 1
        rate = peak * min(1.0, step / WARMUP) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model.loss(*batch())
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % check_every == 0 or step == steps:
            value = exam()
            curve.append((step, value))
            if good_enough(value):
                break
    spent += time.process_time() - begun
    if stop.state is not None and stop.until is not None:
        states.save(stop.state, model, optimizer, curve, spent)
    elif stop.state is not None:
        stop.state.unlink(missing_ok=True)  # nothing is left to go on with
    return tuple(curve), step, spent


@cache
def corpus_bytes() -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out bytes of the default corpus (uint8)."""
    from archsearch.data import default_corpus

    corpus = default_corpus()
    splits = (b"".join(document.text.encode() for document in documents) for documents in (corpus.training(), corpus.held_out()))
    training, held_out = (np.frombuffer(split, np.uint8) for split in splits)
    return training, held_out
