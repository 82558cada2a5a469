"""The search: what is predicted is nearly free, what is trained is paid for and written into a book (`archsearch.search.book`).

Layouts come first from baselines and an even spread over latency (`seeds`), after that from an inner search under a model that
learns from the trainings so far (`proposer`). Each is checked against the budgets by prediction; one that misses any is told so,
with its reason, and never trained. The same command goes on where it was stopped: finished trainings are kept (`quality.jsonl`),
trials too (`study.db`).

Of those that keep them, `halving` times as many are begun as are wanted, and the ones that the front would miss least are stopped
at the first look (`halving`).
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from archsearch.budgets import Budget
from archsearch.errors import RunError
from archsearch.predict import CostTable
from archsearch.quality import EvaluationFailure, Evaluator, LayoutQuality
from archsearch.search import book, claims, seeds
from archsearch.search.baseline import LABEL
from archsearch.search.claims import GivenUp
from archsearch.search.designs import DesignSpace
from archsearch.search.devices import SearchTables
from archsearch.search.events import Batch, SearchEvent, said
from archsearch.search.feasible import CostModel, Costs, measured_space, primary_latency, primary_memory, search_metrics
from archsearch.search.halving import rung_objectives, survivors
from archsearch.search.layouts import Layouts
from archsearch.search.outcome import outcome
from archsearch.search.proposer import Proposer
from archsearch.search.result import FrontPoint, SearchResult
from archsearch.search.seeds import InnerDesign
from archsearch.search.storage import storage_errors, study_url
from archsearch.search.table import CostArrays
from archsearch.space import Space
from archsearch.spec import ArchSpec

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

INNER_SAMPLES = seeds.INNER_SAMPLES
RETRIED = "given up before"


class Searcher:
    """A search over one space, on the cost tables of one or several devices.

    Args:
        budgets: hard limits, the space's and the command line's together.
        trials: layouts to train to the end.
        halving: how many are begun for each of these; 1 trains whatever is begun.
        storage: an Optuna storage URL; None keeps the study in the run directory.
        baseline: a layout of the space that is trained first, and compared with.

    Raises:
        MissingMeasurement: the table lacks what the budgets are about, or every operator of the space.
    """

    def __init__(
        self,
        space: Space,
        table: CostTable | SearchTables,
        evaluator: Evaluator,
        run_dir: Path,
        *,
        budgets: Sequence[Budget],
        trials: int,
        seed: int = 0,
        storage: str | None = None,
        baseline: ArchSpec | None = None,
        halving: int = 1,
    ) -> None:
        self.baseline, self.halving = baseline, halving
        self.metrics = search_metrics(table, budgets)
        self.latency, self.memory = primary_latency(table, budgets), primary_memory(table, budgets)
        self.space, self.left_out = measured_space(space, table, self.metrics)
        for label, reason in self.left_out.items():
            log.warning("%s is left out of the search: %s", label, reason)
        self.table, self.evaluator, self.run_dir = table, evaluator, run_dir
        self.budgets, self.trials, self.seed = tuple(budgets), trials, seed
        self.designs = DesignSpace(self.space)
        self.url = study_url(run_dir, storage)
        self.trained: list[FrontPoint] = []
        """Every trained layout, also those over today's budgets."""
        self.nearest: InnerDesign | None = None
        self.given_up: list[GivenUp] = []
        """Layouts that failed and are not trained."""
        self._failed: dict[str, ArchSpec] = {}
        self._model: CostModel | None = None
        self._proposer: Proposer | None = None
        self._refused: set[tuple[str, str]] = set()
        self._stopped: dict[str, ArchSpec] = {}
        self._began = time.monotonic()
        self._trained_now = 0
        self._wanted: int | None = None

    # -- the cheap pass --------------------------------------------------------------------------------------------------

    @property
    def model(self) -> CostModel:
        """Costs against today's budgets."""
        if self._model is None or self._model.budgets != self.budgets:
            self._model = CostModel(self.space, self.table, self.metrics, self.budgets)
            self._proposer = None
        return self._model

    @property
    def proposer(self) -> Proposer:
        """What proposes layouts within today's budgets; not the same random numbers again when a search goes on."""
        model = self.model
        if self._proposer is None:
            self._proposer = Proposer(CostArrays(model, self.metrics), self.latency, seed=self.seed + 7919 * len(self.trained))
        return self._proposer

    def costs(self, spec: ArchSpec) -> Costs:
        return self.model.costs(spec)

    def inner(self) -> list[InnerDesign]:
        """Baselines, designs and the layout nearest to the budgets, with predicted costs; see `seeds.inner_pass`."""
        return seeds.inner_pass(self.designs, self.model, self.seed, INNER_SAMPLES)

    def seeds(self, inner: Sequence[InnerDesign]) -> list[InnerDesign]:
        """What is trained first: the baseline, then see `seeds.choose_seeds`."""
        first = []
        if self.baseline is not None and self.designs.holds(self.baseline):
            spec = self.baseline
            first.append(InnerDesign(design=self.designs.nearest(spec), spec=spec, costs=self.costs(spec), label=LABEL))
        return first + seeds.choose_seeds(inner, self.halving * self.trials, str(self.latency))

    @property
    def points(self) -> list[FrontPoint]:
        """Trained layouts that keep today's budgets."""
        return [point for point in self.trained if point.costs.feasible]

    def taught(self) -> tuple[Layouts, np.ndarray]:
        """Trained layouts as integers, and how good they are at text (minus bits a byte): what the model learns from."""
        known = [point for point in self.trained if self.designs.holds(point.spec)]
        codec = self.proposer.codec
        return codec.encode([point.spec for point in known]), np.array([-point.quality.text.value for point in known])

    # -- the study -------------------------------------------------------------------------------------------------------

    @property
    def study_name(self) -> str:
        return f"{self.space.name}-{self.space.space_id}"

    def open_study(self) -> optuna.Study:
        """The study of this space, made if there is none.

        Raises:
            StoreError: see `open_storage`.
        """
        attributes = {
            "space_id": self.space.space_id,
            "objectives": [book.RECALL, book.TEXT, str(self.latency), str(self.memory)],
            "device": self.table.device,
            "budgets": [str(budget) for budget in self.budgets],
            "seed": self.seed,
            "trials": self.trials,
            "left_out": self.left_out,
        }
        return book.open_study(self.url, self.study_name, self.seed, attributes)

    def run(self, *, retry: bool = False) -> Iterator[SearchEvent]:
        """Search; `result` tells what was found, also before the end.

        Args:
            retry: first train what was given up (`given_up`), also where as many as are wanted are trained.

        Raises:
            StoreError: the study cannot be read or written.
            RunError: a training's result cannot be written down, or no training succeeded.
        """
        inner = self.inner()
        self.nearest = min(inner, key=lambda entry: entry.costs.violation)
        if not self.nearest.costs.feasible:
            return
        self._began, self._trained_now = time.monotonic(), 0
        study = self.open_study()
        with storage_errors(self.url):
            queue = self.recover(study, retry=retry) + self.over_budget(inner) + self.seeds(inner)
            spare = [entry for entry in inner if entry.costs.feasible]
            random.Random(self.seed + 1).shuffle(spare)
            while len(self.points) < self.trials:
                self.read(study)  # other searches may write into the same book
                if len(self.points) >= self.trials:
                    break
                wanted = min(self.evaluator.workers, self.trials - len(self.points))
                batch = self.propose(study, queue, spare, self.halving * wanted)
                yield from batch.refused
                if not batch.accepted:
                    batch = self.take_up(study, wanted)
                    if not batch.accepted:
                        break  # every feasible layout that is known is trained
                yield from self.train(study, (yield from self.halve(study, batch.accepted, wanted)))
        if not self.points:
            reasons = [f"{lost.spec.pattern}: {lost.reason}" for lost in self.given_up]
            raise RunError(f"no layout could be trained: {reasons[0] if reasons else 'none was proposed'}")

    def recover(self, study: optuna.Study, *, retry: bool = False) -> list[InnerDesign]:
        """Take up what earlier runs left: what is trained counts; what was cut off fails and is tried once more, as is, with `retry`,
        what was given up."""
        again = [self._once_more(cut.spec, retry_of=cut.number) for cut in list(claims.fail_cut_off(study)) if cut.again]
        self.read(study)
        if retry:
            lost = [entry for entry in (self._once_more(lost.spec, label=RETRIED) for lost in self.given_up) if entry.costs.feasible]
            self.trials = max(self.trials, len(self.points) + len(lost))
            again += lost
        else:
            self._failed |= {lost.spec.spec_id: lost.spec for lost in self.given_up if lost.twice}
        return [entry for entry in again if entry.costs.feasible]

    def _once_more(self, spec: ArchSpec, **why: Any) -> InnerDesign:
        return InnerDesign(design=self.designs.nearest(spec), spec=spec, costs=self.costs(spec), **why)

    def read(self, study: optuna.Study) -> None:
        """Take up what is trained, without changing anything."""
        self._refused = book.refused(study)
        self.given_up = claims.given_up(study)
        self._stopped = {spec.spec_id: spec for _, spec in book.stopped(study)}
        for number, spec in book.trained(study):
            quality = self.evaluator.cached(spec)
            if quality is not None:
                self.keep(spec, quality, number)

    def look_up(self) -> None:
        """Whether today's budgets can be kept, and what is trained; changes nothing.

        Raises:
            StoreError: the study cannot be read.
        """
        if self.nearest is not None:
            return
        spec, costs = self.model.nearest()
        self.nearest = InnerDesign(design=self.designs.nearest(spec), spec=spec, costs=costs)
        study = book.existing_study(self.url, self.study_name)
        if study is not None:
            with storage_errors(self.url):
                self._wanted = study.user_attrs.get("trials", self.trials)
                self.read(study)

    def finished(self) -> bool:
        """Whether as many layouts are trained as were wanted last, under whatever budgets.

        Raises:
            StoreError: the study cannot be read.
        """
        self.look_up()
        return len(self.trained) >= (self._wanted or self.trials)

    def over_budget(self, inner: Sequence[InnerDesign]) -> list[InnerDesign]:
        """Baselines that miss a budget: the book says which."""
        return [entry for entry in inner if entry.label and not entry.costs.feasible]

    def keep(self, spec: ArchSpec, quality: LayoutQuality, trial: int) -> None:
        """Note a trained layout, if it is new."""
        if all(point.spec.spec_id != spec.spec_id for point in self.trained):
            self.trained.append(FrontPoint(spec=spec, quality=quality, costs=self.costs(spec), trial=trial))

    def propose(self, study: optuna.Study, queue: list[InnerDesign], spare: list[InnerDesign], count: int) -> Batch:
        """Feasible layouts that were not trained yet: from the queue, then from the model, then from the inner pass."""
        batch = Batch([], [])
        tried = {point.spec.spec_id: point.spec for point in self.trained} | self._failed
        tried |= claims.running_elsewhere(study) | self._stopped
        while len(batch.accepted) < count:
            asked = book.asked_by_hand(study, self.designs)
            if asked is None:
                entry = self._next(queue, spare, tried)
                if entry is None:
                    return batch
                asked = book.ask(study, self.designs, entry)
            trial, spec = asked
            costs = self.costs(spec)
            reason = costs.reason(self.budgets)
            if spec.spec_id in tried:
                book.refuse(study, trial, "the same layout as an earlier trial")
                continue
            if (other := claims.asked_first(study, trial.number, spec, self.evaluator)) is not None:
                book.refuse(study, trial, f"the same layout as trial {other}, of another search")
                tried[spec.spec_id] = spec
                continue
            book.write_costs(trial, costs)
            if reason is not None:
                book.refuse(study, trial, reason)
                batch.refused.append(self.event(trial.number, spec, f"over budget, not trained: {reason}"))
                continue
            tried[spec.spec_id] = spec
            batch.accepted.append((trial, spec))
        return batch

    def _next(self, queue: list[InnerDesign], spare: Sequence[InnerDesign], tried: dict[str, ArchSpec]) -> InnerDesign | None:
        while queue:
            entry = queue.pop(0)
            known = (entry.spec.to_json(), entry.costs.reason(self.budgets) or "") in self._refused
            if entry.spec.spec_id not in tried and not known:
                return entry
        codec = self.proposer.codec
        seen = set(codec.keys(codec.encode([spec for spec in tried.values() if self.designs.holds(spec)])))
        proposed = self.proposer.propose(*self.taught(), seen)
        if proposed is not None:
            spec = codec.decode(proposed)[0]
            return InnerDesign(design=self.designs.nearest(spec), spec=spec, costs=self.costs(spec), label="model")
        return next((entry for entry in spare if entry.spec.spec_id not in tried), None)

    def train(self, study: optuna.Study, batch: Sequence[tuple[optuna.trial.Trial, ArchSpec]]) -> Iterator[SearchEvent]:
        """Train, tell the study, and yield each as it ends."""
        trials = {spec.spec_id: trial for trial, spec in batch}
        with book.marked_when_interrupted(trials.values()):
            for quality in self.evaluator.evaluate_all(spec for _, spec in batch):
                trial, spec = trials[quality.spec.spec_id], quality.spec
                if isinstance(quality, EvaluationFailure):
                    yield self.failed(study, trial, quality)
                    continue
                costs = self.costs(spec).values
                book.finish(study, trial, quality, costs[str(self.latency)], costs[str(self.memory)])
                self.keep(spec, quality, trial.number)
                self._trained_now += 1
                yield self.event(trial.number, spec, said(quality))

    def halve(
        self, study: optuna.Study, batch: Sequence[tuple[optuna.trial.Trial, ArchSpec]], wanted: int
    ) -> Generator[SearchEvent, None, list[tuple[optuna.trial.Trial, ArchSpec]]]:
        """Begin all, stop those that the front would miss least, and return the others; who asked for a layout by name gets it."""
        if len(batch) <= wanted:
            return list(batch)
        trials = {spec.spec_id: trial for trial, spec in batch}
        begun: list[tuple[optuna.trial.Trial, LayoutQuality]] = []
        with book.marked_when_interrupted(trials.values()):
            for quality in self.evaluator.begin_all(spec for _, spec in batch):
                trial = trials[quality.spec.spec_id]
                if isinstance(quality, EvaluationFailure):
                    yield self.failed(study, trial, quality)
                else:
                    begun.append((trial, quality))
            begun.sort(key=lambda entry: entry[0].number)
            named = [i for i, (trial, quality) in enumerate(begun) if self._goes_on(trial, quality.spec)]
            others = [i for i in range(len(begun)) if i not in named]
            rows = [self._rung_objectives(begun[i][1]) for i in others]
            keep = {*named, *(others[i] for i in survivors(rows, max(0, wanted - len(named))))}
            for i, (trial, quality) in enumerate(begun):
                if i not in keep:
                    steps = f"{quality.text.steps} of {self.evaluator.settings.text_steps} steps"
                    book.stop(study, trial, quality, f"stopped at {steps}: of {len(begun)} that were begun, others promised more")
                    self._stopped[quality.spec.spec_id] = quality.spec
                    yield self.event(trial.number, quality.spec, f"stopped at {steps}: {said(quality)}")
        return [(trial, quality.spec) for i, (trial, quality) in enumerate(begun) if i in keep]

    def _goes_on(self, trial: optuna.trial.Trial, spec: ArchSpec) -> bool:
        """Asked for by name, or known to its end already, so that it costs nothing more."""
        return trial.user_attrs["source"] in (LABEL, RETRIED, book.BY_HAND) or self.evaluator.cached(spec) is not None

    def _rung_objectives(self, quality: LayoutQuality) -> list[float]:
        costs = self.costs(quality.spec).values
        return rung_objectives(quality, costs[str(self.latency)], costs[str(self.memory)])

    def take_up(self, study: optuna.Study, count: int) -> Batch:
        """Layouts that were stopped, where there are no others: they are trained to the end after all."""
        batch = Batch([], [])
        for key, spec in list(self._stopped.items()):
            costs = self.costs(spec)
            known = {point.spec.spec_id for point in self.trained} | self._failed.keys()
            if len(batch.accepted) == count or not costs.feasible or key in known:
                continue
            trial, asked = book.ask(study, self.designs, self._once_more(spec, label="stopped before"))
            if (other := claims.asked_first(study, trial.number, asked, self.evaluator, stopped=False)) is not None:
                book.refuse(study, trial, f"the same layout as trial {other}, of another search")
                continue
            book.write_costs(trial, self.costs(asked))
            batch.accepted.append((trial, asked))
        return batch

    def failed(self, study: optuna.Study, trial: optuna.trial.Trial, failure: EvaluationFailure) -> SearchEvent:
        """A layout that cannot be trained, and why."""
        spec, reason = failure.spec, failure.reason
        log.warning("trial %d (%s) failed: %s", trial.number, spec.pattern, reason)
        self._failed[spec.spec_id] = spec
        self.given_up.append(GivenUp(number=trial.number, spec=spec, reason=reason))
        book.fail(study, trial, reason)
        return self.event(trial.number, spec, f"failed: {reason}")

    def event(self, trial: int, spec: ArchSpec, outcome: str) -> SearchEvent:
        trained = min(len(self.points), self.trials)
        each = (time.monotonic() - self._began) / self._trained_now if self._trained_now else None
        left = each * (self.trials - trained) if each is not None else None
        return SearchEvent(trained=trained, wanted=self.trials, trial=trial, pattern=spec.pattern, outcome=outcome, seconds_left=left)

    def result(self) -> SearchResult:
        """What is known so far."""
        return outcome(self)
