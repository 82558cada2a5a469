"""One small training as data: what travels to the process, or the machine, that does it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from archsearch.quality.tasks import QualityResult, QualitySettings, Task, settings_key
from archsearch.spec import ArchSpec


@dataclass(frozen=True, kw_only=True)
class Training:
    """A layout, a task, its length and a seed: together they determine the result.

    Attributes:
        until: a step to stop at, before the last of `settings`; None for all of them.
        key: identity of the result; layouts with the same narrow copy share it.

    Raises:
        SpecError: the layout cannot be narrowed.
    """

    spec: ArchSpec
    task: Task
    settings: QualitySettings
    seed: int
    until: int | None = None
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", settings_key(self.spec, self.task, self.settings, self.seed, self.until))

    @property
    def whole(self) -> Training:
        """The same to its last step."""
        return self if self.until is None else replace(self, until=None)

    def first_rung(self) -> Training:
        """The same up to where successive halving looks first; the whole of it, where that is at its end."""
        return replace(self, until=self.settings.first_rung(self.task))

    def run(self, state: Path | None = None) -> QualityResult:
        """Train; `state` is a file that an earlier part of the same training left, or where this one leaves what it has learned."""
        from archsearch.quality.micro import Stop, evaluate

        return evaluate(self.spec, self.task, self.settings, self.seed, Stop(until=self.until, state=state))

    def to_dict(self) -> dict[str, Any]:
        data = {"key": self.key, "spec": self.spec.to_json(), "task": self.task, "settings": asdict(self.settings), "seed": self.seed}
        return data | ({} if self.until is None else {"until": self.until})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Training:
        spec = ArchSpec.from_dict(json.loads(data["spec"]))
        return cls(spec=spec, task=data["task"], settings=QualitySettings(**data["settings"]), seed=data["seed"], until=data.get("until"))
