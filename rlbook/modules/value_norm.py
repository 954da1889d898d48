"""Value normalisation: a critic that learns numbers of mean 0 and deviation 1, whatever the size of the returns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlbook.errors import ConfigError, NonFiniteError, SpecError, explain


class RunningValueNorm(nn.Module):
    r"""Mean and deviation of the value targets seen so far, of which the recent ones count most.

    With the weight :math:`\beta_t = \beta / (1 - (1 - \beta)^t)`, which makes the first averages those of what was seen:

    .. math::
        \mu &\leftarrow (1 - \beta_t) \mu + \beta_t E[G], \quad
        \nu \leftarrow (1 - \beta_t) \nu + \beta_t E[G^2], \quad
        \sigma = \sqrt{\max(\nu - \mu^2, \epsilon^2)} \\
        normalize(G) &= (G - \mu) / \sigma, \quad denormalize(v) = \sigma v + \mu

    An estimator does the rest: ``GAE(value, value_norm=RunningValueNorm())``. What the critic has learnt shifts a little with
    every update of the statistics; :class:`PopArt` prevents that.

    Args:
        beta: share of a new batch of targets in the statistics, in (0, 1].
        epsilon: smallest deviation, in units of the return, positive.

    Source: Yu et al. 2022, "The Surprising Effectiveness of PPO in Cooperative Multi-Agent Games", section 5.1; the statistics
    as in van Hasselt et al. 2016, "Learning values across many orders of magnitude", equation 6.
    Deviates: ``beta`` counts batches as large as a rollout, where both count smaller ones: it is larger.

    Example:
        >>> norm = RunningValueNorm()
        >>> norm.update(torch.tensor([90.0, 110.0]))
        >>> norm.normalize(torch.tensor([100.0, 120.0]))
        tensor([0., 2.])
    """

    mean: Tensor
    square: Tensor
    steps: Tensor

    def __init__(self, beta: float = 0.05, epsilon: float = 1e-2):
        super().__init__()
        if not 0 < beta <= 1:
            raise ConfigError(explain("beta", "in (0, 1]", repr(beta), "Pass for example beta=0.05"))
        if not epsilon > 0:
            raise ConfigError(explain("epsilon", "positive", repr(epsilon), "Pass for example epsilon=0.01"))
        self.beta, self.epsilon = beta, epsilon
        # float64: the square of a large return swallows its deviation
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("square", torch.ones((), dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.float64))

    @property
    def std(self) -> Tensor:
        r"""The deviation :math:`\sigma`, a scalar."""
        return (self.square - self.mean**2).clamp(min=self.epsilon**2).sqrt()

    @torch.no_grad()
    def update(self, target: Tensor) -> None:
        """Learn from the value targets of a rollout ``[*]``, in units of the return.

        Raises:
            NonFiniteError: one is not finite; then nothing is learnt.
        """
        self.check(target)
        self.steps += 1
        weight = self.beta / (1 - (1 - self.beta) ** self.steps)
        target = target.double()
        self.mean.lerp_(target.mean(), weight)
        self.square.lerp_(target.square().mean(), weight)

    def check(self, target: Tensor) -> None:
        """Raise NonFiniteError unless targets are numbers: one that is not would stay in the statistics for good."""
        if not target.numel() or not bool(target.isfinite().all()):
            got = "none" if not target.numel() else "some that are not"
            raise NonFiniteError(explain("Value targets", "finite", got, "Look for huge or missing rewards in the rollout"))

    def normalize(self, target: Tensor) -> Tensor:
        """Turn returns ``[*]`` into what the critic learns."""
        return ((target - self.mean) / self.std).to(target.dtype)

    def denormalize(self, value: Tensor) -> Tensor:
        """Turn what the critic says ``[*]`` into returns."""
        return (value * self.std + self.mean).to(value.dtype)


class PopArt(RunningValueNorm):
    r"""Normalised value targets, and a critic whose values, in units of the return, stay what they were when the statistics move.

    When :math:`\mu, \sigma` become :math:`\mu', \sigma'`, the last layer :math:`v = w^T h + b` changes in place:

    .. math::
        w \leftarrow \sigma w / \sigma', \quad b \leftarrow (\sigma b + \mu - \mu') / \sigma'

    Args:
        value: a :class:`~rlbook.modules.ValueHead` whose network ends in a linear layer with one output and a bias.
        layer: that layer, where it is not the last one among ``value.modules()``; nothing may come after it.
        beta: share of a new batch of targets in the statistics, in (0, 1].
        epsilon: smallest deviation, in units of the return, positive.

    Raises:
        SpecError: the network does not end in such a layer, or the layer has not seen data yet.

    Source: van Hasselt et al. 2016, "Learning values across many orders of magnitude", proposition 1 and algorithm 1.
    Deviates: the statistics begin with those of the first targets, before which values are what the network says.

    Example:
        >>> from rlbook import GAE, CartPole
        >>> from rlbook.modules import make_actor, make_value
        >>> env = CartPole(num_envs=4, seed=0)
        >>> value = make_value(env)
        >>> estimator = GAE(value, value_norm=PopArt(value))
        >>> data = estimator(env.rollout(32, make_actor(env)))  # value_target is what value learns
    """

    def __init__(self, value: nn.Module, beta: float = 0.05, epsilon: float = 1e-2, layer: nn.Module | None = None):
        super().__init__(beta, epsilon)
        last = [module for module in value.modules() if not list(module.children())][-1] if layer is None else layer
        if not isinstance(last, nn.Linear) or isinstance(last, nn.LazyLinear) or last.out_features != 1 or last.bias is None:
            fix = "End it in nn.Linear(..., 1); a lazy layer must see data first: value.value(env.reset())"
            raise SpecError(explain("The critic's last layer", "linear, with one output and a bias", f"{last}", fix))
        self._layer = (last,)  # not a submodule: its weights are the critic's
        self.to(last.weight.device)

    @torch.no_grad()
    def update(self, target: Tensor) -> None:
        """See the class."""
        (layer,) = self._layer
        mean, std = self.mean.clone(), self.std
        super().update(target)
        layer.weight.mul_(std / self.std)
        layer.bias.copy_((std * layer.bias + mean - self.mean) / self.std)
