"""Real processes of one training: forked from a server that has torch loaded, so that each takes a second and not five."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from archsearch.spec import ArchSpec
from archsearch.train import TrainSettings

PATIENCE = 240
"""Seconds before a process counts as hanging."""
Fault = Callable[[int], None]
"""What a process does to itself before the training, given its rank."""


@dataclass
class Outcome:
    """How a process ended.

    Attributes:
        error: (class, message); None where the training came to its end.
        events: (class, step) of all events.
        killed: by which signal.
    """

    error: tuple[str, str] | None = None
    events: list[tuple[str, int]] = field(default_factory=list)
    trace: str = ""
    killed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """The arguments of `train`."""

    spec: ArchSpec
    texts: Sequence[str]
    out: Path
    cache: Path
    settings: TrainSettings
    resume: bool = False
    faults: Sequence[Fault] = ()


def train_in(size: int, job: Job) -> list[Outcome]:
    """Train in `size` processes, as torchrun would start them; one starts without being told of any others."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["archsearch.train.parallel.several", "archsearch.train", "ranks"])
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes, pipes = [], []
    for rank in range(size):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(rank, size, port, job, theirs))
        process.start()
        theirs.close()
        processes.append(process)
        pipes.append(ours)
    deadline = time.monotonic() + PATIENCE
    return [_outcome(process, pipe, deadline) for process, pipe in zip(processes, pipes, strict=True)]


def _outcome(process: BaseProcess, pipe: Connection, deadline: float) -> Outcome:
    try:
        outcome: Outcome = pipe.recv() if pipe.poll(max(0.0, deadline - time.monotonic())) else Outcome(("Hangs", ""))
    except EOFError:
        outcome = Outcome()
    if outcome.error == ("Hangs", ""):
        process.kill()
    process.join()
    if process.exitcode is not None and process.exitcode < 0:
        outcome.killed = -process.exitcode
    return outcome


def _work(rank: int, size: int, port: int, job: Job, pipe: Connection) -> None:
    from archsearch.train import train

    signal.signal(signal.SIGINT, signal.default_int_handler)
    if size > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size), GROUP_RANK="0",
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
    outcome = Outcome()
    try:
        for fault in job.faults:
            fault(rank)
        for event in train(job.spec, job.texts, job.out, settings=job.settings, resume=job.resume, cache_dir=job.cache):
            outcome.events.append((type(event).__name__, getattr(event, "step", 0)))
    except BaseException as error:
        outcome.error, outcome.trace = (type(error).__name__, str(error)), traceback.format_exc()
    pipe.send(outcome)
    pipe.close()
    os._exit(0)  # as it is: what torch does at exit is not what is tested


# --- faults ---------------------------------------------------------------------------------------------------------


def in_float64(rank: int) -> None:
    """Weights, gradients and moments in double precision, in which only rounding of 1e-16 tells one order of sums from another."""
    import torch

    torch.set_default_dtype(torch.float64)


@dataclass(frozen=True)
class Kill:
    """kill -9 of one process in the middle of an update: after its backward pass."""

    rank: int
    step: int

    def __call__(self, rank: int) -> None:
        from archsearch.train.trainer import Trainer

        original = Trainer._backward

        def backward(trainer: Trainer, ids_BT: Any) -> float:
            loss = original(trainer, ids_BT)
            if trainer.step == self.step:
                os.kill(os.getpid(), signal.SIGKILL)
            return loss

        if rank == self.rank:
            Trainer._backward = backward  # type: ignore[method-assign]


@dataclass(frozen=True)
class KillInSave:
    """kill -9 of one process in the save of a step, before or after its part is written."""

    rank: int
    step: int
    after: bool

    def __call__(self, rank: int) -> None:
        from archsearch.train.trainer import Trainer

        original = Trainer.write_part

        def write_part(trainer: Trainer, folder: Path) -> Any:
            if trainer.step == self.step and not self.after:
                (folder / f"shard-{rank + 1:05}-model-00001-of-00001.safetensors").write_bytes(b"half a header")
                os.kill(os.getpid(), signal.SIGKILL)
            written = original(trainer, folder)
            if trainer.step == self.step:
                os.kill(os.getpid(), signal.SIGKILL)
            return written

        if rank == self.rank:
            Trainer.write_part = write_part  # type: ignore[method-assign]


@dataclass(frozen=True)
class NoNumber:
    """The loss of one process is no number at one step."""

    rank: int
    step: int

    def __call__(self, rank: int) -> None:
        from archsearch.train.trainer import Objective, Trainer

        original, here = Objective.forward, [-1]
        backward = Trainer._backward

        def noting(trainer: Trainer, ids_BT: Any) -> float:
            here[0] = trainer.step
            return backward(trainer, ids_BT)

        def forward(objective: Objective, *args: Any) -> Any:
            loss, cross_entropy = original(objective, *args)
            bad = float("nan") if here[0] == self.step else 1.0
            return loss * bad, cross_entropy * bad

        if rank == self.rank:
            Trainer._backward, Objective.forward = noting, forward  # type: ignore[method-assign, assignment]


@dataclass(frozen=True)
class Signal:
    """One process alone is told to stop, in the middle of an update."""

    rank: int
    step: int
    number: int

    def __call__(self, rank: int) -> None:
        from archsearch.train.trainer import Trainer

        original = Trainer._backward

        def backward(trainer: Trainer, ids_BT: Any) -> float:
            if trainer.step == self.step:
                os.kill(os.getpid(), self.number)
            return original(trainer, ids_BT)

        if rank == self.rank:
            Trainer._backward = backward  # type: ignore[method-assign]


def save_always(rank: int) -> None:
    """A save after every update, whatever share of the time it takes."""
    from archsearch.train import loop

    loop.SAVE_SHARE = 1e9


@dataclass(frozen=True)
class OtherText:
    """One process finds other text than the others, or none."""

    rank: int
    path: str

    def __call__(self, rank: int) -> None:
        from archsearch.train import opening

        original = opening.open_corpus

        def open_corpus(sources: Any, **options: Any) -> Any:
            return original([self.path] if rank == self.rank else sources, **options)

        opening.open_corpus = open_corpus


@dataclass(frozen=True)
class FullDisk:
    """One process cannot write its part at a step."""

    rank: int
    step: int

    def __call__(self, rank: int) -> None:
        from archsearch.train.trainer import Trainer

        original = Trainer.write_part

        def write_part(trainer: Trainer, folder: Path) -> Any:
            written = original(trainer, folder)
            if trainer.step == self.step:
                raise OSError(28, "No space left on device")
            return written

        if rank == self.rank:
            Trainer.write_part = write_part  # type: ignore[method-assign]
