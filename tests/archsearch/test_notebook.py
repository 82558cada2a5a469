"""The notebooks run from their first cell to their last, in a kernel of their own, and show what their text says."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import nbformat
import pytest
from command_line import ENVIRONMENT

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
NOTEBOOK = NOTEBOOKS / "01_profile_search_read.ipynb"
FINDINGS = NOTEBOOKS / "02_which_layouts.ipynb"


def execute(path: Path, folder: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        with warnings.catch_warnings():
            # Jupyter's own: where it looks for its files, and event loops made while it is imported.
            warnings.filterwarnings("ignore", module=r"(jupyter_client|jupyter_core|nbclient|zmq)(\.|$)")
            from nbclient import NotebookClient

            notebook = nbformat.read(path, as_version=4)
            return NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return execute(NOTEBOOK, tmp_path_factory.mktemp("notebook"))


def text_of(executed: Any, start: str) -> str:
    """What the cell that begins so printed or showed as text."""
    (cell,) = [cell for cell in executed.cells if cell.cell_type == "code" and start in cell.source]
    shown = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "".join(shown)


@pytest.mark.slow
def test_the_notebook_runs(executed: Any) -> None:
    assert "3 blocks to measure, 81 layouts" in text_of(executed, "Space.from_dict")
    profiled = text_of(executed, "import profile")
    assert "failed" not in profiled
    counted = re.search(r"(\d+) of (\d+) steps done", profiled)
    assert counted is not None
    assert counted[1] == counted[2]
    assert "conv3/256" in text_of(executed, "round_times")
    assert "measured_ms" in text_of(executed, "BenchResult")
    assert "chosen: " in text_of(executed, "make_searcher(space, run, table, [budget]")
    assert "best_reachable" in text_of(executed, "1e-6")
    errors = [output for cell in executed.cells for output in cell.get("outputs", []) if output.output_type == "error"]
    assert errors == []


@pytest.mark.slow
def test_the_figure_holds_every_block(executed: Any) -> None:
    (cell,) = [cell for cell in executed.cells if "plotly" in cell.source]
    figure = next(output.data["application/vnd.plotly.v1+json"] for output in cell.outputs if "data" in output)
    names = {trace["name"] for trace in figure["data"] if trace.get("mode") == "lines"}
    assert names >= {"conv3/256", "swa128/256", "gqa2/256"}


@pytest.mark.slow
def test_the_findings_are_what_the_commands_have_written() -> None:
    """Read from docs/findings as it is committed; every mean on the page is that of its seeds."""
    shown = execute(FINDINGS, NOTEBOOKS)
    errors = [output for cell in shown.cells for output in cell.get("outputs", []) if output.output_type == "error"]
    assert errors == []
    operators = json.loads((NOTEBOOKS.parent / "docs" / "findings" / "operators.json").read_text())
    table = text_of(shown, "text_table(operators)")
    for row in operators["tasks"]["text"]:
        assert len(row["values"]) == len(operators["seeds"])
        assert f"{sum(row['values']) / len(row['values']):.3f}" in table
    assert "95 %" not in table  # intervals are numbers
    assert re.search(r"[+-]\d\.\d{3} \([+-]\d\.\d{3} to [+-]\d\.\d{3}\)", table)
    assert re.search(r"\d of \d seeds", text_of(shown, 'around = read("around")'))


@pytest.mark.parametrize("path", [NOTEBOOK, FINDINGS], ids=lambda path: path.stem)
def test_notebooks_are_stored_without_results(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
