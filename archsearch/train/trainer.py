"""A model and its optimizer, one update after the other; and their state as files."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from archsearch.checkpoint import MODEL, OPTIMIZER, WAY_OUT, Checkpoint
from archsearch.data import TokenData
from archsearch.errors import CheckpointError
from archsearch.model import LanguageModel
from archsearch.spec import ArchSpec
from archsearch.train.allocator import keep_freed_memory
from archsearch.train.distillation import TopK, linear_distillation
from archsearch.train.optimizers import UpdateRule
from archsearch.train.products import use_products
from archsearch.train.schedule import learning_rate
from archsearch.train.settings import Dtype, TrainPlan
from archsearch.train.stops import NonFinite, SpikeWatch
from archsearch.train.teacher import Lessons, open_teacher
from operators.documents import Documents


class Trainer:
    """Everything an update needs. `step` counts the updates made; it, the plan and the tensors decide all that follows."""

    def __init__(self, spec: ArchSpec, data: TokenData, plan: TrainPlan, *, lessons_in: Path | None = None) -> None:
        """
        Args:
            lessons_in: where what a teacher says is kept; by default nowhere.
        """
        self.plan = plan
        self.step = 0
        self.end_of_document = data.tokenizer.end_of_document
        self.batches = data.batches(plan.sequence, plan.batch, plan.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed)
            self.model = LanguageModel(spec).to(plan.device)
        self.objective = Objective(self.model, plan)
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
        ids_BT = self.batches.at(self.step)
        self.model.train()
        self.optimizer.zero_grad()
        with torch.random.fork_rng(devices=[]), use_products(plan.products):
            torch.manual_seed(plan.seed * 1_000_003 + self.step)
            loss = self._backward(torch.from_numpy(ids_BT).to(plan.device))
        if not math.isfinite(loss):
            raise NonFinite(f"the loss is {loss}", ids_BT)
        self.spikes.check(loss, ids_BT)
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), plan.grad_clip))
        if not math.isfinite(norm):
            raise NonFinite(f"the gradient norm is {norm}", ids_BT)
        with use_products(plan.products):  # Muon multiplies matrices, too
            self.optimizer.step(learning_rate(plan, self.step))
        self.spikes.add(loss)
        self.step += 1
        return loss, norm

    def _backward(self, ids_BT: Tensor) -> float:
        """Accumulate gradients of the mean loss over the batch, a micro-batch at a time."""
        total = 0.0
        for number, part_BT in enumerate(torch.split(ids_BT, self.plan.micro_batch)):
            inputs_BT, share = part_BT[:, :-1], len(part_BT) / len(ids_BT)
            documents = documents_of(inputs_BT, self.plan, self.end_of_document)
            lesson = self.lessons.of(f"{self.step:08}-{number:03}", inputs_BT, documents) if self.lessons else None
            with autocast(self.plan):
                loss, cross_entropy = self.objective(inputs_BT, part_BT[:, 1:], documents, lesson)
                loss = loss * share
            loss.backward()
            total += cross_entropy.item() * share
        return total

    def write(self, folder: Path) -> None:
        """Weights and moments as safetensors files."""
        weights = {name: parameter.detach().contiguous() for name, parameter in self.model.named_parameters()}
        save_file(weights, folder / MODEL)
        save_file(self.optimizer.tensors(), folder / OPTIMIZER)

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same spec.

        Raises:
            CheckpointError: a file is damaged, or does not fit the model.
        """
        weights = _load(checkpoint, MODEL)
        moments = _load(checkpoint, OPTIMIZER)
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


def fastest_dtype(hidden_size: int, device: str) -> Dtype:
    """bf16 where this machine multiplies matrices of this width at least 1.5 times as fast with it: measured, since a CPU
    without the instructions emulates them, many times slower. 2048 rows, so that a product takes long enough to be timed."""
    speeds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(2048, hidden_size, dtype=dtype, device=device)
        w = torch.ones(4 * hidden_size, hidden_size, dtype=dtype, device=device)
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            (x @ w.T).sum().item()  # item waits for the device
            seconds.append(time.perf_counter() - start)
        speeds[dtype] = 1 / min(seconds)
    return "bf16" if speeds[torch.bfloat16] > 1.5 * speeds[torch.float32] else "fp32"


def _load(checkpoint: Checkpoint, name: str) -> dict[str, Tensor]:
    path = checkpoint.file(name)
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises errors of its own
        raise CheckpointError(f"{path}: is no readable safetensors file: {error}; {WAY_OUT}") from error
