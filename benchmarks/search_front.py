"""How much of the front each search finds, at equal evaluations and at equal CPU time.

    python benchmarks/search_front.py [--layers 16 32 --seeds 3 --cpu 10 --certify --json FILE]

Hypervolume (moocore) of quality against decode latency, within three hard budgets, as a share of a reference front: all that several long
runs of the inner search found. The methods take turns in random order. Ours and pymoo's NSGA-II change one block a layer and evaluate
whole populations at once; Optuna's samplers propose designs in counts and a pattern, one at a time, which suits them best (docs/search.md).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import optuna
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.problem import Problem as PymooProblem
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from search_problem import DECODE, Quality, additive_quality, arrays_of, space_of

from archsearch.search.certificate import additive, certify
from archsearch.search.designs import DesignSpace
from archsearch.search.inner import InnerSearch
from archsearch.search.layouts import Layouts
from archsearch.search.table import CostArrays

EVALUATIONS = (300, 1000, 3000, 10_000, 30_000)
LEAST_EVALUATIONS = 1000
"""A run goes on beyond its CPU seconds until so many evaluations, so that slow samplers can be compared at equal evaluations too."""
REFERENCE_RUNS = 4
FLOOR = -3.0
"""Quality from which hypervolume is counted: below that of any feasible layout on a front."""


class Problem:
    """Layouts to latency and quality; keeps what was found and when."""

    def __init__(self, layers: int) -> None:
        self.arrays: CostArrays = arrays_of(space_of(layers))
        self.quality = Quality(self.arrays)
        self.limit = next(budget.limit for budget in self.arrays.model.budgets if budget.metric == DECODE)
        self.column = self.arrays.metrics.index(DECODE)

    def points(self, layouts: Layouts) -> tuple[np.ndarray, np.ndarray]:
        """(latency over its budget, -quality) of each, (n, 2), and whether it keeps the budgets."""
        found = self.arrays.evaluate(layouts)
        return np.column_stack([found.values[:, self.column] / self.limit, -self.quality(layouts)]), found.feasible

    @staticmethod
    def hypervolume(points: np.ndarray) -> float:
        return float(moocore.hypervolume(points, ref=[1.0, -FLOOR])) if len(points) else 0.0


Step = tuple[int, np.ndarray]
"""Evaluations so far, and the feasible points among the new ones."""
Trace = list[tuple[float, int, float]]
"""(CPU seconds, evaluations, hypervolume), as they grow."""


def ours(problem: Problem, seed: int) -> Iterator[Step]:
    search = InnerSearch(problem.arrays, problem.quality, latency=DECODE, seed=seed)
    while True:
        search.step()
        front = search.front()
        yield search.evaluations, np.column_stack([front.latency / problem.limit, -front.quality])


def pymoo_nsga2(problem: Problem, seed: int) -> Iterator[Step]:
    """Integers: hidden size, depth, a block a layer; populations of 100."""
    arrays, space = problem.arrays, problem.arrays.model.space
    codec = arrays.codec
    found: list[np.ndarray] = []

    class Layered(PymooProblem):  # type: ignore[misc]
        def __init__(self) -> None:
            upper = [len(space.hidden_sizes) - 1, len(space.depths) - 1, *[codec.blocks - 1] * codec.deepest]
            super().__init__(n_var=len(upper), n_obj=2, n_ieq_constr=len(arrays.model.budgets), xl=0, xu=np.array(upper), vtype=int)

        def _evaluate(self, x: np.ndarray, out: dict[str, Any], *_: Any, **__: Any) -> None:
            x = x.astype(np.int64)
            depth = np.array(space.depths)[x[:, 1]]
            layouts = Layouts(x[:, 0], np.where(np.arange(codec.deepest) < depth[:, None], x[:, 2:], codec.blocks))
            points, feasible = problem.points(layouts)
            found.append(points[feasible])
            out["F"], out["G"] = points, arrays.evaluate(layouts).excess

    algorithm = NSGA2(
        pop_size=100,
        sampling=IntegerRandomSampling(),
        crossover=SBX(prob=0.9, eta=3.0, vtype=float, repair=RoundingRepair()),
        mutation=PM(eta=3.0, vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    algorithm.setup(Layered(), termination=("n_gen", 10**9), seed=seed, verbose=False)
    while True:
        algorithm.next()
        new, found[:] = np.concatenate(found), []
        yield algorithm.evaluator.n_eval, new


def optuna_search(sampler: Callable[[int], Any]) -> Callable[[Problem, int], Iterator[Step]]:
    def search(problem: Problem, seed: int) -> Iterator[Step]:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler(seed))
        designs = DesignSpace(problem.arrays.model.space)
        distributions = designs.distributions()
        number = 0
        while True:
            trial = study.ask(distributions)
            layouts = problem.arrays.codec.encode([designs.spec(designs.design(trial.params))])
            points, feasible = problem.points(layouts)
            for budget, excess in zip(problem.arrays.model.budgets, problem.arrays.evaluate(layouts).excess[0], strict=True):
                trial.set_constraint(str(budget.metric), float(excess))
            study.tell(trial, points[0].tolist())
            number += 1
            yield number, points[feasible]

    return search


def _tpe(seed: int) -> Any:
    return optuna.samplers.TPESampler(seed=seed)


def _nsga2(seed: int) -> Any:
    return optuna.samplers.NSGAIISampler(population_size=50, seed=seed)


METHODS: dict[str, Callable[[Problem, int], Iterator[Step]]] = {
    "inner search": ours,
    "pymoo NSGA-II": pymoo_nsga2,
    "Optuna NSGA-II": optuna_search(_nsga2),
    "Optuna TPE": optuna_search(_tpe),
}


def traced(problem: Problem, name: str, seed: int, cpu_s: float, longest_s: float) -> Trace:
    """(CPU seconds, evaluations, hypervolume) after every step of about a tenth more; what the clock shows is without our bookkeeping."""
    kept, pending = np.empty((0, 2)), []
    trace: Trace = []
    used, last, next_look = 0.0, time.process_time(), 0.0
    for evaluations, points in METHODS[name](problem, seed):
        used += time.process_time() - last
        pending.append(points)
        if used >= next_look or used > cpu_s or any(evaluations <= mark < evaluations + 200 for mark in EVALUATIONS):
            kept = moocore.filter_dominated(np.concatenate([kept, *pending])) if any(map(len, pending)) or len(kept) else kept
            pending = []
            trace.append((used, evaluations, problem.hypervolume(kept)))
            next_look = max(0.02, used * 1.05)
        if used > cpu_s and (evaluations >= LEAST_EVALUATIONS or used > longest_s):
            return trace
        last = time.process_time()
    return trace


def reference(problem: Problem, cpu_s: float) -> tuple[float, list[float]]:
    """Hypervolume of everything that several long runs found, and that of each."""
    fronts = []
    for run in range(REFERENCE_RUNS):
        search = InnerSearch(problem.arrays, problem.quality, latency=DECODE, cells=1000, seed=1000 + run)
        front = search.run(cpu_seconds=cpu_s)
        fronts.append(np.column_stack([front.latency / problem.limit, -front.quality]))
    return problem.hypervolume(np.concatenate(fronts)), [problem.hypervolume(front) for front in fronts]


def at(trace: Trace, column: int, mark: float) -> float | None:
    """Hypervolume when that much was spent; None when the run ended before."""
    reached = [entry[2] for entry in trace if entry[column] <= mark]
    return reached[-1] if reached and trace[-1][column] >= mark * 0.999 else None


def table(title: str, column: int, marks: Sequence[float], shares: dict[str, list[Trace]]) -> None:
    """Medians over seeds; a dash where a run did not get so far."""
    print(f"\n{title:16}" + "".join(f"{mark:>10g}" for mark in marks))
    for name, traces in shares.items():
        cells = []
        for values in ([at(trace, column, mark) for trace in traces] for mark in marks):
            known = [value for value in values if value is not None]
            cells.append(f"{100 * float(np.median(known)):9.2f}%" if len(known) == len(values) else f"{'-':>10}")
        print(f"{name:16}" + "".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cpu", type=float, default=10.0, help="CPU seconds of each run")
    parser.add_argument(
        "--longest", type=float, default=60.0, help=f"CPU seconds at most for those with fewer than {LEAST_EVALUATIONS} evaluations"
    )
    parser.add_argument("--reference-cpu", type=float, default=20.0, help=f"CPU seconds of each of the {REFERENCE_RUNS} reference runs")
    parser.add_argument("--certify", action="store_true", help="with an additive quality, bound what is left (HiGHS)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    document: dict[str, Any] = {}
    for layers in options.layers:
        problem = Problem(layers)
        budgets = ", ".join(map(str, problem.arrays.model.budgets))
        sample = problem.arrays.evaluate(problem.arrays.codec.random(4000, np.random.default_rng(1)))
        print(f"\n== {layers} layers: {budgets}; {sample.feasible.mean():.0%} of random layouts keep them")
        whole, each = reference(problem, options.reference_cpu)
        shown = ", ".join(f"{hv / whole:.5f}" for hv in each)
        print(f"reference: {REFERENCE_RUNS} runs of {options.reference_cpu:g} CPU s, each {shown} of all", flush=True)
        traces: dict[str, list[Trace]] = {name: [] for name in METHODS}
        for seed in range(options.seeds):
            names = list(METHODS)
            random.Random(seed).shuffle(names)
            for name in names:
                traces[name].append(traced(problem, name, seed, options.cpu, options.longest))
                print(".", end="", flush=True, file=sys.stderr)
        print(file=sys.stderr)
        seconds = [mark for mark in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60) if mark <= options.cpu]
        shares = {name: [[(t, n, hv / whole) for t, n, hv in trace] for trace in found] for name, found in traces.items()}
        table("evaluations", 1, list(EVALUATIONS), shares)
        table("CPU seconds", 0, seconds, shares)
        to_99 = [next((t for t, _, share in trace if share >= 0.99), None) for trace in shares["inner search"]]
        print("99 % after", ", ".join("not" if t is None else f"{t:.2f}" for t in to_99), "CPU s")
        document[str(layers)] = {"reference": each, "traces": shares, "cpu_s_to_99": to_99}
        if options.certify:
            document[str(layers)]["certificate"] = certified(problem)
    if options.json:
        options.json.write_text(json.dumps(document))


def certified(problem: Problem) -> dict[str, Any]:
    """With a quality that adds up over layers: what the inner search found, beside bounds that no layout exceeds."""
    arrays = problem.arrays
    worth = additive_quality(arrays)
    space = arrays.model.space
    search = InnerSearch(arrays, additive(worth, None, space.depths), latency=DECODE, cells=400, seed=0)
    front = search.run(cpu_seconds=5)
    began = time.process_time()
    limit = next(budget for budget in arrays.model.budgets if budget.metric == DECODE)
    found = certify(arrays.model, front, latency=limit, worth=worth)
    spent = time.process_time() - began
    print(f"additive quality: at {len(found.points)} latencies at most {found.gaps.max():.2%} is left (HiGHS, {spent:.1f} CPU s)")
    return found.to_dict()


if __name__ == "__main__":
    main()
