"""What T² says of one spec, with the user's constants."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from archsearch.overtraining.quantities import format_count
from archsearch.overtraining.sampling import Sampled, T2File, accuracy, best_accuracy, best_loss, samples, sampling_loss

STUDIED = (5e6, 901e6)
"""Parameters of the paper's 106 checkpoints."""


@dataclass(frozen=True, kw_only=True, slots=True)
class T2Answer:
    """The spec, and the best size for the same training compute and the same cost of a query, in each form that has constants.

    Attributes:
        loss, best_loss: the loss form, nats; None without `[sampling]`.
        accuracy: pass@k; best_accuracy: None where a and b are those of this model alone.
    """

    constants: T2File
    query_flops: float
    parameters: float
    tokens: float
    samples: float
    loss: float | None
    best_loss: Sampled | None
    accuracy: float | None
    best_accuracy: Sampled | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        def point(found: Sampled | None) -> dict[str, float] | None:
            return None if found is None else asdict(found) | {"tokens_per_parameter": found.tokens / found.parameters}

        return {
            "name": self.constants.name,
            "source": self.constants.source,
            "constants": self.constants.model_dump(),
            "query_flops": self.query_flops,
            "parameters": self.parameters,
            "tokens": self.tokens,
            "samples": self.samples,
            "loss": self.loss,
            "best_loss": point(self.best_loss),
            "accuracy": self.accuracy,
            "best_accuracy": point(self.best_accuracy),
            "warnings": list(self.warnings),
        }


def answer_t2(constants: T2File, parameters: float, tokens: float, query_flops: float) -> T2Answer:
    """Both forms, as far as there are constants.

    Raises:
        InputError: a query may not even cost one sample.
    """
    k = samples(constants, parameters, query_flops)
    compute = 6 * parameters * tokens
    by_loss = constants.sampling is not None
    by_accuracy = constants.accuracy is not None
    low, high = STUDIED
    warnings = []
    if not low <= parameters <= high:
        studied = f"{format_count(low)} to {format_count(high)}"
        warnings.append(f"{format_count(parameters)} parameters: the paper studied {studied}; your constants may reach farther")
    return T2Answer(
        constants=constants,
        query_flops=query_flops,
        parameters=parameters,
        tokens=tokens,
        samples=k,
        loss=sampling_loss(constants, parameters, tokens, k) if by_loss else None,
        best_loss=best_loss(constants, compute, query_flops) if by_loss else None,
        accuracy=accuracy(constants, parameters, tokens, k) if by_accuracy else None,
        best_accuracy=best_accuracy(constants, compute, query_flops) if by_accuracy else None,
        warnings=tuple(warnings),
    )
