"""Acrobot: two links hang from a pivot, a weak motor between them has to swing the lower one up."""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from rlbook import keys
from rlbook.envs.native._draw import BLUE, GREEN, GREY, INK, ORANGE, Picture
from rlbook.envs.native.base import NativeEnv, State
from rlbook.specs import Bounded, Categorical, Composite
from rlbook.typing import DeviceLike, Leaves

GRAVITY, MASS, LENGTH, CENTRE, INERTIA, TIME_STEP = 9.8, 1.0, 1.0, 0.5, 1.0, 0.2
MAX_SPEED_1, MAX_SPEED_2 = 4 * math.pi, 9 * math.pi
COUPLING = MASS * LENGTH * CENTRE
BOTH = MASS * (2 * CENTRE**2 + LENGTH**2) + 2 * INERTIA
LOWER = MASS * CENTRE**2 + INERTIA


@final
class Acrobot(NativeEnv):
    """Swing the tip of a two-link arm above a line one link over the pivot: Gymnasium's ``Acrobot-v1``.

    Observation:
        ``observation`` float32 ``[6]``: cosine and sine of the upper link's angle (0 hangs down), cosine and sine of the lower
        link's angle to the upper, their velocities, in [-4 pi, 4 pi] and [-9 pi, 9 pi] rad/s.
    Action:
        ``Categorical(3)``: the motor turns the lower link with -1, 0 or 1 N m.
    Reward:
        -1 for every step, and 0 for the last one if the tip is above the line.
    Ending:
        Terminated when ``-cos(a) - cos(a + b) > 1``; truncated after ``max_steps``.
    Initial state:
        Both angles and velocities uniform in [-0.1, 0.1).

    Args:
        num_envs: None for one environment without batch dimension.
        max_steps: time limit.
        device, seed: as for :class:`~rlbook.envs.Env`.

    Source: Sutton (1996); Sutton & Barto (1998), sec. 11.3, whose equations of motion differ from the paper's in one term.
        Integrated as Gymnasium does, one Runge-Kutta step of order 4 per 0.2 s.
    """

    reset_uniforms = 4

    def __init__(
        self, num_envs: int | None = None, *, max_steps: int | None = 500, device: DeviceLike = None, seed: int | None = None
    ):
        high = torch.tensor([1.0, 1.0, 1.0, 1.0, MAX_SPEED_1, MAX_SPEED_2])
        self._max_speed = high[4:].to(device or "cpu")
        observation = Composite({keys.OBSERVATION: Bounded(-high, high)})
        super().__init__(observation, Categorical(3), max_steps=max_steps, num_envs=num_envs, device=device, seed=seed)

    def _initial(self, u: Tensor) -> State:
        return {"physics": 0.2 * u - 0.1}

    def _dynamics(self, state: State, action: Any, u: Tensor) -> tuple[State, Tensor, Tensor]:
        angles, speeds = _runge_kutta(state["physics"], action - 1).split(2, dim=-1)
        angles = angles - 2 * math.pi * (angles / (2 * math.pi)).round()
        speeds = speeds.clamp(-self._max_speed, self._max_speed)
        upper, lower = angles.unbind(-1)
        terminated = -upper.cos() - (upper + lower).cos() > 1
        return {"physics": torch.cat((angles, speeds), dim=-1)}, terminated.float() - 1, terminated

    def _observe(self, state: State) -> Leaves:
        angles, speeds = state["physics"].split(2, dim=-1)
        circle = torch.stack((angles.cos(), angles.sin()), dim=-1).flatten(-2)
        return {keys.OBSERVATION: torch.cat((circle, speeds), dim=-1)}

    def _render(self, index: int) -> np.ndarray:
        upper, lower = self._row("physics", index)[:2].tolist()
        picture = Picture(300, 200)
        pivot, length = (150.0, 104.0), 44
        picture.stroke((20, pivot[1] - length), (280, pivot[1] - length), 2, GREEN)
        elbow = (pivot[0] + length * math.sin(upper), pivot[1] + length * math.cos(upper))
        tip = (elbow[0] + length * math.sin(upper + lower), elbow[1] + length * math.cos(upper + lower))
        picture.stroke((pivot[0] - 16, pivot[1]), (pivot[0] + 16, pivot[1]), 4, GREY)
        picture.stroke(pivot, elbow, 10, BLUE)
        picture.stroke(elbow, tip, 10, ORANGE)
        for joint in (pivot, elbow):
            picture.disc(*joint, 4, INK)
        picture.disc(*tip, 3, INK)
        return picture.array()


def _runge_kutta(physics: Tensor, torque: Tensor) -> Tensor:
    """Return the state one time step later, ``[*, 4]``: the classical method of order 4, the torque held."""
    k1 = _velocity(physics, torque)
    k2 = _velocity(physics + TIME_STEP / 2 * k1, torque)
    k3 = _velocity(physics + TIME_STEP / 2 * k2, torque)
    k4 = _velocity(physics + TIME_STEP * k3, torque)
    return physics + TIME_STEP / 6 * (k1 + 2 * (k2 + k3) + k4)


def _velocity(physics: Tensor, torque: Tensor) -> Tensor:
    """Return the time derivative of angles and velocities, ``[*, 4]``.

    With angles a, b and velocities v, w::

        d1 = BOTH + 2 COUPLING cos b         p2 = m c g sin(a + b)
        d2 = LOWER + COUPLING cos b          p1 = p2 + m (c + l) g sin a - COUPLING w (w + 2 v) sin b
        w' = (torque + d2/d1 p1 - COUPLING v^2 sin b - p2) / (LOWER - d2^2 / d1)
        v' = -(d2 w' + p1) / d1
    """
    a, b, v, w = physics.unbind(-1)
    swing, bend = COUPLING * b.sin(), COUPLING * b.cos()
    d1, d2 = BOTH + 2 * bend, LOWER + bend
    p2 = MASS * CENTRE * GRAVITY * (a + b).sin()
    p1 = p2 + MASS * (CENTRE + LENGTH) * GRAVITY * a.sin() - swing * w * (w + 2 * v)
    ratio = d2 / d1
    w_change = (torque + ratio * p1 - swing * v * v - p2) / (LOWER - ratio * d2)
    return torch.stack((v, w, -(d2 * w_change + p1) / d1, w_change), dim=-1)
