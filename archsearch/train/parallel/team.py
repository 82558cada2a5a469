"""What the trainer asks of the processes it runs in, and the answers of a process that is alone.

Legend: B sequences of a batch, T tokens of a sequence, R processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from archsearch.errors import InputError
from archsearch.train.settings import Kind, TrainPlan

T = TypeVar("T")


class Team:
    """A process alone.

    Attributes:
        rank, size: which process this is, of how many.
        kind: how the model is shared out; None where there is nothing to share.
    """

    rank: int = 0
    size: int = 1
    kind: Kind | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, shows and tells."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether a process holds parts of the tensors only."""
        return self.kind == "fsdp"

    def check(self, plan: TrainPlan) -> None:
        """
        Raises:
            InputError: these processes cannot follow the plan.
        """
        if plan.batch < self.size:
            raise InputError(
                f"batch: {plan.batch} sequences cannot be shared by {self.size} processes; start at most {plan.batch}, or train with "
                f"--batch {self.size} or more"
            )

    # --- the model and its gradients ---

    def setup(self, objective: nn.Module, plan: TrainPlan) -> Any:
        """The objective on its device, to be called as before; a backward pass leaves the mean gradient of all processes."""
        return objective.to(plan.device)

    def adding_up(self, objective: nn.Module, *, last: bool) -> AbstractContextManager[object]:
        """Around the forward and backward pass of a part of the batch; before the last one gradients need not be exchanged."""
        return nullcontext()

    def rows(self, batch: int) -> slice:
        """This process's sequences of a batch: as many as any other's, give or take one."""
        return slice(self.rank * batch // self.size, (self.rank + 1) * batch // self.size)

    def parts(self, ids_BT: Tensor, plan: TrainPlan) -> list[tuple[Tensor, float]]:
        """(sequences, their share of the whole batch) that go through the model at once.

        All processes make the same number of passes, for a pass of a sharded model takes all of them: who runs out of sequences
        repeats some with share 0. Every sequence has the same number of targets, so shares of sequences are shares of tokens.
        """
        parts = [(part_BT, len(part_BT) / plan.batch) for part_BT in torch.split(ids_BT, plan.micro_batch)]
        passes = math.ceil(math.ceil(plan.batch / self.size) / plan.micro_batch)
        return parts + [(parts[0][0], 0.0)] * (passes - len(parts))

    # --- agreement ---

    def exchange(self, value: T) -> list[T]:
        """What every process gives here, in the order of ranks.

        Raises:
            ArchsearchError: another process failed instead of coming here; see `together`.
        """
        return [value]

    def agree(self, value: T) -> T:
        """The first process's value, for all."""
        return self.exchange(value)[0]

    def total(self, value: float) -> float:
        """The sum over all processes, in the order of ranks: the same bits everywhere and every time."""
        return sum(self.exchange(value))

    def in_turn(self, make: Callable[[], T]) -> T:
        """What `make` gives: made by the first process first, by the others when it is done."""
        made = make() if self.first else None
        self.exchange(None)
        return make() if made is None else made

    def together(self) -> AbstractContextManager[object]:
        """A block that all leave, or none: where one process fails, all raise, and the first tells why."""
        return nullcontext()

    def apart(self) -> AbstractContextManager[object]:
        """A stretch of `together` in which processes wait for each other's gradients or parts: one that fails there just ends, since
        the others do not come to hear of it before they notice that it is gone."""
        return nullcontext()

    # --- the end ---

    def listening(self) -> AbstractContextManager[object]:
        """Within the block, Ctrl-C and SIGTERM to any process stop all at the next `heed`."""
        return nullcontext()

    def heed(self) -> None:
        """
        Raises:
            KeyboardInterrupt: some process was asked to stop; all raise it at the same place.
        """

    def one_voice(self) -> AbstractContextManager[object]:
        """Within the block, an error that all processes share is raised by the first as it is, by the others as `ToldElsewhere`; and
        a process that is gone becomes a `RunError`."""
        return nullcontext()

    def hush(self, error: Exception) -> Exception:
        """An error that all processes have come to together, as this one should raise it."""
        return error


ALONE = Team()


def deal(items: Sequence[T], team: Team) -> list[T]:
    """This process's item of every round in which they are dealt to all; in the last round, who has none repeats the last item."""
    rounds = math.ceil(len(items) / team.size)
    return [items[min(team.rank + i * team.size, len(items) - 1)] for i in range(rounds)]


def collect(mine: Sequence[T], count: int, team: Team) -> list[T]:
    """What came of all `count` items that `deal` dealt, in their order; `mine` is what came of this process's."""
    everyone: list[Any] = team.exchange(list(mine))
    return [everyone[number % team.size][number // team.size] for number in range(count)]
