"""Run: its modes, its controls, how it ends, and what reaches its history and its board."""

from __future__ import annotations

import _thread
import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from rlbook.errors import ConfigError
from rlbook.widgets import _front
from rlbook.widgets import run as run_module
from rlbook.widgets.run import Run

PATIENCE_S = 10.0


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.001)


def brief(i: int) -> dict[str, float]:
    time.sleep(0.0005)
    return {"loss": 1.0 / (i + 1)}


class Told:
    """A board that remembers what it was told."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.added: list[tuple[int, dict[str, float]]] = []

    def attach(self, run: Run) -> None:
        self.run = run
        self.events.append("attach")

    def add(self, step, metrics) -> None:
        self.added.append((step, dict(metrics)))

    def begin(self) -> None:
        self.events.append("begin")

    def sync(self) -> None:
        self.events.append(self.run.state)

    def finish(self) -> None:
        self.events.append("finish")


@pytest.fixture(params=["cell", "thread"])
def mode(request) -> str:
    return request.param


def test_counts_steps_and_keeps_their_metrics(mode):
    run = Run(lambda i: {"square": i * i}, 4, mode=mode).start().wait()
    assert (run.state, run.iteration) == ("done", 4)
    assert run.history == [
        {"iteration": 1, "square": 0},
        {"iteration": 2, "square": 1},
        {"iteration": 3, "square": 4},
        {"iteration": 4, "square": 9},
    ]


def test_steps_without_metrics_leave_no_history():
    run = Run(lambda i: None, 3, mode="cell").start()
    assert (run.iteration, run.history) == (3, [])


def test_ends_early_when_solved(mode):
    def raises(i: int) -> None:
        if i == 2:
            raise StopIteration

    for step in (raises, lambda i: Run.STOP if i == 2 else None):
        run = Run(step, 100, mode=mode).start().wait()
        assert (run.state, run.iteration) == ("done", 2)


def test_takes_an_iterable_of_metrics(mode):
    run = Run(({"loss": i} for i in range(5)), mode=mode).start().wait()
    assert (run.state, run.iteration, run.n, run.history[-1]["loss"]) == ("done", 5, None, 4)


def test_knows_the_length_of_a_list():
    assert Run([{"loss": 1.0}, {"loss": 2.0}]).n == 2


def test_n_limits_an_iterable():
    run = Run(iter(lambda: {"loss": 1.0}, None), 3, mode="cell").start()
    assert run.iteration == 3


def test_a_stopped_generator_is_closed():
    closed = threading.Event()

    def training() -> Iterator[dict[str, float]]:
        try:
            while True:
                yield brief(0)
        finally:
            closed.set()

    run = Run(training(), mode="thread").start()
    until(lambda: run.iteration > 3)
    run.stop().wait()
    assert run.state == "stopped"
    assert closed.is_set()


def test_pause_step_resume_stop():
    run = Run(brief, mode="thread").start()
    until(lambda: run.iteration > 3)
    run.pause()
    assert run.state == "paused"
    at = run.iteration
    run.step_once()
    assert (run.state, run.iteration) == ("paused", at + 1)
    run.step_once()
    assert run.iteration == at + 2
    run.resume()
    until(lambda: run.iteration > at + 10)
    assert run.state == "running"
    run.stop()
    assert run.state == "stopped"
    at = run.iteration
    time.sleep(0.02)
    assert run.iteration == at == len(run.history)


def test_stop_ends_a_paused_run():
    run = Run(brief, mode="thread").start().pause().stop()
    assert run.wait().state == "stopped"


def test_steps_by_hand_from_the_start(mode):
    run = Run(brief, 3, mode=mode)
    run.step_once()
    assert (run.state, run.iteration) == ("paused", 1)
    run.step_once().step_once()
    assert (run.state, run.iteration) == ("done", 3)


def test_resume_starts_an_idle_run(mode):
    assert Run(brief, 2, mode=mode).resume().wait().state == "done"


def test_a_step_may_pause_its_own_run(mode):
    run = Run(lambda i: run.pause() and None if i == 1 else None, 4, mode=mode)
    run.start()
    until(lambda: run.state == "paused")
    assert run.iteration == 2
    assert run.resume().wait().state == "done"
    assert run.iteration == 4


def test_an_error_keeps_its_traceback(mode):
    def broken_step(i: int) -> None:
        raise ZeroDivisionError("a broken step")

    run = Run(broken_step, 3, mode=mode, board=Told())
    with pytest.raises(ZeroDivisionError, match="a broken step") as caught:
        run.start().wait()
    assert "broken_step" in [frame.name for frame in traceback.extract_tb(caught.tb)]
    assert run.state == "failed"
    assert run.error is caught.value


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_in_a_thread_without_a_board_is_printed(monkeypatch):
    printed: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: printed.append(str(args.exc_value)))
    run = Run(lambda i: 1 / 0, 3, mode="thread").start()
    until(lambda: bool(printed))
    assert printed == ["division by zero"]
    assert run.state == "failed"


def test_an_interrupt_in_the_cell_keeps_partial_results():
    def step(i: int) -> dict[str, float]:
        if i == 3:
            raise KeyboardInterrupt
        return {"loss": i}

    run = Run(step, 10, mode="cell").start()
    assert (run.state, run.iteration, len(run.history)) == ("stopped", 3, 3)


def test_an_interrupt_while_waiting_stops_the_run():
    sent = []

    def step(i: int) -> None:
        time.sleep(0.0005)
        if i >= 20 and run.blocked and not sent:
            sent.append(i)
            _thread.interrupt_main()

    run = Run(step, mode="thread").start()
    assert run.wait(timeout=60).state == "stopped"
    assert run.iteration >= 20


def test_await_lets_other_tasks_live():
    async def main() -> tuple[str, int]:
        run = Run(brief, mode="thread").start()

        async def button() -> None:
            while run.iteration < 10:
                await asyncio.sleep(0.001)
            run.stop(timeout=0)

        task = asyncio.create_task(button())
        await run
        await task
        return run.state, run.iteration

    state, iteration = asyncio.run(main())
    assert state == "stopped"
    assert iteration >= 10


def test_cancelling_an_await_stops_the_run():
    async def main() -> Run:
        run = Run(brief, mode="thread").start()

        async def cell() -> Run:
            return await run

        task = asyncio.create_task(cell())
        await asyncio.sleep(0.02)
        task.cancel()
        return await task

    assert asyncio.run(main()).state == "stopped"


def test_wait_with_a_timeout_leaves_the_run_alone():
    run = Run(brief, mode="thread").start().wait(timeout=0.02)
    assert run.state == "running"
    run.stop()


def test_a_run_stops_the_one_before_it_with_the_same_name():
    first = Run(brief, mode="thread", name="a").start()
    other = Run(brief, mode="thread", name="b").start()
    second = Run(brief, mode="thread", name="a").start()
    assert (first.state, other.state, second.state) == ("stopped", "running", "running")
    other.stop()
    second.stop()


def test_a_previous_run_that_does_not_end_is_an_error(monkeypatch):
    monkeypatch.setattr(run_module, "PATIENCE_S", 0.01)
    release = threading.Event()
    first = Run(lambda i: release.wait(PATIENCE_S) and None, mode="thread", name="stuck").start()
    with pytest.raises(ConfigError, match=r"previous run 'stuck' must be stopped.*pass another name"):
        Run(brief, mode="thread", name="stuck").start()
    release.set()
    first.wait()


def test_starts_only_once():
    run = Run(brief, 1, mode="cell").start()
    with pytest.raises(ConfigError, match="must be a new one; got one that is done"):
        run.start()


def test_waits_only_when_started():
    with pytest.raises(ConfigError, match=r"Call run.start\(\) first"):
        Run(brief, 1).wait()
    with pytest.raises(ConfigError, match=r"Call run.start\(\) first"):
        asyncio.run(Run(brief, 1)._wait_beside_others())


def test_tells_its_board(mode):
    board = Told()
    Run(lambda i: {"loss": float(i)}, 2, board=board, mode=mode).start().wait()
    assert board.added == [(1, {"loss": 0.0}), (2, {"loss": 1.0})]
    assert [event for event in board.events if event != "running"] == ["attach", "begin", "done", "finish"]


def test_metrics_may_be_tensors_and_arrays():
    weight = torch.tensor(2.0, requires_grad=True)
    metrics = {"loss": weight * 3, "reward": np.float32(0.5), "done": torch.tensor(True), ("next", "value"): torch.ones(1)}
    run = Run(lambda i: metrics, 1, mode="cell").start()
    assert run.history == [{"iteration": 1, "loss": 6.0, "reward": 0.5, "done": 1.0, "next.value": 1.0}]
    assert all(type(value) in (int, float) for value in run.history[0].values())


@pytest.mark.parametrize(
    "returned, message",
    [
        ({"loss": torch.zeros(3)}, r"metrics\['loss'\] must be one number; got Tensor of shape \[3\]. Reduce it.*mean"),
        ({"note": "good"}, r"metrics\['note'\] must be one number; got 'good'. Leave it out"),
        (0.5, r"a step returns must be a dict of metrics, None or Run.STOP; got float"),
        ((i for i in range(3)), r"got generator. Call the recipe: Run\(train\(config\)\)"),
    ],
)
def test_explains_a_wrong_result(returned, message):
    with pytest.raises(ConfigError, match=message):
        Run(lambda i: returned, 1, mode="cell").start()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"step": 3}, "step must be a function or an iterable; got int"),
        ({"step": brief, "n": 0}, "n must be a positive whole number of steps"),
        ({"step": brief, "n": 2.5}, "n must be a positive whole number of steps"),
        ({"step": brief, "mode": "process"}, "mode must be 'auto', 'thread' or 'cell'; got 'process'"),
    ],
)
def test_explains_a_wrong_argument(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Run(**arguments)


def test_pace_and_time_leave_pauses_out(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(run_module, "perf_counter", lambda: now[0])

    def step(i: int) -> None:
        now[0] += 0.25

    run = Run(step, mode="cell")
    run.step_once()
    now[0] += 100.0  # nobody works meanwhile
    for _ in range(19):
        run.step_once()
    assert run.elapsed == pytest.approx(5.0)
    assert run.steps_per_second == pytest.approx(4.0)


class Kernel:
    """As much of IPython's shell as tells a kernel from a terminal."""

    kernel = object()


@pytest.mark.parametrize(
    "env, colab, kernel, expected",
    [
        ({}, False, True, "thread"),
        ({}, False, False, "cell"),
        ({}, True, True, "cell"),
        ({"CI": "true"}, False, True, "cell"),
        ({"PYTEST_VERSION": "9"}, False, True, "cell"),
        ({"RLBOOK_RUN_MODE": "cell"}, False, True, "cell"),
        ({"RLBOOK_RUN_MODE": "thread", "CI": "true"}, False, True, "thread"),
    ],
)
def test_the_mode_follows_the_place(monkeypatch, env, colab, kernel, expected):
    for name in ("RLBOOK_RUN_MODE", "CI", "PYTEST_VERSION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(_front, "in_kernel", lambda: kernel)
    if colab:
        monkeypatch.setitem(sys.modules, "google.colab", object())
    assert Run(brief, 1).mode == expected


def test_explains_a_wrong_mode_in_the_environment(monkeypatch):
    monkeypatch.setenv("RLBOOK_RUN_MODE", "fast")
    with pytest.raises(ConfigError, match="RLBOOK_RUN_MODE must be 'thread' or 'cell'; got 'fast'"):
        _front.automated()


def test_says_what_it_is():
    run = Run(brief, 3, mode="cell", name="toy")
    assert repr(run) == "Run('toy', idle, 0 of 3 steps)"
    assert repr(run.start()) == "Run('toy', done, 3 of 3 steps)"
