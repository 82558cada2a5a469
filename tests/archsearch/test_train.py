"""Training: the loss falls with every operator, and every choice does what it says."""

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
from trainings import SETTINGS

from archsearch.checkpoint import Checkpoint
from archsearch.data import TokenData, open_corpus
from archsearch.errors import InputError
from archsearch.spec import ArchSpec
from archsearch.train import (
    Evaluated,
    Finished,
    Sampled,
    Started,
    Step,
    TrainPlan,
    read_metrics,
    train,
)
from archsearch.train.evaluate import evaluate
from archsearch.train.muon import MuonFp32
from archsearch.train.planning import make_plan
from archsearch.train.products import onednn_is_exact
from archsearch.train.schedule import learning_rate
from archsearch.train.trainer import Trainer


def test_a_training_from_start_to_end(tiny_spec: ArchSpec, texts: Path, token_cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = replace(SETTINGS, tokens=60 * 4 * 32, learning_rate=3e-3)
    events = list(train(tiny_spec, [texts], out, settings=settings, cache_dir=token_cache))
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
