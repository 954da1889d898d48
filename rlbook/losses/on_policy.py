"""What the losses of on-policy methods share: the bonus for entropy and the regression of the value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tensordict import TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.functional import normalize, reinforce_loss
from rlbook.losses.base import Loss, Terms, check_actor, check_dist, check_value, unique

if TYPE_CHECKING:
    from rlbook.distributions import Distribution
    from rlbook.modules.actor import Actor, ValueHead
    from rlbook.typing import Key


class OnPolicyLoss(Loss):
    r"""The policy gradient, or another term of the actor that a subclass writes as :meth:`surrogate`, and the two others.

    .. math::
        loss\_actor &= -E[A \log \pi_\theta(a|s)] \\
        loss\_entropy &= -c_e E[H(\pi_\theta(\cdot|s))] \\
        loss\_value &= c_v E[(V_\phi(s) - V^{target})^2]

    Args:
        actor: has ``dist(batch)`` and ``in_keys``; trained by ``loss_actor`` and ``loss_entropy``.
        value: has ``value(batch)`` and ``in_keys``; trained by ``loss_value``. None for a loss without critic.
        entropy_coef: :math:`c_e`, not negative.
        value_coef: :math:`c_v`, not negative.
        normalize_advantage: give the advantages of each batch mean 0 and standard deviation 1.

    Raises:
        ConfigError: a bare network was passed.
    """

    trains = {"loss_actor": ("actor",), "loss_entropy": ("actor",), "loss_value": ("value",)}
    old_keys: tuple[Key, ...] = ()
    """What a subclass reads of the policy that acted."""

    actor: Actor
    value: ValueHead | None
    entropy_coef: Any
    value_coef: Any

    def __init__(
        self,
        actor: Actor,
        value: ValueHead | None = None,
        *,
        entropy_coef: float = 0.01,
        value_coef: float = 0.5,
        normalize_advantage: bool = False,
    ):
        check_actor(actor)
        if value is not None:
            check_value("value", value)
        super().__init__()
        self.actor, self.value = actor, value
        self.hyper(entropy_coef=entropy_coef, value_coef=value_coef)
        self.normalize_advantage = normalize_advantage

    @property
    def in_keys(self) -> tuple[Key, ...]:
        """Observations, the action, what is known of the policy that acted, and the estimator's results."""
        value_keys = () if self.value is None else (*self.value.in_keys, keys.VALUE_TARGET)
        return unique(*self.actor.in_keys, *value_keys, keys.ACTION, *self.old_keys, keys.ADVANTAGE)

    def surrogate(self, batch: TensorDictBase, dist: Distribution, advantage: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the actor's term, a scalar, and diagnostics.

        Args:
            batch: the batch ``[*]``.
            dist: the learnt policy there.
            advantage: normalised if that was asked for, ``[*]``.
        """
        return reinforce_loss(dist.log_prob(batch[keys.ACTION]), advantage).mean(), {}

    def value_error(self, batch: TensorDictBase) -> Tensor:
        """Return the squared errors of the value, ``[*]``."""
        assert self.value is not None
        return (self.value.value(batch) - batch[keys.VALUE_TARGET].detach()).square()

    def terms(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Terms:
        """See the class."""
        terms, diagnostics = {}, {}
        if self.wants("loss_actor") or self.wants("loss_entropy"):
            advantage = batch[keys.ADVANTAGE]
            if self.normalize_advantage:
                advantage = normalize(advantage)
            dist = check_dist(self.actor.dist(batch), self, chance=True)
            terms["loss_actor"], diagnostics = self.surrogate(batch, dist, advantage)
            diagnostics["entropy"] = dist.entropy().mean()
            terms["loss_entropy"] = -self.entropy_coef * diagnostics["entropy"]
        if self.value is not None and self.wants("loss_value"):
            terms["loss_value"] = self.value_coef * self.value_error(batch).mean()
        return terms, diagnostics
