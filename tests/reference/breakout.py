"""MinAtar's Breakout, one game, cell by cell: for comparison only."""

from __future__ import annotations

import numpy as np

FLIP_SIDEWAYS = {"\\": "/", "/": "\\"}


class SlowBreakout:
    """The rules as sentences. The ball has a cell, a diagonal (``\\`` or ``/``) and a sense (down or up)."""

    def __init__(self, starts_left: bool):
        self.wall = {(row, column) for row in (1, 2, 3) for column in range(10)}
        self.cell = (3, 0) if starts_left else (3, 9)
        self.before = self.cell
        self.diagonal, self.falls = ("\\" if starts_left else "/"), True
        self.paddle = 4
        self.in_wall = False
        self.over = False

    def step(self, action: str) -> float:
        """Take ``left``, ``right`` or ``stay``; return the reward."""
        self.paddle = min(max(self.paddle + {"left": -1, "stay": 0, "right": 1}[action], 0), 9)
        row, column = self.before = self.cell
        goes_right = (self.diagonal == "\\") == self.falls
        next_row = row + 1 if self.falls else row - 1
        next_column = column + 1 if goes_right else column - 1
        if next_column in (-1, 10):  # a side wall: the ball slides up or down along it
            next_column = column
            self.diagonal = FLIP_SIDEWAYS[self.diagonal]

        reward, touches = 0.0, False
        if next_row == -1:  # the ceiling
            next_row = 0
            self._turn_over()
        elif (next_row, next_column) in self.wall:
            touches = True
            if not self.in_wall:
                reward = 1.0
                self.wall.remove((next_row, next_column))
                next_row = row
                self._turn_over()
        elif next_row == 9:
            next_row = self._meets_paddle(column, next_column)
        self.in_wall = touches
        self.cell = (next_row, next_column)
        return reward

    def _meets_paddle(self, column: int, next_column: int) -> int:
        """Let the ball arrive in the last row; return the row where it stays."""
        if not self.wall:
            self.wall = {(row, column) for row in (1, 2, 3) for column in range(10)}
        if column == self.paddle:
            self._turn_over()
        elif next_column == self.paddle:  # back along the same diagonal
            self.falls = not self.falls
        else:
            self.over = True
        return 9 if self.over else 8

    def _turn_over(self) -> None:
        """Reflect up and down, keep the direction sideways."""
        self.falls = not self.falls
        self.diagonal = FLIP_SIDEWAYS[self.diagonal]

    def picture(self) -> np.ndarray:
        """Return paddle, ball, trail and bricks, ``[4, 10, 10]``."""
        planes = np.zeros((4, 10, 10))
        planes[0, 9, self.paddle] = 1
        planes[(1, *self.cell)] = 1
        planes[(2, *self.before)] = 1
        for brick in self.wall:
            planes[(3, *brick)] = 1
        return planes
