"""Many critics, many updates: REDQ, and DroQ, which has dropout instead of many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from rlbook.errors import ConfigError, explain
from rlbook.losses.sac import SACLoss

if TYPE_CHECKING:
    from rlbook.modules.actor import Actor
    from rlbook.modules.qvalue import QValueHead


class REDQLoss(SACLoss):
    r"""Randomised ensembled double Q-learning: soft actor-critic with many critics, of which each target takes a few at random.

    .. math::
        y &= r + \gamma (1 - terminated) (\min_{i \in M} Q'_i(s', \tilde a') - \alpha \log \pi_\theta(\tilde a'|s')) \\
        loss\_value &= E[w \sum_{i=1}^n (Q_i(s, a) - y)^2] \\
        loss\_actor &= E[\alpha \log \pi_\theta(\tilde a|s) - \frac{1}{n} \sum_i Q_i(s, \tilde a)]

    with :math:`M` a subset of the critics, drawn anew for each batch. The mean over many critics has little variance and the
    least of two little bias, so that 20 updates per step of the environment do no harm.

    DroQ is this loss with ``subset=None`` and two critics that have dropout and layer norm in their networks: dropout makes many
    critics of two. The targets drop units as well, and the masks are drawn for each batch.

    Args:
        actor: a stochastic policy; trained by ``loss_actor``.
        qvalue: an ensemble of critics; trained by ``loss_value``.
        subset: how many critics a target takes the least of; all when None.
        gamma, alpha, learn_alpha, target_entropy: see :class:`SACLoss`.

    A batch and the result are as for :class:`SACLoss`.

    Raises:
        ConfigError: ``subset`` is not in 1 .. n, or see :class:`SACLoss`.

    Source: Chen et al. 2021, "Randomized Ensembled Double Q-Learning", algorithm 1; Hiraoka et al. 2022, "Dropout Q-Functions for
    Doubly Efficient Reinforcement Learning", algorithm 2.
    Deviates: see :class:`SACLoss`; the actor takes one step for each step of the critics, unless the update delays it, while the
    papers' takes one after all critics' steps of a round.

    Example:
        >>> from rlbook import Pendulum
        >>> from rlbook.modules import make_actor, make_qvalue
        >>> env = Pendulum(num_envs=4, seed=0)
        >>> loss_fn = REDQLoss(make_actor(env, std="state"), make_qvalue(env, members=10))
        >>> loss_fn(env.rollout(32))["loss"].backward()
    """

    def __init__(self, actor: Actor, qvalue: QValueHead, *, subset: int | None = 2, **settings: Any):
        super().__init__(actor, qvalue, **settings)
        count = qvalue.num_members
        if subset is not None and (not isinstance(subset, int) or not 1 <= subset <= count):
            fix = "Make more critics: make_qvalue(env, members=10)"
            raise ConfigError(explain("subset", f"in 1 .. {count}, the number of critics", repr(subset), fix))
        self.subset = count if subset is None else subset

    def draw(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Draw what actions are made of, and which critics the targets are the least of, int64 ``[subset]``."""
        noise, count = super().draw(batch), self.qvalue.num_members
        if self.subset < count:
            noise["critics"] = torch.randperm(count, device=self.device)[: self.subset]
        return noise

    def target_members(self, members: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        """Return the values of the critics that were drawn, ``[subset, *]``."""
        return members.index_select(0, noise["critics"]) if self.subset < len(members) else members

    def policy_value(self, batch: TensorDictBase, action: Tensor) -> Tensor:
        """Return the mean of the critics, ``[*]``."""
        return self.qvalue.members(batch, action, frozen=True).mean(0)
