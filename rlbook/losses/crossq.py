"""CrossQ: soft actor-critic without target networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.functional import soft_clipped_value
from rlbook.losses.base import Terms, critic_terms
from rlbook.losses.sac import SoftLoss

if TYPE_CHECKING:
    from rlbook.typing import Key


class CrossQLoss(SoftLoss):
    r"""Soft actor-critic without targets, but with batch normalisation that sees this state and the next one together.

    .. math::
        (q_i, q'_i) &= Q_i\big((s, s'), (a, \tilde a')\big) \quad \text{in one pass} \\
        y &= r + \gamma (1 - terminated) (\min_i q'_i - \alpha \log \pi_\theta(\tilde a'|s')) \\
        loss\_value &= E[w \sum_i (q_i - y)^2], \quad y \text{ without gradient}

    and the other terms as in :class:`SACLoss`. Batch statistics of one half would be wrong for the other: actions of the buffer
    and of the policy are distributed differently. The networks should hold :class:`~rlbook.modules.BatchRenorm` layers:
    ``MLP(..., norm=BatchRenorm)``. The actor's term, the policy's next action and the rollouts go by running statistics, the
    critics' and the policy's own action by the batch.

    Args:
        actor: a stochastic policy; trained by ``loss_actor``.
        qvalue: critics, usually an ensemble of two wide ones; trained by ``loss_value``.
        gamma, alpha, learn_alpha, target_entropy: see :class:`SACLoss`.

    A batch and the result are as for :class:`SACLoss`.

    Raises:
        ConfigError: see :class:`SACLoss`.

    Source: Bhatt et al. 2024, "CrossQ: Batch Normalization in Deep Reinforcement Learning for Greater Sample Efficiency and
    Simplicity", section 4 and algorithm 1.
    Deviates: see :class:`SACLoss`.

    Example:
        >>> from rlbook import Pendulum
        >>> from rlbook.modules import BatchRenorm, make_actor, make_qvalue
        >>> env = Pendulum(num_envs=4, seed=0)
        >>> loss_fn = CrossQLoss(make_actor(env, std="state"), make_qvalue(env, members=2, norm=BatchRenorm))
        >>> loss_fn(env.rollout(32))["loss"].backward()
    """

    def critic(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Terms:
        """Return the critics' term."""
        nxt: Any = batch[keys.NEXT]
        with torch.no_grad():
            next_action, log_prob = self.draw_actions(nxt, noise.get("next_action"))
        both: dict[Key, Tensor] = {key: torch.stack((batch[key], nxt[key])) for key in self.qvalue.in_keys}
        q, next_q = self.qvalue.members(both, torch.stack((batch[keys.ACTION], next_action))).unbind(1)
        soft_value = soft_clipped_value(next_q.detach(), log_prob, self.log_alpha.detach().exp())
        return critic_terms(q, self.bellman(batch, soft_value), batch)
