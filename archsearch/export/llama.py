"""A GGUF file in llama.cpp, as PyPI's xllamacpp carries it, in a process of its own: llama.cpp ends the process it runs in when it
meets what it does not know.

Importing this module is cheap, for the child does it too: no torch here.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from archsearch.errors import ParityError, RunError

Logits: TypeAlias = npt.NDArray[np.float32]
LOAD_S, STEP_S = 600.0, 600.0
"""How long the child may take to load a model, and to answer; a large model on a slow disk needs minutes."""
CERTAIN = 1e9
"""Added to one token's logit when llama.cpp chooses what comes next; it reports its own logits all the same."""


def require_llama() -> None:
    """
    Raises:
        RunError: gguf or xllamacpp is not installed.
    """
    from importlib.util import find_spec

    if missing := [name for name in ("gguf", "xllamacpp") if find_spec(name) is None]:
        raise RunError(
            f"a GGUF export is only handed out after llama.cpp itself has run it, and {' and '.join(missing)} "
            f'{"is" if len(missing) == 1 else "are"} not installed; install with: pip install "archsearch[gguf]"'
        )


class LlamaDecoder:
    """An exported file in llama.cpp; a context manager, for it holds a process.

    What it reports are log-probabilities: logits up to a constant for each position.
    """

    def __init__(self, path: Path, vocab_size: int, plain: int) -> None:
        """
        Args:
            plain: id of a token that is text by itself; llama.cpp reports nothing where it chose half a character.
        """
        self.path, self.vocab_size, self.plain = path, vocab_size, plain
        self._ids: list[int] = []
        self._process: Any = None
        self._pipe: Any = None
        self._log = tempfile.NamedTemporaryFile(suffix=".log")  # noqa: SIM115 - as long as this object

    def __enter__(self) -> LlamaDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._log.close()

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._pipe.close()  # the child ends when its pipe does
            self._process.join(timeout=10)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            self._process = None

    def start(self, positions: int, *, evict: bool = False) -> None:
        """Load the model with room for `positions`.

        Args:
            evict: let sliding windows forget, as they do by default. xllamacpp then reads everything anew for each request, so
                `step` needs caches that keep all positions (the windows still hide them); `generate` does not.

        Raises:
            ParityError: llama.cpp refuses the file.
        """
        self.close()
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, str(self.path), positions, evict, self._log.name), daemon=True)
        self._process.start()
        other.close()
        self._receive(LOAD_S)
        self._ids = []

    def step(self, ids: Sequence[int]) -> Logits:
        """Log-probabilities [V] after these further tokens.

        Raises:
            ParityError: llama.cpp fails, or read the tokens before these once more, so that its caches were not tried.
        """
        seen, self._ids = len(self._ids), [*self._ids, *map(int, ids)]
        request = {
            "prompt": self._ids,
            "n_predict": 1,
            "temperature": 0,
            "n_probs": self.vocab_size,
            "logit_bias": [[self.plain, CERTAIN]],
            "cache_prompt": True,
        }
        answer = self._ask("complete", request)
        reused = answer["timings"]["cache_n"]
        if reused != seen:
            raise ParityError(f"{self.path.name}: llama.cpp kept {reused} of {seen} positions, so its caches could not be checked")
        logits_V = np.full(self.vocab_size, np.nan, np.float32)
        for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            logits_V[entry["id"]] = entry["logprob"]
        return logits_V

    def generate(self, ids: Sequence[int], count: int) -> list[int]:
        """What llama.cpp continues a prompt with, greedily, on its own."""
        request = {"prompt": list(map(int, ids)), "n_predict": count, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        return [int(token) for token in self._ask("generate", request)["tokens"]]

    def tokenize(self, text: str) -> list[int]:
        """`text` in tokens, special tokens read as text."""
        tokens = self._ask("tokenize", {"content": text, "add_special": False, "parse_special": False})["tokens"]
        return [int(token) for token in tokens]

    def _ask(self, what: str, request: dict[str, Any]) -> Any:
        try:
            self._pipe.send((what, request))
        except OSError as error:
            raise self._stopped() from error
        return self._receive(STEP_S)

    def _receive(self, patience: float) -> Any:
        try:
            if not self._pipe.poll(patience):
                self.close()
                raise ParityError(f"{self.path.name}: llama.cpp gave no answer in {patience:.0f} s, so nothing was written")
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._stopped() from error
        if isinstance(answer, Exception):
            raise ParityError(f"{self.path.name}: llama.cpp cannot run it, so nothing was written: {self._reason() or answer}")
        return answer

    def _stopped(self) -> ParityError:
        self._process.join(timeout=10)
        code = self._process.exitcode
        return ParityError(f"{self.path.name}: llama.cpp ended ({code}), so nothing was written: {self._reason() or 'it gave no reason'}")

    def _reason(self) -> str:
        """The most telling of llama.cpp's last lines."""
        lines = Path(self._log.name).read_text(encoding="utf-8", errors="replace").splitlines()
        telling = [line for line in lines if "error" in line.lower() or "assert" in line.lower()]
        return " ".join((telling or lines or [""])[-1].split())[:300]


def _serve(pipe: Connection, path: str, positions: int, evict: bool, log: str) -> None:
    """The child: loads the model, says so, and answers until its pipe ends."""
    handle = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    try:
        server = _load(path, positions, evict)
    except Exception as error:  # whatever it is, the parent tells the user
        pipe.send(RuntimeError(str(error)))
        return
    pipe.send("ready")
    while True:
        try:
            what, request = pipe.recv()
        except EOFError:
            return
        try:
            match what:
                case "complete":
                    pipe.send(_parsed(server.handle_completions(request)))
                case "generate":
                    pipe.send(_post(server, "/completion", request | {"return_tokens": True}))
                case _:
                    pipe.send(_post(server, f"/{what}", request))
        except Exception as error:
            pipe.send(RuntimeError(str(error)))


def _load(path: str, positions: int, evict: bool) -> Any:
    """One sequence, caches in fp32 and no fused attention: what differs from torch is then the file's doing."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.n_ctx = positions + 1
    parameters.n_parallel = 1
    parameters.swa_full = not evict
    parameters.n_gpu_layers = 0
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.fit_params = parameters.warmup = parameters.ui = False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = os.cpu_count() or 1
    return xllamacpp.Server(parameters)


def _parsed(answer: Any) -> Any:
    return json.loads(answer) if isinstance(answer, str | bytes) else answer


def _post(server: Any, path: str, request: dict[str, Any]) -> Any:
    """What xllamacpp has no method for goes through the server that it runs on a local port."""
    from urllib.request import Request, urlopen

    body = json.dumps(request).encode()
    with urlopen(Request(server.listening_address + path, body, {"Content-Type": "application/json"}), timeout=STEP_S) as answer:
        return json.loads(answer.read())
