"""Munchausen Q-learning: soft Q-learning that adds the log-probability of the action to the reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, explain
from rlbook.functional import bellman_atoms, munchausen_target, soft_value
from rlbook.losses.distributional import IQNLoss
from rlbook.losses.dqn import Distance, DQNLoss

if TYPE_CHECKING:
    from rlbook.modules.qvalue import QValueActor


class MunchausenLoss(DQNLoss):
    r"""Munchausen DQN: Q-learning that is paid for being sure of its own policy :math:`\pi = softmax(Q_{\theta'} / \tau)`.

    .. math::
        y &= r + \alpha [\tau \log \pi(a|s)]_{clip}^0
            + \gamma (1 - terminated) \sum_{a'} \pi(a'|s') (Q_{\theta'}(s', a') - \tau \log \pi(a'|s')) \\
        loss\_value &= E[w \, d(Q_\theta(s, a), y)]

    The added log-probability widens the gaps between the values of actions, and keeps the policy near the one before.

    Args:
        qvalue: the learnt action values; trained by ``loss_value``.
        gamma: discount, in [0, 1]. A batch of n-step returns brings its own ``discount``.
        alpha: share of the log-probability that is added, in [0, 1]; 0 is soft DQN.
        tau: temperature of the policy, positive, in units of return.
        clip: lower bound of :math:`\tau \log \pi`, not positive.
        distance: ``"smooth_l1"`` (Huber with threshold 1) or ``"l2"`` (squared).

    A batch is that of :class:`~rlbook.losses.DQNLoss`, and so are the results.

    Source: Vieillard et al. 2020, "Munchausen Reinforcement Learning", section 2 (M-DQN).

    Example:
        >>> from rlbook import MLP, CartPole, QValueActor
        >>> env = CartPole(num_envs=4, seed=0)
        >>> loss_fn = MunchausenLoss(QValueActor(MLP(out_features=2), env.action_spec))
        >>> loss_fn(env.rollout(32))["loss"].backward()
    """

    alpha: Any
    tau: Any

    def __init__(
        self,
        qvalue: QValueActor,
        *,
        gamma: float = 0.99,
        alpha: float = 0.9,
        tau: float = 0.03,
        clip: float = -1.0,
        distance: Distance = "smooth_l1",
    ):
        super().__init__(qvalue, gamma=gamma, double=False, distance=distance)
        self.clip = check_munchausen(alpha, tau, clip)
        self.hyper(alpha=alpha, tau=tau)

    @torch.no_grad()
    def target(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Tensor:
        """Return what the value of the action should be, ``[*]``."""
        nxt: Any = batch[keys.NEXT]
        values, next_values = (self.qvalue.allowed(self.target_qvalue.values(data), data) for data in (batch, nxt))
        action, discount = self.qvalue.index(batch[keys.ACTION]), batch.get(keys.DISCOUNT, self.gamma)
        reward, terminated = nxt[keys.REWARD], nxt[keys.TERMINATED]
        options: dict[str, Any] = {"alpha": self.alpha, "tau": self.tau, "clip": self.clip}
        return munchausen_target(reward, values, action, next_values, terminated, discount, **options)


class MunchausenIQNLoss(IQNLoss):
    r"""Munchausen IQN: the same bonus, and the same soft expectation over next actions, for every quantile.

    .. math::
        y_j = r + \alpha [\tau \log \pi(a|s)]_{clip}^0
            + \gamma (1 - terminated) \sum_{a'} \pi(a'|s') (\theta'(s', a', \tau'_j) - \tau \log \pi(a'|s'))

    The policy is that of the target network's expectations.

    Args:
        qvalue: the learnt quantile function; trained by ``loss_value``.
        gamma: discount, in [0, 1]. A batch of n-step returns brings its own ``discount``.
        alpha, tau, clip: see :class:`MunchausenLoss`.
        kappa, quantiles, target_quantiles: see :class:`~rlbook.losses.IQNLoss`.

    A batch is that of :class:`~rlbook.losses.DQNLoss`; the results are those of :class:`~rlbook.losses.IQNLoss`.

    Source: Vieillard et al. 2020, "Munchausen Reinforcement Learning", section 2 and appendix B.1 (M-IQN).

    Example:
        >>> from rlbook import MLP, CartPole
        >>> from rlbook.modules import ImplicitQuantileNet, ImplicitQValueActor
        >>> env = CartPole(num_envs=4, seed=0)
        >>> qvalue = ImplicitQValueActor(ImplicitQuantileNet(MLP(16, 4), MLP(2, 16), 16), env.action_spec)
        >>> MunchausenIQNLoss(qvalue)(env.rollout(32))["loss"].backward()
    """

    alpha: Any
    tau: Any

    def __init__(
        self,
        qvalue: QValueActor,
        *,
        gamma: float = 0.99,
        alpha: float = 0.9,
        tau: float = 0.03,
        clip: float = -1.0,
        kappa: float = 1.0,
        quantiles: int = 64,
        target_quantiles: int = 64,
    ):
        super().__init__(qvalue, gamma=gamma, kappa=kappa, quantiles=quantiles, target_quantiles=target_quantiles)
        self.clip = check_munchausen(alpha, tau, clip)
        self.hyper(alpha=alpha, tau=tau)

    @torch.no_grad()
    def target(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Tensor:
        """Return atoms of the return that the action should have, ``[*, N']``."""
        nxt: Any = batch[keys.NEXT]
        values, next_values = (self.qvalue.allowed(self.target_qvalue.values(data), data) for data in (batch, nxt))
        bonus = (self.qvalue.pick(values, batch[keys.ACTION]) - soft_value(values, self.tau)).clamp(self.clip, 0.0)
        log_probs = (next_values / self.tau).log_softmax(-1)
        entropy = -torch.special.xlogy(log_probs.exp(), log_probs.exp()).sum(-1, keepdim=True)
        quantiles = self.target_qvalue.quantiles(nxt, noise["target_tau"])
        soft = (log_probs.exp().unsqueeze(-1) * quantiles).sum(-2) + self.tau * entropy
        discount = batch.get(keys.DISCOUNT, self.gamma)
        return bellman_atoms(nxt[keys.REWARD] + self.alpha * bonus, soft, nxt[keys.TERMINATED], discount)


def check_munchausen(alpha: float, tau: float, clip: float) -> float:
    """Return ``clip``; raise ConfigError where one of the three is out of range."""
    if not 0 <= alpha <= 1:
        raise ConfigError(explain("alpha", "in [0, 1]", repr(alpha), "Pass alpha=0.9"))
    if not tau > 0:
        raise ConfigError(explain("tau", "positive", repr(tau), "Pass tau=0.03"))
    if not clip <= 0:
        raise ConfigError(explain("clip", "0 or less", repr(clip), "Pass clip=-1.0"))
    return clip
