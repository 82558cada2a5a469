"""Where the parameters of a model go: embedding, head, each kind of operator, FFNs, norms.

The same arithmetic for any spec, and for well-known small models from the fields of their published config.json
(`known_models/*.json`). Nothing is typed in but those fields. `python -m archsearch.budget [SPEC]...` prints the table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from archsearch.errors import ArchsearchError, FileFormatError
from archsearch.hf import from_hf_config
from archsearch.spec import ArchSpec
from operators.costs import block_costs, head_weights

Parts = dict[str, int]
ORDER = ("embedding", "head", "short_conv", "gqa", "swa", "gla", "gated_deltanet")
"""Parts that come first, in this order; then operators of other packages, and at the end `LAST`."""
LAST = ("ffn", "norms", "vision")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterBudget:
    """A model's parameters by part. A tied embedding counts once; an untied head is a part of its own.

    Attributes:
        parts: parameters by part: "embedding", "head", the kinds of operators with their inner norms and biases, "ffn",
            "norms" (those of the residual stream), "vision".
        source: where the dimensions come from.
    """

    name: str
    parts: Mapping[str, int]
    source: str

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def shares(self) -> dict[str, float]:
        """Every part's share of the total, in [0, 1]."""
        return {part: count / self.total for part, count in self.parts.items()}

    @property
    def embedding_share(self) -> float:
        """What the vocabulary takes: the embedding, and the head where it is not tied."""
        return sum(self.parts.get(part, 0) for part in ("embedding", "head")) / self.total

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "source": self.source,
            "total": self.total,
            "embedding_share": self.embedding_share,
            "parts": dict(self.parts),
            "shares": self.shares,
        }


def parameter_budget(spec: ArchSpec, *, source: str = "") -> ParameterBudget:
    """The budget of a spec, from the weights that its operators declare."""
    parts: Parts = {}
    for weight in head_weights(spec.dims, spec.vocab_size, spec.tie_embeddings):
        part = {"embed_tokens.weight": "embedding", "lm_head.weight": "head"}.get(weight.name, "norms")
        parts[part] = parts.get(part, 0) + weight.size
    for block in spec.layers:
        costs = block_costs(block, spec.dims)
        kind = block.operator.kind
        parts[kind] = parts.get(kind, 0) + costs.operator_parameters
        parts["ffn"] = parts.get("ffn", 0) + costs.ffn_parameters
        parts["norms"] += costs.parameters - costs.operator_parameters - costs.ffn_parameters
    return ParameterBudget(name=spec.name, parts=_ordered(parts), source=source or f"spec {spec.spec_id}")


@cache
def known_models() -> tuple[ParameterBudget, ...]:
    """Well-known small models, smallest first, computed from their published configs."""
    budgets: list[ParameterBudget] = []
    for name, source, config in known_configs():
        if config["model_type"] == "qwen3_5":
            text = _qwen3_5(config["text_config"])
            budgets.append(ParameterBudget(name=f"{name} (text)", parts=_ordered(text), source=source))
            whole = text | {"vision": _qwen3_5_vision(config["vision_config"])}
            budgets.append(ParameterBudget(name=f"{name} (with vision)", parts=_ordered(whole), source=source))
        elif config["model_type"] == "lfm2":
            budgets.append(parameter_budget(from_hf_config(config, name=name), source=source))
        else:
            budgets.append(ParameterBudget(name=name, parts=_ordered(_FAMILIES[config["model_type"]](config)), source=source))
    return tuple(sorted(budgets, key=lambda budget: budget.total))


def known_configs() -> list[tuple[str, str, dict[str, Any]]]:
    """(name, source, config) of every model in `known_models/`; of the config only the fields that decide the parameters.

    Raises:
        FileFormatError: a file of the package is damaged.
    """
    configs = []
    for path in sorted((files("archsearch") / "known_models").iterdir(), key=lambda path: path.name):
        if path.name.endswith(".json"):
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
                configs.append((data["name"], data["source"], data["config"]))
            except (ValueError, KeyError) as error:
                raise FileFormatError(path.name, None, f"package data is damaged ({error!r}); install archsearch again") from error
    return configs


def format_table(budgets: Iterable[ParameterBudget]) -> str:
    """A Markdown table: parameters in millions, and every part's share in per cent."""
    budgets = list(budgets)
    columns = list(_ordered({part: 0 for budget in budgets for part in budget.parts}))
    rows = [["model", "parameters", *columns]]
    for budget in budgets:
        shares = budget.shares
        cells = [_percent(shares[part]) if part in shares else "-" for part in columns]
        rows.append([budget.name, f"{budget.total / 1e6:.2f} M", *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]) + " |"
        for row in rows
    ]
    rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:]), ""])
    return "\n".join([lines[0], rule, *lines[1:]])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "<0.1 %"


def _ordered(parts: Parts) -> Parts:
    names = [*(p for p in ORDER if p in parts), *(p for p in parts if p not in ORDER + LAST), *(p for p in LAST if p in parts)]
    return {name: parts[name] for name in names}


def _lfm3(config: Mapping[str, Any]) -> Parts:
    """transformers' Lfm3ForCausalLM: LFM2 with a gate per head and sandwich norms."""
    D, layers = config["hidden_size"], config["layer_types"]
    gate = D * config["num_attention_heads"] if config["use_attention_gate"] else 0
    conv = 4 * D * D + D * config["conv_L_cache"]
    return {
        "embedding": _vocabulary(config),
        "short_conv": layers.count("conv") * conv,
        "gqa": layers.count("full_attention") * (_attention(config) + gate),
        "swa": layers.count("sliding_attention") * (_attention(config) + gate),
        "ffn": len(layers) * 3 * D * config["intermediate_size"],
        "norms": len(layers) * (4 if config["use_sandwich_norm"] else 2) * D + D,
    }


def _gemma3(config: Mapping[str, Any]) -> Parts:
    """transformers' Gemma3ForCausalLM: norms before and after both halves of a layer."""
    D, layers = config["hidden_size"], config["layer_types"]
    return {
        "embedding": _vocabulary(config),
        "gqa": layers.count("full_attention") * _attention(config),
        "swa": layers.count("sliding_attention") * _attention(config),
        "ffn": len(layers) * 3 * D * config["intermediate_size"],
        "norms": len(layers) * 4 * D + D,
    }


def _qwen3_5(config: Mapping[str, Any]) -> Parts:
    """transformers' Qwen3_5ForCausalLM: gated DeltaNet, and full attention whose queries bring a gate of their own size."""
    D, layers = config["hidden_size"], config["layer_types"]
    query = config["num_attention_heads"] * config["head_dim"]
    heads = config["linear_num_value_heads"]
    keys, values = config["linear_num_key_heads"] * config["linear_key_head_dim"], heads * config["linear_value_head_dim"]
    qkv = 2 * keys + values
    projections = D * (qkv + values + 2 * heads) + values * D
    deltanet = projections + qkv * config["linear_conv_kernel_dim"] + 2 * heads + config["linear_value_head_dim"]
    return {
        "embedding": _vocabulary(config),
        "gqa": layers.count("full_attention") * (_attention(config) + D * query),
        "gated_deltanet": layers.count("linear_attention") * deltanet,
        "ffn": len(layers) * 3 * D * config["intermediate_size"],
        "norms": len(layers) * 2 * D + D,
    }


def _qwen3_5_vision(config: Mapping[str, Any]) -> int:
    """Qwen3.5's vision encoder: patch and position embeddings, blocks with biases, the merger to the text model's width."""
    D, hidden, out = config["hidden_size"], config["intermediate_size"], config["out_hidden_size"]
    patch = config["in_channels"] * config["temporal_patch_size"] * config["patch_size"] ** 2
    block = 4 * D + (3 * D * D + 3 * D) + (D * D + D) + (D * hidden + hidden) + (hidden * D + D)
    merged = D * config["spatial_merge_size"] ** 2
    merger = 2 * D + (merged * merged + merged) + (merged * out + out)
    return int(patch * D + D + config["num_position_embeddings"] * D + config["depth"] * block + merger)


def _vocabulary(config: Mapping[str, Any]) -> int:
    return int(config["vocab_size"] * config["hidden_size"])  # all of these models tie their head


def _attention(config: Mapping[str, Any]) -> int:
    """Projections without biases, and an RMSNorm of a head's size on queries and on keys."""
    q, kv = config["num_attention_heads"] * config["head_dim"], config["num_key_value_heads"] * config["head_dim"]
    return int(config["hidden_size"] * (2 * q + 2 * kv) + 2 * config["head_dim"])


_FAMILIES: dict[str, Callable[[Mapping[str, Any]], Parts]] = {"lfm3": _lfm3, "gemma3_text": _gemma3}


def main(paths: list[str]) -> int:
    """Print the table of the specs at `paths` and of the known models."""
    try:
        budgets = [parameter_budget(ArchSpec.read(path)) for path in paths]
    except ArchsearchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(format_table([*budgets, *known_models()]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
