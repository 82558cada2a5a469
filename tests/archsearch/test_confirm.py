"""Only longer trainings beside random layouts name a winner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from search_fakes import AnalyticTable, as_table, space_of
from search_harness import search, searcher_of

from archsearch.budgets import parse_budget
from archsearch.confirm import Contest, Standing, against, document_of, make_contest, standings, train_contest, verdict
from archsearch.errors import RunError
from archsearch.quality import Evaluator, QualityResult, QualitySettings, Training
from archsearch.search import Searcher
from archsearch.spec import ArchSpec


def result_of(training: Training, value: float, solved: bool = True) -> QualityResult:
    steps = training.settings.recall_steps if training.task == "recall" else training.settings.text_steps
    status: Any = "resolved" if solved else "unresolved"
    common: dict[str, Any] = {"steps": steps, "tokens": 10, "seconds": 0.1, "curve": ((steps, value),)}
    return QualityResult(task=training.task, value=value, status=status, seed=training.seed, **common)


class Formula(Evaluator):
    """Text likes parameters in its FFNs; recall needs attention behind a convolution; a seed is worth `noise`."""

    noise = 0.0

    def _train(self, trainings: Any) -> Any:
        for training in trainings:
            kinds = [block.operator.kind for block in training.spec.layers]
            width = sum(block.ffn.intermediate_size for block in training.spec.layers)
            solved = "gqa" in kinds and kinds.index("gqa") > 0
            text = 3 - width / 5000 + self.noise * (-1) ** training.seed
            result = result_of(training, 1.0, solved) if training.task == "recall" else result_of(training, text)
            self.results.keep(training.key, result)
            yield training.key, result


def searched(run_dir: Path, budgets: tuple[str, ...] = ("parameters<=5.2M",)) -> Searcher:
    evaluator = Formula(run_dir / "quality.jsonl", QualitySettings(recall_steps=10, text_steps=10), workers=2)
    parsed = tuple(parse_budget(budget) for budget in budgets)
    searcher = Searcher(space_of(layers=6), as_table(AnalyticTable()), evaluator, run_dir, budgets=parsed, trials=10)
    search(searcher)
    return searcher


def hold(searcher: Searcher, contest: Contest) -> list[Standing]:
    list(train_contest(contest, searcher.evaluator))
    return standings(contest, searcher.evaluator)


def test_candidates_are_the_searchs_best_and_controls_keep_the_budgets(tmp_path: Path) -> None:
    searcher = searched(tmp_path)
    best = searcher.result().best
    assert best is not None
    contest = make_contest(searcher, top=3, controls=4, seeds=2, longer=3)
    assert contest.candidates[0].spec == best.spec
    assert (len(contest.candidates), len(contest.controls)) == (3, 4)
    assert len({spec.spec_id for spec in contest.layouts}) == 7
    assert all(searcher.costs(spec).feasible for spec in contest.controls)
    assert contest == make_contest(searcher, top=3, controls=4, seeds=2, longer=3)
    assert (contest.settings.recall_steps, contest.settings.text_steps) == (30, 30)
    trainings = [training for spec in contest.layouts for training in contest.trainings(spec)]
    assert len({training.key for training in trainings}) == 7 * 2 * 2
    assert not {training.seed for training in trainings} & {searcher.seed}


def test_a_contest_goes_on_and_its_document_is_plain(tmp_path: Path) -> None:
    searcher = searched(tmp_path)
    contest = make_contest(searcher, top=2, controls=2, seeds=2, longer=2)
    events = train_contest(contest, searcher.evaluator)
    for _ in range(3):
        next(events)
    events.close()
    with pytest.raises(RunError, match="the same command does it"):
        standings(contest, searcher.evaluator)
    found = hold(searcher, contest)
    assert [entry.solved for entry in found] == sorted((entry.solved for entry in found), reverse=True)
    document = document_of(contest, searcher.evaluator)
    json.dumps(document, allow_nan=False)
    assert document["seeds"] == list(contest.seeds)
    lines = (tmp_path / "quality.jsonl").read_text().splitlines()
    assert len(lines) == len({json.loads(line)["key"] for line in lines})


def spec_of(number: int) -> ArchSpec:
    space = space_of(layers=2)
    return space.spec([space.blocks[number % 4], space.blocks[number // 4]], name=f"s{number}")


def standing(number: int, text: tuple[float, ...], *, solved: int = 2, control: bool = True, role: Any = None) -> Standing:
    return Standing(spec=spec_of(number), role=role or ("random" if control else "search"), solved=solved, text=text)


def test_a_winner_must_beat_every_control_in_every_seed() -> None:
    best = standing(0, (2.0, 2.1), control=False)
    named, why = verdict([best, standing(1, (2.2, 2.3)), standing(2, (1.5, 1.6), solved=1)])
    assert named is best
    assert "beats all of 2 random layouts" in why
    named, why = verdict([best, standing(1, (2.05, 2.3)), standing(2, (2.4, 2.5))])
    assert named is None
    assert why == "cannot be told from 1 of 2 random layouts at this scale"
    named, why = verdict([best, standing(3, (2.05, 2.2), control=False), standing(1, (2.2, 2.3))])
    assert named is best
    assert f"not to be told from {spec_of(3).pattern}" in why


def test_one_seed_or_no_control_names_nobody() -> None:
    assert verdict([standing(0, (2.0,), control=False), standing(1, (2.5,))])[0] is None
    assert verdict([standing(0, (2.0, 2.0), control=False)])[0] is None


def test_without_a_search_there_is_nothing_to_confirm(tmp_path: Path) -> None:
    searcher = searcher_of(tmp_path, space_of(layers=4))
    with pytest.raises(RunError, match="run `archsearch search` first"):
        make_contest(searcher, top=3, controls=3, seeds=2, longer=3)


# -- a baseline ---------------------------------------------------------------------------------------------------------------


def test_a_baseline_takes_part_and_is_compared_seed_by_seed(tmp_path: Path) -> None:
    searcher = searched(tmp_path)
    space = searcher.space
    searcher.baseline = space.spec([space.blocks[0]] * 6, name="all convolutions")
    contest = make_contest(searcher, top=2, controls=2, seeds=3, longer=2)
    assert [contest.role(spec) for spec in contest.layouts] == ["search", "search", "random", "random", "baseline"]
    hold(searcher, contest)
    document = document_of(contest, searcher.evaluator)
    json.dumps(document, allow_nan=False)
    assert len(document["against_baseline"]) == 4
    first = next(entry for entry in document["against_baseline"] if entry["spec_id"] == contest.candidates[0].spec.spec_id)
    own = next(entry for entry in document["standings"] if entry["spec_id"] == first["spec_id"])
    base = next(entry for entry in document["standings"] if entry["from"] == "baseline")
    means = [sum(entry["text_bits_per_byte"]) / 3 for entry in (own, base)]
    assert first["text_bits_per_byte"]["mean"] == pytest.approx(means[0] - means[1])
    assert first["recall_solved"] == 3
    assert first["verdict"] == "better"


def test_a_baseline_that_the_search_chose_is_trained_once(tmp_path: Path) -> None:
    searcher = searched(tmp_path)
    best = searcher.result().best
    assert best is not None
    searcher.baseline = best.spec
    contest = make_contest(searcher, top=1, controls=1, seeds=2, longer=2)
    assert [contest.role(spec) for spec in contest.layouts] == ["baseline", "random"]
    found = hold(searcher, contest)
    assert verdict(found) == (None, "the search's best layout is the baseline itself")


def test_a_better_baseline_is_no_loser() -> None:
    best, base = standing(0, (2.0, 2.1), control=False), standing(1, (1.8, 1.9), role="baseline")
    named, why = verdict([base, best, standing(2, (2.4, 2.5))])
    assert named is None
    assert why == "the baseline is better than all that the search found"


@pytest.mark.parametrize(
    ("text", "solved", "word"),
    [
        ((2.00, 2.01, 2.02), 2, "better"),
        ((2.20, 2.21, 2.22), 2, "worse"),
        ((2.05, 2.15, 2.09), 2, "cannot tell"),
        ((2.05, 2.15, 2.09), 3, "better"),
        ((2.00, 2.01, 2.02), 1, "worse"),
    ],
)
def test_a_difference_counts_when_its_interval_excludes_none(text: tuple[float, ...], solved: int, word: str) -> None:
    found = against(standing(0, (2.1, 2.1, 2.1), role="baseline"), standing(1, text, solved=solved))
    assert found["verdict"] == word
