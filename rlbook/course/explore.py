"""A figure with sliders: what a formula looks like when its numbers change."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from math import floor, log10
from typing import Any

from rlbook.errors import ConfigError, explain
from rlbook.widgets._front import VIEW_MIME, Bundle, has_front_end, in_kernel

DPI, COLORS = 120, 128
STEPS = 30
"""Least number of positions of a slider."""


class explore:
    """Show a figure that is drawn again when a slider moves; without a front end, the figure for the sliders' starts.

    Args:
        draw: called with one number for each slider; returns a matplotlib ``Figure`` (never pyplot's: it would be shown twice).
        **sliders: ``(low, high, start)`` for each argument of ``draw``.

    Raises:
        ConfigError: a slider's start is outside its range.

    Example:
        >>> from matplotlib.figure import Figure
        >>> def parabola(width):
        ...     figure = Figure(figsize=(3, 2))
        ...     figure.subplots().plot([(x / width) ** 2 for x in range(-9, 10)])
        ...     return figure
        >>> explore(parabola, width=(1, 9, 3))
        explore(parabola, width=3)
    """

    def __init__(self, draw: Callable[..., Any], **sliders: tuple[float, float, float]):
        for name, slider in sliders.items():
            if not isinstance(slider, tuple | list) or len(slider) != 3 or not slider[0] < slider[1]:
                want = "(low, high, start) with low below high"
                raise ConfigError(explain(f"the slider {name}", want, repr(slider), "Pass for example (0.0, 1.0, 0.5)"))
            low, high, start = slider
            if not low <= start <= high:
                raise ConfigError(
                    explain(f"the start of {name}", f"from {low} to {high}", repr(start), "Pass (low, high, start)")
                )
        self.draw, self.sliders = draw, sliders
        self.values = {name: start for name, (_, _, start) in sliders.items()}
        self._widget: Any = None

    def png(self) -> bytes:
        """Return the figure for the present values: a PNG of 128 colors, a third of the full one's size."""
        from PIL import Image

        full, small = BytesIO(), BytesIO()
        self.draw(**self.values).savefig(full, format="png", dpi=DPI)
        Image.open(full).convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
        return small.getvalue()

    def set(self, **values: float) -> None:
        """Move sliders from Python."""
        self.values.update(values)
        if self._widget is not None:
            self._picture.value = self.png()

    def _connect(self) -> Any:
        """Return the widget, made on first use."""
        if self._widget is None:
            from ipywidgets import FloatSlider, Image, VBox

            self._picture = Image(value=self.png(), format="png", layout={"max_width": "100%", "object_fit": "contain"})
            rows = []
            for name, (low, high, start) in self.sliders.items():
                step = 10.0 ** floor(log10((high - low) / STEPS))
                row = FloatSlider(start, min=low, max=high, step=step, description=name, readout_format=".3g")
                row.observe(lambda change, name=name: self.set(**{name: change["new"]}), "value")
                rows.append(row)
            self._widget = VBox([*rows, self._picture])
        return self._widget

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Bundle:
        data: dict[str, Any] = {"text/plain": repr(self)}
        if not in_kernel():
            return data, {}
        data["image/png"] = self.png()
        if has_front_end():
            data[VIEW_MIME] = {"version_major": 2, "version_minor": 0, "model_id": self._connect().model_id}
        return data, {}

    def __repr__(self) -> str:
        name = getattr(self.draw, "__name__", type(self.draw).__name__)
        return f"explore({', '.join([name, *(f'{key}={value:g}' for key, value in self.values.items())])})"
