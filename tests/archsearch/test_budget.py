"""Where the parameters go: the arithmetic against published counts, real modules, and the document that shows it."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Lfm2Config,
    Lfm2ForCausalLM,
    Lfm3Config,
    Lfm3ForCausalLM,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)

from archsearch.budget import format_table, known_configs, known_models, main, parameter_budget
from archsearch.spec import ArchSpec
from operators.costs import model_parameters

DOC = Path(__file__).parents[2] / "docs" / "parameter-budget.md"
MODULES = {
    "lfm2": (Lfm2Config, Lfm2ForCausalLM),
    "lfm3": (Lfm3Config, Lfm3ForCausalLM),
    "gemma3_text": (Gemma3TextConfig, Gemma3ForCausalLM),
    "qwen3_5": (Qwen3_5Config, Qwen3_5ForConditionalGeneration),
}


def budgets():
    return {budget.name: budget for budget in known_models()}


def spec_of(*operators, **overrides):
    layers = [{"operator": operator, "ffn": {"intermediate_size": 96}} for operator in operators]
    return ArchSpec.from_dict({"name": "test", "hidden_size": 64, "vocab_size": 100, "layers": layers} | overrides)


ALL_FOUR = (
    {"kind": "short_conv", "kernel_size": 3},
    {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 16},
    {"kind": "swa", "heads": 4, "kv_heads": 2, "head_dim": 16, "window": 8},
    {"kind": "gla", "heads": 4},
)


@pytest.mark.parametrize(
    ("name", "total", "share"),
    [
        ("LFM2-350M", 354_483_968, 18.9),
        ("LFM2-1.2B", 1_170_340_608, 11.5),
        ("Gemma 3 270M", 268_100_000, 62.6),
        ("Qwen3.5 0.8B (text)", 752_390_000, 33.8),
    ],
)
def test_totals_are_the_published_ones(name, total, share):
    """LFM2's totals stand on its model cards to the last parameter, the others are known to ten thousand."""
    budget = budgets()[name]
    assert abs(budget.total - total) < (1 if name.startswith("LFM2") else 10_000)
    assert round(100 * budget.embedding_share, 1) == share


@pytest.mark.parametrize(("name", "share"), [("LFM2-700M", 13.6), ("LFM2-2.6B", 5.2), ("LFM3-1.7B", 15.2)])
def test_embedding_shares_of_the_rest_of_the_family(name, share):
    assert round(100 * budgets()[name].embedding_share, 1) == share


@pytest.mark.parametrize(("name", "source", "config"), known_configs(), ids=[name for name, _, _ in known_configs()])
def test_parts_are_those_of_the_real_modules(name, source, config):
    """transformers builds each model on the meta device from the same fields; every part agrees, not only the sum."""
    config_class, model_class = MODULES[config["model_type"]]
    with torch.device("meta"):
        model = model_class(config_class(**config))
    model.tie_weights()
    counted = count_parts(model)
    budget = budgets().get(name) or budgets()[f"{name} (with vision)"]
    assert dict(budget.parts) == counted
    assert sum(counted.values()) == sum(p.numel() for p in model.parameters())
    if config["model_type"] == "qwen3_5":
        text = budgets()[f"{name} (text)"]
        assert dict(text.parts) == {part: n for part, n in counted.items() if part != "vision"}


def count_parts(model):
    text_config = model.config.get_text_config()
    attention = {"full_attention": "gqa", "sliding_attention": "swa", "conv": "short_conv", "linear_attention": "gated_deltanet"}
    counts = {}
    for name, parameter in model.named_parameters():
        if "visual." in name:
            part = "vision"
        elif "embed_tokens" in name:
            part = "embedding"
        elif re.search(r"\.(mlp|feed_forward)\.", name):
            part = "ffn"
        elif match := re.search(r"layers\.(\d+)\.(self_attn|conv|linear_attn)\.", name):
            part = attention[text_config.layer_types[int(match[1])]]
        else:
            part = "norms"
        counts[part] = counts.get(part, 0) + parameter.numel()
    return counts


def test_known_fields_are_read_by_transformers_under_their_names():
    """A misspelt field in our files would fall back to a default in silence."""
    for _, _, config in known_configs():
        parts = [config, *(config[part] for part in ("text_config", "vision_config") if part in config)]
        for part in parts:
            vision = part["model_type"] == "qwen3_5_vision"
            read = Qwen3_5Config(vision_config=part).vision_config if vision else AutoConfig.for_model(**part)
            aliases = {"block_ff_dim": "intermediate_size", "full_attn_idxs": "layer_types", "rope_theta": "rope_parameters"}
            for field, value in part.items():
                if field in ("text_config", "vision_config"):
                    continue
                assert hasattr(read, aliases.get(field, field)), field
                if field not in aliases:
                    assert getattr(read, field) == value


def test_spec_parts_add_up():
    spec = spec_of(*ALL_FOUR)
    budget = parameter_budget(spec)
    assert budget.total == model_parameters(spec.layers, spec.dims, vocab_size=100, tie_embeddings=True)
    assert list(budget.parts) == ["embedding", "short_conv", "gqa", "swa", "gla", "ffn", "norms"]
    assert budget.parts["embedding"] == 100 * 64
    assert budget.parts["short_conv"] == 64 * 3 * 64 + 64 * 3 + 64 * 64
    assert budget.parts["gqa"] == budget.parts["swa"] == 64 * 64 + 2 * 32 * 64 + 64 * 64 + 2 * 16
    assert budget.parts["ffn"] == 4 * 3 * 64 * 96
    assert budget.parts["norms"] == (2 * 4 + 1) * 64
    assert sum(budget.shares.values()) == pytest.approx(1)


def test_untied_head_is_a_part_of_its_own():
    tied, untied = parameter_budget(spec_of(*ALL_FOUR)), parameter_budget(spec_of(*ALL_FOUR, tie_embeddings=False))
    assert untied.parts["head"] == untied.parts["embedding"] == 6400
    assert untied.total == tied.total + 6400
    assert untied.embedding_share == 12_800 / untied.total


def test_to_dict_is_json():
    data = json.loads(json.dumps(known_models()[0].to_dict()))
    assert data["total"] == sum(data["parts"].values())
    assert data["source"]


def test_sorted_by_size_and_sourced():
    totals = [budget.total for budget in known_models()]
    assert totals == sorted(totals)
    assert all(budget.source for budget in known_models())


def test_command_prints_specs_before_known_models(tmp_path, capsys):
    spec_of(*ALL_FOUR).write(tmp_path / "spec.toml")
    assert main([str(tmp_path / "spec.toml")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| test ")
    assert "gla" in lines[0]
    assert len(lines) == 3 + len(known_models())
    assert len({len(line) for line in lines}) == 1


def test_command_refuses_a_missing_spec(capsys):
    assert main(["nowhere.toml"]) == 2
    assert capsys.readouterr().err == "error: nowhere.toml: no such file\n"


def test_document_shows_what_the_command_prints():
    assert format_table(known_models()) in DOC.read_text(encoding="utf-8")
