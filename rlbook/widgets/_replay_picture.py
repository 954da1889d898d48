"""The still picture of a replay buffer."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlbook.widgets._picture import DPI, INK, LINE, MUTED, PALETTE, WIDTH, _png

HEIGHT = 2.5


def replay_png(title: str, state: dict[str, Any]) -> tuple[bytes, int, int]:
    """Draw what a viewer shows; return a PNG at double density, and the size in pixels at which to show it."""
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=2 * DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(rect=(0.005, 0.01, 0.99, 0.8), hspace=0.2, wspace=0.06)  # type: ignore
    figure.text(0.012, 0.96, title, size=12, weight="bold", color=INK, va="top")
    figure.text(0.012, 0.87, "  .  ".join(state["facts"]), size=8.5, color=MUTED, va="top")
    grid = figure.add_gridspec(2, 2, width_ratios=(2.2, 1), height_ratios=(1, 1.1))
    strip(figure.add_subplot(grid[0, 0]), state)
    priorities(figure.add_subplot(grid[1, 0]), state)
    histogram(figure.add_subplot(grid[:, 1]), state)
    return _png(figure), int(WIDTH * DPI), int(HEIGHT * DPI)


def strip(axes: Any, state: dict[str, Any]) -> None:
    """Draw the rows: the newer the darker, with the cursor and the rows of the sample."""
    ages = np.array([np.nan if age is None else 1 - age for age in state["ages"]])
    axes.imshow(ages[None], aspect="auto", cmap="Blues", vmin=-0.35, vmax=1.15, extent=(0, 1, 0, 1))
    axes.axvline(state["cursor"], color=PALETTE[1], linewidth=2)
    axes.vlines(state["ticks"], -0.2, -0.04, color=PALETTE[1], linewidth=0.8, clip_on=False)
    dress(axes, "rows: the darker the newer; the cursor; ticks: the sample")
    axes.set(xlim=(0, 1), ylim=(0, 1), yticks=[])
    axes.set_facecolor("#f3f5f8")


def priorities(axes: Any, state: dict[str, Any]) -> None:
    """Draw the mean priority of each part of the rows."""
    if state["priorities"] is None:
        axes.axis("off")
        axes.text(0, 0.6, "no priorities: every row is as likely as any other", size=8, color=MUTED, transform=axes.transAxes)
        return
    values = [0.0 if value is None else value for value in state["priorities"]]
    axes.bar((np.arange(len(values)) + 0.5) / len(values), values, width=1 / len(values), color=PALETTE[2])
    dress(axes, "priority")
    axes.set(xlim=(0, 1))


def histogram(axes: Any, state: dict[str, Any]) -> None:
    """Draw the ages of what is stored, and of what was drawn."""
    edges = np.linspace(0, 1, len(state["stored"]) + 1)
    axes.stairs(state["stored"], edges, fill=True, facecolor=LINE, edgecolor=MUTED, linewidth=1, label="stored")
    if state["drawn"]:
        axes.stairs(state["drawn"], edges, color=PALETTE[1], linewidth=1.8, label="drawn")
    dress(axes, "age: newest to oldest")
    axes.legend(fontsize=8, frameon=False, labelcolor=MUTED, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2)
    axes.set(xlim=(0, 1), yticks=[])


def dress(axes: Any, title: str) -> None:
    """Give a panel its title, and take away what says nothing."""
    axes.set_title(title, size=9, weight="bold", color=INK, loc="left")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8, colors=MUTED)
    axes.set_xticks([])
