"""A language model of gated short convolutions, attention over everything or a sliding window, and gated linear attention, in any
order and each layer with dimensions of its own; for transformers 5.20 or newer, which and torch are all that this file needs.

`archsearch export --to hf` puts it beside the weights of a layout that transformers itself has no class for:

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

A layer is `x += operator(operator_norm(x)); x += ffn(ffn_norm(x))`, and the head is a final RMSNorm and the (usually tied) embedding.
Shapes: B batch, T new tokens, S keys (old and new), D hidden size, H heads, N key/value heads, K and V channels of a head.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

CHUNK = 16
"""Tokens that gated linear attention handles at once in a whole sequence."""


class ArchsearchConfig(PreTrainedConfig):
    """`layers` holds one table a layer, as in the model's spec.toml:

    {"operator": {"kind": "short_conv", "kernel_size": 3}, "ffn": {"intermediate_size": 768}}
    {"operator": {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 64}, ...}
    {"operator": {"kind": "swa", "heads": 4, "kv_heads": 2, "head_dim": 64, "window": 256}, ...}
    {"operator": {"kind": "gla", "heads": 4, "expand_k": 0.5, "expand_v": 1.0, "gate_rank": 16, "gate_normalizer": 16.0}, ...}
    """

    model_type = "archsearch"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - transformers' way

    def __init__(
        self,
        vocab_size: int = 4096,
        hidden_size: int = 256,
        layers: list[dict[str, Any]] | None = None,
        norm_eps: float = 1e-5,
        rope_theta: float = 1e6,
        initializer_range: float = 0.02,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.layers = layers or []
        self.norm_eps = norm_eps
        self.rope_theta = rope_theta
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        attention = [layer["operator"] for layer in self.layers if layer["operator"]["kind"] in ("gqa", "swa")]
        # What other programs like to know of any model; no two layers need agree.
        self.num_hidden_layers = len(self.layers)
        self.num_attention_heads = max((operator["heads"] for operator in attention), default=1)
        self.num_key_value_heads = max((operator["kv_heads"] for operator in attention), default=1)
        self.intermediate_size = max((layer["ffn"]["intermediate_size"] for layer in self.layers), default=0)
        super().__init__(**kwargs)


class LayerStates:
    """What the layers remember of a sequence: one tuple of tensors each, and the number of tokens seen."""

    is_compileable = False

    def __init__(self, layers: int) -> None:
        self.states: list[tuple[Tensor, ...] | None] = [None] * layers
        self.seen = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these sequences of the batch, in this order; beam search asks for it."""
        self.states = [state and tuple(tensor.index_select(0, beam_idx.to(tensor.device)) for tensor in state) for state in self.states]


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class ShortConv(nn.Module):
    """`out_proj(C * conv(B * x))` with `B, C, x = in_proj(h)`. Remembers the last k-1 columns of `B * x`, [B, k-1, D]."""

    def __init__(self, config: ArchsearchConfig, kernel_size: int) -> None:
        super().__init__()
        D = config.hidden_size
        self.in_proj = nn.Linear(D, 3 * D, bias=False)
        self.conv = nn.Conv1d(D, D, kernel_size, groups=D, bias=False)
        self.out_proj = nn.Linear(D, D, bias=False)

    def forward(self, x: Tensor, state: tuple[Tensor, ...] | None, context: "Context") -> tuple[Tensor, tuple[Tensor, ...]]:
        gate_in, gate_out, h = self.in_proj(x).chunk(3, dim=-1)
        new = context.without_padding(gate_in * h)
        before = self.conv.kernel_size[0] - 1
        columns = F.pad(new, (0, 0, before, 0)) if state is None else torch.cat([state[0], new], dim=1)
        mixed = self.conv(columns.mT).mT
        return self.out_proj(gate_out * mixed), (columns[:, columns.shape[1] - before :].clone(),)


class Attention(nn.Module):
    """Grouped-query attention, RMSNorm on q and k, rotary positions. Remembers keys and values, [B, N, S, K]; with a window only its
    last window-1."""

    def __init__(self, config: ArchsearchConfig, heads: int, kv_heads: int, head_dim: int, window: int | None = None) -> None:
        super().__init__()
        D = config.hidden_size
        self.head_dim, self.window, self.grouped = head_dim, window, heads != kv_heads
        frequencies = config.rope_theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim)
        self.frequencies = frequencies.tolist()
        self.q_proj = nn.Linear(D, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(D, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(D, kv_heads * head_dim, bias=False)
        self.out_proj = nn.Linear(heads * head_dim, D, bias=False)
        self.q_layernorm = RMSNorm(head_dim, config.norm_eps)
        self.k_layernorm = RMSNorm(head_dim, config.norm_eps)

    def forward(self, x: Tensor, state: tuple[Tensor, ...] | None, context: "Context") -> tuple[Tensor, tuple[Tensor, ...]]:
        q, k, v = (layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj))
        angles = context.positions[:, None, :, None] * torch.tensor(self.frequencies, dtype=torch.float64, device=x.device)
        q, k = (_rotate(value, angles) for value in (self.q_layernorm(q), self.k_layernorm(k)))
        if state is not None:
            k, v = torch.cat([state[0], k], dim=2), torch.cat([state[1], v], dim=2)
        mask = context.attention_mask(k.shape[2], self.window)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and q.shape[2] > 1, enable_gqa=self.grouped)
        kept = 0 if self.window is None else max(0, k.shape[2] - self.window + 1)
        return self.out_proj(y.transpose(1, 2).flatten(2)), (k[:, :, kept:], v[:, :, kept:])


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate the pairs of channels (i, i + K/2)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    cos, sin = angles.cos().to(wide), angles.sin().to(wide)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class GatedLinearAttention(nn.Module):
    """`S_t = diag(exp g_t) S_{t-1} + k_t v_t^T`, `o_t = q_t S_t / sqrt(K)` (arXiv 2312.06635). Remembers S, [B, H, K, V], in float32."""

    def __init__(
        self,
        config: ArchsearchConfig,
        heads: int,
        expand_k: float = 0.5,
        expand_v: float = 1.0,
        gate_rank: int = 16,
        gate_normalizer: float = 16.0,
    ) -> None:
        super().__init__()
        D, keys, values = config.hidden_size, int(config.hidden_size * expand_k), int(config.hidden_size * expand_v)
        self.heads, self.gate_normalizer = heads, gate_normalizer
        self.q_proj = nn.Linear(D, keys, bias=False)
        self.k_proj = nn.Linear(D, keys, bias=False)
        self.v_proj = nn.Linear(D, values, bias=False)
        self.g_proj = nn.Linear(D, values, bias=False)
        self.gk_proj = nn.Sequential(nn.Linear(D, gate_rank, bias=False), nn.Linear(gate_rank, keys))
        self.g_norm = RMSNorm(values // heads, config.norm_eps)
        self.o_proj = nn.Linear(values, D, bias=False)

    def forward(self, x: Tensor, state: tuple[Tensor, ...] | None, context: "Context") -> tuple[Tensor, tuple[Tensor, ...]]:
        decay = F.logsigmoid(self.gk_proj(x).float()) / self.gate_normalizer
        # Padding adds nothing and decays nothing.
        q, k, v, decay = (
            value.float().unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for value in (self.q_proj(x), context.without_padding(self.k_proj(x)), self.v_proj(x), context.without_padding(decay))
        )
        S = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1]) if state is None else state[0]
        parts = []
        for q_c, k_c, v_c, decay_c in zip(*(value.split(CHUNK, dim=2) for value in (q * q.shape[-1] ** -0.5, k, v, decay)), strict=True):
            o_c, S = _chunk(q_c, k_c, v_c, decay_c, S)
            parts.append(o_c)
        o = self.g_norm(torch.cat(parts, dim=2).to(x.dtype)).transpose(1, 2).flatten(2)
        return self.o_proj(o * F.silu(self.g_proj(x))), (S,)


def _chunk(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """A few tokens [B, H, C, K or V] and the state before them: what they see of it and of each other, and the state behind them."""
    total = decay.cumsum(2)
    between = total[:, :, :, None] - total[:, :, None]  # [i, j]: from token j to token i; what lies ahead of i is masked
    ahead = torch.ones(between.shape[2:4], dtype=torch.bool, device=q.device).triu(1)[..., None]
    scores = torch.einsum("bhik,bhjk,bhijk->bhij", q, k, between.masked_fill(ahead, float("-inf")).exp())
    o = scores @ v + (q * total.exp()) @ S
    last = total[:, :, -1:]
    return o, last.exp().mT * S + (k * (last - total).exp()).mT @ v


OPERATORS = {"short_conv": ShortConv, "gqa": Attention, "swa": Attention, "gla": GatedLinearAttention}


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ArchsearchConfig, intermediate_size: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, intermediate_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, intermediate_size, bias=False)
        self.w2 = nn.Linear(intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Layer(GradientCheckpointingLayer):
    def __init__(self, config: ArchsearchConfig, spec: dict[str, Any]) -> None:
        super().__init__()
        options = dict(spec["operator"])
        self.operator_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.operator = OPERATORS[options.pop("kind")](config, **options)
        self.ffn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.ffn = FeedForward(config, spec["ffn"]["intermediate_size"])

    def forward(self, x: Tensor, state: tuple[Tensor, ...] | None, context: "Context") -> tuple[Tensor, tuple[Tensor, ...]]:
        mixed, state = self.operator(self.operator_norm(x), state, context)
        x = x + mixed
        return x + self.ffn(self.ffn_norm(x)), state


class Context:
    """Where the new tokens stand, and which tokens are padding."""

    def __init__(self, tokens: int, seen: int, device: torch.device, padding_mask: Tensor | None, positions: Tensor | None) -> None:
        """`padding_mask` [B, seen + tokens], zero for padding; `positions` [B, tokens]."""
        self.tokens, self.seen, self.device = tokens, seen, device
        self.real = None if padding_mask is None or bool(padding_mask.all()) else padding_mask.to(device, torch.bool)
        if positions is None and self.real is not None:
            positions = (self.real.long().cumsum(-1) - 1).clamp(min=0)[:, -tokens:]
        if positions is None:
            positions = torch.arange(seen, seen + tokens, device=device)[None]
        self.positions = positions

    def without_padding(self, x: Tensor) -> Tensor:
        """`x` [B, T, channels] with zeros where there is padding."""
        return x if self.real is None else x * self.real[:, -self.tokens :, None].to(x.dtype)

    def attention_mask(self, keys: int, window: int | None) -> Tensor | None:
        """[B or 1, 1, T, S], true where a token may look; None where it is the plain causal mask. Padding sees itself, for a token that
        sees nothing has no softmax."""
        if self.real is None and (window is None or window >= keys) and self.tokens in (1, keys):
            return None
        age = torch.arange(keys - self.tokens, keys, device=self.device)[:, None] - torch.arange(keys, device=self.device)
        mask = (age >= 0) & (age < (window or keys))
        if self.real is None:
            return mask[None, None]
        return (mask & self.real[:, None, -keys:] | (age == 0))[:, None]


class ArchsearchPreTrainedModel(PreTrainedModel):
    config_class = ArchsearchConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Layer"]  # noqa: RUF012 - transformers' way
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the model makes its own


class ArchsearchModel(ArchsearchPreTrainedModel):
    def __init__(self, config: ArchsearchConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, spec) for spec in config.layers)
        self.embedding_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: LayerStates | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        if past_key_values is None:
            past_key_values = LayerStates(len(self.layers))
        elif not isinstance(past_key_values, LayerStates):
            raise ValueError("past_key_values: this model keeps its own kind of states; leave it out, or hand back what it returned")
        context = Context(x.shape[1], past_key_values.seen, x.device, attention_mask, position_ids)
        hidden_states: tuple[Tensor, ...] = (x,)
        for i, layer in enumerate(self.layers):
            x, state = layer(x, past_key_values.states[i], context)
            if use_cache:
                past_key_values.states[i] = state
            hidden_states += (x,)
        if use_cache:
            past_key_values.seen += x.shape[1]
        return BaseModelOutputWithPast(
            last_hidden_state=self.embedding_norm(x),
            past_key_values=past_key_values if use_cache else None,
            hidden_states=hidden_states if output_hidden_states else None,
        )


class ArchsearchForCausalLM(ArchsearchPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 - transformers' way

    def __init__(self, config: ArchsearchConfig) -> None:
        super().__init__(config)
        self.model = ArchsearchModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: LayerStates | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        outputs = self.model(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, output_hidden_states)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values, hidden_states=outputs.hidden_states
        )
