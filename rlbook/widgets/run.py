"""Run a training step again and again, so that it can be paused, stepped and stopped.

In Jupyter the steps run in a background thread: other cells stay alive and a button can reach the run. On Colab, in scripts and
where a machine executes the notebook, the same steps run in the cell itself, and an interrupt ends them gracefully.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from contextvars import copy_context
from math import inf
from time import perf_counter
from typing import Any, ClassVar, Protocol
from weakref import WeakValueDictionary

from rlbook.errors import ConfigError, explain
from rlbook.widgets._front import MODES, default_mode
from rlbook.widgets._series import as_floats

Step = Callable[[int], Any]
WINDOW_S = 2.0  # steps_per_second looks back this far
POLL_S = 0.05  # how often a waiting cell looks up
PATIENCE_S = 10.0  # how long a new run waits for the last step of the one that it replaces


class Board(Protocol):
    """What a run tells about itself; ``LivePlot`` and ``Dashboard`` are boards."""

    def attach(self, run: Run) -> None:
        """A run was made for this board."""
        ...

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step is done."""
        ...

    def begin(self) -> None:
        """The run starts."""
        ...

    def sync(self) -> None:
        """The run's state changed."""
        ...

    def finish(self) -> None:
        """The run is over."""
        ...


class Run:
    """Call ``step(i)`` for ``i = 0 .. n - 1``, or draw from an iterable, with pause, resume, single steps and stop.

    Args:
        step: a function of the step number that returns a dict of metrics or None; it raises StopIteration or returns
            ``Run.STOP`` to end early. Or an iterable of such dicts: every ``next`` is a step.
        n: number of steps; None goes on until the iterable ends or ``step`` ends it.
        board: shows the metrics, for example a ``Dashboard``.
        mode: ``"thread"`` (other cells stay alive), ``"cell"`` (``start`` returns when all is done) or ``"auto"``.
        name: starting a run stops the one before it that has the same name.

    Attributes:
        state: ``"idle"``, ``"running"``, ``"paused"``, ``"stopped"`` (by the user), ``"done"`` or ``"failed"``.
        iteration: how many steps are done.
        history: one dict for each step that returned metrics: ``{"iteration": 1, "loss": 0.3}``.
        elapsed: seconds spent in steps, pauses excluded.
        blocked: whether a cell keeps the kernel busy with this run, so that buttons reach it only by an interrupt.

    Example:
        >>> run = Run(lambda i: {"loss": 1 / (i + 1)}, n=3).start().wait()
        >>> run.state, run.history[-1]["loss"]
        ('done', 0.3333333333333333)
    """

    STOP: ClassVar[object] = object()
    _current: ClassVar[WeakValueDictionary[str, Run]] = WeakValueDictionary()

    def __init__(
        self,
        step: Step | Iterable[Any],
        n: int | None = None,
        board: Board | None = None,
        mode: str = "auto",
        name: str = "run",
    ):
        self._step, self._close = _as_step(step)
        self.n = len(step) if n is None and hasattr(step, "__len__") and not callable(step) else n  # type: ignore[arg-type]
        self.mode = default_mode() if mode == "auto" else mode
        _check(self.n, self.mode)
        self.blocked = self.mode == "cell"
        self.board, self.name = board, name
        self.state = "idle"
        self.iteration = 0
        self.elapsed = self._rate = 0.0
        self.history: list[dict[str, float]] = []
        self.error: BaseException | None = None
        self._turn = threading.Condition()  # guards what follows, and the state
        self._hold = self._quit = False
        self._grants = 0
        self._runner: int | None = None
        self._over = threading.Event()
        self._awaited = self._finished = False
        if board is not None:
            board.attach(self)

    def start(self) -> Run:
        """Begin. In mode ``"thread"`` return at once, in mode ``"cell"`` when all steps are done."""
        return self._begin()

    def pause(self, timeout: float = 2.0) -> Run:
        """Pause before the next step; wait up to ``timeout`` seconds for the current one to end."""
        with self._turn:
            self._hold = True
        return self._settle(lambda: self.state != "running", timeout)

    def resume(self) -> Run:
        """Go on after a pause; start a run that was not started."""
        if self.state == "idle":
            return self._begin()
        with self._turn:
            self._hold, self._grants = False, 0
            self._turn.notify_all()
        return self._continue_here()

    def step_once(self, timeout: float = 2.0) -> Run:
        """Do one step and pause again; wait up to ``timeout`` seconds for it to end."""
        with self._turn:
            self._hold = True
            self._grants += 1
            self._turn.notify_all()
        if self.state == "idle":
            self._begin()
        self._continue_here()
        return self._settle(lambda: self._grants == 0 and self.state != "running", timeout)

    def stop(self, timeout: float = 2.0) -> Run:
        """End the run before its next step; wait up to ``timeout`` seconds for the current one to end. Results are kept."""
        with self._turn:
            self._quit = True
            self._turn.notify_all()
        if self.state == "idle" or (self.state == "paused" and self._runner is None):
            self._end("stopped")
        return self._settle(lambda: not self.active, timeout)

    def wait(self, timeout: float | None = None) -> Run:
        """Block until the run is over, at most ``timeout`` seconds.

        In a notebook ``await run`` does the same and keeps the buttons and sliders alive meanwhile (ipykernel 7.4 or newer).
        An interrupt (the kernel's stop button, Ctrl-C) stops the run gracefully and keeps its results.

        Raises:
            ConfigError: the run was not started.
            BaseException: whatever a step raised, with its traceback.
        """
        self._check_started()
        deadline = inf if timeout is None else perf_counter() + timeout
        self._awaited = True
        self._block(True)
        try:
            while self._runner is not None and perf_counter() < deadline and not self._over.wait(POLL_S):
                pass
        except KeyboardInterrupt:
            self.stop()
        finally:
            self._block(False)
        return self._result()

    def __await__(self) -> Generator[Any, None, Run]:
        return self._wait_beside_others().__await__()

    async def _wait_beside_others(self) -> Run:
        """Wait in the kernel's event loop, which goes on to answer the widgets."""
        self._check_started()
        self._awaited = True
        try:
            while self._runner is not None and not self._over.is_set():
                await asyncio.sleep(POLL_S)
        except (KeyboardInterrupt, asyncio.CancelledError):  # how a kernel interrupts a cell that awaits
            self.stop()
        return self._result()

    def _block(self, blocked: bool) -> None:
        """Tell the board whether a cell keeps the kernel busy, so that only an interrupt reaches the run."""
        self.blocked = blocked or self.mode == "cell"
        if self.active and self.board is not None:
            self.board.sync()

    def _check_started(self) -> None:
        if self.state == "idle":
            raise ConfigError(explain("a run that you wait for", "started", "an idle one", "Call run.start() first"))

    def _result(self) -> Run:
        """Return the run to the cell that waited for it, or raise the error of its step."""
        with self._turn:
            self._awaited = False
            over = self._over.is_set()
        if over:
            self._finish()
        if self.error is not None:
            raise self.error
        return self

    @property
    def active(self) -> bool:
        """Is the run started and not over?"""
        return self.state in ("running", "paused")

    @property
    def steps_per_second(self) -> float:
        """Pace over the last two seconds of work, pauses excluded."""
        return self._rate

    def _begin(self) -> Run:
        if self.state != "idle":
            raise ConfigError(explain("a run that you start", "a new one", f"one that is {self.state}", "Make another Run"))
        self._replace_previous()
        self.state = "running"
        if self.board is not None:
            self.board.begin()
        if self.mode == "thread":
            # The context carries the cell's identity, so that whatever the steps print lands below the cell that started them.
            self._runner = -1
            threading.Thread(target=copy_context().run, args=(self._loop,), name=f"rlbook {self.name}", daemon=True).start()
        else:
            self._loop()
        return self

    def _replace_previous(self) -> None:
        previous = self._current.get(self.name)
        if previous is not None and previous is not self and previous.stop(PATIENCE_S).active:
            got = f"one still inside a step after {PATIENCE_S:.0f} s"
            raise ConfigError(explain(f"the previous run {self.name!r}", "stopped", got, "Wait for it, or pass another name"))
        self._current[self.name] = self

    def _loop(self) -> None:
        """Take steps until the end, or in mode ``"cell"`` until a pause."""
        self._runner = threading.get_ident()
        try:
            while self._may_step():
                if not self._advance():
                    return self._end("done")
            if self._quit:
                self._end("stopped")
        except KeyboardInterrupt:
            self._end("stopped")
        except BaseException as error:
            self._end("failed", error)
            if self.mode == "cell" or self.board is None:  # a board shows the error by itself
                raise
        finally:
            self._runner = None

    def _may_step(self) -> bool:
        """Wait while paused; return False when the loop shall be left."""
        if self.state == "running" and not self._hold and not self._quit:  # the usual case takes no lock
            return True
        with self._turn:
            if self._hold and not self._grants and not self._quit:
                self._become("paused")
                if self.mode == "cell":
                    return False
                self._turn.wait_for(lambda: self._quit or self._grants or not self._hold)
            if not self._hold:
                self._become("running")
            return not self._quit

    def _advance(self) -> bool:
        """Take one step; return False when it was the last one."""
        begun = perf_counter()
        try:
            metrics = self._step(self.iteration)
        except StopIteration:
            return False
        if metrics is Run.STOP:
            return False
        self.iteration += 1
        self._record({} if metrics is None else metrics)
        seconds = max(perf_counter() - begun, 1e-9)
        self.elapsed += seconds
        self._rate += (1 - self._rate * seconds) / max(seconds, min(self.elapsed, WINDOW_S))
        if self._grants:
            with self._turn:
                self._grants -= 1
        return self.n is None or self.iteration < self.n

    def _record(self, metrics: Any) -> None:
        if not hasattr(metrics, "items"):
            fix = "Call the recipe: Run(train(config))" if hasattr(metrics, "__next__") else "Return for example {'loss': 0.3}"
            raise ConfigError(explain("what a step returns", "a dict of metrics, None or Run.STOP", type(metrics).__name__, fix))
        numbers = as_floats(metrics)
        if numbers:
            self.history.append({"iteration": self.iteration, **numbers})
        if self._heard:
            self.board.add(self.iteration, numbers)  # type: ignore[union-attr]

    def _become(self, state: str) -> None:
        self.state = state
        self._turn.notify_all()
        if self._heard:
            self.board.sync()  # type: ignore[union-attr]

    def _end(self, state: str, error: BaseException | None = None) -> None:
        with self._turn:
            self.error = error
            self._grants = 0
            self._become(state)
        try:
            self._close()
        finally:
            with self._turn:
                self._over.set()
                awaited = self._awaited
            if not awaited:
                self._finish()

    def _finish(self) -> None:
        """Let the board leave its last picture, once: from the cell that waits for the run, else from the run's own thread."""
        with self._turn:
            due, self._finished = not self._finished, True
        if due and self._heard:
            self.board.finish()  # type: ignore[union-attr]

    @property
    def _heard(self) -> bool:
        """Whether there is a board, and no other run has got it since."""
        return self.board is not None and getattr(self.board, "attached", self) is self

    def _settle(self, reached: Callable[[], bool], timeout: float) -> Run:
        """Wait until the other thread has done as it was told; the run's own thread must not wait for itself."""
        if self._runner not in (None, threading.get_ident()):
            with self._turn:
                self._turn.wait_for(reached, timeout)
        return self

    def _continue_here(self) -> Run:
        if self.mode == "cell" and self.state == "paused" and self._runner is None:
            self._loop()
        return self

    def _ipython_display_(self) -> None:
        """Say nothing below a cell whose board says it all."""
        if self.board is None or not self.active:
            from IPython.display import publish_display_data

            publish_display_data({"text/plain": repr(self)})

    def __repr__(self) -> str:
        of = "" if self.n is None else f" of {self.n}"
        return f"Run({self.name!r}, {self.state}, {self.iteration}{of} steps)"


def _as_step(step: Step | Iterable[Any]) -> tuple[Step, Callable[[], None]]:
    """Return a function of the step number, and what to call at the end."""
    if callable(step):
        return step, lambda: None
    if not isinstance(step, Iterable):
        got = type(step).__name__
        raise ConfigError(explain("step", "a function or an iterable", got, "Pass for example Run(lambda i: {'x': i}, n=10)"))
    items = iter(step)
    return lambda _: next(items), getattr(items, "close", lambda: None)


def _check(n: int | None, mode: str) -> None:
    if n is not None and (not isinstance(n, int) or n < 1):
        raise ConfigError(explain("n", "a positive whole number of steps, or None", repr(n), "Pass for example n=100"))
    if mode not in MODES:
        raise ConfigError(explain("mode", "'auto', 'thread' or 'cell'", repr(mode), "Leave it out"))
