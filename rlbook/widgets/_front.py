"""Where are we running, and how does something get on the screen there: the part that all widgets share."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, TypeAlias
from uuid import uuid4

from rlbook.errors import ConfigError, MissingExtraError, explain

STATIC = Path(__file__).parent / "static"
MODES = ("thread", "cell")
Bundle: TypeAlias = tuple[dict[str, Any], dict[str, Any]]
"""What a cell shows: the data of each MIME type, and their metadata."""

VIEW_MIME = "application/vnd.jupyter.widget-view+json"


def in_kernel() -> bool:
    """Are we inside a Jupyter kernel (not a script, not IPython's terminal)?"""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


def automated() -> bool:
    """Does a machine execute this notebook (CI, pytest, a publishing script), so that nobody can press a button?"""
    forced = os.environ.get("RLBOOK_RUN_MODE")
    if forced is not None and forced not in MODES:
        raise ConfigError(explain("RLBOOK_RUN_MODE", "'thread' or 'cell'", repr(forced), "Correct or unset this variable"))
    return forced == "cell" if forced else bool(os.environ.get("CI") or os.environ.get("PYTEST_VERSION"))


def default_mode() -> str:
    """Return ``"thread"`` where a front end can talk to a busy run (Jupyter, Binder, VS Code), else ``"cell"``."""
    threads_draw = in_kernel() and "google.colab" not in sys.modules and sys.platform != "emscripten"
    return "thread" if threads_draw and not automated() else "cell"


def has_front_end() -> bool:
    """Can a widget be drawn and used here?"""
    return in_kernel() and not automated() and find_spec("anywidget") is not None


@cache
def static(*names: str) -> str:
    """Return files of the package's ``static`` folder as one text."""
    return "\n".join((STATIC / name).read_text(encoding="utf-8") for name in names)


@cache
def _widget_class(module: str) -> type:
    try:
        import anywidget
        import traitlets
    except ImportError as error:
        raise MissingExtraError(error.name or "anywidget", "lab", "A live widget") from error
    body = {"_esm": static(f"{module}.js"), "_css": static("theme.css", "style.css"), "config": traitlets.Dict().tag(sync=True)}
    return type(f"{module.capitalize()}Widget", (anywidget.AnyWidget,), body)


class View:
    """Something that is live in a notebook, a picture in a saved one and text elsewhere.

    A subclass names its JavaScript ``module`` and overrides three methods: ``_config`` (what the page needs to begin), ``_still``
    (the MIME bundle without a front end) and ``_hear`` (a message from the page). All displays of one view are updated together.
    """

    module: ClassVar[str]

    def __init__(self) -> None:
        self._widget: Any = None
        self._display_id = uuid4().hex
        self._shown = False

    def _config(self) -> dict[str, Any]:
        return {}

    def _still(self) -> Bundle:
        return {"text/plain": repr(self)}, {}

    def _hear(self, message: dict[str, Any]) -> None:
        """Take a message from the page."""

    def _connect(self) -> Any:
        """Return the widget, made on first use."""
        if self._widget is None:
            self._widget = _widget_class(self.module)(config=self._config())
            self._widget.on_msg(lambda _, message, __: self._hear(message))
        return self._widget

    def _send(self, message: dict[str, Any], buffers: Sequence[bytes] = ()) -> None:
        if self._widget is not None:
            self._widget.send(message, list(buffers))

    def show(self) -> None:
        """Display the view in the current cell; later changes reach it there. Outside a notebook nothing is drawn."""
        if in_kernel():
            self._publish(update=False)
        self._shown = True

    def refresh(self) -> None:
        """Renew the picture in every cell that shows the view, so that the notebook is saved with it."""
        if in_kernel() and self._shown:
            self._publish(update=True)

    def _publish(self, update: bool) -> None:
        from IPython.display import publish_display_data

        data, metadata = self._repr_mimebundle_()
        publish_display_data(data, metadata, transient={"display_id": self._display_id}, update=update)

    def _ipython_display_(self) -> None:
        if in_kernel():
            self.show()
        else:
            sys.stdout.write(f"{self!r}\n")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Bundle:
        data, metadata = self._still()
        if has_front_end():
            data = {VIEW_MIME: {"version_major": 2, "version_minor": 0, "model_id": self._connect().model_id}} | data
        return data, metadata
