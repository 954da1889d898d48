"""Call a function that a learner wrote: whatever it does - raise, loop, print, change its arguments - is caught and explained."""

from __future__ import annotations

import ctypes
import dis
import inspect
import io
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlbook.course.exercise import Arguments, Exercise, Function

LIMIT_S = 5.0
"""How long one call may take."""
STUB = {"RESUME", "NOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST", "RETURN_GENERATOR"}
"""What the body ``...`` compiles to."""


class Unsolved(Exception):
    """There is nothing to judge yet."""


class Trouble(Exception):
    """The learner's function cannot be judged by its outputs; the message says why, in the learner's terms."""

    printed = ""
    """What it printed before."""


class OutOfTime(BaseException):
    """The learner's function took too long. It is no Exception: a learner's ``except Exception`` must not swallow it."""


@dataclass
class Outcome:
    """What a call gave."""

    value: Any
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Of the sum of all outputs, for every floating argument; zeros where none arrives."""
    printed: str = ""


def attempt(function: Any, exercise: Exercise, arguments: Arguments) -> Outcome:
    """Call ``function`` on copies of ``arguments``.

    Raises:
        Unsolved: it is the empty stub of the lesson.
        Trouble: it cannot be called, raises, takes too long, returns nothing, or changes its arguments.
    """
    check_callable(function, exercise, arguments)
    leaves = [leaf_of(x, exercise.gradients) for x in arguments]
    given = [copy_of(x) for x in leaves]
    out = io.StringIO()
    try:
        with redirect_stdout(out):
            value = call(function, given)
    except Trouble as trouble:
        trouble.printed = out.getvalue()
        raise
    if value is ...:
        raise Unsolved
    if value is None:
        raise Trouble("It returns None. Is the `return` missing?")
    for name, before, after in zip(exercise.arguments, leaves, given, strict=True):
        if not unchanged(before, after):
            fix = f"Work on a copy (`{name} = {name}.clone()`)" if isinstance(after, Tensor) else "Build a new list"
            raise Trouble(f"It changes its argument `{name}` in place, under the hands of whoever called it. {fix}.")
    return Outcome(value, gradients_of(value, exercise, leaves), out.getvalue())


def outcome_of(function: Function, exercise: Exercise, arguments: Arguments) -> Outcome:
    """Call a function of our own, which needs no watching."""
    leaves = [leaf_of(x, exercise.gradients) for x in arguments]
    value = function(*map(copy_of, leaves))
    return Outcome(value, gradients_of(value, exercise, leaves))


def check_callable(function: Any, exercise: Exercise, arguments: Arguments) -> None:
    """Raise unless ``function`` can be called as the exercise does."""
    if function is None or function is ... or is_stub(function):
        raise Unsolved
    if not callable(function):
        name = type(function).__name__
        call = f'check("{exercise.name}", {exercise.name})'
        raise Trouble(f"Hand over the function itself, not what it returns: `{call}`. This is a `{name}`.")
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        own = getattr(function, "__name__", type(function).__name__)
        raise Trouble(
            f"It is called as `{exercise.call}`; yours is `{own}{inspect.signature(function)}`. Restore the first line."
        ) from None
    except ValueError:  # a builtin without signature
        pass


def is_stub(function: Any) -> bool:
    """Is the body of ``function`` nothing but ``...``, ``pass`` or a docstring?"""
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    steps = list(dis.get_instructions(code))
    return {step.opname for step in steps} <= STUB and all(step.argval is None for step in steps if step.opname.endswith("CONST"))


def call(function: Function, arguments: list[Any]) -> Any:
    """Call ``function`` and explain what it raises."""
    try:
        with time_limit(LIMIT_S):
            return function(*arguments)
    except NotImplementedError:
        raise Unsolved from None
    except OutOfTime:
        raise Trouble(
            f"It was still busy after {LIMIT_S:.0f} seconds, so it was stopped. Does a loop of yours never end?"
        ) from None
    except SystemExit:
        raise Trouble("It ends the program (`exit` or `quit`). Return a value instead.") from None
    except RecursionError:
        raise Trouble("It calls itself without end. Where does the recursion stop?") from None
    except Exception as error:
        if "ellipsis" in str(error):  # a hole of the exercise is still there
            raise Unsolved from None
        raise Trouble(f"It raises {type(error).__name__}: {first_line(error)}{where(error)}.") from None


def first_line(error: Exception) -> str:
    """Return what an exception says, in one line without a full stop."""
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")


def where(error: Exception) -> str:
    """Return the line of the learner's code that raised: the first below our own call."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames[1:] if frame.filename == frames[1].filename] if len(frames) > 1 else []
    return f" (line {own[-1].lineno}: `{own[-1].line}`)" if own and own[-1].line else ""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in this thread's Python code when it runs longer, on every platform; a debugger may take its time."""
    if sys.gettrace() is not None or sys.platform == "emscripten":  # no threads there
        yield
        return
    thread, lock = ctypes.c_ulong(threading.get_ident()), threading.Lock()
    over = rung = False

    def ring() -> None:
        nonlocal rung
        with lock:
            if not over:
                rung = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(OutOfTime))

    timer = threading.Timer(seconds, ring)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            over = True
        timer.cancel()
        while rung and not isinstance(sys.exc_info()[1], OutOfTime):
            pass  # it has rung at the last moment: the exception arrives here


def leaf_of(x: Any, gradients: bool) -> Any:
    """Return an argument that is ready to receive a gradient if asked to."""
    return x.detach().requires_grad_(gradients) if isinstance(x, Tensor) and x.is_floating_point() else x


def copy_of(x: Any) -> Any:
    """Return a copy that may be changed in place."""
    return x.clone() if isinstance(x, Tensor) else list(x) if isinstance(x, list) else x


def unchanged(before: Any, after: Any) -> bool:
    """Is an argument what it was before the call?"""
    if isinstance(before, Tensor):
        return before.shape == after.shape and torch.equal(before, after)
    return bool(before == after)


def gradients_of(value: Any, exercise: Exercise, leaves: list[Any]) -> dict[str, Tensor]:
    """Return the gradient of the sum of all outputs for each argument that may have one."""
    inputs = {name: x for name, x in zip(exercise.arguments, leaves, strict=True) if isinstance(x, Tensor) and x.requires_grad}
    values = value if isinstance(value, tuple | list) else (value,)
    outputs = [y.sum() for y in values if isinstance(y, Tensor) and y.requires_grad]
    if not inputs or not outputs:
        return {name: torch.zeros_like(x) for name, x in inputs.items()}
    gradients = torch.autograd.grad(outputs, list(inputs.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(inputs, gradients, strict=True))
