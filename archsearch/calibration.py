"""The composition-error card: how wrong predictions of whole models were, kept in a run as `calibration.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
FEWEST = 4
"""Layouts from which the intervals of a kind of workload are widened: fewer say nothing of a tail."""


@dataclass(frozen=True, kw_only=True)
class MeasuredCase:
    """One held-out model at one workload. `drift`: time of reference chains beside it over their time in the table."""

    layout: str
    workload: Workload
    measured: Estimate
    predicted: Estimate
    drift: float
    interpolated: bool

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
            "interpolated": self.interpolated,
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
        "coverage_widened": _left_out_coverage(cases),
        "drift_low": min(drifts),
        "drift_high": max(drifts),
        "widening": widening.factor if widening else None,
        "widening_error": widening.error if widening else None,
    }


def _fitted(cases: Sequence[MeasuredCase]) -> Widening | None:
    return Widening.fit([case.off for case in cases], [case.half for case in cases]) if len(cases) >= FEWEST else None


def _left_out_coverage(cases: Sequence[MeasuredCase]) -> float | None:
    """Share of layouts covered by intervals that were widened by what all the others taught."""
    covered = []
    for i, case in enumerate(cases):
        widening = _fitted([*cases[:i], *cases[i + 1 :]])
        if widening is None:
            return None
        covered.append(case.off <= widening.factor * math.hypot(case.half, widening.error))
    return float(np.mean(covered))


def keep_card(run_dir: Path, card: CalibrationCard) -> None:
    """Write the card beside those of other devices."""
    path = run_dir / FILE
    cards = read_json(path) if path.exists() else {}
    write_atomic(path, _json(cards | {card.fingerprint: card.to_dict()}))


def read_widenings(run_dir: Path, fingerprint: str, runtime: str) -> dict[Workload, Widening]:
    """What a device's intervals are widened by; empty when it was not calibrated, or with another version of the runtime.

    Raises:
        RunError: the file is damaged.
    """
    path = run_dir / FILE
    if not path.exists():
        return {}
    try:
        card: Mapping[str, Any] | None = read_json(path).get(fingerprint)
        if card is None or card["runtime"] != runtime:
            return {}
        names = ("phase", "tokens", "context", "batch", "precision", "threads")
        return {
            Workload(**{name: line[name] for name in names}): Widening(error=line["widening_error"], factor=line["widening"])
            for line in card["summary"]
            if line["widening"] is not None
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: not a calibration ({error!r}); remove it, and `archsearch calibrate` makes it anew") from error


def _json(data: Any) -> str:
    import json

    return json.dumps(data, indent=1)
