"""CartPole: balance a pole on a cart."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlbook import keys
from rlbook.envs.native._draw import BLUE, GREY, INK, ORANGE, Picture
from rlbook.envs.native.base import NativeEnv, State
from rlbook.specs import Bounded, Categorical, Composite
from rlbook.typing import DeviceLike, Leaves

GRAVITY, CART_MASS, POLE_MASS, HALF_LENGTH, FORCE, TIME_STEP = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
TOTAL_MASS = CART_MASS + POLE_MASS
LEVER = POLE_MASS * HALF_LENGTH / TOTAL_MASS
MAX_POSITION, MAX_ANGLE = 2.4, math.radians(12)


class CartPole(NativeEnv):
    """Push a cart left or right so that the pole on it does not fall: Gymnasium's ``CartPole-v1``.

    Observation:
        ``observation`` float32 ``[4]``: cart position (m) and velocity (m/s), pole angle (rad; upright: 0) and velocity (rad/s).
    Action:
        ``Categorical(2)``: 0 pushes the cart left, 1 right, with 10 N.
    Reward:
        1 for every step, the last one included.
    Ending:
        Terminated when the cart is more than 2.4 m from the centre or the pole more than 12 degrees from upright; truncated after
        ``max_steps``.
    Initial state:
        All four numbers uniform in ``[-0.05, 0.05)``.

    Args:
        num_envs: None for one environment without batch dimension.
        max_steps: time limit.
        device, seed: as for :class:`~rlbook.envs.Env`.

    Source: Barto, Sutton & Anderson (1983); the equations of motion of Florian (2007), eq. 23 and 24, without friction.
    """

    reset_uniforms = 4

    def __init__(
        self, num_envs: int | None = None, *, max_steps: int | None = 500, device: DeviceLike = None, seed: int | None = None
    ):
        high = torch.tensor([2 * MAX_POSITION, math.inf, 2 * MAX_ANGLE, math.inf])
        observation = Composite({keys.OBSERVATION: Bounded(-high, high)})
        super().__init__(observation, Categorical(2), max_steps=max_steps, num_envs=num_envs, device=device, seed=seed)
        self._limits = torch.tensor([MAX_POSITION, MAX_ANGLE], device=self.device)

    def _initial(self, u: Tensor) -> State:
        return {"physics": 0.1 * u - 0.05}

    def _dynamics(self, state: State, action: Any, u: Tensor) -> tuple[State, Tensor, Tensor]:
        _, velocity, angle, spin = state["physics"].unbind(-1)
        sin, cos = angle.sin(), angle.cos()
        push = action * (2 * FORCE / TOTAL_MASS) - FORCE / TOTAL_MASS + LEVER * spin * spin * sin
        lever = LEVER * cos
        spin_change = (GRAVITY * sin - cos * push) / (4 / 3 * HALF_LENGTH - lever * cos)
        velocity_change = push - lever * spin_change
        change = torch.stack((velocity, velocity_change, spin, spin_change), dim=-1)
        physics = state["physics"] + TIME_STEP * change
        terminated = (physics[..., ::2].abs() > self._limits).any(-1)
        return {"physics": physics}, torch.ones_like(sin), terminated

    def _observe(self, state: State) -> Leaves:
        return {keys.OBSERVATION: state["physics"]}

    def _render(self, index: int) -> np.ndarray:
        position, _, angle, _ = self._row("physics", index).tolist()
        picture = Picture(300, 200)
        x, y = 150 + position * 130 / MAX_POSITION, 150
        picture.stroke((12, y + 14), (288, y + 14), 2, GREY)
        for end in (20, 280):
            picture.stroke((end, y + 7), (end, y + 21), 2, GREY)
        picture.box(x - 24, y - 13, x + 24, y + 9, BLUE, radius=5)
        for wheel in (x - 14, x + 14):
            picture.disc(wheel, y + 9, 5, INK)
        picture.stroke((x, y - 13), (x + 105 * math.sin(angle), y - 13 - 105 * math.cos(angle)), 7, ORANGE)
        picture.disc(x, y - 13, 4, INK)
        return picture.array()
