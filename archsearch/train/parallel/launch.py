"""Whether this process is one of several, as torchrun says in the environment; and the team that it belongs to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from archsearch.errors import InputError
from archsearch.train.parallel.team import ALONE, Team
from archsearch.train.settings import Kind

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
TRAINING_BYTES = 16
"""Of a parameter, where a process holds all of it: weight, gradient and two moments in fp32."""
MODEL_SHARE = 0.5
"""Of a device's memory that these may take; the rest is for activations."""


@dataclass(frozen=True)
class Launch:
    """
    Attributes:
        rank, size: which process this is, of how many on all nodes.
        local_size: processes of this node.
        restarts: how often torchrun has started all processes anew (`--max-restarts`).
    """

    rank: int
    size: int
    local_size: int
    restarts: int = 0


def launched(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """What torchrun says; None where it did not start this process.

    Raises:
        InputError: some of its variables are missing, or are no numbers.
    """
    if not {"RANK", "WORLD_SIZE"} <= environment.keys():
        return None
    try:
        rank, size, _, local_size = (int(environment[name]) for name in VARIABLES)
        return Launch(rank, size, local_size, int(environment.get("TORCHELASTIC_RESTART_COUNT", 0)))
    except (KeyError, ValueError) as error:
        raise InputError(f"{', '.join(VARIABLES)}: must all be set, as torchrun sets them; {error} is not") from error


def open_team(wanted: Literal["auto"] | Kind, parameters: int, optimizer: str) -> Team:
    """The team of this process, connected.

    Raises:
        InputError: `wanted` asks for several processes where there is one, or Lightning Fabric is not installed.
    """
    launch = launched()
    if launch is None:
        if wanted != "auto":
            raise InputError(
                f"--parallel {wanted}: this is one process; start several with: torchrun --nproc-per-node N -m archsearch train ..."
            )
        return ALONE
    if launch.size == 1:
        return ALONE
    memory = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    try:
        from archsearch.train.parallel.several import Several
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("lightning"):
            raise
        raise InputError("several processes need Lightning Fabric; install it with: pip install 'archsearch[cluster]'") from error
    return Several(launch, choose(parameters, memory, optimizer) if wanted == "auto" else wanted)


def choose(parameters: int, memory_bytes: int | None, optimizer: str) -> Kind:
    """ddp as long as the model with its moments leaves half of a GPU free, for it exchanges least; on CPUs, and with Muon, always."""
    if memory_bytes is None or optimizer == "muon":
        return "ddp"
    return "ddp" if TRAINING_BYTES * parameters <= MODEL_SHARE * memory_bytes else "fsdp"
