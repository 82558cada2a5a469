"""The page in a real headless Chromium, opened from a file: drawn, quiet, nothing loaded, nothing clipped, light, dark, narrow, printed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from reports.page import render
from reports.rows import Report
from tests.reports.sample import sample_report
from tests.reports.test_page import poisoned

pytestmark = [pytest.mark.browser, pytest.mark.slow]

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")

CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SETTINGS: dict[str, dict[str, Any]] = {
    "light": {"viewport": WIDE, "color_scheme": "light"},
    "dark": {"viewport": WIDE, "color_scheme": "dark"},
    "narrow": {"viewport": NARROW, "color_scheme": "light", "has_touch": True, "is_mobile": True},
    "narrow dark": {"viewport": {"width": 320, "height": 700}, "color_scheme": "dark"},
}
CHARTS = [
    "designs",
    "confirmed",
    "predicted",
    "calibration",
    "decode",
    "prefill",
    "samples",
    "roofline",
    "memory",
    "plan",
    "training",
    "parameters",
]


@dataclass
class Opened:
    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def run(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium, or name one in CHROMIUM")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report() -> Report:
    return sample_report()


@pytest.fixture(scope="module")
def path(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report with spaces.html"
    path.write_text(render(report), encoding="utf-8")
    return path


def visit(browser: Any, path: Path, **settings: Any) -> Opened:
    """Open a file with the network cut off and everything that it says or asks for written down."""
    before = settings.pop("before", None)
    context = browser.new_context(offline=True, **settings)
    opened = Opened(page=context.new_page())
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.on("console", lambda message: opened.complaints.append(f"{message.type}: {message.text}"))
    opened.page.on("pageerror", lambda error: opened.complaints.append(f"error: {error}"))
    if before:
        opened.page.add_init_script(before)
    opened.page.goto(path.as_uri())
    opened.page.wait_for_selector("html[data-drawn]", state="attached", timeout=60_000)
    return opened


PROBES = (Path(__file__).parent / "probes.js").read_text(encoding="utf-8")
"""Functions that look at the open page: drawn(), outside(), overlapping(), chartText(). Each returns what is wrong, in words."""


@pytest.fixture(scope="module", params=SETTINGS)
def opened(request: pytest.FixtureRequest, browser: Any, path: Path) -> Iterator[Opened]:
    """The sample report in each setting, opened once for all tests that only look."""
    opened = visit(browser, path, before=PROBES, **SETTINGS[request.param])
    yield opened
    opened.page.context.close()


def test_every_chart_is_drawn_and_nothing_else_happens(opened: Opened, path: Path) -> None:
    assert opened.requests == [path.as_uri()], "the page asked for something else"
    assert opened.complaints == []
    drawn = opened.run("() => probes.drawn()")
    assert [chart["key"] for chart in drawn] == CHARTS
    for chart in drawn:
        assert chart["svg"], chart
        assert not chart["failed"], chart
        assert abs(chart["width"] - chart["room"]) <= 2, chart
        assert chart["plotWidth"] > 80, chart
        assert chart["plotHeight"] > 60, chart
        assert chart["traces"] == chart["expected"], chart
        assert not chart["empty"], chart


def test_cells_and_cards_keep_apart(opened: Opened) -> None:
    assert opened.run("() => probes.overlapping()") == []


def test_labels_stay_in_their_charts_and_apart(opened: Opened) -> None:
    assert opened.run("() => probes.chartText()") == []


def test_nothing_leaves_the_page_or_is_clipped(opened: Opened) -> None:
    opened.run("() => document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert opened.run("() => probes.outside()") == []


@pytest.mark.parametrize("width", [390, 400, 412])
def test_the_budgets_are_whole_on_a_phone(browser: Any, path: Path, width: int) -> None:
    """Every column is seen without scrolling; what is too wide for a phone says so by a shadow, and scrolls in its own box."""
    opened = visit(browser, path, viewport={"width": width, "height": 844}, is_mobile=True)
    box = "document.querySelector('section[aria-labelledby=budgets-title] .scroll')"
    assert opened.run(f"() => {box}.scrollWidth - {box}.clientWidth") <= 0
    cells = opened.run(f"() => [...{box}.querySelectorAll('td, th')].map((cell) => cell.getBoundingClientRect().right)")
    assert max(cells) <= opened.run(f"() => {box}.getBoundingClientRect().right") + 0.5
    wide = "document.querySelector('section[aria-labelledby=confirmed-title] .scroll')"
    opened.run("() => document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert opened.run(f"() => {wide}.scrollWidth > {wide}.clientWidth")
    assert opened.run(f"() => getComputedStyle({wide}).overflowX") == "auto"
    assert "gradient" in opened.run(f"() => getComputedStyle({wide}).backgroundImage")
    opened.page.context.close()


def test_a_confirmation_shows_every_width_and_who_won(browser: Any, path: Path) -> None:
    opened = visit(browser, path, before=PROBES, **SETTINGS["narrow"])
    section = "section[aria-labelledby=confirmed-title]"
    ticks = "() => [...document.querySelectorAll('[data-chart=confirmed] .ytick text')].map((text) => text.textContent)"
    expected = ["search 1 ★", "search 2", "baseline", "random 1", "search 3", "random 2", "random 3"]
    assert opened.run(ticks) == expected
    assert opened.run("() => document.querySelectorAll('[data-chart=confirmed] .errorbar').length") == 7
    opened.page.select_option(f"{section} select.view", "1")
    opened.page.wait_for_timeout(200)
    assert opened.run(ticks) == expected
    assert opened.run("() => probes.chartText()") == []
    assert "Winner: search 1" in (opened.page.text_content(section) or "")
    assert opened.run("() => document.querySelectorAll('[data-legend=confirmed] button').length") == 3
    assert opened.complaints == []
    opened.page.context.close()


BACKGROUND = "() => getComputedStyle(document.body).backgroundColor"
INK = """() => getComputedStyle(document.querySelector('.chart .xtick text')).fill"""


def test_theme_follows_the_system_and_the_button_and_is_remembered(browser: Any, path: Path) -> None:
    opened = visit(browser, path, **SETTINGS["light"])
    light, ink = opened.run(BACKGROUND), opened.run(INK)
    opened.page.emulate_media(color_scheme="dark")
    dark = opened.run(BACKGROUND)
    assert dark != light
    opened.page.emulate_media(color_scheme="light")
    opened.page.click("#theme")
    opened.page.wait_for_timeout(500)
    assert opened.run(BACKGROUND) == dark
    assert opened.run(INK) != ink, "the charts kept their colours"
    assert opened.page.text_content("#theme") == "Light"
    opened.page.reload()
    opened.page.wait_for_selector("html[data-drawn]", state="attached")
    assert opened.run(BACKGROUND) == dark, "the choice was forgotten"
    opened.page.click("#theme")
    assert opened.run(BACKGROUND) == light
    assert opened.complaints == []


def test_closed_storage_does_no_harm(browser: Any, path: Path) -> None:
    """Some browsers refuse localStorage to files."""
    deny = "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('denied', 'SecurityError'); } });"
    opened = visit(browser, path, before=deny, **SETTINGS["light"])
    light = opened.run(BACKGROUND)
    opened.page.click("#theme")
    assert opened.run(BACKGROUND) != light
    assert opened.complaints == []


def test_views_can_be_chosen_and_series_switched_off(browser: Any, path: Path) -> None:
    opened = visit(browser, path, **SETTINGS["light"])
    for select in opened.page.query_selector_all("select.view"):
        key = select.get_attribute("data-for")
        for option in select.query_selector_all("option"):
            select.select_option(option.get_attribute("value"))
            opened.page.wait_for_timeout(60)
            traces = opened.run("(key) => document.querySelectorAll(`[data-chart=${key}] .trace path`).length", key)
            assert traces, (key, option.text_content())
    count = "() => document.querySelectorAll('[data-chart=samples] .scatterlayer .trace').length"
    before = opened.run(count)
    entry = opened.page.query_selector("[data-legend=samples] button")
    entry.click()
    opened.page.wait_for_timeout(200)
    assert opened.run(count) == before - 1
    assert opened.page.get_attribute("[data-legend=samples] button", "aria-pressed") == "false"
    opened.page.click("[data-legend=samples] button")
    opened.page.wait_for_timeout(200)
    assert opened.run(count) == before
    assert opened.complaints == []


def test_turning_the_phone_draws_again(browser: Any, path: Path) -> None:
    opened = visit(browser, path, before=PROBES, **SETTINGS["light"])
    opened.page.set_viewport_size(NARROW)
    opened.page.wait_for_timeout(1500)
    assert all(abs(chart["width"] - chart["room"]) <= 2 for chart in opened.run("() => probes.drawn()"))
    assert opened.run("() => document.documentElement.scrollWidth") <= NARROW["width"]


def test_hostile_names_do_nothing_but_show(browser: Any, report: Report, tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    path.write_text(render(poisoned(report)), encoding="utf-8")
    fired = "window.fired = 0; window.alert = () => { window.fired += 1; };"
    opened = visit(browser, path, before=fired, **SETTINGS["light"])
    assert opened.run("() => window.fired") == 0
    assert opened.requests == [path.as_uri()]
    assert opened.complaints == []
    assert opened.run("() => document.querySelectorAll('main img, main script').length") == 0


def test_old_browsers_get_words_in_place_of_charts(browser: Any, path: Path) -> None:
    opened = visit(browser, path, before="delete window.DecompressionStream;", **SETTINGS["light"])
    assert "too old" in opened.page.text_content("#notice")
    assert opened.page.is_visible("#notice")
    assert opened.run("() => [...document.querySelectorAll('.chart')].every((chart) => chart.clientHeight === 0)")
    assert opened.complaints == []


def test_without_javascript_the_numbers_are_there(browser: Any, path: Path) -> None:
    context = browser.new_context(java_script_enabled=False, offline=True, viewport=WIDE)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.is_visible("noscript")
    assert "Charts need JavaScript" in (page.text_content("noscript") or "")
    assert page.is_visible("section[aria-labelledby=budgets-title] table")
    context.close()


def test_partial_reports_draw_what_they_have(browser: Any, report: Report, tmp_path: Path) -> None:
    path = tmp_path / "profiled.html"
    profiled = replace(
        Report(title="only profiled", subtitle=""),
        operators=report.operators,
        samples=report.samples,
        devices=report.devices,
        series=report.series,
    )
    path.write_text(render(profiled), encoding="utf-8")
    opened = visit(browser, path, before=PROBES, **SETTINGS["narrow"])
    assert [chart["key"] for chart in opened.run("() => probes.drawn()")] == ["decode", "prefill", "samples"]
    assert opened.complaints == []


PAPER = 703
"""CSS pixels of A4 between margins of 12 mm."""
RECORD = """
addEventListener('afterprint', () => {
  window.printed = {
    charts: probes.drawn().map(({ key, width, room }) => ({ key, width, room })),
    legends: [...document.querySelectorAll('[data-legend] button')].map((entry) => ({ shown: entry.getBoundingClientRect().width > 0 })),
    inks: [getComputedStyle(document.querySelector('.chart .xtick text')).fill],
  };
});
"""
"""Runs before the page's own listener: what was drawn for paper."""


def test_it_prints_on_white_as_wide_as_the_paper_with_its_legends(browser: Any, path: Path) -> None:
    opened = visit(browser, path, before=PROBES + RECORD, **SETTINGS["dark"])
    assert opened.page.pdf(format="A4").startswith(b"%PDF")
    charts, legends, inks = opened.run("() => [printed.charts, printed.legends, printed.inks]")
    assert len(charts) == len(CHARTS)
    for chart in charts:
        assert chart["width"] <= PAPER, chart
        assert abs(chart["width"] - chart["room"]) <= 2, chart
    assert legends
    assert all(entry["shown"] for entry in legends), "a chart without its legend says nothing"
    assert len(set(inks)) == 1
    assert inks != [opened.run(INK)], "drawn for the dark screen"
    opened.page.wait_for_timeout(500)
    assert max(chart["width"] for chart in opened.run("() => probes.drawn()")) > PAPER, "the screen is as it was"
    opened.page.emulate_media(media="print")
    assert opened.run("() => document.querySelector('main').getBoundingClientRect().width") <= PAPER
    assert opened.run("() => getComputedStyle(document.querySelector('[data-legend=samples] button')).display") != "none"
    assert opened.run("() => getComputedStyle(document.querySelector('#theme')).display") == "none"
    assert opened.run("() => getComputedStyle(document.querySelector('.card')).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.complaints == []
