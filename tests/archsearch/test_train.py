"""Training: the plan, the loss falls, exact resume, what stops it, held-out loss by hand."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from archsearch.checkpoint import COMPLETE, INCOMING, Checkpoint
from archsearch.data import TokenData, open_corpus, prepare
from archsearch.errors import CheckpointError, InputError, RunError
from archsearch.model import LanguageModel
from archsearch.spec import ArchSpec
from archsearch.train import (
    Cut,
    Evaluated,
    Finished,
    Sampled,
    Saved,
    Started,
    Step,
    TrainEvent,
    TrainPlan,
    TrainSettings,
    read_metrics,
    train,
)
from archsearch.train.evaluate import evaluate
from archsearch.train.interrupt import uninterrupted
from archsearch.train.muon import MuonFp32
from archsearch.train.planning import make_plan
from archsearch.train.position import read_position
from archsearch.train.products import onednn_is_exact
from archsearch.train.schedule import learning_rate, phases
from archsearch.train.stops import Spike, SpikeWatch
from archsearch.train.trainer import Trainer, fastest_dtype

SETTINGS = TrainSettings(
    tokens=12 * 4 * 32,
    sequence=32,
    batch=4,
    micro_batch=2,
    evaluations=3,
    eval_tokens=128,
    sample_tokens=8,
    threads=1,
    dtype="fp32",
    products="blas",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def data(texts: Path, cache: Path) -> TokenData:
    return prepare(open_corpus([texts]), 300, cache_dir=cache)


@pytest.fixture(scope="module")
def plan(tiny_spec: ArchSpec, data: TokenData) -> TrainPlan:
    return make_plan(tiny_spec, data, SETTINGS)


@pytest.fixture(scope="module")
def uninterrupted_run(tiny_spec: ArchSpec, texts: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every resume must end as this one."""
    out = tmp_path_factory.mktemp("whole") / "out"
    list(train(tiny_spec, [texts], out, settings=SETTINGS, cache_dir=cache))
    return out


def state(out: Path) -> Mapping[str, np.ndarray[Any, Any]]:
    """Weights and moments."""
    opened = Checkpoint.open(out)
    return opened.weights() | dict(load_file(opened.file("optimizer.safetensors")))


def assert_same_training(one: Path, two: Path) -> None:
    """Bit for bit the same weights, moments, losses and order of data."""
    a, b = state(one), state(two)
    assert a.keys() == b.keys()
    assert [name for name in a if a[name].tobytes() != b[name].tobytes()] == []
    kept = ("step", "tokens", "loss", "learning_rate", "grad_norm")
    rows_a, rows_b = ([{key: row[key] for key in kept if key in row} for row in read_metrics(out) if "loss" in row] for out in (one, two))
    assert rows_a == rows_b
    assert Checkpoint.open(one).step == len(rows_a)
    held_a, held_b = ([row["held_out"] for row in read_metrics(out) if row["event"] == "evaluated"] for out in (one, two))
    assert held_a == held_b
    assert json.loads((one / "samples.json").read_text()) == json.loads((two / "samples.json").read_text())


def test_a_training_from_start_to_end(tiny_spec: ArchSpec, texts: Path, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = replace(SETTINGS, tokens=60 * 4 * 32, learning_rate=3e-3)
    events = list(train(tiny_spec, [texts], out, settings=settings, cache_dir=cache))
    assert isinstance(events[0], Started)
    finished = events[-1]
    assert isinstance(finished, Finished)
    steps = [event for event in events if isinstance(event, Step)]
    assert [event.step for event in steps] == list(range(1, 61))
    assert finished.tokens == steps[-1].tokens == 60 * 4 * 32
    assert steps[0].loss == pytest.approx(math.log(300), rel=0.05), "untrained, all tokens are about equally likely"
    assert np.mean([event.loss for event in steps[-5:]]) < 0.8 * steps[0].loss
    assert finished.after.bits_per_byte < 0.8 * finished.before.bits_per_byte
    evaluated = [event for event in events if isinstance(event, Evaluated)]
    assert [event.step for event in evaluated] == [0, 30, 60]
    assert (evaluated[0].held_out, evaluated[-1].held_out) == (finished.before, finished.after)
    rows = read_metrics(out)
    assert [row["step"] for row in rows if row["event"] == "step"] == list(range(1, 61))
    losses = [row["held_out"]["bits_per_byte"] for row in rows if row["event"] == "evaluated"]
    assert losses == [event.held_out.bits_per_byte for event in evaluated]
    [sampled] = [event for event in events if isinstance(event, Sampled)]
    assert len(json.loads((out / "samples.json").read_text())) == len(sampled.samples) == 2 * 4
    assert all(sample.reference for sample in sampled.samples[:6])
    held_out = [d.text for d in open_corpus([texts]).held_out()]
    assert all(any(text.startswith(sample.prompt) for text in held_out) for sample in sampled.samples[:6])
    assert Checkpoint.open(out).step == 60
    assert [row["event"] for row in rows[:2]] == ["started", "evaluated"]
    assert rows[-1]["event"] == "finished"


def test_bf16_trains_too(tiny_spec: ArchSpec, data: TokenData, plan: TrainPlan) -> None:
    """Emulated where the machine lacks it: slow, but the same arithmetic. bf16 keeps 8 bits, the loss moves by less than one."""
    losses = {}
    for dtype in ("fp32", "bf16"):
        trainer = Trainer(tiny_spec, data, replace(plan, dtype=dtype))
        losses[dtype] = [trainer.update()[0] for _ in range(3)]
        assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=1e-2)
    assert losses["bf16"] != losses["fp32"]
    assert fastest_dtype(32, "cpu") in ("fp32", "bf16")


@pytest.mark.skipif(not onednn_is_exact(), reason="oneDNN rounds fp32 matrices to bf16 on this processor")
def test_a_training_multiplies_as_its_plan_says(tiny_spec: ArchSpec, data: TokenData, plan: TrainPlan) -> None:
    """Forward and backward; the numbers are the same to fp32's rounding."""
    found = {}
    for library, expected in (("blas", "highest"), ("onednn", "medium")):
        trainer = Trainer(tiny_spec, data, replace(plan, products=library))
        seen: list[str] = []
        ffn = trainer.model.layers[0].ffn
        ffn.register_forward_hook(lambda *_, seen=seen: seen.append(torch.get_float32_matmul_precision()))
        ffn.register_full_backward_hook(lambda *_, seen=seen: seen.append(torch.get_float32_matmul_precision()))
        found[library] = [trainer.update() for _ in range(3)]
        assert seen == [expected] * len(seen)
        assert len(seen) == 2 * 3 * (plan.batch // plan.micro_batch)
        assert torch.get_float32_matmul_precision() == "highest"
    for blas, onednn in zip(found["blas"], found["onednn"], strict=True):
        assert onednn == pytest.approx(blas, rel=1e-4)


@pytest.mark.parametrize("layer", range(4), ids=["short_conv", "swa", "gla", "gqa"])
def test_the_loss_falls_with_every_operator_alone(tiny_spec: ArchSpec, data: TokenData, plan: TrainPlan, layer: int) -> None:
    spec = replace(tiny_spec, layers=(tiny_spec.layers[layer],) * 2)
    trainer = Trainer(spec, data, replace(plan, schedule="cosine", steps=40, decay_steps=38, warmup_steps=2))
    losses = [trainer.update()[0] for _ in range(40)]
    assert np.mean(losses[-5:]) < 0.85 * losses[0]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trainer.model.parameters())


def test_isolated_documents_train_and_are_scored_alone(tiny_spec: ArchSpec, data: TokenData, plan: TrainPlan) -> None:
    """The loss of a batch that packs documents is the mean over the pieces, each on its own; so is the held-out loss."""
    plan = replace(plan, isolate_documents=True, sequence=256)
    trainer = Trainer(tiny_spec, data, plan)
    ids_BT = torch.from_numpy(next(ids_BT for step in range(100) if packs(ids_BT := trainer.batches.at(step), data) > 1))
    apart = trainer._backward(ids_BT)
    pieces = [piece for row_T in ids_BT for piece in documents_in(row_T, data)]
    losses = [(len(piece) - 1) * trainer.model.loss(piece[None, :-1], piece[None, 1:]).item() for piece in pieces]
    assert apart == pytest.approx(sum(losses) / ids_BT[:, 1:].numel(), rel=1e-6)
    assert apart != trainer.model.loss(ids_BT[:, :-1], ids_BT[:, 1:]).item()
    held_out = evaluate(trainer.model, data, plan).nats_per_token
    assert held_out != evaluate(trainer.model, data, replace(plan, isolate_documents=False)).nats_per_token


def packs(ids_BT: np.ndarray[Any, Any], data: TokenData) -> int:
    """Documents that begin within the rows."""
    return int((ids_BT[:, 1:-1] == data.tokenizer.end_of_document).sum())


def documents_in(row_T: torch.Tensor, data: TokenData) -> list[torch.Tensor]:
    """Inputs and targets of every document in a row; the separator is the last target of one and the first input of the next."""
    starts = [0, *(t for t in range(1, len(row_T) - 1) if row_T[t] == data.tokenizer.end_of_document), len(row_T) - 1]
    return [row_T[first : last + 1] for first, last in pairwise(starts)]


class Forgetful(torch.nn.Module):
    """A module of somebody's who has not heard of documents."""

    def forward(self, x_BTD: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        return x_BTD, ()


def test_an_operator_that_leaks_is_refused_where_documents_must_not(
    tiny_spec: ArchSpec, data: TokenData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("operators.builtin.Gla.module", lambda self, spec, dims: Forgetful())
    assert not make_plan(tiny_spec, data, SETTINGS).isolate_documents
    with pytest.raises(InputError, match=r"layers\.2\.operator: gla cannot keep packed documents apart"):
        make_plan(tiny_spec, data, replace(SETTINGS, isolate_documents=True))


def test_accumulated_gradients_are_those_of_the_whole_batch(tiny_spec: ArchSpec, data: TokenData, plan: TrainPlan) -> None:
    gradients = []
    for micro_batch in (4, 3, 1):  # 3: the last part is smaller than the others
        trainer = Trainer(tiny_spec, data, replace(plan, micro_batch=micro_batch))
        trainer.model.double()
        loss = trainer._backward(torch.from_numpy(trainer.batches.at(0)))
        gradients.append((loss, [parameter.grad for parameter in trainer.model.parameters()]))
    for loss, some in gradients[1:]:
        assert loss == pytest.approx(gradients[0][0], rel=1e-6)  # the loss is taken in float32
        for one, other in zip(gradients[0][1], some, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9)


def test_only_matrices_decay(tiny_spec: ArchSpec, data: TokenData, plan: TrainPlan) -> None:
    trainer = Trainer(tiny_spec, data, plan)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    groups = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in trainer.optimizer.param_groups}
    assert groups.keys() == {0.1, 0.0}
    assert "layers.0.operator.in_proj.weight" in groups[0.1]
    assert {"layers.0.operator.conv.weight", "layers.0.ffn_norm.weight", "embedding_norm.weight"} < groups[0.0]
    assert not [name for name in groups[0.1] if "norm" in name or name.endswith("bias")]


def test_muon_is_for_hidden_matrices_only(tiny_spec: ArchSpec, data: TokenData, plan: TrainPlan) -> None:
    trainer = Trainer(tiny_spec, data, replace(plan, optimizer="muon"))
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    adamw, muon = ({names[id(p)] for group in part.param_groups for p in group["params"]} for part in trainer.optimizer.parts)
    assert adamw | muon == set(names.values())
    assert not adamw & muon
    assert {"embed_tokens.weight", "layers.0.operator.conv.weight", "embedding_norm.weight", "layers.2.operator.gk_proj.1.bias"} < adamw
    assert {"layers.0.operator.in_proj.weight", "layers.3.ffn.w2.weight", "layers.2.operator.gk_proj.0.weight"} < muon
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    rate = learning_rate(trainer.plan, 0)
    trainer.update()
    update = (trainer.model.get_parameter("layers.0.ffn.w1.weight") - before["layers.0.ffn.w1.weight"]).detach()
    assert 0.1 * rate < update.square().mean().sqrt() < 0.4 * rate, "the size of AdamW's, 0.2 (arXiv 2502.16982)"


def test_muon_in_fp32_is_torchs_to_the_rounding_of_bf16() -> None:
    generator = torch.Generator().manual_seed(0)
    rules: list[Any] = [
        lambda matrices: MuonFp32(matrices, lr=0.01, weight_decay=0.1, momentum=0.95),
        lambda matrices: torch.optim.Muon(matrices, lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
    ]
    starts = [torch.randn(shape, generator=generator) for shape in ((24, 40), (40, 24), (16, 16))]
    gradients = [[torch.randn(start.shape, generator=generator) for start in starts] for _ in range(3)]
    moved = []
    for rule in rules:
        matrices = [torch.nn.Parameter(start.clone()) for start in starts]
        optimizer = rule(matrices)
        for some in gradients:
            for matrix, gradient in zip(matrices, some, strict=True):
                matrix.grad = gradient.clone()
            optimizer.step()
        moved.append([matrix.detach() - start for matrix, start in zip(matrices, starts, strict=True)])
    for ours, torchs in zip(*moved, strict=True):
        assert (ours - torchs).norm() < 0.02 * torchs.norm()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute:UserWarning")  # from within torch.compile
def test_compiled_layers_train_the_same_model(tiny_spec: ArchSpec, data: TokenData, plan: TrainPlan) -> None:
    losses = {}
    for compiled in (False, True):
        trainer = Trainer(replace(tiny_spec, layers=tiny_spec.layers[:1]), data, replace(plan, compile=compiled))
        losses[compiled] = [trainer.update()[0] for _ in range(3)]
        assert not [name for name, _ in trainer.model.named_parameters() if "orig_mod" in name]
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_seed_decides_everything(tiny_spec: ArchSpec, data: TokenData, plan: TrainPlan, optimizer: Any) -> None:
    runs = []
    for seed in (0, 0, 1):
        trainer = Trainer(tiny_spec, data, replace(plan, seed=seed, optimizer=optimizer))
        losses = [trainer.update() for _ in range(3)]
        runs.append((losses, [parameter.detach().clone() for parameter in trainer.model.parameters()]))
    first, again, other = runs
    assert first[0] == again[0] != other[0]
    assert all(torch.equal(one, two) for one, two in zip(first[1], again[1], strict=True))


# --- resume ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 5, 6, 7, 12])
def test_a_closed_training_resumes_exactly(
    tiny_spec: ArchSpec, texts: Path, cache: Path, uninterrupted_run: Path, tmp_path: Path, stop: int
) -> None:
    out = tmp_path / "out"
    events = train(tiny_spec, [texts], out, settings=SETTINGS, cache_dir=cache)
    for event in events:
        if isinstance(event, Step) and event.step == stop:
            break
    events.close()  # type: ignore[attr-defined]
    assert Checkpoint.open(out).step == stop
    [*_, finished] = train(tiny_spec, (), out, resume=True, cache_dir=cache)
    assert isinstance(finished, Finished)
    assert_same_training(uninterrupted_run, out)


def test_a_training_closed_after_every_event_ends_the_same(
    tiny_spec: ArchSpec, texts: Path, cache: Path, uninterrupted_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    list(_until(train(tiny_spec, [texts], out, settings=SETTINGS, cache_dir=cache), Saved))
    for _ in range(40):
        seen = list(_until(train(tiny_spec, (), out, resume=True, cache_dir=cache), (Step, Evaluated, Sampled, Finished)))
        if isinstance(seen[-1], Finished):
            break
        if isinstance(seen[-1], Sampled):
            [*_, last] = train(tiny_spec, (), out, resume=True, cache_dir=cache)
            assert isinstance(last, Finished)
            break
    assert_same_training(uninterrupted_run, out)


def _until(events: Iterator[TrainEvent], kinds: Any) -> Iterator[TrainEvent]:
    """Events up to the first of these kinds; then the training is closed."""
    for event in events:
        yield event
        if isinstance(event, kinds):
            break
    events.close()  # type: ignore[attr-defined]


def test_ctrl_c_saves(
    tiny_spec: ArchSpec, texts: Path, cache: Path, uninterrupted_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal arrives in the middle of an update, which is still finished."""
    out = tmp_path / "out"
    original = Trainer._backward

    def backward(self: Trainer, ids_BT: torch.Tensor) -> float:
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, ids_BT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_backward", backward)
        with pytest.raises(KeyboardInterrupt):
            list(train(tiny_spec, [texts], out, settings=SETTINGS, cache_dir=cache))
    assert Checkpoint.open(out).step == 5
    list(train(tiny_spec, (), out, resume=True, cache_dir=cache))
    assert_same_training(uninterrupted_run, out)


def test_signals_wait_for_the_end_of_a_block() -> None:
    order = []
    with pytest.raises(KeyboardInterrupt):
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            order.append("block done")
        order.append("not reached")
    assert order == ["block done"]

    def elsewhere() -> None:
        with uninterrupted():
            order.append("thread done")

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert order[-1] == "thread done"


KILLED = """
import sys
from pathlib import Path
from archsearch.spec import ArchSpec
from archsearch.train import TrainSettings, loop, train
loop.SAVE_SHARE = 1.0
texts, out, cache, resume = sys.argv[1:]
settings = TrainSettings(tokens=12 * 4 * 32, sequence=32, batch=4, micro_batch=2, evaluations=3, eval_tokens=128, sample_tokens=8,
                         threads=1, dtype="fp32", products="blas", save_every_seconds=0)
for event in train(ArchSpec.read(cache + "/tiny.toml"), [texts], out, settings=settings, cache_dir=Path(cache), resume=resume == "resume"):
    print(type(event).__name__, flush=True)
"""


@pytest.mark.parametrize("precision", [{"dtype": "bf16"}, {"products": "onednn"}], ids=["bf16", "onednn"])
def test_every_precision_resumes_exactly(precision: dict[str, Any], tiny_spec: ArchSpec, texts: Path, cache: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, **precision)
    list(train(tiny_spec, [texts], tmp_path / "whole", settings=settings, cache_dir=cache))
    events = train(tiny_spec, [texts], tmp_path / "cut", settings=settings, cache_dir=cache)
    next(event for event in events if isinstance(event, Step) and event.step == 7)
    events.close()
    list(train(tiny_spec, [texts], tmp_path / "cut", resume=True, cache_dir=cache))
    assert_same_training(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_a_killed_training_resumes_exactly(tiny_spec: ArchSpec, texts: Path, cache: Path, uninterrupted_run: Path, tmp_path: Path) -> None:
    """kill -9 twice, at moments that nobody chose: between and in the middle of updates, saves and evaluations."""
    tiny_spec.write(cache / "tiny.toml")
    out = tmp_path / "out"
    rng = np.random.default_rng()
    for resume, lines in (("", 8), ("resume", 6)):
        command = [sys.executable, "-c", KILLED, str(texts), str(out), str(cache), resume]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(lines):
                assert process.stdout.readline(), "ended before it was killed"
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
        assert process.returncode == -signal.SIGKILL
    assert 0 < Checkpoint.open(out).step < 12
    list(train(tiny_spec, (), out, resume=True, cache_dir=cache))
    assert_same_training(uninterrupted_run, out)


KILLED_IN_SAVE = """
import os, shutil, signal
from pathlib import Path
from archsearch import checkpoint

calls, save = 0, checkpoint.save_checkpoint

def count(owner, name):
    original = getattr(owner, name)
    def counted(*args, **kwargs):
        global calls
        calls += 1
        if calls == last_call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)
    setattr(owner, name, counted)

def save_and_die(path, spec, step, write):
    if step >= 5:
        for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "replace"), (Path, "write_text"), (Path, "mkdir"), (Path, "rmdir")):
            count(owner, name)
    save(path, spec, step, write)

*_, texts, out, cache, resume, last_call = __import__("sys").argv
last_call = int(last_call)
__import__("sys").argv = ["", texts, out, cache, resume]
import archsearch.train.loop
archsearch.train.loop.save_checkpoint = save_and_die
"""


@pytest.mark.slow
def test_a_training_killed_in_a_save_resumes_exactly(
    tiny_spec: ArchSpec, texts: Path, cache: Path, uninterrupted_run: Path, tmp_path: Path
) -> None:
    """A real kill -9 in the save of step 5: while files are written, while they are flushed, and while they move to their place."""
    tiny_spec.write(cache / "tiny.toml")
    left_behind = set()
    for last_call in (3, 8, 13, 16):
        out = tmp_path / str(last_call)
        script = KILLED_IN_SAVE + KILLED.replace("SAVE_SHARE = 1.0", "SAVE_SHARE = 1e9")  # a save after every step
        command = [sys.executable, "-c", script, str(texts), str(out), str(cache), "", str(last_call)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        left_behind |= {name for name in (INCOMING, COMPLETE) if (out / name).exists()}
        assert Checkpoint.open(out).step in (4, 5)
        list(train(tiny_spec, (), out, resume=True, cache_dir=cache))
        assert_same_training(uninterrupted_run, out)
    assert left_behind == {INCOMING, COMPLETE}, "it died before and after the new checkpoint stood"


def test_muon_resumes_exactly(tiny_spec: ArchSpec, texts: Path, cache: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, optimizer="muon", isolate_documents=True)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    list(train(tiny_spec, [texts], whole, settings=settings, cache_dir=cache))
    list(_until(train(tiny_spec, [texts], cut, settings=settings, cache_dir=cache), Step))
    list(train(tiny_spec, (), cut, resume=True, cache_dir=cache))
    assert_same_training(whole, cut)


def test_a_finished_training_has_nothing_to_resume(tiny_spec: ArchSpec, cache: Path, uninterrupted_run: Path) -> None:
    before = (uninterrupted_run / "checkpoint.json").stat().st_mtime_ns
    started, finished = train(tiny_spec, (), uninterrupted_run, resume=True, cache_dir=cache)
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    assert finished.step == 12
    assert finished.after.bits_per_byte == read_metrics(uninterrupted_run)[-1]["after"]["bits_per_byte"]
    assert (uninterrupted_run / "checkpoint.json").stat().st_mtime_ns == before


# --- what is refused ------------------------------------------------------------------------------------------------


def refused(spec: ArchSpec, data: list[Path], out: Path, **options: Any) -> None:
    list(train(spec, data, out, **options))


def test_an_occupied_folder_is_refused(tiny_spec: ArchSpec, texts: Path, cache: Path, uninterrupted_run: Path, tmp_path: Path) -> None:
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
    tiny_spec: ArchSpec, texts: Path, cache: Path, uninterrupted_run: Path, tmp_path: Path
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
        refused(tiny_spec, [tmp_path / "other.txt"], uninterrupted_run, resume=True, cache_dir=cache)


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
    tiny_spec: ArchSpec, texts: Path, cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="vocab_size: must be at least 257"):
        refused(replace(tiny_spec, vocab_size=100), [texts], out, cache_dir=cache)
    with pytest.raises(InputError, match="too few for sequences of 100000"):
        refused(tiny_spec, [texts], out, cache_dir=cache, settings=replace(SETTINGS, sequence=100_000))
    assert not out.exists()


def test_a_damaged_trainer_state(tiny_spec: ArchSpec, texts: Path, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    list(_until(train(tiny_spec, [texts], out, settings=SETTINGS, cache_dir=cache), Step))
    (out / "optimizer.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors: has 0 bytes"):
        refused(tiny_spec, [], out, resume=True, cache_dir=cache)
    assert Checkpoint.open(out).weights(), "the model itself can still be used"


def test_no_number_stops_with_step_and_batch(
    tiny_spec: ArchSpec, texts: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    original = LanguageModel.loss
    calls = []

    def loss(self: LanguageModel, *args: Any) -> torch.Tensor:
        calls.append(1)
        return original(self, *args) * (float("nan") if len(calls) > 6 else 1.0)  # two parts a step: the fourth step

    monkeypatch.setattr(LanguageModel, "loss", loss)
    with pytest.raises(RunError, match=r"step 4: the loss is nan; .*nonfinite\.safetensors; train again into another --out"):
        refused(tiny_spec, [texts], out, settings=SETTINGS, cache_dir=cache)
    opened = Checkpoint.open(out)
    assert opened.step == 3
    assert all(np.isfinite(value).all() for value in opened.weights().values())
    assert load_file(out / "nonfinite.safetensors")["ids"].shape == (4, 33)


def test_a_leap_of_the_loss_stops_with_step_and_batch(
    tiny_spec: ArchSpec, texts: Path, cache: Path, uninterrupted_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twelfth batch costs 9 nats more: the training stops before its update, at the same place after a resume, and goes on where
    it is told to, to the weights of a training without a limit."""
    out = tmp_path / "out"
    original = LanguageModel.loss
    twelfth = Trainer(tiny_spec, prepare(open_corpus([texts]), 300, cache_dir=cache), read_position(Checkpoint.open(uninterrupted_run))[0])
    bad_ids_BT = twelfth.batches.at(11)

    def loss(self: LanguageModel, ids_BT: torch.Tensor, *args: Any) -> torch.Tensor:
        leap = 9.0 if any(np.array_equal(ids_BT, part[:, :-1]) for part in np.split(bad_ids_BT, 2)) else 0.0
        return original(self, ids_BT, *args) + leap

    monkeypatch.setattr(LanguageModel, "loss", loss)
    message = r"step 12: the loss leaps to 1\d\.\d+, [78]\.\d+ above the median of the last 11 updates; .*spike\.safetensors; look at"
    with pytest.raises(RunError, match=message):
        refused(tiny_spec, [texts], out, settings=SETTINGS, cache_dir=cache)
    assert Checkpoint.open(out).step == 11
    assert np.array_equal(load_file(out / "spike.safetensors")["ids"], bad_ids_BT)
    with pytest.raises(RunError, match=message):
        refused(tiny_spec, [], out, resume=True, cache_dir=cache)
    list(train(tiny_spec, (), out, settings=TrainSettings(max_spike=0), resume=True, cache_dir=cache))
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
    tiny_spec: ArchSpec, texts: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    events = train(tiny_spec, [texts], out, settings=SETTINGS, cache_dir=cache)
    list(_until_open(events, Step))

    def full(self: Trainer, folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Trainer, "write", full)
    with pytest.raises(RunError, match="cannot be written: No space left on device"):
        list(events)
    assert Checkpoint.open(out).step == 0


def _until_open(events: Iterator[TrainEvent], kind: type[Any]) -> Iterator[TrainEvent]:
    for event in events:
        yield event
        if isinstance(event, kind):
            return


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
    tiny_spec: ArchSpec, texts: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archsearch.train.planning.measure_speed", lambda *_: 1000.0)
    settings = replace(SETTINGS, tokens=None, max_seconds=100.0, eval_tokens=300)
    out = tmp_path / "out"
    events = train(tiny_spec, [texts], out, settings=settings, cache_dir=cache)
    [started, *_] = _until(events, Saved)
    assert isinstance(started, Started)
    # nine tenths of the time at 1000 tokens/s, less three evaluations at a third of the cost; steps of 128 tokens
    assert started.plan.steps == pytest.approx((0.9 * 100 * 1000 - 3 * 300 / 3) / 128, rel=0.05)
    assert started.plan.measured_tokens_per_s == 1000.0
    resumed = next(iter(train(tiny_spec, (), out, settings=settings, resume=True, cache_dir=cache)))
    assert isinstance(resumed, Started)
    assert resumed.plan == started.plan


def test_a_machine_that_slows_down_gets_fewer_steps(
    tiny_spec: ArchSpec, texts: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    events = list(train(tiny_spec, [texts], tmp_path / "out", settings=settings, cache_dir=cache))
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
