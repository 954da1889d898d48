"""What a front end shows: live runs and curves, rollouts, TensorDict trees, quizzes.

Where there is none, pictures and text stand in. Nothing is imported before it is used: ``rlbook.widgets.run`` works without
ipywidgets, anywidget and matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlbook.widgets.dashboard import Dashboard, Slider
    from rlbook.widgets.live import LivePlot
    from rlbook.widgets.quiz import Quiz
    from rlbook.widgets.replay import ReplayViewer
    from rlbook.widgets.run import Run
    from rlbook.widgets.tree import show
    from rlbook.widgets.viewer import EnvViewer, record

_HOME = {
    "Run": "run",
    "LivePlot": "live",
    "Dashboard": "dashboard",
    "Slider": "dashboard",
    "EnvViewer": "viewer",
    "record": "viewer",
    "ReplayViewer": "replay",
    "show": "tree",
    "Quiz": "quiz",
}

__all__ = ["Dashboard", "EnvViewer", "LivePlot", "Quiz", "ReplayViewer", "Run", "Slider", "record", "show"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
