"""Breakout: a paddle, a ball and three rows of bricks on ten by ten cells."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from rlbook import keys
from rlbook.envs.native._draw import BLUE, GREEN, INK, ORANGE, PAPER, RED, Picture
from rlbook.envs.native.base import NativeEnv, State
from rlbook.errors import ConfigError, explain
from rlbook.specs import Bounded, Categorical, Composite
from rlbook.typing import DeviceLike, Leaves

SIZE, TOP, BRICK_ROWS = 10, 1, 3
"""Cells of a side; the first row of bricks; how many rows there are."""
MOVES = {3: (0, -1, 1), 6: (0, -1, 0, 1, 0, 0)}
"""What each action does to the paddle: of those that do something, and of all those that MinAtar's games share."""


@final
class Breakout(NativeEnv):
    """Keep a ball in play with a paddle and break bricks with it: the game of MinAtar, the small sister of Atari's.

    The ball flies diagonally, one cell per step, and is reflected by the walls and by bricks, which break. A ball that comes from
    above the paddle is reflected; one that only moves onto it sideways is sent back the way it came. Of two bricks in a row the
    ball breaks the first and flies through the second. When none is left and the ball comes down, there is a new wall.

    Observation:
        ``observation`` ``[4, 10, 10]``, rows from the top: paddle, ball, where the ball was before, bricks. float32 0 and 1, or
        uint8 0 and 255, which a replay buffer keeps in a quarter of the memory.
    Action:
        ``Categorical(3)``: 0 stays, 1 goes left, 2 right. With ``num_actions=6`` MinAtar's numbers: 1 left, 3 right, the others
        stay. With probability ``sticky`` the action of the step before is repeated instead.
    Reward:
        1 for each brick.
    Ending:
        Terminated when the ball passes the paddle; truncated after ``max_steps``.
    Initial state:
        All bricks; the paddle in column 4; the ball at the left or right border beside the lowest bricks, equally likely, flying
        inwards and down.

    Args:
        num_envs: None for one environment without batch dimension.
        sticky: probability that the last action is repeated, in [0, 1]; MinAtar's default.
        num_actions: 3 or 6.
        dtype: of the observation, ``torch.float32`` or ``torch.uint8``.
        max_steps: time limit; None for never, as in MinAtar. A perfect player never loses.
        device, seed: as for :class:`~rlbook.envs.Env`.

    Raises:
        ConfigError: a senseless ``sticky``, ``num_actions`` or ``dtype``.

    Source: Young & Tian (2019), "MinAtar: An Atari-Inspired Testbed for Thorough and Reproducible Reinforcement Learning
        Experiments", and its rules as released (no difficulty ramp).

    Deviates: the action repeated in the first step of an episode is 0; MinAtar remembers the last one of the episode before.
    """

    reset_uniforms = 1

    def __init__(
        self,
        num_envs: int | None = None,
        *,
        sticky: float = 0.1,
        num_actions: int = 3,
        dtype: torch.dtype = torch.float32,
        max_steps: int | None = 5000,
        device: DeviceLike = None,
        seed: int | None = None,
    ):
        if not 0 <= sticky <= 1:
            raise ConfigError(explain("sticky", "a probability in [0, 1]", repr(sticky), "Pass for example sticky=0.1"))
        if num_actions not in MOVES:
            raise ConfigError(explain("num_actions", "3 or 6", repr(num_actions), "Pass num_actions=3: the others do nothing"))
        if dtype not in (torch.float32, torch.uint8):
            raise ConfigError(explain("dtype", "torch.float32 or torch.uint8", str(dtype), "Convert observations afterwards"))
        self.sticky, self.step_uniforms = sticky, 1 if sticky else 0
        self._full = 255 if dtype == torch.uint8 else 1
        self._moves = torch.tensor(MOVES[num_actions], device=device)
        self._cells = torch.arange(SIZE * BRICK_ROWS, device=device)
        observation = Composite({keys.OBSERVATION: Bounded(0, self._full, (4, SIZE, SIZE), dtype)})
        action = Categorical(num_actions)
        super().__init__(observation, action, max_steps=max_steps, num_envs=num_envs, device=device, seed=seed)

    def _initial(self, u: Tensor) -> State:
        right = (u[..., 0] >= 0.5).long()
        x, y = (SIZE - 1) * right, torch.full_like(right, TOP + BRICK_ROWS - 1)
        return {
            "ball": torch.stack((x, y, 1 - 2 * right, torch.ones_like(right)), dim=-1),  # column, row, direction across and down
            "trail": torch.stack((x, y), dim=-1),
            "paddle": torch.full_like(right, 4),
            "last_action": torch.zeros_like(right),
            "inside": right < 0,  # whether the ball is among bricks: it breaks none there
            "bricks": (u >= 0).expand(*right.shape, SIZE * BRICK_ROWS),
        }

    def _dynamics(self, state: State, action: Any, u: Tensor) -> tuple[State, Tensor, Tensor]:
        if self.sticky:
            action = torch.where(u[..., 0] < self.sticky, state["last_action"], action)
        paddle = (state["paddle"] + self._moves.take(action)).clamp(0, SIZE - 1)
        x, y, across, down = state["ball"].unbind(-1)
        to_x, to_y = x + across, y + down

        inside = (to_x >= 0) & (to_x < SIZE)
        to_x, across = to_x.clamp(0, SIZE - 1), torch.where(inside, across, -across)
        struck = state["bricks"] & (self._cells == ((to_y - TOP) * SIZE + to_x).unsqueeze(-1))
        among = struck.any(-1)
        breaks = among & ~state["inside"]
        low = to_y >= SIZE - 1
        above, beside = low & (x == paddle), low & (x != paddle) & (to_x == paddle)

        ceiling, bounces = to_y < 0, breaks | above | beside
        across = torch.where(beside, -across, across)
        down = torch.where(ceiling | bounces, -down, down)
        to_y = torch.where(bounces, y, to_y.clamp(0, SIZE - 1))  # also of a game that goes on after its end

        left = state["bricks"] & ~(struck & breaks.unsqueeze(-1))
        bricks = left | (low & ~left.any(-1)).unsqueeze(-1)
        after = {
            "ball": torch.stack((to_x, to_y, across, down), dim=-1),
            "trail": torch.stack((x, y), dim=-1),
            "paddle": paddle,
            "last_action": action,
            "inside": among,
            "bricks": bricks,
        }
        return after, breaks.float(), low & ~above & ~beside

    def _observe(self, state: State) -> Leaves:
        x, y = (torch.stack((state["ball"][..., i], state["trail"][..., i]), dim=-1) for i in (0, 1))
        plane = torch.arange(1, 3, device=x.device) * SIZE**2
        ones = torch.cat(((SIZE - 1) * SIZE + state["paddle"].unsqueeze(-1), plane + y * SIZE + x), dim=-1)
        dtype = torch.uint8 if self._full == 255 else torch.float32
        board = torch.zeros(
            (*x.shape[:-1], 4 * SIZE**2), dtype=dtype, device=x.device
        )  # the one large piece of memory: fill it once
        board.scatter_(-1, ones, self._full)
        wall = 3 * SIZE**2 + TOP * SIZE
        board[..., wall : wall + BRICK_ROWS * SIZE] = state["bricks"].to(dtype) * self._full
        return {keys.OBSERVATION: board.unflatten(-1, (4, SIZE, SIZE))}

    def _render(self, index: int) -> np.ndarray:
        side, margin = 18, 10
        picture = Picture(2 * margin + SIZE * side, 2 * margin + SIZE * side, "#dcd9cf")
        picture.box(margin, margin, margin + SIZE * side, margin + SIZE * side, PAPER, radius=3)
        for cell, there in enumerate(self._row("bricks", index).tolist()):
            if there:
                left, top = margin + cell % SIZE * side, margin + (TOP + cell // SIZE) * side
                picture.box(left + 1, top + 1, left + side - 1, top + side - 1, (RED, ORANGE, GREEN)[cell // SIZE], radius=2)
        left, bottom = margin + int(self._row("paddle", index)) * side, margin + SIZE * side
        picture.box(left - 1, bottom - 9, left + side + 1, bottom - 3, BLUE, radius=3)
        for key, radius, color in (("trail", 3, "#b9bdc9"), ("ball", 6, INK)):
            x, y = self._row(key, index)[:2].tolist()
            picture.disc(margin + (x + 0.5) * side, margin + (y + 0.5) * side, radius, color)
        return picture.array()
