"""The plain policy gradient and its three uses: REINFORCE, A2C, and IMPALA. They differ in where the weights come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensordict import TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.functional import approx_kl, reinforce_loss
from rlbook.losses.on_policy import OnPolicyLoss

if TYPE_CHECKING:
    from rlbook.distributions import Distribution
    from rlbook.modules.actor import Actor, ValueHead


class ReinforceLoss(OnPolicyLoss):
    r"""REINFORCE, with or without a baseline.

    .. math::
        loss\_actor &= -E[A \log \pi_\theta(a|s)] \\
        loss\_value &= c_v E[(V_\phi(s) - G)^2]

    ``advantage`` holds the weight :math:`A` of each action: the return :math:`G` of the steps that follow it, or with a baseline
    :math:`G - V_\phi(s)`, which has the same mean gradient and less variance. :class:`~rlbook.trainers.WholeEpisodes` finds the
    returns.

    Args:
        actor: has ``dist(batch)`` and ``in_keys``; trained by ``loss_actor`` and ``loss_entropy``.
        value: the baseline; trained by ``loss_value``. None for none.
        entropy_coef: :math:`c_e` of the bonus :math:`loss\_entropy = -c_e E[H]`.
        value_coef: :math:`c_v`.
        normalize_advantage: give the weights of each batch mean 0 and standard deviation 1.

    Returns (from a call): ``loss_actor``, ``loss_entropy``, ``loss_value``, ``loss``; diagnostic ``entropy``.

    Source: Williams 1992, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning",
    section 4; Sutton and Barto 2018, "Reinforcement Learning", section 13.4.
    Deviates: every step weighs the same; the book's factor gamma^t would all but ignore late steps.

    Example:
        >>> from rlbook import CartPole
        >>> from rlbook.modules import make_actor
        >>> from rlbook.trainers import WholeEpisodes
        >>> env = CartPole(num_envs=4, seed=0)
        >>> actor = make_actor(env)
        >>> batch = WholeEpisodes(gamma=0.99)(env.rollout(100, actor))
        >>> batch["advantage"] = batch["value_target"]
        >>> ReinforceLoss(actor)(batch)["loss"].backward()
    """

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


class A2CLoss(OnPolicyLoss):
    r"""Advantage actor-critic: the policy gradient with a critic's advantages.

    .. math::
        loss\_actor &= -E[A \log \pi_\theta(a|s)] \\
        loss\_entropy &= -c_e E[H(\pi_\theta(\cdot|s))] \\
        loss\_value &= c_v E[(V_\phi(s) - V^{target})^2]

    One step per rollout: the data must come from the policy that is learnt.

    Args:
        actor: has ``dist(batch)`` and ``in_keys``; trained by ``loss_actor`` and ``loss_entropy``.
        value: has ``value(batch)`` and ``in_keys``; trained by ``loss_value``. None for a loss without critic.
        entropy_coef: :math:`c_e`.
        value_coef: :math:`c_v`.
        normalize_advantage: give the advantages of each batch mean 0 and standard deviation 1.

    Returns (from a call): ``loss_actor``, ``loss_entropy``, ``loss_value``, ``loss``; diagnostic ``entropy``.

    Source: Mnih et al. 2016, "Asynchronous Methods for Deep Reinforcement Learning", section 4 and algorithm S3.
    Deviates: synchronous, without workers that overwrite each other; the mean over the batch, where the paper has the sum.

    Example:
        >>> from rlbook import GAE, CartPole
        >>> from rlbook.modules import make_actor, make_value
        >>> env = CartPole(num_envs=4, seed=0)
        >>> actor, value = make_actor(env), make_value(env)
        >>> A2CLoss(actor, value)(GAE(value, gae_lambda=1.0)(env.rollout(5, actor)))["loss"].backward()
    """


class VTraceLoss(OnPolicyLoss):
    r"""IMPALA's loss: the policy gradient for data of an older policy :math:`\mu`, weighted and corrected by V-trace.

    .. math::
        loss\_actor &= -E[A \log \pi_\theta(a|s)], \quad A = \rho (r + \gamma v' - V(s)) \\
        loss\_entropy &= -c_e E[H(\pi_\theta(\cdot|s))] \\
        loss\_value &= c_v E[(V_\phi(s) - v)^2]

    Advantages and targets :math:`v` come from :class:`~rlbook.VTrace`, whose ratios :math:`\rho` are part of the advantage. Ask
    it again before each step: the ratios are those of the policy at that moment.

    Args:
        actor: has ``dist(batch)`` and ``in_keys``; trained by ``loss_actor`` and ``loss_entropy``.
        value: has ``value(batch)`` and ``in_keys``; trained by ``loss_value``. None for a loss without critic.
        entropy_coef: :math:`c_e`.
        value_coef: :math:`c_v`.
        normalize_advantage: give the advantages of each batch mean 0 and standard deviation 1.

    Returns (from a call): ``loss_actor``, ``loss_entropy``, ``loss_value``, ``loss``; diagnostics ``entropy`` and
    ``approx_kl``, how far the policy has moved from the one that acted.

    Source: Espeholt et al. 2018, "IMPALA: Scalable Distributed Deep-RL with Importance Weighted Actor-Learner
    Architectures", section 4.2.
    Deviates: the mean over the batch, where the authors' code has the sum.

    Example:
        >>> from rlbook import CartPole, VTrace
        >>> from rlbook.modules import make_actor, make_value
        >>> env = CartPole(num_envs=4, seed=0)
        >>> actor, value = make_actor(env), make_value(env)
        >>> VTraceLoss(actor, value)(VTrace(actor, value)(env.rollout(20, actor)))["loss"].backward()
    """

    old_keys = (keys.LOG_PROB,)

    def surrogate(self, batch: TensorDictBase, dist: Distribution, advantage: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See the class."""
        log_prob = dist.log_prob(batch[keys.ACTION])
        log_ratio = (log_prob - batch[keys.LOG_PROB]).detach()
        return reinforce_loss(log_prob, advantage).mean(), {"approx_kl": approx_kl(log_ratio).mean()}
