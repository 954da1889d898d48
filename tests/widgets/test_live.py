"""LivePlot and Dashboard: what is collected, what is sent to the page, what the page may do, and the still picture."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from rlbook.errors import ConfigError, MissingExtraError
from rlbook.widgets import Dashboard, LivePlot, Run, Slider, _front, live
from rlbook.widgets._picture import PALETTE, columns


class Page:
    """A widget that remembers what was sent, and rebuilds the curves as the JavaScript does."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.curves: dict[str, list[list[float]]] = {}
        self.bytes = 0

    def send(self, message: dict[str, Any], buffers: list[bytes]) -> None:
        self.messages.append(message)
        if message["kind"] == "clear":
            self.curves.clear()
        if message["kind"] != "data":
            return
        self.bytes += len(buffers[0])
        numbers = np.frombuffer(buffers[0], "<f4")
        for curve in message["curves"]:
            parts = 3 if curve["points"] < curve["end"] - curve["start"] else 2
            size = parts * curve["points"]
            rows, numbers = numbers[:size].reshape(parts, -1), numbers[size:]
            old = self.curves.get(curve["key"], [[], []]) if curve["start"] else [[], []]
            self.curves[curve["key"]] = [old[i] + rows[i].tolist() for i in (0, 1)]
        assert numbers.size == 0


def connected(plot: LivePlot) -> Page:
    """Give the plot a page that has opened."""
    plot._widget = page = Page()
    plot._hear({"kind": "hello"})
    return page


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.001)


def test_collects_whatever_comes():
    plot = LivePlot()
    plot.add(1, {"loss": 0.5})
    plot.add(2, {"loss": torch.tensor(0.25, requires_grad=True), "reward": np.float32(3)})
    plot.add(3, {"loss": float("nan"), ("next", "value"): 1})
    x, y = plot.data("loss")
    assert x.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(y, [0.5, 0.25, np.nan])
    assert plot.data("reward")[0].tolist() == [2]
    assert plot.panels() == [["loss"], ["reward"], ["next.value"]]


def test_a_metric_may_be_the_horizontal_axis():
    plot = LivePlot(x="frames")
    plot.add(1, {"frames": 256, "loss": 1.0})
    plot.add(2, {"frames": 512, "loss": 0.5})
    assert plot.data("loss")[0].tolist() == [256, 512]
    assert plot.panels() == [["loss"]]


def test_curves_may_be_one_name_or_groups():
    assert LivePlot("loss").panels() == [["loss"]]
    assert LivePlot(["a", ("b", "c"), ["d", "e"]]).panels() == [["a"], ["b", "c"], ["d", "e"]]


def test_an_unknown_curve_is_explained():
    plot = LivePlot()
    plot.add(0, {"loss": 1.0})
    with pytest.raises(ConfigError, match="the curve must be one of: loss; got 'reward'"):
        plot.data("reward")


def test_a_wrong_metric_is_explained():
    with pytest.raises(ConfigError, match=r"metrics\['loss'\] must be one number; got Tensor of shape \[2\]"):
        LivePlot().add(0, {"loss": torch.zeros(2)})


def test_smoothing_is_checked():
    with pytest.raises(ConfigError, match=r"smoothing must be in \[0, 1\); got 1.0"):
        LivePlot(smoothing=1.0)


def test_targets_belong_to_the_first_curve_or_to_those_named():
    assert LivePlot(["a", "b"], target=3).targets() == {"a": 3.0}
    assert LivePlot([("a", "b")], target={"b": 1}).targets() == {"b": 1}
    plot = LivePlot(target=3)
    assert plot.targets() == {}
    plot.add(0, {"score": 1.0})
    assert plot.targets() == {"score": 3.0}


def test_sends_each_point_once():
    plot = LivePlot()
    page = connected(plot)
    for i in range(7):
        plot.add(i, {"loss": i / 2, "reward": -i})
        if i % 3 == 0:
            plot.flush()
    plot.flush()
    assert page.curves["loss"] == [[0, 1, 2, 3, 4, 5, 6], [0, 0.5, 1, 1.5, 2, 2.5, 3]]
    assert page.curves["reward"][1] == [0, -1, -2, -3, -4, -5, -6]


def test_sends_only_what_is_drawn():
    plot = LivePlot(["loss"], x="frames")
    page = connected(plot)
    plot.add(0, {"loss": 1.0, "reward": 2.0, "frames": 8})
    plot.flush()
    assert page.curves == {"loss": [[8], [1]]}
    assert plot.data("reward")[1].tolist() == [2.0]


def test_flushes_ten_times_a_second(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(live, "perf_counter", lambda: now[0])
    plot = LivePlot()
    page = connected(plot)
    page.messages.clear()
    for i in range(2000):  # two seconds
        now[0] += 0.001
        plot.add(i, {"loss": float(i)})
    plot.flush()
    assert 18 <= len(page.messages) <= 21
    assert page.curves["loss"][1] == list(range(2000))
    assert page.bytes == 2000 * 8


def test_a_page_that_has_not_opened_gets_everything_each_time():
    plot = LivePlot()
    plot._widget = page = Page()
    for i in range(3):
        plot.add(i, {"loss": float(i)})
        plot.flush()
    assert page.messages[-1]["curves"] == [{"key": "loss", "start": 0, "end": 3, "points": 3}]
    plot._hear({"kind": "hello"})
    plot.add(3, {"loss": 3.0})
    plot.flush()
    assert page.messages[-1]["curves"] == [{"key": "loss", "start": 3, "end": 4, "points": 1}]


def test_a_page_that_opens_late_gets_the_history_thinned():
    plot = LivePlot()
    values = np.sin(np.arange(50_000) / 3000)
    values[31_000] = 9.0
    for i, value in enumerate(values.tolist()):
        plot.add(i, {"loss": value})
    page = connected(plot)
    x, y = page.curves["loss"]
    assert len(x) <= live.HISTORY_POINTS
    assert max(y) == 9.0
    assert x[-1] == 49_999
    plot.add(50_000, {"loss": 0.5})
    plot.flush()
    assert page.curves["loss"][1][-1] == 0.5
    assert page.messages[-1]["curves"][0]["start"] == 50_000


def test_clear_forgets():
    plot = LivePlot()
    page = connected(plot)
    plot.add(0, {"loss": 1.0})
    plot.flush()
    plot.clear()
    assert page.curves == {}
    assert plot.panels() == []
    plot.add(0, {"loss": 2.0})
    plot.flush()
    assert page.curves == {"loss": [[0], [2]]}


def test_a_slider_reads_its_description():
    assert Slider.parse((0.05, 0.4)) == Slider(0.05, 0.4)
    assert Slider.parse((0.05, 0.4)).start == pytest.approx(0.225)
    assert Slider.parse((1e-5, 1e-1, "log")).start == pytest.approx(1e-3)
    assert Slider.parse((1e-5, 1e-1, "log", 3e-4)) == Slider.parse((1e-5, 1e-1, 3e-4, "log"))
    assert Slider.parse((0, 1, 0.25)).start == 0.25


@pytest.mark.parametrize(
    "what, message",
    [
        ((1.0, 1.0), "a slider must be a range; got 1.0 to 1.0"),
        ((0.0, 1.0, "log"), "a log scale needs low > 0"),
        ((0.1, 1.0, "square"), "scale must be 'linear' or 'log'; got 'square'"),
        ((0.1, 1.0, 2.0), "start must be inside its range; got 2.0 outside 0.1 to 1.0"),
    ],
)
def test_a_wrong_slider_is_explained(what, message):
    with pytest.raises(ConfigError, match=message):
        Dashboard(sliders={"lr": what})


def test_sliders_reach_python():
    moved: list[tuple[str, float]] = []
    board = Dashboard(sliders={"lr": (1e-5, 1e-2, "log", 1e-3)}, on_param=lambda name, value: moved.append((name, value)))
    page = connected(board)
    board._hear({"kind": "param", "name": "lr", "value": 5e-3, "id": 7})
    assert board.params["lr"] == 5e-3
    assert page.messages[-1]["state"]["params"] == {"lr": 5e-3}
    assert page.messages[-1]["state"]["ack"] == 7
    board.set_param("lr", 1.0)
    assert board.params["lr"] == 1e-2
    assert moved == [("lr", 5e-3), ("lr", 1e-2)]
    with pytest.raises(ConfigError, match="the slider must be one of: lr; got 'gamma'"):
        board.set_param("gamma", 0.9)
    with pytest.raises(TypeError, match="does not support item assignment"):
        board.params["lr"] = 1.0


def test_buttons_steer_the_run():
    def step(i: int) -> dict[str, float]:
        time.sleep(0.0005)
        return {"loss": 1.0}

    board = Dashboard()
    run = Run(step, 10_000, board=board, mode="thread")
    page = connected(board)

    def press(name: str, state: str) -> None:
        board._hear({"kind": "command", "name": name, "id": 1})
        until(lambda: run.state == state)

    press("resume", "running")  # Start
    until(lambda: run.iteration > 3)
    press("pause", "paused")
    at = run.iteration
    press("step", "paused")
    until(lambda: run.iteration == at + 1)
    press("resume", "running")
    press("stop", "stopped")
    run.wait()
    until(lambda: page.messages[-1]["state"]["status"] == "stopped")
    state = page.messages[-1]["state"]
    assert (state["done"], state["total"], state["unit"]) == (run.iteration, 10_000, "steps")
    assert len(page.curves["loss"][0]) == run.iteration


def test_progress_may_count_frames():
    board = Dashboard(x="frames", total=1000)
    Run(({"frames": 256 * (i + 1), "loss": 1.0} for i in range(2)), board=board, mode="cell").start()
    state = board._state()
    assert (state["done"], state["total"], state["unit"]) == (512, 1000, "frames")
    assert state["rate"] == pytest.approx(256 * board.run.steps_per_second)


def test_an_unknown_length_has_no_total():
    board = Dashboard()
    Run(iter([{"loss": 1.0}]), board=board, mode="cell").start()
    assert board._state()["total"] is None
    assert "░" not in board.progress_line()


def test_shows_the_error_of_its_run():
    board = Dashboard()
    run = Run(lambda i: 1 / 0, 3, board=board, mode="thread").start()
    with pytest.raises(ZeroDivisionError, match="division"):
        run.wait()
    assert board._state()["error"] == "ZeroDivisionError: division by zero"


def test_a_board_has_one_run():
    board = Dashboard()
    first = Run(lambda i: time.sleep(0.0005), board=board, mode="thread", name="first").start()
    second = Run(lambda i: {"loss": 2.0}, 1, board=board, mode="cell", name="second")
    assert first.state == "stopped"
    second.start()
    assert board.data("loss")[1].tolist() == [2.0]


def picture(plot: LivePlot) -> Image.Image:
    data, metadata = plot._still()
    image = Image.open(io.BytesIO(data["image/png"])).convert("RGB")
    shown = metadata["image/png"]
    assert image.size == (2 * shown["width"], 2 * shown["height"])  # double density
    return image


def pixels(image: Image.Image, color: str) -> int:
    """Count pixels near a color: the picture has few colors and soft edges."""
    distance = np.abs(np.asarray(image, dtype=int) - ImageColor.getrgb(color)).max(-1)
    return int((distance < 24).sum())


def test_the_picture_shows_every_curve():
    plot = LivePlot(["score", ("loss", "entropy")], title="A title", target=475)
    empty = picture(filled(LivePlot(["other"], title="A title")))
    image = picture(filled(plot))
    assert image.getpixel((0, 0)) == (255, 255, 255)
    for color in PALETTE[:3]:
        assert pixels(image, color) > 500 > pixels(empty, color)


def filled(plot: LivePlot) -> LivePlot:
    for i in range(300):
        plot.add(i, {"score": 500 * i / 300, "loss": 1 / (i + 1), "entropy": 0.7, "gap": float("nan")})
    return plot


def test_the_picture_is_the_same_every_time():
    def data() -> bytes:
        board = Dashboard(title="A title")
        Run(lambda i: {"loss": 1 / (i + 1)}, 50, board=board, mode="cell").start()
        return board._still()[0]["image/png"]

    assert data() == data()


def test_no_picture_without_data():
    assert set(LivePlot()._still()[0]) == {"text/plain"}


def test_the_panels_fill_their_rows():
    assert [columns(n) for n in range(1, 8)] == [1, 2, 2, 2, 3, 3, 3]


def test_says_what_it_shows():
    plot = LivePlot(["loss"])
    assert repr(plot) == "LivePlot(no data yet)"
    for i in range(8):
        plot.add(i, {"loss": float(i), "other": 1.0})
    assert repr(plot).startswith("LivePlot(loss ▁▂▃▄▅▆▇█ ")
    board = Dashboard()
    Run(lambda i: {"loss": 0.5}, 4, board=board, mode="cell").start()
    assert repr(board) == "Dashboard(done · 4 of 4 steps, loss ▁▁▁▁ 0.5)"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_line(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    Run(lambda i: {"loss": 0.5}, 4, board=Dashboard(), mode="cell").start()
    lines = sys.stderr.getvalue()
    assert lines.count("\n") == 1
    last = lines.rstrip("\n").split("\r")[-1]
    assert last.startswith("████████████████████ 100% done · 4 of 4 steps  ")
    assert "loss 0.5" in last


def test_nothing_is_printed_without_a_terminal(capsys):
    Run(lambda i: {"loss": 0.5}, 4, board=Dashboard(), mode="cell").start()
    assert capsys.readouterr() == ("", "")


def test_the_widget_carries_its_code_and_config():
    widget = Dashboard(["loss"], title="A title", sliders={"lr": (0.1, 1.0)})._connect()
    assert widget.config["title"] == "A title"
    assert widget.config["groups"] == [["loss"]]
    assert widget.config["sliders"]["lr"] == {"low": 0.1, "high": 1.0, "scale": "linear", "value": None}
    assert "class Store" in widget._esm
    assert "--accent" in widget._css
    assert "http" not in widget._esm.replace("http://www.w3.org", "")  # nothing is loaded from elsewhere


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    _front._widget_class.cache_clear()
    with pytest.raises(MissingExtraError, match=r'needs the package \'anywidget\'.*pip install "rlbook\[lab\]"'):
        LivePlot()._connect()


def test_the_bundle_has_a_live_view_only_where_one_can_be_used(monkeypatch):
    plot = filled(LivePlot(["loss"]))
    assert set(plot._repr_mimebundle_()[0]) == {"text/plain", "image/png"}
    monkeypatch.setattr("rlbook.widgets._front.has_front_end", lambda: True)
    assert set(plot._repr_mimebundle_()[0]) == {"text/plain", "image/png", _front.VIEW_MIME}


def test_outside_a_notebook_display_prints(capsys):
    LivePlot()._ipython_display_()
    assert capsys.readouterr().out == "LivePlot(no data yet)\n"


def test_a_bad_metric_leaves_no_empty_curve():
    plot = LivePlot()
    with pytest.raises(ConfigError):
        plot.add(0, {"loss": torch.ones(2)})
    assert repr(plot)


def test_a_plot_without_panels_has_no_picture():
    for plot in (LivePlot(x="frames"), LivePlot([])):
        plot.add(1, {"frames": 100})
        assert list(plot._still()[0]) == ["text/plain"]


def test_metrics_without_the_axis_belong_to_the_last_one():
    plot = LivePlot(x="frames")
    plot.add(1, {"frames": 1000, "loss": 1.0})
    plot.add(2, {"score": 3.0})
    plot.add(3, {"frames": 3000, "loss": 3.0, "score": 4.0})
    assert plot.data("score")[0].tolist() == [1000, 3000]


@pytest.mark.parametrize("make", [LivePlot, Dashboard])
def test_a_board_hears_only_the_run_that_has_it(make):
    board, entered, leave = make(["loss"]), threading.Event(), threading.Event()

    def slow(i: int) -> dict[str, float]:
        entered.set()
        leave.wait(10)
        return {"loss": 1.0}

    first = Run(slow, board=board, mode="thread").start()
    assert entered.wait(10)
    second = threading.Thread(target=lambda: Run(lambda i: {"loss": 2.0}, 3, board=board, mode="thread").start())
    second.start()
    while board.attached in (None, first):
        time.sleep(0.01)
    leave.set()
    second.join(20)
    first.stop()
    board.attached.stop()
    assert set(board.data("loss")[1].tolist()) <= {2.0}


@pytest.mark.parametrize("what", [1e-3, (1e-3,), {"low": 1e-3, "high": 1}, ("log", 1e-3, 1)])
def test_what_is_no_slider_is_explained(what):
    with pytest.raises(ConfigError, match=r"A slider must be \(low, high\), then \"log\" and a start if wanted; got"):
        Slider.parse(what)
