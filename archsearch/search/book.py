"""The book: an Optuna study with every layout that was asked for, trained, refused or failed, each with its reason.

A trial holds the design (ten parameters that say the gist of a layout, for dashboards and parameter importances) and, as user
attributes, the layout itself, its costs, where it came from and what came of it. Anyone may add layouts to the queue through
Optuna (`study.enqueue_trial`); they are checked against the budgets like any other.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from archsearch.quality import LayoutQuality
from archsearch.search.designs import DesignSpace
from archsearch.search.feasible import ROUNDING, Costs
from archsearch.search.owner import owner
from archsearch.search.seeds import InnerDesign
from archsearch.search.storage import experimental_is_known, open_storage, storage_errors
from archsearch.spec import ArchSpec

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

DIRECTIONS: list[Literal["maximize", "minimize"]] = ["maximize", "minimize", "minimize", "minimize"]
RECALL, TEXT = "recall", "text_bits_per_byte"
BY_HAND = "enqueued by hand"


def open_study(url: str, name: str, seed: int, attributes: Mapping[str, Any]) -> optuna.Study:
    """The study of a space, made if there is none; what changed since is told and noted.

    Raises:
        StoreError: see `open_storage`.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(url)
    with storage_errors(url, opening=True):
        study = optuna.create_study(study_name=name, storage=storage, directions=DIRECTIONS, load_if_exists=True)
        # For what others put into the queue incompletely; all that we ask for is proposed in full.
        study.sampler = optuna.samplers.RandomSampler(seed=seed)
        names = attributes.get("objectives")
        if names and study.metric_names != names:
            with experimental_is_known():
                study.set_metric_names(names)
        for key, value in attributes.items():
            if key in study.user_attrs and study.user_attrs[key] != value:
                log.info("%s: %s was %s and is %s; costs are predicted anew", name, key, study.user_attrs[key], value)
            study.set_user_attr(key, value)
    return study


def existing_study(url: str, name: str) -> optuna.Study | None:
    """The study of a space; None where none was begun.

    Raises:
        StoreError: see `open_storage`.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return None
    storage = open_storage(url)
    with storage_errors(url, opening=True):
        try:
            return optuna.load_study(study_name=name, storage=storage)
        except KeyError:
            return None


def trained(study: optuna.Study) -> Iterator[tuple[int, ArchSpec]]:
    """Layouts whose trainings are finished, with their trials."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if "spec" in trial.user_attrs:
            yield trial.number, ArchSpec.from_dict(json.loads(trial.user_attrs["spec"]))


def refused(study: optuna.Study) -> set[tuple[str, str]]:
    """(layout, reason) of what was refused before: it is not written down twice."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
    return {(trial.user_attrs.get("spec", ""), trial.user_attrs.get("reason", "")) for trial in trials}


def stopped(study: optuna.Study) -> Iterator[tuple[int, ArchSpec]]:
    """Layouts that were begun and stopped by successive halving, with their trials."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.PRUNED,)):
        if trial.user_attrs.get("stopped"):
            yield trial.number, ArchSpec.from_dict(json.loads(trial.user_attrs["spec"]))


@contextlib.contextmanager
def marked_when_interrupted(trials: Iterable[optuna.Trial]) -> Iterator[None]:
    """Ctrl-C, or a caller that has enough, is no fault of what is trained then: it does not count against its layout."""
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit):
        for trial in trials:
            with contextlib.suppress(Exception):  # of the storage, or because the trial is told: what matters is the way out
                trial.set_user_attr("interrupted", True)
        raise


def ask(study: optuna.Study, designs: DesignSpace, entry: InnerDesign) -> tuple[optuna.Trial, ArchSpec]:
    """A trial for a layout.

    The layout itself is an attribute: of one that is in no pattern, the parameters tell only the gist. All of it is written in one
    transaction, its process included: another search sees the whole trial or none, and never takes it for one that was cut off.
    """
    import optuna

    spec = entry.spec
    attributes: dict[str, Any] = {"spec": spec.to_json(), "spec_id": spec.spec_id, "source": entry.label or "inner pass", "owner": owner()}
    if entry.retry_of is not None:
        attributes["retry_of"] = entry.retry_of
    whole = optuna.trial.create_trial(
        state=optuna.trial.TrialState.RUNNING,
        params=entry.design.to_dict(),
        distributions=designs.distributions(),
        user_attrs=attributes,
    )
    return optuna.Trial(study, study._storage.create_new_trial(study._study_id, template_trial=whole)), spec


def asked_by_hand(study: optuna.Study, designs: DesignSpace) -> tuple[optuna.Trial, ArchSpec] | None:
    """The next layout that somebody has put into the study's queue, unless another search takes it out; None where there is none."""
    import optuna
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    for waiting in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        try:
            if not study._storage.set_trial_state_values(waiting._trial_id, state=TrialState.RUNNING):
                continue
        except UpdateFinishedTrialError:
            continue
        trial = optuna.Trial(study, waiting._trial_id)
        trial.set_user_attr("owner", owner())
        for name, distribution in designs.distributions().items():
            trial._suggest(name, distribution)
        if "spec" in trial.user_attrs:
            return trial, ArchSpec.from_dict(json.loads(trial.user_attrs["spec"]))
        spec = designs.spec(designs.design(trial.params))
        for key, value in {"spec": spec.to_json(), "spec_id": spec.spec_id, "source": BY_HAND}.items():
            trial.set_user_attr(key, value)
        return trial, spec
    return None


def write_costs(trial: optuna.Trial, costs: Costs) -> None:
    """Costs, and constraints: positive where a budget is missed."""
    excess = {name: value if value > ROUNDING else min(value, 0.0) for name, value in costs.excess.items()}
    for name, value in excess.items():
        trial.set_constraint(name, value)
    # optuna-dashboard knows constraints only as Optuna had them before version 5, as one list.
    trial.storage.set_trial_system_attr(trial._trial_id, "constraints", list(excess.values()))
    trial.set_user_attr("costs", costs.values)


def refuse(study: optuna.Study, trial: optuna.Trial, reason: str) -> None:
    """Not trained, and why."""
    import optuna

    trial.set_user_attr("reason", reason)
    study.tell(trial, state=optuna.trial.TrialState.PRUNED)


def stop(study: optuna.Study, trial: optuna.Trial, quality: LayoutQuality, reason: str) -> None:
    """Not trained to the end, and why; what was known by then."""
    for name, value in quality.to_dict().items():
        trial.set_user_attr(name, value)
    trial.set_user_attr("stopped", True)
    refuse(study, trial, reason)


def fail(study: optuna.Study, trial: optuna.Trial, reason: str) -> None:
    """Its training failed, and why."""
    import optuna

    trial.set_user_attr("reason", reason)
    study.tell(trial, state=optuna.trial.TrialState.FAIL)


def finish(study: optuna.Study, trial: optuna.Trial, quality: LayoutQuality, latency: float, memory: float) -> None:
    """What came of a training."""
    for name, value in quality.to_dict().items():
        trial.set_user_attr(name, value)
    study.tell(trial, [quality.ability, quality.text.value, latency, memory])
