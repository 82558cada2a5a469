"""The infos behind the figures, and that what is plotted is valid plotly."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reports.figures import charts
from reports.figures.calibration import calibration_info
from reports.figures.calibration import plot as plot_calibration
from reports.figures.chart import log_ticks
from reports.figures.designs import QUALITIES, costs_info, front_of, pareto_info
from reports.figures.memory import memory_info
from reports.figures.operators import operators_info
from reports.figures.overtraining import overtraining_chart, overtraining_info, pieces
from reports.figures.parameters import parameters_info
from reports.figures.predicted import plot_errors, predicted_chart, predicted_info
from reports.figures.roofline import roofline_info
from reports.figures.samples import POINTS, samples_info
from reports.figures.strips import STRIPS, strips_info
from reports.figures.training import smoothed, training_info
from reports.palette import DARK, LIGHT, OTHERS_DARK, OTHERS_LIGHT, PARTS, contrast, ink_on, palette_of
from reports.rows import BudgetRow, Cell, DesignRow, PredictedRow, Report, Samples
from reports.tables import budgets_table, same_conditions, series_table, unknown_conditions
from reports.text import amount, metric_name, millions, natural_key, power, short_count, signed_percent, significant, tick_text, with_unit
from tests.reports.sample import sample_report

TEXT, RECALL = QUALITIES


@pytest.fixture(scope="module")
def report() -> Report:
    return sample_report()


def design(latency: float, bits: float | None = None, *, solved: bool | None = None, feasible: bool = True, **more: object) -> DesignRow:
    row = DesignRow(
        spec_id=f"{latency}-{bits}",
        pattern="conv3 x1",
        cells=(Cell(label="conv3", family="conv", ffn=512),),
        hidden_size=64,
        parameters=1e6,
        latency_ms=latency,
        memory_mb=100 + latency,
        feasible=feasible,
        trained=bits is not None,
        recall_accuracy=None if solved is None else float(solved),
        recall_solved=solved,
        text_bits_per_byte=bits,
    )
    return replace(row, **more)  # type: ignore[arg-type]


def test_operators_are_grouped_by_setting_and_ffn_widest_first(report: Report) -> None:
    info = operators_info(report, "decode")
    assert info is not None
    assert [view.ffn for view in info.views] == [4608, 2560]
    assert [curve.operator for curve in info.views[0].curves] == ["conv3", "conv7", "gla4", "swa256", "swa1024", "gqa4", "gqa8", "rwkv"]
    conv3 = info.views[0].curves[0]
    rows = sorted((r for r in report.operators if r.label == "conv3/4608" and r.phase == "decode"), key=lambda row: row.context)
    assert conv3.at == tuple(row.context for row in rows)
    assert conv3.time_ms == tuple(row.time_ms for row in rows)
    assert conv3.low_ms == tuple(row.low_ms for row in rows)


def test_settings_that_differ_give_views_of_their_own(report: Report) -> None:
    other = tuple(replace(row, threads=1, device="adb:PHONE") for row in report.operators)
    info = operators_info(replace(report, operators=report.operators + other), "decode")
    assert info is not None
    assert [(view.setting, view.ffn) for view in info.views] == [
        ("local, 2 threads", 4608),
        ("local, 2 threads", 2560),
        ("adb:PHONE, 1 thread", 4608),
        ("adb:PHONE, 1 thread", 2560),
    ]
    assert all(len(curve.at) == len(set(curve.at)) for view in info.views for curve in view.curves)


def test_front_holds_what_nothing_faster_equals() -> None:
    rows = [design(3, 2.0), design(1, 3.0), design(2, 3.0), design(2.5, 2.5), design(4, 1.9), design(5, 1.9)]
    assert [(row.latency_ms, row.text_bits_per_byte) for row in front_of(rows, TEXT)] == [(1, 3.0), (2.5, 2.5), (3, 2.0), (4, 1.9)]
    recall = [design(1, 2.0, recall_accuracy=0.2), design(2, 2.0, recall_accuracy=0.9), design(3, 2.0, recall_accuracy=0.5)]
    assert [row.latency_ms for row in front_of(recall, RECALL)] == [1, 2]


def test_pareto_sets_apart_what_is_over_budget_and_what_does_not_recall() -> None:
    rows = (
        design(1, 2.0, solved=False),
        design(2, 2.5, solved=True),
        design(3, 2.4, solved=True, chosen=True),
        design(9, 1.0, solved=True, feasible=False),
        design(1.5),
    )
    info = pareto_info(Report(title="", subtitle="", designs=rows, latency_metric="decode_ms@4096"), TEXT)
    assert info is not None
    assert [row.latency_ms for row in info.over_budget] == [9]
    assert [row.latency_ms for row in info.feasible] == [1, 2, 3]
    assert [row.latency_ms for row in info.front] == [2, 3], "the front is among those that solve recall"
    assert info.solved_only
    assert info.chosen is rows[2]
    assert info.latency_limit is None
    assert pareto_info(Report(title="", subtitle="", designs=(design(1.5),)), TEXT) is None


def test_costs_show_every_design_once(report: Report) -> None:
    info = costs_info(report)
    assert info is not None
    shown = (*info.over_budget, *info.feasible, *info.trained)
    assert sorted(row.spec_id for row in shown) == sorted(row.spec_id for row in report.designs)
    assert (info.latency_limit, info.memory_limit) == (7.0, 360.0)


def test_strips_show_chosen_front_and_named_fastest_first(report: Report) -> None:
    info = strips_info(report)
    assert info is not None
    wanted = [row for row in report.designs if row.chosen or row.on_front or row.label]
    assert len(info.strips) == min(len(wanted), STRIPS)
    assert [strip.title for strip in info.strips] == [with_unit(ms, "ms") for ms in sorted(row.latency_ms for row in wanted)[:STRIPS]]
    assert sum(strip.chosen for strip in info.strips) == 1
    assert info.longest_label == max(len(cell.label) for row in wanted for cell in row.cells)
    many = replace(report, designs=tuple(replace(row, on_front=True) for row in report.designs))
    assert (more := strips_info(many)) is not None
    assert len(more.strips) == STRIPS
    assert more.left_out == len(report.designs) - STRIPS
    assert any(strip.chosen for strip in more.strips), "the chosen layout is never left out"


def test_error_is_signed_and_rows_with_one_side_are_counted() -> None:
    common = {"model": "m", "trained": True, "unit": "ms", "low": 9.0, "high": 11.0}
    rows = (
        PredictedRow(workload="decode@1024", predicted=10.0, measured=8.0, **common),  # type: ignore[arg-type]
        PredictedRow(workload="decode@4096", predicted=10.0, measured=10.5, **common),  # type: ignore[arg-type]
        PredictedRow(workload="prefill@512", predicted=10.0, measured=None, **common),  # type: ignore[arg-type]
    )
    info = predicted_info(Report(title="", subtitle="", predicted=rows))
    assert info is not None
    assert [row.error for row in info.compared] == pytest.approx([0.25, 10 / 10.5 - 1])
    assert [row.inside for row in info.compared] == [False, True]
    assert info.not_compared == 1
    figure = plot_errors(info)
    assert len(figure["data"]) == 1, "neither p95 nor drift are known"
    assert figure["data"][0]["x"] == pytest.approx([25.0, -4.7619], abs=1e-3)
    assert figure["layout"]["yaxis"]["ticktext"] == ["<b>m</b>", "decode at 1,024", "decode at 4,096"]
    assert figure["data"][0]["y"] == [1, 2]


def test_what_was_predicted_beyond_the_measured_lengths_is_marked() -> None:
    row = PredictedRow(model="m", trained=True, workload="decode@8", unit="ms", predicted=10.0, low=9.0, high=11.0, measured=9.5)
    for extrapolated in (False, True):
        report = Report(title="", subtitle="", predicted=(replace(row, extrapolated=extrapolated),))
        chart = predicted_chart(report)
        assert chart is not None
        assert chart.table is not None
        assert ("beyond the measured lengths" in chart.caption) is extrapolated
        assert chart.views[0].figure["layout"]["yaxis"]["ticktext"][1] == "decode at 8" + "*" * extrapolated
        assert ("extrapolated" in str(chart.table.rows)) is extrapolated


def test_blocks_beside_the_model_tell_whether_the_machine_changed() -> None:
    row = PredictedRow(
        model="m", trained=True, workload="decode@8", unit="ms", predicted=10.0, low=9.0, high=11.0, measured=5.0, p95=6.0, drift=0.52
    )
    info = predicted_info(Report(title="", subtitle="", predicted=(row,)))
    assert info is not None
    assert info.compared[0].beside == pytest.approx(5.2)
    p95, predicted, beside = plot_errors(info)["data"]
    assert (p95["x"], predicted["x"], beside["x"]) == ([20.0], [100.0], [pytest.approx(4.0)])


def test_distribution_keeps_extremes_and_quantiles() -> None:
    values = tuple(float(i) for i in range(1001, 0, -1))
    row = Samples(label="a/1", family="conv", workload="decode@8", milliseconds=values)
    (info,) = samples_info(Report(title="", subtitle="", samples=(row,)))
    (found,) = info.distributions
    assert found.n == 1001
    assert len(found.milliseconds) <= POINTS
    assert (found.milliseconds[0], found.milliseconds[-1]) == (1.0, 1001.0)
    assert found.share[-1] == 1.0
    assert (found.p50, found.p90, found.p99) == pytest.approx((501.0, 901.0, 991.0))
    assert all(share == pytest.approx(ms / 1001) for ms, share in zip(found.milliseconds, found.share, strict=True))


def test_memory_stacks_to_the_total(report: Report) -> None:
    info = memory_info(report)
    assert info is not None
    assert info.contexts == tuple(sorted(info.contexts))
    assert info.totals == pytest.approx([sum(values[at] for values in info.parts.values()) for at in range(len(info.contexts))])
    assert info.budget == 360.0
    assert [value is not None for value in info.measured] == [False, True, True, False]


def test_parameters_keep_every_part_and_their_order(report: Report) -> None:
    info = parameters_info(report)
    assert info is not None
    assert info.parts[0] == "embedding"
    assert info.parts[-3:] == ("ffn", "norms", "vision")
    for model, row in zip(info.models, report.parameters, strict=True):
        assert model.total == sum(row.parts.values()) == sum(model.counts)


@pytest.mark.parametrize(("gbps", "gflops", "points"), [(None, None, 0), (60.0, None, 2), (60.0, 400.0, 3)])
def test_roof_is_drawn_only_where_measured(report: Report, gbps: float | None, gflops: float | None, points: int) -> None:
    info = roofline_info(replace(report, roof_gbps=gbps, roof_gflops=gflops))
    assert info is not None
    assert len(info.roof) == points
    for intensity, reached in info.roof:
        assert reached == pytest.approx(min(intensity * (gbps or 0), gflops or float("inf")))


def test_smoothing_keeps_a_straight_line() -> None:
    line = tuple(10.0 - 0.5 * at for at in range(30))
    assert smoothed(line) == pytest.approx(line)
    info = training_info(sample_report())
    assert info is not None
    assert len(info.smooth) == len(info.loss) == len(info.tokens)


def test_budgets_say_kept_or_missed(report: Report) -> None:
    table = budgets_table(report)
    assert table is not None
    assert {table.rows[line][0] for line, _ in table.bad} == {"Prefill of 512 tokens"}
    impossible = replace(report, budgets=tuple(replace(row, predicted=None, measured=None, best_reachable=1.0) for row in report.budgets))
    table = budgets_table(impossible)
    assert table is not None
    assert table.header[-1] == "Best reachable by itself"
    assert not table.bad


def test_conditions_leave_out_what_no_process_tells(report: Report) -> None:
    table = series_table(report)
    assert table is not None
    assert "Temperature, °C" not in table.header
    assert "Clock, MHz" in table.header
    assert "Threads" not in table.header
    assert same_conditions(report)["threads"] == "2"
    mixed = replace(report, series=(*report.series, replace(report.series[0], threads=1)))
    assert (several := series_table(mixed)) is not None
    assert "Threads" in several.header
    assert "threads" not in same_conditions(mixed)
    assert (single := series_table(replace(report, series=report.series[:1]))) is not None
    assert "Threads" in single.header
    assert unknown_conditions(report) == ("temperature", "governor")
    assert all(len(row) == len(table.header) for row in table.rows)


def test_colours_are_shared_and_inks_readable(report: Report) -> None:
    palette = palette_of(report)
    assert len(palette.light) == len(palette.dark)
    shades = {palette.operator(family, label) for family, label in palette.operators}
    assert len(shades) == len(palette.operators), "two operators share a variable"
    ramps = (*LIGHT.values(), *DARK.values(), *OTHERS_LIGHT, *OTHERS_DARK, *PARTS.values())
    for colour in {*palette.light, *palette.dark, *(shade for ramp in ramps for shade in ramp)}:
        assert contrast(colour, ink_on(colour)) >= 4.5, colour
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


def test_every_figure_is_valid_plotly(report: Report) -> None:
    graph_objects = pytest.importorskip("plotly.graph_objects")
    drawn = charts(report, palette_of(report))
    assert set(drawn) == {
        "decode",
        "prefill",
        "samples",
        "roofline",
        "designs",
        "confirmed",
        "predicted",
        "calibration",
        "memory",
        "parameters",
        "plan",
        "training",
    }
    for chart in drawn.values():
        assert chart.views
        assert chart.summary
        for view in chart.views:
            graph_objects.Figure(view.figure)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([1, 1000], [1, 10, 100, 1000]),
        ([0.3, 2.5], [0.3, 0.5, 1, 2, 3]),
        ([0.04, 0.06], [0.05, 0.07]),
        ([0, -1], []),
    ],
)
def test_log_ticks_are_round(values: list[float], ticks: list[float]) -> None:
    assert log_ticks(values) == pytest.approx(ticks)


def test_numbers_in_words() -> None:
    assert [significant(x) for x in (0.04564, 12.345, 1234.5, 0, 99.96, float("nan"))] == ["0.0456", "12.3", "1,230", "0", "100", "–"]
    assert [with_unit(x, "ms") for x in (0.0456, 0.5, None)] == ["45.6 µs", "0.500 ms", "–"]
    assert [millions(x) for x in (6_168_320, 1_170_340_608)] == ["6.17 M", "1.17 B"]
    assert [short_count(x) for x in (512, 1000, 1024, 32768)] == ["512", "1,000", "1k", "32k"]
    assert [tick_text(x) for x in (0.05, 1.5, 1000.0)] == ["0.05", "1.5", "1,000"]
    assert signed_percent(-0.0571) == "−5.7 %"
    assert metric_name("decode_ms@4096") == "decode at 4,096 tokens"
    assert sorted(["swa512", "swa64", "conv7"], key=natural_key) == ["conv7", "swa64", "swa512"]


def test_errors_of_held_out_models_lie_where_they_are_and_show_what_was_covered(report: Report) -> None:
    info = calibration_info(report)
    assert info is not None
    assert (info.layouts, info.within, len(info.shown)) == (6, 5, 1)
    assert info.shown[0].endswith("int4, 1 thread")
    figure = plot_calibration(info)
    covered, missed = figure["data"]
    assert sorted(covered["x"] + missed["x"]) == pytest.approx([-8, -3, -1, 0, 2, 4])
    assert sorted(missed["x"]) == pytest.approx([-8, -3, 4])
    low, high = figure["layout"]["xaxis"]["range"]
    assert low < -8
    assert high > 5
    assert calibration_info(Report(title="", subtitle="")) is None


def test_a_plan_is_solid_where_the_law_knows_and_dashed_beyond(report: Report) -> None:
    info = overtraining_info(report)
    assert info is not None
    (first, known), (second, unknown) = info.pieces
    assert [piece.fitted for piece in known] == [True, False]
    assert known[0].tokens[-1] == known[1].tokens[0], "the line does not break"
    assert known[0].tokens[0] == first.curve.tokens[0]
    assert known[-1].tokens[-1] == first.curve.tokens[-1]
    assert [piece.fitted for piece in unknown] == [False], "no tokens make a fit know a size that it had not seen"
    assert unknown[0].loss == second.curve.loss
    middle = replace(first, curve=replace(first.curve, fitted=(2e9, 1.2e11)))
    assert [piece.fitted for piece in pieces(middle)] == [False, True, False]
    assert overtraining_info(replace(report, plan=None)) is None


def test_a_plan_draws_both_views_and_says_what_it_costs(report: Report) -> None:
    chart = overtraining_chart(report)
    assert chart is not None
    loss, flops = (view.figure for view in chart.views)
    lines = [trace for trace in loss["data"] if trace["mode"] == "lines" and "fill" not in trace]
    assert [trace["line"]["dash"] for trace in lines] == ["solid", "dash", "dash"]
    assert sum(trace.get("fill") == "toself" for trace in loss["data"]) == 1, "only the first law has an interval"
    assert loss["layout"]["shapes"][0]["x0"] == 2e12
    named = [trace["name"] for trace in flops["data"] if trace.get("showlegend") is not False]
    assert named == ["first", "first, best size", "second", "second, best size"]
    assert "1/9.4 of the compute by 1.90B parameters" in chart.summary
    assert "pays off after 1.30T tokens of inference" in chart.summary
    assert "First and second are extrapolated here" in chart.summary
    assert chart.table is not None
    assert all(len(row) == len(chart.table.header) for row in chart.table.rows)
    told = {label: cells for label, *cells in chart.table.rows}
    assert told["The right size"] == ["for 110T tokens of inference", "for none"]
    assert told["Same loss, least training"] == ["1.90B on 42.0B, for 1/9.4 of the FLOP"] * 2
    assert all(cell.startswith("440M on 1.10T, saves ") for cell in told["Cheapest for 1.00T"])
    assert report.plan is not None
    alone = overtraining_chart(replace(report, plan=replace(report.plan, inference_tokens=None, chosen=False)))
    assert alone is not None
    assert alone.table is not None
    assert not any(label.startswith("Cheapest") for label, *_ in alone.table.rows)
    assert "not the chosen layout" in alone.caption


def test_amounts_in_words() -> None:
    assert [amount(x) for x in (354_483_968, 28e12, 1.54e15, 1500, 12)] == ["354M", "28.0T", "1.54·10¹⁵", "1.50k", "12.0"]
    assert [amount(10.0**x, 1) for x in (9, 11, 12, 15)] == ["1B", "100B", "1T", "10¹⁵"]
    assert power(5.9553e22) == "5.96·10²²"


@pytest.mark.parametrize(("predicted", "state"), [(354e6, "kept, 101\u00a0%"), (340e6, "missed, 97\u00a0%")])
def test_a_held_size_has_a_lower_limit(report: Report, predicted: float, state: str) -> None:
    row = BudgetRow(metric="parameters", unit="", limit=351e6, predicted=predicted, at_least=True)
    table = budgets_table(replace(report, budgets=(row,)))
    assert table is not None
    assert table.rows[0][0] == "Parameters, at least"
    assert table.rows[0][4] == state
    assert bool(table.bad) == state.startswith("missed")
