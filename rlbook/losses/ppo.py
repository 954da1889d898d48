"""Proximal policy optimisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tensordict import TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, explain
from rlbook.functional import approx_kl, clip_fraction, normalize, ppo_clip_loss
from rlbook.losses.base import Loss, Terms
from rlbook.modules.actor import Actor, ValueHead
from rlbook.typing import Key


class PPOLoss(Loss):
    r"""PPO with the clipped objective.

    With the ratio :math:`r = \pi_\theta(a|s) / \pi_{old}(a|s)` and the advantage :math:`A`:

    .. math::
        loss\_actor &= -E[\min(r A, clip(r, 1 - \epsilon, 1 + \epsilon) A)] \\
        loss\_value &= c_v E[(V_\phi(s) - V^{target})^2] \\
        loss\_entropy &= -c_e E[H(\pi_\theta(\cdot|s))]

    Args:
        actor: has ``dist(batch)`` and ``in_keys``; trained by ``loss_actor`` and ``loss_entropy``.
        value: has ``value(batch)`` and ``in_keys``; trained by ``loss_value``. None for a loss without critic.
        clip_eps: :math:`\epsilon`, in (0, 1).
        entropy_coef: :math:`c_e`.
        value_coef: :math:`c_v`.
        normalize_advantage: give the advantages of each batch mean 0 and standard deviation 1.

    Returns (from a call): ``loss_actor``, ``loss_value``, ``loss_entropy``, ``loss``; diagnostics ``entropy``, ``approx_kl``
    and ``clip_fraction``.

    Source: Schulman et al. 2017, "Proximal Policy Optimization Algorithms", equations 7 and 9.
    Deviates: advantages are normalised per batch, as in the authors' code (Engstrom et al. 2020).

    Example:
        >>> from rlbook import CartPole, GAE
        >>> from rlbook.modules import make_actor, make_value
        >>> env = CartPole(num_envs=4, seed=0)
        >>> actor, value = make_actor(env), make_value(env)
        >>> loss_fn = PPOLoss(actor, value)
        >>> loss_fn(GAE(value)(env.rollout(32, actor)))["loss"].backward()
    """

    trains = {"loss_actor": ("actor",), "loss_entropy": ("actor",), "loss_value": ("value",)}
    actor: Actor
    value: ValueHead | None
    clip_eps: Any
    entropy_coef: Any
    value_coef: Any

    def __init__(
        self,
        actor: Actor,
        value: ValueHead | None = None,
        *,
        clip_eps: float = 0.2,
        entropy_coef: float = 0.01,
        value_coef: float = 0.5,
        normalize_advantage: bool = True,
    ):
        if not hasattr(actor, "dist"):
            raise ConfigError(explain("actor", "an Actor", type(actor).__name__, "Wrap the network: Actor(net, env.action_spec)"))
        if value is not None and not hasattr(value, "value"):
            raise ConfigError(explain("value", "a ValueHead or None", type(value).__name__, "Wrap the network: ValueHead(net)"))
        super().__init__()
        self.actor, self.value = actor, value
        self.hyper(clip_eps=clip_eps, entropy_coef=entropy_coef, value_coef=value_coef)
        self.normalize_advantage = normalize_advantage

    @property
    def in_keys(self) -> tuple[Key, ...]:
        """Observations, action, its log-probability when it was taken, and the estimator's results."""
        value_keys = () if self.value is None else (*self.value.in_keys, keys.VALUE_TARGET)
        return tuple(dict.fromkeys((*self.actor.in_keys, *value_keys, keys.ACTION, keys.LOG_PROB, keys.ADVANTAGE)))

    def terms(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Terms:
        """See the class."""
        advantage = batch[keys.ADVANTAGE]
        if self.normalize_advantage:
            advantage = normalize(advantage)
        dist = self.actor.dist(batch)
        log_ratio = dist.log_prob(batch[keys.ACTION]) - batch[keys.LOG_PROB].detach()
        ratio = log_ratio.exp()
        entropy = dist.entropy().mean()
        terms = {
            "loss_actor": ppo_clip_loss(ratio, advantage, self.clip_eps).mean(),
            "loss_entropy": -self.entropy_coef * entropy,
        }
        diagnostics = {
            "entropy": entropy,
            "approx_kl": approx_kl(log_ratio.detach()).mean(),
            "clip_fraction": clip_fraction(ratio.detach(), self.clip_eps).mean(),
        }
        if self.value is not None:
            value, target = self.value.value(batch), batch[keys.VALUE_TARGET].detach()
            terms["loss_value"] = self.value_coef * (value - target).square().mean()
        return terms, diagnostics
