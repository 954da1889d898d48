"""Generalised state-dependent exploration: noise that is a smooth function of the state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from rlbook import keys
from rlbook.errors import ConfigError, check_count, explain
from rlbook.modules.actor import Actor, Greedy
from rlbook.typing import DeviceLike, Key, Leaves

EPS = 1e-6
"""Added to the variance."""


class StateDependentStd(nn.Module):
    """A network head for :class:`~rlbook.Actor`: mean and deviation of each action from features ``z(s)``.

    ``mu = W z + b``, ``log std_a = log(sum_l (z_l sigma_{la})^2 + 1e-6) / 2``: what the exploration ``mu + E^T z`` with
    ``E_{la} ~ N(0, sigma_{la}^2)`` has in each state. Where nothing was seen like it before, features and noise are larger.

    Args:
        features: module or function from the observation entries to ``z``, ``[*, L]``; of limited size, so let it end in tanh.
        num_features: L.
        num_actions: A.
        log_std: logarithm of every ``sigma`` at first.

    Source: Raffin, Kober and Stulp 2021, "Smooth Exploration for Robotic Reinforcement Learning", section 3.
    Deviates: no gradient flows from the deviation into the features, as in the authors' code.

    Example:
        >>> StateDependentStd(torch.tanh, num_features=4, num_actions=2)(torch.randn(8, 4)).shape
        torch.Size([8, 4])
    """

    def __init__(self, features: Callable[..., Tensor], num_features: int, num_actions: int, log_std: float = -1.0):
        super().__init__()
        self.features = features
        self.mean = nn.Linear(num_features, num_actions)
        self.log_std = nn.Parameter(torch.full((num_features, num_actions), float(log_std)))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return means, then log deviations: ``[*, 2 A]``."""
        return self.both(*inputs)[1]

    def both(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features ``[*, L]`` and what :meth:`forward` returns."""
        z = self.features(*inputs)
        variance = z.detach() ** 2 @ (2 * self.log_std).exp()
        return z, torch.cat((self.mean(z), 0.5 * (variance + EPS).log()), -1)


class StateDependentExploration(nn.Module):
    """Explore with one random function of the state for many steps: ``a = mu(s) + E^T z(s)``, ``E`` drawn anew now and then.

    While ``E`` stays, equal states get equal actions: motion is smooth and consistent, which spares motors and reaches further.
    In each single step the action has the actor's own distribution, so its log-probability is exact, and losses need to know
    nothing of this.

    Args:
        actor: an :class:`~rlbook.Actor` whose network is a :class:`StateDependentStd`.
        hold: steps for which a matrix is kept, at least 1.

    Attributes:
        matrix: standard normal noise of each environment, a buffer ``[*batch, L * A]``; empty before the first step.

    Raises:
        ConfigError: the actor's network is another one, or ``hold`` is not positive.

    Source: Raffin, Kober and Stulp 2021. Deviates: the matrix is kept when an episode ends.

    Example:
        >>> from rlbook import MLP, Actor, Pendulum
        >>> env = Pendulum(num_envs=4)
        >>> net = StateDependentStd(torch.nn.Sequential(MLP(16, 3), torch.nn.Tanh()), 16, 1)
        >>> data = env.rollout(50, StateDependentExploration(Actor(net, env.action_spec), hold=8))
    """

    matrix: Tensor

    def __init__(self, actor: Actor, hold: int = 8):
        super().__init__()
        if not isinstance(actor.net, StateDependentStd):
            got, fix = type(actor.net).__name__, "Build Actor(StateDependentStd(features, L, A), spec)"
            raise ConfigError(explain("The network of the actor", "a StateDependentStd", got, fix))
        check_count("hold", hold, example=8)
        self.actor, self.hold = actor, hold
        self.age = 0  # steps that the present matrix was used for
        self.register_buffer("matrix", torch.zeros(0))

    @property
    def net(self) -> StateDependentStd:
        """The actor's network."""
        return self.actor.net  # type: ignore[return-value]

    @property
    def spec(self) -> Any:
        """The actor's action spec."""
        return self.actor.spec

    @property
    def in_keys(self) -> tuple[Key, ...]:
        """The entries the actor reads."""
        return self.actor.in_keys

    @property
    def out_keys(self) -> tuple[Key, ...]:
        """What the actor writes."""
        return self.actor.out_keys

    @property
    def greedy(self) -> Greedy:
        """The policy that takes the mode."""
        return self.actor.greedy

    @torch.no_grad()
    def draw_noise(self, shape: Sequence[int], device: DeviceLike = None) -> Tensor:
        """Return the matrices of ``shape = (T, *batch)`` steps, ``[T, *batch, L * A]``, drawing new ones where it is time."""
        steps, size = shape[0], (*shape[1:], self.net.log_std.numel())
        if self.matrix.shape != size:  # the first step, or other environments
            self.matrix, self.age = torch.zeros(size, device=device), self.hold
        left = min(self.hold - self.age, steps)  # steps of the present matrix
        fresh = torch.randn((-(-(steps - left) // self.hold), *size), device=device)
        which = (torch.arange(steps, device=device) - left).div(self.hold, rounding_mode="floor").clamp(min=-1) + 1
        rows = torch.cat((self.matrix.unsqueeze(0), fresh))
        self.matrix.copy_(rows[-1])
        self.age = self.age + steps if len(fresh) == 0 else steps - left - (len(fresh) - 1) * self.hold
        return rows[which]

    def act(self, leaves: Mapping[Key, Tensor], noise: Tensor) -> Leaves:
        """Return actions and their log-probabilities; ``noise`` holds the matrices of this step, ``[*batch, L * A]``."""
        z, params = self.net.both(*(leaves[key] for key in self.actor.obs_keys))
        dist = self.actor.dist_of(params)
        weights = self.net.log_std.exp() * noise.unflatten(-1, self.net.log_std.shape)
        log_std = params[..., weights.shape[-1] :]
        unit = torch.einsum("...l,...la->...a", z, weights) / log_std.exp()  # standard normal, for a given state
        action = dist.sample(unit.reshape(unit.shape[:-1] + self.spec.shape).detach())
        return {keys.ACTION: action, keys.LOG_PROB: dist.log_prob(action)}

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        """Write an action into ``td``, one step of a batch ``[*batch]``."""
        return td.update(self.act(td, self.draw_noise((1, *td.batch_size), td.device)[0]))  # type: ignore[arg-type]

    def get_extra_state(self) -> Tensor:
        """Return what ``state_dict`` holds besides buffers: the age of the matrix."""
        return torch.tensor(self.age)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the age from a ``state_dict``."""
        self.age = int(state)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Load matrices of any number of environments."""
        saved = state_dict.get(f"{prefix}matrix")
        if saved is not None:
            self.matrix = torch.zeros_like(saved, device=self.matrix.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)
