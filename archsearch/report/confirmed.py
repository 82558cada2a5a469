"""Rows of what `archsearch confirm` found: the search's layouts, random ones and the baseline, seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import mean
from typing import Any

import numpy as np

from archsearch.errors import RunError
from archsearch.report.files import RunFiles
from reports.confirmed_rows import Beside, Confirmed, ConfirmedRow, Contest


def confirmed(run: RunFiles) -> Confirmed | None:
    """The contest at 64 channels, then each larger width.

    Raises:
        RunError: the file is damaged.
    """
    found = run.confirmation
    if found is None:
        return None
    try:
        return _confirmed(found)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        path = run.run_dir / "confirmation.json"
        raise RunError(f"{path}: not a confirmation; remove it, and `archsearch confirm` makes it anew") from error


def _confirmed(found: Mapping[str, Any]) -> Confirmed:
    standings, seeds = found["standings"], len(found["seeds"])
    steps = f"64-channel copies, {found['recall_steps']:,} steps of each synthetic task, {found['text_steps']:,} of text"
    synthetic = (len(found["tasks"]) - 1) * seeds
    limits = f", within {', '.join(found['budgets'])}" if found.get("budgets") else ""
    note = f"{len(standings)} layouts from {seeds} new seed{'s' if seeds > 1 else ''}: {steps}{limits}"
    contests = [Contest(label="64 channels", note=note, rows=_rows(found, standings, synthetic))]
    scale = found.get("scale") or {}
    for at in scale.get("widths", ()):
        what = f"{at['tokens']:,} tokens each, trained by the trainer ({at['device']}, {at['dtype']})"
        contests.append(Contest(label=f"width {at['width']}", note=what, rows=_rows(found, at["standings"], None)))
    return Confirmed(
        winner=found["winner"] is not None,
        why=found["why"],
        contests=tuple(contests),
        at_scale=f"at larger widths: {scale['why']}" if scale else "",
    )


def _rows(found: Mapping[str, Any], standings: Sequence[Mapping[str, Any]], synthetic: int | None) -> tuple[ConfirmedRow, ...]:
    halves = half_intervals([entry["text_bits_per_byte"] for entry in standings])
    controls = [entry for entry in standings if entry["from"] == "random"]
    base = next((entry for entry in standings if entry["from"] == "baseline"), None)
    return tuple(
        ConfirmedRow(
            pattern=entry["pattern"],
            role=entry["from"],
            seeds=tuple(entry["text_bits_per_byte"]),
            half=half,
            winner=entry["spec_id"] == found["winner"],
            solved=None if synthetic is None else entry["recall_solved"],
            synthetic=synthetic or 0,
            baseline=None if base is None or entry is base else beside(entry, [base]),
            random=beside(entry, controls) if controls and entry["from"] != "random" else None,
        )
        for entry, half in zip(standings, halves, strict=True)
    )


def half_intervals(seeds: Sequence[Sequence[float]]) -> list[float | None]:
    """Half the 95 % interval of each layout's mean, by Student's t from the spread between seeds, pooled over layouts: two seeds alone
    say next to nothing of it. None where no layout has a second seed."""
    from scipy import stats

    freedom = sum(len(values) - 1 for values in seeds)
    if not freedom:
        return [None for _ in seeds]
    spread = sqrt(sum((value - mean(values)) ** 2 for values in seeds for value in values) / freedom)
    return [float(stats.t.ppf(0.975, freedom)) * spread / sqrt(len(values)) for values in seeds]


def beside(entry: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> Beside:
    """A layout beside the mean of others, paired by seed. In recall it differs where it solves more than each of them, or less."""
    from archsearch.quality.ranking import paired

    text = paired(entry["text_bits_per_byte"], np.mean([other["text_bits_per_byte"] for other in others], axis=0).tolist())
    solved = [other["recall_solved"] for other in others if "recall_solved" in other]
    own = entry.get("recall_solved", 0)
    word = text.word if not solved or min(solved) <= own <= max(solved) else "better" if own > max(solved) else "worse"
    return Beside(mean=text.mean, low=text.low, high=text.high, word=word)
