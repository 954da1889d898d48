"""The widgets cost nothing until they are used, and Run needs no notebook packages at all."""

from __future__ import annotations

import subprocess
import sys

import pytest

import rlbook.widgets

WITHOUT = """
import sys
for name in ("ipywidgets", "anywidget", "matplotlib", "IPython", "PIL"):
    sys.modules[name] = None
from rlbook.widgets import Dashboard, Run
board = Dashboard(["loss"], target=1)
run = Run(lambda i: {"loss": i}, 3, board=board, mode="thread").start().wait()
assert run.state == "done", run.state
assert board._repr_mimebundle_() == ({"text/plain": repr(board)}, {})
assert "torch" not in sys.modules
"""
DRAWS = """
import sys
from rlbook.widgets import LivePlot
plot = LivePlot()
plot.add(0, {"loss": 1.0})
plot.add(1, {"loss": 2.0})
assert "matplotlib" not in sys.modules
assert plot._still()[0]["image/png"][:4] == b"\\x89PNG"
assert "matplotlib.pyplot" not in sys.modules
"""


@pytest.mark.parametrize("code", [WITHOUT, DRAWS], ids=["without packages", "without pyplot"])
def test_in_a_fresh_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_export_exists():
    for name in rlbook.widgets.__all__:
        assert getattr(rlbook.widgets, name) is not None
    assert dir(rlbook.widgets) == rlbook.widgets.__all__
    with pytest.raises(AttributeError, match="has no attribute 'Missing'"):
        rlbook.widgets.Missing  # noqa: B018
