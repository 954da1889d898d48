"""Generalised advantage estimation on a rollout."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase
from torch import Tensor

from rlbook.estimators.base import Estimator
from rlbook.functional import generalized_advantage
from rlbook.functional.scan import Backend


class GAE(Estimator):
    r"""Add ``state_value``, ``advantage`` and ``value_target`` to a rollout.

    .. math::
        \delta_t &= r_t + \gamma (1 - terminated_t) V(s_{t+1}) - V(s_t) \\
        A_t &= \delta_t + \gamma \lambda (1 - done_t) A_{t+1}

    Time-outs bootstrap from the true last observation; the value target is :math:`A_t + V(s_t)`.

    Args:
        value: a :class:`~rlbook.modules.ValueHead` (anything with ``value(leaves)`` and ``in_keys``). None to use the rollout's
            own ``state_value``.
        gamma: discount, in [0, 1].
        gae_lambda: :math:`\lambda` in [0, 1]: 0 trusts the values, 1 the rewards.
        backend: of the scan, see :func:`rlbook.functional.reverse_scan`.
        **options: ``value_norm`` and ``group``, see :class:`~rlbook.estimators.base.Estimator`.

    Source: Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage Estimation", equation 16.

    Example:
        >>> from rlbook import CartPole
        >>> from rlbook.modules import make_actor, make_value
        >>> env = CartPole(num_envs=4, seed=0)
        >>> data = GAE(make_value(env), gamma=0.99, gae_lambda=0.95)(env.rollout(32, make_actor(env)))
        >>> data["advantage"].shape
        torch.Size([4, 32])
    """

    def __init__(self, value: Any, gamma: float = 0.99, gae_lambda: float = 0.95, backend: Backend = "auto", **options: Any):
        super().__init__(value, gamma, gae_lambda=gae_lambda, **options)
        self.gae_lambda = gae_lambda
        self.backend: Backend = backend

    def estimate(
        self, data: TensorDictBase, reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See the class."""
        return generalized_advantage(
            reward, value, next_value, terminated, done, self.gamma, self.gae_lambda, backend=self.backend
        )
