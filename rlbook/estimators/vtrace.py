"""V-trace on a rollout that another policy has collected."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, explain
from rlbook.estimators.base import Estimator, unflatten
from rlbook.functional import importance_ratio, v_trace
from rlbook.replay.minibatches import flat_rows
from rlbook.typing import Key


class VTrace(Estimator):
    r"""Add targets and advantages for a policy that is not (any more) the one that acted.

    With the ratio :math:`r_t = \pi(a_t|s_t) / \mu(a_t|s_t)` of the learnt to the acting policy,
    :math:`\rho_t = \min(\bar\rho, r_t)` and :math:`c_t = \lambda \min(\bar c, r_t)`:

    .. math::
        v_t &= V(s_t) + \rho_t \delta_t + \gamma c_t (1 - done_t) (v_{t+1} - V(s_{t+1})) \\
        A_t &= \rho_t (r_t + \gamma v_{t+1} - V(s_t))

    The value target is :math:`v_t`. The advantage carries its weight :math:`\rho_t` already: the policy gradient is
    :math:`A_t \nabla \log \pi(a_t|s_t)`.

    Args:
        actor: the learnt policy, an :class:`~rlbook.modules.Actor` (anything with ``dist(leaves)`` and ``in_keys``). The rollout
            holds the log-probabilities of the one that acted.
        value: a :class:`~rlbook.modules.ValueHead`, or None to use the rollout's own ``state_value``.
        gamma: discount, in [0, 1].
        rho_clip: :math:`\bar\rho`, positive. It decides whose value is learnt.
        c_clip: :math:`\bar c`, positive. It trades speed for variance, and does not change the fixed point.
        td_lambda: :math:`\lambda` in [0, 1].
        **options: ``value_norm`` and ``group``, see :class:`~rlbook.estimators.base.Estimator`.

    Source: Espeholt et al. 2018, "IMPALA", equation 1 and section 4.2.

    Example:
        >>> from rlbook import CartPole
        >>> from rlbook.modules import make_actor, make_value
        >>> env = CartPole(num_envs=4, seed=0)
        >>> actor, value = make_actor(env), make_value(env)
        >>> VTrace(actor, value, gamma=0.99)(env.rollout(32, actor))["advantage"].shape
        torch.Size([4, 32])
    """

    def __init__(
        self,
        actor: Any,
        value: Any,
        gamma: float = 0.99,
        *,
        rho_clip: float = 1.0,
        c_clip: float = 1.0,
        td_lambda: float = 1.0,
        **options: Any,
    ):
        super().__init__(value, gamma, td_lambda=td_lambda, **options)
        if not hasattr(actor, "dist"):
            raise ConfigError(explain("actor", "an Actor", type(actor).__name__, "Wrap the network: Actor(net, env.action_spec)"))
        for name, number in (("rho_clip", rho_clip), ("c_clip", c_clip)):
            if not number > 0:
                raise ConfigError(explain(name, "positive", repr(number), f"Pass for example {name}=1.0"))
        self.actor, self.rho_clip, self.c_clip, self.td_lambda = actor, rho_clip, c_clip, td_lambda

    def _reads(self) -> list[Key]:
        return list(dict.fromkeys((*super()._reads(), *self.actor.in_keys, keys.ACTION, keys.LOG_PROB)))

    def estimate(
        self, data: TensorDictBase, reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See the class."""
        if getattr(self.actor, "state_key", None) is not None:  # it reads sequences
            rollout = data if data.batch_dims > 1 else data.unsqueeze(0)
            log_prob = self.actor.dist(rollout).log_prob(rollout[keys.ACTION]).reshape(data.batch_size)
        else:
            rows = flat_rows(data, (*self.actor.in_keys, keys.ACTION))
            log_prob = unflatten(self.actor.dist(rows).log_prob(rows[keys.ACTION]), data.batch_size)
        ratio = importance_ratio(log_prob, data[keys.LOG_PROB])
        clips = {"rho_clip": self.rho_clip, "c_clip": self.c_clip, "td_lambda": self.td_lambda}
        return v_trace(reward, value, next_value, terminated, done, ratio, self.gamma, **clips)
