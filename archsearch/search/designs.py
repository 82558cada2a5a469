"""A layout in the search's own terms: counts and a pattern, not one choice a layer.

Two operators, how many layers the second one takes and where, an FFN width for each: five to eight parameters whatever the
depth. Per-layer choices make samplers two to three times slower to find the same front, and most of them are noise.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from archsearch.space import Space
from archsearch.spec import ArchSpec
from operators.specs import BlockSpec

Placement = Literal["spread", "early", "middle", "late"]
PLACEMENTS: tuple[Placement, ...] = ("spread", "early", "middle", "late")


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """One point: indices into the space's choices.

    Attributes:
        main, second, third: operators; `seconds` and `thirds` layers are of the second and third kind, the others of the main.
        placement: where the second kind goes; the third goes to the middle of what is left.
        main_ffn, other_ffn: FFN widths of the main layers and of the others.
    """

    hidden: int
    depth: int
    main: int
    second: int
    seconds: int
    third: int
    thirds: int
    placement: Placement
    main_ffn: int
    other_ffn: int

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


class DesignSpace:
    """All designs of a space."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.deepest = max(space.depths)

    def distributions(self) -> dict[str, Any]:
        """Optuna distributions of the parameters that have a choice."""
        from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

        n = len(self.space.operators)
        choices: dict[str, BaseDistribution] = {
            "hidden": CategoricalDistribution(list(range(len(self.space.hidden_sizes)))),
            "depth": CategoricalDistribution(list(range(len(self.space.depths)))),
            "main": CategoricalDistribution(list(range(n))),
            "second": CategoricalDistribution(list(range(n))),
            "seconds": IntDistribution(0, self.deepest // 2),
            "third": CategoricalDistribution(list(range(n))),
            "thirds": IntDistribution(0, max(1, self.deepest // 4)),
            "placement": CategoricalDistribution(list(PLACEMENTS)),
            "main_ffn": CategoricalDistribution(list(range(len(self.space.ffns)))),
            "other_ffn": CategoricalDistribution(list(range(len(self.space.ffns)))),
        }
        return choices

    def design(self, params: Mapping[str, Any]) -> Design:
        return Design(**{name: params[name] for name in Design.__slots__})

    def random(self, generator: random.Random) -> Design:
        space, n = self.space, len(self.space.operators)
        return Design(
            hidden=generator.randrange(len(space.hidden_sizes)),
            depth=generator.randrange(len(space.depths)),
            main=generator.randrange(n),
            second=generator.randrange(n),
            seconds=generator.randint(0, self.deepest // 2),
            third=generator.randrange(n),
            thirds=generator.choice((0, 0, generator.randint(0, max(1, self.deepest // 4)))),
            placement=generator.choice(PLACEMENTS),
            main_ffn=generator.randrange(len(space.ffns)),
            other_ffn=generator.randrange(len(space.ffns)),
        )

    def spec(self, design: Design, *, name: str | None = None) -> ArchSpec:
        """The architecture of a design."""
        space = self.space
        depth = space.depths[design.depth]
        main = BlockSpec(operator=space.operators[design.main], ffn=space.ffns[design.main_ffn])
        second = BlockSpec(operator=space.operators[design.second], ffn=space.ffns[design.other_ffn])
        third = BlockSpec(operator=space.operators[design.third], ffn=space.ffns[design.other_ffn])
        layers = [main] * depth
        for position in positions(depth, min(design.seconds, depth // 2), design.placement):
            layers[position] = second
        free = [i for i, layer in enumerate(layers) if layer == main]
        for position in positions(len(free), min(design.thirds, len(free)), "middle"):
            layers[free[position]] = third
        return space.spec(layers, hidden_size=space.hidden_sizes[design.hidden], name=name or f"{space.name}")

    def baselines(self) -> Iterator[tuple[str, Design]]:
        """Layouts that anyone would ask about: all of one kind, and LFM2's pattern for every pair of a local and a global operator.

        LFM2-350M has 6 attention layers of 16, spread; at another depth the same share.
        """
        space = self.space
        depth = len(space.depths) - 1
        width = len(space.ffns) - 1
        common = {"hidden": len(space.hidden_sizes) - 1, "depth": depth, "placement": "spread", "main_ffn": width, "other_ffn": width, "thirds": 0, "third": 0}
        kinds = [operator.kind for operator in space.operators]
        for i, kind in enumerate(kinds):
            yield f"all {kind}", Design(main=i, second=i, seconds=0, **common)  # type: ignore[arg-type]
        share = max(1, round(space.depths[depth] * 6 / 16))
        for i, kind in enumerate(kinds):
            for j, other in enumerate(kinds):
                if kind == "short_conv" and other == "gqa":
                    yield "LFM2's pattern", Design(main=i, second=j, seconds=share, **common)  # type: ignore[arg-type]


def positions(length: int, count: int, placement: Placement) -> list[int]:
    """Where `count` layers go among `length`."""
    if count == 0:
        return []
    match placement:
        case "spread":  # in the middle of `count` equal parts, so neither first nor last while there is room
            return sorted({int((i + 0.5) * length / count) for i in range(count)})
        case "early":
            return list(range(count))
        case "late":
            return list(range(length - count, length))
        case "middle":
            first = (length - count) // 2
            return list(range(first, first + count))
