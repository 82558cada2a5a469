"""Colours: one ramp for every family of operators, the same in every chart and strip, light and dark.

Figures name colours as CSS variables ("var(--op-3)"), which the page resolves when it draws, so that one figure serves both themes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from reports.rows import Report
from reports.text import natural_key

Ramp = tuple[str, ...]

LIGHT: dict[str, Ramp] = {
    "conv": ("#6fa5f0", "#3b7ddd", "#1f57ab", "#123a78"),
    "gla": ("#b18cec", "#8757d2", "#6a3db3", "#47257f"),
    "swa": ("#63c9a4", "#2aa37c", "#13785a", "#0a5240"),
    "gqa": ("#e5b118", "#ec8a2d", "#dc5a3c", "#a92f37"),
}
DARK: dict[str, Ramp] = {
    "conv": ("#93bffa", "#5c9cf5", "#3974cb", "#2a5aa5"),
    "gla": ("#c9adf7", "#a582ea", "#8460cc", "#6745a8"),
    "swa": ("#86dfbf", "#43bd95", "#2b9474", "#1f6f58"),
    "gqa": ("#f3cb4e", "#f39c4a", "#ea6f51", "#c74b50"),
}
OTHERS_LIGHT: tuple[Ramp, ...] = (
    ("#bd9d78", "#8a6a41", "#705433", "#4c3821"),
    ("#c08bab", "#9c5f83", "#774262", "#532b43"),
    ("#8fae5d", "#6c8a3a", "#4f6828", "#374919"),
    ("#93a0b0", "#6b7787", "#4b5563", "#343c47"),
)
OTHERS_DARK: tuple[Ramp, ...] = (
    ("#d9be9c", "#b8966c", "#8e6f4a", "#755a3a"),
    ("#d9aec8", "#bf85a6", "#9c6485", "#7c4c68"),
    ("#b3cd87", "#91ae5f", "#728d45", "#586e34"),
    ("#b9c3cf", "#919dab", "#73808f", "#586372"),
)
PARTS: dict[str, tuple[str, str]] = {
    "embedding": ("#c9b458", "#cdb95f"),
    "head": ("#a89339", "#a8964a"),
    "ffn": ("#8d99a8", "#7d8897"),
    "norms": ("#4f5b68", "#a9b3bf"),
    "vision": ("#c7b2a3", "#84705f"),
    "weights": ("#5d86bd", "#5f8cc9"),
    "embedding and head": ("#c9b458", "#cdb95f"),
    "caches": ("#ec8a2d", "#f39c4a"),
    "session and activations": ("#a7b0bb", "#7b8694"),
    "process": ("#d3d8de", "#4a535e"),
}
"""Parts of memory and of parameters that are no operators: light, dark."""
KIND_FAMILIES = {"short_conv": "conv", "gqa": "gqa", "swa": "swa", "gla": "gla"}
"""Kinds whose parameters are shown in the colour of a family of another name."""
INKS = ("#10151c", "#ffffff")


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of one report's operators and parts."""

    operators: dict[tuple[str, str], int]
    """(family, operator label) to the index of its variables."""
    parts: dict[str, int]
    light: tuple[str, ...]
    dark: tuple[str, ...]
    """The colours by index, in the two themes."""

    def operator(self, family: str, label: str) -> str:
        return f"var(--op-{self.operators[family, label]})"

    def band(self, family: str, label: str) -> str:
        """The same colour, seen through."""
        return f"var(--op-{self.operators[family, label]}-band)"

    def part(self, name: str) -> str:
        return f"var(--op-{self.parts[name]})"

    def css(self, theme: str) -> str:
        """The variables' declarations in one theme: colour, ink that is readable on it, band."""
        colours = self.light if theme == "light" else self.dark
        return "".join(
            f"--op-{index}:{colour};--op-{index}-ink:{ink_on(colour)};--op-{index}-band:{_rgba(colour, 0.16 if theme == 'light' else 0.2)};"
            for index, colour in enumerate(colours)
        )


def palette_of(report: Report) -> Palette:
    """Give every operator of a report a shade of its family's ramp, by the natural order of labels; other parts have fixed colours."""
    seen: dict[str, set[str]] = {}
    for cost in report.operators:
        seen.setdefault(cost.family, set()).add(cost.operator)
    for design in report.designs:
        for cell in design.cells:
            seen.setdefault(cell.family, set()).add(cell.label)
    for family, label in (*((row.family, row.label) for row in report.samples), *((row.family, row.label) for row in report.roofline)):
        seen.setdefault(family, set()).add(operator_of(label))
    others = [family for family in sorted(seen) if family not in LIGHT]
    in_memory = [part for row in report.memory for part in row.parts_mb]
    parts = list(dict.fromkeys([*in_memory, *(part for row in report.parameters for part in row.parts)]))
    others += [part for part in parts if part not in PARTS and KIND_FAMILIES.get(part, part) not in LIGHT and part not in others]

    light: list[str] = []
    dark: list[str] = []
    operators: dict[tuple[str, str], int] = {}
    for family in sorted(seen):
        bright, dim = _ramps(family, others)
        labels = sorted(seen[family], key=natural_key)
        for label, shade in zip(labels, _spread(len(labels), len(bright)), strict=True):
            operators[family, label] = len(light)
            light.append(bright[shade])
            dark.append(dim[shade])
    index_of: dict[str, int] = {}
    for part in parts:
        index_of[part] = len(light)
        if part in PARTS:
            light.append(PARTS[part][0])
            dark.append(PARTS[part][1])
        else:
            bright, dim = _ramps(KIND_FAMILIES.get(part, part), others)
            light.append(bright[1])
            dark.append(dim[1])
    return Palette(operators, index_of, tuple(light), tuple(dark))


def operator_of(label: str) -> str:
    """The operator's part of a block's label: "conv3/768" is of "conv3"."""
    return label.rpartition("/")[0] or label


def contrast(colour: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2, relative luminance)."""
    bright, dark = sorted((_luminance(colour), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def ink_on(colour: str) -> str:
    """Black or white, whichever is easier to read on a colour."""
    return max(INKS, key=lambda ink: contrast(ink, colour))


def _ramps(family: str, others: list[str]) -> tuple[Ramp, Ramp]:
    if family in LIGHT:
        return LIGHT[family], DARK[family]
    at = others.index(family) % len(OTHERS_LIGHT)
    return OTHERS_LIGHT[at], OTHERS_DARK[at]


def _spread(number: int, shades: int) -> Iterable[int]:
    """Shades as far apart as the ramp allows; one label alone takes the second, the family's typical colour."""
    if number == 1:
        return [1]
    if number > shades:
        return [at % shades for at in range(number)]
    return [round(at * (shades - 1) / (number - 1)) if number > 2 else 2 * at for at in range(number)]


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _luminance(colour: str) -> float:
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (channel / 255 for channel in _channels(colour))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _rgba(colour: str, alpha: float) -> str:
    red, green, blue = _channels(colour)
    return f"rgba({red},{green},{blue},{alpha})"


THEMES: dict[str, dict[str, str]] = {
    "light": {
        "page": "#f4f6f9",
        "card": "#ffffff",
        "card-veil": "rgba(255,255,255,.82)",
        "edge": "rgba(16,21,28,.16)",
        "grid": "#e3e8ef",
        "ink": "#171d26",
        "muted": "#586375",
        "soft": "#eef1f5",
        "accent": "#2f6fd0",
        "chosen": "#eaf1fd",
        "front": "#dd5f1c",
        "good": "#17875c",
        "bad": "#c9372c",
        "scale-0": "#3b2a7a",
        "scale-1": "#2f6aa3",
        "scale-2": "#259a87",
        "scale-3": "#76c04a",
        "scale-4": "#e3c815",
    },
    "dark": {
        "page": "#0e1218",
        "card": "#171c24",
        "card-veil": "rgba(23,28,36,.82)",
        "edge": "rgba(0,0,0,.6)",
        "grid": "#2b333e",
        "ink": "#e7ebf1",
        "muted": "#9fabba",
        "soft": "#202731",
        "accent": "#6fa6f7",
        "chosen": "#1c2a42",
        "front": "#f58a4b",
        "good": "#3fc08f",
        "bad": "#f0786c",
        "scale-0": "#7a68d6",
        "scale-1": "#4f93d2",
        "scale-2": "#3dbba5",
        "scale-3": "#93d862",
        "scale-4": "#f6e04a",
    },
}
"""The page's own colours. The scale runs from little to much and keeps apart from the card in both themes."""


def theme_css(palette: Palette) -> str:
    """Variables of both themes: light, dark where the system asks for it, either by choice, and light on paper."""
    light, dark = (
        f"color-scheme:{name};" + "".join(f"--{key}:{value};" for key, value in THEMES[name].items()) + palette.css(name) for name in THEMES
    )
    return (
        f":root{{{light}}}\n"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}\n"
        f":root[data-theme=dark]{{{dark}}}\n"
        f"@media print{{:root:root:root{{{light}}}}}\n"
    )
