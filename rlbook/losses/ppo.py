"""Proximal policy optimisation: the clipped objective with its variants, and the penalty on the KL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, explain
from rlbook.functional import (
    adapted_kl_coef,
    approx_kl,
    clip_fraction,
    clipped_value_loss,
    importance_ratio,
    ppo_clip_loss,
    ppo_dual_clip_loss,
    ppo_kl_loss,
)
from rlbook.losses.on_policy import OnPolicyLoss

if TYPE_CHECKING:
    from rlbook.distributions import Distribution
    from rlbook.modules.actor import Actor, ValueHead
    from rlbook.typing import Key


class PPOLoss(OnPolicyLoss):
    r"""PPO with the clipped objective.

    With the ratio :math:`r = \pi_\theta(a|s) / \pi_{old}(a|s)` and the advantage :math:`A`:

    .. math::
        loss\_actor &= -E[\min(r A, clip(r, 1 - \epsilon, 1 + \epsilon) A)] \\
        loss\_value &= c_v E[(V_\phi(s) - V^{target})^2] \\
        loss\_entropy &= -c_e E[H(\pi_\theta(\cdot|s))]

    Args:
        actor: has ``dist(batch)`` and ``in_keys``; trained by ``loss_actor`` and ``loss_entropy``.
        value: has ``value(batch)`` and ``in_keys``; trained by ``loss_value``. None for a loss without critic.
        clip_eps: :math:`\epsilon`, usually 0.1 to 0.3; a huge one clips nothing.
        entropy_coef: :math:`c_e`.
        value_coef: :math:`c_v`.
        normalize_advantage: give the advantages of each batch mean 0 and standard deviation 1.
        dual_clip: a bad action is pushed away with a ratio of at most this, more than 1 (3 in the paper); for data of a much
            older policy. None for no such bound.
        value_clip: how far a value may move from ``state_value``, what it was when the data came, before its error counts as that
            of the moved one; in units of return. None for no such bound, which usually learns better (Andrychowicz et al. 2021).

    Returns (from a call): ``loss_actor``, ``loss_value``, ``loss_entropy``, ``loss``; diagnostics ``entropy``, ``approx_kl``
    and ``clip_fraction``.

    Source: Schulman et al. 2017, "Proximal Policy Optimization Algorithms", equations 7 and 9; Ye et al. 2020,
    "Mastering Complex Control in MOBA Games with Deep Reinforcement Learning", equation 5, for ``dual_clip``.
    Deviates: advantages are normalised per batch, as in the authors' code (Engstrom et al. 2020).

    Example:
        >>> from rlbook import CartPole, GAE
        >>> from rlbook.modules import make_actor, make_value
        >>> env = CartPole(num_envs=4, seed=0)
        >>> actor, value = make_actor(env), make_value(env)
        >>> loss_fn = PPOLoss(actor, value)
        >>> loss_fn(GAE(value)(env.rollout(32, actor)))["loss"].backward()
    """

    old_keys = (keys.LOG_PROB,)
    clip_eps: Any
    value_clip: Any

    def __init__(
        self,
        actor: Actor,
        value: ValueHead | None = None,
        *,
        clip_eps: float = 0.2,
        entropy_coef: float = 0.01,
        value_coef: float = 0.5,
        normalize_advantage: bool = True,
        dual_clip: float | None = None,
        value_clip: float | None = None,
    ):
        options = {"entropy_coef": entropy_coef, "value_coef": value_coef}
        super().__init__(actor, value, **options, normalize_advantage=normalize_advantage)
        if dual_clip is not None and not dual_clip > 1:
            raise ConfigError(explain("dual_clip", "more than 1, or None", repr(dual_clip), "Pass for example 3.0"))
        self.dual_clip = dual_clip
        self.register_buffer("value_clip", None)
        self.hyper(clip_eps=clip_eps, **({} if value_clip is None else {"value_clip": value_clip}))

    @property
    def in_keys(self) -> tuple[Key, ...]:
        """Observations, action, its log-probability when it was taken, and the estimator's results."""
        return super().in_keys if self.value_clip is None else (*super().in_keys, keys.VALUE)

    def surrogate(self, batch: TensorDictBase, dist: Distribution, advantage: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See the class."""
        log_prob, old = dist.log_prob(batch[keys.ACTION]), batch[keys.LOG_PROB].detach()
        ratio, log_ratio = importance_ratio(log_prob, old), log_prob - old
        if self.dual_clip is None:
            loss = ppo_clip_loss(ratio, advantage, self.clip_eps).mean()
        else:
            loss = ppo_dual_clip_loss(ratio, advantage, self.clip_eps, self.dual_clip).mean()
        return loss, {
            "approx_kl": approx_kl(log_ratio.detach()).mean(),
            "clip_fraction": clip_fraction(ratio.detach(), self.clip_eps).mean(),
        }

    def value_error(self, batch: TensorDictBase) -> Tensor:
        """Return the squared errors of the value, ``[*]``."""
        if self.value is None or self.value_clip is None:
            return super().value_error(batch)
        return clipped_value_loss(self.value.value(batch), batch[keys.VALUE], batch[keys.VALUE_TARGET], self.value_clip)


class PPOKLLoss(OnPolicyLoss):
    r"""PPO with a penalty on the KL instead of a clip; the weight of the penalty follows the KL.

    .. math::
        loss\_actor &= -E[r A - \beta KL(\pi_{old}(\cdot|s) || \pi_\theta(\cdot|s))] \\
        loss\_value &= c_v E[(V_\phi(s) - V^{target})^2] \\
        loss\_entropy &= -c_e E[H(\pi_\theta(\cdot|s))]

    The KL is exact where a batch holds ``action_params``, the parameters of the policy that acted (``actor.read(data)``);
    otherwise it is estimated from the actions, with the same mean gradient. Call :meth:`adapt` after the steps on each rollout.

    Args:
        actor, value, entropy_coef, value_coef, normalize_advantage: see :class:`PPOLoss`.
        kl_coef: :math:`\beta` at the start, positive.
        target_kl: the KL wanted per rollout, in nats, positive.

    Returns (from a call): ``loss_actor``, ``loss_entropy``, ``loss_value``, ``loss``; diagnostics ``entropy``, ``kl``
    and ``kl_coef``.

    Source: Schulman et al. 2017, "Proximal Policy Optimization Algorithms", section 4 and equation 8.

    Example:
        >>> from rlbook import GAE, CartPole
        >>> from rlbook.modules import make_actor, make_value
        >>> env = CartPole(num_envs=4, seed=0)
        >>> actor, value = make_actor(env), make_value(env)
        >>> loss_fn = PPOKLLoss(actor, value)
        >>> out = loss_fn(GAE(value)(env.rollout(32, actor)))
        >>> loss_fn.adapt(out["kl"])  # no KL yet: a smaller penalty next time
        >>> loss_fn.kl_coef
        tensor(0.5000)
    """

    old_keys = (keys.LOG_PROB,)
    optional_keys = (keys.ACTION_PARAMS,)
    kl_coef: Any

    def __init__(
        self,
        actor: Actor,
        value: ValueHead | None = None,
        *,
        kl_coef: float = 1.0,
        target_kl: float = 0.01,
        entropy_coef: float = 0.01,
        value_coef: float = 0.5,
        normalize_advantage: bool = True,
    ):
        options = {"entropy_coef": entropy_coef, "value_coef": value_coef}
        super().__init__(actor, value, **options, normalize_advantage=normalize_advantage)
        for name, number in {"kl_coef": kl_coef, "target_kl": target_kl}.items():
            if not number > 0:
                raise ConfigError(explain(name, "positive", repr(number), f"Pass for example {name}=0.01"))
        self.target_kl = target_kl
        self.hyper(kl_coef=kl_coef)

    def surrogate(self, batch: TensorDictBase, dist: Distribution, advantage: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See the class."""
        log_prob, old = dist.log_prob(batch[keys.ACTION]), batch[keys.LOG_PROB].detach()
        kl = self._kl(batch, dist, log_prob - old)
        loss = ppo_kl_loss(importance_ratio(log_prob, old), advantage, kl, self.kl_coef)
        return loss.mean(), {"kl": kl.mean(), "kl_coef": self.kl_coef.clone()}

    def _kl(self, batch: TensorDictBase, dist: Distribution, log_ratio: Tensor) -> Tensor:
        """Return the KL in each state ``[*]``, exact where the acting policy's parameters are known."""
        params = batch.get(keys.ACTION_PARAMS, None)
        if params is None:
            return approx_kl(log_ratio)
        return self.actor.dist_of(params.detach(), self.actor.mask_of(batch)).kl(dist)

    @torch.no_grad()
    def divergence(self, data: TensorDictBase) -> Tensor:
        """Return the mean KL of a rollout or batch ``[*]``, from the policy that acted to the learnt one, a scalar in nats."""
        dist = self.actor.dist(data)
        return self._kl(data, dist, dist.log_prob(data[keys.ACTION]) - data[keys.LOG_PROB]).mean()

    @torch.no_grad()
    def adapt(self, kl: Tensor) -> None:
        """Follow the mean KL after the steps on a rollout: halve the penalty below 2/3 of the target, double it above 3/2."""
        self.kl_coef.copy_(adapted_kl_coef(self.kl_coef, kl, self.target_kl))
