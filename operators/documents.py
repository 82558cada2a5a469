"""Several documents in one training sequence, none of which sees another.

Legend: B sequences, T tokens of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """Where documents start in a batch of packed sequences; whatever stands first in a sequence starts one.

    A module that takes `documents` treats every document as if it stood alone: attention is masked, convolutions and recurrent
    states start anew, and so do rotary positions. Scores depend on differences of positions only, so that going on counting would
    do as well in exact arithmetic; starting anew, a document's numbers are those that it has at inference, rounding included.

    Attributes:
        starts_BT: bool, true where a document's first token stands.
    """

    starts_BT: Tensor

    @classmethod
    def after(cls, ids_BT: Tensor, separator: int) -> Documents:
        """Documents that start with the token `separator`: as the end of one document it is a target, as an input it opens the next."""
        return cls(ids_BT == separator)

    @cached_property
    def index_BT(self) -> Tensor:
        """The number of each token's document within its sequence."""
        return self.starts_BT.cumsum(1)

    @cached_property
    def position_BT(self) -> Tensor:
        """Position of each token within its document, from 0."""
        at_T = torch.arange(self.starts_BT.shape[1], device=self.starts_BT.device)
        return at_T - torch.where(self.starts_BT, at_T, 0).cummax(1).values

    @cached_property
    def earliest_T(self) -> list[int]:
        """For each token, the first place in the sequence that any document of the batch still sees from there."""
        at_T = torch.arange(self.starts_BT.shape[1], device=self.starts_BT.device)
        earliest: list[int] = (at_T - self.position_BT).amin(0).tolist()
        return earliest
