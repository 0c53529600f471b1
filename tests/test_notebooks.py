"""The notebooks run top to bottom in a fresh kernel, and what is kept of their outputs is whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LOCAL_PATHS = ("/home/", "/root/", "/tmp/", "/work/", "site-packages")
CELL_SECONDS = 600

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@every_notebook
def test_the_kept_outputs_are_of_one_run_from_the_top(path: Path) -> None:
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [place for place in LOCAL_PATHS if any(place in str(output) for output in outputs)]


@every_notebook
def test_one_line_installs_what_it_needs(path: Path) -> None:
    installs = [
        line for cell in code_cells(path) for line in cell.source.splitlines() if "pip install" in line
    ]
    assert len(installs) == 1
    assert 'pip install "fhe-llm[notebooks]"' in installs[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@every_notebook
def test_it_runs_from_top_to_bottom(path: Path) -> None:
    runner = NotebookClient(
        nbformat.read(path, as_version=4),
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
    )
    runner.execute(env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'server'}"})
