"""The live dashboard where people meet it: in JupyterLab with a kernel, and in a plain page without one."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright")

from browser.lab import ROOT, Lab, keep, open_browser, serve, watch
from playwright.sync_api import Browser, Locator, Page, expect

from rlbook.widgets._front import VIEW_MIME
from tools.browser import find_browser

pytestmark = pytest.mark.browser

RUN = """
from math import exp
from random import gauss
from time import sleep

from rlbook.widgets import Dashboard, Run

board = Dashboard(
    ["score", ("loss", "entropy"), "rate"],
    title="A toy run",
    target=475,
    sliders={"lr": (1e-5, 1e-1, "log", 1e-3), "clip_eps": (0.05, 0.4, 0.2)},
)


def step(i):
    sleep(0.001)
    return {
        "score": 500 * (1 - exp(-i / 2000)) + gauss(0, 20),
        "loss": exp(-i / 1000) + abs(gauss(0, 0.02)),
        "entropy": 0.7 * exp(-i / 5000),
        "rate": board.params["lr"],
    }


run = Run(step, 100_000, board=board)
run.start()
""".strip()
OTHER = 'print("another cell, run", run.state)'
AWAIT = 'print("over:", (await run).state, len(run.history) == run.iteration, board.params["lr"])'
WAIT = 'print("over:", run.wait().state)'
SEEN = """
from rlbook.widgets import Quiz, show, EnvViewer
import numpy as np, torch
display(show({"reward": torch.arange(9.0), "next": {"advantage": torch.tensor([1.0, float("nan")])}}, "batch"))
film = EnvViewer(np.stack([np.full((40, 60, 3), i, dtype=np.uint8) for i in range(120)]), fps=60)
quiz = Quiz("Is `gamma = 1` myopic?", ["yes", "no"], answer="no", explain=["That is 0.", "It looks far ahead."])
display(film, quiz)
""".strip()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        stop = pytest.fail if os.environ.get("RLBOOK_REQUIRE_BROWSER") == "1" else pytest.skip
        stop("needs Chromium or Chrome: make chromium")
    with open_browser(path) as browser:
        yield browser


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("home"))
    try:
        yield lab
    finally:
        killed = lab.close()
    assert not killed, f"JupyterLab left these processes behind: {killed}"


@pytest.fixture
def page(browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1280, "height": 1100})
    errors = watch(page)
    yield page
    page.close()
    assert not errors


def steps(page: Page) -> int:
    return int(page.locator(".rlb .facts b").first.inner_text().replace(",", ""))


def button(page: Page, name: str) -> Locator:
    return page.locator(".rlb").get_by_role("button", name=name, exact=True)


def press(page: Page, name: str, status: str) -> None:
    """Click and wait for the kernel's answer; print how long that took in the page itself."""
    button(page, name).wait_for()
    milliseconds = page.evaluate(
        """([name, status]) => new Promise((resolve) => {
            const begun = performance.now(), pill = document.querySelector(".rlb .pill");
            const look = () => {
                if (pill.textContent === status) resolve(performance.now() - begun);
                else if (performance.now() - begun > 20_000) resolve(Infinity);
                else setTimeout(look, 1);
            };
            [...document.querySelectorAll(".rlb button")].find((button) => button.textContent === name).click();
            look();
        })""",
        [name, status],
    )
    sys.stderr.write(f"\n{name} -> {status}: {milliseconds:.0f} ms")
    expect(page.locator(".rlb .pill")).to_have_text(status, timeout=20_000)


def grows(page: Page) -> None:
    """Wait until the run has gone on and its curve is drawn."""
    before = steps(page)
    page.wait_for_function("(n) => +document.querySelector('.rlb .facts b').textContent.replace(',', '') > n", arg=before + 20)


def ink(canvas: Locator) -> int:
    """Count the drawn pixels of a canvas."""
    return canvas.evaluate(
        """(canvas) => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data
            .reduce((n, v, i) => n + (i % 4 === 3 && v > 0), 0)"""
    )


def test_a_run_in_jupyterlab(lab: Lab, page: Page):
    lab.write("live.ipynb", [RUN, OTHER, AWAIT])
    lab.open(page, "live.ipynb")
    lab.run_all(page)
    expect(page.locator(".rlb .pill")).to_have_text("Running", timeout=30_000)
    expect(page.get_by_text("another cell, run running")).to_be_visible(timeout=30_000)
    grows(page)
    canvas = page.locator(".rlb canvas").first
    canvas.scroll_into_view_if_needed()
    assert ink(canvas) > 1000

    press(page, "Pause", "Paused")
    at = steps(page)
    time.sleep(0.3)
    assert steps(page) == at
    keep(page, "lab_paused")
    button(page, "Step").click()
    page.wait_for_function("(n) => +document.querySelector('.rlb .facts b').textContent.replace(',', '') === n", arg=at + 1)

    slider = page.locator(".rlb .sliders").get_by_label("lr")
    slider.focus()
    slider.press("End")
    press(page, "Resume", "Running")
    grows(page)
    page.wait_for_function("() => document.querySelectorAll('.rlb .legend')[2].textContent.includes('0.1')")
    keep(page, "lab_running")

    press(page, "Stop", "Stopped")
    expect(page.get_by_text("over: stopped True 0.1")).to_be_visible(timeout=30_000)
    at = steps(page)
    time.sleep(0.2)
    assert steps(page) == at
    keep(page, "lab_stopped")

    lab.save(page, "live.ipynb", "image/png")


def test_a_page_that_is_reloaded_gets_the_history(lab: Lab, page: Page):
    lab.write("reload.ipynb", [RUN])
    lab.open(page, "reload.ipynb")
    lab.run_all(page)
    expect(page.locator(".rlb .pill")).to_have_text("Running", timeout=30_000)
    grows(page)
    press(page, "Pause", "Paused")
    at = steps(page)
    lab.save(page, "reload.ipynb", VIEW_MIME)
    page.reload()
    expect(page.locator(".rlb .pill")).to_have_text("Paused", timeout=60_000)
    assert steps(page) == at
    assert ink(page.locator(".rlb canvas").first) > 1000
    press(page, "Stop", "Stopped")


def test_stop_reaches_a_run_that_blocks_its_cell(lab: Lab, page: Page):
    lab.write("blocked.ipynb", [RUN, WAIT])
    lab.open(page, "blocked.ipynb")
    lab.run_all(page)
    expect(page.get_by_text("only Stop can reach it")).to_be_visible(timeout=30_000)
    assert button(page, "Pause").is_disabled()
    grows(page)
    press(page, "Stop", "Stopped")
    expect(page.get_by_text("over: stopped")).to_be_visible(timeout=30_000)


def test_film_quiz_and_tree_in_jupyterlab(lab: Lab, page: Page):
    lab.write("seen.ipynb", [SEEN, 'print("chosen:", quiz.value, quiz.correct)'])
    lab.open(page, "seen.ipynb")
    lab.run_all(page)
    film = page.locator(".rlb-viewer")
    expect(film.locator("output")).to_have_text("1 / 120", timeout=30_000)
    film.get_by_role("button", name="Play").click()
    expect(film.locator("output")).to_have_text("120 / 120", timeout=20_000)
    assert film.locator("canvas").evaluate("(c) => c.getContext('2d').getImageData(5, 5, 1, 1).data[0]") == 119
    page.locator(".rlb-quiz").get_by_label("no").check()
    expect(page.locator(".rlb-quiz .verdict")).to_have_text("Right. It looks far ahead.")
    expect(page.locator(".rlb-tree strong")).to_have_text("⚠ 1 NaN")
    keep(page, "lab_seen")
    page.locator(".jp-CodeCell").nth(1).click()
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("chosen: no True")).to_be_visible(timeout=20_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_without_a_kernel(browser: Browser, scheme: str):
    page = browser.new_page(viewport={"width": 960, "height": 760}, color_scheme=scheme, device_scale_factor=2)
    errors = watch(page)
    with serve(ROOT / "rlbook" / "widgets" / "static", Path(__file__).parent) as address:
        page.goto(f"{address}/live.html?still")
        page.evaluate("advance(1)")
        page.evaluate("advance(1300)")
        canvas = page.locator("canvas").first
        expect(page.locator(".facts b").first).to_have_text("1,301")
        keep(page, f"page_{scheme}")

        canvas.hover(position={"x": 300, "y": 60})
        expect(page.locator(".legend").first).to_contain_text("(raw")
        canvas.focus()
        page.keyboard.press("End")
        page.wait_for_function("() => document.querySelector('canvas').getAttribute('aria-label').includes('at step 1,300')")
        page.keyboard.press("Home")
        page.wait_for_function("() => document.querySelector('canvas').getAttribute('aria-label').includes('at step 0.')")
        keep(page, f"page_{scheme}_read")
        page.keyboard.press("Escape")

        button(page, "Pause").click()
        expect(page.locator(".pill")).to_have_text("Paused")
        page.get_by_label("clip_eps").fill("0.5")
        page.wait_for_function("() => heard.some((m) => m.kind === 'param')")
        commands = [(m["kind"], m.get("name"), m.get("value")) for m in page.evaluate("heard")]
        assert commands == [("hello", None, None), ("command", "pause", None), ("param", "clip_eps", 0.225)]

        # A message that does not follow the last one: the page asks for everything, and takes it.
        tell = """([start, end, points, numbers]) => tell(
            {kind: "data", curves: [{key: "kl", start, end, points}], state}, [new Float32Array(numbers)])"""
        page.evaluate(tell, [5000, 5001, 1, [5000, 1]])
        assert page.evaluate("heard.at(-1).kind") == "hello"
        page.evaluate(tell, [0, 6, 2, [0, 5, 1, 3, 2, 2]])
        expect(page.locator(".legend").last).to_contain_text("2")
    page.close()
    assert not errors
