"""Q-learning without replay and without a target network, from many environments at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tensordict import TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.functional import squared_loss
from rlbook.losses.base import Loss, Terms, check_kind, unique, weighted_mean

if TYPE_CHECKING:
    from rlbook.modules.qvalue import QValueActor
    from rlbook.typing import Key


class PQNLoss(Loss):
    r"""Regression of action values onto targets that were computed beforehand.

    .. math:: loss\_value = E[w (Q_\theta(s, a) - G)^2]

    :math:`G` is usually the Q(lambda) return of :class:`~rlbook.estimators.QLambda`. What keeps the learning stable, instead of
    a target network, is layer normalisation in the network, and that the data are the policy's own, from many environments.

    Args:
        qvalue: the learnt action values; trained by ``loss_value``.

    A batch has the observation, ``action`` and ``value_target``.

    Returns (from a call): ``loss_value``, ``loss``; diagnostics ``q_mean``, ``target_mean``, and ``td_error`` ``[*]``.

    Source: Gallici et al. 2025, "Simplifying Deep Temporal Difference Learning", algorithm 1. Deviates: no factor 1/2.

    Example:
        >>> from rlbook import MLP, CartPole, QValueActor
        >>> from torch import nn
        >>> from rlbook.estimators import QLambda
        >>> env = CartPole(num_envs=4, seed=0)
        >>> qvalue = QValueActor(MLP(2, 4, norm=nn.LayerNorm), env.action_spec)
        >>> PQNLoss(qvalue)(QLambda(qvalue)(env.rollout(32)))["loss"].backward()
    """

    trains = {"loss_value": ("qvalue",)}
    optional_keys = (keys.WEIGHT,)
    qvalue: QValueActor

    def __init__(self, qvalue: QValueActor):
        check_kind("qvalue", qvalue, "QValueActor")
        super().__init__()
        self.qvalue = qvalue

    @property
    def in_keys(self) -> tuple[Key, ...]:
        """Observation, action and target."""
        return unique(*self.qvalue.in_keys, keys.ACTION, keys.VALUE_TARGET)

    def terms(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Terms:
        """See the class."""
        members, target = self.qvalue.chosen(batch, batch[keys.ACTION]), batch[keys.VALUE_TARGET].detach()
        distance = squared_loss(members, target.expand_as(members)).sum(0)
        error = (target - members).abs().mean(0)
        terms = {"loss_value": weighted_mean(distance, batch)}
        return terms, {keys.TD_ERROR: error, "q_mean": members.mean(), "target_mean": target.mean()}
