"""The report's rows of a confirmation, and the figure that shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from archsearch.errors import RunError
from archsearch.report.confirmed import beside, confirmed, half_intervals
from archsearch.report.files import RunFiles
from reports.figures.confirmed import confirmed_chart, confirmed_info, plot
from reports.rows import Report


def entry(name: str, role: str, *text: float, solved: int = 2) -> dict[str, Any]:
    return {"spec_id": name, "pattern": f"{name} x4", "from": role, "recall_solved": solved, "text_bits_per_byte": list(text)}


def document(*standings: dict[str, Any], winner: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "winner": winner,
        "why": "beats all of 2 random layouts" if winner else "cannot be told from 1 of 2 random layouts at this scale",
        "recall_steps": 1200,
        "text_steps": 900,
        "seeds": list(range(2000, 2000 + len(standings[0]["text_bits_per_byte"]))),
        "tasks": ["recall", "text"],
        "standings": list(standings),
        "against_baseline": None,
        **more,
    }


class Run(RunFiles):
    """A run of which only the confirmation is there."""

    @property
    def space(self) -> Any:
        return type("Space", (), {"space_id": "s1"})()


def read(tmp_path: Path, found: dict[str, Any]) -> Any:
    (tmp_path / "confirmation.json").write_text(json.dumps(found))
    return confirmed(Run(tmp_path))


STANDINGS = (
    entry("a", "search", 2.00, 2.10, 2.05),
    entry("b", "baseline", 2.10, 2.20, 2.15),
    entry("c", "random", 2.11, 2.21, 2.16),
    entry("d", "random", 2.31, 2.41, 2.36, solved=1),
)


def test_each_is_told_beside_the_baseline_and_beside_random_ones(tmp_path: Path) -> None:
    found = read(tmp_path, document(*STANDINGS, winner="a"))
    best, base, first, last = found.contests[0].rows
    assert (best.winner, base.winner) == (True, False)
    assert best.baseline.word == best.random.word == "better"
    assert best.baseline.mean == pytest.approx(-0.1)
    assert best.random.mean == pytest.approx(2.05 - (2.16 + 2.36) / 2)
    assert base.baseline is None
    assert base.random.word == "better"
    assert first.random is last.random is None
    assert first.baseline.word == "worse"  # by 0.01 in every seed, which leaves no doubt
    assert (best.solved, best.synthetic) == (2, 3)
    assert all(row.half == pytest.approx(found.contests[0].rows[0].half) for row in found.contests[0].rows)


@pytest.mark.parametrize(
    ("own", "others", "solved", "word"),
    [
        ((2.0, 2.1), [(2.2, 2.3)], (2, 2), "better"),
        ((2.0, 2.1), [(2.1, 2.09)], (2, 2), "cannot tell"),
        ((2.0,), [(2.5,)], (1, 1), "cannot tell"),
        ((2.0, 2.1), [(2.2, 2.3)], (1, 2), "worse"),
        ((2.4, 2.5), [(2.2, 2.3)], (2, 1), "better"),
    ],
)
def test_recall_comes_before_text_and_text_counts_beyond_its_interval(
    own: tuple[float, ...], others: list[tuple[float, ...]], solved: tuple[int, int], word: str
) -> None:
    standings = [entry("r", "random", *text, solved=solved[1]) for text in others]
    assert beside(entry("a", "search", *own, solved=solved[0]), standings).word == word


def test_of_several_random_ones_recall_must_differ_from_all() -> None:
    randoms = [entry("r", "random", 2.0, 2.1, solved=0), entry("s", "random", 2.0, 2.1, solved=2)]
    assert beside(entry("a", "search", 2.0, 2.1, solved=1), randoms).word == "cannot tell"


def test_the_interval_is_pooled_over_layouts() -> None:
    """Student's t of 2 degrees of freedom, for two layouts of two seeds: 4.303."""
    low, high = half_intervals([[1.0, 1.2], [2.0, 2.4]])
    assert low == high == pytest.approx(4.303 * ((0.02 + 0.08) / 2) ** 0.5 / 2**0.5, rel=1e-3)
    assert half_intervals([[1.0], [2.0]]) == [None, None]


def test_widths_are_views_and_what_holds_at_scale_is_said(tmp_path: Path) -> None:
    rows = [{name: value for name, value in row.items() if name != "recall_solved"} for row in STANDINGS]
    at = {"width": 256, "tokens": 5000, "device": "cpu", "dtype": "fp32", "standings": rows}
    found = read(tmp_path, document(*STANDINGS, winner="a", scale={"widths": [at], "why": "it wins there too", "holds": True}))
    chart = confirmed_chart(Report(title="", subtitle="", confirmed=found))
    assert chart is not None
    assert [view.label for view in chart.views] == ["64 channels", "width 256"]
    assert chart.summary.startswith("Winner: search (a x4), which beats all of 2 random layouts.")
    assert "At larger widths: it wins there too." in chart.summary
    assert chart.table is not None
    assert [row[1] for row in chart.table.rows] == ["64 channels"] * 4 + ["width 256"] * 4
    assert chart.table.marked == {0, 4}
    assert chart.table.rows[4][3] == "–"
    assert all(len(row) == len(chart.table.header) for row in chart.table.rows)


def test_the_figure_has_every_training_and_every_mean(tmp_path: Path) -> None:
    info = confirmed_info(Report(title="", subtitle="", confirmed=read(tmp_path, document(*STANDINGS))))
    assert info is not None
    figure = plot(info.contests[0][1])
    seeds = [trace for trace in figure["data"] if not trace.get("showlegend", True)]
    means = [trace for trace in figure["data"] if trace.get("showlegend", True)]
    assert sorted(x for trace in seeds for x in trace["x"]) == sorted(value for row in STANDINGS for value in row["text_bits_per_byte"])
    assert [trace["name"] for trace in means] == ["the search's layouts", "random layouts within the budgets", "the baseline"]
    assert means[0]["x"] == [2.05]
    assert all(trace["error_x"]["array"] for trace in means)
    assert figure["layout"]["yaxis"]["ticktext"] == ["search", "baseline", "random 1", "random 2"]


def test_without_a_winner_a_baseline_or_a_second_seed_nothing_is_made_up(tmp_path: Path) -> None:
    found = read(tmp_path, document(entry("a", "search", 2.0), entry("c", "random", 2.4)))
    chart = confirmed_chart(Report(title="", subtitle="", confirmed=found))
    assert chart is not None
    assert chart.summary.startswith("No winner: cannot be told from 1 of 2")
    assert "baseline" not in chart.summary
    assert "there is no interval" in chart.caption
    assert chart.table is not None
    assert "Beside baseline" not in chart.table.header
    assert chart.table.rows[0][3] == "2.000"
    assert chart.table.rows[0][-1] == "cannot tell: −0.400"


def test_a_confirmation_of_another_space_is_not_shown_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    assert read(tmp_path, document(*STANDINGS, space_id="s2")) is None
    assert read(tmp_path, document(*STANDINGS, space_id="s1")) is not None
    with pytest.raises(RunError, match=r"confirmation\.json: not a confirmation; remove it"):
        read(tmp_path, {"standings": []})
