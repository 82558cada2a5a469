"""Specs and Hugging Face configs: there and back, and what is refused with which words."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
from transformers import Lfm3Config

from archsearch.budget import known_configs
from archsearch.errors import FileFormatError, InputError
from archsearch.hf import HfConfigError, from_hf_config, from_hf_name, hf_model_type, lfm_reasons, to_hf_config, to_hf_name
from archsearch.spec import ArchSpec
from operators.costs import model_weights
from operators.specs import BlockSpec, OperatorSpec

CONV = {"kind": "short_conv", "kernel_size": 3}
GQA = {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 16}
SWA = {"kind": "swa", "heads": 4, "kv_heads": 2, "head_dim": 16, "window": 8}
GLA = {"kind": "gla", "heads": 4}


def spec_of(*operators, ffn=96, **overrides):
    layers = [{"operator": operator, "ffn": {"intermediate_size": ffn}} for operator in operators]
    return ArchSpec.from_dict({"name": "test", "hidden_size": 64, "vocab_size": 100, "layers": layers} | overrides)


LFM2_CONFIGS = [(name, config) for name, _, config in known_configs() if config["model_type"] == "lfm2"]


@pytest.mark.parametrize(("name", "config"), LFM2_CONFIGS, ids=[name for name, _ in LFM2_CONFIGS])
def test_published_configs_become_specs_and_come_back(name, config):
    spec = from_hf_config(config, name=name)
    again = from_hf_config(to_hf_config(spec), name=name)
    assert again == spec
    assert again.spec_id == spec.spec_id
    assert ArchSpec.from_dict(spec.to_dict()) == spec


def test_published_350m_is_the_spec_in_the_documentation():
    spec = from_hf_config(dict(LFM2_CONFIGS)["LFM2-350M"])
    assert spec.pattern == "conv3 x2, gqa8, conv3 x2, gqa8, conv3 x2, gqa8, conv3, gqa8, conv3, gqa8, conv3, gqa8, conv3"
    assert {block.ffn.intermediate_size for block in spec.layers} == {4608}
    assert spec.layers[2].operator.head_dim == 64


@pytest.mark.parametrize(
    ("fields", "width"),
    [
        ({"block_ff_dim": 6656}, 4608),
        ({"block_ff_dim": 12288}, 8192),
        ({"block_ff_dim": 10240}, 6912),
        ({"block_ff_dim": 10752, "block_auto_adjust_ff_dim": False}, 10752),
        ({"intermediate_size": 6656}, 4608),
        ({"block_ff_dim": 900, "block_ffn_dim_multiplier": 1.5, "block_multiple_of": 64}, 960),
    ],
)
def test_ffn_width_is_the_one_transformers_builds(fields, width):
    import torch
    from transformers import Lfm2Config, Lfm2ForCausalLM

    base = {k: v for k, v in dict(LFM2_CONFIGS)["LFM2-350M"].items() if not k.startswith("block_")}
    config = base | {"num_hidden_layers": 3, "full_attn_idxs": [2]} | fields
    with torch.device("meta"):
        built = Lfm2ForCausalLM(Lfm2Config(**config))
    assert built.model.layers[0].feed_forward.w1.weight.shape[0] == width
    assert from_hf_config(config).layers[0].ffn.intermediate_size == width


@pytest.mark.parametrize(
    ("spec", "model_type"),
    [
        (spec_of(CONV, GQA), "lfm2"),
        (spec_of(GQA, GQA), "lfm2"),
        (spec_of(CONV, SWA), "lfm3"),
        (spec_of(CONV, SWA, GQA), "lfm3"),
        (spec_of(SWA, GQA), "lfm3"),
        (spec_of(CONV, GQA | {"head_dim": 32}), "lfm3"),
        (spec_of(CONV, GQA, tie_embeddings=False, norm_eps=1e-6, rope_theta=5e5), "lfm2"),
        (spec_of(CONV, GLA | {"expand_k": 1.0}, GQA, tie_embeddings=False, norm_eps=1e-6, rope_theta=5e5), "archsearch"),
        (spec_of(CONV, CONV), "archsearch"),
        (spec_of(SWA, SWA | {"window": 16}), "archsearch"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.pattern,
)
def test_round_trip_through_a_config(spec, model_type):
    config = to_hf_config(spec)
    assert config["model_type"] == model_type == hf_model_type(spec)
    assert from_hf_config(config, name="test") == spec


@pytest.mark.parametrize(
    ("spec", "field", "why"),
    [
        (spec_of(CONV, GLA, GQA), "layers.1.operator.kind", "gla has no layer type"),
        (spec_of(CONV, CONV | {"kernel_size": 7}, GQA), "layers.1.operator.kernel_size", "7 differs from layer 0's 3"),
        (spec_of(CONV, GQA, GQA | {"kv_heads": 4}), "layers.2.operator.kv_heads", "4 differs from layer 1's 2"),
        (spec_of(GQA, SWA | {"head_dim": 32}), "layers.1.operator.head_dim", "32 differs from layer 0's 16"),
        (spec_of(SWA, SWA | {"window": 16}), "layers.1.operator.window", "16 differs from layer 0's 8"),
        (spec_of(CONV, CONV), "layers", "no attention layer"),
    ],
    ids=["gla", "kernel_size", "kv_heads", "head_dim", "window", "no attention"],
)
def test_why_a_layout_needs_a_class_of_its_own(spec, field, why):
    (reason,) = lfm_reasons(spec)
    assert reason[0] == field
    assert why in reason[1]
    assert hf_model_type(spec) == "archsearch"


def test_ffn_widths_that_differ_need_a_class_of_their_own():
    data = spec_of(CONV, GQA, CONV).to_dict()
    data["layers"][2]["ffn"]["intermediate_size"] = 128
    spec = ArchSpec.from_dict(data)
    assert [field for field, _ in lfm_reasons(spec)] == ["layers.2.ffn.intermediate_size"]
    assert from_hf_config(to_hf_config(spec), name="test") == spec


def test_operators_of_other_packages_are_refused_with_their_field():
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Foreign(OperatorSpec):
        kind: ClassVar[str] = "foreign"

    plain = spec_of(CONV, GQA)
    layers = tuple(BlockSpec(operator=Foreign(), ffn=block.ffn) for block in plain.layers for _ in range(3))
    with pytest.raises(HfConfigError) as caught:
        to_hf_config(ArchSpec(name="test", hidden_size=64, vocab_size=100, layers=layers))
    assert len(caught.value.reasons) == 6
    message = str(caught.value)
    assert "layers.0.operator.kind: foreign is an operator of another package" in message
    assert "and 3 more" in message
    assert "--to onnx" in message
    assert "\n" not in message
    assert isinstance(caught.value, InputError)


def test_damaged_config_of_our_own_class_is_refused_with_its_field():
    config = to_hf_config(spec_of(CONV, GLA))
    config["layers"][1]["operator"]["heads"] = 5
    with pytest.raises(FileFormatError, match=r"layers\.1\.operator\.heads: 32 channels \(expand_k\) do not divide among 5 heads"):
        from_hf_config(config)


def test_published_lfm3_is_refused_with_every_reason():
    with pytest.raises(HfConfigError) as caught:
        from_hf_config(Lfm3Config().to_dict())
    assert [field for field, _ in caught.value.reasons] == ["use_sandwich_norm", "use_attention_gate"]


def test_lfm3_with_two_rope_bases_or_partial_rotation_is_refused():
    config = to_hf_config(spec_of(CONV, SWA, GQA))
    config["rope_parameters"]["sliding_attention"]["rope_theta"] = 1e4
    with pytest.raises(HfConfigError, match="RoPE bases 10000, 1e\\+06; a spec has one"):
        from_hf_config(config)
    del config["rope_parameters"]
    with pytest.raises(HfConfigError, match="rope_parameters: missing"):
        from_hf_config(config)
    config = to_hf_config(spec_of(CONV, SWA, GQA))
    config["rope_parameters"]["full_attention"]["rope_type"] = "proportional"
    with pytest.raises(HfConfigError, match=r"rope_parameters\.full_attention\.rope_type: 'proportional'"):
        from_hf_config(config)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model_type": "llama"}, "model_type"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "1024"}, "hidden_size"),
        ({"conv_L_cache": "3"}, "conv_L_cache"),
        ({"conv_bias": True}, "conv_bias"),
        ({"layer_types": ["conv"]}, "layer_types"),
        ({"layer_types": ["conv", "mamba"]}, "layer_types.1"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope_parameters.rope_type"),
        ({"intermediate_size": None, "block_ff_dim": None}, "intermediate_size"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_configs_are_refused_with_their_field(change, field):
    with pytest.raises(HfConfigError) as caught:
        from_hf_config(to_hf_config(spec_of(CONV, GQA)) | change)
    assert [name for name, _ in caught.value.reasons] == [field]


def test_impossible_dimensions_in_a_config_are_refused():
    with pytest.raises(FileFormatError, match="kv_heads: 4 heads do not divide among 3"):
        from_hf_config(to_hf_config(spec_of(CONV, GQA)) | {"num_key_value_heads": 3})


@pytest.mark.parametrize("operators", [(CONV, GQA), (CONV, SWA, GQA)], ids=["lfm2", "lfm3"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_weight_names_are_those_of_the_real_module_and_come_back(operators, tied):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    spec = spec_of(*operators, tie_embeddings=tied)
    ours = {weight.name: weight.shape for weight in model_weights(spec.layers, spec.dims, vocab_size=100, tie_embeddings=tied)}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**to_hf_config(spec)))
    model.tie_weights()
    assert {to_hf_name(name, spec): shape for name, shape in ours.items()} == {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert all(from_hf_name(to_hf_name(name, spec)) == name for name in ours)
