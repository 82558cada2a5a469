"""What `--data` says: where a text lies, and how much of the training it gets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from archsearch.errors import InputError

HUB = "hf:"
"""Begins a Hugging Face data set: "hf:REPO?config=en&split=train&documents=100000"."""


@dataclass(frozen=True)
class Source:
    """A file, a folder or a data set, and its weight.

    Attributes:
        location: a path, or "hf:..." (see `archsearch.data.hub`).
        weight: share of the training tokens, over the sum of all weights; None where no source has one.
    """

    location: str
    weight: float | None = None

    @classmethod
    def parse(cls, text: str | Path) -> Source:
        """ "notes/", "web.jsonl:0.7", "hf:REPO:0.3". A path that exists is taken as it is, colons included.

        Raises:
            InputError: a weight that is negative or no finite number.
        """
        location, weight = str(text), None
        head, colon, tail = location.rpartition(":")
        if colon and head and (location.startswith(HUB) or not Path(location).exists()):
            try:
                weight = float(tail)
            except ValueError:
                pass  # the colon belongs to the name
            else:
                location = head
        if weight is not None and not (weight >= 0 and math.isfinite(weight)):
            raise InputError(f"{text}: a weight must be a number, 0 or more, got {weight:g}")
        return cls(location if location.startswith(HUB) else str(Path(location).absolute()), weight)

    @property
    def on_hub(self) -> bool:
        return self.location.startswith(HUB)

    def __str__(self) -> str:
        """What `parse` reads."""
        return self.location if self.weight is None else f"{self.location}:{self.weight!r}"


def parse_sources(texts: Sequence[str | Path]) -> tuple[Source, ...]:
    """All sources of a training.

    Raises:
        InputError: a source twice, some with a weight and some without, or weights that sum to 0.
    """
    sources = tuple(Source.parse(text) for text in texts)
    places = [source.location for source in sources]
    for place in places:
        if places.count(place) > 1:
            raise InputError(f"{place}: given twice; name a source once, with a higher weight where it should count for more")
    with_weight = [source for source in sources if source.weight is not None]
    if with_weight and len(with_weight) < len(sources):
        bare = next(source for source in sources if source.weight is None)
        raise InputError(f"{bare}: has no weight while {with_weight[0]} has one; give every source a weight (PATH:WEIGHT), or none")
    if with_weight and not sum(source.weight or 0 for source in sources):
        raise InputError(f"{', '.join(map(str, sources))}: the weights sum to 0; give at least one source a weight above 0")
    return sources
