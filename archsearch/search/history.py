"""Every trial of a study as a table, also those that were refused, failed or cut off, with the reason."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from archsearch.errors import RunError
from archsearch.search.storage import open_storage, storage_errors
from archsearch.spec import ArchSpec

if TYPE_CHECKING:
    import pandas as pd

QUALITY = ("recall_accuracy", "recall_status", "recall_steps", "text_bits_per_byte", "seed", "tokens")
STATES = {"COMPLETE": "trained", "PRUNED": "refused", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}


def trials_frame(url: str, study_name: str) -> pd.DataFrame:
    """One row a trial: `trial`, `state` (trained, stopped, refused, failed, running), `source` (a baseline's label, "inner pass" or
    "sampler"), `reason`, `spec_id`, `pattern`, then the costs as they were predicted at the time, and the quality (`QUALITY`).
    What there is not is missing.

    Raises:
        StoreError: the storage cannot be read.
        RunError: it holds no study of that name.
    """
    import optuna
    import pandas as pd

    storage = open_storage(url)
    with storage_errors(url):
        try:
            study = optuna.load_study(study_name=study_name, storage=storage)
        except KeyError as error:
            raise RunError(f"{study_name}: no search of that space was started here; run `archsearch search`") from error
        trials = study.get_trials(deepcopy=False)
    rows = []
    for trial in trials:
        attributes = trial.user_attrs
        spec = ArchSpec.from_dict(json.loads(attributes["spec"])) if "spec" in attributes else None
        rows.append(
            {
                "trial": trial.number,
                "state": "stopped" if attributes.get("stopped") else STATES[trial.state.name],
                "source": attributes.get("source"),
                "reason": attributes.get("reason"),
                "spec_id": spec.spec_id if spec else None,
                "pattern": spec.pattern if spec else None,
                **attributes.get("costs", {}),
                **{name: attributes.get(name) for name in QUALITY},
            }
        )
    return pd.DataFrame(rows)
