"""Our layers against the published code: transformers' LFM2 and LFM3 with random weights, whole sequences and cached decoding.

transformers computes its norms and its rotary angles in float32, so float32 rounding is what the tolerance allows.
"""

import pytest
import torch

from archsearch.hf import from_hf_config, from_hf_name
from archsearch.model import LanguageModel

SIZES = {
    "vocab_size": 120,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "norm_eps": 1e-4,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LFM2 = SIZES | {"intermediate_size": 96, "block_auto_adjust_ff_dim": False, "num_key_value_heads": 2, "conv_L_cache": 3}
LFM3 = SIZES | {
    "intermediate_size": 96,
    "num_key_value_heads": 1,
    "head_dim": 32,  # not hidden_size / heads
    "conv_L_cache": 7,
    "sliding_window": 9,
    "use_sandwich_norm": False,
    "use_attention_gate": False,
    "rope_parameters": {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")},
}
C, S, F = "conv", "sliding_attention", "full_attention"
ADJUSTED = {"block_auto_adjust_ff_dim": True, "intermediate_size": 200, "block_multiple_of": 16}
UNTIED = {"tie_word_embeddings": False}
CASES = {
    "lfm2": ("Lfm2", LFM2 | {"layer_types": [C, C, F, C, F]}),
    "lfm2, FFN width adjusted": ("Lfm2", LFM2 | ADJUSTED | {"layer_types": [C, F]}),
    "lfm2, untied": ("Lfm2", LFM2 | UNTIED | {"layer_types": [F, C], "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "lfm3, conv + swa + full": ("Lfm3", LFM3 | {"layer_types": [C, S, C, F, S]}),
    "lfm3, conv + swa": ("Lfm3", LFM3 | {"layer_types": [C, S, S], "sliding_window": 33}),
    "lfm3, swa alone, untied": ("Lfm3", LFM3 | UNTIED | {"layer_types": [S, S]}),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys(), scope="module")
def pair(request):
    """Theirs with random weights, and ours with the same."""
    import transformers

    family, fields = request.param
    fields = fields | {"num_hidden_layers": len(fields["layer_types"])}
    config = getattr(transformers, f"{family}Config")(**fields)
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(1 + 0.1 * noise if "norm" in name else noise / parameter[0].numel() ** 0.5)
    spec = from_hf_config(config.to_dict(), name=family)
    ours = LanguageModel(spec).eval()
    # The head is listed by transformers though it is tied; ours then has none.
    tied = {"lm_head.weight"} if spec.tie_embeddings else set()
    ours.load_state_dict({from_hf_name(name): value for name, value in theirs.state_dict().items() if name not in tied})
    return theirs, ours


def assert_close(ours_BTV, theirs_BTV):
    error = (ours_BTV - theirs_BTV).abs().max() / theirs_BTV.abs().max()
    assert error < 1e-5


@torch.inference_mode()
def test_same_logits(pair):
    theirs, ours = pair
    ids_BT = torch.randint(120, (3, 100), generator=torch.Generator().manual_seed(1))
    assert_close(ours(ids_BT)[0], theirs(ids_BT, use_cache=False).logits)


@torch.inference_mode()
def test_same_logits_with_caches(pair):
    theirs, ours = pair
    ids_BT = torch.randint(120, (2, 70), generator=torch.Generator().manual_seed(2))
    state = cache = None
    for part_BT in torch.split(ids_BT, (40, *(1,) * 30), dim=1):
        logits_BTV, state = ours(part_BT, state)
        expected = theirs(part_BT, past_key_values=cache, use_cache=True)
        cache = expected.past_key_values
        assert_close(logits_BTV, expected.logits)


@torch.inference_mode()
def test_same_greedy_text(pair):
    theirs, ours = pair
    prompt_BT = torch.randint(3, 120, (1, 8), generator=torch.Generator().manual_seed(3))
    theirs.generation_config.eos_token_id = None
    expected_BT = theirs.generate(prompt_BT, attention_mask=torch.ones_like(prompt_BT), max_new_tokens=30, do_sample=False)
    assert torch.equal(ours.generate(prompt_BT, 30), expected_BT)
