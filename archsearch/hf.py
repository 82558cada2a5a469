"""Between `ArchSpec` and Hugging Face's configs: what can be said in both, and why not where it cannot.

An LFM2 layer is ours to the letter. transformers holds one value for the whole model where a spec has one for each layer
(kernel size, heads, FFN width, window). `Lfm3ForCausalLM` with `use_sandwich_norm=False, use_attention_gate=False` and one RoPE base
is LFM2 with sliding windows and a free head size. Any other layout of our operators goes into a class of our own, whose code
lies beside the weights (`export/modeling_archsearch.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from archsearch.errors import NoCounterpartError
from archsearch.spec import ArchSpec
from operators.specs import BlockSpec, FfnSpec, GlaSpec, GqaSpec, OperatorSpec, ShortConvSpec, SwaSpec

HfModelType = Literal["lfm2", "lfm3", "archsearch"]
Part = Literal["operator", "ffn"]
ARCHITECTURES: dict[HfModelType, str] = {
    "lfm2": "Lfm2ForCausalLM",
    "lfm3": "Lfm3ForCausalLM",
    "archsearch": "ArchsearchForCausalLM",
}
MODELING = "modeling_archsearch.py"
"""The file with our class, in an export."""
LAYER_TYPES = {ShortConvSpec: "conv", GqaSpec: "full_attention", SwaSpec: "sliding_attention"}
MAX_POSITIONS = 128_000
"""`max_position_embeddings` where nobody says otherwise: LFM2's. transformers computes RoPE as it goes and does not enforce it."""


class HfConfigError(NoCounterpartError):
    """A spec that no class for transformers can say, or a config that no spec can."""


def to_hf_config(
    spec: ArchSpec,
    *,
    max_position_embeddings: int = MAX_POSITIONS,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
) -> dict[str, Any]:
    """The config.json of a spec, for the class that `hf_model_type` names.

    Raises:
        HfConfigError: an operator of another package.
    """
    shared = {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "norm_eps": spec.norm_eps,
        "tie_word_embeddings": spec.tie_embeddings,
        "max_position_embeddings": max_position_embeddings,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "dtype": "float32",
    }
    model_type = hf_model_type(spec)
    config = {"architectures": [ARCHITECTURES[model_type]], "model_type": model_type} | shared
    return config | (_own_config(spec) if model_type == "archsearch" else _lfm_config(spec, model_type))


def _own_config(spec: ArchSpec) -> dict[str, Any]:
    reasons = [
        (f"layers.{i}.operator.kind", f"{block.operator.kind} is an operator of another package, for which there is no torch code to ship")
        for i, block in enumerate(spec.layers)
        if type(block.operator) not in (*LAYER_TYPES, GlaSpec)
    ]
    if reasons:
        raise HfConfigError(f"{spec.name} has no Hugging Face counterpart", reasons, "`archsearch export --to onnx` takes any spec")
    module = MODELING.removesuffix(".py")
    return {
        "auto_map": {"AutoConfig": f"{module}.ArchsearchConfig", "AutoModelForCausalLM": f"{module}.ArchsearchForCausalLM"},
        "layers": spec.to_dict()["layers"],
        "rope_theta": spec.rope_theta,
    }


def _lfm_config(spec: ArchSpec, model_type: HfModelType) -> dict[str, Any]:
    attention = [block.operator for block in spec.layers if isinstance(block.operator, GqaSpec | SwaSpec)]
    width = spec.layers[0].ffn.intermediate_size
    kernels = [block.operator.kernel_size for block in spec.layers if isinstance(block.operator, ShortConvSpec)]
    config: dict[str, Any] = {
        "intermediate_size": width,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": attention[0].heads,
        "num_key_value_heads": attention[0].kv_heads,
        "layer_types": [LAYER_TYPES[type(block.operator)] for block in spec.layers],
        "conv_L_cache": kernels[0] if kernels else 3,  # without a convolution the value is unused, but transformers wants one
        "conv_bias": False,
    }
    rope = {"rope_type": "default", "rope_theta": spec.rope_theta}
    if model_type == "lfm2":
        # Other readers of LFM2 configs know rope_theta and block_ff_dim, transformers the newer names.
        return config | {
            "block_auto_adjust_ff_dim": False,
            "block_ff_dim": width,
            "rope_theta": spec.rope_theta,
            "rope_parameters": rope,
        }
    return config | {
        "head_dim": attention[0].head_dim,
        "sliding_window": next((operator.window for operator in attention if isinstance(operator, SwaSpec)), None),
        "use_sandwich_norm": False,
        "use_attention_gate": False,
        "attention_bias": False,
        "rope_parameters": {name: dict(rope) for name in ("full_attention", "sliding_attention")},
    }


def from_hf_config(config: Mapping[str, Any], *, name: str | None = None) -> ArchSpec:
    """The spec of a published LFM2 config, of an LFM3 one that is plain LFM2 with windows, or of our own class.

    Raises:
        HfConfigError: another model type, a field missing, or something that a spec cannot say.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise HfConfigError("config", [("model_type", f"{kind!r} is not {' or '.join(ARCHITECTURES)}")])
    title = name or str(config.get("_name_or_path") or kind)
    if kind == "archsearch":
        fields = ("vocab_size", "hidden_size", "norm_eps", "rope_theta", "layers")
        data = {"name": title, "tie_embeddings": config.get("tie_word_embeddings", True)}
        return ArchSpec.from_dict(data | {field: config[field] for field in fields if field in config}, path=f"config of {title}")
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
    """ "lfm2" where every attention layer sees everything and its heads fill the hidden size, "lfm3" where one value for all layers
    says the rest, else "archsearch"."""
    if lfm_reasons(spec):
        return "archsearch"
    attention = [block.operator for block in spec.layers if isinstance(block.operator, GqaSpec | SwaSpec)]
    plain = all(isinstance(op, GqaSpec) and op.heads * op.head_dim == spec.hidden_size for op in attention)
    return "lfm2" if plain else "lfm3"


def lfm_reasons(spec: ArchSpec) -> list[tuple[str, str]]:
    """Why transformers' LFM2 and LFM3 cannot say a spec, as (field, why); empty where one of them can."""
    reasons = [
        (f"layers.{i}.operator.kind", f"{block.operator.kind} has no layer type in transformers' LFM2 and LFM3")
        for i, block in enumerate(spec.layers)
        if type(block.operator) not in LAYER_TYPES
    ]
    if all(isinstance(block.operator, ShortConvSpec) for block in spec.layers):
        reasons.append(("layers", "no attention layer; transformers' generate() needs one to keep its position"))
    for field in ("kernel_size", "heads", "kv_heads", "head_dim", "window"):
        reasons += different_values(spec, field, "operator", "transformers has one for all layers")
    return reasons + different_values(spec, "intermediate_size", "ffn", "transformers has one for all layers")


def to_hf_name(name: str, spec: ArchSpec, model_type: HfModelType | None = None) -> str:
    """A weight's name in transformers' checkpoint, from its name in ours; `model_type` None for the one that the spec has."""
    model_type = model_type or hf_model_type(spec)
    if model_type == "archsearch" or not (match := re.fullmatch(r"layers\.(\d+)\.(operator|ffn)\.(.+)", name)):
        return name if name.startswith("lm_head.") else f"model.{name}"
    layer, part, rest = int(match[1]), match[2], match[3]
    prefix = f"model.layers.{layer}"
    if part == "ffn":
        return f"{prefix}.feed_forward.{rest}"
    if isinstance(spec.layers[layer].operator, ShortConvSpec):
        return f"{prefix}.conv.{rest}"
    if model_type == "lfm3":
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
    """A (field, reason) pair for each layer whose `field` is not that of the first layer that has one; operators of kinds that
    have no layer type are left out, for they are a reason by themselves."""
    found = [(i, getattr(getattr(block, part), field)) for i, block in enumerate(spec.layers) if hasattr(getattr(block, part), field)]
    found = [(i, value) for i, value in found if part == "ffn" or type(spec.layers[i].operator) in LAYER_TYPES]
    if not found:
        return []
    first, value = found[0]
    others = [(i, other) for i, other in found if other != value]
    return [(f"layers.{i}.{part}.{field}", f"{other} differs from layer {first}'s {value}, and {why}") for i, other in others]


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


def hf_loader(name: Path | str) -> Any:
    """The class whose `from_pretrained` reads a model: this package's for our own exports, whatever code lies beside them; else
    `AutoModelForCausalLM`, to be called with `trust_remote_code=False`, so that nobody is asked on the terminal.
    """
    config = Path(name) / "config.json"
    if config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("model_type") == "archsearch":
        from archsearch.export.modeling_archsearch import ArchsearchForCausalLM

        return ArchsearchForCausalLM
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM
