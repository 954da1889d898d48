"""Targets for action values on a rollout, a mixture of returns of all lengths."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, explain
from rlbook.estimators.base import Estimator
from rlbook.functional import q_lambda_return
from rlbook.modules.qvalue import QValueActor
from rlbook.typing import Key


class QLambda(Estimator):
    r"""Add Q(lambda) targets to a rollout: lambda-returns that bootstrap with the largest action value.

    .. math::
        V_t &= \max_a Q(s_t, a) \\
        G_t &= r_t + \gamma ((1 - \lambda) V_{t+1} + \lambda G_{t+1}) \\
        A_t &= G_t - V_t

    Where an episode or the rollout ends, :math:`G_t = r_t + \gamma (1 - terminated_t) V_{t+1}`.

    Args:
        value: a :class:`~rlbook.modules.QValueActor`.
        gamma: discount, in [0, 1].
        td_lambda: :math:`\lambda` in [0, 1]: 0 is the target of Q-learning, 1 trusts the rewards.
        watkins: cut the return before an action that is not greedy (Watkins). By default exploring actions are followed as well
            (Peng): faster, with a bias towards the values of the policy that explored.
        **options: ``value_norm`` and ``group``, see :class:`~rlbook.estimators.base.Estimator`.

    Raises:
        ConfigError: ``value`` is no QValueActor, or a number is out of range.

    Source: Peng and Williams 1996, "Incremental Multi-Step Q-Learning"; Gallici et al. 2025, "Simplifying Deep Temporal
    Difference Learning", equation 16.

    Example:
        >>> from rlbook import CartPole
        >>> from rlbook.modules import make_qvalue
        >>> env = CartPole(num_envs=4, seed=0)
        >>> QLambda(make_qvalue(env), gamma=0.99)(env.rollout(32))["value_target"].shape
        torch.Size([4, 32])
    """

    value: QValueActor

    def __init__(self, value: Any, gamma: float = 0.99, td_lambda: float = 0.65, *, watkins: bool = False, **options: Any):
        if not isinstance(value, QValueActor):
            fix = "Wrap the network: QValueActor(net, env.action_spec)"
            raise ConfigError(explain("value", "a QValueActor", type(value).__name__, fix))
        super().__init__(value, gamma, td_lambda=td_lambda, **options)
        self.td_lambda, self.watkins = td_lambda, watkins

    def _reads(self) -> list[Key]:
        return [*super()._reads(), *([keys.ACTION] if self.watkins else [])]

    def estimate(
        self, data: TensorDictBase, reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See the class."""
        greedy = None
        if self.watkins:
            values = self.value.values(data)
            greedy = self.value.pick(values, data[keys.ACTION]) >= self.value.allowed(values, data).amax(-1)
        target = q_lambda_return(reward, next_value, terminated, done, self.gamma, self.td_lambda, greedy=greedy)
        return target - value, target
