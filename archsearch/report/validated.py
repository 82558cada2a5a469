"""Rows of what `archsearch validate` found: how far the small trainings can be trusted on this space."""

from __future__ import annotations

from typing import Any

from archsearch.errors import RunError
from archsearch.report.files import RunFiles
from reports.rows import QualityCheck


def checks(run: RunFiles) -> tuple[QualityCheck, ...]:
    """Each tier, then what it is to be compared with.

    Raises:
        RunError: the file is damaged.
    """
    found = run.validation
    if found is None:
        return ()
    try:
        return tuple(row for task, entry in found["tasks"].items() for row in _rows(task, entry))
    except (KeyError, TypeError) as error:
        path = run.run_dir / "validation.json"
        raise RunError(f"{path}: not a validation; remove it, and `archsearch validate` makes it anew") from error


def _rows(task: str, entry: dict[str, Any]) -> list[QualityCheck]:
    subject = f"{task}, {entry['unit']}"

    def row(judge: str, ranking: dict[str, Any], **more: Any) -> QualityCheck:
        values = {name: ranking[name] for name in ("tau", "low", "high", "regret_1", "regret_3")}
        return QualityCheck(subject=subject, judge=judge, **values, **more)

    rows = [row(f"{tier['tier']}: {tier['what']}", tier, cpu_s=tier["cpu_s"], verdict=tier["verdict"]) for tier in entry["tiers"]]
    compared = {"another seed of the reference": "ceiling", "most parameters first": "most_parameters", "chance": "random"}
    return rows + [row(name, entry[key]) for name, key in compared.items() if entry[key]]


def note(run: RunFiles) -> str:
    found = run.validation
    if found is None:
        return ""
    steps = " and ".join(f"{entry['reference']['steps']:,} steps on {task}" for task, entry in found["tasks"].items())
    equal = "equal" if found["equal_parameters"] else "unequal"
    seeds = len(found["seeds"]["reference"])
    return f"{len(found['layouts'])} layouts with {equal} parameters, drawn in strata; the reference is {steps}, {seeds} seeds each."


def advice(run: RunFiles) -> tuple[str, ...]:
    """What to do where the quality was never tested on this space."""
    if run.search is None or run.validation is not None:
        return ()
    how = "`archsearch validate space.toml --run RUN` says how far it can be trusted"
    return (f"Quality is unvalidated: whether the small trainings rank layouts of this space as longer ones would is not known; {how}.",)
