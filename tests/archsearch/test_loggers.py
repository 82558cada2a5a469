"""What TensorBoard and trackio are told."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trainings import SETTINGS

from archsearch.errors import InputError
from archsearch.spec import ArchSpec
from archsearch.train import Evaluated, Step, read_metrics, train
from archsearch.train.loggers import open_logger, scalars


def run(spec: ArchSpec, texts: Path, out: Path, cache: Path, name: str, *, stop: int | None = None, resume: bool = False) -> None:
    logger = open_logger(name, out)
    events = train(spec, () if resume else [texts], out, settings=SETTINGS, resume=resume, cache_dir=cache)
    for event in events:
        logger.log(event)
        if isinstance(event, Step) and event.step == stop:
            break
    events.close()  # type: ignore[attr-defined]
    logger.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what TensorBoard imports
def test_tensorboard_shows_every_step_once(tiny_spec: ArchSpec, texts: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "out"
    run(tiny_spec, texts, out, tmp_path / "cache", "tensorboard", stop=5)
    run(tiny_spec, texts, out, tmp_path / "cache", "tensorboard", resume=True)
    shown = EventAccumulator(str(out / "tensorboard")).Reload()
    rows = [row for row in read_metrics(out) if row["event"] == "step"]
    for tag, key in (("train/loss", "loss"), ("train/grad_norm", "grad_norm"), ("train/learning_rate", "learning_rate")):
        assert [point.step for point in shown.Scalars(tag)] == list(range(1, 13))
        assert [point.value for point in shown.Scalars(tag)] == pytest.approx([row[key] for row in rows], rel=1e-6)
    assert [point.step for point in shown.Scalars("held_out/bits_per_byte")] == [0, 6, 12]
    assert "train/tokens_per_s" in shown.Tags()["scalars"]


def test_trackio_is_told_what_it_understands(tiny_spec: ArchSpec, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package, which is not installed here: init, log with step, finish."""
    calls: list[tuple[str, Any]] = []
    stand_in = SimpleNamespace(
        init=lambda **options: calls.append(("init", options)),
        log=lambda values, step: calls.append(("log", (step, values))),
        finish=lambda: calls.append(("finish", None)),
    )
    monkeypatch.setitem(sys.modules, "trackio", stand_in)
    run(tiny_spec, texts, tmp_path / "out", tmp_path / "cache", "trackio")
    assert [name for name, _ in calls] == ["init", *["log"] * 15, "finish"]
    assert calls[0][1]["project"] == "archsearch"
    assert [step for name, value in calls if name == "log" for step in [value[0]] if "train/loss" in value[1]] == list(range(1, 13))


def test_scalars_of_events_without_curves() -> None:
    assert scalars(SimpleNamespace()) == {}  # type: ignore[arg-type]
    held_out = SimpleNamespace(bits_per_byte=2.0, nats_per_token=3.0, sources={"/data/a.jsonl": 1.5})
    curves = scalars(Evaluated(step=1, tokens=1, held_out=held_out, seconds=0.0))  # type: ignore[arg-type]
    assert curves == {"held_out/bits_per_byte": 2.0, "held_out/nats_per_token": 3.0, "held_out/a.jsonl": 1.5}


def test_an_unknown_or_missing_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--log: must be one of tensorboard, trackio, got 'wandb'"):
        open_logger("wandb", tmp_path)
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(InputError, match="--log trackio: the package is not installed; install it with: pip install trackio"):
        open_logger("trackio", tmp_path)
