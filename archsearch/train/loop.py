"""`train`: from a spec and texts to a checkpoint, telling as it goes."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from safetensors.numpy import save_file

from archsearch.checkpoint import INCOMING, TOKENIZER, TRAINER, FileSum, save_checkpoint
from archsearch.data import Progress, Tokenizer
from archsearch.errors import RunError
from archsearch.files import await_folder, write_atomic
from archsearch.spec import ArchSpec
from archsearch.train.evaluate import evaluate
from archsearch.train.events import Cut, Evaluated, Finished, HeldOut, Sampled, Saved, Started, Step, TrainEvent
from archsearch.train.interrupt import uninterrupted
from archsearch.train.metrics import MetricsFile
from archsearch.train.opening import Opening, Text, open_training
from archsearch.train.parallel import Team, open_team
from archsearch.train.planning import USABLE_SHARE, count_parameters
from archsearch.train.position import write_position
from archsearch.train.samples import write_samples
from archsearch.train.schedule import learning_rate
from archsearch.train.settings import TrainSettings
from archsearch.train.stops import BadUpdate, NonFinite, SpikeWatch
from archsearch.train.teacher import lesson_cache
from archsearch.train.trainer import Trainer, threads

SAMPLES = "samples.json"
SPEED_WINDOW = 20
"""Updates that the shown speed is taken over."""
OVERRUN = 1.1
CUT_AFTER = 5
"""Updates that must have been timed before the plan is cut, and that are always left to let the learning rate come down."""
SAVE_SHARE = 0.05
"""At most this share of the time goes into checkpoints."""
SAVES = 3
"""A save is taken to last as long as the fastest of so many: one that waited, as on a machine that slept, must not put off the next."""


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
    text = Text(sources=data, text_field=text_field, tokenizer=tokenizer, cache_dir=cache_dir, progress=progress)
    team = open_team(settings.parallel, count_parameters(spec), settings.optimizer)
    with team.one_voice():
        with team.together():
            opening = open_training(spec, text, out, settings, team, resume=resume)
        with threads(opening.plan.threads), team.listening():
            session = _Session(spec, opening, out, settings, cache_dir, began, team)
            if opening.checkpoint:
                with team.together():
                    session.trainer.load(opening.checkpoint)
            try:
                plan, step = opening.plan, session.trainer.step
                started = Started(step=step, plan=plan, resumed=resume, processes=team.size, parallel=team.kind)
                yield started
                yield from session.run(started)
            except (GeneratorExit, KeyboardInterrupt):
                session.save_if_behind()
                raise
            except BadUpdate as error:
                raise team.hush(session.give_up(error)) from error
            finally:
                session.close()


class _Session:
    """One run of the loop, from wherever the training stands to its end."""

    def __init__(
        self,
        spec: ArchSpec,
        opening: Opening,
        out: Path,
        settings: TrainSettings,
        cache_dir: Path | None,
        began: float,
        team: Team,
    ) -> None:
        self.spec, self.out, self.team = spec, out, team
        self.data, self.plan, self.position = opening.tokens, opening.plan, opening.position
        lessons_in = lesson_cache(cache_dir) if settings.cache_teacher else None
        self.trainer = Trainer(spec, self.data, self.plan, lessons_in=lessons_in, team=team)
        self.trainer.spikes = SpikeWatch(settings.max_spike, self.position.recent_losses)
        self.save_every_seconds = settings.save_every_seconds
        self.saved_at = time.monotonic()
        self.saves: deque[float] = deque(maxlen=SAVES)
        self.saved_mark: tuple[int, int, int, bool] | None = None
        self.earlier_seconds, self.began = self.position.seconds, began
        self.durations: deque[float] = deque(maxlen=SPEED_WINDOW)
        self._metrics: MetricsFile | None = None

    def _note(self, event: TrainEvent) -> None:
        """Write a line of metrics.jsonl; of several processes the first one does."""
        if not self.team.first:
            return
        if self._metrics is None:
            self._metrics = MetricsFile(self.out, self.position.metrics_bytes)
        self._metrics.write(event)

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
        self._note(started)
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
        self._note(finished)
        yield self.save()
        yield finished

    def _events(self) -> Iterator[Step | Evaluated]:
        """Updates, and evaluations after the steps that the plan names."""
        while True:
            self.team.heed()
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
            self._note(event)
        return event

    def _evaluate(self) -> Evaluated:
        result = evaluate(self.trainer.objective, self.data, self.plan, self.team)
        if not math.isfinite(result.bits_per_byte):
            raise NonFinite(f"the held-out loss is {result.nats_per_token}", None)
        event = Evaluated(step=self.trainer.step, tokens=self.tokens, held_out=result, seconds=self.seconds)
        with uninterrupted():
            self.position.evaluations.append((self.trainer.step, result))
            self._note(event)
        return event

    def _cut(self) -> Cut | None:
        """Fewer steps where the time budget would be overrun by a tenth, so that the schedule still comes to its end."""
        plan, step = self.plan, self.trainer.step
        if plan.max_seconds is None or len(self.durations) < CUT_AFTER or step + CUT_AFTER >= plan.last_step:
            return None
        mean, seconds = self.team.agree((sum(self.durations) / len(self.durations), self.seconds))
        if seconds + (plan.last_step - step) * mean <= OVERRUN * plan.max_seconds:
            return None
        left = max(CUT_AFTER, int((USABLE_SHARE * plan.max_seconds - seconds) / mean))
        if step + left >= plan.last_step:
            return None
        self.plan = self.trainer.plan = plan.cut(step, step + left)
        event = Cut(step=step, last_step=step + left, planned=plan.last_step)
        self._note(event)
        return event

    def _samples(self) -> Sampled:
        model = self.trainer.whole_model()
        with self.team.together():
            samples = write_samples(model, self.data, self.plan) if self.plan.sample_tokens and self.team.first else ()
            if self.team.first:
                write_atomic(self.out / SAMPLES, json.dumps([asdict(sample) for sample in samples], indent=1, ensure_ascii=False) + "\n")
            samples = self.team.agree(samples)
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
        return self.team.agree(time.monotonic() - self.saved_at >= max(self.save_every_seconds, min(self.saves, default=0.0) / SAVE_SHARE))

    def save(self) -> Saved:
        """Replace the checkpoint by one of this moment.

        Raises:
            RunError: the disk is full; the one before stays.
        """
        start = time.monotonic()
        with uninterrupted(), self.team.together():
            if self._metrics is not None:
                self.position.metrics_bytes = self._metrics.sync()
            self.position.recent_losses = list(self.trainer.spikes.recent)
            self.position.processes = self.team.size
            if not self.position.finished:
                self.position.seconds = self.seconds
            if self.team.first:
                save_checkpoint(self.out, self.spec, self.trainer.step, self._write)
            else:
                self._write(self.out / INCOMING)
            self.saved_mark = self._mark()
        self.saved_at = time.monotonic()
        self.saves.append(self.saved_at - start)
        return Saved(step=self.trainer.step, path=self.out, final=self.position.finished)

    def _write(self, folder: Path) -> dict[str, FileSum]:
        """All processes come here: each writes its part while the training goes on, the first one all of it at the end."""
        self.team.exchange(None)  # the folder is there
        written: dict[str, FileSum] = {}
        if self.team.sharded and not self.position.finished:
            await_folder(folder)
            for sums in self.team.exchange(self.trainer.write_part(folder)):
                written |= sums
        else:
            self.trainer.write(folder)
        if self.team.first:
            (folder / TOKENIZER).write_text(self.data.tokenizer.to_json(), encoding="utf-8")
            (folder / TRAINER).write_text(write_position(self.plan, self.position), encoding="utf-8")
        return written

    def save_if_behind(self) -> None:
        """Save unless the checkpoint is of this very moment already."""
        if self._mark() != self.saved_mark:
            self.save()

    def give_up(self, error: BadUpdate) -> RunError:
        """Keep what is needed to find the reason: the weights before the update, and the batch."""
        self.save_if_behind()
        batch = ""
        if error.ids_BT is not None:
            ids_BT = self.trainer.batches.at(self.trainer.step)  # of all processes
            if self.team.first:
                save_file({"ids": ids_BT}, self.out / error.file, metadata={"step": str(self.trainer.step), "reason": str(error)})
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
