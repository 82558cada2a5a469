"""The test of the quality signal: what is drawn, that it goes on, and what it says of signals whose worth is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from command_line import Outcome

from archsearch.errors import InputError, RunError
from archsearch.quality import Evaluator, QualityResult, Training, ranking
from archsearch.quality.equal import copy_parameters, equal_parameters
from archsearch.quality.supernet import TextSupernet
from archsearch.report import validated
from archsearch.report.files import RunFiles
from archsearch.space import Space
from archsearch.validate import Plan, at_share, document_of, draw, make_plan, train_plan
from reports.page import render
from reports.rows import Report

SPACE: dict[str, Any] = {
    "model": {"name": "small", "hidden_size": 256, "vocab_size": 1000, "layers": 3},
    "operators": [
        {"kind": "short_conv", "kernel_size": [3, 7]},
        {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 64},
        {"kind": "gla", "heads": 4},
    ],
    "ffn": {"intermediate_size": [512, 768]},
    "workloads": {"prefill": [64], "decode": [1024]},
    "search": {"recall_steps": 100, "text_steps": 40},
}


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "RESAMPLES", 200)


def plan_of(**options: Any) -> Plan:
    return make_plan(Space.from_dict(SPACE), **{"layouts": 12, "seeds": 2, "longer": 3, "equal": False, **options})


def test_the_drawn_layouts_are_different_and_of_many_kinds() -> None:
    plan = plan_of()
    assert len({spec.spec_id for spec in plan.layouts}) == 12
    assert len({training.key for training in plan.trainings()}) == 12 * 2 * 3
    assert plan == plan_of()
    kinds = {frozenset(str(block.operator) for block in spec.layers) for spec in plan.layouts}
    assert len(kinds) >= 7
    for kind in ("short_conv", "gqa", "gla"):  # what everybody would ask about first
        assert any({block.operator.kind for block in spec.layers} == {kind} for spec in plan.layouts)
    assert plan.cheap_seed not in plan.seeds
    assert (plan.reference.recall_steps, plan.reference.text_steps) == (300, 120)


def test_equal_parameters_are_nearly_equal_and_operators_stay() -> None:
    plan, equal = plan_of(), plan_of(equal=True)
    sizes = [copy_parameters(spec, context=1024) for spec in equal.layouts]
    assert max(sizes) / min(sizes) < 1.01  # one FFN's width is a multiple of 8
    assert len({copy_parameters(spec, context=1024) for spec in plan.layouts}) > 4
    pair = equal_parameters(plan.layouts[:2], context=1024)
    for before, after in zip(plan.layouts, pair, strict=False):
        assert [block.operator for block in before.layers] == [block.operator for block in after.layers]
    wide = {"kind": "gla", "heads": 4, "expand_k": 2.0, "expand_v": 4.0}
    mixed = Space.from_dict(SPACE | {"operators": [SPACE["operators"][0], wide], "ffn": {"intermediate_size": 16}})
    with pytest.raises(InputError, match=r"--equal-parameters: .*its operators alone"):
        draw(mixed, 8, 1024, equal=True)


def test_too_few_layouts_are_refused() -> None:
    space = Space.from_dict(SPACE | {"operators": [{"kind": "short_conv", "kernel_size": 3}], "ffn": {"intermediate_size": 512}})
    with pytest.raises(InputError, match="only 1 layouts that the small trainings can tell apart"):
        draw(space, 8, 1024, equal=False)


class Known(Evaluator):
    """Results that are known beforehand: the reference is a layout's number; the cheap ones are it with an error."""

    def __init__(self, path: Path, plan: Plan, error: Callable[[int], float]) -> None:
        super().__init__(path, plan.cheap)
        self.plan, self.error, self.trained = plan, error, 0
        self.numbers = {spec.spec_id: i for i, spec in enumerate(plan.layouts)}

    def _train(self, trainings: Any) -> Iterator[tuple[str, QualityResult | str]]:
        for training in trainings:
            self.trained += 1
            self.results.keep(training.key, self.result(training))
            yield training.key, self.result(training)

    def result(self, training: Training) -> QualityResult:
        number = self.numbers[training.spec.spec_id]
        cheap = training.settings == self.plan.cheap
        value = 2.0 + number / 100 + (self.error(number) if cheap else 0.0)
        common: dict[str, Any] = {"tokens": 10, "seconds": 1.0, "seed": training.seed}
        if training.task == "text":
            steps = training.settings.text_steps
            curve = tuple((steps * i // 4, value + 1 - i / 4) for i in range(1, 5))
            return QualityResult(task="text", value=value, status="resolved", steps=steps, curve=curve, **common)
        if number % 3 == 0:
            steps = 25 * (1 + number % 4)
            curve = tuple((step, 0.95 if step == steps else 0.2) for step in range(25, steps + 1, 25))
            return QualityResult(task="recall", value=0.95, status="resolved", steps=steps, curve=curve, **common)
        steps = training.settings.recall_steps
        curve = tuple((step, 0.2) for step in range(25, steps + 1, 25))
        return QualityResult(task="recall", value=0.2, status="unresolved", steps=steps, curve=curve, **common)


def document(tmp_path: Path, plan: Plan, error: Callable[[int], float]) -> dict[str, Any]:
    evaluator = Known(tmp_path / "quality.jsonl", plan, error)
    list(train_plan(plan, evaluator))
    return document_of(plan, evaluator, tmp_path / "none.json", space_id="x")


def test_a_true_signal_is_validated_and_a_false_one_is_not(tmp_path: Path) -> None:
    plan = plan_of(layouts=16)
    true = document(tmp_path / "true", plan, lambda _: 0.0)["tasks"]["text"]
    tiers = {tier["tier"]: tier for tier in true["tiers"]}
    assert tiers["T1"]["tau"] == 1
    assert tiers["T1"]["verdict"] == "validated"
    assert tiers["T1"]["regret_1"] == 0
    assert true["ceiling"]["tau"] == 1
    assert true["random"]["regret_1"] > 0.03
    false = document(tmp_path / "false", plan, lambda number: -number / 40)["tasks"]["text"]
    assert false["tiers"][-1]["tau"] == -1
    assert false["tiers"][-1]["verdict"] == "unvalidated"
    assert false["tiers"][-1]["regret_1"] == pytest.approx(0.15)


def test_the_report_shows_it_and_says_when_it_is_unvalidated(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "space.toml").write_text(tomli_w.dumps(SPACE))
    files = RunFiles(run)
    assert validated.checks(files) == ()
    files.search = {"front": []}  # a search has been run
    assert "unvalidated" in validated.advice(files)[0]
    found = document(tmp_path, plan_of(), lambda number: -number / 40)
    (run / "validation.json").write_text(json.dumps(found | {"space_id": files.space.space_id}))
    files = RunFiles(run)
    files.search = {"front": []}
    rows = validated.checks(files)
    assert validated.advice(files) == ()
    assert [row.verdict for row in rows if row.judge.startswith("T1: ") and row.subject.startswith("text")] == ["unvalidated"]
    page = render(Report(title="t", subtitle="s", quality_checks=rows, quality_note=validated.note(files)))
    said = "12 layouts with unequal parameters"
    for words in ("How far to trust the quality", "unvalidated", "another seed of the reference", "chance", said):
        assert words in page
    (run / "validation.json").write_text(json.dumps({"space_id": files.space.space_id, "tasks": {"text": {}}}))
    with pytest.raises(RunError, match="not a validation"):
        validated.checks(RunFiles(run))
    (run / "validation.json").write_text(json.dumps(found | {"space_id": "another space's"}))
    assert validated.checks(RunFiles(run)) == ()


def test_unresolved_recall_counts_as_equal_not_as_bad(tmp_path: Path) -> None:
    found = document(tmp_path, plan_of(), lambda _: 0.0)
    recall = found["tasks"]["recall"]
    assert recall["reference"]["unresolved"] == 8
    assert [layout["recall"] for layout in found["layouts"]][1] == [300, 300]
    assert recall["tiers"][-1]["tau"] == 1
    json.dumps(found, allow_nan=False)


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    plan = plan_of()
    first = Known(tmp_path / "quality.jsonl", plan, lambda _: 0.0)
    events = train_plan(plan, first)
    for _ in range(5):
        next(events)
    again = Known(tmp_path / "quality.jsonl", plan, lambda _: 0.0)
    done = list(train_plan(plan, again))
    assert first.trained + again.trained == len(plan.trainings()) == done[-1].done == done[-1].total


def test_a_curve_tells_what_was_known_earlier() -> None:
    common: dict[str, Any] = {"tokens": 1, "seconds": 1.0, "seed": 0}
    solved = QualityResult(task="recall", value=0.95, status="resolved", steps=75, curve=((25, 0.2), (50, 0.4), (75, 0.95)), **common)
    slow = QualityResult(task="recall", value=0.3, status="unresolved", steps=100, curve=((25, 0.2), (50, 0.5), (100, 0.3)), **common)
    assert at_share(solved, 1.0, 100) < at_share(slow, 1.0, 100)
    assert at_share(solved, 0.5, 100) == -0.4
    assert at_share(slow, 0.5, 100) == -0.5
    assert at_share(slow, 0.01, 100) == -0.2


@pytest.mark.slow
def test_the_supernet_shares_weights_and_learns() -> None:
    layouts = draw(Space.from_dict(SPACE), 6, 1024, equal=False)
    supernet = TextSupernet(layouts, context=1024, one_ffn=True)
    assert all(len(set(options)) == len(options) <= 4 for options in supernet.choices)
    before = [supernet.score(spec) for spec in layouts]
    events = list(supernet.train(40))
    after = [supernet.score(spec) for spec in layouts]
    assert events[-1].step == 40
    assert all(b < a - 1 for a, b in zip(before, after, strict=True))  # from eight bits a byte on, all of them learn
    assert len(set(after)) == len({tuple(block.operator for block in spec.layers) for spec in layouts})
    assert after == [supernet.score(spec) for spec in layouts]


@pytest.mark.slow
def test_the_command_says_what_it_found_and_goes_on(tmp_path: Path, call: Callable[..., Outcome]) -> None:
    space = tmp_path / "space.toml"
    text = """[model]\nname = "v"\nhidden_size = 64\nvocab_size = 300\nlayers = 2\n
[[operators]]\nkind = "short_conv"\nkernel_size = [3, 5]\n\n[[operators]]\nkind = "gqa"\nheads = 2\nkv_heads = 1\nhead_dim = 32\n
[ffn]\nintermediate_size = 96\n\n[search]\nrecall_steps = 2\ntext_steps = 2\n"""
    space.write_text(text)
    arguments = ("validate", space, "--run", tmp_path / "run", "--layouts", "4", "--longer", "1.5", "--workers", "1")
    found = call(*arguments, "--json")
    assert found.status == 0, found.err
    assert json.loads((tmp_path / "run" / "validation.json").read_text()) == found.document
    lines = (tmp_path / "run" / "quality.jsonl").read_text().splitlines()
    assert len(lines) == 4 * 2 * 3
    again = call(*arguments)
    assert again.status == 0
    assert "unvalidated" in again.out
    assert "at random" in again.out
    assert len((tmp_path / "run" / "quality.jsonl").read_text().splitlines()) == 24
    few = call("validate", space, "--run", tmp_path / "run", "--layouts", "99")
    assert few.status == 2
    assert "give --layouts" in few.error
