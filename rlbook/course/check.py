"""``check("name", function)``: is what the learner wrote right? If not, what is wrong with it? The lesson goes on either way."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass
from html import escape
from typing import Any

from rlbook.course.attempt import Trouble, Unsolved
from rlbook.course.diagnose import Verdict, judge, printed_row
from rlbook.course.exercise import Exercise, find_exercise
from rlbook.errors import ConfigError, RLBookError, explain
from rlbook.widgets._front import in_kernel
from rlbook.widgets._text import plain, rich

LOOK = {"solved": ("\N{CHECK MARK}", "#1a7f37"), "open": ("\N{WHITE CIRCLE}", "#9a6700"), "wrong": ("\N{BALLOT X}", "#bc4c00")}
"""Sign and color of each state; the words say the same."""
GOES_ON = "The lesson goes on with the reference."

_asked: Counter[str] = Counter()
"""How often each exercise was checked and not solved: the number of hints that the next check shows."""


class CourseError(RLBookError, AssertionError):
    """Under ``RLBOOK_STRICT=1``: an exercise is not solved."""


def check(name: str, function: Any, hint: int | None = None) -> Any:
    """Try ``function`` on random inputs, say what is right or wrong with it, and return the one to go on with.

    Wrong outputs are compared with those of known mistakes, so that the message names yours. Asking again shows one more hint.

    Args:
        name: the name of the exercise, as given in the lesson.
        function: what you wrote.
        hint: show the first so many hints now.

    Returns:
        ``function`` when it is right, else the reference.

    Raises:
        ConfigError: there is no exercise of this name, or no such hint.
        CourseError: it is not solved, and the environment variable ``RLBOOK_STRICT`` is 1 (for graders).

    Example:
        >>> from rlbook import check
        >>> def discounted_return(rewards, gamma):
        ...     return sum(rewards)
        >>> discounted_return = check("discounted_return", discounted_return)   # doctest: +ELLIPSIS
        ✗ discounted_return: You add the rewards up without discounting...
    """
    exercise = find_exercise(name)
    if hint is not None and not (isinstance(hint, int) and 0 <= hint <= len(exercise.hints)):
        raise ConfigError(
            explain("hint", f"from 0 to {len(exercise.hints)}", repr(hint), "Leave it out to get one more each time")
        )
    report = examine(exercise, function, hint)
    report.show()
    if report.state == "solved":
        return function
    if os.environ.get("RLBOOK_STRICT") == "1":
        raise CourseError(report.text())
    return exercise.reference


def examine(exercise: Exercise, function: Any, hint: int | None = None) -> Report:
    """Judge ``function`` and return what there is to say."""
    try:
        verdict = judge(function, exercise)
        state = "solved" if verdict.right else "wrong"
    except Unsolved:
        verdict, state = Verdict(False, "Not solved yet."), "open"
    except Trouble as trouble:
        verdict, state = Verdict(False, str(trouble), printed_row(trouble.printed)), "wrong"
    if state == "solved":
        return Report(exercise, state, f"{verdict.says} The lesson goes on with yours.", verdict.example)
    shown = min(_asked[exercise.name], len(exercise.hints)) if hint is None else hint
    _asked[exercise.name] = max(_asked[exercise.name], shown) + 1
    return Report(exercise, state, f"{verdict.says} {GOES_ON}", verdict.example, shown)


@dataclass
class Report:
    """A message, as text and as HTML."""

    exercise: Exercise
    state: str
    says: str
    example: tuple[tuple[str, str], ...] = ()
    hints: int = 0
    """How many are shown."""

    def lines(self) -> list[str]:
        """Return the hints, and how to get the next one."""
        hints = self.exercise.hints
        shown = [f"Hint {i}: {hint}" for i, hint in enumerate(hints[: self.hints], 1)]
        if self.state == "solved":
            return shown
        left = len(hints) - self.hints
        more = (
            f"{left} hint{'s' * (left > 1)} left: run this cell again."
            if left
            else "No hints left; the solution is folded below."
        )
        return [*shown, more] if hints else shown

    def text(self) -> str:
        """Return the message for a terminal."""
        width = max((len(name) for name, _ in self.example), default=0)
        rows = [f"    {name:<{width}}  {value}" for name, value in self.example]
        return "\n".join(
            [
                f"{LOOK[self.state][0]} {self.exercise.name}: {plain(self.says)}",
                *rows,
                *(f"  {plain(line)}" for line in self.lines()),
            ]
        )

    def html(self) -> str:
        """Return the message for a notebook; it follows the light and dark theme."""
        sign, color = LOOK[self.state]
        left = "text-align:left"
        rows = (
            f'<tr><td style="{left};opacity:.7">{escape(name)}</td><td style="{left}"><code>{escape(value)}</code></td></tr>'
            for name, value in self.example
        )
        table = f'<table style="margin:.4em 0 0;font-size:.92em">{"".join(rows)}</table>' if self.example else ""
        lines = "".join(f'<div style="margin-top:.3em;opacity:.85">{rich(line)}</div>' for line in self.lines())
        head = f'<b style="color:{color}">{sign} {escape(self.exercise.name)}</b>&ensp;{rich(self.says)}'
        frame = f"border-left:4px solid {color};padding:.4em .9em;margin:.2em 0;line-height:1.5;max-width:48em"
        return f'<div role="status" style="{frame}"><div>{head}</div>{table}{lines}</div>'

    def show(self) -> None:
        """Show the message below the cell, or write it to the terminal."""
        if in_kernel():
            from IPython.display import publish_display_data

            publish_display_data({"text/plain": self.text(), "text/html": self.html()})
        else:
            sys.stdout.write(f"{self.text()}\n")
