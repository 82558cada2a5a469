"""What a training begins with: text as tokens, a plan, and on a resume the checkpoint; or why it cannot begin."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from archsearch.checkpoint import COMPLETE, INCOMING, Checkpoint, is_checkpoint
from archsearch.data import Progress, TokenData, Tokenizer, open_corpus, prepare
from archsearch.errors import CheckpointError, InputError
from archsearch.spec import ArchSpec
from archsearch.train.parallel import Team
from archsearch.train.planning import make_plan
from archsearch.train.position import Position, read_position
from archsearch.train.processor import default_threads
from archsearch.train.settings import TrainPlan, TrainSettings, plan_steps
from archsearch.train.teacher import open_teacher, teacher_tokenizer
from archsearch.train.trainer import threads

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Text:
    """Where the text comes from; the arguments of `train`."""

    sources: Sequence[Path | str]
    text_field: str
    tokenizer: Tokenizer | None
    cache_dir: Path | None
    progress: Progress | None


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What a training begins with."""

    tokens: TokenData
    plan: TrainPlan
    position: Position = field(default_factory=Position)
    checkpoint: Checkpoint | None = None


def open_training(spec: ArchSpec, text: Text, out: Path, settings: TrainSettings, team: Team, *, resume: bool) -> Opening:
    """All processes of a team come here; the first one reads and tokenises first, so that the others find its tokens in the cache.

    Raises:
        InputError, CheckpointError, RunError: as `train`.
    """
    opening = _resumed(spec, text, out, settings, team) if resume else _begun(spec, text, out, settings, team)
    team.check(opening.plan)
    return opening


def _begun(spec: ArchSpec, text: Text, out: Path, settings: TrainSettings, team: Team) -> Opening:
    began = time.monotonic()
    if team.first:
        _refuse_occupied(out, spec)
    tokenizer = text.tokenizer
    if settings.teacher is not None:
        tokenizer = tokenizer or teacher_tokenizer(settings.teacher)
    tokens = _tokens(text, text.sources, text.text_field, spec, tokenizer, team)
    with threads(settings.threads or default_threads()):
        left = None if settings.max_seconds is None else settings.max_seconds - (time.monotonic() - began)
        return Opening(tokens=tokens, plan=make_plan(spec, tokens, settings, seconds_left=left, team=team))


def _resumed(spec: ArchSpec, text: Text, out: Path, settings: TrainSettings, team: Team) -> Opening:
    checkpoint = Checkpoint.open(out)
    plan, position = read_position(checkpoint)
    _refuse_changes(checkpoint, plan, spec, settings)
    plan = _with_threads(plan, out, settings, team)
    tokens = _tokens(text, text.sources or plan.sources, plan.text_field, spec, checkpoint.tokenizer(), team)
    if tokens.fingerprint != plan.data_fingerprint:
        where = ", ".join(map(str, tokens.corpus.sources)) or "this Python's standard library"
        raise CheckpointError(f"{out}: was trained on other text than {where} holds now; bring that back, or train into another --out")
    if plan.teacher is not None and open_teacher(plan.teacher, tokens.tokenizer, plan.device).fingerprint() != plan.teacher_fingerprint:
        raise CheckpointError(f"{out}: was begun with another teacher than {plan.teacher} is now; bring that back, or train anew")
    if team.first and position.processes != team.size and not position.finished:
        log.warning(
            "%s was saved by %d process(es) and goes on with %d: the batches are the same, but sums are taken in another order, so that "
            "weights agree to rounding, not to the last bit",
            *(out, position.processes, team.size),
        )
    return Opening(tokens=tokens, plan=plan, position=position, checkpoint=checkpoint)


def _with_threads(plan: TrainPlan, out: Path, settings: TrainSettings, team: Team) -> TrainPlan:
    """Another machine may have another number of cores; nothing but the order of sums depends on it."""
    if settings.threads in (None, plan.threads):
        return plan
    if team.first:
        log.warning(
            "%s was begun with %d thread(s) and goes on with %d: the batches are the same, but sums are taken in another order, so that "
            "weights agree to rounding, not to the last bit",
            *(out, plan.threads, settings.threads),
        )
    assert settings.threads is not None
    return replace(plan, threads=settings.threads)


def _tokens(
    text: Text, sources: Sequence[Path | str], text_field: str, spec: ArchSpec, tokenizer: Tokenizer | None, team: Team
) -> TokenData:
    def make() -> TokenData:
        progress = text.progress if team.first else None
        corpus = open_corpus(sources, text_field=text_field, cache_dir=text.cache_dir, progress=progress)
        return prepare(corpus, spec.vocab_size, tokenizer=tokenizer, cache_dir=text.cache_dir, progress=progress)

    tokens = team.in_turn(make)
    if tokens.fingerprint != team.agree(tokens.fingerprint):
        raise InputError("reads other text than the first process; give --data that is the same on all nodes")
    return tokens


def _refuse_occupied(out: Path, spec: ArchSpec) -> None:
    if is_checkpoint(out):
        old = Checkpoint.open(out)
        whose = "a training" if old.spec.spec_id == spec.spec_id else f"a training of another spec ({old.spec.name})"
        raise InputError(f"{out}: already holds {whose}, at step {old.step}; go on with it with --resume, or choose another --out")
    if out.exists() and (not out.is_dir() or any(entry.name not in (INCOMING, COMPLETE) for entry in out.iterdir())):
        raise InputError(f"{out}: is not empty and holds no training; choose another --out")


def _refuse_changes(checkpoint: Checkpoint, plan: TrainPlan, spec: ArchSpec, settings: TrainSettings) -> None:
    """A resume goes on with the plan; asking for another one is a mistake that should be told."""
    if checkpoint.spec.spec_id != spec.spec_id:
        theirs = f"{checkpoint.spec.name}, {checkpoint.spec.spec_id}"
        raise InputError(f"{checkpoint.path}: holds a training of another spec ({theirs}); choose another --out")
    asked = asdict(settings)
    if settings.tokens is not None:
        asked["steps"] = plan_steps(settings.tokens, plan.tokens_per_step)
    for entry in fields(TrainPlan):
        default = getattr(TrainSettings(), entry.name, None)
        if entry.name not in asked or entry.name == "threads":  # which may change
            continue
        if asked[entry.name] not in (default, getattr(plan, entry.name)):
            raise InputError(
                f"{checkpoint.path}: was begun with {entry.name} = {getattr(plan, entry.name)}, not {asked[entry.name]}, and its outcome "
                "depends on it; resume without it, or choose another --out"
            )
