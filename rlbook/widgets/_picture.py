"""The still picture of live curves, for saved notebooks: matplotlib's Figure object, never pyplot (safe in any thread)."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from PIL import Image

from rlbook.widgets._series import short, thin

if TYPE_CHECKING:
    from rlbook.widgets.live import LivePlot

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#B8860B", "#3A7CA5")  # told apart with any colour vision
INK, MUTED, LINE = "#24292f", "#6e7781", "#d8dee4"
WIDTH, DPI, POINTS = 7.6, 100, 1500


def columns(panels: int, most: int = 3) -> int:
    """Return how many panels stand side by side; the first one is as wide as it takes to fill every row."""
    return max(1, min(panels, most if panels > 4 else 2))


def curves_png(plot: LivePlot) -> tuple[bytes, int, int]:
    """Draw the curves of ``plot``; return a PNG at double density, and the size in pixels at which to show it."""
    panels = plot.panels()
    cols = columns(len(panels))
    first = cols - (len(panels) % cols or cols) + 1
    rows = -(-(len(panels) + first - 1) // cols)
    head = 0.55 if plot.title or plot.subtitle() else 0.12
    height = head + rows * (plot.height / DPI + 0.55)
    figure = Figure(figsize=(WIDTH, height), dpi=2 * DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)  # becomes figure.canvas: one renderer for measuring and drawing, since each holds a whole picture
    figure.get_layout_engine().set(rect=(0.005, 0.01, 0.99, 0.99 - head / height), hspace=0.06, wspace=0.03)  # type: ignore
    if plot.title:
        figure.text(0.012, 1 - 0.13 / height, plot.title, size=12, weight="bold", color=INK, va="top")
    figure.text(0.012, 1 - 0.37 / height, plot.subtitle(), size=8.5, color=MUTED, va="top")
    grid = figure.add_gridspec(rows, cols)
    colors = iter(PALETTE * (1 + sum(map(len, panels)) // len(PALETTE)))
    for index, keys in enumerate(panels):
        place = index + (first - 1 if index else 0)
        cell = grid[0, :first] if index == 0 else grid[place // cols, place % cols]
        _panel(figure.add_subplot(cell), plot, keys, [next(colors) for _ in keys])
    return _png(figure), int(WIDTH * DPI), int(height * DPI)


def _png(figure: Figure) -> bytes:
    """Render to a PNG of 64 colors, a quarter of the full one's size (Pillow comes with matplotlib)."""
    canvas: Any = figure.canvas
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    out = BytesIO()
    image.quantize(64, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def _panel(axes: Any, plot: LivePlot, keys: list[str], colors: list[str]) -> None:
    """Draw the curves that share one panel: raw and faint behind, smooth in front."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8, colors=MUTED)
    axes.grid(color=LINE, linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.margins(x=0.01)
    head = 0.0
    for key, color in zip(keys, colors, strict=True):
        value = ""
        if key in plot._series and len(plot._series[key]):
            x, raw, smoothed = plot.curve(key)
            axes.plot(*thin(x, raw, POINTS)[:2], color=color, alpha=0.28 if plot.smoothing else 1.0, linewidth=1)
            axes.plot(*thin(x, smoothed, POINTS)[:2], color=color, linewidth=1.8, solid_capstyle="round", solid_joinstyle="round")
            value = short(float(smoothed[-1]))
        title = axes.annotate(
            f"{key}  {value}", (head, 1), (0, 6), "axes fraction", "offset points", size=9, weight="bold", color=color
        )
        head += title.get_window_extent(axes.figure.canvas.get_renderer()).width / axes.get_window_extent().width + 0.04
    for key in keys:
        if key in plot.targets():
            level = plot.targets()[key]
            axes.axhline(level, color=MUTED, linewidth=1, dashes=(4, 3))
            place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "size": 8, "color": MUTED}
            axes.annotate(f"target {short(level)}", (0, level), (5, 3), **place)
