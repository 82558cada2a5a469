"""The page as text: whole and in part, escaped, self-contained."""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
from dataclasses import fields, replace
from html.parser import HTMLParser
from typing import Any

import pytest

from reports.page import plotly_gzip, render
from reports.rows import Cell, Report
from reports.text import metric_name, metric_unit, sentence
from tests.reports.sample import sample_report

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>"\'`&{{ 7 * 7 }}'


class Page(HTMLParser):
    """Tags with their attributes, text without scripts, and the content of scripts by id."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.script: str | None = None
        self.scripts: dict[str, str] = {}
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.script = dict(attrs).get("id") or f"{tag}-{len(self.scripts)}"
            self.scripts[self.script] = ""
        elif tag not in ("meta", "br", "img", "input", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self.script = None
        else:
            assert self.open, f"</{tag}> closes nothing"
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.script is not None:
            self.scripts[self.script] += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    @property
    def titles(self) -> list[str]:
        return [str(attrs["id"]).removesuffix("-title") for tag, attrs in self.tags if tag == "h2"]


@pytest.fixture(scope="module")
def report() -> Report:
    return sample_report()


@pytest.fixture(scope="module")
def page(report: Report) -> Page:
    return Page(render(report))


def test_markup_is_balanced_and_every_section_is_there(page: Page) -> None:
    assert page.open == []
    assert page.titles == [
        "budgets", "designs", "layouts", "confirmed", "predicted", "calibration", "decode", "prefill", "equal", "samples", "roofline",
        "memory", "plan", "training", "model", "parameters", "failures", "conditions",
    ]  # fmt: skip
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    for tag, attrs in page.tags:
        assert tag not in ("link", "img", "iframe", "base", "form")
        assert not {"src", "href", "action"} & set(attrs)
    policy = next(attrs["content"] for tag, attrs in page.tags if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    styles = "".join(text for name, text in page.scripts.items() if name.startswith("style"))
    assert "url(" not in styles
    assert "@import" not in styles


def test_plotly_travels_compressed(page: Page) -> None:
    library = gzip.decompress(base64.b64decode(page.scripts["plotly"]))
    assert b"plotly.js v" in library[:400]
    assert len(render(sample_report())) < 3_000_000 < len(library)
    assert plotly_gzip() == page.scripts["plotly"].strip(), "the same bytes every time"


def test_figures_carry_what_the_charts_name(page: Page) -> None:
    figures: dict[str, list[dict[str, Any]]] = json.loads(page.scripts["figures"])
    charts = [attrs["data-chart"] for tag, attrs in page.tags if "data-chart" in attrs]
    assert charts == list(dict.fromkeys(charts))
    assert set(charts) == set(figures)
    declared = set(re.findall(r"(--[\w-]+):", page.scripts["style-0"]))
    used = set(re.findall(r"var\((--[\w-]+)\)", page.scripts["figures"]))
    assert used <= declared, used - declared
    for _, attrs in page.tags:
        assert set(re.findall(r"var\((--[\w-]+)\)", attrs.get("style") or "")) <= declared


def test_charts_and_tables_speak_to_those_who_do_not_see(page: Page) -> None:
    for tag, attrs in page.tags:
        if "data-chart" in attrs:
            assert attrs["role"] == "img"
            assert len(attrs["aria-label"] or "") > 30
        if tag == "th":
            assert attrs["scope"] in ("row", "col")
        if tag in ("select", "section"):
            assert attrs.get("aria-label") or attrs.get("aria-labelledby")
    assert [tag for tag, _ in page.tags].count("table") == [tag for tag, _ in page.tags].count("caption")


def test_both_themes_and_paper_have_every_variable(page: Page) -> None:
    blocks = re.findall(r"\{color-scheme:(light|dark);(.*?)\}", page.scripts["style-0"])
    assert [theme for theme, _ in blocks] == ["light", "dark", "dark", "light"]
    names = [set(re.findall(r"(--[\w-]+):", block)) for _, block in blocks]
    assert all(found == names[0] for found in names)


SECTIONS: dict[str, set[str]] = {
    "operators": {"decode", "prefill"},
    "samples": {"samples"},
    "roofline": {"roofline"},
    "designs": {"designs", "layouts"},
    "budgets": {"budgets"},
    "predicted": {"predicted"},
    "confirmed": {"confirmed"},
    "held_out": {"calibration"},
    "memory": {"memory"},
    "parameters": {"parameters"},
    "plan": {"plan"},
    "training": {"training", "model"},
    "parity": {"model"},
    "series": {"conditions"},
    "failures": {"failures"},
    "devices": {"conditions"},
    "commands": {"conditions"},
}


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_alone(report: Report, name: str) -> None:
    """A run that has only been profiled has only those sections."""
    alone = replace(Report(title="t", subtitle="s"), **{name: getattr(report, name)})
    page = Page(render(alone))
    assert page.open == []
    assert set(page.titles) == SECTIONS[name]


@pytest.mark.parametrize("name", [field.name for field in fields(Report) if field.name not in ("title", "subtitle")])
def test_a_section_left_out(report: Report, name: str) -> None:
    empty = getattr(Report(title="", subtitle=""), name)
    assert Page(render(replace(report, **{name: empty}))).open == []


def test_an_empty_report() -> None:
    page = Page(render(Report(title="nothing", subtitle="yet")))
    assert page.titles == []
    assert json.loads(page.scripts["figures"]) == {}


def test_impossible_budgets_say_what_is_reachable(report: Report) -> None:
    budgets = tuple(replace(row, predicted=None, measured=None, best_reachable=row.limit * 1.5) for row in report.budgets)
    page = Page(render(replace(report, budgets=budgets, cards=(), chosen_pattern="", training=None, predicted=())))
    assert "No layout of the space keeps all budgets." in page.text
    assert "Best reachable by itself" in page.text
    assert "10.5 ms" in page.text


ENUMERATIONS = ("prefill", "decode", "search", "random", "baseline")


def poisoned(value: Any) -> Any:
    """The same rows with hostile text in every string that is not an enumeration or a time."""
    if isinstance(value, str):
        return EVIL if value not in ENUMERATIONS else value
    if isinstance(value, tuple):
        return tuple(poisoned(item) for item in value)
    if isinstance(value, dict):
        return {poisoned(key) + str(at): poisoned(item) for at, (key, item) in enumerate(value.items())}
    if hasattr(value, "__dataclass_fields__"):
        return replace(value, **{field.name: poisoned(getattr(value, field.name)) for field in fields(value)})
    return value


def test_hostile_names_stay_text(report: Report, page: Page) -> None:
    text = render(poisoned(report))
    found = Page(text)
    assert found.open == []
    assert [tag for tag, _ in found.tags].count("script") == [tag for tag, _ in page.tags].count("script")
    assert not any(name.startswith("on") for _, attrs in found.tags for name in attrs)
    assert "img" not in {tag for tag, _ in found.tags}
    assert EVIL in found.text
    assert "<script>alert" not in text
    assert "49" not in re.findall(r"\b49\b", "".join(found.words[:40]))
    json.loads(found.scripts["figures"])


def test_hostile_names_are_escaped_for_plotly_too(report: Report) -> None:
    figures = json.loads(Page(render(poisoned(report))).scripts["figures"])
    strings: list[str] = []

    def gather(value: Any) -> None:
        if isinstance(value, str):
            strings.append(value)
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            gather(item)

    gather(figures)
    assert any("&lt;script&gt;" in text for text in strings)
    assert not any(re.search(r"<(script|img)", text) for text in strings)


def test_long_names_of_operators_are_cut_in_strips_only(report: Report) -> None:
    cells = tuple(Cell(label="a_very_long_operator_name", family="others", ffn=512) for _ in range(4))
    page = Page(render(replace(report, designs=(replace(report.designs[0], cells=cells, chosen=True),))))
    assert "a_very_long…" in page.text
    assert any("a_very_long_operator_name" in (attrs.get("title") or "") for _, attrs in page.tags)


def test_infinite_numbers_are_refused(report: Report) -> None:
    with pytest.raises(ValueError, match="JSON"):
        render(replace(report, operators=tuple(replace(row, high_ms=math.inf) for row in report.operators)))


def test_a_metric_of_another_device_is_named_with_it() -> None:
    assert metric_name("adb:R5CT1/decode_ms@4096") == "decode at 4,096 tokens on adb:R5CT1"
    assert metric_unit("adb:R5CT1/decode_ms@4096") == metric_unit("decode_ms@4096") == "ms"
    assert sentence(metric_name("adb:R5CT1/decode_ms@4096")) == "Decode at 4,096 tokens on adb:R5CT1"
