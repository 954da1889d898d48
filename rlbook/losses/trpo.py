"""Trust region policy optimisation: the objective. The step that follows its natural gradient is in ``trpo_update.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensordict import TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.functional import approx_kl, importance_ratio
from rlbook.losses.on_policy import OnPolicyLoss

if TYPE_CHECKING:
    from rlbook.distributions import Distribution
    from rlbook.modules.actor import Actor, ValueHead


class TRPOLoss(OnPolicyLoss):
    r"""TRPO's objective, to which :class:`TRPOUpdate` adds the bound of the KL.

    With the ratio :math:`r = \pi_\theta(a|s) / \pi_{old}(a|s)` and the advantage :math:`A`:

    .. math::
        loss\_actor &= -E[r A] \\
        loss\_value &= c_v E[(V_\phi(s) - V^{target})^2] \\
        loss\_entropy &= -c_e E[H(\pi_\theta(\cdot|s))]

    Args:
        actor: has ``dist(batch)`` and ``in_keys``; trained by ``loss_actor`` and ``loss_entropy``.
        value: has ``value(batch)`` and ``in_keys``; trained by ``loss_value``. None for a loss without critic.
        entropy_coef: :math:`c_e`.
        value_coef: :math:`c_v`.
        normalize_advantage: give the advantages of each batch mean 0 and standard deviation 1.

    Returns (from a call): ``loss_actor``, ``loss_entropy``, ``loss_value``, ``loss``; diagnostics ``entropy``, ``approx_kl``.

    Source: Schulman et al. 2015, "Trust Region Policy Optimization", equation 14.
    """

    old_keys = (keys.LOG_PROB,)

    def __init__(
        self,
        actor: Actor,
        value: ValueHead | None = None,
        *,
        entropy_coef: float = 0.0,
        value_coef: float = 0.5,
        normalize_advantage: bool = True,
    ):
        options = {"entropy_coef": entropy_coef, "value_coef": value_coef}
        super().__init__(actor, value, **options, normalize_advantage=normalize_advantage)

    def surrogate(self, batch: TensorDictBase, dist: Distribution, advantage: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See the class."""
        log_prob, old = dist.log_prob(batch[keys.ACTION]), batch[keys.LOG_PROB].detach()
        kl = approx_kl((log_prob - old).detach()).mean()
        return -(importance_ratio(log_prob, old) * advantage.detach()).mean(), {"approx_kl": kl}
