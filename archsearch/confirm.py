"""T3: the search's best layouts, and random ones of the same budgets, trained longer from several seeds. Only this names a winner.

All have the same tokens. Without random controls nobody knows whether the search was needed, and without a second seed not
whether a difference is one. A layout that somebody uses already may take part (`baseline`): what is asked of it is by how much
the others differ from it, seed by seed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any, Literal

from archsearch.errors import RunError
from archsearch.quality import Evaluator, QualityResult, QualitySettings, Training
from archsearch.quality.ranking import paired
from archsearch.quality.tasks import TASKS, Task
from archsearch.search import FrontPoint, Searcher
from archsearch.search.result import choose
from archsearch.spec import ArchSpec
from archsearch.validate import ValidateEvent
from operators.specs import SpecError

FIRST_SEED = 2000
"""Neither the search nor its validation uses these seeds: a layout that was lucky with one has no advantage."""


Role = Literal["search", "random", "baseline"]


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Who is trained: `candidates` of the search, best first, random `controls` that keep the same budgets, and a `baseline`."""

    candidates: tuple[FrontPoint, ...]
    controls: tuple[ArchSpec, ...]
    settings: QualitySettings
    seeds: tuple[int, ...]
    baseline: ArchSpec | None = None
    tasks: tuple[Task, ...] = TASKS

    @property
    def layouts(self) -> tuple[ArchSpec, ...]:
        """Each once: the baseline may be one of the candidates."""
        specs = (*(point.spec for point in self.candidates), *self.controls, *([self.baseline] if self.baseline else []))
        return tuple({spec.spec_id: spec for spec in specs}.values())

    def role(self, spec: ArchSpec) -> Role:
        if self.baseline is not None and spec.spec_id == self.baseline.spec_id:
            return "baseline"
        return "random" if any(spec.spec_id == control.spec_id for control in self.controls) else "search"

    def trainings(self, spec: ArchSpec) -> list[Training]:
        return [Training(spec=spec, task=task, settings=self.settings, seed=seed) for seed in self.seeds for task in self.tasks]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What a layout reached: synthetic trainings that were solved (recall, a seed each), and bits a byte of each seed."""

    spec: ArchSpec
    role: Role
    solved: int
    text: tuple[float, ...]

    @property
    def control(self) -> bool:
        return self.role == "random"

    def beats(self, other: Standing) -> bool:
        """Clearly: recall in more seeds; or in as many, and its worst text is better than the other's best."""
        if self.solved != other.solved:
            return self.solved > other.solved
        return max(self.text) < min(other.text)

    def to_dict(self) -> dict[str, Any]:
        return {
            "spec_id": self.spec.spec_id,
            "pattern": self.spec.pattern,
            "control": self.control,
            "from": self.role,
            "recall_solved": self.solved,
            "text_bits_per_byte": list(self.text),
        }


def make_contest(searcher: Searcher, *, top: int, controls: int, seeds: int, longer: float) -> Contest:
    """The search's best layouts by its own rule, and random ones within the same budgets; the same for the same search.

    Raises:
        RunError: the search has trained nothing within the budgets yet.
    """
    searcher.look_up()
    left, latency = list(searcher.points), str(searcher.latency)
    candidates: list[FrontPoint] = []
    while left and len(candidates) < top:
        point = choose(left, latency)
        assert point is not None
        candidates.append(point)
        left.remove(point)
    if not candidates:
        raise RunError(f"{searcher.run_dir}: no layout within the budgets is trained yet; run `archsearch search` first")
    short = searcher.evaluator.settings
    settings = replace(short, recall_steps=round(longer * short.recall_steps), text_steps=round(longer * short.text_steps))
    contest = Contest(
        candidates=tuple(candidates),
        controls=(),
        settings=settings,
        seeds=tuple(range(FIRST_SEED, FIRST_SEED + seeds)),
        baseline=searcher.baseline,
        tasks=searcher.evaluator.tasks,
    )
    taken = {training.key for spec in contest.layouts for training in contest.trainings(spec)}
    spare = [entry.spec for entry in searcher.inner() if entry.costs.feasible and not entry.label]
    random.Random(searcher.seed).shuffle(spare)
    drawn: list[ArchSpec] = []
    for spec in spare:
        try:
            keys = {training.key for training in contest.trainings(spec)}
        except SpecError:
            continue
        if len(drawn) < controls and not keys & taken:
            taken |= keys
            drawn.append(spec)
    return replace(contest, controls=tuple(drawn))


def train_contest(contest: Contest, evaluator: Evaluator) -> Iterator[ValidateEvent]:
    """Do what is not done yet; every result is kept as it comes, so that the same command goes on.

    Raises:
        RunError: a training failed, or a result cannot be written down.
    """
    todo = {training.key: training for spec in contest.layouts for training in contest.trainings(spec)}
    known, began = sum(key in evaluator.results for key in todo), time.monotonic()
    for done, (key, result) in enumerate(evaluator.train_all(todo.values()), 1):
        training = todo[key]
        label = f"{training.task} of {training.spec.pattern}, seed {training.seed}"
        if isinstance(result, str):
            raise RunError(f"confirm: {label}: {result}")
        left = (time.monotonic() - began) / (done - known) * (len(todo) - done) if done > known else None
        yield ValidateEvent(done=done, total=len(todo), label=label, seconds_left=left)


def standings(contest: Contest, evaluator: Evaluator) -> list[Standing]:
    """Best first: recall in the most seeds, then the fewest bits a byte on average.

    Raises:
        RunError: a training is missing.
    """

    def results(spec: ArchSpec, *, text: bool) -> list[QualityResult]:
        found = [evaluator.results.get(training.key) for training in contest.trainings(spec) if (training.task == "text") == text]
        if None in found:
            raise RunError(f"{spec.pattern}: a training is missing; the same command does it")
        return [result for result in found if result is not None]

    found = [
        Standing(
            spec=spec,
            role=contest.role(spec),
            solved=sum(result.status == "resolved" for result in results(spec, text=False)),
            text=tuple(result.value for result in results(spec, text=True)),
        )
        for spec in contest.layouts
    ]
    return sorted(found, key=lambda entry: (-entry.solved, mean(entry.text)))


def verdict(found: Sequence[Standing]) -> tuple[Standing | None, str]:
    """The winner, and why; None and why not."""
    searched = [entry for entry in found if entry.role == "search"]
    if not searched:
        return None, "the search's best layout is the baseline itself"
    best, controls = searched[0], [entry for entry in found if entry.control]
    if len(best.text) < 2:
        return None, "one seed names no winner; give --seeds 2 or more"
    if not controls:
        return None, "there is no other layout within the budgets to compare with"
    if any(entry.role == "baseline" and entry.beats(best) for entry in found):
        return None, "the baseline is better than all that the search found"
    equal = [entry for entry in controls if not best.beats(entry)]
    if equal:
        return None, f"cannot be told from {len(equal)} of {len(controls)} random layouts at this scale"
    rivals = [entry.spec.pattern for entry in searched if entry is not best and not best.beats(entry)]
    beside = f"; not to be told from {', '.join(rivals)}" if rivals else ""
    return best, f"beats all of {len(controls)} random layouts of the same budgets, with {len(best.text)} seeds each{beside}"


def document_of(contest: Contest, evaluator: Evaluator) -> dict[str, Any]:
    """What `archsearch confirm --json` prints."""
    found = standings(contest, evaluator)
    winner, why = verdict(found)
    baseline = next((entry for entry in found if entry.role == "baseline"), None)
    return {
        "winner": winner.spec.spec_id if winner else None,
        "why": why,
        "recall_steps": contest.settings.recall_steps,
        "text_steps": contest.settings.text_steps,
        "seeds": list(contest.seeds),
        "tasks": list(contest.tasks),
        "standings": [entry.to_dict() for entry in found],
        "against_baseline": None if baseline is None else [against(baseline, entry) for entry in found if entry is not baseline],
    }


def against(baseline: Standing, entry: Standing) -> dict[str, Any]:
    """How a layout differs from the baseline: bits a byte, paired by seed with a 95 % interval, and trainings that were solved.

    `verdict` is "better" or "worse" where recall differs, or text by more than its interval and recall does not; else "cannot tell".
    """
    text = paired(entry.text, baseline.text)
    solved = entry.solved - baseline.solved
    word = text.word if not solved else "better" if solved > 0 else "worse"
    return {
        "spec_id": entry.spec.spec_id,
        "pattern": entry.spec.pattern,
        "from": entry.role,
        "text_bits_per_byte": text.to_dict(),
        "recall_solved": solved,
        "verdict": word,
    }
