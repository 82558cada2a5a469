"""What a search found: the front, the choice among it and by which rule, or what is in the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from archsearch.quality import LayoutQuality
from archsearch.search.claims import GivenUp
from archsearch.search.feasible import Costs
from archsearch.spec import ArchSpec

TEXT_TIE = 0.01
"""Relative difference in bits a byte below which two layouts count as equal: seeds alone differ by up to 1.2 % (docs/search.md)."""


@dataclass(frozen=True, kw_only=True)
class FrontPoint:
    """A trained layout with its predicted costs."""

    spec: ArchSpec
    quality: LayoutQuality
    costs: Costs
    trial: int

    def evidence(self) -> str:
        text = self.quality.text
        tasks = ", ".join(f"{r.task.replace('_', ' ')} {r.tokens:,} tokens ({r.status})" for r in self.quality.synthetic)
        return f"small trainings of a 64-channel copy, seed {text.seed}: {tasks}, text {text.tokens:,} tokens; not validated at full width"

    def to_dict(self) -> dict[str, Any]:
        spec = self.spec.to_dict()
        return {
            "spec": spec,
            "spec_id": self.spec.spec_id,
            "quality": self.quality.to_dict(),
            "costs": self.costs.values,
            "evidence": self.evidence(),
            "trained": True,
        }


@dataclass(frozen=True, kw_only=True)
class ProposedPoint:
    """A layout that was not trained: what a model of the trainings expects of it.

    Attributes:
        text, deviation: bits a byte and their standard deviation; None where too little is trained for a model.
        can_recall: by its structure (`archsearch.quality.structure`).
        basis: what the expectation rests on, in words.
    """

    spec: ArchSpec
    costs: Costs
    text: float | None
    deviation: float | None
    can_recall: bool
    basis: str

    def evidence(self) -> str:
        return f"not trained; expected {self.basis}"

    def to_dict(self) -> dict[str, Any]:
        quality = {"text_bits_per_byte": self.text, "text_deviation": self.deviation, "can_recall": self.can_recall}
        return {
            "spec": self.spec.to_dict(),
            "spec_id": self.spec.spec_id,
            "quality": quality,
            "costs": self.costs.values,
            "evidence": self.evidence(),
            "trained": False,
        }


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """`best` is None when no layout keeps the budgets (then `unreachable` says why), or when none that keeps them is trained.

    `proposed` are layouts within the budgets that are not trained, and that are expected to be on the front.
    `given_up` are layouts that were to be trained and could not be, each with its trial and the reason.
    `devices`, of several: what the shared layout costs on each beside that device's own choice.
    """

    feasible: bool
    front: tuple[FrontPoint, ...] = ()
    best: FrontPoint | None = None
    unreachable: dict[str, dict[str, Any]] = field(default_factory=dict)
    nearest: ArchSpec | None = None
    proposed: tuple[ProposedPoint, ...] = ()
    certificate: dict[str, Any] | None = None
    baseline: dict[str, Any] | None = None
    devices: dict[str, dict[str, Any]] | None = None
    given_up: tuple[GivenUp, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The document that `archsearch search` prints."""
        document = {
            "feasible": self.feasible,
            "front": [point.to_dict() for point in self.front],
            "best": self.best.to_dict() if self.best else None,
            "unreachable": self.unreachable,
            "proposed": [point.to_dict() for point in self.proposed],
            "given_up": [lost.to_dict() for lost in self.given_up],
        }
        asked_for = {"certificate": self.certificate, "baseline": self.baseline, "devices": self.devices}
        return document | {name: value for name, value in asked_for.items() if value is not None}


def pareto_front(points: Sequence[FrontPoint], latency: str, memory: str) -> tuple[FrontPoint, ...]:
    """The points that no other beats in recall, text, latency and memory at once, fastest first."""
    import moocore

    if not points:
        return ()
    keep = moocore.is_nondominated(np.array([objectives(point, latency, memory) for point in points]), keep_weakly=False)
    return tuple(sorted((point for point, kept in zip(points, keep, strict=True) if kept), key=lambda p: p.costs.values[latency]))


def objectives(point: FrontPoint, latency: str, memory: str) -> list[float]:
    """All to be made small. A synthetic task counts as solved or as the accuracy it reached."""
    return [-point.quality.ability, point.quality.text.value, point.costs.values[latency], point.costs.values[memory]]


def choose(points: Sequence[FrontPoint], latency: str) -> FrontPoint | None:
    """Layouts that solve recall (every synthetic task) first; among them the fewest bits a byte; among equals in that (`TEXT_TIE`), the
    fastest."""
    if not points:
        return None
    solved = [point for point in points if point.quality.solves_all]
    if not solved:
        most = max(point.quality.ability for point in points)
        solved = [point for point in points if point.quality.ability >= most - 0.05]
    least = min(point.quality.text.value for point in solved)
    tied = [point for point in solved if point.quality.text.value <= least * (1 + TEXT_TIE)]
    return min(tied, key=lambda point: (point.costs.values[latency], point.quality.text.value, point.spec.spec_id))
