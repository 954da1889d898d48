"""Deep Q-learning, and double Q-learning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, explain
from rlbook.functional import double_q_target, huber_loss, q_learning_target, squared_loss
from rlbook.losses.base import Loss, Terms, check_kind, next_of, unique, weighted_mean
from rlbook.losses.targets import target_of

if TYPE_CHECKING:
    from rlbook.modules.qvalue import QValueActor
    from rlbook.typing import Key

Distance = Literal["l2", "smooth_l1"]
DISTANCES = {"l2": squared_loss, "smooth_l1": huber_loss}


class DQNLoss(Loss):
    r"""Q-learning towards a slow copy of the network.

    .. math::
        y &= r + \gamma (1 - terminated) \, Q_{\theta'}(s', \arg\max_a Q_{\theta''}(s', a)) \\
        loss\_value &= E[w \, d(Q_\theta(s, a), y)]

    where the target :math:`\theta'` chooses the next action itself, or with ``double`` the learnt network does
    (:math:`\theta'' = \theta`), which does not overestimate as much.

    Args:
        qvalue: the learnt action values; trained by ``loss_value``. Of an ensemble the target takes the lowest, and all learn.
        gamma: discount, in [0, 1]. A batch of n-step returns brings its own ``discount``.
        double: double Q-learning.
        distance: ``"smooth_l1"`` (Huber with threshold 1, the paper's clipped error) or ``"l2"`` (squared).

    A batch has the observation, ``action``, the next observation, ``next.reward`` and ``next.terminated``; ``weight`` and
    ``discount`` where the buffer puts them there.

    Returns (from a call): ``loss_value``, ``loss``; diagnostics ``q_mean``, ``target_mean``, and ``td_error`` ``[*]``, the new
    priorities for prioritized replay.

    Source: Mnih et al. 2015, "Human-level control through deep reinforcement learning", algorithm 1; van Hasselt et al. 2016,
    "Deep Reinforcement Learning with Double Q-learning", equation 4.

    Example:
        >>> from rlbook import MLP, CartPole, QValueActor
        >>> env = CartPole(num_envs=4, seed=0)
        >>> loss_fn = DQNLoss(QValueActor(MLP(out_features=2), env.action_spec), gamma=0.99)
        >>> loss_fn(env.rollout(32))["loss"].backward()
    """

    trains = {"loss_value": ("qvalue",)}
    optional_keys = (keys.WEIGHT, keys.DISCOUNT, keys.ACTION_MASK, (keys.NEXT, keys.ACTION_MASK))
    qvalue: QValueActor
    target_qvalue: QValueActor
    gamma: Any

    def __init__(self, qvalue: QValueActor, *, gamma: float = 0.99, double: bool = True, distance: Distance = "smooth_l1"):
        check_kind("qvalue", qvalue, "QValueActor")
        if distance not in DISTANCES:
            raise ConfigError(explain("distance", f"one of {list(DISTANCES)}", repr(distance), 'Leave it at "smooth_l1"'))
        super().__init__()
        self.qvalue, self.target_qvalue = qvalue, target_of(qvalue)
        self.is_double, self.distance = double, distance
        self.hyper(gamma=gamma)

    @property
    def in_keys(self) -> tuple[Key, ...]:
        """Observation, action and outcome."""
        outcome = (keys.NEXT, keys.REWARD), (keys.NEXT, keys.TERMINATED)
        return unique(*self.qvalue.in_keys, keys.ACTION, *next_of(self.qvalue.in_keys), *outcome)

    def terms(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Terms:
        """See the class."""
        members = self.qvalue.chosen(batch, batch[keys.ACTION])
        target = self.target(batch, noise).to(members.dtype)
        distance = DISTANCES[self.distance](members, target.expand_as(members)).sum(0)
        error = (target - members).abs().mean(0)
        terms = {"loss_value": weighted_mean(distance, batch)}
        return terms, {keys.TD_ERROR: error, "q_mean": members.mean(), "target_mean": target.mean()}

    @torch.no_grad()
    def target(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Tensor:
        """Return what the value of the action should be, ``[*]``."""
        nxt: Any = batch[keys.NEXT]
        values = self.qvalue.allowed(self.target_qvalue.values(nxt), nxt)
        outcome = nxt[keys.TERMINATED], batch.get(keys.DISCOUNT, self.gamma)
        if not self.is_double:
            return q_learning_target(nxt[keys.REWARD], values, *outcome)
        return double_q_target(nxt[keys.REWARD], values, self.qvalue.allowed(self.qvalue.values(nxt), nxt), *outcome)
