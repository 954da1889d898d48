"""Temporal-difference targets on a rollout: one step, or a mixture of all lengths."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase
from torch import Tensor

from rlbook.estimators.base import Estimator
from rlbook.functional import td0_target, td_lambda_return


class TD0(Estimator):
    r"""Add one-step targets to a rollout: :math:`G_t = r_t + \gamma (1 - terminated_t) V(s_{t+1})`, :math:`A_t = G_t - V(s_t)`.

    Args:
        value: a :class:`~rlbook.modules.ValueHead`, or None to use the rollout's own ``state_value``.
        gamma: discount, in [0, 1].
        **options: ``value_norm`` and ``group``, see :class:`~rlbook.estimators.base.Estimator`.

    Source: Sutton and Barto 2018, "Reinforcement Learning", equations 6.2 and 6.5.

    Example:
        >>> from rlbook import CartPole
        >>> from rlbook.modules import make_value
        >>> env = CartPole(num_envs=4, seed=0)
        >>> TD0(make_value(env), gamma=0.99)(env.rollout(32))["value_target"].shape
        torch.Size([4, 32])
    """

    def __init__(self, value: Any, gamma: float = 0.99, **options: Any):
        super().__init__(value, gamma, **options)

    def estimate(
        self, data: TensorDictBase, reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See the class."""
        target = td0_target(reward, next_value, terminated, self.gamma)
        return target - value, target


class TDLambda(Estimator):
    r"""Add lambda-returns to a rollout, the mixture of the returns of every length.

    .. math::
        G_t &= r_t + \gamma ((1 - \lambda) V(s_{t+1}) + \lambda G_{t+1}) \\
        A_t &= G_t - V(s_t)

    Where an episode or the rollout ends, :math:`G_t = r_t + \gamma (1 - terminated_t) V(s_{t+1})`. The same numbers as those of
    :class:`~rlbook.GAE` with :math:`\lambda`, but for rounding.

    Args:
        value: a :class:`~rlbook.modules.ValueHead`, or None to use the rollout's own ``state_value``.
        gamma: discount, in [0, 1].
        td_lambda: :math:`\lambda` in [0, 1]: 0 trusts the values, 1 the rewards.
        **options: ``value_norm`` and ``group``, see :class:`~rlbook.estimators.base.Estimator`.

    Source: Sutton and Barto 2018, "Reinforcement Learning", equations 12.2 and 12.18.

    Example:
        >>> from rlbook import CartPole
        >>> from rlbook.modules import make_value
        >>> env = CartPole(num_envs=4, seed=0)
        >>> TDLambda(make_value(env), gamma=0.99, td_lambda=0.9)(env.rollout(32))["value_target"].shape
        torch.Size([4, 32])
    """

    def __init__(self, value: Any, gamma: float = 0.99, td_lambda: float = 0.95, **options: Any):
        super().__init__(value, gamma, td_lambda=td_lambda, **options)
        self.td_lambda = td_lambda

    def estimate(
        self, data: TensorDictBase, reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See the class."""
        target = td_lambda_return(reward, next_value, terminated, done, self.gamma, self.td_lambda)
        return target - value, target
