"""A byte-level BPE tokenizer as GGUF stores it. llama.cpp has the ways to split text built in and knows them by name."""

from __future__ import annotations

import json
from typing import Any

from archsearch.data.tokenizer import SPLIT, Tokenizer

QWEN2_SPLIT = SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
PRE_TOKENIZERS: dict[tuple[str, bool], str] = {
    (SPLIT, True): "lfm2",
    (SPLIT, False): "dbrx",
    (QWEN2_SPLIT, False): "qwen2",
    ("ByteLevel", False): "gpt-2",
}
"""llama.cpp's name for (regular expression, whether a word that is a token as a whole skips the merges)."""


def tokenizer_reasons(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """What of a tokenizer llama.cpp cannot be told, as (field of tokenizer.json, why)."""
    data = json.loads(tokenizer.to_json())
    reasons = []
    if data["model"].get("type") != "BPE":
        reasons.append(("tokenizer.model.type", f"{data['model'].get('type')!r}; only BPE is written"))
    if data["model"].get("byte_fallback"):
        reasons.append(("tokenizer.model.byte_fallback", "bytes as tokens of their own are SentencePiece's way, not written"))
    if data.get("normalizer") is not None:
        reasons.append(("tokenizer.normalizer", "llama.cpp does not change text before it splits it"))
    if not reasons and _pre_tokenizer(data) is None:
        reasons.append(("tokenizer.pre_tokenizer", "llama.cpp's name for this way to split text is not known here"))
    return reasons


def write_tokenizer(writer: Any, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Tokens, their kinds, merges and the name of the pre-tokenizer; ids beyond the tokenizer's become unused tokens.

    Args:
        writer: a `gguf.GGUFWriter`.
    """
    from gguf import TokenType

    data = json.loads(tokenizer.to_json())
    texts: dict[int, str] = {id: text for text, id in data["model"]["vocab"].items()}
    kinds = dict.fromkeys(texts, TokenType.NORMAL)
    for added in data.get("added_tokens", ()):
        texts[added["id"]] = added["content"]
        kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(data))
    writer.add_token_list([texts.get(id, f"[unused{id}]") for id in range(vocab_size)])
    writer.add_token_types([kinds.get(id, TokenType.UNUSED) for id in range(vocab_size)])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in data["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.end_of_document)
    writer.add_eos_token_id(tokenizer.end_of_document)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)


def plain_token(tokenizer: Tokenizer) -> int:
    """The id of a token that is whole characters by itself."""
    vocab: dict[str, int] = json.loads(tokenizer.to_json())["model"]["vocab"]
    return next((id for text, id in vocab.items() if text.isascii() and text.isalpha()), 0)


def _pre_tokenizer(data: dict[str, Any]) -> str | None:
    """llama.cpp's name for how a tokenizer.json splits text."""
    steps = data.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    split = [step["pattern"].get("Regex") for step in steps if step.get("type") == "Split" and step.get("behavior") == "Isolated"]
    last = steps[-1] if steps else {}
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space") or len(split) != len(steps) - 1:
        return None
    match split:
        case [pattern] if not last.get("use_regex"):
            how = pattern
        case [] if last.get("use_regex", True):
            how = "ByteLevel"
        case _:
            return None
    return PRE_TOKENIZERS.get((how, bool(data["model"].get("ignore_merges"))))
