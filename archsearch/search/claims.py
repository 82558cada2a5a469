"""Who has which layout, where several searches write into one book; and what is left behind by those whose process is gone.

Trials are numbered in the order in which they are written: Optuna's databases lock the study meanwhile. So whoever asks for a layout
writes its trial in one transaction (`book.ask`), looks for an earlier one with the same layout, and leaves it to that one. Of two that
ask at the same moment the later sees the earlier, and nothing is trained twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from archsearch.quality import Evaluator
from archsearch.search.owner import is_gone, owner
from archsearch.spec import ArchSpec

if TYPE_CHECKING:
    import optuna

NAMING_S = 60.0
"""By then, a trial that was put into the queue by hand and taken up names its process."""

CUT_OFF = "cut off; its layout is tried again"
CUT_OFF_TWICE = "its process ended while it was trained, for the second time (killed, most often because memory ran out)"


@dataclass(frozen=True, kw_only=True)
class CutOff:
    """A trial whose process is gone; `again` unless it was itself the second try."""

    number: int
    spec: ArchSpec
    again: bool


@dataclass(frozen=True, kw_only=True)
class GivenUp:
    """A layout that was to be trained and is not, by its last trial.

    Attributes:
        twice: its process ended while it was trained, and did so again when it was tried once more: most likely the layout is what ends
            it. It is left alone until somebody asks for it; what failed for any other reason is tried again by the next search.
    """

    number: int
    spec: ArchSpec
    reason: str
    twice: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {"trial": self.number, "spec_id": self.spec.spec_id, "pattern": self.spec.pattern, "reason": self.reason}


def running_elsewhere(study: optuna.Study) -> dict[str, ArchSpec]:
    """Layouts that another living search trains now, by their ids."""
    from optuna.trial import TrialState

    found = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if "spec" in trial.user_attrs and _elsewhere(trial):
            spec = ArchSpec.from_dict(json.loads(trial.user_attrs["spec"]))
            found[spec.spec_id] = spec
    return found


def asked_first(study: optuna.Study, number: int, spec: ArchSpec, evaluator: Evaluator, *, stopped: bool = True) -> int | None:
    """An earlier trial that has this layout, so that number `number` is not to train it; None where there is none.

    Args:
        stopped: whether one that was begun and stopped by successive halving has it; not where such a layout is taken up after all.
    """
    from optuna.trial import TrialState

    states = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
    for trial in study.get_trials(deepcopy=False, states=states):
        if trial.number >= number:
            return None
        if _spec_id(trial) != spec.spec_id:
            continue
        match trial.state:
            case TrialState.RUNNING:
                has = _elsewhere(trial)
            case TrialState.COMPLETE:
                has = evaluator.cached(spec) is not None  # else what was found is lost
            case _:
                has = stopped and trial.user_attrs.get("stopped", False)
        if has:
            return trial.number
    return None


def _elsewhere(trial: optuna.trial.FrozenTrial) -> bool:
    who = trial.user_attrs.get("owner")
    return who != owner() and not is_gone(who)


def _spec_id(trial: optuna.trial.FrozenTrial) -> str | None:
    attributes = trial.user_attrs
    if "spec_id" not in attributes and "spec" in attributes:  # of an earlier version
        return ArchSpec.from_dict(json.loads(attributes["spec"])).spec_id
    return attributes.get("spec_id")


def fail_cut_off(study: optuna.Study) -> Iterator[CutOff]:
    """Fail the trials whose process is gone. Of several searches that begin at the same moment, one takes each of them up."""
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        attributes = trial.user_attrs
        if not is_gone(attributes.get("owner")) or ("owner" not in attributes and _just_begun(trial)):
            continue
        again = "retry_of" not in attributes or attributes.get("interrupted", False)
        try:
            if "spec" in attributes:
                study._storage.set_trial_user_attr(trial._trial_id, "reason", CUT_OFF if again else CUT_OFF_TWICE)
            study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
        except UpdateFinishedTrialError:
            continue
        if "spec" in attributes:
            spec = ArchSpec.from_dict(json.loads(attributes["spec"]))
            yield CutOff(number=trial.number, spec=spec, again=again)


def given_up(study: optuna.Study) -> list[GivenUp]:
    """Layouts that failed and were not trained since, nor are they being trained, in the order of their trials."""
    from optuna.trial import TrialState

    found: dict[str, GivenUp] = {}
    for trial in study.get_trials(deepcopy=False):
        attributes = trial.user_attrs
        key = _spec_id(trial)
        if key is None:
            continue
        reason = attributes.get("reason", "")
        if trial.state == TrialState.FAIL and reason not in ("", CUT_OFF):  # without one: somebody set it free
            spec = ArchSpec.from_dict(json.loads(attributes["spec"]))
            found[key] = GivenUp(number=trial.number, spec=spec, reason=reason, twice=reason == CUT_OFF_TWICE)
        elif trial.state == TrialState.COMPLETE or attributes.get("stopped") or (trial.state == TrialState.RUNNING and _elsewhere(trial)):
            found.pop(key, None)
    return list(found.values())


def _just_begun(trial: optuna.trial.FrozenTrial) -> bool:
    """Whether a trial that names no process may be on its way to do so: one that somebody put into the queue by hand, a moment ago."""
    began = trial.datetime_start
    return began is not None and (datetime.now() - began).total_seconds() < NAMING_S
