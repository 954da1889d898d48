"""Phasic policy gradient: the auxiliary phase. The policy phase is PPO's loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tensordict import TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.losses.base import Loss, Terms, check_actor, check_value, unique

if TYPE_CHECKING:
    from rlbook.modules.actor import Actor, ValueHead
    from rlbook.typing import Key


class PPGAuxiliaryLoss(Loss):
    r"""What PPG learns between the phases of PPO: the policy's features predict values, while the policy stays what it is.

    .. math::
        loss\_auxiliary &= E[(V_{aux}(s) - V^{target})^2] / 2 \\
        loss\_clone &= \beta E[KL(\pi_{old}(\cdot|s) || \pi_\theta(\cdot|s))] \\
        loss\_value &= E[(V_\phi(s) - V^{target})^2] / 2

    Args:
        actor: the policy.
        auxiliary: a value head on the actor's own features; ``loss_auxiliary`` trains it and them.
        value: the critic that advantages come from, with a network of its own.
        clone_coef: :math:`\beta`, how hard the policy is held to what it was.

    A batch has the observations, ``value_target``, and ``action_params``: the policy's parameters before the phase,
    ``actor.read(data)``.

    Returns (from a call): ``loss_auxiliary``, ``loss_clone``, ``loss_value``, ``loss``; diagnostic ``kl``.

    Source: Cobbe et al. 2021, "Phasic Policy Gradient", section 2 and algorithm 1.

    Example:
        >>> from rlbook import MLP, Actor, GAE, CartPole, ValueHead
        >>> from torch import nn
        >>> env, trunk = CartPole(num_envs=4, seed=0), MLP(64, 4)
        >>> actor = Actor(nn.Sequential(trunk, nn.ReLU(), nn.Linear(64, 2)), env.action_spec)
        >>> auxiliary, value = ValueHead(nn.Sequential(trunk, nn.ReLU(), nn.Linear(64, 1))), ValueHead(MLP(1, 4))
        >>> data = GAE(value)(env.rollout(32, actor))
        >>> data["action_params"] = actor.read(data).detach()
        >>> PPGAuxiliaryLoss(actor, auxiliary, value)(data)["loss"].backward()
    """

    trains = {"loss_auxiliary": ("actor", "auxiliary"), "loss_clone": ("actor",), "loss_value": ("value",)}
    clone_coef: Any

    def __init__(self, actor: Actor, auxiliary: ValueHead, value: ValueHead, *, clone_coef: float = 1.0):
        check_actor(actor)
        check_value("auxiliary", auxiliary)
        check_value("value", value)
        super().__init__()
        self.actor, self.auxiliary, self.value = actor, auxiliary, value
        self.hyper(clone_coef=clone_coef)

    @property
    def in_keys(self) -> tuple[Key, ...]:
        """Observations, the value target and the old policy."""
        observations = (*self.actor.in_keys, *self.auxiliary.in_keys, *self.value.in_keys)
        return unique(*observations, keys.ACTION_PARAMS, keys.VALUE_TARGET)

    def terms(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Terms:
        """See the class."""
        target = batch[keys.VALUE_TARGET].detach()
        old = self.actor.dist_of(batch[keys.ACTION_PARAMS].detach(), self.actor.mask_of(batch))
        kl = old.kl(self.actor.dist(batch)).mean()
        terms = {
            "loss_auxiliary": 0.5 * (self.auxiliary.value(batch) - target).square().mean(),
            "loss_clone": self.clone_coef * kl,
            "loss_value": 0.5 * (self.value.value(batch) - target).square().mean(),
        }
        return terms, {"kl": kl}
