"""Plans: what is asked, what it really costs, T² with a user's constants, counts as people write them, the command."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import beta as beta_distribution

from archsearch.errors import FileFormatError, InputError, RunError
from archsearch.overtraining import LAWS, T2File, plan
from archsearch.overtraining.answers import keep
from archsearch.overtraining.cost import ACCELERATORS, accelerator_named, hours, training_flops_per_token
from archsearch.overtraining.curve import fitted_tokens
from archsearch.overtraining.quantities import format_count, format_hours, format_power, parse_count
from archsearch.overtraining.sampling import accuracy, best_accuracy, best_loss, pass_at, pretraining_loss, samples, sampling_loss
from archsearch.report import planned
from archsearch.report.files import RunFiles
from archsearch.spec import ArchSpec
from operators.specs import BlockSpec, FfnSpec, GqaSpec

LFM2 = Path(__file__).parents[2] / "examples" / "lfm2-350m.toml"
T2 = {
    "name": "a made-up task",
    "pretraining": {"E": 0.1, "A": 400.0, "B": 1000.0, "alpha": 0.35, "beta": 0.35},
    "sampling": {"G": 1.0, "gamma": 0.3},
    "accuracy": {"mean": [1.0, -2.0], "sample_size": [1.0, -0.1]},
}
Call = Callable[..., Outcome]


@pytest.fixture(scope="module")
def lfm2() -> ArchSpec:
    return ArchSpec.read(LFM2)


def t2_file(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps({key: value for key, value in (T2 | changes).items() if value is not None}))
    return path


# -- plans -------------------------------------------------------------------------------------------------------------------


def test_lfm2_350m_on_28_trillion_tokens(lfm2: ArchSpec) -> None:
    """What is published of LFM2.5-350M: 28T tokens, about 79,000 a parameter."""
    found = plan(lfm2, tokens=28e12)
    assert found.total == 354_483_968
    besiroglu, hoffmann = found.answers
    assert besiroglu.tokens / besiroglu.parameters == pytest.approx(79_000, rel=1e-3)
    assert besiroglu.six_nd == pytest.approx(6 * 354_483_968 * 28e12)
    for answer in (besiroglu, hoffmann):
        assert answer.tokens > 1000 * answer.optimal_tokens.value
        assert answer.same_loss.parameters > 5 * answer.parameters, "a larger model would have reached the loss"
        assert answer.compute_ratio.value > 10, "with far less compute"
        assert 1e13 < answer.break_even.value < 2e13 < answer.right_for.value
        assert any("78,988 tokens a parameter" in words for words in answer.beyond_fit)
        assert answer.loss.value - answer.excess_loss.value == pytest.approx(answer.same_compute.loss)
    assert besiroglu.loss.low is not None
    assert besiroglu.loss.high is not None
    assert besiroglu.loss.low < besiroglu.loss.value < besiroglu.loss.high
    assert hoffmann.loss.low is None
    assert any("Sardana" in sentence for sentence in found.notes)


def test_a_usual_training_needs_no_warning(lfm2: ArchSpec) -> None:
    found = plan(lfm2, tokens=8e9)
    assert all(answer.beyond_fit == () for answer in found.answers)
    assert found.notes == ()


def test_a_budget_pays_for_tokens(lfm2: ArchSpec) -> None:
    found = plan(lfm2, budget_flops=1e21)
    assert found.tokens == pytest.approx(1e21 / (6 * 354_483_968))
    assert found.answers[0].six_nd == pytest.approx(1e21)


def test_inference_alone_asks_each_law_for_the_tokens_that_make_this_size_right(lfm2: ArchSpec) -> None:
    found = plan(lfm2, inference_tokens=1e13)
    assert found.tokens is None
    for answer in found.answers:
        assert answer.right_for.value == pytest.approx(1e13, rel=1e-6)
        assert answer.lifetime is not None
        assert (answer.lifetime.parameters, answer.lifetime.tokens) == pytest.approx((answer.parameters, answer.tokens), rel=1e-5)
    assert found.answers[0].tokens != found.answers[1].tokens


def test_which_parameters_are_counted(lfm2: ArchSpec) -> None:
    found = plan(lfm2, tokens=8e9, counted="non-embedding", laws=["besiroglu"])
    assert found.non_embedding == 354_483_968 - 65536 * 1024
    (answer,) = found.answers
    assert answer.parameters == found.non_embedding
    assert any("its fit counted total ones (354M)" in words for words in answer.beyond_fit)


def test_the_documents_lines_add_up(lfm2: ArchSpec) -> None:
    document = plan(lfm2, tokens=28e12, inference_tokens=1e14).to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    law = document["laws"][0]
    assert law["total_flops"] == pytest.approx(law["six_nd"] + 2 * law["parameters"] * 1e14)
    assert law["lifetime"]["saved"] == pytest.approx(1 - law["lifetime"]["total_flops"] / law["total_flops"])
    assert law["lifetime"]["saved"] > 0
    (length,) = {len(law["curve"][name]) for name in ("tokens", "loss", "low", "high", "total_flops", "least_flops")}
    assert length > 60
    assert law["curve"]["fitted"][1] in law["curve"]["tokens"], "the line can end being solid where the fit ends"
    undertrained = plan(lfm2, tokens=1e9).to_dict()["laws"][0]
    assert undertrained["break_even_inference_tokens"]["value"] is None
    assert undertrained["right_for_inference_tokens"]["value"] is None


@settings(deadline=None, max_examples=30)
@given(
    tokens=st.floats(3, 20).map(lambda x: 10.0**x),
    served=st.none() | st.floats(0, 24).map(lambda x: 10.0**x),
    law=st.sampled_from(sorted(LAWS)),
)
def test_any_question_has_an_answer_that_json_can_carry(lfm2: ArchSpec, tokens: float, served: float | None, law: str) -> None:
    found = plan(lfm2, tokens=tokens, inference_tokens=served, laws=[law])
    json.dumps(found.to_dict(), allow_nan=False)
    (answer,) = found.answers
    assert answer.excess_loss.value >= -1e-12
    assert answer.compute_ratio.value >= 1 - 1e-9


@pytest.mark.parametrize(
    ("question", "complaint"),
    [
        ({}, "nothing to plan for"),
        ({"tokens": 1e9, "budget_flops": 1e20}, "give one of them"),
        ({"tokens": 0.0}, "--tokens must be above 0"),
        ({"inference_tokens": math.inf}, "--inference-tokens must be above 0"),
        ({"tokens": 1e9, "mfu": 1.5}, "between 0 and 1"),
        ({"tokens": 1e9, "sequence": 0}, "at least 1"),
        ({"tokens": 1e9, "laws": ["kaplan"]}, "no scaling law 'kaplan'"),
        ({"tokens": 1e9, "query_flops": 1e12}, "T² needs constants"),
        ({"tokens": 1e9, "t2": T2File.model_validate(T2)}, "needs --query-flops"),
        ({"inference_tokens": 1e9, "t2": T2File.model_validate(T2), "query_flops": 1e12}, "needs --tokens or --budget-flops"),
        ({"tokens": 1e9, "t2": T2File.model_validate(T2), "query_flops": 1e6}, "buys 0.0014 samples"),
    ],
)
def test_what_cannot_be_answered_is_refused(lfm2: ArchSpec, question: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        plan(lfm2, **question)


# -- what training really costs --------------------------------------------------------------------------------------------


def test_arithmetic_beside_6nd(lfm2: ArchSpec) -> None:
    short, long = (training_flops_per_token(lfm2, length) / (6 * 354_483_968) for length in (64, 32768))
    assert 1.0 < short < 1.01, "tied: the head's products stand for the lookup"
    attention = 6 * 16 * 64 * 4 * (32768 - 64) / 2 * 3  # six layers, 16 heads of 64, causal, backward twice forward
    assert (long - short) * 6 * 354_483_968 == pytest.approx(attention, rel=1e-6)


def test_an_untied_embedding_is_looked_up_for_nothing() -> None:
    block = BlockSpec(operator=GqaSpec(heads=8, kv_heads=8, head_dim=64), ffn=FfnSpec(intermediate_size=1408))
    tied = ArchSpec(name="t", hidden_size=512, vocab_size=65536, layers=(block,) * 4)
    untied = ArchSpec(name="u", hidden_size=512, vocab_size=65536, layers=(block,) * 4, tie_embeddings=False)
    assert training_flops_per_token(tied, 128) == training_flops_per_token(untied, 128)
    assert plan(untied, tokens=1e9).to_dict()["training"]["over_6n"] < 0.7 < 0.98 < plan(tied, tokens=1e9).to_dict()["training"]["over_6n"]


def test_hours() -> None:
    h100 = accelerator_named("h100")
    assert hours(989.4e12 * 3600, h100, 1.0) == pytest.approx(1)
    assert hours(989.4e12 * 3600, h100, 0.4) == pytest.approx(2.5)
    assert all(accelerator.source for accelerator in ACCELERATORS.values())
    with pytest.raises(InputError, match="--peak-tflops"):
        accelerator_named("cpu")


# -- T² -----------------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(a=st.floats(0.05, 50), b=st.floats(0.05, 50), k=st.integers(1, 300))
def test_pass_at_k_is_the_mean_over_questions(a: float, b: float, k: int) -> None:
    """E[1 - (1 - p)^k] for p from Beta(a, b), as a product of its own, and for one try the mean."""
    failing = math.prod((b + i) / (a + b + i) for i in range(k))
    assert pass_at(a, b, k) == pytest.approx(1 - failing, rel=1e-6, abs=1e-9)
    assert pass_at(a, b, 1) == pytest.approx(a / (a + b))


def test_pass_at_k_by_quadrature() -> None:
    mean, _ = quad(lambda p: (1 - (1 - p) ** 17) * beta_distribution.pdf(p, 2.0, 30.0), 0, 1)
    assert pass_at(2.0, 30.0, 17) == pytest.approx(mean, rel=1e-7)


def test_t2_optimum_is_one() -> None:
    constants = T2File.model_validate(T2)
    compute, query = 1e21, 2e11
    best = best_loss(constants, compute, query)
    assert 6 * best.parameters * best.tokens == pytest.approx(compute)
    assert best.samples == pytest.approx(query / (2 * best.parameters))
    surer = best_accuracy(constants, compute, query)
    assert surer is not None
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2):
        size = best.parameters * factor
        assert sampling_loss(constants, size, compute / (6 * size), query / (2 * size)) > best.value
        size = surer.parameters * factor
        assert accuracy(constants, size, compute / (6 * size), query / (2 * size)) <= surer.value + 1e-12


def test_t2_without_sampling_is_chinchilla_and_more_samples_mean_smaller_models() -> None:
    constants = T2File.model_validate(T2 | {"sampling": {"G": 1e-12, "gamma": 0.3}})
    terms = constants.pretraining
    alone = best_loss(constants, 1e21, 1e15)
    pull = (terms.alpha * terms.A / alone.parameters**terms.alpha) / (terms.beta * terms.B / alone.tokens**terms.beta)
    assert pull == pytest.approx(1, rel=1e-3)
    assert best_loss(T2File.model_validate(T2), 1e21, 1e11).parameters < alone.parameters / 2


def test_t2_of_one_model(lfm2: ArchSpec) -> None:
    constants = T2File.model_validate(T2 | {"accuracy": {"a": 0.5, "b": 20.0}, "sampling": None, "answer_tokens": 10})
    found = plan(lfm2, tokens=1e12, t2=constants, query_flops=2e12).t2
    assert found is not None
    assert found.samples == pytest.approx(2e12 / (2 * 354_483_968 * 10))
    assert found.accuracy == pytest.approx(pass_at(0.5, 20.0, found.samples))
    assert found.loss is found.best_loss is found.best_accuracy is None
    assert samples(constants, 1e6, 2e7) == 1
    assert pretraining_loss(constants, 1e6, 1e9) > 0.1


@pytest.mark.parametrize(
    ("changes", "field", "problem"),
    [
        ({"sampling": None, "accuracy": None}, None, "needs"),
        ({"accuracy": {"a": 1.0}}, "accuracy", "give a and b, or mean and sample_size"),
        ({"accuracy": {"a": 1.0, "b": 2.0, "mean": [0.0, 1.0], "sample_size": [0.0, 1.0]}}, "accuracy", "and not both"),
        ({"sampling": {"G": -1.0, "gamma": 0.3}}, "sampling.G", "greater than 0"),
        ({"pretraining": {"E": 1.0}}, "pretraining.A", "missing"),
        ({"gamma": 3}, "gamma", "unknown key"),
    ],
)
def test_constants_that_are_none(tmp_path: Path, changes: dict[str, Any], field: str | None, problem: str) -> None:
    with pytest.raises(FileFormatError, match=problem) as caught:
        T2File.read(t2_file(tmp_path / "t2.json", **changes))
    assert caught.value.field == field


# -- counts --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("28T", 28e12), ("300b", 300e9), ("2M", 2e6), ("1e12", 1e12), ("1.5k", 1500), ("1_000_000", 1e6), ("6e22", 6e22), ("60Z", 6e22),
        (" 5 ", 5), ("2,000", 2000), (".5G", 5e8), ("1E9", 1e9), ("3P", 3e15),
    ],
)  # fmt: skip
def test_counts_are_read(text: str, value: float) -> None:
    assert parse_count(text, "--tokens") == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "T", "-3", "0", "28Q", "1e", "nan", "inf", "1e999", "3 T T", "1.2.3"])
def test_other_words_are_no_counts(text: str) -> None:
    with pytest.raises(InputError, match="--tokens"):
        parse_count(text, "--tokens")


@settings(deadline=None)
@given(value=st.floats(1, 9.99e14))
def test_counts_are_written_as_they_are_read(value: float) -> None:
    assert parse_count(format_count(value, 6), "x") == pytest.approx(value, rel=1e-5)


def test_counts_in_words() -> None:
    assert [format_count(x) for x in (354_483_968, 8.4e9, 28e12, 999.9e9, 1.5e15, 512, 0.456, 341)] == [
        "354M", "8.40B", "28.0T", "1.00T", "1.50e15", "512", "0.456", "341",
    ]  # fmt: skip
    assert format_count(math.inf) == "never"
    assert [format_hours(x) for x in (43_280.6, 10.2, 2.34, 0.0288)] == ["43,281", "10", "2.3", "0.029"]
    assert format_power(5.9553e22) == "5.96e22"


# -- the command -----------------------------------------------------------------------------------------------------------


def test_the_table_fits_eighty_columns(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    import archsearch.cli.plan_tables as tables

    monkeypatch.setattr(tables.stdout, "width", 80)
    ended = call("plan", LFM2, "--tokens", "28T", "--inference-tokens", "100T")
    assert ended.status == 0
    lines = ended.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("28.0T training tokens, 78,988 a parameter") for line in lines)
    (row,) = (line for line in lines if line.strip().startswith("loss, nats a token"))
    assert row.split()[-3:] == ["2.355", "(2.325-2.387)", "2.264"]
    assert "besiroglu is extrapolated" in ended.out


def test_the_document_is_the_plan(call: Call, lfm2: ArchSpec) -> None:
    ended = call("plan", LFM2, "--budget-flops", "6e22", "--law", "sardana", "--peak-tflops", "100", "--mfu", "0.5", "--json")
    assert ended.status == 0
    document = ended.document
    assert document["tokens"] == pytest.approx(6e22 / (6 * 354_483_968))
    (law,) = document["laws"]
    assert law["law"] == "sardana"
    assert law["gpu_hours"] == pytest.approx(law["training_flops"] / 50e12 / 3600)
    assert law["loss"] == {"value": pytest.approx(LAWS["sardana"].loss(354_483_968, document["tokens"])), "low": None, "high": None}


def test_t2_on_the_command_line(call: Call, tmp_path: Path) -> None:
    ended = call("plan", LFM2, "--tokens", "1T", "--t2", t2_file(tmp_path / "t2.json"), "--query-flops", "2e12")
    assert ended.status == 0
    assert "pass@k (accuracy form)" in ended.out
    assert "a made-up task" in ended.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tokens", "28T", "--budget-flops", "1e20"],
        [],
        ["--tokens", "many"],
        ["--tokens", "1T", "--query-flops", "1e12"],
        ["--tokens", "1T", "--accelerator", "h100", "--peak-tflops", "3"],
        ["--tokens", "1T", "--peak-tflops", "-3"],
        ["--tokens", "1T", "--t2", "nowhere.toml", "--query-flops", "1e12"],
        ["--tokens", "1T", "--run", "nowhere"],
    ],
)
def test_bad_input_is_one_line(call: Call, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = call("plan", LFM2, *arguments)
    assert ended.status == 2
    assert ended.error
    assert ended.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_run_keeps_its_plan(call: Call, tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text("")
    ended = call("plan", LFM2, "--tokens", "28T", "--run", tmp_path, "--json")
    assert json.loads((tmp_path / "plan.json").read_text()) == ended.document


# -- docs/overtraining.md and docs/files.md ----------------------------------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs"


def test_the_documented_answer_is_what_is_printed(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    import archsearch.cli.plan_tables as tables

    monkeypatch.setattr(tables.stdout, "width", 80)
    block = (DOCS / "overtraining.md").read_text().split("```\n$ archsearch ")[1].split("\n```")[0]
    command, _, shown = block.partition("\n")
    name, spec, *arguments = command.split()
    ended = call(name, Path(__file__).parents[2] / spec, *arguments)
    assert "\n".join(line.rstrip() for line in ended.out.splitlines()).strip() == shown.strip()


def test_the_documented_constants_are_read(tmp_path: Path) -> None:
    text = next(part for part in (DOCS / "overtraining.md").read_text().split("```toml\n") if part.startswith("name"))
    (tmp_path / "t2.toml").write_text(text.split("```")[0])
    found = T2File.read(tmp_path / "t2.toml")
    assert found.accuracy is not None
    assert found.sampling is not None


def test_every_law_and_every_accelerator_is_documented(call: Call) -> None:
    text = (DOCS / "overtraining.md").read_text()
    help_text = call("plan", "--help").out
    for law in LAWS.values():
        (row,) = (line for line in text.splitlines() if line.startswith(f"| `{law.name}`"))
        cells = [cell.strip() for cell in row.split("|")[2:8]]
        best = law.optimum(5.76e23)
        values = [law.E, law.A, law.B, law.alpha, law.beta, best.tokens / best.parameters]
        assert [float(cell) for cell in cells] == pytest.approx(values, rel=2e-3)
        assert law.name in help_text
    for accelerator in ACCELERATORS:
        assert accelerator in text
        assert accelerator in help_text


def test_every_key_of_the_document_is_documented(lfm2: ArchSpec) -> None:
    described = (DOCS / "files.md").read_text().partition("**plan**")[2].partition("| command |")[0]
    document = plan(lfm2, tokens=1e9, inference_tokens=1e9, t2=T2File.model_validate(T2), query_flops=1e12).to_dict()
    document["t2"].pop("constants")

    def keys(part: Any) -> set[str]:
        if isinstance(part, dict):
            return set(part) | {key for value in part.values() for key in keys(value)}
        return {key for value in part for key in keys(value)} if isinstance(part, list) else set()

    assert {key for key in keys(document) if f'"{key}"' not in described} == set()


# -- the report's rows -------------------------------------------------------------------------------------------------------


def test_the_report_takes_what_the_plan_kept(lfm2: ArchSpec, tmp_path: Path) -> None:
    assert planned.plan(RunFiles(tmp_path)) is None
    (tmp_path / "space.toml").write_text("")
    found = plan(lfm2, tokens=28e12, inference_tokens=1e13)
    keep(found, tmp_path)
    row = planned.plan(RunFiles(tmp_path))
    assert row is not None
    assert (row.spec_id, row.chosen, row.tokens) == (lfm2.spec_id, None, 28e12)
    assert row.hours.endswith("h100 hours at 40 % MFU")
    for law, answer in zip(row.laws, found.answers, strict=True):
        assert law.optimal_loss == pytest.approx(answer.law.loss(answer.parameters, law.optimal_tokens))
        assert law.lifetime is not None
        assert answer.lifetime is not None
        assert law.lifetime[2] == pytest.approx(answer.lifetime.total_flops(1e13))
        assert law.curve.fitted == fitted_tokens(answer.law, answer.parameters)
    keep(plan(lfm2, inference_tokens=1e13), tmp_path)
    row = planned.plan(RunFiles(tmp_path))
    assert row is not None
    assert (row.tokens, row.hours) == (None, "")
    keep(plan(lfm2, tokens=1e9), tmp_path)
    row = planned.plan(RunFiles(tmp_path))
    assert row is not None
    assert [(law.break_even, law.right_for, law.lifetime) for law in row.laws] == [(None, None, None)] * 2


@pytest.mark.parametrize("content", ["[]", "{}", "{", '{"name": "x", "spec_id": "y", "laws": []}'])
def test_a_damaged_plan_is_told(content: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(RunError, match=r"plan\.json: (not a plan|is damaged)"):
        planned.plan(RunFiles(tmp_path))
