"""One small training as data: what travels to the process, or the machine, that does it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from archsearch.quality.micro import QualityResult, QualitySettings, Task, evaluate, settings_key
from archsearch.spec import ArchSpec


@dataclass(frozen=True, kw_only=True)
class Training:
    """A layout, a task, its length and a seed: together they determine the result.

    Attributes:
        key: identity of the result; layouts with the same narrow copy share it.

    Raises:
        SpecError: the layout cannot be narrowed.
    """

    spec: ArchSpec
    task: Task
    settings: QualitySettings
    seed: int
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", settings_key(self.spec, self.task, self.settings, self.seed))

    def run(self) -> QualityResult:
        return evaluate(self.spec, self.task, self.settings, self.seed)

    def to_dict(self) -> dict[str, Any]:
        return {"key": self.key, "spec": self.spec.to_json(), "task": self.task, "settings": asdict(self.settings), "seed": self.seed}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Training:
        spec = ArchSpec.from_dict(json.loads(data["spec"]))
        return cls(spec=spec, task=data["task"], settings=QualitySettings(**data["settings"]), seed=data["seed"])
