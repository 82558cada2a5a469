"""What a search leaves in the run directory: the chosen spec and the front, each with where it came from."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from archsearch import __version__
from archsearch.errors import CheckpointError, RunError
from archsearch.search.result import FrontPoint, SearchResult
from archsearch.spec import ArchSpec

if TYPE_CHECKING:
    from archsearch.search.study import Searcher


def place_of_choice(run_dir: Path, spec: ArchSpec) -> Path:
    """RUN/spec.toml; RUN/choice.toml where RUN/checkpoint holds another layout: a checkpoint and its spec stay together."""
    from archsearch.checkpoint import Checkpoint, is_checkpoint

    out = run_dir / "checkpoint"
    if not is_checkpoint(out):
        return run_dir / "spec.toml"
    try:
        same = Checkpoint.open(out).spec.spec_id == spec.spec_id
    except CheckpointError:  # damaged: whoever mends it needs its spec
        same = False
    return run_dir / ("spec.toml" if same else "choice.toml")


def write_results(result: SearchResult, searcher: Searcher, *, chosen: Path | None = None) -> Path:
    """Write the chosen spec to `chosen` (default: RUN/spec.toml) and the front to RUN/front/, each with where it came from.

    Raises:
        RunError: nothing was found, or the place cannot be written.
    """
    if result.best is None:
        raise RunError("no layout was chosen; there is nothing to write")

    def with_origin(point: FrontPoint, name: str) -> ArchSpec:
        origin = {
            "study": searcher.study_name,
            "trial": point.trial,
            "device": searcher.table.device,
            "date": datetime.now(UTC).date().isoformat(),
            "archsearch": __version__,
            "seed": searcher.seed,
            "budgets": [str(budget) for budget in searcher.budgets],
            "evidence": point.evidence(),
            "predicted": {name: round(value, 6) for name, value in point.costs.values.items()},
            "quality": point.quality.to_dict(),
        }
        return replace(point.spec, name=name, origin=origin)

    directory = searcher.run_dir / "front"
    for point in result.front:
        with_origin(point, f"{searcher.space.name}-{point.spec.spec_id}").write(directory / f"{point.spec.spec_id}.toml")
    for stale in set(directory.glob("*.toml")) - {directory / f"{point.spec.spec_id}.toml" for point in result.front}:
        stale.unlink()
    chosen = chosen or searcher.run_dir / "spec.toml"
    with_origin(result.best, searcher.space.name).write(chosen)
    return chosen
