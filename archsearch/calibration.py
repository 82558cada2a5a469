"""The composition-error card: how wrong predictions of whole models were, kept in a run as `calibration.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from archsearch.cases import block_label
from archsearch.documents import workload_fields
from archsearch.errors import RunError
from archsearch.estimate import Estimate, Widening
from archsearch.files import read_json, write_atomic
from archsearch.spec import ArchSpec
from archsearch.workload import Workload

FILE = "calibration.json"
CARD_KEYS = ("runtime", "layouts", "cases", "summary", "memory", "memory_summary")
FEWEST = 9
"""Layouts from which the intervals of a kind of workload are widened: with fewer, not even the largest error reaches 90 % (rank
ceil(0.9 (n + 1)) of n)."""


@dataclass(frozen=True, kw_only=True)
class MeasuredCase:
    """One held-out model at one workload. `drift`: time of reference chains beside it over their time in the table."""

    layout: str
    workload: Workload
    measured: Estimate
    predicted: Estimate
    drift: float
    interpolated: bool
    left_out: int = 0
    """Processes that do not count: they had drifted too far, or were in another state than the fastest (`estimate.in_one_state`)."""
    widening: Widening | None = None
    """Of an earlier calibration that did not hold this layout, so that this one tests it."""

    @property
    def error(self) -> float:
        """Signed, relative, of the prediction scaled by the drift."""
        return self.predicted.value * self.drift / self.measured.value - 1

    @property
    def uncorrected_error(self) -> float:
        return self.predicted.value / self.measured.value - 1

    @property
    def covered(self) -> bool:
        """Whether the stated interval, scaled by the drift, holds the measured value."""
        return self.predicted.low * self.drift <= self.measured.value <= self.predicted.high * self.drift

    @property
    def covered_widened(self) -> bool | None:
        """The same of the interval that an earlier calibration widened; None where there was none to test."""
        return None if self.widening is None else self.off <= self.widening.factor * math.hypot(self.half, self.widening.error)

    @property
    def half(self) -> float:
        """Half width of the stated interval on the side of the truth, relative to the prediction."""
        too_high = self.error > 0
        side = self.predicted.value - self.predicted.low if too_high else self.predicted.high - self.predicted.value
        return side / self.predicted.value

    @property
    def off(self) -> float:
        """What the interval has to reach over: |measured - prediction|, relative to the prediction."""
        return abs(self.measured.value / (self.predicted.value * self.drift) - 1)

    def to_dict(self) -> dict[str, Any]:
        return {
            "layout": self.layout,
            "workload": self.workload.label,
            **workload_fields(self.workload),
            "measured_ms": self.measured.value,
            "measured_low_ms": self.measured.low,
            "measured_high_ms": self.measured.high,
            "predicted_ms": self.predicted.value,
            "predicted_low_ms": self.predicted.low,
            "predicted_high_ms": self.predicted.high,
            "drift": self.drift,
            "error": self.error,
            "uncorrected_error": self.uncorrected_error,
            "covered": self.covered,
            "covered_widened": self.covered_widened,
            "interpolated": self.interpolated,
            "left_out": self.left_out,
        }


@dataclass(frozen=True, kw_only=True)
class MeasuredMemory:
    """Peak memory of one held-out model, predicted and measured, in megabytes (10^6 bytes)."""

    layout: str
    precision: str
    context: int
    phase: str
    predicted_mb: float
    measured_mb: float
    pss_mb: float | None = None
    """Proportional set size at the end: what other processes map as well counts in part. None where the platform does not tell."""

    @property
    def error(self) -> float:
        return self.predicted_mb / self.measured_mb - 1

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"error": self.error}


@dataclass(frozen=True, kw_only=True)
class CalibrationCard:
    """Everything a calibration found; see docs/prediction.md for what the numbers mean."""

    device: str
    fingerprint: str
    created_unix_s: float
    runtime: str
    layouts: tuple[tuple[str, ArchSpec], ...]
    cases: tuple[MeasuredCase, ...]
    memory: tuple[MeasuredMemory, ...]

    @cached_property
    def groups(self) -> dict[Workload, tuple[MeasuredCase, ...]]:
        """Cases by workload, in order."""
        return {w: tuple(case for case in self.cases if case.workload == w) for w in dict.fromkeys(case.workload for case in self.cases)}

    def summary(self) -> list[dict[str, Any]]:
        """One line a workload: sizes of errors, bias, ranks, coverage, and what intervals are widened by."""
        return [_summarised(workload, cases) for workload, cases in self.groups.items()]

    def memory_summary(self) -> list[dict[str, Any]]:
        lines = []
        for precision, phase in dict.fromkeys((entry.precision, entry.phase) for entry in self.memory):
            errors = np.array([entry.error for entry in self.memory if (entry.precision, entry.phase) == (precision, phase)])
            lines.append(
                {
                    "precision": precision,
                    "phase": phase,
                    "layouts": len(errors),
                    "median": float(np.median(np.abs(errors))),
                    "worst": float(np.max(np.abs(errors))),
                    "bias": float(np.mean(errors)),
                }
            )
        return lines

    def to_dict(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "fingerprint": self.fingerprint,
            "created_unix_s": self.created_unix_s,
            "runtime": self.runtime,
            "layouts": [
                {
                    "name": spec.name,
                    "kind": kind,
                    "layers": [block_label(block) for block in spec.layers],
                    "hidden_size": spec.hidden_size,
                    "spec_id": spec.spec_id,
                }
                for kind, spec in self.layouts
            ],
            "cases": [case.to_dict() for case in self.cases],
            "summary": self.summary(),
            "memory": [entry.to_dict() for entry in self.memory],
            "memory_summary": self.memory_summary(),
        }


def _summarised(workload: Workload, cases: Sequence[MeasuredCase]) -> dict[str, Any]:
    from scipy.stats import spearmanr

    errors = np.array([case.error for case in cases])
    sizes = np.abs(errors)
    predicted, measured = [case.predicted.value * case.drift for case in cases], [case.measured.value for case in cases]
    distinct = len(cases) > 2 and len(set(predicted)) > 1 and len(set(measured)) > 1
    drifts = [case.drift for case in cases]
    widening = _fitted(cases)
    tested = [case.covered_widened for case in cases if case.covered_widened is not None]
    return {
        "workload": workload.label,
        **workload_fields(workload),
        "interpolated": cases[0].interpolated,
        "layouts": len(cases),
        "median": float(np.median(sizes)),
        "p95": float(np.percentile(sizes, 95)),
        "worst": float(sizes.max()),
        "bias": float(errors.mean()),
        "rank_correlation": float(spearmanr(predicted, measured).statistic) if distinct else None,
        "coverage": float(np.mean([case.covered for case in cases])),
        "coverage_widened": float(np.mean(tested)) if tested else None,
        "tested": len(tested),
        "left_out": sum(case.left_out for case in cases),
        "drift_low": min(drifts),
        "drift_high": max(drifts),
        "widening": widening.factor if widening else None,
        "widening_error": widening.error if widening else None,
    }


def _fitted(cases: Sequence[MeasuredCase]) -> Widening | None:
    return Widening.fit([case.off for case in cases], [case.half for case in cases]) if len(cases) >= FEWEST else None


def keep_card(run_dir: Path, card: CalibrationCard) -> None:
    """Write the card beside those of other devices."""
    path = run_dir / FILE
    cards = read_json(path) if path.exists() else {}
    write_atomic(path, json.dumps(cards | {card.fingerprint: card.to_dict()}, indent=1))


def read_card(run_dir: Path, fingerprint: str, runtime: str) -> dict[str, Any] | None:
    """The card of a device, as `CalibrationCard.to_dict` gives it; None when it was not calibrated with that version of the runtime.

    Raises:
        RunError: the file is damaged.
    """
    path = run_dir / FILE
    if not path.exists():
        return None
    cards = read_json(path)
    card = cards.get(fingerprint) if isinstance(cards, dict) else cards
    if card is None:
        return None
    if not isinstance(card, dict) or not set(CARD_KEYS) <= set(card):
        raise damaged(run_dir)
    return card if card["runtime"] == runtime else None


def read_widenings(run_dir: Path, fingerprint: str, runtime: str) -> dict[Workload, Widening]:
    """What a device's intervals are widened by; empty when it was not calibrated with that version of the runtime.

    Raises:
        RunError: the file is damaged.
    """
    card = read_card(run_dir, fingerprint, runtime)
    names = ("phase", "tokens", "context", "batch", "precision", "threads")
    try:
        return {
            Workload(**{name: line[name] for name in names}): Widening(error=line["widening_error"], factor=max(1.0, line["widening"]))
            for line in (card["summary"] if card else ())
            if line["widening"] is not None
        }
    except (KeyError, TypeError) as error:
        raise damaged(run_dir) from error


def damaged(run_dir: Path) -> RunError:
    return RunError(f"{run_dir / FILE}: not a calibration; remove it, and `archsearch calibrate` makes it anew")
