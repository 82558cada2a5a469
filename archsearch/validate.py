"""How well the cheap tiers rank layouts of *this* space: against longer trainings from several other seeds (docs/quality.md).

Layouts are drawn in strata, trained as the search trains them (T1) and several times as long from other seeds (T3, the reference).
How far the order of the one is that of the other, and what it costs to trust it, is told with an interval, beside what a second
seed of the reference reaches (no cheap tier can be expected to do better) and what parameters and chance do (it should do better).
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archsearch.errors import InputError, RunError
from archsearch.files import read_json, write_atomic
from archsearch.quality import Evaluator, QualityResult, QualitySettings, Training, narrow
from archsearch.quality.equal import copy_parameters, equal_parameters
from archsearch.quality.ranking import between_seeds, rank
from archsearch.quality.tasks import TASKS, VERSION, Task
from archsearch.search.designs import DesignSpace
from archsearch.space import Space
from archsearch.spec import ArchSpec
from operators.specs import SpecError

if TYPE_CHECKING:
    from archsearch.quality.supernet import SupernetEvent

DRAWN = 2000
"""Designs that the strata are formed of."""


@dataclass(frozen=True, kw_only=True)
class ValidateEvent:
    """A training ended: `done` of `total` are known; the rest takes about `seconds_left`."""

    done: int
    total: int
    label: str
    failed: str = ""
    seconds_left: float | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained.

    Attributes:
        layouts: the held-out layouts, all with different narrow copies.
        cheap, cheap_seed: T1, as the search trains.
        reference, seeds: T3, `longer` times as many steps, from seeds that the search does not use.
    """

    layouts: tuple[ArchSpec, ...]
    cheap: QualitySettings
    cheap_seed: int
    reference: QualitySettings
    seeds: tuple[int, ...]
    equal: bool
    tasks: tuple[Task, ...] = TASKS

    def cheap_training(self, spec: ArchSpec, task: Task) -> Training:
        return Training(spec=spec, task=task, settings=self.cheap, seed=self.cheap_seed)

    def reference_training(self, spec: ArchSpec, task: Task, seed: int) -> Training:
        return Training(spec=spec, task=task, settings=self.reference, seed=seed)

    def trainings(self) -> list[Training]:
        """All of them, the cheap ones first, so that an early stop leaves whole tiers."""
        cheap = [self.cheap_training(spec, task) for task in self.tasks for spec in self.layouts]
        return cheap + [self.reference_training(spec, task, seed) for seed in self.seeds for task in self.tasks for spec in self.layouts]


def make_plan(space: Space, *, layouts: int, seeds: int, longer: float, equal: bool, tasks: Sequence[Task] = TASKS) -> Plan:
    """Draw layouts in strata and say what is trained of them; the same for the same space and seed.

    Raises:
        InputError: the space has fewer different layouts, or parameters cannot be made equal.
    """
    settings = space.search
    cheap = QualitySettings(
        recall_steps=settings.recall_steps, text_steps=settings.text_steps, context=max(1, max(space.decode, default=4096))
    )
    reference = replace(cheap, recall_steps=round(longer * cheap.recall_steps), text_steps=round(longer * cheap.text_steps))
    first = settings.seed + 1000  # far from what searches are started with
    return Plan(
        layouts=draw(space, layouts, cheap.context, equal=equal),
        cheap=cheap,
        cheap_seed=settings.seed,
        reference=reference,
        seeds=tuple(range(first, first + seeds)),
        equal=equal,
        tasks=tuple(tasks),
    )


def draw(space: Space, count: int, context: int, *, equal: bool) -> tuple[ArchSpec, ...]:
    """Layouts in strata of the operators they use, in turn: what everybody would ask about first, then at random.

    With `equal`, their FFN widths are changed so that all narrow copies have the same number of parameters.

    Raises:
        InputError: there are too few.
    """
    designs = DesignSpace(space)
    generator = random.Random(space.search.seed)
    plain: dict[str, ArchSpec] = {}
    for label, design in designs.baselines():
        plain.setdefault(label, designs.spec(design))
    drawn = [designs.spec(designs.random(generator)) for _ in range(DRAWN)]
    strata: dict[tuple[str, ...], list[ArchSpec]] = defaultdict(list)
    seen: set[str] = set()
    chosen: list[ArchSpec] = []
    for spec in (*plain.values(), *drawn):
        try:
            identity = _identity(spec, context, equal)
        except SpecError:
            continue
        if identity in seen:
            continue
        seen.add(identity)
        if len(chosen) < min(len(plain), count // 2):
            chosen.append(spec)
        else:
            strata[tuple(sorted({str(block.operator) for block in spec.layers}))].append(spec)
    groups = sorted(strata.values(), key=lambda group: _identity(group[0], context, equal))
    while len(chosen) < count and any(groups):
        for group in groups:
            if group and len(chosen) < count:
                chosen.append(group.pop(0))
    if len(chosen) < count:
        why = f"has only {len(chosen)} layouts that the small trainings can tell apart"
        raise InputError(f"{space.name}: {why}; give --layouts {len(chosen)}, or widen the space")
    if equal:
        try:
            chosen = equal_parameters(chosen, context=context)
        except ValueError as error:
            raise InputError(f"--equal-parameters: {error}; give wider FFNs, or leave it out") from error
    return tuple(chosen)


def _identity(spec: ArchSpec, context: int, equal: bool) -> str:
    """Of the narrow copy; of its operators alone where FFNs will be changed."""
    copy = narrow(spec, vocab_size=256, tokens=128, context=context)
    if not equal:
        return copy.spec_id
    return repr([block.operator for block in copy.layers])


def train_plan(plan: Plan, evaluator: Evaluator) -> Iterator[ValidateEvent]:
    """Do what is not done yet; every result is kept as it comes, so that the same command goes on.

    Raises:
        RunError: a training failed, or a result cannot be written down.
    """
    todo = {training.key: training for training in plan.trainings()}
    began, fresh, total = time.monotonic(), 0, len(todo)
    known = sum(key in evaluator.results for key in todo)
    for done, (key, result) in enumerate(evaluator.train_all(todo.values()), 1):
        training = todo[key]
        label = f"{training.task} of {training.spec.pattern}, seed {training.seed}"
        if isinstance(result, str):
            raise RunError(f"validate: {label}: {result}")
        fresh += done > known
        left = (time.monotonic() - began) / fresh * (total - done) if fresh else None
        yield ValidateEvent(done=done, total=total, label=label, seconds_left=left)


def score_by_supernet(plan: Plan, path: Path, steps: int) -> Iterator[SupernetEvent]:
    """T2 on text: train one supernet over the layouts and keep its scores in `path`; nothing is done when they are there.

    Raises:
        RunError: `path` cannot be written.
    """
    from archsearch.quality.supernet import TextSupernet

    wanted = supernet_key(plan, steps)
    if path.exists() and read_json(path).get("key") == wanted:
        return
    context = plan.cheap.context
    supernet = TextSupernet(plan.layouts, context=context, seed=plan.cheap_seed, one_ffn=plan.equal)
    yield from supernet.train(steps)
    scores = {spec.spec_id: supernet.score(spec) for spec in plan.layouts}
    document = {"key": wanted, "steps": steps, "seconds": supernet.seconds, "paths": supernet.paths, "scores": scores}
    write_atomic(path, json.dumps(document, indent=2) + "\n")


def supernet_key(plan: Plan, steps: int) -> str:
    what = [sorted(spec.spec_id for spec in plan.layouts), steps, plan.cheap.context, plan.cheap_seed, plan.equal, VERSION]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]


# -- what came of it ----------------------------------------------------------------------------------------------------------


def document_of(plan: Plan, evaluator: Evaluator, supernet: Path, *, space_id: str) -> dict[str, Any]:
    """Everything that is known, as plain data: what `validate --json` prints and the report shows (docs/quality.md).

    Raises:
        RunError: a training is missing.
    """
    context = plan.cheap.context
    sizes = [copy_parameters(spec, context=context) for spec in plan.layouts]
    known = read_json(supernet) if supernet.exists() else None
    scores = known if known and known["key"] == supernet_key(plan, known["steps"]) else None
    return {
        "space_id": space_id,
        "layouts": [
            {"spec_id": spec.spec_id, "pattern": spec.pattern, "parameters": size, **_values(plan, evaluator, spec)}
            for spec, size in zip(plan.layouts, sizes, strict=True)
        ],
        "equal_parameters": plan.equal,
        "parameters": {"least": min(sizes), "most": max(sizes)},
        "seeds": {"cheap": plan.cheap_seed, "reference": list(plan.seeds)},
        "tasks": {task: _task(plan, evaluator, task, sizes, scores if task == "text" else None) for task in plan.tasks},
    }


def _results(evaluator: Evaluator, trainings: Iterable[Training]) -> list[QualityResult]:
    found = [evaluator.results.get(training.key) for training in trainings]
    if None in found:
        raise RunError(f"{found.count(None)} trainings of the validation are missing; the same command does them")
    return [result for result in found if result is not None]


def _values(plan: Plan, evaluator: Evaluator, spec: ArchSpec) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for task in plan.tasks:
        results = _results(evaluator, (plan.reference_training(spec, task, seed) for seed in plan.seeds))
        values[task] = [cost(result, plan.reference) for result in results]
        values[f"{task}_status"] = [result.status for result in results]
    return values


def cost(result: QualityResult, settings: QualitySettings) -> float:
    """Lower is better. Text: bits a byte. Synthetic tasks: steps until it is solved, and all of them when it was not: unresolved
    layouts are not known to be bad, they are equal."""
    if result.task == "text":
        return result.value
    return float(result.steps if result.status == "resolved" else settings.recall_steps)


def _task(plan: Plan, evaluator: Evaluator, task: Task, sizes: Sequence[int], supernet: dict[str, Any] | None) -> dict[str, Any]:
    layouts = plan.layouts
    by_seed = [_results(evaluator, (plan.reference_training(spec, task, seed) for spec in layouts)) for seed in plan.seeds]
    costs = [[cost(result, plan.reference) for result in results] for results in by_seed]
    reference = [float(sum(values) / len(values)) for values in zip(*costs, strict=True)]
    cheap = _results(evaluator, (plan.cheap_training(spec, task) for spec in layouts))
    seconds = sum(result.seconds for result in cheap)
    steps = plan.cheap.steps(task)

    def tier(name: str, what: str, scores: Sequence[float], cpu_s: float) -> dict[str, Any]:
        return {"tier": name, "what": what, "cpu_s": round(cpu_s, 1), **rank(scores, reference).to_dict()}

    tiers = []
    for share in (0.25, 0.5, 1.0):
        name, what = ("T1", f"{steps} steps") if share == 1 else (f"T1 at {share:.0%}", f"stopped at {share:.0%} of {steps} steps")
        tiers.append(tier(name, what, [at_share(result, share, steps) for result in cheap], share * seconds))
    if supernet is not None:
        what = f"supernet, {supernet['steps']} steps"
        tiers.append(tier("T2", what, [supernet["scores"][spec.spec_id] for spec in layouts], supernet["seconds"]))
    spent = sum(result.seconds for results in by_seed for result in results)
    return {
        "unit": "bits per byte" if task == "text" else "steps to solve",
        "reference": {
            "steps": plan.reference.steps(task),
            "tokens": max(result.tokens for results in by_seed for result in results),
            "best": min(reference),
            "worst": max(reference),
            "unresolved": sum(all(row[i].status == "unresolved" for row in by_seed) for i in range(len(layouts))),
            "cpu_s": round(spent, 1),
        },
        "tiers": tiers,
        "ceiling": between_seeds(costs).to_dict() if len(costs) > 1 else None,
        "fewest_parameters": None if plan.equal else rank(sizes, reference).to_dict(),
        "most_parameters": None if plan.equal else rank([-size for size in sizes], reference).to_dict(),
        "random": rank([0.0] * len(layouts), reference).to_dict(),
    }


def at_share(result: QualityResult, share: float, steps: int) -> float:
    """What was known of a training after a share of its steps. Synthetic tasks: solved ones by their steps, before all others, which are
    in the order of their accuracy."""
    reached = [(step, value) for step, value in result.curve if step <= max(share * steps, result.curve[0][0])]
    step, value = reached[-1]
    if result.task == "text":
        return value
    solved = result.status == "resolved" and step == result.steps
    return step / steps - 2 if solved else -value
