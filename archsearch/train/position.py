"""How far a training is, beside its tensors: what trainer.json holds."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from pydantic import TypeAdapter, ValidationError

from archsearch.checkpoint import TRAINER, WAY_OUT, Checkpoint
from archsearch.errors import CheckpointError
from archsearch.train.events import HeldOut
from archsearch.train.settings import TrainPlan


@dataclass(kw_only=True)
class Position:
    """
    Attributes:
        evaluations: (step, result) of every evaluation so far.
        seconds: of training so far, all sessions added up.
        recent_losses: of the last updates, which a spike is told from.
        metrics_bytes: length of metrics.jsonl; what was written after the checkpoint is cut off on a resume.
        processes: that trained together when this was saved.
        finished: final evaluation and samples are done too.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    evaluations: list[tuple[int, HeldOut]] = field(default_factory=list)
    seconds: float = 0.0
    recent_losses: list[float] = field(default_factory=list)
    metrics_bytes: int = 0
    processes: int = 1
    finished: bool = False

    @property
    def evaluated_step(self) -> int:
        """Step of the last evaluation, -1 before the first."""
        return self.evaluations[-1][0] if self.evaluations else -1


def write_position(plan: TrainPlan, position: Position) -> str:
    return json.dumps({"plan": plan.to_dict(), "position": asdict(position)}, indent=1, allow_nan=False) + "\n"


def read_position(checkpoint: Checkpoint) -> tuple[TrainPlan, Position]:
    """
    Raises:
        CheckpointError: the file is damaged or of another version.
    """
    path = checkpoint.file(TRAINER)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        position = TypeAdapter(Position).validate_python(data["position"])
        return TrainPlan.from_dict(data["plan"], f"{path}: plan"), position
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(f"{path}: position.{'.'.join(map(str, first['loc']))}: {first['msg']}; {WAY_OUT}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error!r}; {WAY_OUT}") from error
