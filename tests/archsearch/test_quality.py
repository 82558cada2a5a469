"""The narrow copies, the two tasks, and the structural rules."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from archsearch.model import LanguageModel
from archsearch.quality import QualitySettings, micro, narrow, structure, synthetic, tasks
from archsearch.quality.micro import evaluate
from archsearch.quality.proxy import HIDDEN
from archsearch.spec import ArchSpec
from operators import kinds
from operators.builtin import ShortConv
from operators.kinds import operator_for
from operators.specs import BlockSpec, FfnSpec, GlaSpec, GqaSpec, ModelDims, OperatorSpec, ShortConvSpec, SpecError, SwaSpec

CONV, GQA = ShortConvSpec(kernel_size=3), GqaSpec(heads=16, kv_heads=8, head_dim=64)
SWA, GLA = SwaSpec(heads=16, kv_heads=4, head_dim=64, window=512), GlaSpec(heads=4)


def spec_of(operators: Sequence[OperatorSpec], *, hidden: int = 1024, ffn: int = 4608) -> ArchSpec:
    return ArchSpec(
        name="x",
        hidden_size=hidden,
        vocab_size=1000,
        layers=tuple(BlockSpec(operator=operator, ffn=FfnSpec(intermediate_size=ffn)) for operator in operators),
    )


def narrowed(operator: OperatorSpec, *, hidden: int = 1024, tokens: int = 64, context: int = 4096) -> OperatorSpec:
    return narrow(spec_of([operator], hidden=hidden), vocab_size=32, tokens=tokens, context=context).layers[0].operator


def test_depth_order_and_ratios_are_kept() -> None:
    spec = spec_of([CONV, GQA, SWA, GLA, CONV])
    copy = narrow(spec, vocab_size=32, tokens=64, context=4096)
    assert [block.operator.kind for block in copy.layers] == [block.operator.kind for block in spec.layers]
    assert copy.hidden_size == HIDDEN
    assert copy.layers[0].ffn.intermediate_size == 288  # 4608 / 1024 of 64
    assert copy.layers[0].operator == CONV
    assert copy.layers[1].operator == GqaSpec(heads=4, kv_heads=2, head_dim=16)
    assert copy.layers[2].operator == SwaSpec(heads=4, kv_heads=1, head_dim=16, window=8)  # 512 of 4096 is 8 of 64


@pytest.mark.parametrize(("window", "context", "narrow_window"), [(512, 1024, 32), (128, 4096, 8), (4096, 4096, 64), (9000, 4096, 64)])
def test_windows_shrink_as_the_context_does(window: int, context: int, narrow_window: int) -> None:
    found = narrowed(replace(SWA, window=window), context=context)
    assert isinstance(found, SwaSpec)
    assert found.window == narrow_window


@settings(max_examples=60, deadline=None)
@given(
    hidden=st.sampled_from([96, 256, 320, 768, 1024, 2048]),
    heads=st.integers(1, 12),
    expand=st.sampled_from([0.25, 0.375, 0.5, 0.75, 1.0, 2.0]),
    rank=st.integers(1, 64),
)
def test_every_gla_that_can_be_built_can_be_narrowed(hidden: int, heads: int, expand: float, rank: int) -> None:
    spec = GlaSpec(heads=heads, expand_k=expand, expand_v=expand, gate_rank=rank)
    try:
        operator_for(spec).check(spec, ModelDims(hidden_size=hidden))
    except SpecError:
        return
    copy = narrow(spec_of([spec], hidden=hidden), vocab_size=32, tokens=64, context=4096)
    LanguageModel(copy)


@settings(max_examples=60, deadline=None)
@given(groups=st.integers(1, 8), kv_heads=st.integers(1, 8), head_dim=st.sampled_from([8, 32, 64, 128]))
def test_every_attention_can_be_narrowed(groups: int, kv_heads: int, head_dim: int) -> None:
    copy = narrowed(GqaSpec(heads=groups * kv_heads, kv_heads=kv_heads, head_dim=head_dim))
    assert isinstance(copy, GqaSpec)
    assert copy.kv_heads <= max(1, 4 // groups + (4 % groups > 0))
    operator_for(copy).check(copy, ModelDims(hidden_size=HIDDEN))


@dataclass(frozen=True, kw_only=True, slots=True)
class ForeignSpec(OperatorSpec):
    kind: ClassVar[str] = "foreign"
    channels: int
    heads: int = 6
    window: int = 4096


class Foreign(ShortConv):
    spec_type = ForeignSpec  # type: ignore[assignment]
    family = "foreign"

    def check(self, spec: Any, dims: ModelDims) -> None:
        if spec.channels > 2 * dims.hidden_size:
            raise SpecError("channels", "at most twice the hidden size")
        if spec.channels % spec.heads:
            raise SpecError("heads", "must divide the channels")


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {**kinds.operator_kinds(), "foreign": Foreign()}
    monkeypatch.setattr(kinds, "operator_kinds", lambda: known)


@pytest.mark.usefixtures("foreign")
def test_an_operator_of_somebody_elses_is_narrowed_by_its_fields() -> None:
    found = narrowed(ForeignSpec(channels=1536))
    assert found == ForeignSpec(channels=96, heads=6, window=64)  # 1.5 times the hidden size, as before
    assert narrowed(ForeignSpec(channels=1024, heads=8)) == ForeignSpec(channels=64, heads=8, window=64)
    assert narrowed(ForeignSpec(channels=1020, heads=6)) == ForeignSpec(channels=64, heads=4, window=64)


@pytest.mark.usefixtures("foreign")
def test_an_operator_that_cannot_be_narrowed_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Foreign, spec: Any, dims: ModelDims) -> None:
        if dims.hidden_size < 256:
            raise SpecError("channels", "too narrow")

    monkeypatch.setattr(Foreign, "check", refuse)
    with pytest.raises(SpecError, match=r"foreign cannot be narrowed to 64 channels .*too narrow"):
        narrowed(ForeignSpec(channels=1536))


def test_layouts_with_the_same_copy_share_a_key() -> None:
    setting = QualitySettings()
    one, other = spec_of([CONV, GQA]), spec_of([CONV, GqaSpec(heads=8, kv_heads=4, head_dim=64)], hidden=512, ffn=2304)
    assert tasks.settings_key(one, "recall", setting, 0) == tasks.settings_key(other, "recall", setting, 0)
    different = [
        tasks.settings_key(one, "text", setting, 0),
        tasks.settings_key(one, "recall", setting, 1),
        tasks.settings_key(one, "recall", replace(setting, recall_steps=7), 0),
        tasks.settings_key(spec_of([GQA, CONV]), "recall", setting, 0),
    ]
    assert len({tasks.settings_key(one, "recall", setting, 0), *different}) == 5
    # Steps of the other task and the context of a layout without windows change nothing.
    assert tasks.settings_key(one, "recall", replace(setting, text_steps=7, context=99), 0) == tasks.settings_key(one, "recall", setting, 0)


def test_recall_asks_only_what_it_told() -> None:
    ids, targets = micro.recall_batch(50, torch.Generator().manual_seed(0))
    assert ids.shape == targets.shape == (50, tasks.RECALL_TOKENS) == (50, 64)
    for row, target in zip(ids.tolist(), targets.tolist(), strict=True):
        told = dict(zip(row[: 2 * tasks.PAIRS : 2], row[1 : 2 * tasks.PAIRS : 2], strict=True))
        assert len(told) == tasks.PAIRS
        assert all(0 <= key < tasks.KEYS <= value < 2 * tasks.KEYS for key, value in told.items())
        asked = [i for i, value in enumerate(target) if value != -100]
        assert asked == list(range(2 * tasks.PAIRS, tasks.RECALL_TOKENS, 2))
        assert all(target[i] == told[row[i]] == row[i + 1] for i in asked)


def test_a_lookup_solves_recall_and_guessing_does_not() -> None:
    """The task measures what it says: who remembers the pairs is always right, who knows only the values is right by chance."""
    ids, targets = micro.recall_batch(400, torch.Generator().manual_seed(1))
    guesses = np.random.default_rng(0)
    right = lucky = total = 0
    for row, target in zip(ids.tolist(), targets.tolist(), strict=True):
        told = dict(zip(row[: 2 * tasks.PAIRS : 2], row[1 : 2 * tasks.PAIRS : 2], strict=True))
        for i, value in enumerate(target):
            if value != -100:
                right += told[row[i]] == value
                lucky += int(guesses.choice(list(told.values()))) == value
                total += 1
    assert right == total
    assert 0.1 < lucky / total < 0.25  # an eighth of the pairs, and values that happen to be equal


def test_selective_copy_asks_for_the_symbols_in_their_order() -> None:
    ids, targets = synthetic.selective_copy_batch(50, torch.Generator().manual_seed(0))
    assert ids.shape == targets.shape == (50, tasks.COPY_TOKENS)
    for row, target in zip(ids.tolist(), targets.tolist(), strict=True):
        symbols = [token for token in row[: tasks.GAPS] if token != tasks.BLANK]
        assert len(symbols) == tasks.COPIED
        assert [value for value in target if value != -100] == symbols == row[tasks.GAPS + 1 :]
        assert row[tasks.GAPS] == tasks.MARK
        assert all(value in (-100, row[i + 1]) for i, value in enumerate(target[:-1]))  # what comes next, foretold
        assert target[-1] == -100


def test_noisy_recall_asks_only_what_it_told_and_noise_is_no_answer() -> None:
    ids, targets = synthetic.noisy_recall_batch(50, torch.Generator().manual_seed(0))
    assert ids.shape == targets.shape == (50, tasks.NOISY_TOKENS)
    gaps = set()
    for row, target in zip(ids.tolist(), targets.tolist(), strict=True):
        asked = [i for i, value in enumerate(target) if value != -100]
        assert len(asked) == tasks.NOISY_QUERIES
        told: dict[int, int] = {}
        for i, token in enumerate(row):
            if i in asked:
                assert target[i] == told[token] == row[i + 1]
            elif token < tasks.SYMBOLS:
                told[token] = row[i + 1]
        assert len(told) == tasks.NOISY_PAIRS
        assert sum(token >= 2 * tasks.SYMBOLS for token in row) == tasks.NOISE
        gaps |= {after - before for before, after in itertools.pairwise(asked)}
    assert len(gaps) > 4  # the noise is at random places


def test_equal_seeds_give_equal_results_and_others_do_not() -> None:
    tiny = QualitySettings(recall_steps=3, text_steps=2)
    spec = spec_of([CONV, GQA])
    for task in tasks.ALL_TASKS:
        one, again, other = (evaluate(spec, task, tiny, seed) for seed in (0, 0, 1))
        assert replace(one, seconds=0.0) == replace(again, seconds=0.0)
        assert other.seed == 1
        assert task != "text" or one.value != other.value
        assert (one.task, one.seed, one.curve[-1]) == (task, 0, (one.steps, one.value))
    text = evaluate(spec, "text", tiny, 0)
    assert text.tokens == 2 * tasks.TEXT_TOKENS * tasks.TEXT_BATCH


def test_text_is_scored_on_documents_that_were_not_trained_on() -> None:
    training, held_out = micro.corpus_bytes()
    starts = np.linspace(0, len(held_out) - 200, 20).astype(int)
    pieces = [held_out[start : start + 200].tobytes() for start in starts]
    whole = training.tobytes()
    assert sum(piece in whole for piece in pieces) <= 4  # licence heads and boilerplate repeat, prose and code do not


def test_untrained_bytes_cost_about_eight_bits() -> None:
    result = evaluate(spec_of([CONV]), "text", QualitySettings(text_steps=1), 0)
    assert 5 < result.value < 9


def test_training_that_diverges_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(micro.LEARNING_RATES, "text", 1e30)
    with pytest.raises(FloatingPointError, match="the loss is"):
        evaluate(spec_of([CONV, CONV]), "text", QualitySettings(text_steps=60), 0)


def test_one_global_layer_mends_recall(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real trainings, made small: 4 keys of 8, so that a layout that can recall does within seconds."""
    for name, value in {"KEYS": 8, "PAIRS": 4, "QUERIES": 12, "RECALL_TOKENS": 32}.items():
        for module in (tasks, micro):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    setting = QualitySettings(recall_steps=150)
    hybrid = evaluate(spec_of([CONV, GQA], ffn=2048), "recall", setting, 0)
    local = evaluate(spec_of([CONV, CONV], ffn=2048), "recall", setting, 0)
    assert hybrid.status == "resolved"
    assert hybrid.value >= tasks.SOLVED
    assert hybrid.steps < setting.recall_steps  # stopped as soon as it was solved
    assert local.status == "unresolved"
    assert local.value < 0.75
    assert local.steps == setting.recall_steps


@pytest.mark.parametrize(
    ("operators", "reach", "can_recall"),
    [
        ([CONV, CONV, GQA], None, True),
        ([GQA, CONV, CONV], None, False),
        ([GQA, GQA], None, True),
        ([GLA, GQA], None, True),
        ([CONV, CONV, CONV], 7, False),
        ([CONV, SWA, CONV], 1 + 2 + 511 + 2, False),
        ([CONV, GLA], None, False),
    ],
)
def test_structure(operators: list[OperatorSpec], reach: int | None, can_recall: bool) -> None:
    found = structure(spec_of(operators))
    assert (found.reach, found.can_recall) == (reach, can_recall)
