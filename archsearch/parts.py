"""Tensors of which several processes hold a part each: as safetensors files, one a process, and put together again.

The files are those of torch's distributed checkpoints in the format of Hugging Face (`torch.distributed.checkpoint.hf_storage`): plain
safetensors, whose headers say where in the whole tensor each part belongs. No pickle, and any number of processes can read them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its parts, which all processes that hold one must ask for together; on the CPU, if it was in parts."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def placed(tensor: Tensor, like: Tensor | None) -> Tensor:
    """This process's part of a whole tensor, where `like` is one of its shape that is in parts; else the tensor."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or like.shape != tensor.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def save_part(tensors: Mapping[str, Tensor], folder: Path, rank: int) -> list[Path]:
    """Write this process's part of all tensors, flushed to disk; the files made. All processes come here, with the same names.

    Raises:
        OSError: some process cannot write.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:  # no Exception, and as long as all tracebacks of all processes together
        raise next(iter(error.failures.values()))[0] from error
    return list(folder.glob(f"shard-{rank + 1:05}-*"))


def load_parts(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill tensors, whole or in parts themselves, from the files in a folder; each process reads what it needs, alone.

    Raises:
        KeyError: the files lack a tensor; the key is its name.
        ValueError: a tensor has another shape in the files.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    kept = _kept(folder)
    for name, tensor in tensors.items():
        if kept[name][0] != tuple(tensor.shape):
            raise ValueError(f"{name} is {kept[name][0]}, not {tuple(tensor.shape)}")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # that is what no_dist means
        load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)


def read_parts(folder: Path) -> dict[str, Tensor]:
    """All tensors in a folder of such files, put together."""
    tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in _kept(folder).items()}
    load_parts(tensors, folder)
    return tensors


def _kept(folder: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """(shape, dtype) of the tensors that the files hold parts of."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    entries = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    tensors = {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}
    return {name: (tuple(entry.size), entry.properties.dtype) for name, entry in tensors.items()}
