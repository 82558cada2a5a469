"""The book in a real optuna-dashboard: what is refused or stopped has its reason and is nowhere among the best."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from search_fakes import space_of
from search_harness import search, searcher_of

CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BUDGET = "decode_ms@4096<=35"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a dashboard on the study of a search under a budget, half of which was stopped at the first look."""
    pytest.importorskip("optuna_dashboard", reason="no optuna-dashboard here: pip install optuna-dashboard")
    folder = tmp_path_factory.mktemp("dashboard")
    searcher = searcher_of(folder, space_of(layers=8), [BUDGET], trials=5, halving=2)
    search(searcher)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = f"from optuna_dashboard import run_server; run_server({searcher.url!r}, host='127.0.0.1', port={port})"
    server = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while True:
            assert server.poll() is None
            assert time.monotonic() < end
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=10).close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def study_of(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{address}/api/studies/1?after=0", timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


@pytest.mark.slow
def test_the_dashboard_knows_constraints_and_shows_no_refused_layout_as_best(address: str) -> None:
    study = study_of(address)
    over = [trial for trial in study["trials"] if max(trial["constraints"]) > 0]
    assert over  # at least attention alone
    best = {trial["number"] for trial in study["best_trials"]}
    assert best
    assert not best & {trial["number"] for trial in over}
    assert {trial["state"] for trial in study["trials"] if trial["number"] in best} == {"Complete"}
    states = {trial["number"]: trial["state"] for trial in study["trials"]}
    assert all(states[trial["number"]] == "Pruned" for trial in over)
    for trial in study["trials"]:
        attributes = {entry["key"]: entry["value"] for entry in trial["user_attrs"]}
        if trial["state"] == "Pruned":
            assert "decode_ms@4096" in attributes["reason"] or "others promised more" in attributes["reason"]


@pytest.mark.slow
def test_a_browser_shows_the_front_by_the_names_of_its_objectives(address: str) -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium, or name one in CHROMIUM")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-quic"])
        try:
            page = browser.new_page(viewport={"width": 1400, "height": 1200})
            page.set_default_timeout(120_000)
            page.goto(f"{address}/dashboard/studies/1")
            page.get_by_text("Pareto Front").first.wait_for()
            page.get_by_text("text_bits_per_byte").first.wait_for()
            page.goto(f"{address}/dashboard/studies/1/trials")
            page.get_by_text("Best Trial").first.wait_for()
            page.get_by_text("Trial 0 (trial_id=1)").wait_for()
            assert page.get_by_text("reason").count() >= 1
        finally:
            browser.close()
