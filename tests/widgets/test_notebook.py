"""What a notebook is saved with when a machine has run it: the final picture, and no live widget that could not reopen."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from rlbook.widgets._front import VIEW_MIME

ROOT = Path(__file__).parents[2]
CELLS = (
    """
import time
from rlbook.widgets import Dashboard, LivePlot, Quiz, Run

def step(i):
    time.sleep(0.001)
    return {"loss": 1 / (i + 1)}

run = Run(step, 30, board=Dashboard(["loss"], title="A run"))
run.start()
""",
    "await run",
    """
plot = LivePlot(["loss"])
for i in range(10):
    plot.add(i, {"loss": i})
plot
""",
    'Quiz("Right?", ["yes", "no"], answer=0)',
)


@pytest.fixture(params=["cell", "thread"])
def outputs(request, tmp_path) -> list[list[nbformat.NotebookNode]]:
    """Execute the cells as the publishing script does, in either mode; return the outputs of each."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in CELLS])
    client = NotebookClient(notebook, timeout=60, kernel_name="python3", extra_arguments=["--log-level=ERROR"])
    client.execute(env={**os.environ, "RLBOOK_RUN_MODE": request.param, "PYTHONPATH": str(ROOT)})
    assert not [output for cell in notebook.cells for output in cell.outputs if output.output_type == "error"]
    outputs = [cell.outputs for cell in notebook.cells]
    views = [output for cell in outputs for output in cell if VIEW_MIME in output.get("data", {})]
    assert len(views) == (0 if request.param == "cell" else 3)
    return outputs


def test_saves_final_pictures(outputs):
    (board, *_), (waited,), (plot,), (quiz,) = outputs
    assert board.data["text/plain"].startswith("Dashboard(done · 30 of 30 steps, loss ")
    for output in (board, plot):
        assert base64.b64decode(output.data["image/png"])[:4] == b"\x89PNG"
        assert output.metadata["image/png"]["width"] == 760
    assert waited.data["text/plain"] == "Run('run', done, 30 of 30 steps)"
    assert "<summary>Answer</summary>" in quiz.data["text/html"]
