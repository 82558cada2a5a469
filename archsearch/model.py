"""The language model of a spec, in torch: embedding, layers, final norm, head. Readable first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.spec import ArchSpec
from operators.block import Block, State
from operators.norm import RMSNorm

INIT_STD = 0.02
LOSS_CHUNK = 2048
"""Tokens whose logits exist at once while the loss is computed: the vocabulary makes them the largest tensor there is."""


class LanguageModel(nn.Module):
    """A decoder-only model. With `state`, it goes on where the state was left; `None` starts a sequence.

    Parameter names are those of the published LFM2 checkpoints, without their prefix.
    """

    def __init__(self, spec: ArchSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(Block(block, spec.dims) for block in spec.layers)
        self.embedding_norm = RMSNorm(spec.hidden_size, spec.norm_eps)
        if not spec.tie_embeddings:
            self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """GPT-2's initialisation: N(0, 0.02) for matrices, and 1/sqrt(2 layers) of that for those that write to the residual
        stream, so that its variance does not grow with depth. Norms start at one, biases at zero, convolutions at
        torch's default (their fan-in is the kernel size, not the hidden size)."""
        residual_std = INIT_STD / math.sqrt(2 * len(self.layers))
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                writes_residual = name.endswith(("out_proj.weight", "o_proj.weight", "ffn.w2.weight"))
                nn.init.normal_(parameter, std=residual_std if writes_residual else INIT_STD)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @property
    def head_weight_VD(self) -> Tensor:
        return self.embed_tokens.weight if self.spec.tie_embeddings else self.lm_head.weight

    def hidden(self, ids_BT: Tensor, state: list[State] | None = None) -> tuple[Tensor, list[State]]:
        """The normalised output of the last layer, [B, T, D], and the new state of every layer."""
        x_BTD = self.embed_tokens(ids_BT)
        states = []
        for i, layer in enumerate(self.layers):
            x_BTD, new = layer(x_BTD, None if state is None else state[i])
            states.append(new)
        return self.embedding_norm(x_BTD), states

    def forward(self, ids_BT: Tensor, state: list[State] | None = None) -> tuple[Tensor, list[State]]:
        """Logits [B, T, V] and the new state."""
        x_BTD, state = self.hidden(ids_BT, state)
        return F.linear(x_BTD, self.head_weight_VD), state

    def loss(self, ids_BT: Tensor, targets_BT: Tensor, *, ignore_index: int = -100) -> Tensor:
        """Mean cross-entropy in nats a token over the targets that are not `ignore_index`.

        Logits exist for `LOSS_CHUNK` tokens at a time and are computed again in the backward pass.
        """
        x_BTD, _ = self.hidden(ids_BT)
        flat_ND, targets_N = x_BTD.flatten(0, 1), targets_BT.flatten()
        total = flat_ND.new_zeros(())
        for x_CD, targets_C in zip(flat_ND.split(LOSS_CHUNK), targets_N.split(LOSS_CHUNK), strict=True):
            if len(flat_ND) > LOSS_CHUNK and torch.is_grad_enabled():
                part = torch.utils.checkpoint.checkpoint(self._summed_loss, x_CD, targets_C, ignore_index, use_reentrant=False)
            else:
                part = self._summed_loss(x_CD, targets_C, ignore_index)
            total = total + part
        return total / (targets_N != ignore_index).sum().clamp(min=1)

    def _summed_loss(self, x_CD: Tensor, targets_C: Tensor, ignore_index: int) -> Tensor:
        logits_CV = F.linear(x_CD, self.head_weight_VD).float()
        return F.cross_entropy(logits_CV, targets_C, ignore_index=ignore_index, reduction="sum")

    @torch.inference_mode()
    def stream(
        self, ids_BT: Tensor, max_new_tokens: int, *, temperature: float = 0.0, top_k: int | None = None, generator: torch.Generator | None = None
    ) -> Iterator[Tensor]:
        """Yield one column of new tokens [B] after the other; `temperature=0` is greedy.

        Args:
            ids_BT: the prompt, at least one token.
            top_k: sample among this many most likely tokens only.
        """
        logits_BTV, state = self(ids_BT)
        for i in range(max_new_tokens):
            logits_BV = logits_BTV[:, -1]
            if temperature == 0:
                next_B = logits_BV.argmax(-1)
            else:
                if top_k is not None:
                    smallest = logits_BV.topk(min(top_k, logits_BV.shape[-1])).values[:, -1:]
                    logits_BV = logits_BV.masked_fill(logits_BV < smallest, float("-inf"))
                next_B = torch.multinomial((logits_BV / temperature).softmax(-1), 1, generator=generator)[:, 0]
            yield next_B
            if i + 1 < max_new_tokens:
                logits_BTV, state = self(next_B[:, None], state)

    def generate(self, ids_BT: Tensor, max_new_tokens: int, **sampling: object) -> Tensor:
        """The prompt and `max_new_tokens` more, [B, T + new]; `sampling` as in `stream`."""
        new = list(self.stream(ids_BT, max_new_tokens, **sampling))  # type: ignore[arg-type]
        return torch.cat([ids_BT, *(column[:, None] for column in new)], dim=1)

    def numpy_weights(self) -> dict[str, np.ndarray]:
        """All parameters as float32 arrays, under the names that `operators.graph` takes."""
        return {name: parameter.detach().float().cpu().numpy() for name, parameter in self.named_parameters()}

    def load_numpy(self, weights: Mapping[str, np.ndarray]) -> None:
        """Set all parameters from arrays of the same names and shapes.

        Raises:
            RuntimeError: a name is missing or unknown, or a shape differs.
        """
        self.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
