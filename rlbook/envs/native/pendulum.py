"""Pendulum: swing a weight up and hold it there, with a motor too weak to lift it at once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlbook import keys
from rlbook.envs.native._draw import GREY, INK, ORANGE, Picture
from rlbook.envs.native.base import NativeEnv, State
from rlbook.specs import Bounded, Composite
from rlbook.typing import DeviceLike, Leaves

GRAVITY, MASS, LENGTH, TIME_STEP = 10.0, 1.0, 1.0, 0.05
MAX_SPEED, MAX_TORQUE = 8.0, 2.0


class Pendulum(NativeEnv):
    """Swing a pendulum up and keep it upright: Gymnasium's ``Pendulum-v1``.

    Observation:
        ``observation`` float32 ``[3]``: cosine and sine of the angle (0 is upright), angular velocity in ``[-8, 8]`` rad/s.
    Action:
        float32 ``[1]``: torque in ``[-2, 2]`` N m.
    Reward:
        ``-(angle**2 + 0.1 * speed**2 + 0.001 * torque**2)`` with the angle in ``[-pi, pi)``: 0 at best, -16.3 at worst.
    Ending:
        Never terminated; truncated after ``max_steps``.
    Initial state:
        Angle uniform in ``[-pi, pi)``, angular velocity uniform in ``[-1, 1)``.

    Args:
        num_envs: None for one environment without batch dimension.
        max_steps: time limit.
        device, seed: as for :class:`~rlbook.envs.Env`.
    """

    reset_uniforms = 2

    def __init__(
        self, num_envs: int | None = None, *, max_steps: int | None = 200, device: DeviceLike = None, seed: int | None = None
    ):
        high = torch.tensor([1.0, 1.0, MAX_SPEED])
        torque = Bounded(-MAX_TORQUE, MAX_TORQUE, (1,))
        observation = Composite({keys.OBSERVATION: Bounded(-high, high)})
        super().__init__(observation, torque, max_steps=max_steps, num_envs=num_envs, device=device, seed=seed)

    def _initial(self, u: Tensor) -> State:
        centred = 2 * u - 1
        return {"angle": centred[..., 0] * math.pi, "speed": centred[..., 1]}

    def _dynamics(self, state: State, action: Any, u: Tensor) -> tuple[State, Tensor, Tensor]:
        angle, speed = state["angle"], state["speed"]
        torque = action.squeeze(-1).clamp(-MAX_TORQUE, MAX_TORQUE)
        off = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
        cost = off * off + 0.1 * (speed * speed) + 0.001 * (torque * torque)
        spin_change = 1.5 * GRAVITY / LENGTH * angle.sin() + 3 / (MASS * LENGTH**2) * torque
        speed = (speed + spin_change * TIME_STEP).clamp(-MAX_SPEED, MAX_SPEED)
        return {"angle": angle + speed * TIME_STEP, "speed": speed}, -cost, torch.zeros_like(speed, dtype=torch.bool)

    def _observe(self, state: State) -> Leaves:
        angle = state["angle"]
        return {keys.OBSERVATION: torch.stack((angle.cos(), angle.sin(), state["speed"]), dim=-1)}

    def _render(self, index: int) -> np.ndarray:
        angle = self._row("angle", index).item()
        picture = Picture(200, 200)
        picture.disc(100, 100, 86, GREY)
        picture.disc(100, 100, 84, "#f3f2ee")
        tip = (100 - 66 * math.sin(angle), 100 - 66 * math.cos(angle))  # angles grow counter-clockwise
        picture.stroke((100, 100), tip, 12, ORANGE)
        picture.disc(*tip, 11, INK)
        picture.disc(100, 100, 5, INK)
        return picture.array()
