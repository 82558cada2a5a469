"""The language model of a spec, in torch: embedding, layers, final norm, head. Readable first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.cross_entropy import linear_cross_entropy, token_losses
from archsearch.spec import ArchSpec
from operators.block import Block, State
from operators.documents import Documents
from operators.norm import RMSNorm

INIT_STD = 0.02


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
        self._compiled: list[Callable[..., tuple[Tensor, State]]] = []

    def compile_layers(self) -> None:
        """Have torch.compile make kernels of the layers, for training only: other lengths would each be compiled anew."""
        self._compiled = [torch.compile(layer, dynamic=False) for layer in self.layers]

    def reset_parameters(self) -> None:
        """GPT-2's initialisation: N(0, 0.02) for embedding and matrices (transformers' default for LFM2 and Llama, too).

        Those that write to the residual stream (`out_proj` or `o_proj` of an operator, `w2` of the FFN) get 1/sqrt(2 layers) of that,
        so that the stream's variance does not grow with depth. Norms start at one and biases at zero. Convolutions keep
        torch's default, for their fan-in is the kernel size and 0.02 would all but silence them.
        """
        residual_std = INIT_STD / math.sqrt(2 * len(self.layers))
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                writes_residual = name.endswith((".out_proj.weight", ".o_proj.weight", ".ffn.w2.weight"))
                nn.init.normal_(parameter, std=residual_std if writes_residual else INIT_STD)
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)

    @property
    def knows_documents(self) -> bool:
        """Whether every operator can keep packed documents apart; ours do."""
        return all(layer.knows_documents for layer in self.layers)

    @property
    def head_weight_VD(self) -> Tensor:
        return self.embed_tokens.weight if self.spec.tie_embeddings else self.lm_head.weight

    def hidden(self, ids_BT: Tensor, state: list[State] | None = None, documents: Documents | None = None) -> tuple[Tensor, list[State]]:
        """The normalised output of the last layer, [B, T, D], and the new state of every layer.

        With `documents`, a packed sequence from its start, in which no document sees another; its state leads nowhere.
        """
        x_BTD = self.embed_tokens(ids_BT)
        states = []
        layers: Iterable[Callable[..., tuple[Tensor, State]]] = self._compiled if self._compiled and self.training else self.layers
        for i, layer in enumerate(layers):
            x_BTD, new = layer(x_BTD, None if state is None else state[i], documents)
            states.append(new)
        return self.embedding_norm(x_BTD), states

    def forward(self, ids_BT: Tensor, state: list[State] | None = None, documents: Documents | None = None) -> tuple[Tensor, list[State]]:
        """Logits [B, T, V] and the new state; `documents` as in `hidden`."""
        x_BTD, state = self.hidden(ids_BT, state, documents)
        return F.linear(x_BTD, self.head_weight_VD), state

    def loss(self, ids_BT: Tensor, targets_BT: Tensor, documents: Documents | None = None, *, ignore_index: int = -100) -> Tensor:
        """Mean cross-entropy in nats a token over the targets that are not `ignore_index`; `documents` as in `hidden`.

        The logits of all tokens never exist at once (`archsearch.cross_entropy`).
        """
        x_BTD, _ = self.hidden(ids_BT, documents=documents)
        return linear_cross_entropy(x_BTD.flatten(0, 1), self.head_weight_VD, targets_BT.flatten(), ignore_index)

    def token_losses(self, ids_BT: Tensor, targets_BT: Tensor, documents: Documents | None = None) -> Tensor:
        """The cross-entropy of every target in nats, [B, T]; `documents` as in `hidden`."""
        x_BTD, _ = self.hidden(ids_BT, documents=documents)
        return token_losses(x_BTD.flatten(0, 1), self.head_weight_VD, targets_BT.flatten()).view_as(targets_BT)

    @torch.inference_mode()
    def stream(
        self,
        ids_BT: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """Yield one column of new token ids [B] after the other.

        Args:
            ids_BT: the prompt, at least one token.
            temperature: divides the logits; 0 is greedy.
            top_k: sample among this many most likely tokens only.
            seed: same seed, same text; `generator` does the same for somebody who goes on drawing from it.

        Raises:
            ValueError: an empty prompt.
        """
        if not ids_BT.shape[1]:
            raise ValueError("the prompt is empty; give at least one token to go on from")
        if seed is not None:
            generator = torch.Generator(ids_BT.device).manual_seed(seed)
        state = None
        for _ in range(max_new_tokens):
            x_BTD, state = self.hidden(ids_BT, state)
            logits_BV = F.linear(x_BTD[:, -1], self.head_weight_VD)
            ids_BT = _choose(logits_BV, temperature, top_k, generator)
            yield ids_BT[:, 0]

    def generate(
        self,
        ids_BT: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The prompt and `max_new_tokens` more, [B, T + new]; everything else as in `stream`."""
        new = self.stream(ids_BT, max_new_tokens, temperature=temperature, top_k=top_k, seed=seed, generator=generator)
        return torch.cat([ids_BT, *(column_B[:, None] for column_B in new)], dim=1)

    def numpy_weights(self) -> dict[str, np.ndarray]:
        """All parameters as float32 arrays, under the names that `operators.graph` takes.

        Those that are float32 on the CPU already are shared with the model, not copied.
        """
        return {name: parameter.detach().float().cpu().numpy() for name, parameter in self.named_parameters()}

    def load_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Set all parameters from arrays of the same names and shapes.

        Raises:
            RuntimeError: a name is missing or unknown, or a shape differs.
        """
        self.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})


def _choose(logits_BV: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """The next token ids, [B, 1]."""
    if temperature == 0:
        return logits_BV.argmax(-1, keepdim=True)
    if top_k is not None:
        least_B1 = logits_BV.topk(min(top_k, logits_BV.shape[-1])).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, float("-inf"))
    return torch.multinomial((logits_BV.float() / temperature).softmax(-1), 1, generator=generator)
