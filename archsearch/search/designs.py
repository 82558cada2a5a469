"""A layout in the search's own terms: counts and a pattern, not one choice a layer.

A main operator, how many layers a second and a third one take and where, two FFN widths: ten parameters whatever the depth.
Per-layer choices make samplers two to three times slower to find the same front, and most of them are noise.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from archsearch.space import Space
from archsearch.spec import ArchSpec
from operators.specs import BlockSpec

Placement = Literal["spread", "early", "middle", "late"]
PLACEMENTS: tuple[Placement, ...] = ("spread", "early", "middle", "late")
LFM2_SHARE = 6 / 16


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

    @property
    def size(self) -> int:
        """Number of designs; of layouts there are fewer, for several designs may say the same."""
        return math.prod(len(values) for values in self._values().values())

    def all(self) -> Iterator[Design]:
        values = self._values()
        return (self.design(dict(zip(values, point, strict=True))) for point in itertools.product(*values.values()))

    def _values(self) -> dict[str, list[Any]]:
        return {
            name: list(d.choices) if hasattr(d, "choices") else list(range(d.low, d.high + 1)) for name, d in self.distributions().items()
        }

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
        return space.spec(layers, hidden_size=space.hidden_sizes[design.hidden], name=name)

    def holds(self, spec: ArchSpec) -> bool:
        """Whether a layout is of this space."""
        space = self.space
        blocks = set(space.blocks)
        return spec.hidden_size in space.hidden_sizes and len(spec.layers) in space.depths and set(spec.layers) <= blocks

    def baselines(self) -> Iterator[tuple[str, Design]]:
        """Layouts that anyone would ask about, largest first: all of one kind, and LFM2's pattern.

        LFM2-350M has 6 attention layers of 16; at another depth the same share, spread evenly. Of each label, the first one that
        keeps the budgets is meant.
        """
        space = self.space
        operators = list(enumerate(space.operators))
        sizes = itertools.product(
            sorted(range(len(space.hidden_sizes)), key=lambda i: -space.hidden_sizes[i]),
            sorted(range(len(space.depths)), key=lambda i: -space.depths[i]),
            sorted(range(len(space.ffns)), key=lambda i: -space.ffns[i].intermediate_size),
        )
        for hidden, depth, width in sizes:
            for main, operator in operators:
                yield f"all {operator.kind}", self._plain(hidden, depth, width, main, main, 0)
            share = max(1, round(space.depths[depth] * LFM2_SHARE))
            for main, second in itertools.product(range(len(operators)), repeat=2):
                if (space.operators[main].kind, space.operators[second].kind) == ("short_conv", "gqa"):
                    yield "LFM2's pattern", self._plain(hidden, depth, width, main, second, share)

    def _plain(self, hidden: int, depth: int, width: int, main: int, second: int, seconds: int) -> Design:
        return Design(
            hidden=hidden,
            depth=depth,
            main=main,
            second=second,
            seconds=seconds,
            third=main,
            thirds=0,
            placement="spread",
            main_ffn=width,
            other_ffn=width,
        )

    def nearest(self, spec: ArchSpec) -> Design:
        """The design that says most of a layout that has none of its own: what the sampler is told of it."""
        space = self.space
        kinds = Counter(block.operator for block in spec.layers).most_common()
        main, second, third = (*kinds, *((kinds[0][0], 0),) * 2)[:3]
        where = [i for i, block in enumerate(spec.layers) if block.operator == second[0]] if second[1] else []
        seconds = min(second[1], self.deepest // 2)

        def distance(placement: Placement) -> int:
            return sum(abs(a - b) for a, b in zip(where, positions(len(spec.layers), seconds, placement), strict=False))

        def width(of_main: bool) -> int:
            found = Counter(block.ffn for block in spec.layers if (block.operator == main[0]) == of_main)
            return space.ffns.index(found.most_common(1)[0][0]) if found else 0

        return Design(
            hidden=space.hidden_sizes.index(spec.hidden_size),
            depth=space.depths.index(len(spec.layers)),
            main=space.operators.index(main[0]),
            second=space.operators.index(second[0]),
            seconds=seconds,
            third=space.operators.index(third[0]),
            thirds=min(third[1], max(1, self.deepest // 4)),
            placement=min(PLACEMENTS, key=distance),
            main_ffn=width(True),
            other_ffn=width(False),
        )


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


def spread(counts: Mapping[BlockSpec, int]) -> list[BlockSpec]:
    """Layers from block counts: the most frequent block throughout, the others spread evenly over what is left of it."""
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    layers = [ordered[0][0]] * sum(counts.values())
    free = list(range(len(layers)))
    for block, count in ordered[1:]:
        for position in positions(len(free), count, "spread"):
            layers[free[position]] = block
        free = [i for i in free if layers[i] == ordered[0][0]]
    return layers
