"""What exercises and questions are: data. Those of a lesson are two lists in ``rlbook/course/exercises/LESSON.py``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import torch

from rlbook.errors import ConfigError, explain

Function = Callable[..., Any]
Arguments = tuple[Any, ...]
DRAWS = 3


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """A function to write, the right one, and the wrong ones that learners write.

    Example:
        >>> import torch
        >>> Exercise(
        ...     name="double",
        ...     reference=lambda x: 2 * x,
        ...     inputs=lambda generator: {"a vector": (torch.rand(3, generator=generator),)},
        ...     mistakes={"You square instead of doubling.": lambda x: x**2},
        ...     hints=["Which number do you multiply by?"],
        ... ).arguments
        ['x']
    """

    name: str
    """What the lesson calls it: ``check("name", ...)``."""
    reference: Function
    """The right function, with which the lesson goes on if need be. Returns a tensor, a number, or a tuple of them."""
    inputs: Callable[[torch.Generator], Mapping[str, Arguments]]
    """Draws random arguments, a tuple for each situation to probe: ``{"no episode ends": (...), "one terminates": (...)}``."""
    mistakes: Mapping[str, Function]
    """What to tell a learner -> the wrong function whose outputs give that mistake away."""
    hints: Sequence[str] = ()
    """Shown one after the other, each time the learner asks again."""
    gradients: bool = False
    """Compare the gradients of the floating arguments too."""
    compiled: bool = False
    """The lesson compiles it later, so ``torch.compile`` must be able to record it as one graph."""
    goal: Callable[[Function], str] | None = field(default=None)
    """For a task with many right answers: returns what is missing, "" when the goal is reached. Outputs are not compared then."""

    @property
    def arguments(self) -> list[str]:
        """The names of the reference's arguments."""
        return list(inspect.signature(self.reference).parameters)[: len(next(iter(self.draw(0).values())))]

    @property
    def call(self) -> str:
        """How ``check`` calls the learner's function, to be read: ``double(x)``."""
        return f"{self.name}({', '.join(self.arguments)})"

    def draw(self, seed: int) -> Mapping[str, Arguments]:
        """Draw arguments, the same for the same seed."""
        return self.inputs(torch.Generator().manual_seed(seed))

    def cases(self) -> Iterator[tuple[str, Arguments]]:
        """Yield every situation several times, with other numbers."""
        for seed in range(DRAWS):
            yield from self.draw(seed).items()


@dataclass(frozen=True, kw_only=True)
class Question:
    """A multiple-choice question. It stands here and not in the lesson, where its answer would be read before it."""

    name: str
    """What the lesson calls it: ``ask("name")``."""
    text: str
    """What is asked."""
    options: Mapping[str, str]
    """What to choose from -> what to say to whoever chose it."""
    answer: str
    """The right option."""


@cache
def all_exercises() -> dict[str, Exercise]:
    """Return the exercises of all lessons by name."""
    return _collect("EXERCISES")


@cache
def all_questions() -> dict[str, Question]:
    """Return the questions of all lessons by name."""
    return _collect("QUESTIONS")


def find_exercise(name: str) -> Exercise:
    """Return the exercise called ``name``.

    Raises:
        ConfigError: there is none; the message names the nearest ones.
    """
    return _find(name, all_exercises(), "check", "an exercise")


def find_question(name: str) -> Question:
    """Return the question called ``name``.

    Raises:
        ConfigError: there is none; the message names the nearest ones.
    """
    return _find(name, all_questions(), "ask", "a question")


def _collect(what: str) -> dict[str, Any]:
    """Gather the lists called ``what`` of all lessons."""
    from rlbook.course import exercises

    found: dict[str, Any] = {}
    for module in iter_modules(exercises.__path__):
        for item in getattr(import_module(f"{exercises.__name__}.{module.name}"), what):
            if item.name in found:
                raise ConfigError(
                    explain(f"A name in {what}", "used once", repr(item.name), f"Rename the one in {module.name}.py")
                )
            found[item.name] = item
    return found


def _find(name: str, known: dict[str, Any], function: str, kind: str) -> Any:
    if name not in known:
        near = get_close_matches(str(name), known, n=3, cutoff=0.4) or sorted(known)
        fix = f"Did you mean one of: {', '.join(near)}"
        raise ConfigError(explain(f"The name given to {function}", f"that of {kind}", repr(name), fix))
    return known[name]
