"""Compare what a learner's function gives with what it should give, and find the words for the difference."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Number
from string import ascii_lowercase
from typing import Any

import torch
from torch import Tensor

from rlbook.course.attempt import Outcome, attempt, outcome_of
from rlbook.course.exercise import Arguments, Exercise, Function

Case = tuple[str, Arguments]
RTOL, ATOL = 1e-4, 1e-5
SHOWN = 6
"""Numbers of a tensor that an example shows."""
MOST_PRINTED = 500
"""Characters of what the learner's function prints that are shown."""


@dataclass
class Verdict:
    """What is to be said about an attempt."""

    right: bool
    says: str
    example: tuple[tuple[str, str], ...] = ()
    """Rows of a small table: a name and a value."""


def judge(function: Function, exercise: Exercise) -> Verdict:
    """Try a function on the exercise's random inputs.

    Raises:
        Unsolved, Trouble: see :func:`~rlbook.course.attempt.attempt`.
    """
    cases = list(exercise.cases())
    # the reference goes first: what it loads when it is first called must not count as the learner's time
    want = [] if exercise.goal else [outcome_of(exercise.reference, exercise, arguments) for _, arguments in cases]
    got = [attempt(function, exercise, arguments) for _, arguments in cases]
    printed = printed_row(got[0].printed)
    if exercise.goal is not None:
        missing = exercise.goal(lambda *arguments: attempt(function, exercise, arguments).value)
        if not missing:
            return Verdict(True, "Goal reached.", printed)
        return Verdict(False, name_mistake(exercise, cases, got) or missing, printed)
    wrong = [i for i in range(len(cases)) if not same(got[i], want[i])]
    if not wrong:
        refused = refused_by_compiler(function, exercise) if exercise.compiled else ""
        if refused:
            return Verdict(False, refused, printed)
        return Verdict(True, f"Right, on {len(cases)} random inputs.", printed)
    first = wrong[0]
    example = tuple(example_rows(exercise, cases[first][1], got[first], want[first]))
    says = name_mistake(exercise, cases, got)
    if not says and any(not equal(g.value, w.value) for g, w in zip(got, want, strict=True)):
        says = name_mistake(exercise, cases, got, with_gradients=False)
    if not says:
        says = f"{first_difference(got[first], want[first])} {where_right(cases, wrong)}".strip()
    return Verdict(False, says, (*example, *printed))


def refused_by_compiler(function: Function, exercise: Exercise) -> str:
    """Say why ``torch.compile`` cannot record a function as one graph; "" if it can."""
    recorded = torch.compile(function, fullgraph=True, backend="aot_eager")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for arguments in exercise.draw(0).values():
                recorded(*arguments)
    except Exception as error:
        return (
            "The numbers are right, but the lesson compiles this later, and `torch.compile` cannot record it "
            f"({type(error).__name__}). Leave out `print`, and whatever makes a Python number of a tensor: `.item()`, `if`, "
            "`torch.full_like`, or `.clamp` and `.clip` with a number at one end and a tensor at the other."
        )
    return ""


def name_mistake(exercise: Exercise, cases: list[Case], got: list[Outcome], with_gradients: bool = True) -> str:
    """Return the known mistake that gives the same outputs on every input, or ""."""
    for message, mistake in exercise.mistakes.items():
        outcomes = (outcome_of(mistake, exercise, arguments) for _, arguments in cases)
        if all(same(mine, known, with_gradients) for mine, known in zip(got, outcomes, strict=True)):
            return message
    return ""


def same(a: Outcome, b: Outcome, with_gradients: bool = True) -> bool:
    """Are two outcomes equal, gradients included?"""
    if not equal(a.value, b.value):
        return False
    return not with_gradients or all(equal(a.gradients[name], b.gradients[name]) for name in b.gradients)


def equal(got: Any, want: Any) -> bool:
    """Is ``got`` of the kind of ``want``, and equal up to rounding?"""
    if isinstance(want, tuple):
        return isinstance(got, tuple | list) and len(got) == len(want) and all(map(equal, got, want))
    if isinstance(want, Tensor):
        if not isinstance(got, Tensor) or got.shape != want.shape or got.dtype != want.dtype:
            return False
        return torch.allclose(got, want, RTOL, ATOL, equal_nan=True) if want.is_floating_point() else torch.equal(got, want)
    number = as_number(got)
    return number is not None and math.isclose(number, want, rel_tol=RTOL, abs_tol=ATOL)


def as_number(x: Any) -> float | None:
    """Return a number, or a tensor or array with one element, as a float; None for anything else."""
    try:
        return None if isinstance(x, str | bytes) else float(x)
    except (TypeError, ValueError, RuntimeError):
        return None


# ---- words -----------------------------------------------------------------------------------------------------------------
def first_difference(got: Outcome, want: Outcome) -> str:
    """Say what is wrong with an output that no known mistake explains: kind, shape, dtype, gradient, or just the numbers."""
    return difference(got.value, want.value) or gradient_difference(got, want) or "The numbers differ."


def difference(got: Any, want: Any, what: str = "What it returns") -> str:
    """Say how one output differs in kind, shape or dtype; "" if only its numbers do."""
    if isinstance(want, tuple):
        if not isinstance(got, tuple | list) or len(got) != len(want):
            names = ", ".join(ascii_lowercase[: len(want)])
            return f"{what} must be {len(want)} things, `return {names}`; it is {describe(got)}."
        return next(
            filter(None, (difference(g, w, f"Output {i}") for i, (g, w) in enumerate(zip(got, want, strict=True), 1))), ""
        )
    if isinstance(want, Tensor):
        if not isinstance(got, Tensor):
            number = " Leave `.item()` and `float()` out, so that gradients can flow." if isinstance(got, Number) else ""
            return f"{what} must be a tensor; it is {describe(got)}.{number}"
        if got.shape != want.shape:
            return f"{what} must have the shape {list(want.shape)}; it has {list(got.shape)}.{shape_advice(got, want)}"
        if got.dtype != want.dtype:
            return f"{what} must have the dtype of the inputs, {want.dtype}; it has {got.dtype}."
    elif as_number(got) is None:
        return f"{what} must be one number; it is {describe(got)}."
    return ""


def shape_advice(got: Tensor, want: Tensor) -> str:
    """Guess how a wrong shape came about."""
    if want.ndim and not got.ndim:
        return " One number for each element is asked for: leave the mean or the sum out."
    if got.ndim and not want.ndim:
        return " One number for the whole batch is asked for: take the mean."
    if got.shape == (*want.shape, 1):
        return " Drop the trailing 1: `.squeeze(-1)`."
    if got.ndim == want.ndim + 1:
        return " Two shapes were broadcast against each other: is there a `[:, None]` or a trailing 1?"
    return ""


def gradient_difference(got: Outcome, want: Outcome) -> str:
    """Say which argument receives a gradient that it must not, or lacks one."""
    if not equal(got.value, want.value):
        return ""
    for name, gradient in want.gradients.items():
        mine = got.gradients[name]
        if equal(mine, gradient):
            continue
        if not gradient.any():
            return f"The numbers are right, but a gradient flows into `{name}`, which is data here: use `{name}.detach()`."
        if not mine.any():
            return f"The numbers are right, but no gradient reaches `{name}`: leave `.detach()` and `torch.no_grad()` out."
        return f"The numbers are right, but the gradient for `{name}` is not."
    return ""


def where_right(cases: list[Case], wrong: list[int]) -> str:
    """Say in which situations the function is right and in which it is not, if that tells anything."""
    bad = list(dict.fromkeys(cases[i][0] for i in wrong))
    good = [label for label in dict.fromkeys(label for label, _ in cases) if label not in bad]
    return f"It is right where {' and where '.join(good)}, but not where {' or where '.join(bad)}." if good else ""


def example_rows(exercise: Exercise, arguments: Arguments, got: Outcome, want: Outcome) -> Iterator[tuple[str, str]]:
    """Yield the rows of an example: every argument, what came and what should have come."""
    yield from ((name, describe(x)) for name, x in zip(exercise.arguments, arguments, strict=True))
    yield "yours", describe(got.value)
    yield "reference", describe(want.value)


def printed_row(text: str) -> tuple[tuple[str, str], ...]:
    """Return what a function printed as a row, if it did."""
    text = text.strip()
    return (("it prints", text if len(text) <= MOST_PRINTED else f"{text[:MOST_PRINTED]} ..."),) if text else ()


def describe(x: Any) -> str:
    """Write a value in a few characters: ``[0.5, -1.2, ...]``."""
    if isinstance(x, tuple):
        return ", ".join(map(describe, x)) if x else "()"
    if isinstance(x, Tensor):
        if x.ndim > 1:
            rows = ", ".join(describe(row) for row in x[:2])
            return f"[{rows}{', ...' if len(x) > 2 else ''}]"
        x = x.detach()
        if not x.ndim:
            return short(x.item())
        return f"[{', '.join(map(short, x[:SHOWN].tolist()))}{', ...' if len(x) > SHOWN else ''}]"
    if isinstance(x, list):
        return f"[{', '.join(map(describe, x[:SHOWN]))}{', ...' if len(x) > SHOWN else ''}]"
    return short(x) if isinstance(x, Number) else f"a `{type(x).__name__}`"


def short(x: Any) -> str:
    """Write a number with four digits."""
    return f"{x:.4g}" if isinstance(x, float) else str(x)
