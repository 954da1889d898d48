"""Deterministic policy gradients: DDPG, and TD3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.functional import smoothed_action, td0_target
from rlbook.losses.base import Loss, Terms, check_dist, critic_terms
from rlbook.losses.sac import check_actor_critic, transition_keys
from rlbook.losses.targets import target_of

if TYPE_CHECKING:
    from rlbook.modules.actor import Actor
    from rlbook.modules.qvalue import QValueHead
    from rlbook.typing import Key


class DDPGLoss(Loss):
    r"""Deep deterministic policy gradients: a critic learns towards slow copies, the actor climbs the critic.

    With a deterministic policy :math:`\mu` and targets :math:`\mu', Q'`:

    .. math::
        y &= r + \gamma (1 - terminated) \, Q'(s', \mu'(s')) \\
        loss\_value &= E[w (Q(s, a) - y)^2] \\
        loss\_actor &= -E[Q(s, \mu(s))]

    Args:
        actor: a deterministic policy, whose network has one output for each action dimension; trained by ``loss_actor``.
        qvalue: the critic; trained by ``loss_value``. Of an ensemble the target takes the lowest, and all learn.
        gamma: discount, in [0, 1]. A batch of n-step returns brings its own ``discount``.

    A batch has the observation, ``action``, the next observation, ``next.reward`` and ``next.terminated``; ``weight`` and
    ``discount`` where the buffer puts them there.

    Returns (from a call): ``loss_actor``, ``loss_value``, ``loss``; diagnostics ``q_mean``, ``target_mean``, and ``td_error``
    ``[*]``.

    Raises:
        ConfigError: the actor or the critic is none.

    Source: Lillicrap et al. 2016, "Continuous control with deep reinforcement learning", algorithm 1.

    Example:
        >>> from rlbook import Pendulum
        >>> from rlbook.modules import make_actor, make_qvalue
        >>> env = Pendulum(num_envs=4, seed=0)
        >>> loss_fn = DDPGLoss(make_actor(env, std="none"), make_qvalue(env))
        >>> loss_fn(env.rollout(32))["loss"].backward()
    """

    trains = {"loss_actor": ("actor",), "loss_value": ("qvalue",)}
    optional_keys = (keys.WEIGHT, keys.DISCOUNT)
    actor: Actor
    qvalue: QValueHead
    target_actor: Actor
    target_qvalue: QValueHead
    gamma: Any

    def __init__(self, actor: Actor, qvalue: QValueHead, *, gamma: float = 0.99):
        check_actor_critic(actor, qvalue)
        super().__init__()
        self.actor, self.qvalue = actor, qvalue
        self.target_actor, self.target_qvalue = target_of(actor), target_of(qvalue)
        self.hyper(gamma=gamma)

    @property
    def in_keys(self) -> tuple[Key, ...]:
        """Observation, action and outcome."""
        return transition_keys(self.actor, self.qvalue)

    def terms(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Terms:
        """See the class."""
        terms, diagnostics = {}, {}
        if self.wants("loss_value"):
            target, q = self.target(batch, noise), self.qvalue.members(batch)
            terms, diagnostics = critic_terms(q, target, batch)
            diagnostics["target_mean"] = target.mean()
        if self.wants("loss_actor"):
            action = check_dist(self.actor.dist(batch), self, gradient=True).mode
            terms["loss_actor"] = -self.qvalue.member(0).value(batch, action, frozen=True).mean()
        return terms, diagnostics

    @torch.no_grad()
    def target(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Tensor:
        """Return what the value of the action should be, ``[*]``."""
        nxt: Any = batch[keys.NEXT]
        next_value = self.target_qvalue.value(nxt, self.next_action(nxt, noise))
        return td0_target(nxt[keys.REWARD], next_value, nxt[keys.TERMINATED], batch.get(keys.DISCOUNT, self.gamma))

    def next_action(self, nxt: TensorDictBase, noise: Mapping[str, Tensor]) -> Tensor:
        """Return the action that the target is the value of, ``[*, A]``."""
        return self.target_actor.dist(nxt).mode


class TD3Loss(DDPGLoss):
    r"""Twin delayed DDPG: two critics against overestimation, noise on the target's action, and an actor that waits.

    .. math::
        a' &= clip(\mu'(s') + h \, clip(\sigma \epsilon, -c, c), low, high), \quad \epsilon \sim N(0, 1) \\
        y &= r + \gamma (1 - terminated) \min_i Q'_i(s', a') \\
        loss\_value &= E[w \sum_i (Q_i(s, a) - y)^2] \\
        loss\_actor &= -E[Q_1(s, \mu(s))]

    with :math:`h` half the width of the actions' range (1 where there is none). The delay is the update's part: give the actor a
    parameter group of its own, and pass ``every={"loss_actor": 2}`` and ``target=SoftUpdate(loss_fn, 0.005, every=2)``.

    Args:
        actor, gamma: see :class:`DDPGLoss`.
        qvalue: an ensemble of two critics.
        noise_scale: :math:`\sigma`, at least 0.
        noise_clip: :math:`c`, positive.

    Source: Fujimoto et al. 2018, "Addressing Function Approximation Error in Actor-Critic Methods", algorithm 1.

    Example:
        >>> from rlbook import Pendulum, SoftUpdate, compile_update
        >>> from rlbook.modules import make_actor, make_qvalue
        >>> env = Pendulum(num_envs=4, seed=0)
        >>> loss_fn = TD3Loss(make_actor(env, std="none"), make_qvalue(env, members=2))
        >>> optimizer = torch.optim.Adam([{"params": part.parameters()} for part in (loss_fn.actor, loss_fn.qvalue)], lr=1e-3)
        >>> target = SoftUpdate(loss_fn, 0.005, every=2)
        >>> update = compile_update(loss_fn, optimizer, every={"loss_actor": 2}, target=target, compile=False)
        >>> metrics = update(env.rollout(32))
    """

    noise_scale: Any
    noise_clip: Any

    def __init__(
        self, actor: Actor, qvalue: QValueHead, *, gamma: float = 0.99, noise_scale: float = 0.2, noise_clip: float = 0.5
    ):
        super().__init__(actor, qvalue, gamma=gamma)
        self.hyper(noise_scale=noise_scale, noise_clip=noise_clip)

    def draw(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Draw the noise on the targets' actions, standard normal ``[*, A]``."""
        return {"next_action": torch.randn((*batch.batch_size, *self.actor.spec.shape), device=self.device)}

    def next_action(self, nxt: TensorDictBase, noise: Mapping[str, Tensor]) -> Tensor:
        """Return the target policy's action and noise, within the bounds, ``[*, A]``."""
        action, spec = super().next_action(nxt, noise), self.actor.spec
        if not getattr(spec, "bounded", False):
            return action + (self.noise_scale * noise["next_action"]).clamp(-self.noise_clip, self.noise_clip)
        low, high = spec.low, spec.high  # type: ignore[attr-defined]
        half = ((high - low) / 2).where(high > low, 1.0)  # an action that cannot change stays
        unit = smoothed_action(
            action / half, noise["next_action"], low / half, high / half, scale=self.noise_scale, clip=self.noise_clip
        )
        return unit * half
