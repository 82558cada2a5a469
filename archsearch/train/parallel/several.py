"""Several processes that train together, on one node or many: Lightning Fabric starts and wraps, gloo carries what they agree on.

Gradients and shards go over the devices' own network (NCCL between GPUs, gloo between CPUs). Everything else (losses, plans, failures,
wishes to stop) goes over a gloo group of its own, which needs no GPU, and notices a process that is gone by its closed connection.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from archsearch.errors import ArchsearchError, InputError, RunError, ToldElsewhere
from archsearch.train.parallel.launch import Launch
from archsearch.train.parallel.team import Team
from archsearch.train.settings import Kind, TrainPlan

T = TypeVar("T")

WAIT = timedelta(hours=24)
"""Longest wait for another process at an agreement: the first one may tokenise for hours. One that is gone is noticed at once."""
REASON = re.compile(r"Connection [^\[.]*|timed out[^.]*", re.IGNORECASE)
"""What of gloo's long messages a user can do something with."""
TOLD = "archsearch/told-of-a-lost-process"


@dataclass(frozen=True)
class _Problem:
    """A failure of one process, as the others hear of it."""

    message: str
    exit_code: int
    where: str


class Several(Team):
    """One process of a team.

    Args:
        launch: what torchrun said.
        kind: how the model is shared out.
    """

    current: ClassVar[Several | None] = None
    """The last one of this process."""

    def __init__(self, launch: Launch, kind: Kind) -> None:
        self.rank, self.size, self.kind = launch.rank, launch.size, kind
        self._launch = launch
        self._stop_asked = self._stopping = False
        self._shared: Exception | None = None
        self._plan: TrainPlan | None = None
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        strategy = (
            DDPStrategy(gradient_as_bucket_view=True)
            if kind == "ddp"
            else ModelParallelStrategy(self._shard, data_parallel_size=self.size, tensor_parallel_size=1)
        )
        nodes, left = divmod(launch.size, launch.local_size)
        if left:
            raise InputError(f"{launch.size} processes are no multiple of the {launch.local_size} on this node; start as many on each")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and torch.cuda.device_count() < launch.local_size:
            raise InputError(f"{launch.local_size} processes on a node with {torch.cuda.device_count()} GPUs; start one a GPU")
        if launch.restarts:
            self._start_again(device)
        self._fabric = Fabric(
            accelerator=device, devices=launch.local_size, num_nodes=nodes, strategy=strategy, plugins=[TorchElasticEnvironment()]
        )
        self._fabric.launch()
        self._control = dist.new_group(backend="gloo", timeout=WAIT)
        Several.current = self

    def _start_again(self, device: str) -> None:
        """Connect under names of this start's own, before Fabric does it: the store that torchrun keeps from one start to the next still
        holds the addresses of processes that are gone (torch 2.13, c10d rendezvous)."""
        agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        store = _store(is_master=self.first and not agents)
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "nccl" if device == "cuda" else "gloo"
        own = dist.PrefixStore(f"start-{self._launch.restarts}", store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=own, rank=self.rank, world_size=self.size)

    def check(self, plan: TrainPlan) -> None:
        super().check(plan)
        if self.kind == "fsdp" and plan.optimizer == "muon":
            raise InputError("--parallel fsdp: not with --optimizer muon, which needs whole matrices; choose --parallel ddp, or adamw")
        if self.kind == "fsdp" and plan.compile:
            raise InputError("--parallel fsdp: not with --compile; choose --parallel ddp, or leave it out")

    # --- the model and its gradients ---

    def setup(self, objective: nn.Module, plan: TrainPlan) -> Any:
        self._plan = plan
        module = self._fabric.setup_module(objective)
        if self.kind == "ddp":
            module.mark_forward_method("token_losses")
            self._settle(module)
        return module

    def _settle(self, module: nn.Module) -> None:
        """A first pass whose gradients nobody uses. DDP orders its buckets anew after the first one, and with that the order in which
        gradients are summed: so all updates are made after it, those of a resumed training too."""
        ids_BT = torch.zeros(1, 2, dtype=torch.long, device=self._fabric.device)
        with torch.random.fork_rng(devices=[]):
            module(ids_BT, ids_BT)[0].backward()
        module.zero_grad()

    def _shard(self, objective: nn.Module, mesh: Any) -> nn.Module:
        """Each layer is gathered when it is needed and dropped after it. Embedding, head and last norm form the outermost group, where a
        matrix that is both embedding and head is one tensor still.

        In bf16 the layers are gathered in bf16, half the bytes; the outermost group stays fp32, and with it the residual stream.
        """
        assert self._plan is not None
        mesh = mesh["data_parallel"]
        warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # of states that are views: nobody changes them in place
        narrow = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
        policy = narrow if self._plan.dtype == "bf16" else MixedPrecisionPolicy()
        for layer in objective.model.layers:  # type: ignore[union-attr]
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(objective, mesh=mesh)
        register_fsdp_forward_method(objective, "token_losses")
        return objective

    def adding_up(self, objective: nn.Module, *, last: bool) -> AbstractContextManager[object]:
        # a sharded model reduces after every part: to keep whole gradients would need the memory that sharding saves
        return self._fabric.no_backward_sync(objective, enabled=self.kind == "ddp" and not last)  # type: ignore[arg-type]

    # --- agreement ---

    def exchange(self, value: T) -> list[T]:
        values, problems = self._gather(value)
        for rank, problem in problems.items():
            where = f"process {rank} of {self.size} on {problem.where}"
            kind = InputError if problem.exit_code == 2 else RunError
            self._shared = self.hush(kind(problem.message if rank == 0 else f"{where}: {problem.message}"))
            raise self._shared
        return values

    def _gather(self, value: Any, problem: _Problem | None = None) -> tuple[list[Any], dict[int, _Problem]]:
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, (value, problem, self._stop_asked), group=self._control)
        values, problems, stops = zip(*everyone, strict=True)
        self._stopping = self._stopping or any(stops)
        return list(values), {rank: problem for rank, problem in enumerate(problems) if problem is not None}

    @contextmanager
    def together(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if error is self._shared or _is_loss(error):
                raise
            self._gather(None, _Problem(str(error) or type(error).__name__, getattr(error, "exit_code", 1), socket.gethostname()))
            self._shared = self.hush(error)
            raise self._shared from error.__cause__ if self._shared is error else error
        self.exchange(None)

    @contextmanager
    def apart(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._shared = error  # `together` lets it through, untold
            raise

    # --- the end ---

    @contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        lost = False
        try:
            yield
        except Exception as error:
            lost = _is_loss(error)  # torchrun's SIGTERM is on its way, and must not come before the word of what has happened
            raise
        finally:
            if not lost:
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _ask_to_stop(self, *_: object) -> None:
        self._stop_asked = True

    def heed(self) -> None:
        if self._stopping:
            raise KeyboardInterrupt

    @contextmanager
    def one_voice(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt as error:
            if self.first:
                raise
            raise ToldElsewhere("interrupted") from error
        except Exception as error:
            if not _is_loss(error):
                raise
            raise self._lost(error) from error

    def hush(self, error: Exception) -> Exception:
        return error if self.first else ToldElsewhere(str(error), getattr(error, "exit_code", 1))

    def _lost(self, error: Exception) -> ArchsearchError:
        """One line from whoever notices first; all others are silent."""
        first_line = str(error).splitlines()[0]
        found = REASON.search(first_line)
        message = (
            f"another process of this training has ended, or the network to it broke ({found[0].strip() if found else first_line[:160]}); "
            "its own output says why; go on from the last checkpoint with --resume"
        )
        try:
            told = _store(seconds=5).add(f"{TOLD}/{self._launch.restarts}", 1) > 1
        except (RuntimeError, KeyError, ValueError):  # the store went with the lost process
            told = False
        return ToldElsewhere(message) if told else RunError(message)


def outlast_first(seconds: float = 10) -> None:
    """Wait until the first process is gone, so that torchrun, which ends all as soon as one has failed, lets it say why."""
    team = Several.current
    if team is None or team.first:
        return
    with suppress(RuntimeError):  # its connection closes, or it takes too long
        word = dist.irecv(torch.zeros(1), src=0, group=team._control)
        assert word is not None
        word.wait(timedelta(seconds=seconds))


def _store(*, is_master: bool = False, seconds: float = 300) -> Any:
    """The store that torchrun names in the environment."""
    where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(*where, is_master=is_master, timeout=timedelta(seconds=seconds))  # type: ignore[attr-defined]


def _is_loss(error: BaseException) -> bool:
    """Whether an error of a collective means that a process, or the way to it, is gone."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
