"""From settings to a plan: every number fixed before the first update, as the schedule needs."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import torch

from archsearch.data import TokenData
from archsearch.errors import InputError
from archsearch.model import LanguageModel
from archsearch.spec import ArchSpec
from archsearch.train.parallel import ALONE, Team
from archsearch.train.processor import default_dtype, default_products, default_threads
from archsearch.train.products import onednn_is_exact
from archsearch.train.schedule import phases
from archsearch.train.settings import (
    MICRO_BATCH_TOKENS,
    MIN_STEPS,
    TOKENS_PER_PARAMETER,
    TrainPlan,
    TrainSettings,
    default_batch,
    default_learning_rate,
    default_sequence,
    evaluation_steps,
    plan_steps,
)
from archsearch.train.teacher import open_teacher
from archsearch.train.trainer import Trainer

log = logging.getLogger(__name__)

PYTHON_PROMPTS = ("import", "def", "class")
"""Continued at the end where the text is the standard library's and no prompts are given."""
FORWARD_SHARE = 1 / 3
"""Of a training step's FLOPs: the backward pass takes twice the forward's."""
USABLE_SHARE = 0.9
"""Of a time budget, for updates and evaluations: the rest is for checkpoints, samples and a machine that slows down."""


def make_plan(
    spec: ArchSpec, data: TokenData, settings: TrainSettings, *, seconds_left: float | None = None, team: Team = ALONE
) -> TrainPlan:
    """Fill in what the settings leave open. With a time budget, train a throw-away copy for a moment to learn the speed.

    Args:
        seconds_left: of the time budget, if not all of it.
        team: the processes that will follow the plan; all come here, what the first one timed counts.

    Raises:
        InputError: too little text for the sequence length, an operator that cannot keep documents apart where it should, no
            compiler where one is needed, or a teacher that cannot be loaded or has another vocabulary.
    """
    parameters = count_parameters(spec)
    if settings.isolate_documents:
        _refuse_leaks(spec)
    if settings.compile:
        _require_compiler()
    if settings.products == "onednn" and not onednn_is_exact():
        raise InputError("products: oneDNN would round fp32 matrices to bf16 on this processor; take blas, or --dtype bf16 knowingly")
    sequence = settings.sequence or min(default_sequence(parameters), max(8, len(data.training) // 8))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = settings.dtype or default_dtype(device)
    draft = TrainPlan(
        spec_id=spec.spec_id,
        parameters=parameters,
        data_fingerprint=data.fingerprint,
        sources=tuple(map(str, data.corpus.sources)),
        text_field=data.corpus.text_field,
        seed=settings.seed,
        sequence=sequence,
        batch=settings.batch or 1,
        micro_batch=settings.micro_batch or max(1, MICRO_BATCH_TOKENS // sequence),
        steps=1,
        learning_rate=settings.learning_rate or default_learning_rate(spec.hidden_size),
        schedule=settings.schedule,
        warmup_steps=0,
        decay_steps=1,
        eval_tokens=1,
        eval_steps=(),
        sample_tokens=settings.sample_tokens,
        prompts=settings.prompts or (() if data.corpus.sources else PYTHON_PROMPTS),
        threads=settings.threads or default_threads(),
        isolate_documents=settings.isolate_documents,
        optimizer=settings.optimizer,
        compile=settings.compile,
        teacher=settings.teacher,
        teacher_weight=settings.teacher_weight,
        teacher_top_k=settings.teacher_top_k,
        teacher_temperature=settings.teacher_temperature,
        device=device,
        dtype=dtype,
        products=settings.products or (default_products(device) if dtype == "fp32" else "blas"),
        max_seconds=settings.max_seconds,
    )
    if settings.teacher is not None:
        draft = replace(draft, teacher_fingerprint=_checked_teacher(settings, data, device, sequence))
    draft = team.agree(draft)
    if settings.max_seconds is None:
        tokens = settings.tokens or min(TOKENS_PER_PARAMETER * parameters, len(data.training))
    else:
        start = time.monotonic()
        trial = replace(draft, batch=settings.batch or draft.micro_batch * team.size)
        team.check(trial)
        with team.apart():
            speed = measure_speed(spec, data, trial, 0.03 * settings.max_seconds, team)
        left = (seconds_left or settings.max_seconds) - (time.monotonic() - start)
        tokens = _tokens_in(left * USABLE_SHARE, speed, settings, sequence)
        draft = replace(draft, measured_tokens_per_s=speed)
    batch = settings.batch or max(default_batch(tokens, sequence), team.size)
    steps = plan_steps(tokens, batch * sequence)
    if settings.max_seconds is not None and steps < MIN_STEPS:
        log.warning("%.0f seconds are enough for %d updates only; %d are made", settings.max_seconds, steps, MIN_STEPS)
        steps = MIN_STEPS
    warmup, decay = phases(settings.schedule, steps)
    plan = replace(
        draft,
        batch=batch,
        micro_batch=min(draft.micro_batch, batch),
        steps=steps,
        warmup_steps=warmup,
        decay_steps=decay,
        eval_tokens=settings.eval_tokens or _eval_tokens(steps * batch * sequence, sequence),
        eval_steps=evaluation_steps(steps, settings.evaluations),
    )
    return team.agree(plan)


def measure_speed(spec: ArchSpec, data: TokenData, plan: TrainPlan, seconds: float, team: Team = ALONE) -> float:
    """Training tokens a second of a throw-away model: the median of the updates, the first left out."""
    trainer = Trainer(spec, data, plan, team=team)
    trainer.update()
    durations: list[float] = []
    while team.agree(not durations or (sum(durations) < seconds and len(durations) < 100)):
        start = time.perf_counter()
        trainer.update()
        durations.append(time.perf_counter() - start)
    return plan.tokens_per_step / sorted(durations)[len(durations) // 2]


def _tokens_in(seconds: float, speed: float, settings: TrainSettings, sequence: int) -> int:
    """Training tokens that fit beside the evaluations."""
    available = int(seconds * speed)
    eval_tokens = settings.eval_tokens or _eval_tokens(available, sequence)
    return max(1, available - int(settings.evaluations * eval_tokens * FORWARD_SHARE))


def _eval_tokens(tokens: int, sequence: int) -> int:
    """A fortieth of the training tokens, so that eight evaluations cost 7 % of the training; 16 sequences to tell layouts apart."""
    return min(max(tokens // 40, min(16 * sequence, tokens // 8), sequence), 1 << 20)


def count_parameters(spec: ArchSpec) -> int:
    """What a model of the spec has to learn; embeddings that are the head too count once."""
    return sum(parameter.numel() for parameter in _weightless(spec).parameters())


def _checked_teacher(settings: TrainSettings, data: TokenData, device: str, sequence: int) -> str:
    """The teacher's fingerprint, once it is known to fit."""
    assert settings.teacher is not None
    teacher = open_teacher(settings.teacher, data.tokenizer, device)
    if teacher.longest is not None and teacher.longest < sequence:
        sees = f"sees {teacher.longest} tokens at once"
        raise InputError(f"{settings.teacher}: {sees}, fewer than a sequence of {sequence}; shorten --sequence")
    if settings.teacher_top_k >= data.tokenizer.vocab_size:
        raise InputError(f"teacher_top_k: must be below the vocabulary of {data.tokenizer.vocab_size}, got {settings.teacher_top_k}")
    return teacher.fingerprint()


def _refuse_leaks(spec: ArchSpec) -> None:
    for i, (block, layer) in enumerate(zip(spec.layers, _weightless(spec).layers, strict=True)):
        if not layer.knows_documents:
            raise InputError(
                f"layers.{i}.operator: {block.operator.kind} cannot keep packed documents apart (its module takes no `documents`); "
                "train without isolating documents, or teach it (docs/add-an-operator.md)"
            )


def _require_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise InputError("compile: there is no C++ compiler; install one (Debian: apt install g++), or leave it out") from error


def _weightless(spec: ArchSpec) -> LanguageModel:
    with torch.device("meta"):
        return LanguageModel(spec)
