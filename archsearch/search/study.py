"""The search: an Optuna study is the book of everything that was paid for.

Designs come from a cheap inner pass over predicted costs (baselines, then layouts spread along latency), after that from
Optuna's sampler. Each is checked against the budgets by prediction; one that misses any is told so, with its reason, and never
trained. The same command goes on where it was stopped: finished trainings are kept (`quality.jsonl`), trials too (`study.db`).
"""

from __future__ import annotations

import itertools
import json
import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from archsearch.budgets import Budget
from archsearch.errors import RunError
from archsearch.predict import CostTable
from archsearch.quality import EvaluationFailure, Evaluator, LayoutQuality, structure
from archsearch.search.designs import Design, DesignSpace
from archsearch.search.feasible import CostModel, Costs, measured_space, primary_latency, primary_memory, search_metrics, unreachable
from archsearch.search.owner import is_gone, owner
from archsearch.search.programme import Programme
from archsearch.search.result import FrontPoint, SearchResult, choose, pareto_front
from archsearch.search.storage import open_storage, storage_errors, study_url
from archsearch.space import Space
from archsearch.spec import ArchSpec

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

INNER_SAMPLES = 3000
FEW_FEASIBLE = 50
"""With fewer feasible layouts in the sample than this, some are found by integer programming."""
SEED_SHARE = 2 / 3
"""Of the trials, at most this share is fixed beforehand; the sampler, which learns from them, has the rest."""
ASKS_A_TRIAL = 10
"""Proposals a sampler may spend to find one feasible new layout, before the inner pass proposes in its place."""
TPE_TRIALS = 300
"""Up to here TPE finds more than NSGA-II on this encoding, beyond it less (docs/search.md)."""
DIRECTIONS: list[Literal["maximize", "minimize"]] = ["maximize", "minimize", "minimize", "minimize"]
RECALL, TEXT = "recall", "text_bits_per_byte"


@dataclass(frozen=True, kw_only=True)
class SearchEvent:
    """A trial ended: `trained` of `wanted` layouts are trained so far; the rest takes about `seconds_left`."""

    trained: int
    wanted: int
    trial: int
    pattern: str
    outcome: str
    seconds_left: float | None = None


@dataclass(frozen=True, kw_only=True)
class InnerDesign:
    """A layout of the inner pass with its predicted costs."""

    design: Design
    spec: ArchSpec
    costs: Costs
    label: str = ""
    retry_of: int | None = None
    """The trial that was cut off with this layout."""


class Searcher:
    """A search over one space on one device's cost table.

    Args:
        budgets: hard limits, the space's and the command line's together.
        trials: layouts to train.
        storage: an Optuna storage URL; None keeps the study in the run directory.

    Raises:
        MissingMeasurement: the table lacks what the budgets are about, or every operator of the space.
    """

    def __init__(
        self,
        space: Space,
        table: CostTable,
        evaluator: Evaluator,
        run_dir: Path,
        *,
        budgets: Sequence[Budget],
        trials: int,
        seed: int = 0,
        storage: str | None = None,
    ) -> None:
        self.metrics = search_metrics(table, budgets)
        self.latency, self.memory = primary_latency(table, budgets), primary_memory(table, budgets)
        self.space, self.left_out = measured_space(space, table, self.metrics)
        for label, reason in self.left_out.items():
            log.warning("%s is left out of the search: %s", label, reason)
        self.table, self.evaluator, self.run_dir = table, evaluator, run_dir
        self.budgets, self.trials, self.seed = tuple(budgets), trials, seed
        self.designs = DesignSpace(self.space)
        self.url = study_url(run_dir, storage)
        self.points: list[FrontPoint] = []
        self.nearest: InnerDesign | None = None
        self._given_up: dict[str, str] = {}
        self._model: CostModel | None = None
        self._began = time.monotonic()
        self._trained_now = 0

    # -- the cheap pass --------------------------------------------------------------------------------------------------

    @property
    def model(self) -> CostModel:
        """Costs against today's budgets."""
        if self._model is None or self._model.budgets != self.budgets:
            self._model = CostModel(self.space, self.table, self.metrics, self.budgets)
        return self._model

    def costs(self, spec: ArchSpec) -> Costs:
        return self.model.costs(spec)

    def inner(self) -> list[InnerDesign]:
        """Baselines, designs and the layout nearest to the budgets, with predicted costs; the same for the same seed.

        Where there are more than `INNER_SAMPLES` designs, as many at random.
        Where the budgets leave little room, layouts that use it to the full in various directions too.
        """
        generator = random.Random(self.seed)
        found: dict[tuple[Any, ...], InnerDesign] = {}

        def add(spec: ArchSpec, design: Design, label: str = "") -> None:
            key = (spec.hidden_size, spec.layers)
            if key not in found:
                found[key] = InnerDesign(design=design, spec=spec, costs=self.costs(spec), label=label)

        done: set[str] = set()
        for label, design in self.designs.baselines():
            spec = self.designs.spec(design)
            if label not in done and self.costs(spec).feasible:
                done.add(label)
                add(spec, design, label)
        for label, design in self.designs.baselines():
            if label not in done:  # over budget at every size: the largest is shown
                done.add(label)
                add(self.designs.spec(design), design, label)
        few = self.designs.size <= INNER_SAMPLES
        for design in self.designs.all() if few else (self.designs.random(generator) for _ in range(INNER_SAMPLES)):
            add(self.designs.spec(design), design)
        nearest, costs = self.model.nearest()
        add(nearest, self.designs.nearest(nearest))
        if costs.feasible and sum(entry.costs.feasible for entry in found.values()) < FEW_FEASIBLE:
            programme = Programme(self.model)
            for _ in range(FEW_FEASIBLE):
                favourite = programme.favourite({block: generator.gauss(0, 1) for block in self.space.blocks})
                if favourite is not None:
                    add(favourite, self.designs.nearest(favourite))
        return list(found.values())

    def seeds(self, inner: Sequence[InnerDesign]) -> list[InnerDesign]:
        """What is trained first: feasible baselines in turn with layouts spread evenly over latency.

        Of those with about the same latency, one whose structure can recall (`quality.structure`), with operators that were
        not chosen yet, and with the most parameters.
        """
        wanted = max(1, round(self.trials * SEED_SHARE))
        feasible = [entry for entry in inner if entry.costs.feasible]
        baselines = sorted((entry for entry in feasible if entry.label), key=lambda entry: entry.label.startswith("all"))
        others = sorted((entry for entry in feasible if not entry.label), key=lambda entry: entry.costs.values[str(self.latency)])
        bins = max(wanted - len(baselines), wanted // 2)
        chosen: list[InnerDesign] = []
        used: list[frozenset[Any]] = []
        for i in range(bins):
            group = others[i * len(others) // bins : (i + 1) * len(others) // bins]
            if group:
                best = max(group, key=lambda entry: (structure(entry.spec).can_recall, -used.count(_kinds(entry)), _size(entry)))
                chosen.append(best)
                used.append(_kinds(best))
        pairs = itertools.zip_longest(baselines, chosen)
        return [entry for pair in pairs for entry in pair if entry is not None][:wanted]

    # -- the study -------------------------------------------------------------------------------------------------------

    @property
    def study_name(self) -> str:
        return f"{self.space.name}-{self.space.space_id}"

    def open_study(self) -> optuna.Study:
        """The study of this space, made if there is none.

        Raises:
            StoreError: see `open_storage`.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = open_storage(self.url)
        with storage_errors(self.url, opening=True):
            study = optuna.create_study(study_name=self.study_name, storage=storage, directions=DIRECTIONS, load_if_exists=True)
            # Not the same random numbers again when a search goes on.
            seed = self.seed + 7919 * len(study.get_trials(deepcopy=False))
            study.sampler = (
                optuna.samplers.TPESampler(seed=seed)
                if self.trials <= TPE_TRIALS
                else optuna.samplers.NSGAIISampler(population_size=50, seed=seed)
            )
            now = {
                "space_id": self.space.space_id,
                "objectives": [RECALL, TEXT, str(self.latency), str(self.memory)],
                "device": self.table.device,
                "budgets": [str(budget) for budget in self.budgets],
                "seed": self.seed,
                "left_out": self.left_out,
            }
            for name, value in now.items():
                if name in study.user_attrs and study.user_attrs[name] != value:
                    log.info("%s: %s was %s and is %s; costs are predicted anew", self.study_name, name, study.user_attrs[name], value)
                study.set_user_attr(name, value)
        return study

    def run(self) -> Iterator[SearchEvent]:
        """Search; `result` tells what was found, also before the end.

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
            queue = self.recover(study) + self.seeds(inner)
            spare = [entry for entry in inner if entry.costs.feasible]
            random.Random(self.seed + 1).shuffle(spare)
            while len(self.points) < self.trials:
                batch = self.propose(study, queue, spare, min(self.evaluator.workers, self.trials - len(self.points)))
                yield from batch.refused
                if not batch.accepted:
                    break  # every feasible layout that is known is trained
                yield from self.train(study, batch.accepted)
        if not self.points:
            raise RunError(f"no layout could be trained: {next(iter(self._given_up.values()), 'none was proposed')}")

    def recover(self, study: optuna.Study) -> list[InnerDesign]:
        """Take up what earlier runs left: trained layouts count again; trials that were cut off fail and are tried once more."""
        import optuna

        again = []
        for trial in study.get_trials(deepcopy=False):
            if "spec" not in trial.user_attrs:
                if trial.state == optuna.trial.TrialState.RUNNING and is_gone(trial.user_attrs.get("owner")):
                    study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                continue
            spec = ArchSpec.from_dict(json.loads(trial.user_attrs["spec"]))
            if trial.state == optuna.trial.TrialState.RUNNING and is_gone(trial.user_attrs.get("owner")):
                second = "retry_of" in trial.user_attrs
                reason = "cut off, for the second time" if second else "cut off; its layout is tried again"
                study._storage.set_trial_user_attr(trial._trial_id, "reason", reason)
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                if second:
                    self._given_up[spec.spec_id] = f"{spec.pattern}: the search was cut off twice while it trained this layout"
                elif self.costs(spec).feasible:
                    design = self.designs.design(trial.params)
                    again.append(InnerDesign(design=design, spec=spec, costs=self.costs(spec), retry_of=trial.number))
            elif trial.state == optuna.trial.TrialState.COMPLETE:
                quality = self.evaluator.cached(spec)
                if quality is not None:
                    self.keep(spec, quality, trial.number)
        return again

    def keep(self, spec: ArchSpec, quality: LayoutQuality, trial: int) -> FrontPoint | None:
        """A trained layout, if it is new and keeps today's budgets."""
        costs = self.costs(spec)
        if not costs.feasible or any(point.spec.spec_id == spec.spec_id for point in self.points):
            return None
        point = FrontPoint(spec=spec, quality=quality, costs=costs, trial=trial)
        self.points.append(point)
        return point

    @dataclass
    class Batch:
        accepted: list[tuple[optuna.trial.Trial, ArchSpec]]
        refused: list[SearchEvent]

    def propose(self, study: optuna.Study, queue: list[InnerDesign], spare: list[InnerDesign], count: int) -> Batch:
        """Feasible layouts that were not trained yet: from the queue, then from the sampler, then from the inner pass."""
        batch = Searcher.Batch([], [])
        seen = {point.spec.spec_id for point in self.points} | set(self._given_up)
        asks = 0
        while len(batch.accepted) < count:
            source = None
            while queue and source is None:
                entry = queue.pop(0)
                source = entry if entry.spec.spec_id not in seen else None
            if source is None and asks >= ASKS_A_TRIAL * count:
                source = next((entry for entry in spare if entry.spec.spec_id not in seen), None)
                if source is None:
                    return batch
            if source is not None:
                study.enqueue_trial(source.design.to_dict())
            asks += 1
            trial = study.ask(self.designs.distributions())
            spec = source.spec if source is not None else self.designs.spec(self.designs.design(trial.params))
            # The layout itself: of those that integer programming found, the parameters tell only the gist.
            trial.set_user_attr("spec", spec.to_json())
            if spec.spec_id in seen:
                self.refuse(study, trial, spec, "the same layout as an earlier trial")
                continue
            trial.set_user_attr("owner", owner())
            trial.set_user_attr("source", (source.label or "inner pass") if source is not None else "sampler")
            if source is not None and source.retry_of is not None:
                trial.set_user_attr("retry_of", source.retry_of)
            costs = self.costs(spec)
            for name, excess in costs.excess.items():
                trial.set_constraint(name, excess)
            trial.set_user_attr("costs", costs.values)
            reason = costs.reason(self.budgets)
            if reason is not None:
                batch.refused.append(self.refuse(study, trial, spec, reason))
                continue
            seen.add(spec.spec_id)
            batch.accepted.append((trial, spec))
        return batch

    def refuse(self, study: optuna.Study, trial: optuna.trial.Trial, spec: ArchSpec, reason: str) -> SearchEvent:
        import optuna

        trial.set_user_attr("reason", reason)
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        return self.event(trial.number, spec, f"over budget, not trained: {reason}")

    def train(self, study: optuna.Study, batch: Sequence[tuple[optuna.trial.Trial, ArchSpec]]) -> Iterator[SearchEvent]:
        import optuna

        trials = {spec.spec_id: trial for trial, spec in batch}
        for quality in self.evaluator.evaluate_all(spec for _, spec in batch):
            trial, spec = trials[quality.spec.spec_id], quality.spec
            if isinstance(quality, EvaluationFailure):
                log.warning("trial %d (%s) failed: %s", trial.number, spec.pattern, quality.reason)
                self._given_up[spec.spec_id] = f"{spec.pattern}: {quality.reason}"
                trial.set_user_attr("reason", quality.reason)
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                yield self.event(trial.number, spec, f"failed: {quality.reason}")
                continue
            for name, value in quality.to_dict().items():
                trial.set_user_attr(name, value)
            costs = self.costs(spec).values
            recall = 1.0 if quality.solves_recall else quality.recall.value
            study.tell(trial, [recall, quality.text.value, costs[str(self.latency)], costs[str(self.memory)]])
            self.keep(spec, quality, trial.number)
            self._trained_now += 1
            solved = "solved" if quality.solves_recall else "unresolved"
            yield self.event(trial.number, spec, f"recall {quality.recall.value:.0%} ({solved}), {quality.text.value:.3f} bits/byte")

    def event(self, trial: int, spec: ArchSpec, outcome: str) -> SearchEvent:
        trained = min(len(self.points), self.trials)
        each = (time.monotonic() - self._began) / self._trained_now if self._trained_now else None
        left = each * (self.trials - trained) if each is not None else None
        return SearchEvent(trained=trained, wanted=self.trials, trial=trial, pattern=spec.pattern, outcome=outcome, seconds_left=left)

    # -- what came of it -------------------------------------------------------------------------------------------------

    def result(self) -> SearchResult:
        """What is known so far. Impossible budgets are recognised exactly, by integer programming, not by a lack of luck."""
        nearest = self.nearest
        if nearest is not None and not nearest.costs.feasible:
            return SearchResult(feasible=False, unreachable=unreachable(self.space, self.model, nearest.costs), nearest=nearest.spec)
        latency, memory = str(self.latency), str(self.memory)
        front = pareto_front(self.points, latency, memory)
        return SearchResult(feasible=True, front=front, best=choose(front, latency))


def _kinds(entry: InnerDesign) -> frozenset[Any]:
    return frozenset(block.operator for block in entry.spec.layers)


def _size(entry: InnerDesign) -> int:
    from operators.costs import model_parameters

    spec = entry.spec
    return model_parameters(spec.layers, spec.dims, vocab_size=spec.vocab_size, tie_embeddings=spec.tie_embeddings)
