"""Action values as distributions over returns: fixed atoms (C51), quantiles (QR-DQN), or any quantile asked for (IQN).

The policy is that of :class:`~rlbook.modules.QValueActor`: it takes the action with the highest expectation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rlbook import keys
from rlbook.errors import ConfigError, SpecError, check_count, explain
from rlbook.functional import categorical_mean, quantile_midpoints
from rlbook.modules.qvalue import Data, QValueActor
from rlbook.specs import Spec
from rlbook.typing import Key


class CategoricalQValueActor(QValueActor):
    """For each action the probabilities of returns on a grid; its value is their mean.

    Args:
        net: module or function from the observation entries ``[*, ...]`` to the logits ``[*, A atoms]``, those of an action side
            by side.
        spec: the action spec, ``Categorical`` or ``OneHot``.
        in_keys: the entries ``net`` reads.
        v_min, v_max: the lowest and the highest return that can be told; returns beyond count as these.
        atoms: points of the grid, both ends among them, at least 2.

    Attributes:
        support: the returns, float32 ``[atoms]``, evenly spaced.

    Raises:
        ConfigError: the grid is empty or upside down.
        SpecError: see :class:`~rlbook.modules.QValueActor`.

    Source: Bellemare et al. 2017, "A Distributional Perspective on Reinforcement Learning", section 4.1.

    Example:
        >>> from rlbook import MLP, CartPole
        >>> env = CartPole(num_envs=4, seed=0)
        >>> qvalue = CategoricalQValueActor(MLP(2 * 51, 4), env.action_spec, v_min=0.0, v_max=100.0)
        >>> data = env.rollout(8, qvalue)
        >>> qvalue.logits(data).shape, qvalue.values(data).shape
        (torch.Size([4, 8, 2, 51]), torch.Size([4, 8, 2]))
    """

    support: Tensor

    def __init__(
        self,
        net: Callable[..., Tensor],
        spec: Spec,
        in_keys: Sequence[Key] = (keys.OBSERVATION,),
        *,
        v_min: float = -10.0,
        v_max: float = 10.0,
        atoms: int = 51,
    ):
        super().__init__(net, spec, in_keys)
        if not v_min < v_max:
            fix = "Take bounds of the discounted return: with rewards of 1 it is at most 1 / (1 - gamma)"
            raise ConfigError(explain("v_min", f"below v_max={v_max}", repr(v_min), fix))
        self.outputs_per_action = check_count("atoms", atoms, 2, example=51)
        first = next(self.parameters(), None)
        self.register_buffer("support", torch.linspace(v_min, v_max, atoms, device=None if first is None else first.device))

    def logits(self, data: Data, *, frozen: bool = False) -> Tensor:
        """Return the logits of the atoms of each action, ``[*, A, atoms]`` (of several critics ``[n, *, A, atoms]``)."""
        return self.outputs(data, frozen=frozen)

    def expectation(self, outputs: Tensor) -> Tensor:
        """Return the mean of each action's return, ``[*, A]``, of its logits ``[*, A, atoms]``."""
        return categorical_mean(outputs.to(self.support.dtype).softmax(-1), self.support)


class QuantileQValueActor(QValueActor):
    """For each action quantiles of its return, at the middles of equally probable parts; its value is their mean.

    Args:
        net: module or function from the observation entries ``[*, ...]`` to ``[*, A quantiles]``, by action.
        spec: the action spec, ``Categorical`` or ``OneHot``.
        in_keys: the entries ``net`` reads.
        quantiles: how many.

    Attributes:
        tau: the probabilities below each quantile, float32 ``[quantiles]``.

    Raises:
        ConfigError: ``quantiles`` is not positive.
        SpecError: see :class:`~rlbook.modules.QValueActor`.

    Source: Dabney et al. 2018, "Distributional Reinforcement Learning with Quantile Regression", section 3.

    Example:
        >>> from rlbook import MLP, CartPole
        >>> env = CartPole(num_envs=4, seed=0)
        >>> qvalue = QuantileQValueActor(MLP(2 * 10, 4), env.action_spec, quantiles=10)
        >>> qvalue.quantiles(env.rollout(8, qvalue)).shape
        torch.Size([4, 8, 2, 10])
    """

    tau: Tensor

    def __init__(
        self,
        net: Callable[..., Tensor],
        spec: Spec,
        in_keys: Sequence[Key] = (keys.OBSERVATION,),
        *,
        quantiles: int = 200,
    ):
        super().__init__(net, spec, in_keys)
        self.outputs_per_action = check_count("quantiles", quantiles, example=51)
        first = next(self.parameters(), None)
        self.register_buffer("tau", quantile_midpoints(quantiles, device=None if first is None else first.device))

    def quantiles(self, data: Data, *, frozen: bool = False) -> Tensor:
        """Return the quantiles of each action's return, ``[*, A, N]`` (of several critics ``[n, *, A, N]``)."""
        return self.outputs(data, frozen=frozen)

    def expectation(self, outputs: Tensor) -> Tensor:
        """Return the mean of each action's return, ``[*, A]``, of its quantiles ``[*, A, N]``."""
        return outputs.mean(-1)


class ImplicitQValueActor(QValueActor):
    """For each action any quantile of its return: the network is told which one. Its value is the mean of some of them.

    Args:
        net: module or function of the observation entries ``[*, ...]`` and probabilities ``tau`` (``[*, K]``, or ``[K]`` for the
            same ones in every row), to ``[*, A, K]``, such as an :class:`ImplicitQuantileNet`.
        spec: the action spec, ``Categorical`` or ``OneHot``.
        in_keys: the entries ``net`` reads before ``tau``.
        quantiles: how many quantiles a value is the mean of.

    Raises:
        ConfigError: ``quantiles`` is not positive.
        SpecError: see :class:`~rlbook.modules.QValueActor`.

    Source: Dabney et al. 2018, "Implicit Quantile Networks for Distributional Reinforcement Learning", section 3.
    Deviates: values are means over the middles of equally probable parts, not over random quantiles: acting needs no random
    numbers, and the same observation has the same value always.

    Example:
        >>> from rlbook import MLP, CartPole
        >>> env = CartPole(num_envs=4, seed=0)
        >>> qvalue = ImplicitQValueActor(ImplicitQuantileNet(MLP(16, 4), MLP(2, 16), 16), env.action_spec)
        >>> data = env.rollout(8, qvalue)
        >>> qvalue.quantiles(data, torch.rand(4, 8, 5)).shape, qvalue.values(data).shape
        (torch.Size([4, 8, 2, 5]), torch.Size([4, 8, 2]))
    """

    tau: Tensor

    def __init__(
        self,
        net: Callable[..., Tensor],
        spec: Spec,
        in_keys: Sequence[Key] = (keys.OBSERVATION,),
        *,
        quantiles: int = 32,
    ):
        super().__init__(net, spec, in_keys)
        count = check_count("quantiles", quantiles, example=51)
        first = next(self.parameters(), None)
        self.register_buffer("tau", quantile_midpoints(count, device=None if first is None else first.device))

    def quantiles(self, data: Data, tau: Tensor, *, frozen: bool = False) -> Tensor:
        """Return quantiles of each action's return, ``[*, A, K]``, for probabilities ``tau`` ``[*, K]`` or ``[K]``."""
        batch = data[self.obs_keys[0]].shape[: tau.ndim - 1]
        if tau.ndim > 1 and tau.shape[:-1] != batch:
            fix = "Pass [K] for the same ones in every row"
            raise SpecError(explain("tau", f"of shape {[*batch, 'K']}", f"{list(tau.shape)}", fix))
        out = self.read(data, tau, frozen=frozen)
        if out.ndim < 2 or out.shape[-2:] != (self.spec.n, tau.shape[-1]):
            want, fix = f"of shape [*, {self.spec.n}, {tau.shape[-1]}]", "Build it with ImplicitQuantileNet"
            raise SpecError(explain("An implicit quantile network's output", want, f"{list(out.shape)}", fix))
        return out

    def outputs(self, data: Data, *extra: Tensor, frozen: bool = False) -> Tensor:
        """Return the quantiles that a value is the mean of, ``[*, A, K]``."""
        return self.quantiles(data, self.tau, frozen=frozen)

    def expectation(self, outputs: Tensor) -> Tensor:
        """Return the mean of each action's return, ``[*, A]``, of its quantiles ``[*, A, K]``."""
        return outputs.mean(-1)


class ImplicitQuantileNet(nn.Module):
    r"""Join features of the observation with an embedding of the probability: ``head(psi(s) * phi(tau))``.

    .. math:: \phi_j(\tau) = ReLU(\sum_{i=0}^{n-1} \cos(\pi i \tau) w_{ij} + b_j)

    Args:
        body: ``psi``, from the observation entries ``[*, ...]`` to ``[*, features]``, activation included.
        head: from ``[*, K, features]`` to ``[*, K, A]``.
        features: how many.
        cosines: n.

    Source: Dabney et al. 2018, "Implicit Quantile Networks for Distributional Reinforcement Learning", equation 4.
    """

    frequency: Tensor

    def __init__(self, body: nn.Module, head: nn.Module, features: int, cosines: int = 64):
        super().__init__()
        self.body, self.head = body, head
        self.embed = nn.Linear(check_count("cosines", cosines, example=64), features)
        self.register_buffer("frequency", math.pi * torch.arange(cosines, dtype=torch.get_default_dtype()), persistent=False)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map observation entries and ``tau``, ``[*, K]`` or ``[K]``, to ``[*, A, K]``."""
        *observations, tau = inputs
        phi = self.embed(torch.cos(tau.unsqueeze(-1) * self.frequency)).relu()
        return self.head(self.body(*observations).unsqueeze(-2) * phi).transpose(-1, -2)
