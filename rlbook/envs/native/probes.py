"""Probes: the smallest environments whose answer is known, each of which asks an agent one question."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from rlbook import keys
from rlbook.envs.native._draw import BLUE, GREEN, GREY, INK, ORANGE, PAPER, Picture
from rlbook.envs.native.base import NativeEnv, State
from rlbook.specs import Bounded, Categorical, Composite
from rlbook.typing import DeviceLike, Leaves

BEST_ACTION = 0.5
"""Distance of the best continuous action from 0: inside the bounds, where no squashing or clipping helps to find it."""


class Probe(NativeEnv):
    """An episode of a step or two about one number, the ``signal``, of which every value is known.

    Give an agent the probes in this order: the first one that fails names the broken part.

    ============================  ======================================================================
    probe                         what an agent that fails it gets wrong
    ============================  ======================================================================
    :class:`ProbeConstant`        the regression of the value: loss, optimizer, the mask of terminations
    :class:`ProbeObservation`     the way from the observation to the value
    :class:`ProbeDelay`           the discount, or the value of the next observation
    :class:`ProbeAction`          the policy: the sign or the size of its gradient, exploration
    :class:`ProbeBoth`            the two together: advantages and observations of different rows
    :class:`ProbeTimeout`         the difference between terminated and truncated
    ============================  ======================================================================

    Subclasses state ``optimal_return`` and write ``_start`` and ``_gain``.

    Attributes:
        optimal_return: expected sum of rewards, undiscounted, of the best policy.
        continuous: whether actions are numbers.

    Args:
        num_envs: None for one environment without batch dimension.
        continuous: actions are float32 ``[1]`` in [-1, 1]; by default ``Categorical(2)``.
        max_steps: time limit; the probes end by themselves, except for :class:`ProbeTimeout`.
        device, seed: as for :class:`~rlbook.envs.Env`.

    Source: the probes of A. Jones, "Debugging RL, Without the Agonizing Pain" (2021), here also with continuous actions.
    """

    reset_uniforms = 1
    optimal_return: float

    def __init__(
        self,
        num_envs: int | None = None,
        *,
        continuous: bool = False,
        max_steps: int | None = None,
        device: DeviceLike = None,
        seed: int | None = None,
    ):
        self.continuous = continuous
        action = Bounded(-1.0, 1.0, (1,)) if continuous else Categorical(2)
        observation = Composite({keys.OBSERVATION: Bounded(-1.0, 1.0, (1,))})
        super().__init__(observation, action, max_steps=max_steps, num_envs=num_envs, device=device, seed=seed)

    # ---- what each probe says ------------------------------------------------------------------------------------------------
    def _start(self, u: Tensor) -> Tensor:
        """Return the first signal ``[*]`` from uniform numbers ``[*]``."""
        return torch.ones_like(u)

    @abstractmethod
    def _gain(self, signal: Tensor, action: Any) -> Tensor:
        """Return the reward ``[*]`` of an action."""

    def _next(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """Return the signal after a step and whether the episode has terminated, ``[*]`` each."""
        return signal, torch.ones_like(signal, dtype=torch.bool)

    # ---- what is known -------------------------------------------------------------------------------------------------------
    def optimal_value(self, observation: Tensor, gamma: float = 0.99) -> Tensor:
        """Return the value of the best policy, ``max_a action_value(observation, a)``.

        Args:
            observation: ``[*, 1]``.
            gamma: discount, in [0, 1].

        Returns:
            ``[*]``.
        """
        return self.action_value(observation, self.optimal_action(observation), gamma)

    def action_value(self, observation: Tensor, action: Tensor, gamma: float = 0.99) -> Tensor:
        """Return the value of taking ``action`` now and the best ones afterwards.

        Args:
            observation: ``[*, 1]``.
            action: int64 ``[*]``, or float32 ``[*, 1]`` if continuous.
            gamma: discount, in [0, 1].

        Returns:
            ``[*]``. Here, for an episode of one step, the reward.
        """
        return self._gain(observation.squeeze(-1), action)

    def optimal_action(self, observation: Tensor) -> Tensor:
        """Return the best action for observations ``[*, 1]``: int64 ``[*]``, or float32 ``[*, 1]``. It is a policy."""
        return BEST_ACTION * torch.ones_like(observation) if self.continuous else torch.ones_like(observation[..., 0]).long()

    # ---- the environment -----------------------------------------------------------------------------------------------------
    def _match(self, target: Tensor, action: Any) -> Tensor:
        """Score an action against ``target``, -1 or 1 ``[*]``.

        Discrete: 1 for the action on its side, otherwise -1. Continuous: ``1 - (a - target / 2)**2``.
        """
        if self.continuous:
            return 1 - (action.squeeze(-1).clamp(-1, 1) - BEST_ACTION * target).square()
        return target * (2 * action - 1)

    def _initial(self, u: Tensor) -> State:
        return {"signal": self._start(u[..., 0])}

    def _dynamics(self, state: State, action: Any, u: Tensor) -> tuple[State, Tensor, Tensor]:
        signal, terminated = self._next(state["signal"])
        return {"signal": signal}, self._gain(state["signal"], action), terminated

    def _observe(self, state: State) -> Leaves:
        return {keys.OBSERVATION: state["signal"].unsqueeze(-1)}

    def _render(self, index: int) -> np.ndarray:
        """Draw the signal as a lamp and the reward of every action as a bar above or below the line of 0."""
        signal = self._row("signal", index)
        picture = Picture(300, 200)
        _draw_lamp(picture, 70, 100, signal.item())
        actions = torch.linspace(-1, 1, 17).unsqueeze(-1) if self.continuous else torch.arange(2)
        rewards = self._gain(signal.cpu().expand(len(actions)), actions).tolist()
        picture.stroke((140, 100), (280, 100), 2, GREY)
        pitch = 140 / len(rewards)
        for number, reward in enumerate(rewards):
            left, tip = 140 + pitch * number, 100 - 64 * reward / max(map(abs, [*rewards, 1.0]))
            gap = pitch * 0.12 if self.continuous else 16
            low, high = sorted((100.0, tip))
            color = GREY if reward == 0 else GREEN if reward == max(rewards) else BLUE if reward > 0 else ORANGE
            picture.box(left + gap, min(low, 99), left + pitch - gap, max(high, 101), color, radius=2)
        return picture.array()


@final
class ProbeConstant(Probe):
    """Reward 1, whatever happens: can the value learn a constant?

    Observation:
        ``observation`` float32 ``[1]``: always 1.
    Action:
        ``Categorical(2)``, or float32 ``[1]`` in [-1, 1]: without effect.
    Reward:
        1.
    Ending:
        Terminated after one step.
    Initial state:
        Always the same.

    Args:
        num_envs, continuous, max_steps, device, seed: as for :class:`Probe`.

    Example:
        >>> from rlbook.envs import ProbeConstant
        >>> env = ProbeConstant(num_envs=2, seed=0)
        >>> env.optimal_value(env.reset()["observation"])
        tensor([1., 1.])
    """

    optimal_return = 1.0

    def _gain(self, signal: Tensor, action: Any) -> Tensor:
        return torch.ones_like(signal)


@final
class ProbeObservation(Probe):
    """The reward is what is observed: does the value look at the observation?

    Observation:
        ``observation`` float32 ``[1]``: -1 or 1.
    Action:
        ``Categorical(2)``, or float32 ``[1]`` in [-1, 1]: without effect.
    Reward:
        The observation.
    Ending:
        Terminated after one step.
    Initial state:
        -1 or 1, equally likely.

    Args:
        num_envs, continuous, max_steps, device, seed: as for :class:`Probe`.
    """

    optimal_return = 0.0

    def _start(self, u: Tensor) -> Tensor:
        return _coin(u)

    def _gain(self, signal: Tensor, action: Any) -> Tensor:
        return signal.clone()


@final
class ProbeDelay(Probe):
    """Reward 1 in the second of two steps: is the future discounted, once?

    Values: ``V(0) = gamma``, ``V(1) = 1``.

    Observation:
        ``observation`` float32 ``[1]``: 0 before the first step, 1 before and after the second.
    Action:
        ``Categorical(2)``, or float32 ``[1]`` in [-1, 1]: without effect.
    Reward:
        0 for the first step, 1 for the second.
    Ending:
        Terminated after two steps.
    Initial state:
        Always 0.

    Args:
        num_envs, continuous, max_steps, device, seed: as for :class:`Probe`.
    """

    optimal_return = 1.0

    def _start(self, u: Tensor) -> Tensor:
        return torch.zeros_like(u)

    def _gain(self, signal: Tensor, action: Any) -> Tensor:
        return signal.clone()

    def _next(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(signal), signal > 0

    def action_value(self, observation: Tensor, action: Tensor, gamma: float = 0.99) -> Tensor:
        """Return ``gamma`` before the first step and 1 before the second, ``[*]``; see :meth:`Probe.action_value`."""
        return torch.where(observation.squeeze(-1) > 0, 1.0, gamma)


@final
class ProbeAction(Probe):
    """The reward tells a good action from a bad one: does the policy improve?

    Observation:
        ``observation`` float32 ``[1]``: always 1.
    Action:
        ``Categorical(2)``: 1 is right. Or float32 ``[1]`` in [-1, 1]: 0.5 is best.
    Reward:
        1 for the right action and -1 for the other; continuous: ``1 - (action - 0.5)**2``. At random 0 and 5/12.
    Ending:
        Terminated after one step.
    Initial state:
        Always the same.

    Args:
        num_envs, continuous, max_steps, device, seed: as for :class:`Probe`.

    Example:
        >>> from rlbook.envs import ProbeAction
        >>> env = ProbeAction(num_envs=2, seed=0)
        >>> env.action_value(env.reset()["observation"], torch.tensor([0, 1]))
        tensor([-1.,  1.])
    """

    optimal_return = 1.0

    def _gain(self, signal: Tensor, action: Any) -> Tensor:
        return self._match(torch.ones_like(signal), action)


@final
class ProbeBoth(Probe):
    """The observation says which action is good: does the policy read it?

    Observation:
        ``observation`` float32 ``[1]``: -1 or 1.
    Action:
        ``Categorical(2)``: 0 is right for -1, 1 for 1. Or float32 ``[1]`` in [-1, 1]: half the observation is best.
    Reward:
        1 for the right action and -1 for the other; continuous: ``1 - (action - observation / 2)**2``. At random 0 and 5/12, and
        no action that ignores the observation has more than 0 and 3/4.
    Ending:
        Terminated after one step.
    Initial state:
        -1 or 1, equally likely.

    Args:
        num_envs, continuous, max_steps, device, seed: as for :class:`Probe`.
    """

    optimal_return = 1.0

    def _start(self, u: Tensor) -> Tensor:
        return _coin(u)

    def _gain(self, signal: Tensor, action: Any) -> Tensor:
        return self._match(signal, action)

    def optimal_action(self, observation: Tensor) -> Tensor:
        """Return the action on the observation's side: int64 ``[*]``, or float32 ``[*, 1]``."""
        return BEST_ACTION * observation if self.continuous else (observation[..., 0] > 0).long()


@final
class ProbeTimeout(Probe):
    """Reward 1 in every step of a life without end, watched for a few steps at a time: are time-outs told from terminations?

    Every observation is worth ``1 / (1 - gamma)``. An agent that takes truncated for terminated finds at most
    ``(1 - gamma**max_steps) / (1 - gamma)``.

    Observation:
        ``observation`` float32 ``[1]``: always 1.
    Action:
        ``Categorical(2)``, or float32 ``[1]`` in [-1, 1]: without effect.
    Reward:
        1.
    Ending:
        Never terminated; truncated after ``max_steps``.
    Initial state:
        Always the same.

    Args:
        num_envs, continuous, device, seed: as for :class:`Probe`.
        max_steps: time limit.
    """

    def __init__(
        self,
        num_envs: int | None = None,
        *,
        continuous: bool = False,
        max_steps: int = 5,
        device: DeviceLike = None,
        seed: int | None = None,
    ):
        super().__init__(num_envs, continuous=continuous, max_steps=max_steps, device=device, seed=seed)
        self.optimal_return = float(max_steps)

    def _gain(self, signal: Tensor, action: Any) -> Tensor:
        return torch.ones_like(signal)

    def _next(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        return signal, torch.zeros_like(signal, dtype=torch.bool)

    def action_value(self, observation: Tensor, action: Tensor, gamma: float = 0.99) -> Tensor:
        """Return ``1 / (1 - gamma)``, ``[*]``, for a discount below 1; see :meth:`Probe.action_value`."""
        return torch.full_like(observation[..., 0], 1 / (1 - gamma))


def _coin(u: Tensor) -> Tensor:
    """Return -1 or 1, equally likely, ``[*]``."""
    return torch.where(u < 0.5, -1.0, 1.0)


def _draw_lamp(picture: Picture, x: float, y: float, signal: float) -> None:
    """Draw a lamp that shows a plus, a minus, or nothing."""
    picture.disc(x, y, 44, INK)
    picture.disc(x, y, 40, BLUE if signal > 0 else ORANGE if signal < 0 else GREY)
    if signal:
        picture.stroke((x - 17, y), (x + 17, y), 7, PAPER)
    if signal > 0:
        picture.stroke((x, y - 17), (x, y + 17), 7, PAPER)
