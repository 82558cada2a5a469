"""T4 on a CPU with next to nothing: two widths through the real trainer, resumed, and what is said of it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from search_fakes import space_of
from test_confirm import searched

from archsearch.confirm import Contest, make_contest
from archsearch.errors import InputError
from archsearch.quality import narrow
from archsearch.scale import ScaleResult, ScaleSettings, document_of, read_results, run_scale, trainings
from archsearch.spec import ArchSpec
from operators.kinds import operator_for
from operators.specs import GlaSpec, GqaSpec, SwaSpec

TINY = 0.004
"""Tokens a parameter: some updates a training."""


def contest_of(run_dir: Path, **options: Any) -> Contest:
    return make_contest(searched(run_dir), **{"top": 1, "controls": 1, "seeds": 2, "longer": 1, **options})


def tokenless(contest: Contest) -> Contest:
    """A vocabulary of bytes and few merges: its tokenizer is trained in a second."""

    def small(spec: ArchSpec) -> ArchSpec:
        return replace(spec, vocab_size=300)

    candidates = tuple(replace(point, spec=small(point.spec)) for point in contest.candidates)
    return replace(contest, candidates=candidates, controls=tuple(small(spec) for spec in contest.controls))


@pytest.mark.parametrize("hidden", [64, 128, 256, 320, 512, 1024])
def test_copies_of_any_width_keep_the_layout(hidden: int) -> None:
    space = space_of(layers=3)
    operators = (GqaSpec(heads=16, kv_heads=4, head_dim=64), SwaSpec(heads=16, kv_heads=8, head_dim=64, window=1024), GlaSpec(heads=4))
    blocks = [replace(space.blocks[0], operator=operator) for operator in operators]
    spec = replace(
        space.spec(blocks), hidden_size=1024, layers=tuple(replace(b, ffn=replace(b.ffn, intermediate_size=2560)) for b in blocks)
    )
    copy = narrow(spec, vocab_size=300, tokens=512, context=4096, hidden=hidden)
    assert copy.hidden_size == hidden
    gqa, swa, gla = (block.operator for block in copy.layers)
    assert isinstance(gqa, GqaSpec)
    assert isinstance(swa, SwaSpec)
    assert gqa.heads * gqa.head_dim == hidden
    assert gqa.heads == max(4, hidden // 64)
    assert gqa.heads / gqa.kv_heads == (4 if gqa.heads % 4 == 0 else gqa.heads / gqa.kv_heads)
    assert swa.kv_heads * 2 == swa.heads or swa.heads % 2
    assert swa.window == 128
    assert copy.layers[0].ffn.intermediate_size == pytest.approx(2.5 * hidden, abs=4)
    for block in copy.layers:
        operator_for(block.operator).check(block.operator, copy.dims)
    if hidden == 1024:
        assert (gqa, gla) == (operators[0], operators[2])


def test_all_layouts_of_a_width_see_equal_tokens(tmp_path: Path) -> None:
    contest = contest_of(tmp_path, top=2, controls=2)
    planned = trainings(contest, ScaleSettings(widths=(128, 64), ratio=20))
    assert len(planned) == 2 * 2 * 4
    assert [training.copy.hidden_size for training in planned] == [64] * 8 + [128] * 8
    for width in (64, 128):
        assert len({training.tokens for training in planned if training.copy.hidden_size == width}) == 1
    assert len({training.key for training in planned}) == 16
    assert planned[8].tokens > 2 * planned[0].tokens


@pytest.mark.slow
def test_two_widths_on_this_machine_go_on_where_they_were_stopped(tmp_path: Path) -> None:
    contest = tokenless(contest_of(tmp_path))
    settings = ScaleSettings(widths=(64, 128), ratio=TINY)
    events = run_scale(contest, settings, tmp_path)
    for event in events:
        if event.done == 1 and event.step == 1:
            break
    events.close()
    assert len(read_results(tmp_path)) == 1
    assert len(list((tmp_path / "scale").iterdir())) == 1  # a checkpoint of what was cut off
    with (tmp_path / "scale.jsonl").open("a") as file:
        file.write('{"key": "torn')
    finished = list(run_scale(contest, settings, tmp_path))
    assert finished[-1].done == finished[-1].total == 8
    assert list((tmp_path / "scale").iterdir()) == []
    known = read_results(tmp_path)
    assert len(known) == 8
    assert {result.device for result in known.values()} <= {"cpu", "cuda"}
    assert all(1 < result.bits_per_byte < 10 for result in known.values())
    document = document_of(contest, settings, tmp_path, contest.candidates[0].spec.spec_id)
    json.dumps(document, allow_nan=False)
    assert [found["width"] for found in document["widths"]] == [64, 128]
    assert document["holds"] in (True, False)
    assert next(iter(run_scale(contest, settings, tmp_path))).done == 1  # nothing is trained twice
    assert len((tmp_path / "scale.jsonl").read_text().splitlines()) == 9


def write(run_dir: Path, contest: Contest, settings: ScaleSettings, values: dict[tuple[str, int], float]) -> None:
    """Made-up results: bits a byte by role and width, and a little by seed."""
    lines = []
    for training in trainings(contest, settings):
        value = values[contest.role(training.spec), training.copy.hidden_size] + 0.001 * (training.seed % 2)
        result = ScaleResult(
            key=training.key, bits_per_byte=value, tokens=training.tokens, parameters=1, seconds=1.0, device="cuda", dtype="bf16"
        )
        lines.append(json.dumps(asdict(result)))
    (run_dir / "scale.jsonl").write_text("\n".join(lines) + "\n")


def test_a_winner_must_be_ahead_at_every_width(tmp_path: Path) -> None:
    contest, settings = contest_of(tmp_path, controls=2, seeds=3), ScaleSettings(widths=(64, 128))
    winner = contest.candidates[0].spec.spec_id
    write(tmp_path, contest, settings, {("search", 64): 2.0, ("random", 64): 2.1, ("search", 128): 1.8, ("random", 128): 1.9})
    found = document_of(contest, settings, tmp_path, winner)
    assert found["holds"] is True
    assert "widths 64, 128" in found["why"]
    assert found["widths"][0]["standings"][0]["spec_id"] == winner
    assert found["widths"][0]["device"] == "cuda"
    write(tmp_path, contest, settings, {("search", 64): 2.0, ("random", 64): 2.1, ("search", 128): 1.9, ("random", 128): 1.8})
    found = document_of(contest, settings, tmp_path, winner)
    assert found["holds"] is False
    assert "at width 128 it cannot be told from" in found["why"]
    assert document_of(contest, settings, tmp_path, None)["holds"] is None


def test_one_seed_confirms_nothing_at_scale(tmp_path: Path) -> None:
    contest, settings = contest_of(tmp_path, seeds=1), ScaleSettings(widths=(64,))
    write(tmp_path, contest, settings, {("search", 64): 2.0, ("random", 64): 2.1})
    found = document_of(contest, settings, tmp_path, contest.candidates[0].spec.spec_id)
    assert found["holds"] is None
    assert "--seeds 2" in found["why"]


@pytest.mark.parametrize(
    ("options", "says"), [({"widths": (100,)}, "multiple of 64"), ({"widths": ()}, "multiple"), ({"widths": (64,), "ratio": 0}, "above 0")]
)
def test_settings_that_make_no_sense_are_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        ScaleSettings(**options)
