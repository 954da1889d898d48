"""Measure contenders side by side: the same work, in one process, on one thread, in turns.

The speed of a machine changes from second to second. So the contenders take short turns, in an order that rotates; CPU time is
counted, not wall-clock time; and what is reported is the median, over the repeats, of the *ratio within a repeat*.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

Task = Callable[[], Any]
"""What is timed. It returns nothing of interest, or a :class:`Sample` that it has timed itself."""

Make = Callable[[], "Task | Prepared"]
"""Prepares a task: imports, environments, networks."""

WARM_UP_CALLS = 3


class Unavailable(Exception):
    """A peer is installed and cannot run here; the message says why."""


@dataclass(frozen=True)
class Sample:
    """What a task that times itself reports: its CPU seconds, and other numbers worth keeping."""

    seconds: float
    facts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """A task with more to say: the work of one call, where it is not the case's; facts found while it was prepared."""

    task: Task
    work: float | None = None
    facts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """How long to measure."""

    repeats: int = 7
    slice_seconds: float = 0.25
    warm_up: int = WARM_UP_CALLS


@dataclass(frozen=True)
class Target:
    """What the result shall reach: ``value(outcome)`` (None where it was not measured) is at least, or at most, a limit."""

    text: str
    value: Callable[[Outcome], float | None]
    at_least: float = -math.inf
    at_most: float = math.inf
    compares: str = ""
    """The contender whose ratios it is about; the report gives it a column."""

    def passed(self, value: float | None) -> bool | None:
        """Return whether a value reaches the target; None where there is none."""
        return None if value is None else self.at_least <= value <= self.at_most


@dataclass(frozen=True)
class Case:
    """Contenders that do the same work.

    Args:
        name: what is done, in a few words.
        unit: what ``work`` counts, for example ``"steps"``.
        work: units done by one call of a task.
        contenders: how to prepare each one; rlbook's own have names that begin with ``rlbook``.
        targets: what the issue or the release notes promise.
        note: what a reader must know to judge the comparison.
        repeats: a number of its own, for tasks that are long.
        warm_up: calls before the clock runs, where the settings' number does not fit.
        close: releases what the contenders share.
    """

    name: str
    unit: str
    work: float
    contenders: dict[str, Make]
    targets: Sequence[Target] = ()
    note: str = ""
    repeats: int | None = None
    warm_up: int | None = None
    close: Callable[[], Any] = lambda: None


@dataclass
class Outcome:
    """What was measured: CPU seconds per unit of work, one number per contender and repeat."""

    case: Case
    seconds: dict[str, list[float]]
    facts: dict[str, dict[str, list[float]]]
    skipped: dict[str, str]

    def median(self, contender: str) -> float | None:
        """CPU seconds per unit of work."""
        return statistics.median(self.seconds[contender]) if contender in self.seconds else None

    def ratios(self, contender: str, peer: str) -> list[float]:
        """How many times as long the peer takes, repeat by repeat; empty where one was not measured."""
        return [p / own for own, p in zip(self.seconds.get(contender, []), self.seconds.get(peer, []), strict=False)]

    def ratio(self, contender: str, peer: str) -> float | None:
        """The median of the ratios: the headline."""
        ratios = self.ratios(contender, peer)
        return statistics.median(ratios) if ratios else None

    def fact(self, contender: str, fact: str) -> list[float]:
        """One number per repeat; empty where it was not measured."""
        return self.facts.get(contender, {}).get(fact, [])


# ---- targets ---------------------------------------------------------------------------------------------------------------
def faster(contender: str, times: float, *peers: str) -> Target:
    """``contender`` is ``times`` times as fast as the fastest of ``peers``."""

    def value(outcome: Outcome) -> float | None:
        return min((ratio for peer in peers if (ratio := outcome.ratio(contender, peer)) is not None), default=None)

    return Target(f"{contender} at least {times:g}x {' or '.join(peers)}", value, at_least=times, compares=contender)


def seconds_below(contender: str, limit: float, beyond: str | None = None) -> Target:
    """``contender`` takes at most ``limit`` CPU seconds (more than ``beyond``, repeat by repeat)."""

    def value(outcome: Outcome) -> float | None:
        own = outcome.seconds.get(contender)
        base = [0.0] * len(own or ()) if beyond is None else outcome.seconds.get(beyond)
        return statistics.median(a - b for a, b in zip(own, base, strict=True)) if own and base else None

    more = "" if beyond is None else f" more than {beyond}"
    return Target(f"{contender} at most {limit:g} s{more}", value, at_most=limit)


def fact_below(contender: str, fact: str, limit: float) -> Target:
    """In every repeat the fact is at most ``limit``."""
    return Target(f"{contender}: {fact} at most {limit:g}", lambda o: max(o.fact(contender, fact), default=None), at_most=limit)


def fact_above(contender: str, fact: str, limit: float) -> Target:
    """In every repeat the fact is at least ``limit``."""
    return Target(f"{contender}: {fact} at least {limit:g}", lambda o: min(o.fact(contender, fact), default=None), at_least=limit)


# ---- measuring -------------------------------------------------------------------------------------------------------------
def measure(case: Case, settings: Settings) -> Outcome:
    """Prepare, warm up, then let the contenders take turns. A peer whose package is missing is skipped, with the reason."""
    try:
        return _measure(case, settings)
    finally:
        case.close()


def _measure(case: Case, settings: Settings) -> Outcome:
    tasks: dict[str, Prepared] = {}
    skipped: dict[str, str] = {}
    for name, make in case.contenders.items():
        try:
            made = make()
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] == "rlbook":
                raise
            skipped[name] = f"{error.name} is not installed"
            continue
        except Unavailable as error:
            skipped[name] = str(error)
            continue
        tasks[name] = made if isinstance(made, Prepared) else Prepared(made)
    warm_up = settings.warm_up if case.warm_up is None else case.warm_up
    calls = {name: _calibrate(made.task, settings.slice_seconds, warm_up) for name, made in tasks.items()}
    facts = {name: {fact: [number] for fact, number in made.facts.items()} for name, made in tasks.items()}
    outcome = Outcome(case, {name: [] for name in tasks}, facts, skipped)
    for repeat in range(case.repeats or settings.repeats):
        for name in rotate(tasks, repeat):
            made = tasks[name]
            sample = _turn(made.task, calls[name])
            outcome.seconds[name].append(sample.seconds / (made.work or case.work))
            for fact, number in sample.facts.items():
                outcome.facts[name].setdefault(fact, []).append(number)
    return outcome


def rotate(names: Iterable[str], repeat: int) -> list[str]:
    """Return the order of a repeat: each contender is first once before one is first again."""
    order = list(names)
    first = repeat % max(1, len(order))
    return order[first:] + order[:first]


def _calibrate(task: Task, slice_seconds: float, warm_up: int) -> int:
    """Warm up, then return how many calls fill a slice of time."""
    if warm_up == 0:
        return 1
    for call in range(warm_up):
        begin = time.process_time()
        if isinstance(task(), Sample):
            return 1
        elapsed = time.process_time() - begin
        if call and elapsed > slice_seconds:  # long, and not because it compiles
            return 1
    if elapsed < slice_seconds / 20:  # one call is too short to be timed well
        begin, few = time.process_time(), 10
        for _ in range(few):
            task()
        elapsed = (time.process_time() - begin) / few
    return max(1, math.ceil(slice_seconds / max(elapsed, 1e-7)))


def _turn(task: Task, calls: int) -> Sample:
    """Call the task ``calls`` times; return the CPU seconds per call, or what it has timed itself."""
    gc.collect()
    begin = time.process_time()
    for _ in range(calls):
        result = task()
    elapsed = (time.process_time() - begin) / calls
    return result if isinstance(result, Sample) else Sample(elapsed)
