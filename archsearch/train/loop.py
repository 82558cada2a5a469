"""`train`: from a spec and texts to a checkpoint, telling as it goes."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from safetensors.numpy import save_file

from archsearch.checkpoint import COMPLETE, INCOMING, TOKENIZER, TRAINER, Checkpoint, is_checkpoint, save_checkpoint
from archsearch.data import Progress, TokenData, Tokenizer, open_corpus, prepare
from archsearch.errors import CheckpointError, InputError, RunError
from archsearch.files import write_atomic
from archsearch.spec import ArchSpec
from archsearch.train.evaluate import evaluate
from archsearch.train.events import Cut, Evaluated, Finished, HeldOut, Sampled, Saved, Started, Step, TrainEvent
from archsearch.train.interrupt import uninterrupted
from archsearch.train.metrics import MetricsFile
from archsearch.train.planning import USABLE_SHARE, make_plan
from archsearch.train.position import Position, read_position, write_position
from archsearch.train.samples import write_samples
from archsearch.train.schedule import learning_rate
from archsearch.train.settings import TrainPlan, TrainSettings, plan_steps
from archsearch.train.stops import BadUpdate, NonFinite, SpikeWatch
from archsearch.train.teacher import lesson_cache, open_teacher, teacher_tokenizer
from archsearch.train.trainer import Trainer, threads

log = logging.getLogger(__name__)

SAMPLES = "samples.json"
SPEED_WINDOW = 20
"""Updates that the shown speed is taken over."""
OVERRUN = 1.1
CUT_AFTER = 5
"""Updates that must have been timed before the plan is cut, and that are always left to let the learning rate come down."""
SAVE_SHARE = 0.05
"""At most this share of the time goes into checkpoints."""


def train(
    spec: ArchSpec,
    data: Sequence[Path | str],
    out: Path | str,
    *,
    settings: TrainSettings | None = None,
    resume: bool = False,
    text_field: str = "text",
    tokenizer: Tokenizer | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Iterator[TrainEvent]:
    """Train a model and keep it in `out`, one event after the other.

    `Started`, then `Step`, `Evaluated`, `Cut` and `Saved` as they happen, at the end `Sampled` and `Finished`. Closing the
    iterator before its end saves a checkpoint; so does Ctrl-C. Beside the checkpoint, `out` gets metrics.jsonl and
    samples.json.

    Args:
        data: files, folders and data sets of the hub, each with a weight or none (see `archsearch.data.Source.parse`); none
            for the standard library's sources, or on a resume for the same texts as before.
        out: the checkpoint folder; new or empty, unless `resume`.
        settings: on a resume, what differs from the defaults must be as it was.
        resume: go on with the training in `out`, to the weights that it would have had without the interruption.
        text_field: the field of JSON lines, or column of Parquet, that holds the text.
        tokenizer: instead of the teacher's, or of one trained on the training text.
        cache_dir: where tokens, and what a teacher says, are kept; by default the user's cache folder.
        progress: told how far the text is prepared, before the first event.

    Raises:
        InputError: bad texts or settings, or `out` holds something else.
        CheckpointError: a damaged checkpoint, or one that does not fit spec or texts.
        RunError: loss or gradient is no number, or the disk is full; what was saved stays.
    """
    out, began = Path(out), time.monotonic()
    settings = settings or TrainSettings()
    if resume:
        checkpoint = Checkpoint.open(out)
        plan, position = read_position(checkpoint)
        _refuse_changes(checkpoint, plan, spec, settings)
        corpus = open_corpus(data or plan.sources, text_field=plan.text_field, cache_dir=cache_dir, progress=progress)
        tokens = prepare(corpus, spec.vocab_size, tokenizer=checkpoint.tokenizer(), cache_dir=cache_dir, progress=progress)
        if tokens.fingerprint != plan.data_fingerprint:
            where = ", ".join(map(str, corpus.sources)) or "this Python's standard library"
            raise CheckpointError(f"{out}: was trained on other text than {where} holds now; bring that back, or train into another --out")
        if plan.teacher is not None and open_teacher(plan.teacher, tokens.tokenizer, plan.device).fingerprint() != plan.teacher_fingerprint:
            raise CheckpointError(f"{out}: was begun with another teacher than {plan.teacher} is now; bring that back, or train anew")
    else:
        checkpoint = None
        _refuse_occupied(out, spec)
        if settings.teacher is not None:
            tokenizer = tokenizer or teacher_tokenizer(settings.teacher)
        corpus = open_corpus(data, text_field=text_field, cache_dir=cache_dir, progress=progress)
        tokens = prepare(corpus, spec.vocab_size, tokenizer=tokenizer, cache_dir=cache_dir, progress=progress)
        with threads(settings.threads):
            left = None if settings.max_seconds is None else settings.max_seconds - (time.monotonic() - began)
            plan = make_plan(spec, tokens, settings, seconds_left=left)
        position = Position()
    with threads(plan.threads):
        session = _Session(spec, tokens, plan, position, out, settings, cache_dir, began)
        if checkpoint:
            session.trainer.load(checkpoint)
        try:
            started = Started(step=session.trainer.step, plan=plan, resumed=resume)
            yield started
            yield from session.run(started)
        except (GeneratorExit, KeyboardInterrupt):
            session.save_if_behind()
            raise
        except BadUpdate as error:
            raise session.give_up(error) from error
        finally:
            session.close()


class _Session:
    """One run of the loop, from wherever the training stands to its end."""

    def __init__(
        self,
        spec: ArchSpec,
        data: TokenData,
        plan: TrainPlan,
        position: Position,
        out: Path,
        settings: TrainSettings,
        cache_dir: Path | None,
        began: float,
    ) -> None:
        self.spec, self.data, self.plan, self.position, self.out = spec, data, plan, position, out
        self.trainer = Trainer(spec, data, plan, lessons_in=lesson_cache(cache_dir) if settings.cache_teacher else None)
        self.trainer.spikes = SpikeWatch(settings.max_spike, position.recent_losses)
        self.save_every_seconds = settings.save_every_seconds
        self.saved_at, self.save_seconds = time.monotonic(), 0.0
        self.saved_mark: tuple[int, int, int, bool] | None = None
        self.earlier_seconds, self.began = position.seconds, began
        self.durations: deque[float] = deque(maxlen=SPEED_WINDOW)
        self._metrics: MetricsFile | None = None

    @property
    def metrics(self) -> MetricsFile:
        if self._metrics is None:
            self._metrics = MetricsFile(self.out, self.position.metrics_bytes)
        return self._metrics

    @property
    def seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.began

    @property
    def tokens(self) -> int:
        return self.trainer.step * self.plan.tokens_per_step

    def run(self, started: Started) -> Iterator[TrainEvent]:
        if self.position.finished:
            yield self._finished()
            return
        if self.trainer.step == 0 and not self.position.evaluations:
            yield self.save()  # from here on the folder is a training that can be resumed
        self.metrics.write(started)
        for event in self._events():
            yield event
            if isinstance(event, Step) and (cut := self._cut()):
                yield cut
                yield self.save()  # a resume must know
            elif isinstance(event, Step) and self._save_is_due():
                yield self.save()
        yield self.save()  # writing samples may take a while
        yield self._samples()
        self.position.finished, self.position.seconds = True, self.seconds
        finished = self._finished()
        self.metrics.write(finished)
        yield self.save()
        yield finished

    def _events(self) -> Iterator[Step | Evaluated]:
        """Updates, and evaluations after the steps that the plan names."""
        while True:
            if self.trainer.step in self.plan.eval_steps and self.position.evaluated_step != self.trainer.step:
                yield self._evaluate()
            if self.trainer.step == self.plan.last_step:
                return
            yield self._update()

    def _update(self) -> Step:
        step, start = self.trainer.step, time.monotonic()
        with uninterrupted():
            loss, norm = self.trainer.update()
            self.durations.append(time.monotonic() - start)
            mean = sum(self.durations) / len(self.durations)
            event = Step(
                step=self.trainer.step,
                tokens=self.tokens,
                loss=loss,
                learning_rate=learning_rate(self.plan, step),
                grad_norm=norm,
                tokens_per_s=self.plan.tokens_per_step / mean,
                eta_s=(self.plan.last_step - self.trainer.step) * mean,
                seconds=self.seconds,
            )
            self.metrics.write(event)
        return event

    def _evaluate(self) -> Evaluated:
        result = evaluate(self.trainer.model, self.data, self.plan)
        if not math.isfinite(result.bits_per_byte):
            raise NonFinite(f"the held-out loss is {result.nats_per_token}", None)
        event = Evaluated(step=self.trainer.step, tokens=self.tokens, held_out=result, seconds=self.seconds)
        with uninterrupted():
            self.position.evaluations.append((self.trainer.step, result))
            self.metrics.write(event)
        return event

    def _cut(self) -> Cut | None:
        """Fewer steps where the time budget would be overrun by a tenth, so that the schedule still comes to its end."""
        plan, step = self.plan, self.trainer.step
        if plan.max_seconds is None or len(self.durations) < CUT_AFTER or step + CUT_AFTER >= plan.last_step:
            return None
        mean = sum(self.durations) / len(self.durations)
        if self.seconds + (plan.last_step - step) * mean <= OVERRUN * plan.max_seconds:
            return None
        left = max(CUT_AFTER, int((USABLE_SHARE * plan.max_seconds - self.seconds) / mean))
        if step + left >= plan.last_step:
            return None
        self.plan = self.trainer.plan = plan.cut(step, step + left)
        event = Cut(step=step, last_step=step + left, planned=plan.last_step)
        self.metrics.write(event)
        return event

    def _samples(self) -> Sampled:
        samples = write_samples(self.trainer.model, self.data, self.plan) if self.plan.sample_tokens else ()
        write_atomic(self.out / SAMPLES, json.dumps([asdict(sample) for sample in samples], indent=1, ensure_ascii=False) + "\n")
        return Sampled(step=self.trainer.step, samples=samples)

    def _finished(self) -> Finished:
        evaluations: list[HeldOut] = [result for _, result in self.position.evaluations]
        return Finished(
            step=self.trainer.step,
            tokens=self.tokens,
            path=self.out,
            before=evaluations[0],
            after=evaluations[-1],
            seconds=self.position.seconds,
        )

    def _save_is_due(self) -> bool:
        return time.monotonic() - self.saved_at >= max(self.save_every_seconds, self.save_seconds / SAVE_SHARE)

    def save(self) -> Saved:
        """Replace the checkpoint by one of this moment.

        Raises:
            RunError: the disk is full; the one before stays.
        """
        start = time.monotonic()
        with uninterrupted():
            if self._metrics is not None:
                self.position.metrics_bytes = self._metrics.sync()
            self.position.recent_losses = list(self.trainer.spikes.recent)
            if not self.position.finished:
                self.position.seconds = self.seconds
            save_checkpoint(self.out, self.spec, self.trainer.step, self._write)
            self.saved_mark = self._mark()
        self.saved_at = time.monotonic()
        self.save_seconds = self.saved_at - start
        return Saved(step=self.trainer.step, path=self.out, final=self.position.finished)

    def _write(self, folder: Path) -> None:
        self.trainer.write(folder)
        (folder / TOKENIZER).write_text(self.data.tokenizer.to_json(), encoding="utf-8")
        (folder / TRAINER).write_text(write_position(self.plan, self.position), encoding="utf-8")

    def save_if_behind(self) -> None:
        """Save unless the checkpoint is of this very moment already."""
        if self._mark() != self.saved_mark:
            self.save()

    def give_up(self, error: BadUpdate) -> RunError:
        """Keep what is needed to find the reason: the weights before the update, and the batch."""
        self.save_if_behind()
        batch = ""
        if error.ids_BT is not None:
            save_file({"ids": error.ids_BT}, self.out / error.file, metadata={"step": str(self.trainer.step), "reason": str(error)})
            batch = f", the batch in {self.out / error.file}"
        return RunError(
            f"step {self.trainer.step + 1}: {error}; the weights before it are in {self.out}{batch}; "
            + error.advice.format(learning_rate=self.plan.learning_rate)
        )

    def close(self) -> None:
        if self._metrics is not None:
            self._metrics.close()

    def _mark(self) -> tuple[int, int, int, bool]:
        return self.trainer.step, self.plan.last_step, len(self.position.evaluations), self.position.finished


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
    for field in fields(TrainPlan):
        default = getattr(TrainSettings(), field.name, None)
        if field.name in asked and asked[field.name] != default and asked[field.name] != getattr(plan, field.name):
            raise InputError(
                f"{checkpoint.path}: was begun with {field.name} = {getattr(plan, field.name)}, not {asked[field.name]}, and its schedule "
                "depends on it; resume without it, or choose another --out"
            )
