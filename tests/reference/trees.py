"""A slow sum tree without a tree: priorities in a list, added up exactly for every question."""

from __future__ import annotations

from fractions import Fraction
from math import inf


class Priorities:
    """Priorities of rows as exact fractions, so that no rounding hides where an interval ends."""

    def __init__(self, capacity: int):
        self.values = [Fraction(0)] * capacity

    def update(self, rows: list[int], priorities: list[float]) -> None:
        for row, priority in zip(rows, priorities, strict=True):
            self.values[row] = Fraction(priority)

    @property
    def total(self) -> float:
        return float(sum(self.values))

    @property
    def min(self) -> float:
        return min((float(p) for p in self.values if p > 0), default=inf)

    def find(self, mass: float) -> int:
        """Return the first row whose cumulated priority is above ``mass``; for the total, the last row with a priority."""
        end, last = Fraction(0), -1
        for row, priority in enumerate(self.values):
            end += priority
            if priority > 0:
                last = row
            if Fraction(mass) < end:
                return row
        return last
