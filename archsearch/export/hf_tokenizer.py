"""A tokenizer as transformers, and what reads the same files, loads it."""

from __future__ import annotations

import json
from pathlib import Path

from archsearch.data.tokenizer import Tokenizer
from archsearch.files import write_atomic
from archsearch.hf import MAX_POSITIONS


def write_hf_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """tokenizer.json and tokenizer_config.json."""
    write_atomic(folder / "tokenizer.json", tokenizer.to_json())
    end_token = tokenizer.decode([tokenizer.end_of_document])
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end_token,
        "eos_token": end_token,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_POSITIONS,
    }
    write_atomic(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")
