"""Truncated quantile critics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, explain
from rlbook.functional import bellman_atoms, quantile_huber_loss, quantile_midpoints, truncated_atoms
from rlbook.losses.base import Terms, weighted_mean
from rlbook.losses.sac import SoftLoss

if TYPE_CHECKING:
    from rlbook.modules.actor import Actor
    from rlbook.modules.qvalue import QuantileQValueHead


class TQCLoss(SoftLoss):
    r"""Soft actor-critic whose critics return distributions, of which the targets leave out the best atoms.

    Each of n critics gives M quantiles :math:`\theta_{ij}(s, a)` of the return. With :math:`z_{(k)}` the pool of all atoms of the
    targets in rising order, of which :math:`d` for each critic are dropped, :math:`k \le n (M - d)`:

    .. math::
        y_k &= r + \gamma (1 - terminated) (z_{(k)}(s', \tilde a') - \alpha \log \pi_\theta(\tilde a'|s')) \\
        loss\_value &= \frac{1}{M} E\Big[w \sum_{i,j} \text{mean}_k \, \rho_{\tau_j}(y_k - \theta_{ij}(s, a))\Big] \\
        loss\_actor &= E[\alpha \log \pi_\theta(\tilde a|s) - \text{mean}_{ij} \theta_{ij}(s, \tilde a)]

    with :math:`\rho` the quantile Huber loss. The share that is dropped, not the number of critics, sets how pessimistic it is.

    Args:
        actor: a stochastic policy; trained by ``loss_actor``.
        qvalue: critics with several quantiles each; trained by ``loss_value``.
        drop: :math:`d`, atoms that the pool loses for each critic, in 0 .. M - 1; 2 of 25 in the paper, 5 where values run away.
        gamma, alpha, learn_alpha, target_entropy: see :class:`SACLoss`.

    A batch and the result are as for :class:`SACLoss`; ``td_error`` is that of the critics' means.

    Raises:
        ConfigError: the critics have no quantiles, ``drop`` is out of range, or see :class:`SACLoss`.

    Source: Kuznetsov et al. 2020, "Controlling Overestimation Bias with Truncated Mixture of Continuous Distributional Quantile
    Critics", section 3.
    Deviates: see :class:`SACLoss`; the critics' losses are summed, not averaged, as in all losses here.

    Example:
        >>> from rlbook import Pendulum
        >>> from rlbook.modules import make_actor, make_qvalue
        >>> env = Pendulum(num_envs=4, seed=0)
        >>> loss_fn = TQCLoss(make_actor(env, std="state"), make_qvalue(env, members=5, quantiles=25))
        >>> loss_fn(env.rollout(32))["loss"].backward()
    """

    has_target = True
    qvalue: QuantileQValueHead
    target_qvalue: QuantileQValueHead

    def __init__(self, actor: Actor, qvalue: QuantileQValueHead, *, drop: int = 2, **settings: Any):
        if not hasattr(qvalue, "atoms"):
            fix = "make_qvalue(env, members=5, quantiles=25) makes one"
            raise ConfigError(explain("qvalue", "a QuantileQValueHead", type(qvalue).__name__, fix))
        super().__init__(actor, qvalue, **settings)
        if isinstance(drop, bool) or not isinstance(drop, int) or not 0 <= drop < qvalue.quantiles:
            fix = "Pass for example drop=2"
            raise ConfigError(explain("drop", f"an integer in 0 .. {qvalue.quantiles - 1}", repr(drop), fix))
        self.drop = drop

    def critic(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Terms:
        """Return the critics' term."""
        atoms, target = self.qvalue.atoms(batch), self.target(batch, noise)
        tau = quantile_midpoints(self.qvalue.quantiles, dtype=atoms.dtype, device=atoms.device)
        loss = quantile_huber_loss(atoms, target, tau).sum(0) / self.qvalue.quantiles
        q = atoms.mean(-1)
        diagnostics = {"q_mean": q.mean(), keys.TD_ERROR: (q - target.mean(-1)).abs().mean(0)}
        return {"loss_value": weighted_mean(loss, batch)}, diagnostics

    @torch.no_grad()
    def target(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Tensor:
        """Return the atoms of the target, ``[*, n (M - drop)]``."""
        nxt: Any = batch[keys.NEXT]
        action, log_prob = self.draw_actions(nxt, noise.get("next_action"))
        pool = truncated_atoms(self.target_qvalue.atoms(nxt, action), self.drop)
        soft = pool - (self.log_alpha.exp() * log_prob).unsqueeze(-1)
        return bellman_atoms(nxt[keys.REWARD], soft, nxt[keys.TERMINATED], batch.get(keys.DISCOUNT, self.gamma))
