"""A teacher: any causal language model of transformers with our vocabulary; and what it said of a batch, kept for another time."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import platformdirs
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from archsearch.data import Tokenizer, read_tokenizer
from archsearch.errors import FileFormatError, InputError
from archsearch.files import write_atomic
from archsearch.hf import hf_loader
from archsearch.train.distillation import TopK
from archsearch.train.settings import TrainPlan
from operators.documents import Documents

NAMES = ("ids", "log_p", "log_rest")
"""Of what is kept of a batch."""
SAMPLED = 4096
"""Values of each tensor that go into a teacher's fingerprint."""


class Teacher:
    """A frozen model. What it says is rounded to fp16, cached or not, so that a resume does not depend on the cache.

    Raises:
        InputError: it cannot be loaded, or its vocabulary is not ours.
    """

    def __init__(self, name: str, tokenizer: Tokenizer, device: str) -> None:
        self.name, self.vocab_size, self.end = name, tokenizer.vocab_size, tokenizer.end_of_document
        _check_vocabulary(name, tokenizer)
        self.model, self.device = _load(name, device), device
        rows = self.model.get_output_embeddings().weight.shape[0]
        if rows < self.vocab_size:
            raise InputError(f"{name}: gives {rows} logits, the vocabulary has {self.vocab_size} tokens; choose another teacher")

    @property
    def longest(self) -> int | None:
        """Tokens that it can see at once, where it has a limit."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return limit if isinstance(limit, int) else None

    def fingerprint(self) -> str:
        """Equal for equal weights: names, shapes and the first values of every tensor."""
        digest = sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.flatten()[:SAMPLED].double().cpu().numpy().tobytes())
        return digest.hexdigest()[:32]

    @torch.no_grad()
    def look(self, ids_BT: Tensor, k: int, documents: Documents | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The top k after every token of `ids_BT`, N = B * T of them, as they are kept: (ids_NK, log_p_NK in fp16, log_rest_N in fp16).
        With `documents`, each document on its own."""
        rows = [ids_BT] if documents is None else _alone(ids_BT, documents)
        kept = [TopK.of(self._logits(row_BT).flatten(0, 1), k) for row_BT in rows]
        ids_NK, log_p_NK, log_rest_N = (torch.cat([getattr(part, name) for part in kept]) for name in ("ids_NK", "log_p_NK", "log_rest_N"))
        return ids_NK, log_p_NK.half(), log_rest_N.half()

    def _logits(self, ids_BT: Tensor) -> Tensor:
        logits_BTV: Tensor = self.model(input_ids=ids_BT, use_cache=False).logits
        return logits_BTV[..., : self.vocab_size]


class Lessons:
    """What the teacher says of each step's batch, asked once where there is a cache.

    Args:
        cache: a folder; None asks anew every time.
    """

    def __init__(self, teacher: Teacher, plan: TrainPlan, cache: Path | None) -> None:
        self.teacher, self.k = teacher, plan.teacher_top_k
        self.folder = None if cache is None else cache / _key(plan)

    def of(self, name: str, ids_BT: Tensor, documents: Documents | None) -> TopK:
        """
        Args:
            name: of the batch or the part of it, unique within the training.
        """
        path = None if self.folder is None else self.folder / f"{name}.safetensors"
        if path is not None and (kept := _read(path, ids_BT.numel(), self.k, ids_BT.device)) is not None:
            return kept
        asked = self.teacher.look(ids_BT, self.k, documents)
        if path is not None:
            _write(path, asked)
        return _widened(*asked)


def teacher_tokenizer(name: str) -> Tokenizer:
    """The tokenizer that a teacher comes with.

    Raises:
        InputError: there is none, or not one that we can train with.
    """
    if Path(name).is_dir():
        return read_tokenizer(Path(name))
    if name.startswith(("/", ".", "~")):
        raise InputError(f"{name}: no such folder; --teacher takes a model as transformers saves it, or a name on the hub")
    try:
        from huggingface_hub import hf_hub_download

        return read_tokenizer(Path(hf_hub_download(name, "tokenizer.json")))
    except FileFormatError:
        raise
    except Exception as error:  # the hub raises many kinds
        raise InputError(f"{name}: the teacher's tokenizer cannot be read: {_first_line(error)}") from error


@lru_cache(maxsize=1)
def open_teacher(name: str, tokenizer: Tokenizer, device: str) -> Teacher:
    """As `Teacher`; the last one is kept, since planning and training both need it."""
    return Teacher(name, tokenizer, device)


def lesson_cache(cache_dir: Path | None) -> Path:
    """Where `Lessons` are kept."""
    return (cache_dir or platformdirs.user_cache_path("archsearch")) / "teacher"


def _load(name: str, device: str) -> Any:
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    try:
        model: Any = hf_loader(name).from_pretrained(name, dtype=dtype, trust_remote_code=False)
    except ModuleNotFoundError as error:
        raise InputError(f"{name}: a teacher needs the package 'transformers'; install it with: pip install 'archsearch[hf]'") from error
    except Exception as error:  # transformers raises many kinds
        raise InputError(f"{name}: cannot be loaded as a teacher: {_first_line(error)}") from error
    return model.to(device).eval().requires_grad_(False)


def _check_vocabulary(name: str, tokenizer: Tokenizer) -> None:
    theirs, ours = teacher_tokenizer(name).vocabulary(), tokenizer.vocabulary()
    differing = [token for token, id in ours.items() if theirs.get(token) != id]
    if differing or len(theirs) != len(ours):
        raise InputError(
            f"{name}: the teacher's vocabulary is not the training's: {len(theirs):,} tokens against {len(ours):,}, "
            f"{len(differing):,} with another id; train with its tokenizer (leave --tokenizer out), or choose another teacher"
        )


def _alone(ids_BT: Tensor, documents: Documents) -> list[Tensor]:
    """Each document of each sequence, [1, its length], in order."""
    cuts = [[0, *(row_T[1:].nonzero()[:, 0] + 1).tolist(), len(row_T)] for row_T in documents.starts_BT]
    return [ids_BT[b : b + 1, start:stop] for b, row in enumerate(cuts) for start, stop in pairwise(row)]


def _key(plan: TrainPlan) -> str:
    parts = (plan.teacher_fingerprint, plan.data_fingerprint, plan.sequence, plan.batch, plan.micro_batch, plan.seed)
    return sha256(repr((*parts, plan.isolate_documents, plan.teacher_top_k)).encode()).hexdigest()[:32]


def _widened(ids_NK: Tensor, log_p_NK: Tensor, log_rest_N: Tensor) -> TopK:
    """From what is kept, whose rounded masses no longer sum to one, to what does."""
    log_p_NK, log_rest_N = log_p_NK.float(), log_rest_N.float()
    sum_N = torch.logaddexp(log_p_NK.logsumexp(-1), log_rest_N)
    return TopK(ids_NK.long(), log_p_NK - sum_N[:, None], log_rest_N - sum_N)


def _read(path: Path, tokens: int, k: int, device: torch.device) -> TopK | None:
    """None where there is nothing, or nothing that can be used."""
    try:
        kept = load(path.read_bytes())
        ids_NK, log_p_NK, log_rest_N = (kept[name].to(device) for name in NAMES)
    except (OSError, SafetensorError, KeyError):
        return None
    return _widened(ids_NK, log_p_NK, log_rest_N) if ids_NK.shape == (tokens, k) else None


def _write(path: Path, kept: tuple[Tensor, Tensor, Tensor]) -> None:
    ids_NK, log_p_NK, log_rest_N = kept
    tensors = zip(NAMES, (ids_NK.int(), log_p_NK, log_rest_N), strict=True)
    write_atomic(path, save({name: tensor.contiguous().cpu() for name, tensor in tensors}))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
