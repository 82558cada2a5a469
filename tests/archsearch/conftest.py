"""Small things that several tests of this package train on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import Outcome
from trainings import SETTINGS

from archsearch.data import TokenData, open_corpus, prepare
from archsearch.spec import ArchSpec
from archsearch.train import TrainPlan, train
from archsearch.train.planning import make_plan
from operators.specs import BlockSpec, FfnSpec, GlaSpec, GqaSpec, OperatorSpec, ShortConvSpec, SwaSpec

WORDS = ["the", "a", "red", "blue", "green", "cat", "dog", "sees", "hears", "finds", "loses", "one", "two"]


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 80 short texts over a few words, no two alike."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("texts")
    for i in range(80):
        (folder / f"{i:02}.txt").write_text(" ".join(rng.choice(WORDS, size=200)) + f" {i}.\n")
    return folder


@pytest.fixture(scope="session")
def tiny_spec() -> ArchSpec:
    """Every kind of operator once, 300 tokens, some 40 thousand parameters."""
    operators: list[OperatorSpec] = [
        ShortConvSpec(kernel_size=3),
        SwaSpec(heads=2, kv_heads=1, head_dim=16, window=8),
        GlaSpec(heads=2),
        GqaSpec(heads=2, kv_heads=1, head_dim=16),
    ]
    blocks = tuple(BlockSpec(operator=operator, ffn=FfnSpec(intermediate_size=64)) for operator in operators)
    return ArchSpec(name="tiny", hidden_size=32, vocab_size=300, layers=blocks)


@pytest.fixture(scope="session")
def token_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where trainings keep what they made of `texts`."""
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture(scope="session")
def data(texts: Path, token_cache: Path) -> TokenData:
    """`texts` as tokens for `tiny_spec`."""
    return prepare(open_corpus([texts]), 300, cache_dir=token_cache)


@pytest.fixture(scope="session")
def plan(tiny_spec: ArchSpec, data: TokenData) -> TrainPlan:
    """Of a training of `tiny_spec` on `data` for twelve steps."""
    return make_plan(tiny_spec, data, SETTINGS)


@pytest.fixture(scope="session")
def uninterrupted_run(tiny_spec: ArchSpec, texts: Path, token_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every resume must end as this one."""
    out = tmp_path_factory.mktemp("whole") / "out"
    list(train(tiny_spec, [texts], out, settings=SETTINGS, cache_dir=token_cache))
    return out


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run a command in this process."""
    from archsearch.cli import main

    monkeypatch.setenv("COLUMNS", "300")

    def run(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        assert isinstance(end.value.code, int)
        return Outcome(end.value.code, *capsys.readouterr())

    return run
