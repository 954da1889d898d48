"""``explore``: a figure with sliders, a picture without a front end."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rlbook.course import explore
from rlbook.errors import ConfigError


def draw(width, height):
    figure = Figure(figsize=(2, 1))
    axes = figure.subplots()
    axes.bar([0], [height], width)
    axes.set(xlim=(-5, 5), ylim=(0, 10))
    return figure


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_it_draws_the_figure_for_the_starts():
    shown = explore(draw, width=(1, 9, 2), height=(1, 9, 5))
    assert repr(shown) == "explore(draw, width=2, height=5)"
    full = io.BytesIO()
    draw(2, 5).savefig(full, format="png", dpi=120)
    assert np.abs(pixels(shown.png()).astype(int) - pixels(full.getvalue())).mean() < 1


def test_moving_a_slider_draws_again():
    shown = explore(draw, width=(1, 9, 2), height=(1, 9, 5))
    before = shown.png()
    shown.set(height=9)
    assert shown.png() != before
    assert repr(shown) == "explore(draw, width=2, height=9)"


def test_the_widget_follows_its_sliders():
    shown = explore(draw, width=(1, 9, 2), height=(1, 9, 5))
    *rows, picture = shown._connect().children
    assert [(row.description, row.min, row.max, row.value) for row in rows] == [("width", 1, 9, 2), ("height", 1, 9, 5)]
    assert [round((row.value - row.min) / row.step, 9) % 1 for row in rows] == [0, 0]  # a start between two steps would be moved
    before = picture.value
    rows[1].value = 8.2
    assert shown.values == {"width": 2, "height": 8.2}
    assert picture.value == shown.png() != before


def test_outside_a_notebook_it_is_text():
    assert explore(draw, width=(1, 9, 2), height=(1, 9, 5))._repr_mimebundle_()[0].keys() == {"text/plain"}


def test_a_published_notebook_gets_the_picture_only(monkeypatch):
    import importlib

    module = importlib.import_module("rlbook.course.explore")
    monkeypatch.setattr(module, "in_kernel", lambda: True)
    data, _ = explore(draw, width=(1, 9, 2), height=(1, 9, 5))._repr_mimebundle_()
    assert data.keys() == {"text/plain", "image/png"}
    monkeypatch.setattr(module, "has_front_end", lambda: True)
    data, _ = explore(draw, width=(1, 9, 2), height=(1, 9, 5))._repr_mimebundle_()
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"]


def test_a_start_outside_its_range_is_explained():
    with pytest.raises(ConfigError, match=r"the start of width must be from 1 to 9; got 10. Pass \(low, high, start\)"):
        explore(draw, width=(1, 9, 10), height=(1, 9, 5))


@pytest.mark.parametrize("slider", [3, (1, 1, 1), (0, 1), (2, 1, 1.5)])
def test_what_is_no_slider_is_explained(slider):
    with pytest.raises(ConfigError, match=r"the slider x must be \(low, high, start\) with low below high; got "):
        explore(lambda x: Figure(), x=slider)
