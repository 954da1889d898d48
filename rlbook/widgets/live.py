"""Curves that grow while you watch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from time import perf_counter
from typing import Any, ClassVar, TypeAlias

import numpy as np

from rlbook.errors import ConfigError, explain
from rlbook.keys import as_tuple, pretty
from rlbook.widgets._front import Bundle, View, has_front_end, in_kernel
from rlbook.widgets._series import Series, as_float, short, smooth, sparkline, thin
from rlbook.widgets.run import Run

FLUSH_S = 0.1  # ten messages a second look smooth, and cost training and page half of what twenty would
UNHEARD_S, UNHEARD_POINTS = 0.3, 500  # the same before a page has answered
HISTORY_POINTS = 4000  # a page that opens late gets each curve thinned to this many points
SMOOTHED_POINTS = 100_000  # a longer curve is thinned before it is smoothed for the picture

Curves: TypeAlias = str | Sequence[str | Sequence[str]]


class LivePlot(View):
    """Curves that grow as numbers are added: live in a notebook, a picture in a saved one.

    Args:
        curves: names of the metrics to draw, one panel each; names in a tuple share a panel. None draws all that come.
        title: heading.
        target: a level to reach, drawn as a dashed line: a number for the first curve, or ``{"episode_reward": 475}``.
        smoothing: decay of the exponential moving average in ``[0, 1)``; the raw curve stays visible behind it.
        x: the metric that is the horizontal axis, for example ``"frames"``; None takes the step. Metrics without it belong to the
            last one.
        height: height of a panel in pixels.

    Example:
        >>> plot = LivePlot(["loss"], target={"loss": 0.1})
        >>> for step in range(100):
        ...     plot.add(step, {"loss": 1 / (step + 1)})
        >>> plot
        LivePlot(loss █▂▂▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁ 0.0112)
    """

    module: ClassVar[str] = "live"

    def __init__(
        self,
        curves: Curves | None = None,
        *,
        title: str = "",
        target: float | Mapping[str, float] | None = None,
        smoothing: float = 0.9,
        x: str | None = None,
        height: int = 170,
    ):
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ConfigError(
                explain("smoothing", "in [0, 1)", repr(smoothing), "Pass 0 for no smoothing, 0.9 for a smooth curve")
            )
        self.groups = None if curves is None else [list(as_tuple(group)) for group in as_tuple(curves)]  # type: ignore[arg-type]
        self.title, self.smoothing, self.x, self.height = title, float(smoothing), x, height
        self.target = target
        self._series: dict[str, Series] = {}
        self._sent: dict[str, int] = {}
        self._lock = Lock()  # one flush at a time
        self._due = 0.0
        self._heard = False
        self._last_x = 0.0
        self.attached: Run | None = None  # what a run says that had this board before is not heard

    def add(self, step: float, metrics: Mapping[str, Any]) -> None:
        """Append one number to each named curve; cheap, the screen follows ten times a second.

        Args:
            step: the place on the horizontal axis; it must not fall.
            metrics: numbers (or tensors of one element) by name; new names may come at any time; NaN leaves a gap.

        Raises:
            ConfigError: a metric is not one number.
        """
        if self.x is not None:
            step = metrics.get(self.x, self._last_x)
        self._last_x = step = float(step)
        for key, value in metrics.items():
            number = value if type(value) is float else as_float(key, value)
            series = self._series.get(key)
            if series is None:
                series = self._series.setdefault(pretty(key), Series())
            series.append(step, number)
        if perf_counter() >= self._due:
            self.flush()

    def data(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the steps and the values of a curve so far, float64 ``[T]`` both."""
        if key not in self._series:
            names = ", ".join(self._series) or "none yet"
            raise ConfigError(explain("the curve", f"one of: {names}", repr(key), "Use a name that was added"))
        return self._series[key].values()

    def curve(self, key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return steps, raw values (NaN where not finite) and smoothed values of a curve, ``[T]`` each; a long one thinned."""
        x, y, mean = thin(*self.data(key), SMOOTHED_POINTS)
        stride = max(1.0, len(self._series[key]) / max(len(y), 1))
        return x, np.where(np.isfinite(y), y, np.nan), smooth(mean, self.smoothing**stride)

    def clear(self) -> None:
        """Forget all curves."""
        with self._lock:
            self._series.clear()
            self._sent.clear()
            self._last_x = 0.0
        self._send({"kind": "clear", "state": self._state()})

    def flush(self) -> None:
        """Send what the page does not have yet. A page that has not said hello (it loads, or the kernel is busy) gets it all."""
        self._due = perf_counter() + (FLUSH_S if self._heard else UNHEARD_S)
        if self._widget is not None:
            with self._lock:
                if self._heard:
                    self._send_points({key: self._sent.get(key, 0) for key in list(self._series)})
                else:
                    self._send_points(dict.fromkeys(list(self._series), 0), UNHEARD_POINTS)

    def attach(self, run: Run) -> None:
        """Become the board of ``run``; start afresh if there are curves already."""
        self.attached = run
        if self._series:
            self.clear()
            self._shown = False

    def begin(self) -> None:
        """The run starts: appear, unless the reader has put the board on the screen already."""
        if not self._shown and has_front_end():
            self.show()

    def sync(self) -> None:
        """Tell the page the state of the run."""
        self._send({"kind": "state", "state": self._state()})

    def finish(self) -> None:
        """Send the rest and renew the picture with which the notebook is saved; show it if nothing was shown so far."""
        self.flush()
        if in_kernel():
            self.refresh() if self._shown else self.show()

    def _send_points(self, start: Mapping[str, int], limit: int | None = None) -> None:
        """Send the points of each curve from ``start`` on, as float32: x, then y, and when they are thinned their means."""
        curves, parts = [], []
        for key, first in start.items():
            end = len(self._series[key])
            if end > first and self._drawn(key):
                x, y, mean = thin(*self._series[key].values(first, end), limit or end)
                curves.append({"key": key, "start": first, "end": end, "points": len(x)})
                parts += [x, y] if len(x) == end - first else [x, y, mean]
                self._sent[key] = end
        buffer = np.concatenate(parts).astype("<f4").tobytes() if parts else b""
        self._send({"kind": "data", "curves": curves, "state": self._state()}, [buffer])

    def _drawn(self, key: str) -> bool:
        return key != self.x if self.groups is None else any(key in group for group in self.groups)

    def panels(self) -> list[list[str]]:
        """Return the names that share each panel."""
        return [[key] for key in list(self._series) if self._drawn(key)] if self.groups is None else self.groups

    def targets(self) -> dict[str, float]:
        """Return the level to reach of each curve that has one."""
        if self.target is None or isinstance(self.target, Mapping):
            return dict(self.target or {})
        first = next(iter(self.panels()), None)
        return {first[0]: float(self.target)} if first else {}

    def _state(self) -> dict[str, Any]:
        return {"target": self.targets()}

    def _config(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "groups": self.groups,
            "smoothing": self.smoothing,
            "height": self.height,
            "x": self.x or "step",
            "state": self._state(),
        }

    def _hear(self, message: dict[str, Any]) -> None:
        if message.get("kind") == "hello":  # a page opened, or misses something: it gets everything
            with self._lock:
                self._heard = True
                self._send_points(dict.fromkeys(list(self._series), 0), HISTORY_POINTS)

    def subtitle(self) -> str:
        """Return the line below the heading of the picture."""
        return ""

    def _still(self) -> Bundle:
        data: dict[str, Any] = {"text/plain": repr(self)}
        if not self.panels() or not self._series:
            return data, {}
        try:
            from rlbook.widgets._picture import curves_png
        except ImportError:  # matplotlib is optional: the text stays
            return data, {}
        png, width, height = curves_png(self)
        return data | {"image/png": png}, {"image/png": {"width": width, "height": height}}

    def _summary(self, spark: bool = True) -> list[str]:
        lines = []
        for key in (key for panel in self.panels() for key in panel if key in self._series):
            _, raw, smoothed = self.curve(key)
            lines.append(" ".join([key, *([sparkline(raw)] if spark else []), short(smoothed[-1])]))
        return lines

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._summary()) or 'no data yet'})"
