"""The search as an Optuna sampler, for whoever writes `study.optimize` himself.

sampler = LayoutSampler(space, table, budgets=[parse_budget("decode_ms@4096<=20")])
study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)

def objective(trial):
    spec = sampler.suggest(trial)
    return my_quality(spec), table.cost(spec, parse_metric("decode_ms@4096")).value

study.optimize(objective, n_trials=50)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from archsearch.budgets import Budget
from archsearch.errors import RunError
from archsearch.search.feasible import CostModel, primary_latency, search_metrics
from archsearch.search.layouts import Layouts
from archsearch.search.programme import nearest
from archsearch.search.proposer import Proposer
from archsearch.search.table import CostArrays
from archsearch.space import Space
from archsearch.spec import ArchSpec
from operators.kinds import operator_for

if TYPE_CHECKING:
    from archsearch.predict import CostTable

STARTUP = 10
PROPOSED = "archsearch:proposed"
"""Where a running trial's layout is kept, so that others do not propose it too."""


class LayoutSampler(BaseSampler):
    """Proposes layouts of a space that keep the budgets, learning one of the study's objectives; what layouts cost it knows.

    Args:
        budgets: hard limits; every proposal keeps them.
        quality: which of the study's objectives is to be learned. The others are taken for costs, which the table predicts.
        startup: so many trials are spread evenly over latency before the model is listened to.

    Raises:
        RunError: no layout keeps the budgets.
        MissingMeasurement: the table lacks something that the space or the budgets need.
    """

    def __init__(
        self, space: Space, table: CostTable, *, budgets: Sequence[Budget] = (), quality: int = 0, startup: int = STARTUP, seed: int = 0
    ) -> None:
        self.space, self.quality, self.startup, self._seed = space, quality, startup, seed
        model = CostModel(space, table, search_metrics(table, budgets), budgets)
        self.latency = primary_latency(table, budgets)
        self.arrays = CostArrays(model, (self.latency,))
        self._nearest = nearest(model)
        reason = model.costs(self._nearest).reason(budgets)
        if reason is not None:
            raise RunError(f"no layout of the space keeps the budgets; the nearest has {reason}; loosen them, or widen the space")
        self._operators = _distinct([operator_for(operator).label(operator) for operator in space.operators])
        self._widths = [ffn.intermediate_size for ffn in space.ffns]
        self.reseed_rng()

    def reseed_rng(self) -> None:
        self.proposer = Proposer(self.arrays, self.latency, seed=self._seed)
        self._random = RandomSampler(seed=self._seed)
        self._first: Layouts | None = None

    # -- parameters ------------------------------------------------------------------------------------------------------

    def distributions(self) -> dict[str, BaseDistribution]:
        """A choice of operator and FFN for each layer of the deepest layout; a shallower one leaves the last ones unused."""
        choices: dict[str, BaseDistribution] = {
            "hidden_size": CategoricalDistribution(self.space.hidden_sizes),
            "layers": CategoricalDistribution(self.space.depths),
        }
        for i in range(max(self.space.depths)):
            choices[f"operator.{i}"] = CategoricalDistribution(self._operators)
            choices[f"ffn.{i}"] = CategoricalDistribution(self._widths)
        return choices

    def suggest(self, trial: optuna.Trial) -> ArchSpec:
        """The layout of a trial; also under other samplers."""
        hidden_size = trial.suggest_categorical("hidden_size", self.space.hidden_sizes)
        depth = trial.suggest_categorical("layers", self.space.depths)
        params: dict[str, Any] = {"hidden_size": hidden_size, "layers": depth}
        for i in range(depth):
            params[f"operator.{i}"] = trial.suggest_categorical(f"operator.{i}", self._operators)
            params[f"ffn.{i}"] = trial.suggest_categorical(f"ffn.{i}", self._widths)
        return self._spec(params)

    def _spec(self, params: dict[str, Any]) -> ArchSpec:
        operators, widths, blocks = self._operators, self._widths, self.space.blocks
        layers = [
            blocks[operators.index(params[f"operator.{i}"]) * len(widths) + widths.index(params[f"ffn.{i}"])]
            for i in range(params["layers"])
        ]
        return self.space.spec(layers, hidden_size=params["hidden_size"])

    def _params(self, spec: ArchSpec) -> dict[str, Any]:
        params: dict[str, Any] = {"hidden_size": spec.hidden_size, "layers": len(spec.layers)}
        for i, block in enumerate(spec.layers):
            params[f"operator.{i}"] = self._operators[self.space.operators.index(block.operator)]
            params[f"ffn.{i}"] = block.ffn.intermediate_size
        return params

    # -- what Optuna asks ------------------------------------------------------------------------------------------------

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.distributions()

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        trained, quality, seen = self._known(study)
        proposed = self._spread(len(seen)) if len(trained) < self.startup else None
        if proposed is None or self.arrays.codec.keys(proposed)[0] in seen:
            proposed = self.proposer.propose(trained, quality, seen)
        # Where every layout that is found was tried: once more the one nearest to the budgets.
        params = self._params(self._nearest if proposed is None else self.arrays.codec.decode(proposed)[0])
        study._storage.set_trial_system_attr(trial._trial_id, PROPOSED, params)
        return params

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _known(self, study: optuna.Study) -> tuple[Layouts, np.ndarray, set[bytes]]:
        """Layouts that were trained, their quality, and the keys of all that were proposed."""
        specs, values, seen = [], [], []
        sign = 1.0 if study.directions[self.quality] == StudyDirection.MAXIMIZE else -1.0
        for trial in study.get_trials(deepcopy=False):
            # What a running trial was told may not be among its parameters yet.
            params = trial.params if trial.state != TrialState.RUNNING else trial.system_attrs.get(PROPOSED, trial.params)
            try:
                spec = self._spec(params)
            except (KeyError, ValueError):
                continue  # a trial of another kind in the same study
            seen.append(spec)
            if trial.state == TrialState.COMPLETE:
                specs.append(spec)
                values.append(sign * trial.values[self.quality])
        codec = self.arrays.codec
        return codec.encode(specs), np.array(values), set(codec.keys(codec.encode(seen)))

    def _spread(self, number: int) -> Layouts | None:
        """The first layouts: both sorts of structure, spread over latency, largest first in each place."""
        if self._first is None:
            none = self.arrays.codec.encode([])
            front, _ = self.proposer.front(none, np.array([]), evaluations=4000)
            even = np.linspace(0, len(front) - 1, min(len(front), self.startup)).round().astype(int)
            self._first = front.layouts[self.proposer.rng.permutation(even)]
        return self._first[number : number + 1] if number < len(self._first) else None


def _distinct(labels: Sequence[str]) -> list[str]:
    """Labels, numbered where two operators share one."""
    return [label if labels.count(label) == 1 else f"{label} #{labels[:i].count(label) + 1}" for i, label in enumerate(labels)]
