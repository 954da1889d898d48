"""Soft actor-critic for discrete actions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, explain
from rlbook.functional import (
    categorical_entropy,
    clipped_double_value,
    discrete_sac_actor_loss,
    soft_expected_value,
    td0_target,
    temperature_loss,
)
from rlbook.losses.base import Loss, Terms, check_actor, critic_terms
from rlbook.losses.sac import add_temperature, check_no_memory, transition_keys
from rlbook.losses.targets import target_of

if TYPE_CHECKING:
    from rlbook.modules.actor import Actor
    from rlbook.modules.qvalue import QValueActor
    from rlbook.typing import Key


class DiscreteSACLoss(Loss):
    r"""Soft actor-critic for a choice of few actions: expectations over the policy are sums, nothing is drawn.

    .. math::
        V'(s') &= \sum_a \pi_\theta(a|s') (\min_i Q'_i(s', a) - \alpha \log \pi_\theta(a|s')) \\
        loss\_value &= E[w \sum_i (Q_i(s, a) - r - \gamma (1 - terminated) V'(s'))^2] \\
        loss\_actor &= E[\sum_a \pi_\theta(a|s) (\alpha \log \pi_\theta(a|s) - \min_i Q_i(s, a))] \\
        loss\_alpha &= \log\alpha \, E[H(\pi_\theta(\cdot|s)) - \bar H]

    Args:
        actor: a categorical policy; trained by ``loss_actor``.
        qvalue: critics of all actions, usually an ensemble of two; trained by ``loss_value``.
        gamma: discount, in [0, 1]. A batch of n-step returns brings its own ``discount``.
        alpha: the temperature at the start, positive.
        learn_alpha: adapt the temperature, with ``loss_alpha``, until the policy's entropy is the target.
        target_entropy: :math:`\bar H` in nats; ``"auto"`` is 0.98 times that of uniform actions, ``log A``. Where one action must
            win in the end, less is better.

    A batch has the observation, ``action``, the next observation, ``next.reward`` and ``next.terminated``; ``weight`` and
    ``discount`` where the buffer puts them there.

    Returns (from a call): ``loss_actor``, ``loss_value``, ``loss_alpha`` (where it is learnt), ``loss``; diagnostics ``alpha``,
    ``entropy``, ``q_mean``, and ``td_error`` ``[*]``.

    Raises:
        ConfigError: the actor or the critics are none for discrete actions, or ``alpha`` is not positive.

    Source: Christodoulou 2019, "Soft Actor-Critic for Discrete Action Settings", equations 10 to 13.
    Deviates: as :class:`~rlbook.losses.SACLoss` does.

    Example:
        >>> from rlbook import CartPole
        >>> from rlbook.modules import make_actor, make_qvalue
        >>> env = CartPole(num_envs=4, seed=0)
        >>> loss_fn = DiscreteSACLoss(make_actor(env), make_qvalue(env, members=2))
        >>> loss_fn(env.rollout(32))["loss"].backward()
    """

    trains = {"loss_actor": ("actor",), "loss_value": ("qvalue",), "loss_alpha": ("log_alpha",)}
    optional_keys = (keys.WEIGHT, keys.DISCOUNT)
    actor: Actor
    qvalue: QValueActor
    target_qvalue: QValueActor
    gamma: Any
    target_entropy: Any
    log_alpha: Tensor

    def __init__(
        self,
        actor: Actor,
        qvalue: QValueActor,
        *,
        gamma: float = 0.99,
        alpha: float = 1.0,
        learn_alpha: bool = True,
        target_entropy: float | Literal["auto"] = "auto",
    ):
        check_actor(actor)
        if not hasattr(actor.spec, "n"):
            fix = "For continuous actions use SACLoss"
            raise ConfigError(explain("The actions of actor", "one choice of several", repr(actor.spec), fix))
        if not hasattr(qvalue, "pick"):
            fix = "Wrap the network: QValueActor(net, env.action_spec); for continuous actions use SACLoss"
            raise ConfigError(explain("qvalue", "a QValueActor", type(qvalue).__name__, fix))
        check_no_memory(actor=actor, qvalue=qvalue)
        super().__init__()
        self.actor, self.qvalue, self.target_qvalue = actor, qvalue, target_of(qvalue)
        uniform = 0.98 * math.log(qvalue.spec.n)
        self.hyper(gamma=gamma, target_entropy=uniform if target_entropy == "auto" else target_entropy)
        add_temperature(self, alpha, learn_alpha)

    @property
    def in_keys(self) -> tuple[Key, ...]:
        """Observation, action and outcome."""
        return transition_keys(self.actor, self.qvalue)

    def terms(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Terms:
        """See the class."""
        terms, diagnostics = {}, {}
        if self.wants("loss_value"):
            terms, diagnostics = critic_terms(self.qvalue.chosen(batch, batch[keys.ACTION]), self.target(batch), batch)
        if self.wants("loss_actor") or self.wants("loss_alpha"):
            log_probs, alpha = self.log_probs(batch), self.log_alpha.detach().exp()
            with torch.no_grad():
                values = clipped_double_value(self.qvalue.members(batch))
            terms["loss_actor"] = discrete_sac_actor_loss(log_probs, values, alpha).mean()
            entropy = categorical_entropy(log_probs.detach())
            if self.log_alpha.requires_grad:
                terms["loss_alpha"] = temperature_loss(self.log_alpha, -entropy, self.target_entropy).mean()
            diagnostics = {**diagnostics, "entropy": entropy.mean(), "alpha": alpha}
        return terms, diagnostics

    @torch.no_grad()
    def target(self, batch: TensorDictBase) -> Tensor:
        """Return what the value of the action should be, ``[*]``."""
        nxt: Any = batch[keys.NEXT]
        values = clipped_double_value(self.target_qvalue.members(nxt))
        soft_value = soft_expected_value(values, self.log_probs(nxt), self.log_alpha.exp())
        return td0_target(nxt[keys.REWARD], soft_value, nxt[keys.TERMINATED], batch.get(keys.DISCOUNT, self.gamma))

    def log_probs(self, data: TensorDictBase) -> Tensor:
        """Return the log-probability of each action, ``[*, A]``."""
        dist: Any = self.actor.dist(data)
        return dist.logits
