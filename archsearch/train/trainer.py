"""A model and its optimizer, one update after the other; and their state as files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from archsearch.checkpoint import MODEL, OPTIMIZER, WAY_OUT, Checkpoint, FileSum
from archsearch.data import TokenData
from archsearch.errors import CheckpointError
from archsearch.model import LanguageModel
from archsearch.parts import load_parts, placed, save_part, whole
from archsearch.spec import ArchSpec
from archsearch.train.allocator import keep_freed_memory
from archsearch.train.distillation import TopK, linear_distillation
from archsearch.train.optimizers import UpdateRule
from archsearch.train.parallel import ALONE, Team
from archsearch.train.products import use_products
from archsearch.train.schedule import learning_rate
from archsearch.train.settings import TrainPlan
from archsearch.train.stops import NonFinite, SpikeWatch
from archsearch.train.teacher import Lessons, open_teacher
from operators.documents import Documents


class Trainer:
    """Everything an update needs. `step` counts the updates made; it, the plan and the tensors decide all that follows."""

    def __init__(self, spec: ArchSpec, data: TokenData, plan: TrainPlan, *, lessons_in: Path | None = None, team: Team = ALONE) -> None:
        """
        Args:
            lessons_in: where what a teacher says is kept; by default nowhere.
            team: the processes that train this model together, each with a trainer of its own.
        """
        self.plan, self.team = plan, team
        self.step = 0
        self.end_of_document = data.tokenizer.end_of_document
        self.batches = data.batches(plan.sequence, plan.batch, plan.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed)
            self.model = LanguageModel(spec)
        self.objective: Any = team.setup(Objective(self.model, plan), plan)
        self.parameters = dict(self.model.named_parameters())
        self.lessons: Lessons | None = None
        if plan.teacher is not None:
            self.lessons = Lessons(open_teacher(plan.teacher, data.tokenizer, plan.device), plan, lessons_in)
        self.optimizer = UpdateRule(self.model, plan)
        self.spikes = SpikeWatch()
        if plan.device == "cpu":
            keep_freed_memory()
        if plan.compile:
            self.model.compile_layers()

    def update(self) -> tuple[float, float]:
        """One step: `(loss, gradient norm)`, loss in nats a token before the update.

        Random numbers (an operator of yours may draw some) follow from seed and step, so that there is no state of them to keep.

        Raises:
            BadUpdate: loss or gradient is no number, or the loss leaps.
        """
        plan = self.plan
        ids_BT = self.batches.at(self.step, self.team.rows(plan.batch))
        self.objective.train()
        self.optimizer.zero_grad()
        with torch.random.fork_rng(devices=[]), use_products(plan.products):
            torch.manual_seed((plan.seed * 1_000_003 + self.step) ^ (self.team.rank << 40))
            loss = self._backward(torch.from_numpy(ids_BT).to(plan.device))
        if not math.isfinite(loss):
            raise NonFinite(f"the loss is {loss}", ids_BT)
        self.spikes.check(loss, ids_BT)
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self.parameters.values(), plan.grad_clip)))
        if not math.isfinite(norm):
            raise NonFinite(f"the gradient norm is {norm}", ids_BT)
        with use_products(plan.products):  # Muon multiplies matrices, too
            self.optimizer.step(learning_rate(plan, self.step))
        self.spikes.add(loss)
        self.step += 1
        return loss, norm

    def _backward(self, ids_BT: Tensor) -> float:
        """Accumulate gradients of the mean loss over the batch, a micro-batch at a time; that loss.

        Args:
            ids_BT: this process's sequences of the batch.
        """
        total = 0.0
        parts = self.team.parts(ids_BT, self.plan)
        for number, (part_BT, share) in enumerate(parts):
            inputs_BT = part_BT[:, :-1]
            documents = documents_of(inputs_BT, self.plan, self.end_of_document)
            lesson = self.lessons.of(self._name(number), inputs_BT, documents) if self.lessons else None
            with self.team.adding_up(self.objective, last=number == len(parts) - 1):
                with autocast(self.plan):
                    loss, cross_entropy = self.objective(inputs_BT, part_BT[:, 1:], documents, lesson)
                    loss = loss * (share * self.team.size)  # what the team makes of gradients is their mean
                loss.backward()
            total += cross_entropy.item() * share
        return self.team.total(total)

    def _name(self, part: int) -> str:
        """Of a part of this step's batch, among all that the team's processes see."""
        return f"{self.step:08}-{part:03}" + (f"-{self.team.rank}-of-{self.team.size}" if self.team.size > 1 else "")

    def write(self, folder: Path) -> None:
        """Weights and moments as whole safetensors files. All processes come here, the first one writes."""
        files: dict[str, dict[str, Tensor]] = {MODEL: {}, OPTIMIZER: {}}
        with self.team.apart():
            for name, tensors in ((MODEL, self.parameters), (OPTIMIZER, self.optimizer.tensors())):
                for key, tensor in tensors.items():
                    gathered = whole(tensor.detach())
                    if self.team.first:
                        files[name][key] = gathered.contiguous()
        if self.team.first:
            for name, kept in files.items():
                save_file(kept, folder / name)

    def write_part(self, folder: Path) -> dict[str, FileSum]:
        """The part of weights and moments that this process holds, as a safetensors file; its sum. All processes come here."""
        return {file.name: FileSum.of(file) for file in save_part(self.parameters | self.optimizer.tensors(), folder, self.team.rank)}

    def whole_model(self) -> LanguageModel:
        """The model with whole tensors: this one, or a copy of what is in parts. All processes come here."""
        if not self.team.sharded:
            return self.model
        weights = {name: whole(parameter.detach()) for name, parameter in self.parameters.items()}
        with torch.device("meta"):
            model = LanguageModel(self.model.spec)
        model.load_state_dict(weights, assign=True)
        return model

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same spec, whoever saved it: one process or several, whole or in parts.

        Raises:
            CheckpointError: a file is damaged, or does not fit the model.
        """
        weights, moments = self._read_parts(checkpoint) if checkpoint.parts else self._read_whole(checkpoint)
        try:
            self.model.load_state_dict(weights)
        except RuntimeError as error:
            problem = str(error).splitlines()[-1].strip()
            raise CheckpointError(f"{checkpoint.path / MODEL}: does not fit the spec: {problem}; {WAY_OUT}") from error
        try:
            if checkpoint.step:
                self.optimizer.load(moments, checkpoint.step)
        except KeyError as error:
            raise CheckpointError(f"{checkpoint.path / OPTIMIZER}: has no fitting {error.args[0]}; {WAY_OUT}") from error
        self.step = checkpoint.step

    def _read_whole(self, checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(weights, moments), each shared out as the parameter that it belongs to."""

        def shared_out(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {key: placed(tensor, self.parameters.get(key.split("/")[-1])) for key, tensor in tensors.items()}

        return shared_out(_load(checkpoint, MODEL)), shared_out(_load(checkpoint, OPTIMIZER))

    def _read_parts(self, checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        weights = {name: torch.empty_like(parameter) for name, parameter in self.parameters.items()}
        keys = self.optimizer.keys() if checkpoint.step else {}
        moments = {key: torch.empty_like(parameter) for key, parameter in keys.items()}
        with checkpoint.parts_folder(checkpoint.parts[self.team.rank :: self.team.size]) as folder:
            try:
                load_parts(weights | moments, folder)
            except KeyError as error:
                raise CheckpointError(f"{checkpoint.path}: has no {error.args[0]}; {WAY_OUT}") from error
            except ValueError as error:
                raise CheckpointError(f"{checkpoint.path}: does not fit the spec: {error}; {WAY_OUT}") from error
        return weights, moments


class Objective(nn.Module):
    """What is minimised: (loss, cross-entropy of the text), means in nats a token; the same without a teacher."""

    def __init__(self, model: LanguageModel, plan: TrainPlan) -> None:
        super().__init__()
        self.model, self.weight, self.temperature = model, plan.teacher_weight, plan.teacher_temperature

    def forward(
        self, ids_BT: Tensor, targets_BT: Tensor, documents: Documents | None = None, lesson: TopK | None = None
    ) -> tuple[Tensor, Tensor]:
        if lesson is None:
            loss = self.model.loss(ids_BT, targets_BT, documents)
            return loss, loss.detach()
        x_BTD, _ = self.model.hidden(ids_BT, documents=documents)
        head_VD, targets_N = self.model.head_weight_VD, targets_BT.flatten()
        return linear_distillation(x_BTD.flatten(0, 1), head_VD, targets_N, lesson, temperature=self.temperature, weight=self.weight)

    def token_losses(self, ids_BT: Tensor, targets_BT: Tensor, documents: Documents | None = None) -> Tensor:
        """As `LanguageModel.token_losses`."""
        return self.model.token_losses(ids_BT, targets_BT, documents)


def documents_of(ids_BT: Tensor, plan: TrainPlan, end_of_document: int) -> Documents | None:
    """The documents in inputs, where the plan wants them apart. The token that ends one is the input that the next begins with,
    as a prompt does."""
    return Documents.after(ids_BT, end_of_document) if plan.isolate_documents else None


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Torch's thread count within a block. It decides how sums are split, and so the last bits of the result."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def autocast(plan: TrainPlan) -> AbstractContextManager[object]:
    """bf16 matrix products where the plan says so, else fp32 ones by the plan's library; the weights stay fp32."""
    if plan.dtype == "fp32":
        return use_products(plan.products)
    return torch.autocast(torch.device(plan.device).type, dtype=torch.bfloat16)


def _load(checkpoint: Checkpoint, name: str) -> dict[str, Tensor]:
    path = checkpoint.file(name)
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises errors of its own
        raise CheckpointError(f"{path}: is no readable safetensors file: {error}; {WAY_OUT}") from error
