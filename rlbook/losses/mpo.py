"""Maximum a posteriori policy optimisation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from rlbook import keys
from rlbook.errors import ConfigError, check_count, explain
from rlbook.functional import (
    decoupled_gaussian_kl,
    lagrangian_losses,
    mpo_temperature_loss,
    mpo_weights,
    td0_target,
    weighted_likelihood_loss,
)
from rlbook.losses.base import Loss, Terms, critic_terms
from rlbook.losses.sac import check_actor_critic, transition_keys
from rlbook.losses.targets import target_of

if TYPE_CHECKING:
    from rlbook.modules.actor import Actor
    from rlbook.modules.qvalue import QValueHead
    from rlbook.typing import Key

SMALLEST = 1e-8
"""Added to the multipliers, which must be positive."""


class MPOLoss(Loss):
    r"""Maximum a posteriori policy optimisation: weigh drawn actions by their value, then fit the policy to them, within bounds.

    With S actions :math:`a_k \sim \pi'(\cdot|s)` of the target policy, of mean :math:`\mu'` and deviation :math:`\sigma'`, and
    the temperature :math:`\eta`:

    .. math::
        q_k &\propto \exp(Q'(s, a_k) / \eta) \\
        loss\_actor &= -E\Big[\sum_k q_k (\log N(a_k; \mu, \sigma') + \log N(a_k; \mu', \sigma))\Big]
            + \sum_d \alpha^\mu_d C^\mu_d + \alpha^\sigma_d C^\sigma_d \\
        loss\_temperature &= \eta \epsilon + \eta \, E[\log \tfrac{1}{S} \sum_k \exp(Q'(s, a_k) / \eta)] \\
        loss\_alpha &= \sum_d \alpha^\mu_d (\epsilon^\mu - C^\mu_d) + \alpha^\sigma_d (\epsilon^\sigma - C^\sigma_d) \\
        loss\_value &= E[w \sum_i (Q_i(s, a) - r - \gamma (1 - terminated) \tfrac{1}{S} \sum_k Q'(s', a'_k))^2]

    where :math:`C^\mu, C^\sigma` are what mean and deviation add to the divergence from the target policy, per action dimension
    (in :math:`C` only the policy learns, in ``loss_alpha`` only the multipliers). The critic's gradient is never used, so that it
    need not be smooth in the action. For bounded actions :math:`N` is the normal before squashing.

    Args:
        actor: a normal policy, squashed or not; trained by ``loss_actor``.
        qvalue: the critic; trained by ``loss_value``. Of an ensemble the targets take the lowest.
        gamma: discount, in [0, 1]. A batch of n-step returns brings its own ``discount``.
        samples: S, actions drawn per state; at least 2.
        epsilon: bound on the divergence of the weights from uniform, in nats.
        epsilon_mean: bound on what the mean adds to the policy's divergence, for each action dimension, in nats.
        epsilon_std: the same for the deviation; a small one keeps exploration alive.
        temperature: :math:`\eta` at the start, in units of return.
        alpha_mean, alpha_std: the multipliers :math:`\alpha` at the start.

    A batch has the observation, ``action``, the next observation, ``next.reward`` and ``next.terminated``; ``weight`` and
    ``discount`` where the buffer puts them there.

    Returns (from a call): the four terms and ``loss``; diagnostics ``q_mean``, ``temperature``, ``kl_mean`` and ``kl_std`` (means
    over the action dimensions), and ``td_error`` ``[*]``.

    Raises:
        ConfigError: the actor or the critic is none, or a number is out of range.

    Source: Abdolmaleki et al. 2018, "Maximum a Posteriori Policy Optimisation", section 4; the bounds on mean and deviation from
    "Relative Entropy Regularized Policy Iteration", section 4.2.
    Deviates: the critic learns from one step and S actions of the target policy, not from Retrace.

    Example:
        >>> from rlbook import Pendulum
        >>> from rlbook.modules import make_actor, make_qvalue
        >>> env = Pendulum(num_envs=4, seed=0)
        >>> loss_fn = MPOLoss(make_actor(env, std="state"), make_qvalue(env))
        >>> loss_fn(env.rollout(32))["loss"].backward()
    """

    trains = {
        "loss_actor": ("actor",),
        "loss_value": ("qvalue",),
        "loss_temperature": ("dual_temperature",),
        "loss_alpha": ("dual_mean", "dual_std"),
    }
    optional_keys = (keys.WEIGHT, keys.DISCOUNT)
    actor: Actor
    qvalue: QValueHead
    target_actor: Actor
    target_qvalue: QValueHead
    gamma: Any
    epsilon: Any
    epsilon_mean: Any
    epsilon_std: Any

    def __init__(
        self,
        actor: Actor,
        qvalue: QValueHead,
        *,
        gamma: float = 0.99,
        samples: int = 20,
        epsilon: float = 0.1,
        epsilon_mean: float = 0.01,
        epsilon_std: float = 1e-4,
        temperature: float = 10.0,
        alpha_mean: float = 10.0,
        alpha_std: float = 100.0,
    ):
        check_actor_critic(actor, qvalue)
        check_count("samples", samples, 2, example=20)
        positive = {"epsilon": epsilon, "epsilon_mean": epsilon_mean, "epsilon_std": epsilon_std}
        positive |= {"temperature": temperature, "alpha_mean": alpha_mean, "alpha_std": alpha_std}
        for name, number in positive.items():
            if not number > 0:
                raise ConfigError(explain(name, "positive", repr(number), "Leave it out for the usual one"))
        super().__init__()
        self.actor, self.qvalue = actor, qvalue
        self.target_actor, self.target_qvalue = target_of(actor), target_of(qvalue)
        self.samples = samples
        shape, device = actor.spec.shape, self.device
        self.dual_temperature = nn.Parameter(torch.tensor(inverse_softplus(temperature), device=device))
        self.dual_mean = nn.Parameter(torch.full(shape, inverse_softplus(alpha_mean), device=device))
        self.dual_std = nn.Parameter(torch.full(shape, inverse_softplus(alpha_std), device=device))
        self.hyper(gamma=gamma, epsilon=epsilon, epsilon_mean=epsilon_mean, epsilon_std=epsilon_std)

    @property
    def in_keys(self) -> tuple[Key, ...]:
        """Observation, action and outcome."""
        return transition_keys(self.actor, self.qvalue)

    def draw(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Draw what the target policy's actions in this and in the next state are made of, standard normal ``[*, S, A]``."""
        shape = (*batch.batch_size, self.samples, *self.actor.spec.shape)
        return {name: torch.randn(shape, device=self.device) for name in ("actions", "next_actions")}

    def terms(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Terms:
        """See the class."""
        terms, diagnostics = self.critic(batch, noise) if self.wants("loss_value") else ({}, {})
        if any(self.wants(name) for name in self.trains if name != "loss_value"):
            policy_terms, more = self.policy(batch, noise)
            terms, diagnostics = {**terms, **policy_terms}, {**diagnostics, **more}
        return terms, diagnostics

    def policy(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Terms:
        """Return the terms of the policy, the temperature and the multipliers."""
        temperature, alpha_mean, alpha_std = (
            nn.functional.softplus(dual) + SMALLEST for dual in (self.dual_temperature, self.dual_mean, self.dual_std)
        )
        old, drawn, values = self.drawn(batch, noise["actions"])
        new = normal_of(self.actor.dist(batch))
        normal, ndim = type(old), len(self.actor.spec.shape)
        weights = mpo_weights(values, temperature)
        moved = normal(new.loc, old.log_std, ndim), normal(old.loc, new.log_std, ndim)
        fit = sum(weighted_likelihood_loss(policy.log_prob(drawn), weights).mean() for policy in moved)
        kls = [kl.reshape(-1, *self.actor.spec.shape).mean(0) for kl in decoupled_gaussian_kl(old.loc, old.std, new.loc, new.std)]
        mean = lagrangian_losses(kls[0], alpha_mean, self.epsilon_mean)
        std = lagrangian_losses(kls[1], alpha_std, self.epsilon_std)
        terms = {
            "loss_actor": fit + mean[0].sum() + std[0].sum(),
            "loss_temperature": mpo_temperature_loss(values, temperature, self.epsilon).mean(),
            "loss_alpha": mean[1].sum() + std[1].sum(),
        }
        return terms, {"temperature": temperature, "kl_mean": kls[0].mean(), "kl_std": kls[1].mean()}

    def critic(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Terms:
        """Return the critic's term."""
        nxt: Any = batch[keys.NEXT]
        with torch.no_grad():
            *_, values = self.drawn(nxt, noise["next_actions"])
            discount = batch.get(keys.DISCOUNT, self.gamma)
            target = td0_target(nxt[keys.REWARD], values.mean(0), nxt[keys.TERMINATED], discount)
        return critic_terms(self.qvalue.members(batch), target, batch)

    @torch.no_grad()
    def drawn(self, data: TensorDictBase, noise: Tensor) -> tuple[Any, Tensor, Tensor]:
        """Return the target policy's normal, what is drawn from it ``[S, *, A]``, and the values of those actions ``[S, *]``."""
        dist = self.target_actor.dist(data)
        noise, old = noise.movedim(data.ndim, 0), normal_of(dist)
        repeated: dict[Key, Tensor] = {key: data[key].expand(self.samples, *data[key].shape) for key in self.qvalue.in_keys}
        return old, old.loc + old.std * noise, self.target_qvalue.value(repeated, dist.sample(noise))


def normal_of(dist: Any) -> Any:
    """Return the normal of a policy's distribution, before squashing."""
    normal = getattr(dist, "normal", dist)
    if not hasattr(normal, "log_prob_of_noise"):  # a truncated normal is none
        fix = 'Make the actor with make_actor(env, std="state"), or std="constant"'
        raise ConfigError(explain("The policy of MPO", "normal, squashed or not", type(dist).__name__, fix))
    return normal


def inverse_softplus(x: float) -> float:
    """Return the number whose softplus, ``log(1 + e^y)``, is ``x``, positive."""
    return x + math.log(-math.expm1(-x))
