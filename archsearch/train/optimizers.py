"""AdamW for everything, or Muon for the hidden matrices and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from archsearch.train.muon import MuonFp32
from archsearch.train.settings import TrainPlan

NOT_HIDDEN = ("embed_tokens.weight", "lm_head.weight")


class UpdateRule:
    """One or two of torch's optimizers as if they were one; their state goes by the names of the parameters."""

    def __init__(self, model: nn.Module, plan: TrainPlan) -> None:
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        hidden = [p for p, name in self._names.items() if p.ndim == 2 and name not in NOT_HIDDEN]
        by_muon = set(hidden) if plan.optimizer == "muon" else set()
        self.parts: list[torch.optim.Optimizer] = [_adamw([p for p in self._names if p not in by_muon], plan)]
        if by_muon:
            self.parts.append(_muon(hidden, plan))

    @property
    def param_groups(self) -> list[dict[str, object]]:
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def step(self, learning_rate: float) -> None:
        """One update of every parameter."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()

    def tensors(self) -> dict[str, Tensor]:
        """The moments, as "exp_avg/layers.0.ffn.w1.weight"; none before the first update."""
        return {
            f"{moment}/{self._names[parameter]}": state[moment].contiguous()
            for part in self.parts
            for parameter, state in part.state.items()
            for moment in _moments(part)
        }

    def keys(self) -> dict[str, Tensor]:
        """The names that `tensors` uses, each with its parameter."""
        return {
            f"{moment}/{self._names[parameter]}": parameter
            for part in self.parts
            for group in part.param_groups
            for parameter in group["params"]
            for moment in _moments(part)
        }

    def load(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Take up the moments after `step` updates.

        Raises:
            KeyError: a moment is missing, or has another shape than its parameter; the key is its name.
        """
        for part in self.parts:
            for parameter in (p for group in part.param_groups for p in group["params"]):
                state = {"step": torch.tensor(float(step), device=parameter.device)} if isinstance(part, torch.optim.AdamW) else {}
                for moment in _moments(part):
                    key = f"{moment}/{self._names[parameter]}"
                    if key not in tensors or tensors[key].shape != parameter.shape:
                        raise KeyError(key)
                    state[moment] = tensors[key].to(parameter.device)
                part.state[parameter] = state


def _moments(part: torch.optim.Optimizer) -> tuple[str, ...]:
    """What a rule remembers of a parameter, beside the number of updates."""
    return ("exp_avg", "exp_avg_sq") if isinstance(part, torch.optim.AdamW) else ("momentum_buffer",)


def _adamw(parameters: list[Tensor], plan: TrainPlan) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101); matrices decay, norms, biases and depthwise convolutions (a gain a channel and tap) do not."""
    groups = [
        {"params": [p for p in parameters if p.ndim == 2], "weight_decay": plan.weight_decay},
        {"params": [p for p in parameters if p.ndim != 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(plan.beta1, plan.beta2), eps=plan.epsilon, fused=True)


def _muon(matrices: list[Tensor], plan: TrainPlan) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024) with the scaling of arXiv 2502.16982, which gives its updates the size of AdamW's: so one learning
    rate and one weight decay serve both."""
    if plan.dtype == "bf16" and hasattr(torch.optim, "Muon"):  # since torch 2.9
        torchs = torch.optim.Muon
        return torchs(matrices, lr=plan.learning_rate, weight_decay=plan.weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    return MuonFp32(matrices, lr=plan.learning_rate, weight_decay=plan.weight_decay, momentum=0.95)
