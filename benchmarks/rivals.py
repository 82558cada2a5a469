"""What `whole_model.py` compares with: each runtime's file of the same random weights, and one fresh process that times it.

Run as a program it is that process, for the runtimes that are Python libraries: `python rivals.py NAME FOLDER THREADS WORKLOAD...` prints
one JSON object, workload to tokens a second.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from archsearch.spec import ArchSpec
from devices.health import fastest_cores
from devices.local import KEEPING, QUIET

DECODE_STEPS = 32
"""Tokens that a sample of decoding generates, in every rival that is not too slow."""
SLOW_S = 10.0
"""A first prefill that takes longer is the sample, not repeated after a warm-up; decoding that takes longer ends before all its steps."""
Samples = dict[str, list[float]]
"""Tokens a second by workload, "prefill@512" or "decode@1024"."""


@dataclass(frozen=True, kw_only=True)
class Rival:
    """`prepare` writes the model into a folder and gives its path; `measure` times it once in a fresh process."""

    name: str
    missing: Callable[[Path | None], str | None]
    """Why it cannot be run and what to do; None where it can."""
    prepare: Callable[[ArchSpec, Path, int], Path]
    measure: Callable[[Path, int, Sequence[str], Path | None], Samples]


def tokens_of(workload: str) -> tuple[str, int]:
    """
    Raises:
        ValueError: no workload.
    """
    phase, _, tokens = workload.partition("@")
    if phase not in ("prefill", "decode") or not tokens.isdigit() or (phase == "prefill" and tokens == "0"):
        raise ValueError(f"{workload!r} is no workload; one is written prefill@512 or decode@1024")
    return phase, int(tokens)


def random_model(spec: ArchSpec) -> Any:
    """The weights that `archsearch.cases.write_subject` draws for the spec."""
    from operators.costs import model_weights
    from operators.graph import random_weights

    specs = model_weights(spec.layers, spec.dims, vocab_size=spec.vocab_size, tie_embeddings=spec.tie_embeddings)
    return random_weights(specs, 0)


def run(command: Sequence[str], threads: int) -> str:
    """stdout of a process on the cores, and with the allocator's huge pages, that our agent is given.

    Raises:
        RuntimeError: it failed; carries the last lines it wrote.
    """
    cores = fastest_cores(threads)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"GLIBC_TUNABLES": KEEPING} | QUIET | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
        preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed ({done.returncode}): {' / '.join(done.stderr.strip().splitlines()[-3:])}")
    return done.stdout


# -- llama.cpp -------------------------------------------------------------------------------------------------------------------


def write_llama(spec: ArchSpec, folder: Path, _cache: int) -> Path:
    """Every linear weight, the embedding too, in Q4_0, as our int4 has it; no vocabulary."""
    from archsearch.export.to_gguf import write_gguf

    path = folder / f"{spec.name}-q4_0.gguf"
    if not path.exists():
        part = path.with_suffix(".part")
        write_gguf(part, spec, random_model(spec), "q4_0", None, 128_000)
        part.rename(path)
    return path


def llama_missing(binary: Path | None) -> str | None:
    if binary is None or not binary.is_file():
        return (
            "give --llama-bench PATH; to build it: pip download --no-deps --no-binary llama-cpp-python llama-cpp-python, unpack, then "
            "cmake -S vendor/llama.cpp -B build -DCMAKE_BUILD_TYPE=Release -DLLAMA_CURL=OFF && cmake --build build --target llama-bench"
        )
    return None if importlib.util.find_spec("gguf") else "its file is written by the gguf package: pip install gguf"


def llama_bench(model: Path, threads: int, workloads: Sequence[str], binary: Path | None) -> Samples:
    """Its own warm-up, then one sample of each; a sample of decoding goes from the context to 32 tokens further."""
    samples: Samples = {}
    parsed = [tokens_of(workload) for workload in workloads]
    prefill = [str(tokens) for phase, tokens in parsed if phase == "prefill"]
    decode = [str(tokens) for phase, tokens in parsed if phase == "decode"]
    common = [str(binary), "-m", str(model), "-t", str(threads), "-r", "1", "-o", "json"]
    if prefill:
        for row in json.loads(run([*common, "-p", ",".join(prefill), "-n", "0"], threads)):
            samples[f"prefill@{row['n_prompt']}"] = list(row["samples_ts"])
    if decode:
        for row in json.loads(run([*common, "-p", "0", "-n", str(DECODE_STEPS), "-d", ",".join(decode)], threads)):
            samples[f"decode@{row['n_depth']}"] = list(row["samples_ts"])
    return samples


# -- Python libraries ------------------------------------------------------------------------------------------------------------


def write_checkpoint(spec: ArchSpec, folder: Path, _cache: int = 0) -> Path:
    """Lfm2ForCausalLM in fp32, with a small tokenizer since readers of checkpoints want one."""
    from archsearch.data.tokenizer import train_tokenizer
    from archsearch.export.to_hf import write_folder
    from archsearch.parity import SAMPLE

    target = folder / f"{spec.name}-hf"
    if not (target / "tokenizer_config.json").exists():
        target.mkdir(parents=True, exist_ok=True)
        write_folder(target, spec, random_model(spec), train_tokenizer([SAMPLE], 300))
    return target


def write_genai(spec: ArchSpec, folder: Path, cache: int) -> Path:
    """What onnxruntime-genai's own builder makes of the checkpoint in int4: by its defaults blocks of 32, accuracy level 4."""
    target = folder / f"{spec.name}-genai"
    if not (target / "genai_config.json").exists():
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu"]
        builder += ["-i", str(write_checkpoint(spec, folder)), "-o", str(target), "-c", str(folder / "cache")]
        run(builder, os.cpu_count() or 1)
    return target


def python_missing(*modules: str) -> Callable[[Path | None], str | None]:
    def missing(_binary: Path | None) -> str | None:
        absent = [module for module in modules if importlib.util.find_spec(module) is None]
        return f"pip install {' '.join(module.replace('_', '-') for module in absent)}" if absent else None

    return missing


def in_python(name: str) -> Callable[[Path, int, Sequence[str], Path | None], Samples]:
    def measure(model: Path, threads: int, workloads: Sequence[str], _binary: Path | None) -> Samples:
        text = run([sys.executable, __file__, name, str(model), str(threads), *workloads], threads)
        found: Samples = json.loads(text.strip().splitlines()[-1])
        return found

    return measure


def rate(tokens: int, call: Callable[[], object]) -> list[float]:
    """Tokens a second of a call that was made once before; the first call's where that took long already."""
    for attempt in range(2):
        begun = time.perf_counter()
        call()
        spent = time.perf_counter() - begun
        if attempt or spent > SLOW_S:
            break
    return [tokens / spent]


def time_transformers(dtype: str, folder: Path, threads: int, workloads: Sequence[str]) -> Samples:
    """Its model and its cache, driven token by token. Contexts beyond a short prompt are random keys and values put into the cache."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    torch.set_num_threads(threads)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    config = model.config

    def ids(count: int) -> Any:
        return torch.randint(config.vocab_size, (1, count))

    def prefill(tokens: int) -> Any:
        cache = DynamicCache(config=config)
        model(ids(tokens), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    def context(tokens: int) -> Any:
        short = min(tokens, 16)
        cache = prefill(short) if short else DynamicCache(config=config)
        shape = (1, config.num_key_value_heads, tokens - short, config.hidden_size // config.num_attention_heads)
        for layer, kind in enumerate(config.layer_types):
            if kind == "full_attention" and tokens > short:
                cache.update(*(torch.randn(shape, dtype=getattr(torch, dtype)) for _ in range(2)), layer)
        return cache

    def decode(cache: Any) -> float:
        token, begun, done = ids(1), time.perf_counter(), 0
        while done < DECODE_STEPS and time.perf_counter() - begun < SLOW_S:
            output = model(token, past_key_values=cache, use_cache=True, logits_to_keep=1)
            token = output.logits[:, -1].argmax(-1, keepdim=True)
            done += 1
        return done / (time.perf_counter() - begun)

    samples: Samples = {}
    with torch.inference_mode():
        for workload in workloads:
            phase, tokens = tokens_of(workload)
            if phase == "prefill":
                samples[workload] = rate(tokens, lambda tokens=tokens: prefill(tokens))
            else:
                cache = context(tokens)
                model(ids(1), past_key_values=cache, use_cache=True, logits_to_keep=1)
                samples[workload] = [decode(cache)]
    return samples


def time_genai(folder: Path, threads: int, workloads: Sequence[str]) -> Samples:
    """Its generator: `append_tokens` runs the prompt; greedy steps after it, the choice of the token included."""
    import onnxruntime_genai as og

    settings = folder / "genai_config.json"
    data = json.loads(settings.read_text())
    data["model"]["decoder"]["session_options"] |= {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
    data["model"]["eos_token_id"] = []  # random weights may end a text at once
    settings.write_text(json.dumps(data, indent=2))
    model = og.Model(str(folder))
    rng, vocab = np.random.default_rng(0), data["model"]["vocab_size"]

    def generator(tokens: int) -> Any:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=tokens + DECODE_STEPS + 8, batch_size=1, do_sample=False)
        made = og.Generator(model, parameters)
        made.append_tokens(rng.integers(1, vocab, (1, tokens)).astype(np.int32))
        return made

    samples: Samples = {}
    for workload in workloads:
        phase, tokens = tokens_of(workload)
        if phase == "prefill":
            samples[workload] = rate(tokens, lambda tokens=tokens: generator(tokens))
        else:
            made = generator(max(1, tokens))
            for _ in range(3):
                made.generate_next_token()
            times = []
            for _ in range(DECODE_STEPS):
                begun = time.perf_counter()
                made.generate_next_token()
                times.append(time.perf_counter() - begun)
            samples[workload] = [DECODE_STEPS / sum(times)]
    return samples


def int8_limit(threads: int) -> float:
    """Operations a second of the runtime's own product of bytes, 1024 x 1024 by 1024 x 4096, in a fresh process.

    A product that rounds its inputs to int8 cannot be faster by the instructions that this processor has.
    """
    return float(run([sys.executable, __file__, "int8", "-", str(threads)], threads).strip().splitlines()[-1])


def time_int8(threads: int) -> float:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    M, K, N = 1024, 1024, 4096
    weights = np.random.default_rng(0).integers(-64, 64, (K, N)).astype(np.int8)
    x, y = (helper.make_tensor_value_info("x", TensorProto.UINT8, [M, K]), helper.make_tensor_value_info("y", TensorProto.INT32, [M, N]))
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "int8", [x], [y], [numpy_helper.from_array(weights, "w")])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = {"x": np.random.default_rng(1).integers(0, 255, (M, K)).astype(np.uint8)}
    times = []
    for _ in range(60):
        begun = time.perf_counter()
        session.run(None, values)
        times.append(time.perf_counter() - begun)
    return 2 * M * K * N / float(np.percentile(times, 25))


RIVALS = {
    rival.name: rival
    for rival in (
        Rival(name="llama.cpp Q4_0", missing=llama_missing, prepare=write_llama, measure=llama_bench),
        Rival(
            name="onnxruntime-genai int4",
            missing=python_missing("onnxruntime_genai", "onnx_ir", "transformers"),
            prepare=write_genai,
            measure=in_python("genai"),
        ),
        Rival(
            name="transformers fp32",
            missing=python_missing("transformers"),
            prepare=write_checkpoint,
            measure=in_python("float32"),
        ),
        Rival(
            name="transformers bf16",
            missing=python_missing("transformers"),
            prepare=write_checkpoint,
            measure=in_python("bfloat16"),
        ),
    )
}


def main() -> None:
    name, folder, threads, *workloads = sys.argv[1:]
    if name == "int8":
        print(time_int8(int(threads)))
        return
    if name == "genai":
        samples = time_genai(Path(folder), int(threads), workloads)
    else:
        samples = time_transformers(name, Path(folder), int(threads), workloads)
    print(json.dumps(samples))


if __name__ == "__main__":
    main()
