"""MountainCar: a car too weak to climb a hill at once has to swing up, with three pushes or with any force."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from rlbook import keys
from rlbook.envs.native._draw import BLUE, GREEN, INK, ORANGE, Picture
from rlbook.envs.native.base import NativeEnv, State
from rlbook.specs import Bounded, Categorical, Composite, Spec
from rlbook.typing import DeviceLike, Leaves

LEFT_WALL, RIGHT_WALL, MAX_SPEED, GRAVITY = -1.2, 0.6, 0.07, 0.0025
FORCE, GOAL = 0.001, 0.5
CONTINUOUS_FORCE, CONTINUOUS_GOAL, PRIZE = 0.0015, 0.45, 100.0
STEEPNESS = 0.36  # of the drawing


class _Valley(NativeEnv):
    """A car in the valley ``height = sin(3 x)``, pushed by a force."""

    reset_uniforms = 1
    goal: float

    def __init__(self, action: Spec, num_envs: int | None, max_steps: int | None, device: DeviceLike, seed: int | None):
        low, high = torch.tensor([LEFT_WALL, -MAX_SPEED]), torch.tensor([RIGHT_WALL, MAX_SPEED])
        observation = Composite({keys.OBSERVATION: Bounded(low, high)})
        super().__init__(observation, action, max_steps=max_steps, num_envs=num_envs, device=device, seed=seed)

    def _initial(self, u: Tensor) -> State:
        position = 0.2 * u[..., 0] - 0.6
        return {"physics": torch.stack((position, torch.zeros_like(position)), dim=-1)}

    def _roll(self, state: State, push: Tensor) -> tuple[State, Tensor]:
        """Push the car for one step; return the state and whether it has arrived, ``[*]``."""
        position, velocity = state["physics"].unbind(-1)
        velocity = (velocity + push - GRAVITY * (3 * position).cos()).clamp(-MAX_SPEED, MAX_SPEED)
        position = (position + velocity).clamp(LEFT_WALL, RIGHT_WALL)
        velocity = torch.where(position <= LEFT_WALL, velocity.clamp(min=0), velocity)  # the wall takes the speed
        return {"physics": torch.stack((position, velocity), dim=-1)}, (position >= self.goal) & (velocity >= 0)

    def _observe(self, state: State) -> Leaves:
        return {keys.OBSERVATION: state["physics"]}

    def _render(self, index: int) -> np.ndarray:
        picture = Picture(300, 200)
        ground = [_on_ground(LEFT_WALL - 0.1 + step / 60) for step in range(121)]
        picture.polygon([*ground, (300, 200), (0, 200)], "#e6e3d8")
        for one, other in pairwise(ground):
            picture.stroke(one, other, 2, INK)
        x, y = _on_ground(self.goal)
        picture.polygon([(x, y - 42), (x + 19, y - 35), (x, y - 28)], GREEN)
        picture.stroke((x, y), (x, y - 42), 2, INK)
        position = self._row("physics", index)[0].item()
        (x, y), tilt = _on_ground(position), math.atan(3 * STEEPNESS * math.cos(3 * position))

        def at(along: float, above: float) -> tuple[float, float]:
            return x + along * math.cos(tilt) - above * math.sin(tilt), y - along * math.sin(tilt) - above * math.cos(tilt)

        picture.polygon([at(-15, 6), at(15, 6), at(15, 13), at(8, 14), at(5, 20), at(-7, 20), at(-11, 14), at(-15, 13)], BLUE)
        for wheel in (-9, 9):
            picture.disc(*at(wheel, 5), 5, INK)
            picture.disc(*at(wheel, 5), 2, ORANGE)
        return picture.array()


def _on_ground(x: float) -> tuple[float, float]:
    """Return where the picture shows the ground at position x."""
    return 15 + (x - LEFT_WALL) * 150, 172 - STEEPNESS * 150 * (1 + math.sin(3 * x))


@final
class MountainCar(_Valley):
    """Swing up a hill with pushes to the left and right: Gymnasium's ``MountainCar-v0``.

    Random pushes practically never arrive, so there is nothing to learn from but -1 until exploration is more than chance.

    Observation:
        ``observation`` float32 ``[2]``: position in [-1.2, 0.6], velocity per step in [-0.07, 0.07].
    Action:
        ``Categorical(3)``: 0 pushes left, 1 not at all, 2 right.
    Reward:
        -1 for every step, the last one included.
    Ending:
        Terminated at position 0.5 or beyond, unless it rolls back; truncated after ``max_steps``.
    Initial state:
        Position uniform in [-0.6, -0.4), at rest.

    Args:
        num_envs: None for one environment without batch dimension.
        max_steps: time limit.
        device, seed: as for :class:`~rlbook.envs.Env`.

    Source: Moore (1990), with the constants of Sutton & Barto (2018), example 10.1.
    """

    goal = GOAL

    def __init__(
        self, num_envs: int | None = None, *, max_steps: int | None = 200, device: DeviceLike = None, seed: int | None = None
    ):
        super().__init__(Categorical(3), num_envs, max_steps, device, seed)

    def _dynamics(self, state: State, action: Any, u: Tensor) -> tuple[State, Tensor, Tensor]:
        after, arrived = self._roll(state, (action - 1) * FORCE)
        return after, torch.full_like(state["physics"][..., 0], -1.0), arrived


@final
class MountainCarContinuous(_Valley):
    """Swing up a hill with as little force as possible: Gymnasium's ``MountainCarContinuous-v0``.

    Doing nothing has return 0, which is better than every attempt that fails: agents that explore too little learn that.

    Observation:
        ``observation`` float32 ``[2]``: position in [-1.2, 0.6], velocity per step in [-0.07, 0.07].
    Action:
        float32 ``[1]``: force in [-1, 1], 1.5 times as strong as the pushes of :class:`MountainCar`.
    Reward:
        ``-0.1 * action**2``, and 100 for arriving.
    Ending:
        Terminated at position 0.45 or beyond, unless it rolls back; truncated after ``max_steps``.
    Initial state:
        Position uniform in [-0.6, -0.4), at rest.

    Args:
        num_envs: None for one environment without batch dimension.
        max_steps: time limit.
        device, seed: as for :class:`~rlbook.envs.Env`.
    """

    goal = CONTINUOUS_GOAL

    def __init__(
        self, num_envs: int | None = None, *, max_steps: int | None = 999, device: DeviceLike = None, seed: int | None = None
    ):
        super().__init__(Bounded(-1.0, 1.0, (1,)), num_envs, max_steps, device, seed)

    def _dynamics(self, state: State, action: Any, u: Tensor) -> tuple[State, Tensor, Tensor]:
        force = action.squeeze(-1)
        after, arrived = self._roll(state, force.clamp(-1, 1) * CONTINUOUS_FORCE)
        return after, PRIZE * arrived - 0.1 * force.square(), arrived
