"""Soft actor-critic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from rlbook import keys
from rlbook.errors import ConfigError, explain
from rlbook.functional import td0_target
from rlbook.losses.base import Loss, Terms, next_of, unique, weighted_mean
from rlbook.losses.targets import target_of
from rlbook.modules.actor import Actor
from rlbook.modules.qvalue import QValueHead
from rlbook.typing import Key


class SACLoss(Loss):
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
        target_entropy: :math:`\bar H` in nats; ``"auto"`` is minus the number of action dimensions.

    A batch has the observation, ``action``, the next observation, ``next.reward`` and ``next.terminated``; ``weight`` and
    ``discount`` where the buffer puts them there.

    Returns (from a call): ``loss_actor``, ``loss_value``, ``loss_alpha`` (where it is learnt), ``loss``; diagnostics ``alpha``,
    ``entropy``, ``q_mean``, and ``td_error`` ``[*]``.

    Source: Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications", equations 5, 7 and 17.
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

    trains = {"loss_actor": ("actor",), "loss_value": ("qvalue",), "loss_alpha": ("log_alpha",)}
    optional_keys = (keys.WEIGHT, keys.DISCOUNT)
    actor: Actor
    qvalue: QValueHead
    target_qvalue: QValueHead
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
        if not alpha > 0:
            raise ConfigError(explain("alpha", "positive", repr(alpha), "Pass for example 0.2"))
        super().__init__()
        self.actor, self.qvalue, self.target_qvalue = actor, qvalue, target_of(qvalue)
        self.hyper(gamma=gamma, target_entropy=-actor.spec.shape.numel() if target_entropy == "auto" else target_entropy)
        log_alpha = torch.tensor(math.log(alpha), device=self.device)
        if learn_alpha:
            self.log_alpha = nn.Parameter(log_alpha)
        else:
            self.register_buffer("log_alpha", log_alpha)

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
        terms, diagnostics = self.critic(batch, noise)
        alpha = self.log_alpha.detach().exp()
        if self.wants("loss_actor") or self.wants("loss_alpha"):
            action, log_prob = self.actor.dist(batch).sample_with_log_prob(noise.get("action"))
            terms["loss_actor"] = (alpha * log_prob - self.qvalue.value(batch, action, frozen=True)).mean()
            entropy = -log_prob.detach().mean()
            if self.log_alpha.requires_grad:
                terms["loss_alpha"] = self.log_alpha * (entropy - self.target_entropy)
            diagnostics |= {"entropy": entropy}
        return terms, {**diagnostics, "alpha": alpha}

    def critic(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Terms:
        """Return the critics' term."""
        q = self.qvalue.members(batch)
        error = q - self.target(batch, noise)
        value_loss = weighted_mean(error.square().sum(0), batch)
        return {"loss_value": value_loss}, {"q_mean": q.mean(), keys.TD_ERROR: error.abs().mean(0)}

    @torch.no_grad()
    def target(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Tensor:
        """Return what the value of the action should be, ``[*]``."""
        nxt: Any = batch[keys.NEXT]
        action, log_prob = self.actor.dist(nxt).sample_with_log_prob(noise.get("next_action"))
        soft_value = self.target_qvalue.value(nxt, action) - self.log_alpha.exp() * log_prob
        return td0_target(nxt[keys.REWARD], soft_value, nxt[keys.TERMINATED], batch.get(keys.DISCOUNT, self.gamma))


def transition_keys(actor: Actor, qvalue: QValueHead) -> tuple[Key, ...]:
    """Return the entries of a transition that an actor and its critic read."""
    observations = unique(*actor.in_keys, *qvalue.in_keys)
    outcome = (keys.NEXT, keys.REWARD), (keys.NEXT, keys.TERMINATED)
    return unique(*observations, keys.ACTION, *next_of(observations), *outcome)


def check_actor_critic(actor: Any, qvalue: Any) -> None:
    """Raise ConfigError unless the two are what off-policy losses for continuous actions take."""
    if not hasattr(actor, "dist"):
        fix = "Wrap the network: Actor(net, env.action_spec)"
        raise ConfigError(explain("actor", "an Actor", type(actor).__name__, fix))
    if not isinstance(qvalue, QValueHead):
        fix = "Wrap the network: QValueHead(net)" if not hasattr(qvalue, "in_keys") else "For discrete actions use another loss"
        raise ConfigError(explain("qvalue", "a QValueHead", type(qvalue).__name__, fix))
