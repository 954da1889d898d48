"""Soft actor-critic."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from rlbook import keys
from rlbook.errors import ConfigError, explain
from rlbook.functional import sac_actor_loss, soft_clipped_value, td0_target, temperature_loss
from rlbook.losses.base import Loss, Terms, check_actor, check_dist, check_value, critic_terms, next_of, unique, weighted_mean
from rlbook.losses.targets import target_of

if TYPE_CHECKING:
    from rlbook.modules.actor import Actor, ValueHead
    from rlbook.modules.qvalue import QValueHead
    from rlbook.typing import Key


class SoftLoss(Loss):
    """What the soft actor-critics share: the terms of the actor and of the temperature, and what a batch must hold.

    A subclass writes :meth:`critic`, and where the actor should look at its critics in another way :meth:`policy_value`.
    """

    has_target: ClassVar[bool] = False
    """Whether the critics have slow copies, ``target_qvalue``."""
    trains = {"loss_actor": ("actor",), "loss_value": ("qvalue",), "loss_alpha": ("log_alpha",)}
    optional_keys = (keys.WEIGHT, keys.DISCOUNT)
    actor: Actor
    qvalue: QValueHead
    gamma: Any
    target_entropy: Any
    log_alpha: Tensor

    def __init__(
        self,
        actor: Actor,
        qvalue: QValueHead,
        *,
        gamma: float = 0.99,
        alpha: float = 1.0,
        learn_alpha: bool = True,
        target_entropy: float | Literal["auto"] = "auto",
    ):
        check_actor_critic(actor, qvalue)
        super().__init__()
        self.actor, self.qvalue = actor, qvalue
        if self.has_target:
            self.target_qvalue = target_of(qvalue)
        self.hyper(gamma=gamma, target_entropy=-actor.spec.shape.numel() if target_entropy == "auto" else target_entropy)
        add_temperature(self, alpha, learn_alpha)

    @property
    def in_keys(self) -> tuple[Key, ...]:
        """Observation, action and outcome."""
        return transition_keys(self.actor, self.qvalue)

    def draw(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Draw what the policy's actions in this and in the next state are made of."""
        action, next_action = (self.actor.draw_noise(batch.batch_size, self.device) for _ in range(2))
        return {} if action is None or next_action is None else {"action": action, "next_action": next_action}

    def terms(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Terms:
        """See the class."""
        terms, diagnostics = self.critic(batch, noise) if self.wants("loss_value") else ({}, {})
        if self.wants("loss_actor") or self.wants("loss_alpha"):
            action, log_prob = self.draw_actions(batch, noise.get("action"))
            actor_terms, more = self.policy_terms(log_prob, self.policy_value(batch, action))
            terms, diagnostics = {**terms, **actor_terms}, {**diagnostics, **more}
        return terms, diagnostics

    def draw_actions(self, data: TensorDictBase, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the policy's actions for observations ``[*]``, which carry a gradient, and their log-probabilities ``[*]``."""
        return check_dist(self.actor.dist(data), self, gradient=True, chance=True).sample_with_log_prob(noise)

    def policy_terms(self, log_prob: Tensor, value: Tensor) -> Terms:
        """Return the terms of the actor and of the temperature, from actions drawn and their values ``[*]``."""
        alpha, entropy = self.log_alpha.detach().exp(), -log_prob.detach().mean()
        terms = {"loss_actor": sac_actor_loss(log_prob, value, alpha).mean()}
        if self.log_alpha.requires_grad:
            terms["loss_alpha"] = temperature_loss(self.log_alpha, log_prob, self.target_entropy).mean()
        return terms, {"entropy": entropy, "alpha": alpha}

    def policy_value(self, batch: TensorDictBase, action: Tensor) -> Tensor:
        """Return what the actor is to increase, ``[*]``; its gradient reaches the action, not the critics."""
        return self.qvalue.value(batch, action, frozen=True)

    @abstractmethod
    def critic(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Terms:
        """Return the critics' term."""

    def bellman(self, batch: TensorDictBase, next_value: Tensor) -> Tensor:
        """Return ``r + gamma (1 - terminated) V(s')``, ``[*]``."""
        nxt: Any = batch[keys.NEXT]
        return td0_target(nxt[keys.REWARD], next_value, nxt[keys.TERMINATED], batch.get(keys.DISCOUNT, self.gamma))


class SACLoss(SoftLoss):
    r"""Soft actor-critic: the return and the entropy of the policy are maximised together.

    With actions :math:`\tilde a \sim \pi_\theta(\cdot|s)` that carry a gradient (reparametrised), critics :math:`Q_i` and their
    targets :math:`Q'_i`:

    .. math::
        y &= r + \gamma (1 - terminated) (\min_i Q'_i(s', \tilde a') - \alpha \log \pi_\theta(\tilde a'|s')) \\
        loss\_value &= E[w \sum_i (Q_i(s, a) - y)^2] \\
        loss\_actor &= E[\alpha \log \pi_\theta(\tilde a|s) - \min_i Q_i(s, \tilde a)] \\
        loss\_alpha &= -\log\alpha \, E[\log \pi_\theta(\tilde a|s) + \bar H]

    Args:
        actor: a stochastic policy; trained by ``loss_actor``.
        qvalue: critics, usually an ensemble of two; trained by ``loss_value``.
        gamma: discount, in [0, 1]. A batch of n-step returns brings its own ``discount``.
        alpha: the temperature at the start, positive.
        learn_alpha: adapt the temperature, with ``loss_alpha``, until the policy's entropy is the target.
        target_entropy: :math:`\bar H` in nats, of actions in the environment's units; ``"auto"`` is minus the number of action
            dimensions, as in CleanRL. (Libraries that scale actions to [-1, 1] first, as SB3 does, mean the entropy there: it is
            lower by the sum of the logarithms of half the ranges.)

    A batch has the observation, ``action``, the next observation, ``next.reward`` and ``next.terminated``; ``weight`` and
    ``discount`` where the buffer puts them there.

    Returns (from a call): ``loss_actor``, ``loss_value``, ``loss_alpha`` (where it is learnt), ``loss``; diagnostics ``alpha``,
    ``entropy``, ``q_mean``, and ``td_error`` ``[*]``.

    Source: Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications", equations 5, 9 and 18.
    Deviates: the three terms are of the same weights, while the authors' code steps them one after the other; the temperature's
    term has log alpha in place of alpha, as in their code, which changes the size of its steps; the critics' errors are
    squared without the factor 1/2, as in most code.

    Example:
        >>> from rlbook import Pendulum
        >>> from rlbook.modules import make_actor, make_qvalue
        >>> env = Pendulum(num_envs=4, seed=0)
        >>> loss_fn = SACLoss(make_actor(env, std="state"), make_qvalue(env, members=2))
        >>> loss_fn(env.rollout(32))["loss"].backward()
    """

    has_target = True
    target_qvalue: QValueHead

    def critic(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Terms:
        """Return the critics' term."""
        return critic_terms(self.qvalue.members(batch), self.target(batch, noise), batch)

    @torch.no_grad()
    def target(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Tensor:
        """Return what the value of the action should be, ``[*]``."""
        nxt: Any = batch[keys.NEXT]
        action, log_prob = self.draw_actions(nxt, noise.get("next_action"))
        members = self.target_members(self.target_qvalue.members(nxt, action), noise)
        return self.bellman(batch, soft_clipped_value(members, log_prob, self.log_alpha.exp()))

    def target_members(self, members: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        """Return the target critics ``[m, *]`` of all ``[n, *]`` whose least counts."""
        return members


class SACv1Loss(SoftLoss):
    r"""Soft actor-critic in its first version: a network of the state's value stands between the critics and their target.

    .. math::
        loss\_value &= E[w \sum_i (Q_i(s, a) - r - \gamma (1 - terminated) V'(s'))^2] \\
        loss\_state\_value &= E[w (V(s) - \min_i Q_i(s, \tilde a) + \alpha \log \pi_\theta(\tilde a|s))^2]

    and the other terms as in :class:`SACLoss`. The target :math:`V'` follows slowly; the critics have none.

    Args:
        actor, qvalue, gamma, alpha, target_entropy: see :class:`SACLoss`.
        value: the soft value of a state; trained by ``loss_state_value``.
        learn_alpha: adapt the temperature; the paper has one that stays.

    Returns (from a call): ``loss_actor``, ``loss_value``, ``loss_state_value``, ``loss_alpha`` (where it is learnt), ``loss``;
    diagnostics as of :class:`SACLoss`.

    Raises:
        ConfigError: see :class:`SACLoss`.

    Source: Haarnoja et al. 2018, "Soft Actor-Critic: Off-Policy Maximum Entropy Deep Reinforcement Learning with a Stochastic
    Actor", equations 5, 7 and 12.
    Deviates: squared without the factor 1/2, as in :class:`SACLoss`; one action serves the value and the actor.

    Example:
        >>> from rlbook import Pendulum
        >>> from rlbook.modules import make_actor, make_qvalue, make_value
        >>> env = Pendulum(num_envs=4, seed=0)
        >>> loss_fn = SACv1Loss(make_actor(env, std="state"), make_qvalue(env, members=2), make_value(env), alpha=0.2)
        >>> loss_fn(env.rollout(32))["loss"].backward()
    """

    trains = {**SoftLoss.trains, "loss_state_value": ("value",)}
    value: ValueHead
    target_value: ValueHead

    def __init__(self, actor: Actor, qvalue: QValueHead, value: ValueHead, *, learn_alpha: bool = False, **settings: Any):
        super().__init__(actor, qvalue, learn_alpha=learn_alpha, **settings)
        check_value("value", value)
        self.value, self.target_value = value, target_of(value)

    @property
    def in_keys(self) -> tuple[Key, ...]:
        """Observation, action and outcome."""
        return unique(*super().in_keys, *self.value.in_keys, *next_of(self.value.in_keys))

    def draw(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Draw what the policy's actions in this state are made of."""
        action = self.actor.draw_noise(batch.batch_size, self.device)
        return {} if action is None else {"action": action}

    def terms(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Terms:
        """See the class."""
        terms, diagnostics = self.critic(batch, noise) if self.wants("loss_value") else ({}, {})
        action, log_prob = self.draw_actions(batch, noise.get("action"))
        q = self.policy_value(batch, action)
        actor_terms, more = self.policy_terms(log_prob, q)
        target = (q - more["alpha"] * log_prob).detach()
        terms["loss_state_value"] = weighted_mean((self.value.value(batch) - target).square(), batch)
        return {**terms, **actor_terms}, {**diagnostics, **more}

    def critic(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Terms:
        """Return the critics' term."""
        with torch.no_grad():
            target = self.bellman(batch, self.target_value.value(batch[keys.NEXT]))
        return critic_terms(self.qvalue.members(batch), target, batch)


def add_temperature(loss_fn: Loss, alpha: float, learn: bool) -> None:
    """Give a loss its ``log_alpha``: a parameter where it is learnt, else a buffer."""
    if not alpha > 0:
        raise ConfigError(explain("alpha", "positive", repr(alpha), "Pass for example 0.2"))
    log_alpha = torch.tensor(math.log(alpha), device=loss_fn.device)
    if learn:
        loss_fn.log_alpha = nn.Parameter(log_alpha)
    else:
        loss_fn.register_buffer("log_alpha", log_alpha)


def transition_keys(actor: Actor, qvalue: Any) -> tuple[Key, ...]:
    """Return the entries of a transition that an actor and its critic read."""
    observations = unique(*actor.in_keys, *qvalue.in_keys)
    outcome = (keys.NEXT, keys.REWARD), (keys.NEXT, keys.TERMINATED)
    return unique(*observations, keys.ACTION, *next_of(observations), *outcome)


def check_actor_critic(actor: Any, qvalue: Any) -> None:
    """Raise ConfigError unless the two are what off-policy losses for continuous actions take."""
    check_actor(actor)
    if not hasattr(qvalue, "members") or hasattr(qvalue, "act"):
        fix = "Wrap the network: QValueHead(net)" if not hasattr(qvalue, "in_keys") else "For discrete actions use another loss"
        raise ConfigError(explain("qvalue", "a QValueHead", type(qvalue).__name__, fix))
    check_no_memory(actor=actor, qvalue=qvalue)


def check_no_memory(**parts: Any) -> None:
    """Raise ConfigError where a network has a memory: these losses learn from single transitions."""
    for name, part in parts.items():
        if getattr(part, "state_key", None) is not None:
            fix = "Put past observations into each (frame stacking), or use recurrent PPO or R2D2Loss"
            raise ConfigError(explain(name, "a network without memory", f"one with a {type(part.net).__name__}", fix))
