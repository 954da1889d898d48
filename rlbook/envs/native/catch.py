"""Catch: a ball falls, a paddle moves below it. The smallest environment that is seen as an image."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from rlbook import keys
from rlbook.envs.native._draw import BLUE, ORANGE, PAPER, Picture
from rlbook.envs.native.base import NativeEnv, State
from rlbook.errors import ConfigError, explain
from rlbook.specs import Bounded, Categorical, Composite
from rlbook.typing import DeviceLike, Leaves


@final
class Catch(NativeEnv):
    """Catch a ball that falls straight down.

    All but the last reward is 0, so the right move has to be learned from a reward up to nine steps away.

    Observation:
        ``observation`` float32 ``[1, rows, columns]``: 1 in the cells of the ball and of the paddle, which is in the last row;
        0 elsewhere.
    Action:
        ``Categorical(3)``: 0 moves the paddle left, 1 leaves it, 2 moves it right. The border stops it.
    Reward:
        In the last step 1 if the ball falls on the paddle, otherwise -1; 0 before.
    Ending:
        Terminated when the ball arrives in the last row, after ``rows - 1`` steps.
    Initial state:
        The ball in the first row, every column equally likely; the paddle in the middle.

    Args:
        num_envs: None for one environment without batch dimension.
        rows: height of the board, at least 2.
        columns: its width, at least 1, and so small that the paddle can reach every column.
        max_steps: time limit; an episode ends by itself.
        device, seed: as for :class:`~rlbook.envs.Env`.

    Attributes:
        optimal_return: 1.

    Raises:
        ConfigError: a board on which some balls cannot be caught.

    Source: Mnih et al. (2014), "Recurrent Models of Visual Attention", sec. 4.3; board and rules of bsuite (Osband et al. 2020).

    Example:
        >>> from rlbook import Catch
        >>> env = Catch(num_envs=64, seed=0)
        >>> env.rollout(9, env.optimal_action)["next", "reward"].sum(-1).mean()
        tensor(1.)
    """

    reset_uniforms = 1
    optimal_return = 1.0

    def __init__(
        self,
        num_envs: int | None = None,
        *,
        rows: int = 10,
        columns: int = 5,
        max_steps: int | None = None,
        device: DeviceLike = None,
        seed: int | None = None,
    ):
        if columns < 1 or rows < 2 or columns // 2 > rows - 1:
            got, fix = f"rows={rows}, columns={columns}", "Pass for example rows=10, columns=5"
            raise ConfigError(explain("The board", "at least 2 x 1, with columns // 2 < rows", got, fix))
        self.rows, self.columns = rows, columns
        self._down, self._across = torch.arange(rows, device=device).unsqueeze(-1), torch.arange(columns, device=device)
        observation = Composite({keys.OBSERVATION: Bounded(0.0, 1.0, (1, rows, columns))})
        super().__init__(observation, Categorical(3), max_steps=max_steps, num_envs=num_envs, device=device, seed=seed)

    def optimal_action(self, observation: Tensor) -> Tensor:
        """Return the move towards the ball, int64 ``[*]``, for observations ``[*, 1, rows, columns]``. It is a policy."""
        _, ball, paddle = self._read(observation)
        return (ball - paddle).sign() + 1

    def optimal_value(self, observation: Tensor, gamma: float = 0.99) -> Tensor:
        """Return the value of the best policy: ``gamma**(k - 1)``, k steps before the end; its negative if it is too late.

        Args:
            observation: ``[*, 1, rows, columns]``, not of a finished episode.
            gamma: discount, in (0, 1].

        Returns:
            ``[*]``.
        """
        row, ball, paddle = self._read(observation)
        left = self.rows - 1 - row
        return torch.where((ball - paddle).abs() <= left, 1.0, -1.0) * gamma ** (left - 1)

    def _read(self, observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find the ball's row and column and the paddle's column, int64 ``[*]`` each."""
        board = observation.squeeze(-3)
        sky = board[..., :-1, :]
        return sky.amax(-1).argmax(-1), sky.amax(-2).argmax(-1), board[..., -1, :].argmax(-1)

    def _initial(self, u: Tensor) -> State:
        ball = (u[..., 0] * self.columns).long().clamp(max=self.columns - 1)
        return {"row": torch.zeros_like(ball), "ball": ball, "paddle": torch.full_like(ball, self.columns // 2)}

    def _dynamics(self, state: State, action: Any, u: Tensor) -> tuple[State, Tensor, Tensor]:
        row, ball = state["row"] + 1, state["ball"]
        paddle = (state["paddle"] + action - 1).clamp(0, self.columns - 1)
        terminated = row >= self.rows - 1
        reward = torch.where(terminated, torch.where(ball == paddle, 1.0, -1.0), 0.0)
        return {"row": row, "ball": ball, "paddle": paddle}, reward, terminated

    def _observe(self, state: State) -> Leaves:
        row, ball, paddle = (state[key][..., None, None] for key in ("row", "ball", "paddle"))
        board = (self._down == row) & (self._across == ball) | (self._down == self.rows - 1) & (self._across == paddle)
        return {keys.OBSERVATION: board.float().unsqueeze(-3)}

    def _render(self, index: int) -> np.ndarray:
        row, ball, paddle = (int(self._row(key, index)) for key in ("row", "ball", "paddle"))
        side = max(6, min(18, 480 // max(self.rows, self.columns)))
        picture = Picture(self.columns * side + 20, self.rows * side + 20, "#dcd9cf")
        for y in range(self.rows):
            for x in range(self.columns):
                left, top = 10 + x * side, 10 + y * side
                picture.box(left + 1, top + 1, left + side - 1, top + side - 1, PAPER, radius=2)
        left, bottom = 10 + paddle * side, 10 + self.rows * side
        picture.box(left - side * 0.1, bottom - side * 0.42, left + side * 1.1, bottom - side * 0.08, BLUE, radius=side * 0.15)
        picture.disc(10 + (ball + 0.5) * side, 10 + (row + (0.5 if row < self.rows - 1 else 0.22)) * side, side * 0.36, ORANGE)
        return picture.array()
