"""Between `ArchSpec` and Hugging Face's LFM2 and LFM3 configs: what can be said in both, and why not where it cannot.

An LFM2 layer is ours to the letter. transformers holds one value for the whole model where a spec has one for each layer
(kernel size, heads, FFN width, window), so a spec that varies them has no counterpart. `Lfm3ForCausalLM` with
`use_sandwich_norm=False, use_attention_gate=False` and one RoPE base is LFM2 with sliding windows and a free head size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from archsearch.errors import NoCounterpartError
from archsearch.spec import ArchSpec
from operators.specs import BlockSpec, FfnSpec, GqaSpec, OperatorSpec, ShortConvSpec, SwaSpec

HfModelType = Literal["lfm2", "lfm3"]
Part = Literal["operator", "ffn"]
ARCHITECTURES: dict[HfModelType, str] = {"lfm2": "Lfm2ForCausalLM", "lfm3": "Lfm3ForCausalLM"}
LAYER_TYPES = {ShortConvSpec: "conv", GqaSpec: "full_attention", SwaSpec: "sliding_attention"}
MAX_POSITIONS = 128_000
"""`max_position_embeddings` where nobody says otherwise: LFM2's. transformers computes RoPE as it goes and does not enforce it."""


class HfConfigError(NoCounterpartError):
    """A spec or a config that has no counterpart in Hugging Face's LFM2 and LFM3."""


def to_hf_config(
    spec: ArchSpec,
    *,
    max_position_embeddings: int = MAX_POSITIONS,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
) -> dict[str, Any]:
    """The config.json of a spec: LFM2 where its attention is full and fills the hidden size, else LFM3.

    Raises:
        HfConfigError: the spec has no counterpart; names every field that stands in the way.
    """
    reasons: list[tuple[str, str]] = []
    for i, block in enumerate(spec.layers):
        if type(block.operator) not in LAYER_TYPES:
            reasons.append((f"layers.{i}.operator.kind", f"{block.operator.kind} has no layer type in transformers' LFM2 and LFM3"))
    if not reasons and all(isinstance(block.operator, ShortConvSpec) for block in spec.layers):
        reasons.append(("layers", "no attention layer; transformers' generate() needs one to keep its position"))
    shared = {
        "kernel_size": _shared(spec, "kernel_size", "operator", reasons),
        "heads": _shared(spec, "heads", "operator", reasons),
        "kv_heads": _shared(spec, "kv_heads", "operator", reasons),
        "head_dim": _shared(spec, "head_dim", "operator", reasons),
        "window": _shared(spec, "window", "operator", reasons),
        "intermediate_size": _shared(spec, "intermediate_size", "ffn", reasons),
    }
    if reasons:
        raise HfConfigError(f"{spec.name} has no Hugging Face counterpart", reasons, "`archsearch export --to onnx` takes any spec")
    model_type = hf_model_type(spec)
    layer_types = [LAYER_TYPES[type(block.operator)] for block in spec.layers]
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[model_type]],
        "model_type": model_type,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": shared["intermediate_size"],
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": shared["heads"],
        "num_key_value_heads": shared["kv_heads"],
        "layer_types": layer_types,
        "conv_L_cache": shared["kernel_size"] or 3,  # without a convolution the value is unused, but transformers wants one
        "conv_bias": False,
        "norm_eps": spec.norm_eps,
        "tie_word_embeddings": spec.tie_embeddings,
        "max_position_embeddings": max_position_embeddings,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "dtype": "float32",
    }
    rope = {"rope_type": "default", "rope_theta": spec.rope_theta}
    if model_type == "lfm2":
        # Other readers of LFM2 configs know rope_theta and block_ff_dim, transformers the newer names.
        return config | {
            "block_auto_adjust_ff_dim": False,
            "block_ff_dim": shared["intermediate_size"],
            "rope_theta": spec.rope_theta,
            "rope_parameters": rope,
        }
    return config | {
        "head_dim": shared["head_dim"],
        "sliding_window": shared["window"],
        "use_sandwich_norm": False,
        "use_attention_gate": False,
        "attention_bias": False,
        "rope_parameters": {name: dict(rope) for name in ("full_attention", "sliding_attention")},
    }


def from_hf_config(config: Mapping[str, Any], *, name: str | None = None) -> ArchSpec:
    """The spec of a published LFM2 config, or of an LFM3 one that is plain LFM2 with windows.

    Raises:
        HfConfigError: another model type, a field missing, or something that a spec cannot say.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise HfConfigError("config", [("model_type", f"{kind!r} is not {' or '.join(ARCHITECTURES)}")])
    title = name or str(config.get("_name_or_path") or kind)
    required = ("hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    reasons = [(field, "missing or not a whole number") for field in required if type(config.get(field)) is not int]
    optional = ("block_ff_dim", "intermediate_size", "block_multiple_of", "conv_L_cache", "head_dim", "sliding_window")
    reasons += [(field, "not a whole number") for field in optional if type(config.get(field)) not in (int, type(None))]
    if kind == "lfm3":
        reasons += _lfm3_extras(config)
    if config.get("conv_bias"):
        reasons.append(("conv_bias", "a spec has no biases"))
    if reasons:
        raise HfConfigError(f"config of {title}", reasons)
    theta, rope_reasons = _rope_theta(config)
    layer_types, layer_reasons = _layer_types(config)
    width = _ffn_width(config)
    if width is None:
        layer_reasons.append(("intermediate_size", "missing, and block_ff_dim too"))
    if rope_reasons or layer_reasons or width is None:
        raise HfConfigError(f"config of {title}", [*rope_reasons, *layer_reasons])
    attention = {
        "heads": config["num_attention_heads"],
        "kv_heads": config["num_key_value_heads"],
        "head_dim": config.get("head_dim") or (128 if kind == "lfm3" else config["hidden_size"] // config["num_attention_heads"]),
    }
    operators: dict[str, OperatorSpec] = {
        "conv": ShortConvSpec(kernel_size=config.get("conv_L_cache", 7 if kind == "lfm3" else 3)),
        "full_attention": GqaSpec(**attention),
        "sliding_attention": SwaSpec(**attention, window=config.get("sliding_window") or 256),
    }
    ffn = FfnSpec(intermediate_size=width)
    spec = ArchSpec(
        name=title,
        hidden_size=config["hidden_size"],
        vocab_size=config["vocab_size"],
        layers=tuple(BlockSpec(operator=operators[layer_type], ffn=ffn) for layer_type in layer_types),
        tie_embeddings=bool(config.get("tie_embedding", config.get("tie_word_embeddings", True))),
        norm_eps=float(config.get("norm_eps", 1e-5)),
        rope_theta=theta,
    )
    return ArchSpec.from_dict(spec.to_dict(), path=f"config of {title}")  # checks what the dimensions must satisfy


def hf_model_type(spec: ArchSpec) -> HfModelType:
    """"lfm2" where every attention layer sees everything and its heads fill the hidden size, else "lfm3"."""
    attention = [block.operator for block in spec.layers if isinstance(block.operator, GqaSpec | SwaSpec)]
    plain = all(isinstance(op, GqaSpec) and op.heads * op.head_dim == spec.hidden_size for op in attention)
    return "lfm2" if plain else "lfm3"


def to_hf_name(name: str, spec: ArchSpec, model_type: HfModelType | None = None) -> str:
    """A weight's name in transformers' checkpoint, from its name in ours; `model_type` None for the one that the spec has."""
    if not (match := re.fullmatch(r"layers\.(\d+)\.(operator|ffn)\.(.+)", name)):
        return name if name.startswith("lm_head.") else f"model.{name}"
    layer, part, rest = int(match[1]), match[2], match[3]
    prefix = f"model.layers.{layer}"
    if part == "ffn":
        return f"{prefix}.feed_forward.{rest}"
    if isinstance(spec.layers[layer].operator, ShortConvSpec):
        return f"{prefix}.conv.{rest}"
    if (model_type or hf_model_type(spec)) == "lfm3":
        for ours, theirs in LFM3_RENAMES.items():
            rest = rest.replace(ours, theirs)
    return f"{prefix}.self_attn.{rest}"


LFM3_RENAMES = {"out_proj.": "o_proj.", "q_layernorm.": "q_norm.", "k_layernorm.": "k_norm."}
"""Names of attention weights in LFM2 checkpoints (and here), and in LFM3 ones."""


def from_hf_name(name: str) -> str:
    """A weight's name in ours, from its name in a transformers LFM2 or LFM3 checkpoint."""
    name = name.removeprefix("model.")
    if not (match := re.fullmatch(r"(layers\.\d+)\.(feed_forward|conv|self_attn)\.(.+)", name)):
        return name
    prefix, part, rest = match[1], match[2], match[3]
    if part == "feed_forward":
        return f"{prefix}.ffn.{rest}"
    if part == "self_attn":
        for ours, theirs in LFM3_RENAMES.items():
            rest = re.sub(f"^{re.escape(theirs)}", ours, rest)
    return f"{prefix}.operator.{rest}"


def different_values(spec: ArchSpec, field: str, part: Part, why: str) -> list[tuple[str, str]]:
    """A (field, reason) pair for each layer whose `field` is not that of the first layer that has one."""
    found = _values(spec, field, part)
    if not found:
        return []
    first, value = found[0]
    others = [(i, other) for i, other in found if other != value]
    return [(f"layers.{i}.{part}.{field}", f"{other} differs from layer {first}'s {value}, and {why}") for i, other in others]


def _shared(spec: ArchSpec, field: str, part: Part, reasons: list[tuple[str, str]]) -> int | None:
    """The value that all layers with `field` have; where they differ, each one that is not as the first is a reason."""
    reasons += different_values(spec, field, part, "transformers has one for all layers")
    found = _values(spec, field, part)
    return int(found[0][1]) if found else None


def _values(spec: ArchSpec, field: str, part: Part) -> list[tuple[int, Any]]:
    """(layer, value) of the layers that have the field; of operators only the kinds that transformers has."""
    found = [(i, getattr(getattr(block, part), field)) for i, block in enumerate(spec.layers) if hasattr(getattr(block, part), field)]
    return [(i, value) for i, value in found if part == "ffn" or type(spec.layers[i].operator) in LAYER_TYPES]


def _lfm3_extras(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What LFM3 has beyond LFM2; on by default in transformers, so an absent field counts as on."""
    reasons = []
    if config.get("use_sandwich_norm", True):
        reasons.append(("use_sandwich_norm", "a spec has no norms behind its operators"))
    if config.get("use_attention_gate", True):
        reasons.append(("use_attention_gate", "a spec's attention has no output gate"))
    if config.get("attention_bias", False):
        reasons.append(("attention_bias", "a spec has no biases"))
    return reasons


def _rope_theta(config: Mapping[str, Any]) -> tuple[float, list[tuple[str, str]]]:
    """The one RoPE base of a config: `rope_parameters` (newer, one or one a layer type) or `rope_theta`."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    entries = {f"rope_parameters.{key}": value for key, value in rope.items() if isinstance(value, Mapping)} or {"rope_parameters": rope}
    if config["model_type"] == "lfm3" and not rope:
        return 0.0, [("rope_parameters", "missing; LFM3's default has two RoPE bases, a spec has one")]
    reasons = [
        (f"{field}.rope_type", f"{entry['rope_type']!r}; a spec has plain RoPE over the whole head")
        for field, entry in entries.items()
        if entry.get("rope_type", "default") != "default"
    ]
    thetas = {float(entry.get("rope_theta") or config.get("rope_theta") or 1e6) for entry in entries.values()}
    if len(thetas) > 1:
        reasons.append(("rope_parameters", f"RoPE bases {', '.join(f'{theta:g}' for theta in sorted(thetas))}; a spec has one"))
    return min(thetas), reasons


def _layer_types(config: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, str]]]:
    count = config["num_hidden_layers"]
    layer_types = config.get("layer_types")
    if layer_types is None and config["model_type"] == "lfm3":
        return [], [("layer_types", "missing")]
    if layer_types is None:
        attention = config.get("full_attn_idxs")
        attention = range(count) if attention is None else attention
        layer_types = ["full_attention" if i in attention else "conv" for i in range(count)]
    known = {"conv", "full_attention"} | ({"sliding_attention"} if config["model_type"] == "lfm3" else set())
    unknown = [(i, layer_type) for i, layer_type in enumerate(layer_types) if layer_type not in known]
    reasons = [(f"layer_types.{i}", f"{layer_type!r} is not one of {', '.join(sorted(known))}") for i, layer_type in unknown]
    if len(layer_types) != count:
        reasons.append(("layer_types", f"{len(layer_types)} entries for {count} layers"))
    return list(layer_types), reasons


def _ffn_width(config: Mapping[str, Any]) -> int | None:
    """The width that is built, as transformers' Lfm2MLP computes it; published LFM2 configs name 3/2 of it."""
    width = config.get("block_ff_dim") or config.get("intermediate_size")
    if type(width) is not int:
        return None
    if config["model_type"] == "lfm3" or not config.get("block_auto_adjust_ff_dim", True):
        return width
    width = int(2 * width / 3)
    multiple = config.get("block_multiple_of") or 256
    return int(multiple * -(-int(float(config.get("block_ffn_dim_multiplier", 1.0)) * width) // multiple))
