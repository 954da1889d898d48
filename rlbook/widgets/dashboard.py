"""The board of a run: its curves, its buttons, its progress, and sliders for what may change as it goes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, sqrt
from types import MappingProxyType
from typing import Any

from rlbook.errors import ConfigError, explain
from rlbook.widgets._front import in_kernel
from rlbook.widgets._series import short
from rlbook.widgets.live import Curves, LivePlot
from rlbook.widgets.run import Run

TEXT_S = 0.2  # refresh of the progress line in a terminal


@dataclass(frozen=True)
class Slider:
    """A number to turn while the run goes on, from ``low`` to ``high`` on a ``"linear"`` or a ``"log"`` scale."""

    low: float
    high: float
    scale: str = "linear"
    value: float | None = None

    def __post_init__(self) -> None:
        if self.scale not in ("linear", "log"):
            fix = "Pass for example (1e-5, 1e-2, 'log')"
            raise ConfigError(explain("a slider's scale", "'linear' or 'log'", repr(self.scale), fix))
        if not self.low < self.high or (self.scale == "log" and self.low <= 0):
            fix = "Pass (low, high) with low < high; a log scale needs low > 0"
            raise ConfigError(explain("a slider", "a range", f"{self.low} to {self.high}", fix))
        if not self.low <= self.start <= self.high:
            got = f"{self.value} outside {self.low} to {self.high}"
            raise ConfigError(explain("a slider's start", "inside its range", got, "Change the start or the range"))

    @classmethod
    def parse(cls, what: Slider | Sequence[Any]) -> Slider:
        """Read ``(low, high)``, followed in any order by ``"log"`` and by the value to start from."""
        if isinstance(what, Slider):
            return what
        try:
            low, high, *rest = what
            scale = next((item for item in rest if isinstance(item, str)), "linear")
            value = next((float(item) for item in rest if not isinstance(item, str)), None)
            low, high = float(low), float(high)
        except (TypeError, ValueError) as error:
            fix = 'Pass for example (1e-4, 1e-2, "log")'
            raise ConfigError(explain("A slider", '(low, high), then "log" and a start if wanted', repr(what), fix)) from error
        return cls(low, high, scale, value)

    @property
    def start(self) -> float:
        """Where it stands at first: ``value``, or the middle of its scale."""
        if self.value is not None:
            return self.value
        return sqrt(self.low * self.high) if self.scale == "log" else (self.low + self.high) / 2

    def clamp(self, value: float) -> float:
        """Return the nearest value inside the range."""
        return min(max(float(value), self.low), self.high)


class Dashboard(LivePlot):
    """A ``LivePlot`` with the buttons of its run, its progress and its pace, and sliders for what may change as it goes.

    Args:
        curves, title, target, smoothing, x, height: as in ``LivePlot``.
        total: where ``x`` ends, for the progress bar; None takes the run's number of steps.
        sliders: ``{"lr": (1e-5, 1e-2, "log", 3e-4), "clip_eps": (0.05, 0.4)}``: low, high, and if wanted scale and start.
        on_param: called with the name and the value when a slider moves.

    Attributes:
        params: the values of the sliders, read-only, safe to read from any thread: ``board.params["lr"]``.

    Example:
        >>> board = Dashboard(["loss"], sliders={"lr": (1e-4, 1e-1, "log", 1e-2)})
        >>> run = Run(lambda i: {"loss": board.params["lr"] / (i + 1)}, n=50, board=board).start().wait()
        >>> run.iteration
        50
    """

    def __init__(
        self,
        curves: Curves | None = None,
        *,
        title: str = "",
        target: float | Mapping[str, float] | None = None,
        smoothing: float = 0.9,
        x: str | None = None,
        total: float | None = None,
        sliders: Mapping[str, Slider | Sequence[Any]] | None = None,
        on_param: Callable[[str, float], Any] | None = None,
        height: int = 170,
    ):
        super().__init__(curves, title=title, target=target, smoothing=smoothing, x=x, height=height)
        self.total, self.on_param = total, on_param
        self.run: Run | None = None
        self._sliders = {name: Slider.parse(what) for name, what in (sliders or {}).items()}
        self._params = {name: slider.start for name, slider in self._sliders.items()}
        self.params = MappingProxyType(self._params)
        self._ack = 0
        self._text_due = 0.0

    def set_param(self, name: str, value: float) -> None:
        """Set a slider from Python; the value is clamped to its range.

        Raises:
            ConfigError: there is no such slider.
        """
        if name not in self._sliders:
            names = ", ".join(self._params) or "none"
            raise ConfigError(explain("the slider", f"one of: {names}", repr(name), "Name it in sliders={...}"))
        self._params[name] = self._sliders[name].clamp(value)
        if self.on_param is not None:
            self.on_param(name, self._params[name])
        self.sync()

    def attach(self, run: Run) -> None:
        """Become the board of ``run``: the buttons steer it. A run that had this board before is stopped."""
        if self.run is not None:
            self.run.stop()
        super().attach(run)
        self.run = run
        self.sync()

    def finish(self) -> None:
        """As in ``LivePlot``; in a terminal, end the line of text."""
        super().finish()
        self._write_line("\n")

    def flush(self) -> None:
        """Send what the page does not have yet; in a terminal, renew the line of text."""
        super().flush()
        if self._due > self._text_due:
            self._text_due = self._due + TEXT_S
            self._write_line()

    def _write_line(self, end: str = "") -> None:
        in_terminal = not in_kernel() and sys.stderr.isatty()
        if in_terminal and self.run is not None and self.run.mode == "cell":  # never from another thread
            sys.stderr.write(f"\r{self.progress_line()}\x1b[K{end}")
            sys.stderr.flush()

    def progress(self) -> tuple[float, float]:
        """Return how far the run is and where it ends (infinity when nobody knows), in units of ``x``."""
        if self.run is None or self.total is not None or (self.run.n is None and self.x is not None):
            return self._last_x, self.total or inf
        return self.run.iteration, self.run.n or inf

    def progress_line(self) -> str:
        """Return one line of text: a bar, the pace, and the newest value of each curve."""
        done, total = self.progress()
        part = min(1.0, done / total)
        bar = "" if total == inf else f"{'█' * int(20 * part):░<20} {part:4.0%} "
        pace = [f"{self.run.steps_per_second:.3g} steps/s", f"{self.run.elapsed:.1f} s"] if self.run is not None else []
        return bar + "  ".join([self.subtitle(), *pace, *self._summary(spark=False)])

    def subtitle(self) -> str:
        """Return state and progress in one line (no pace: a published notebook stays the same when it is run again)."""
        if self.run is None:
            return ""
        state = self._state()
        of = "" if state["total"] is None else f" of {short(state['total'])}"
        return f"{self.run.state} · {short(state['done'])}{of} {state['unit']}"

    def _state(self) -> dict[str, Any]:
        state = super()._state() | {"params": dict(self._params), "ack": self._ack}
        run = self.run
        if run is None:
            return state
        done, total = self.progress()
        counts_x = self.x is not None and (self.total is not None or run.n is None)
        scale = done / run.iteration if run.iteration else 1.0
        return state | {
            "status": run.state,
            "blocked": run.blocked,
            "done": done,
            "total": None if total == inf else total,
            "unit": self.x if counts_x else "steps",
            "rate": run.steps_per_second * scale,
            "elapsed": run.elapsed,
            "error": "" if run.error is None else f"{type(run.error).__name__}: {run.error}",
        }

    def _config(self) -> dict[str, Any]:
        return super()._config() | {"sliders": {name: asdict(slider) for name, slider in self._sliders.items()}}

    def _hear(self, message: dict[str, Any]) -> None:
        super()._hear(message)
        kind = message.get("kind")
        if kind == "param":
            self._ack = message["id"]
            self.set_param(message["name"], message["value"])
        elif kind == "command" and self.run is not None:
            self._ack = message["id"]
            act = {"pause": self.run.pause, "step": self.run.step_once, "stop": self.run.stop}.get(message["name"])
            self.run.resume() if act is None else act(timeout=0)
            self.sync()

    def __repr__(self) -> str:
        return f"Dashboard({', '.join(filter(None, [self.subtitle(), *self._summary()])) or 'no data yet'})"
