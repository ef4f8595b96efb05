"""The notebook runs from its first cell to its last, in a kernel of its own."""

from __future__ import annotations

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

from tests.conftest import REPOSITORY

NOTEBOOK = REPOSITORY / "examples" / "notebook.ipynb"


def text_of(cell: nbformat.NotebookNode) -> str:
    """What a cell has printed or shown."""
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell["outputs"])


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [text_of(cell) for cell in notebook.cells if cell["cell_type"] == "code"]
    _, _, run, table, again, scores, clips, report = shown
    assert "LALM vocalsound: training from scratch" in run
    assert "IProgress" not in run
    names = [re.findall(r"results: .*/(SpectrumEncoder-mini-\w+)\n", text)[0] for text in (run, again)]
    assert names[0] != names[1]
    assert all(name in scores for name in names)
    assert "vocalsound" in table
    assert "vocalsound_test_" in clips
    assert "report.html" in report
    assert (tmp_path / "runs" / names[0] / "report.html").is_file()


def test_it_is_kept_without_outputs() -> None:
    """They would show one machine's times, and change with every execution."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
