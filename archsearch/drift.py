"""How a machine differs now from when it was profiled: in what computing takes, and in what a walk through memory takes.

Both change, and not together: a neighbour on the same host leaves less of the last-level cache, and takes bandwidth, while arithmetic goes
on as before. So chains of the table are measured beside a model, in the same process, and tell two factors. A chain whose bytes are at
hand tells `pace`; one that walks through memory tells, its warm part taken off, `walk`. A model then takes
`pace * warm + walk * cold` of what it would have taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

WARM, COLD = 0.9, 0.8
"""Share of a reference's time that is warm: from the first on it tells the pace, up to the second the walk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A chain of the table, measured again. `ratio`: its time now over its time in the table; `warm`: share of that time that is warm."""

    ratio: float
    warm: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """Factors on the warm and the cold part of a time in the table; equal where the references cannot tell them apart."""

    pace: float
    walk: float

    def factor(self, warm: float) -> float:
        """On a whole time of which the share `warm` is warm."""
        return self.pace * warm + self.walk * (1 - warm)


def drift_of(references: Iterable[Reference]) -> Drift | None:
    """What references tell, by medians, so that one disturbed chain bends nothing; None of none."""
    found = list(references)
    if not found:
        return None
    warm = [reference.ratio for reference in found if reference.warm >= WARM]
    cold = [reference for reference in found if reference.warm <= COLD]
    if not warm:
        common = float(np.median([reference.ratio for reference in found]))
        return Drift(pace=common, walk=common)
    pace = float(np.median(warm))
    walk = [(reference.ratio - pace * reference.warm) / (1 - reference.warm) for reference in cold]
    return Drift(pace=pace, walk=max(0.0, float(np.median(walk))) if walk else pace)
