"""The numbers behind a curve: collected one at a time, thinned and smoothed to be drawn."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np

from rlbook.errors import ConfigError, explain
from rlbook.keys import pretty

BARS = "▁▂▃▄▅▆▇█"


def as_float(key: str, value: Any) -> float:
    """Return one metric as a Python number: a float, int, bool, or a tensor or array with one element. NaN is allowed."""
    try:
        return float(value.detach() if hasattr(value, "detach") else value)  # torch warns about a loss with a gradient
    except (TypeError, ValueError, RuntimeError):
        shape = getattr(value, "shape", None)
        got = repr(value)[:60] if shape is None else f"{type(value).__name__} of shape {list(shape)}"
        fix = "Reduce it, for example with .mean()" if shape is not None else "Leave it out of the metrics"
        raise ConfigError(explain(f"metrics[{key!r}]", "one number", got, fix)) from None


def as_floats(metrics: Mapping[Any, Any]) -> dict[str, float]:
    """Return metrics as ``{"loss": 0.3, ...}``; nested keys become ``"next.reward"``."""
    names = {key: key if isinstance(key, str) else pretty(key) for key in metrics}
    return {name: as_float(name, metrics[key]) for key, name in names.items()}


class Series:
    """A curve that grows: ``x`` (steps) and ``y`` (values), float64 ``[T]`` both."""

    def __init__(self) -> None:
        self.x = array("d")
        self.y = array("d")

    def __len__(self) -> int:
        return len(self.y)  # y is appended last: both have at least this length, whoever reads from another thread

    def append(self, x: float, y: float) -> None:
        self.x.append(x)
        self.y.append(y)

    def values(self, start: int = 0, stop: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return copies of x and y, from ``start`` up to ``stop``."""
        stop = len(self) if stop is None else stop
        return np.array(self.x[start:stop]), np.array(self.y[start:stop])


def thin(x: np.ndarray, y: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keep at most ``points`` of a curve: the lowest and the highest of each stretch, and the last.

    No peak is lost, and a picture of at least ``points / 2`` pixels looks the same.

    Returns:
        x, y and the mean of y over each point's stretch (what a smooth curve has to follow), ``[<= points]`` each.
    """
    if len(y) <= points:
        return x, y, y
    size = -(-len(y) // max((points - 1) // 2, 1))
    rows = np.pad(y, (0, -len(y) % size), constant_values=np.nan).reshape(-1, size)
    low = np.where(np.isnan(rows), np.inf, rows).argmin(1)
    high = np.where(np.isnan(rows), -np.inf, rows).argmax(1)
    pairs = np.sort(np.stack([low, high], 1), 1) + np.arange(len(rows))[:, None] * size
    index = np.unique(np.append(np.minimum(pairs, len(y) - 1), len(y) - 1))
    known = np.isfinite(rows)
    means = np.where(known, rows, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)
    return x[index], y[index], means[index // size]


def smooth(y: np.ndarray, decay: float) -> np.ndarray:
    r"""Return the exponential moving average ``s_t = decay * s_{t-1} + (1 - decay) * y_t``, without bias towards 0.

    NaN is skipped. ``s_t`` is divided by ``1 - decay**t``, so that the first value is ``y_0`` itself.
    Source: Kingma & Ba 2015 (Adam), section 3.
    """
    out = np.full(len(y), np.nan)
    total = weight = 0.0
    for t, value in enumerate(y.tolist()):
        if isfinite(value):
            total, weight = decay * total + (1 - decay) * value, decay * weight + 1 - decay
        if weight:
            out[t] = total / weight
    return out


def sparkline(y: np.ndarray, width: int = 24) -> str:
    """Draw a curve in one line of text: ``▁▂▄▆█``."""
    finite = y[np.isfinite(y)]
    if len(finite) == 0:
        return ""
    means = np.array([part.mean() for part in np.array_split(finite, min(width, len(finite)))])
    span = np.ptp(means) or 1.0
    return "".join(BARS[int(level)] for level in (means - means.min()) / span * (len(BARS) - 1))


def short(value: float) -> str:
    """Write a number for a reader, three or four digits: ``0.0341``, ``312.4``, ``1,234``, ``20.5k``, ``3.2e-05``."""
    size = abs(value)
    if not np.isfinite(value):
        return str(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.4g}{unit}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2g}" if 0 < size < 1e-3 else f"{value:.3g}" if size < 1 else f"{value:.4g}"
