"""The files that let onnxruntime-genai run an ONNX export: its config, and the tokenizer as transformers has it.

onnxruntime-genai knows LFM2: convolution and key/value caches under the names that our graphs give them, of shapes that it reads
from the graph. It takes the first convolution's shape for all of them, and has one number of key/value heads and one head size; it
has no windows beside convolutions and no GLA.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from archsearch.data.tokenizer import END_OF_DOCUMENT, Tokenizer
from archsearch.errors import ParityError
from archsearch.export.hf_tokenizer import write_hf_tokenizer
from archsearch.files import write_atomic
from archsearch.hf import different_values
from archsearch.parity import FP32_TOLERANCE, SAMPLE, Decoder, Logits, decode_logits, relative_error
from archsearch.spec import ArchSpec
from operators.specs import GqaSpec, ShortConvSpec

CONFIG = "genai_config.json"
PLAIN_SAMPLE = SAMPLE.replace(END_OF_DOCUMENT, "")
"""Its tokenizer has no way to read a special token that is written out in a text as text."""


def genai_reasons(spec: ArchSpec) -> list[tuple[str, str]]:
    """Why onnxruntime-genai cannot run a spec, as (field, why); empty where it can."""
    reasons = [
        (f"layers.{i}.operator.kind", f"onnxruntime-genai's lfm2 has no {block.operator.kind}")
        for i, block in enumerate(spec.layers)
        if not isinstance(block.operator, GqaSpec | ShortConvSpec)
    ]
    for field in ("kernel_size", "kv_heads", "head_dim"):
        reasons += different_values(spec, field, "operator", "onnxruntime-genai has one for all layers")
    return reasons


def write_genai(folder: Path, spec: ArchSpec, tokenizer: Tokenizer, model: str, max_context: int) -> None:
    """genai_config.json, tokenizer.json and tokenizer_config.json beside the model."""
    attention = [block.operator for block in spec.layers if isinstance(block.operator, GqaSpec)]
    kernels = [block.operator.kernel_size for block in spec.layers if isinstance(block.operator, ShortConvSpec)]
    end = tokenizer.end_of_document
    decoder: dict[str, Any] = {
        "session_options": {"provider_options": []},
        "filename": model,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": attention[0].heads if attention else 1,
        "num_key_value_heads": attention[0].kv_heads if attention else 1,
        "head_size": attention[0].head_dim if attention else spec.hidden_size,
        "layer_types": ["full_attention" if isinstance(block.operator, GqaSpec) else "conv" for block in spec.layers],
        "conv_cache_size": max(kernels, default=0),
        "inputs": {"past_conv_names": "past_conv.%d"},
        "outputs": {"present_conv_names": "present_conv.%d"},
    }
    config = {
        "model": {
            "type": "lfm2",
            "bos_token_id": end,
            "eos_token_id": end,
            "pad_token_id": end,
            "vocab_size": spec.vocab_size,
            "context_length": max_context,
            "decoder": decoder,
        },
        "search": {"max_length": max_context, "do_sample": False, "past_present_share_buffer": True},
    }
    write_atomic(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    write_hf_tokenizer(folder, tokenizer)


def genai_is_installed() -> bool:
    return find_spec("onnxruntime_genai") is not None


class GenaiDecoder(Decoder):
    """An exported folder in onnxruntime-genai."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime_genai

        self._library = onnxruntime_genai
        self.model = onnxruntime_genai.Model(str(folder))
        self._generator: Any = None

    def start(self, positions: int) -> None:
        parameters = self._library.GeneratorParams(self.model)
        parameters.set_search_options(max_length=positions, do_sample=False)
        self._generator = self._library.Generator(self.model, parameters)

    def step(self, ids: Sequence[int]) -> Logits:
        self._generator.append_tokens(np.array([list(ids)], np.int32))
        logits: Logits = np.array(self._generator.get_logits(), np.float32)[0, -1]
        return logits

    def tokenize(self, text: str) -> list[int]:
        return [int(token) for token in self._library.Tokenizer(self.model).encode(text)]


def check_genai(folder: Path, plain: Decoder, spec: ArchSpec, tokenizer: Tokenizer, prompt: int, decode: int) -> None:
    """onnxruntime-genai must give the logits that ONNX Runtime gives by itself, over a prompt and one step after the other, and
    split text as the tokenizer does.

    Args:
        plain: the same file in ONNX Runtime, which parity was checked of.

    Raises:
        ParityError: it does not, or does not load the folder.
    """
    ids = np.random.default_rng(1).integers(0, spec.vocab_size, prompt + decode).tolist()
    expected_NV = decode_logits(plain, ids, prompt)
    try:
        decoder = GenaiDecoder(folder)
        found_NV = decode_logits(decoder, ids, prompt)
        tokens = decoder.tokenize(PLAIN_SAMPLE)
    except Exception as error:  # its errors have no base of their own
        reason = " ".join(str(error).split())[:300]
        raise ParityError(f"{CONFIG}: onnxruntime-genai cannot run it, so nothing was written: {reason}") from error
    if not relative_error(found_NV, expected_NV) <= FP32_TOLERANCE:
        raise ParityError("onnxruntime-genai computes something else than ONNX Runtime does, so nothing was written")
    if tokens != tokenizer.encode(PLAIN_SAMPLE):
        raise ParityError("onnxruntime-genai's tokenizer gives other tokens than the trained one, so nothing was written")
