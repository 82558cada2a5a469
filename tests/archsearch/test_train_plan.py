"""The plan: defaults, schedule, time budgets; and the held-out loss by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trainings import SETTINGS, until

from archsearch.data import TokenData
from archsearch.errors import CheckpointError
from archsearch.model import LanguageModel
from archsearch.spec import ArchSpec
from archsearch.train import (
    Cut,
    Finished,
    Saved,
    Started,
    Step,
    TrainPlan,
    TrainSettings,
    train,
)
from archsearch.train.evaluate import evaluate
from archsearch.train.planning import make_plan
from archsearch.train.schedule import learning_rate, phases
from archsearch.train.trainer import Trainer

# --- the plan -------------------------------------------------------------------------------------------------------


def test_the_plan_is_read_back_as_it_was(plan: TrainPlan) -> None:
    cut = plan.cut(5, 9)
    assert TrainPlan.from_dict(json.loads(json.dumps(cut.to_dict())), "here") == cut
    with pytest.raises(CheckpointError, match="here: steps: "):
        TrainPlan.from_dict(plan.to_dict() | {"steps": "many"}, "here")


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_learning_rate_rises_and_falls(plan: TrainPlan, schedule: Any) -> None:
    warmup, decay = phases(schedule, 100)
    plan = replace(plan, schedule=schedule, steps=100, warmup_steps=warmup, decay_steps=decay, learning_rate=1.0)
    rates = [learning_rate(plan, step) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(rates[4:]))
    if schedule == "wsd":
        assert rates[4:80] == pytest.approx([1.0] * 76)
        assert rates[80 + 4] == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(5 / 20)))
    else:
        assert rates[4 + 48] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 48 / 95)))


def test_a_cut_plan_comes_to_the_same_end_sooner(plan: TrainPlan) -> None:
    plan = replace(plan, steps=100, warmup_steps=5, decay_steps=95, learning_rate=1.0, eval_steps=(0, 50, 75, 100))
    cut = plan.cut(60, 80)
    assert cut.last_step == 80
    assert cut.eval_steps == (0, 50, 68, 80)
    assert [learning_rate(cut, step) for step in range(60)] == [learning_rate(plan, step) for step in range(60)]
    assert [learning_rate(cut, 60 + i) for i in range(20)] == pytest.approx([learning_rate(plan, 61 + 2 * i) for i in range(20)])
    again = cut.cut(70, 75)
    assert learning_rate(again, 69) == learning_rate(cut, 69)
    assert learning_rate(again, 74) == pytest.approx(0.1)


def test_defaults_depend_on_spec_and_text(tiny_spec: ArchSpec, data: TokenData) -> None:
    plan = make_plan(tiny_spec, data, TrainSettings())
    assert plan.parameters == sum(p.numel() for p in LanguageModel(tiny_spec).parameters())
    assert plan.tokens >= min(20 * plan.parameters, len(data.training))
    assert plan.tokens - plan.tokens_per_step < min(20 * plan.parameters, len(data.training))
    assert plan.eval_steps[0] == 0
    assert plan.eval_steps[-1] == plan.steps


def test_a_time_budget_becomes_steps_and_stays_in_the_checkpoint(
    tiny_spec: ArchSpec, texts: Path, token_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archsearch.train.planning.measure_speed", lambda *_: 1000.0)
    settings = replace(SETTINGS, tokens=None, max_seconds=100.0, eval_tokens=300)
    out = tmp_path / "out"
    events = train(tiny_spec, [texts], out, settings=settings, cache_dir=token_cache)
    [started, *_] = until(events, Saved)
    assert isinstance(started, Started)
    # nine tenths of the time at 1000 tokens/s, less three evaluations at a third of the cost; steps of 128 tokens
    assert started.plan.steps == pytest.approx((0.9 * 100 * 1000 - 3 * 300 / 3) / 128, rel=0.05)
    assert started.plan.measured_tokens_per_s == 1000.0
    resumed = next(iter(train(tiny_spec, (), out, settings=settings, resume=True, cache_dir=token_cache)))
    assert isinstance(resumed, Started)
    assert resumed.plan == started.plan


def test_a_machine_that_slows_down_gets_fewer_steps(
    tiny_spec: ArchSpec, texts: Path, token_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planned at a speed that the machine does not have: the training ends near its time, its schedule at its end."""
    from archsearch.train import loop

    monkeypatch.setattr("archsearch.train.planning.measure_speed", lambda *_: 128 / 0.9)  # a step a second, with the tenth left over
    clock = FakeClock()
    monkeypatch.setattr(loop, "time", clock)
    original = Trainer.update

    def update(self: Trainer) -> tuple[float, float]:
        clock.now += 1.0 if self.step < 10 else 4.0
        return original(self)

    monkeypatch.setattr(Trainer, "update", update)
    settings = replace(SETTINGS, tokens=None, max_seconds=60.0, eval_tokens=3, save_every_seconds=1e9)
    events = list(train(tiny_spec, [texts], tmp_path / "out", settings=settings, cache_dir=token_cache))
    started, finished = events[0], events[-1]
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    cuts = [event for event in events if isinstance(event, Cut)]
    assert cuts
    assert finished.step == cuts[-1].last_step < started.plan.steps
    assert finished.seconds <= 1.15 * 60, "the plan alone would have taken 180 s"
    steps = [event for event in events if isinstance(event, Step)]
    assert steps[-1].learning_rate == pytest.approx(0.1 * started.plan.learning_rate)
    [index, *_] = [i for i, event in enumerate(events) if isinstance(event, Cut)]
    assert isinstance(events[index + 1], Saved), "a resume knows of the cut"


def test_one_save_that_had_to_wait_does_not_put_off_the_next(
    tiny_spec: ArchSpec, texts: Path, token_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine that slept meanwhile: an hour for a save would allow the next one after twenty."""
    from archsearch.train import loop

    clock, taken = FakeClock(), iter([1.0, 3600.0])
    monkeypatch.setattr(loop, "time", clock)
    update, write = Trainer.update, Trainer.write

    def minute(self: Trainer) -> tuple[float, float]:
        clock.now += 61.0
        return update(self)

    def slow(self: Trainer, folder: Path) -> None:
        clock.now += next(taken, 1.0)
        write(self, folder)

    monkeypatch.setattr(Trainer, "update", minute)
    monkeypatch.setattr(Trainer, "write", slow)
    events = train(tiny_spec, [texts], tmp_path / "out", settings=SETTINGS, cache_dir=token_cache)
    assert [event.step for event in events if isinstance(event, Saved)][:5] == [0, 1, 2, 3, 4]


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


# --- held-out loss --------------------------------------------------------------------------------------------------


def test_bits_per_byte_by_hand(tiny_spec: ArchSpec, data: TokenData, plan: TrainPlan) -> None:
    """The whole held-out stream, token by token, in float64."""
    model = LanguageModel(tiny_spec)
    result = evaluate(model, data, replace(plan, eval_tokens=10**9))
    stream = np.asarray(data.held_out).astype(int)
    nats = text_bytes = tokens = 0.0
    for start in range(0, (len(stream) - 1) // 32 * 32, 32):
        ids = stream[start : start + 33]
        with torch.no_grad():
            logits = model(torch.tensor(ids[None, :-1]))[0][0].double().numpy()
        for row, target in zip(logits, ids[1:], strict=True):
            if target != data.tokenizer.end_of_document:
                nats -= row[target] - np.log(np.exp(row).sum())
                text_bytes += len(data.tokenizer.decode([target]).encode())
                tokens += 1
    assert result.tokens == tokens
    assert result.text_bytes == text_bytes
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-5)
    assert result.nats_per_token == pytest.approx(nats / tokens, rel=1e-5)


def test_equal_odds_cost_the_logarithm_of_the_vocabulary(tiny_spec: ArchSpec, data: TokenData, plan: TrainPlan) -> None:
    model = LanguageModel(tiny_spec)
    torch.nn.init.zeros_(model.embed_tokens.weight)
    result = evaluate(model, data, plan)
    assert result.nats_per_token == pytest.approx(math.log(300), rel=1e-6)
    assert result.bits_per_byte == pytest.approx(math.log2(300) * result.tokens / result.text_bytes, rel=1e-6)
    assert 96 <= result.tokens <= 128
