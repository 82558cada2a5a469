"""The search: an Optuna study is the book of everything that was paid for.

Designs come from a cheap inner pass over predicted costs (baselines, then layouts spread along latency), after that from
Optuna's sampler. Each is checked against the budgets by prediction; one that misses any is told so, with its reason, and never
trained. The same command goes on where it was stopped: finished trainings are kept (`quality.jsonl`), trials too (`study.db`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archsearch.budgets import Budget
from archsearch.errors import RunError, StoreError
from archsearch.predict import CostTable
from archsearch.quality import Evaluator, LayoutQuality
from archsearch.search.designs import Design, DesignSpace
from archsearch.search.feasible import Costs, predicted_costs, primary_latency, primary_memory, search_metrics, unreachable
from archsearch.search.result import FrontPoint, SearchResult, choose, pareto_front
from archsearch.space import Space
from archsearch.spec import ArchSpec

if TYPE_CHECKING:
    import optuna

INNER_SAMPLES = 3000
ASKS_A_TRIAL = 40
"""Proposals a sampler may spend to find one feasible new layout, before the inner pass proposes in its place."""
DIRECTIONS = ("maximize", "minimize", "minimize", "minimize")


@dataclass(frozen=True, kw_only=True)
class SearchEvent:
    """A trial ended: `trained` of `wanted` layouts are trained so far."""

    trained: int
    wanted: int
    trial: int
    pattern: str
    outcome: str


@dataclass(frozen=True, kw_only=True)
class InnerDesign:
    """A layout of the inner pass with its predicted costs."""

    design: Design
    spec: ArchSpec
    costs: Costs
    label: str = ""


class Searcher:
    """A search over one space on one device's cost table.

    Args:
        budgets: hard limits, the space's and the command line's together.
        trials: layouts to train.
        storage: an Optuna storage URL; None keeps the study in the run directory.
    """

    def __init__(
        self, space: Space, table: CostTable, evaluator: Evaluator, run_dir: Path, *, budgets: Sequence[Budget], trials: int, seed: int = 0, storage: str | None = None
    ) -> None:
        self.space, self.table, self.evaluator, self.run_dir = space, table, evaluator, run_dir
        self.budgets, self.trials, self.seed = tuple(budgets), trials, seed
        self.designs = DesignSpace(space)
        self.metrics = search_metrics(table, budgets)
        self.latency, self.memory = primary_latency(table, budgets), primary_memory(table, budgets)
        self.storage = storage
        self.points: list[FrontPoint] = []
        self.nearest: InnerDesign | None = None

    # -- the cheap pass --------------------------------------------------------------------------------------------------

    def costs(self, spec: ArchSpec) -> Costs:
        return predicted_costs(spec, self.table, self.metrics, self.budgets)

    def inner(self) -> list[InnerDesign]:
        """Baselines and random designs with predicted costs, each layout once; the same for the same seed."""
        generator = random.Random(self.seed)
        proposals = [*self.designs.baselines(), *(("", self.designs.random(generator)) for _ in range(INNER_SAMPLES))]
        found: dict[str, InnerDesign] = {}
        for label, design in proposals:
            spec = self.designs.spec(design)
            if spec.spec_id not in found:
                found[spec.spec_id] = InnerDesign(design=design, spec=spec, costs=self.costs(spec), label=label)
        return list(found.values())

    def seeds(self, inner: Sequence[InnerDesign]) -> list[InnerDesign]:
        """What is trained first: feasible baselines, then layouts spread evenly over latency, most various operators first."""
        feasible = [entry for entry in inner if entry.costs.feasible]
        baselines = [entry for entry in feasible if entry.label]
        others = sorted((entry for entry in feasible if not entry.label), key=lambda entry: entry.costs.values[str(self.latency)])
        wanted = max(0, self.trials - len(baselines))
        bins = [others[i * len(others) // wanted : (i + 1) * len(others) // wanted] for i in range(wanted)] if wanted else []
        spread = [max(group, key=lambda entry: len({block.operator for block in entry.spec.layers})) for group in bins if group]
        return baselines + spread

    # -- the study -------------------------------------------------------------------------------------------------------

    def open_study(self) -> optuna.Study:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = open_storage(self.storage or f"sqlite:///{(self.run_dir / 'study.db').resolve()}")
        sampler = optuna.samplers.NSGAIISampler(population_size=max(8, min(50, self.trials)), seed=self.seed)
        study = optuna.create_study(
            study_name=f"{self.space.name}-{self.space.space_id}", storage=storage, sampler=sampler, directions=DIRECTIONS, load_if_exists=True
        )
        study.set_user_attr("space_id", self.space.space_id)
        study.set_user_attr("objectives", ["recall", "text_bits_per_byte", str(self.latency), str(self.memory)])
        study.set_user_attr("device", self.table.device)
        study.set_user_attr("budgets", [str(budget) for budget in self.budgets])
        return study

    def run(self) -> Iterator[SearchEvent]:
        """Search; `result` tells what was found, also before the end.

        Raises:
            StoreError: the study cannot be read or written.
            RunError: a training worker died.
        """
        inner = self.inner()
        self.nearest = min(inner, key=lambda entry: entry.costs.violation)
        if not any(entry.costs.feasible for entry in inner):
            return
        study = self.open_study()
        self.recover(study)
        queue = self.seeds(inner)
        spare = [entry for entry in inner if entry.costs.feasible]
        random.Random(self.seed + 1).shuffle(spare)
        while len(self.points) < self.trials:
            batch = self.propose(study, queue, spare, min(self.evaluator.workers, self.trials - len(self.points)))
            for event in batch.refused:
                yield event
            if not batch.accepted:
                return  # every feasible layout of the inner pass is trained
            yield from self.train(study, batch.accepted)

    def recover(self, study: optuna.Study) -> None:
        """Take up what earlier runs left: trained layouts count again, trials that were cut off are marked as failed."""
        import optuna

        for trial in study.get_trials(deepcopy=False):
            if trial.state == optuna.trial.TrialState.RUNNING:
                study._storage.set_trial_user_attr(trial._trial_id, "reason", "the process that ran it ended; its layout is tried again")
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            elif trial.state == optuna.trial.TrialState.COMPLETE and "spec" in trial.user_attrs:
                spec = ArchSpec.from_dict(json.loads(trial.user_attrs["spec"]))
                quality = self.evaluator.cached(spec)
                if quality is not None:
                    self.keep(spec, quality, trial.number)

    def keep(self, spec: ArchSpec, quality: LayoutQuality, trial: int) -> FrontPoint | None:
        """A trained layout, if it is new and keeps today's budgets."""
        costs = self.costs(spec)
        if not costs.feasible or any(point.spec == spec for point in self.points):
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
        seen = {point.spec.spec_id for point in self.points}
        asks = 0
        while len(batch.accepted) < count:
            if queue:
                study.enqueue_trial(queue.pop(0).design.to_dict(), skip_if_exists=False)
            elif asks >= ASKS_A_TRIAL * count:
                fresh = next((entry for entry in spare if entry.spec.spec_id not in seen), None)
                if fresh is None:
                    return batch
                study.enqueue_trial(fresh.design.to_dict())
            asks += 1
            trial = study.ask(self.designs.distributions())
            spec = self.designs.spec(self.designs.design(trial.params))
            if spec.spec_id in seen:
                self.refuse(study, trial, spec, "the same layout as an earlier trial")
                continue
            costs = self.costs(spec)
            for name, excess in costs.excess.items():
                trial.set_constraint(name, excess)
            trial.set_user_attr("costs", costs.values)
            reason = costs.reason(self.budgets)
            if reason is not None:
                batch.refused.append(self.refuse(study, trial, spec, reason))
                continue
            seen.add(spec.spec_id)
            trial.set_user_attr("spec", spec.to_json())
            batch.accepted.append((trial, spec))
        return batch

    def refuse(self, study: optuna.Study, trial: optuna.trial.Trial, spec: ArchSpec, reason: str) -> SearchEvent:
        import optuna

        trial.set_user_attr("spec", spec.to_json())
        trial.set_user_attr("reason", reason)
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        return self.event(trial.number, spec, f"over budget, not trained: {reason}")

    def train(self, study: optuna.Study, batch: Sequence[tuple[optuna.trial.Trial, ArchSpec]]) -> Iterator[SearchEvent]:
        trials = {spec.spec_id: trial for trial, spec in batch}
        for quality in self.evaluator.evaluate_all(spec for _, spec in batch):
            trial = trials[quality.spec.spec_id]
            for name, value in quality.to_dict().items():
                trial.set_user_attr(name, value)
            costs = self.costs(quality.spec).values
            recall = 1.0 if quality.solves_recall else quality.recall.value
            study.tell(trial, [recall, quality.text.value, costs[str(self.latency)], costs[str(self.memory)]])
            self.keep(quality.spec, quality, trial.number)
            solved = "solved" if quality.solves_recall else "unresolved"
            yield self.event(trial.number, quality.spec, f"recall {quality.recall.value:.0%} ({solved}), {quality.text.value:.3f} bits/byte")

    def event(self, trial: int, spec: ArchSpec, outcome: str) -> SearchEvent:
        return SearchEvent(trained=min(len(self.points), self.trials), wanted=self.trials, trial=trial, pattern=spec.pattern, outcome=outcome)

    # -- what came of it -------------------------------------------------------------------------------------------------

    def result(self) -> SearchResult:
        if not self.points:
            nearest = self.nearest
            return SearchResult(
                feasible=False,
                unreachable=unreachable(self.space, self.table, self.budgets, nearest.costs if nearest else None),
                nearest=nearest.spec if nearest else None,
            )
        latency, memory = str(self.latency), str(self.memory)
        return SearchResult(feasible=True, front=pareto_front(self.points, latency, memory), best=choose(self.points, latency))


def open_storage(url: str) -> Any:
    """An Optuna storage. SQLite is put into WAL mode with patience for a second process.

    Raises:
        StoreError: the database is corrupt, unreachable, or no Optuna storage.
    """
    import optuna
    from sqlalchemy import event
    from sqlalchemy.exc import SQLAlchemyError

    def configure(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA busy_timeout = 60000")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.close()

    try:
        if not url.startswith("sqlite"):
            return optuna.storages.RDBStorage(url, heartbeat_interval=30, grace_period=90)
        storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
        event.listen(storage.engine, "connect", configure)
        storage.engine.dispose()
    except (SQLAlchemyError, ImportError, RuntimeError, ValueError) as error:
        shown = " ".join(str(error).split("\n")[0].split())
        raise StoreError(f"{url}: cannot be used as the study's storage ({shown}); move it away to search anew, or give another --storage") from error
    return storage


def write_results(result: SearchResult, searcher: Searcher) -> Path:
    """Write the chosen spec to RUN/spec.toml and the front to RUN/front/, each with where it came from.

    Raises:
        RunError: nothing was found, or the place cannot be written.
    """
    from dataclasses import replace
    from datetime import UTC, datetime

    from archsearch import __version__

    if result.best is None:
        raise RunError("no layout was chosen; there is nothing to write")

    def with_origin(point: FrontPoint, name: str) -> ArchSpec:
        origin = {
            "study": f"{searcher.space.name}-{searcher.space.space_id}",
            "trial": point.trial,
            "device": searcher.table.device,
            "date": datetime.now(UTC).date().isoformat(),
            "archsearch": __version__,
            "seed": searcher.seed,
            "budgets": [str(budget) for budget in searcher.budgets],
            "evidence": point.evidence(),
            "predicted": {name: float(f"{value:.6g}") for name, value in point.costs.values.items()},
            "quality": point.quality.to_dict(),
        }
        return replace(point.spec, name=name, origin=origin)

    directory = searcher.run_dir
    for stale in (directory / "front").glob("*.toml"):
        stale.unlink()
    for point in result.front:
        with_origin(point, f"{searcher.space.name}-{point.spec.spec_id}").write(directory / "front" / f"{point.spec.spec_id}.toml")
    chosen = directory / "spec.toml"
    with_origin(result.best, searcher.space.name).write(chosen)
    return chosen
