"""What a training refuses, and what ends it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from trainings import SETTINGS, go_on_until, state, until

from archsearch.checkpoint import Checkpoint
from archsearch.data import open_corpus, prepare
from archsearch.errors import CheckpointError, InputError, RunError
from archsearch.model import LanguageModel
from archsearch.spec import ArchSpec
from archsearch.train import (
    Step,
    TrainSettings,
    train,
)
from archsearch.train.position import read_position
from archsearch.train.stops import Spike, SpikeWatch
from archsearch.train.trainer import Trainer

# --- what is refused ------------------------------------------------------------------------------------------------


def refused(spec: ArchSpec, data: list[Path], out: Path, **options: Any) -> None:
    list(train(spec, data, out, **options))


def test_an_occupied_folder_is_refused(
    tiny_spec: ArchSpec, texts: Path, token_cache: Path, uninterrupted_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"already holds a training, at step 12; go on with it with --resume"):
        refused(tiny_spec, [texts], uninterrupted_run)
    other = replace(tiny_spec, layers=tiny_spec.layers[:1])
    with pytest.raises(InputError, match=r"already holds a training of another spec \(tiny\)"):
        refused(other, [texts], uninterrupted_run)
    with pytest.raises(InputError, match="holds a training of another spec"):
        refused(other, [texts], uninterrupted_run, resume=True)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="is not empty and holds no training"):
        refused(tiny_spec, [texts], tmp_path)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        refused(tiny_spec, [texts], tmp_path, resume=True)
    assert [file.name for file in tmp_path.iterdir()] == ["letter.txt"]


def test_a_resume_with_other_settings_or_texts_is_refused(
    tiny_spec: ArchSpec, texts: Path, token_cache: Path, uninterrupted_run: Path, tmp_path: Path
) -> None:
    for settings, message in (
        (TrainSettings(tokens=10**6), "was begun with steps = 12, not 7813"),
        (TrainSettings(seed=3), "was begun with seed = 0, not 3"),
        (TrainSettings(max_seconds=9.0), "was begun with max_seconds = None, not 9.0"),
    ):
        with pytest.raises(InputError, match=message):
            refused(tiny_spec, [], uninterrupted_run, resume=True, settings=settings)
    (tmp_path / "other.txt").write_text("something\nelse\nentirely\n" * 3 + "".join(f"{i}\n" for i in range(200)))
    with pytest.raises(CheckpointError, match="was trained on other text than"):
        refused(tiny_spec, [tmp_path / "other.txt"], uninterrupted_run, resume=True, cache_dir=token_cache)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": 0}, "tokens: must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate: must be above 0"),
        ({"tokens": 1, "max_seconds": 1.0}, "exclude each other"),
        ({"evaluations": 1}, "at least 2"),
        ({"schedule": "none"}, "must be cosine or wsd"),
        ({"seed": -1}, "must not be negative"),
        ({"max_spike": -1.0}, "max_spike: must not be negative"),
        ({"optimizer": "sgd"}, "must be adamw or muon"),
        ({"dtype": "fp8"}, "must be fp32 or bf16"),
        ({"products": "mkl"}, "must be blas or onednn"),
        ({"compile": True, "isolate_documents": True}, "does not go together"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainSettings(**settings)


def test_too_small_a_vocabulary_or_text_is_refused_before_anything_is_written(
    tiny_spec: ArchSpec, texts: Path, token_cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="vocab_size: must be at least 257"):
        refused(replace(tiny_spec, vocab_size=100), [texts], out, cache_dir=token_cache)
    with pytest.raises(InputError, match="too few for sequences of 100000"):
        refused(tiny_spec, [texts], out, cache_dir=token_cache, settings=replace(SETTINGS, sequence=100_000))
    assert not out.exists()


def test_a_damaged_trainer_state(tiny_spec: ArchSpec, texts: Path, token_cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    list(until(train(tiny_spec, [texts], out, settings=SETTINGS, cache_dir=token_cache), Step))
    (out / "optimizer.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors: has 0 bytes"):
        refused(tiny_spec, [], out, resume=True, cache_dir=token_cache)
    assert Checkpoint.open(out).weights(), "the model itself can still be used"


def test_no_number_stops_with_step_and_batch(
    tiny_spec: ArchSpec, texts: Path, token_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    original = LanguageModel.loss
    calls = []

    def loss(self: LanguageModel, *args: Any) -> torch.Tensor:
        calls.append(1)
        return original(self, *args) * (float("nan") if len(calls) > 6 else 1.0)  # two parts a step: the fourth step

    monkeypatch.setattr(LanguageModel, "loss", loss)
    with pytest.raises(RunError, match=r"step 4: the loss is nan; .*nonfinite\.safetensors; train again into another --out"):
        refused(tiny_spec, [texts], out, settings=SETTINGS, cache_dir=token_cache)
    opened = Checkpoint.open(out)
    assert opened.step == 3
    assert all(np.isfinite(value).all() for value in opened.weights().values())
    assert load_file(out / "nonfinite.safetensors")["ids"].shape == (4, 33)


def test_a_leap_of_the_loss_stops_with_step_and_batch(
    tiny_spec: ArchSpec, texts: Path, token_cache: Path, uninterrupted_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twelfth batch costs 9 nats more: the training stops before its update, at the same place after a resume, and goes on where
    it is told to, to the weights of a training without a limit."""
    out = tmp_path / "out"
    original = LanguageModel.loss
    twelfth = Trainer(
        tiny_spec, prepare(open_corpus([texts]), 300, cache_dir=token_cache), read_position(Checkpoint.open(uninterrupted_run))[0]
    )
    bad_ids_BT = twelfth.batches.at(11)

    def loss(self: LanguageModel, ids_BT: torch.Tensor, *args: Any) -> torch.Tensor:
        leap = 9.0 if any(np.array_equal(ids_BT, part[:, :-1]) for part in np.split(bad_ids_BT, 2)) else 0.0
        return original(self, ids_BT, *args) + leap

    monkeypatch.setattr(LanguageModel, "loss", loss)
    message = r"step 12: the loss leaps to 1\d\.\d+, [78]\.\d+ above the median of the last 11 updates; .*spike\.safetensors; look at"
    with pytest.raises(RunError, match=message):
        refused(tiny_spec, [texts], out, settings=SETTINGS, cache_dir=token_cache)
    assert Checkpoint.open(out).step == 11
    assert np.array_equal(load_file(out / "spike.safetensors")["ids"], bad_ids_BT)
    with pytest.raises(RunError, match=message):
        refused(tiny_spec, [], out, resume=True, cache_dir=token_cache)
    list(train(tiny_spec, (), out, settings=TrainSettings(max_spike=0), resume=True, cache_dir=token_cache))
    for name, value in state(uninterrupted_run).items():
        assert np.array_equal(value, state(out)[name]), name


def test_uneven_losses_are_no_leap() -> None:
    """Ten robust deviations of an even series are; the same rise among losses that vary as much is not."""
    even, uneven = SpikeWatch(1.0), SpikeWatch(1.0)
    for step in range(20):
        even.check(3.0, IDS)
        even.add(3.0 + 0.01 * (step % 2))
        uneven.add(3.0 + 0.5 * (step % 2))
    uneven.check(5.0, IDS)
    even.check(3.9, IDS)
    with pytest.raises(Spike, match=r"leaps to 4\.50, 1\.50 above the median of the last 20"):
        even.check(4.5, IDS)
    SpikeWatch(0.0, [3.0] * 50).check(100.0, IDS)
    SpikeWatch(1.0, [3.0] * 9).check(100.0, IDS)


IDS = np.zeros((1, 2), dtype=np.int64)


def test_a_full_disk_stops_in_one_line(
    tiny_spec: ArchSpec, texts: Path, token_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    events = train(tiny_spec, [texts], out, settings=SETTINGS, cache_dir=token_cache)
    list(go_on_until(events, Step))

    def full(self: Trainer, folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Trainer, "write", full)
    with pytest.raises(RunError, match="cannot be written: No space left on device"):
        list(events)
    assert Checkpoint.open(out).step == 0
