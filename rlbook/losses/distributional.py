"""Q-learning of whole distributions of returns: C51, QR-DQN and IQN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from tensordict import TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, check_count, explain
from rlbook.functional import (
    bellman_atoms,
    categorical_cross_entropy,
    categorical_mean,
    categorical_projection,
    quantile_huber_loss,
)
from rlbook.losses.base import Terms, check_kind, check_single, weighted_mean
from rlbook.losses.dqn import DQNLoss

if TYPE_CHECKING:
    from rlbook.modules.distributional import CategoricalQValueActor, ImplicitQValueActor
    from rlbook.modules.qvalue import QValueActor


class DistributionalLoss(DQNLoss):
    """What the three share: they choose the next action by expectations, and learn the distribution of its return."""

    learns: ClassVar[str]
    """The class of action values that the loss takes."""

    def __init__(self, qvalue: QValueActor, *, gamma: float = 0.99, double: bool = False):
        check_kind("qvalue", qvalue, self.learns)
        check_single(qvalue, "Pass a single network; TQC learns the quantiles of several")
        super().__init__(qvalue, gamma=gamma, double=double)

    def next_action(self, nxt: TensorDictBase, outputs: Tensor | None = None) -> Tensor:
        """Return the index of the best next action, int64 ``[*]``; ``outputs`` are the target network's, where they are known."""
        if self.is_double or outputs is None:
            return self.qvalue.best((self.qvalue if self.is_double else self.target_qvalue).values(nxt), nxt)
        return self.qvalue.best(self.qvalue.expectation(outputs), nxt)

    def moved(self, batch: TensorDictBase, atoms: Tensor) -> Tensor:
        """Return the atoms of the target: discounted, with the reward added, ``[*, N]``."""
        nxt: Any = batch[keys.NEXT]
        return bellman_atoms(nxt[keys.REWARD], atoms, nxt[keys.TERMINATED], batch.get(keys.DISCOUNT, self.gamma))


class C51Loss(DistributionalLoss):
    r"""Categorical Q-learning: each action's return is a distribution over fixed atoms :math:`z_i`.

    .. math::
        m &= \Phi(r + \gamma (1 - terminated) \, Z_{\theta'}(s', a^*)) \\
        loss\_value &= E[-w \sum_i m_i \log p_{\theta, i}(s, a)]

    where :math:`\Phi` projects onto the atoms and :math:`a^*` has the highest expectation under the target network, or with
    ``double`` under the learnt one.

    Args:
        qvalue: the learnt distributions; trained by ``loss_value``.
        gamma: discount, in [0, 1]. A batch of n-step returns brings its own ``discount``.
        double: double Q-learning, as in Rainbow.

    A batch is that of :class:`~rlbook.losses.DQNLoss`.

    Returns (from a call): ``loss_value``, ``loss``; diagnostics ``q_mean``, ``target_mean``, and ``td_error`` ``[*]``, here
    :math:`KL(m || p)`, by which Rainbow prioritizes.

    Source: Bellemare et al. 2017, "A Distributional Perspective on Reinforcement Learning", algorithm 1; Hessel et al. 2018,
    "Rainbow", section 3.

    Example:
        >>> from rlbook import MLP, CartPole
        >>> from rlbook.modules import CategoricalQValueActor
        >>> env = CartPole(num_envs=4, seed=0)
        >>> loss_fn = C51Loss(CategoricalQValueActor(MLP(2 * 51), env.action_spec, v_min=0.0, v_max=100.0))
        >>> loss_fn(env.rollout(32))["loss"].backward()
    """

    learns = "CategoricalQValueActor"
    qvalue: CategoricalQValueActor
    target_qvalue: CategoricalQValueActor

    def terms(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Terms:
        """See the class."""
        target, support = self.target(batch, noise), self.qvalue.support
        logits = self.qvalue.pick(self.qvalue.logits(batch), batch[keys.ACTION]).to(support.dtype)
        cross_entropy = categorical_cross_entropy(logits, target)
        kl = cross_entropy.detach() + torch.xlogy(target, target).sum(-1)
        mean, wanted = (categorical_mean(probs, support).mean() for probs in (logits.softmax(-1), target))
        return {"loss_value": weighted_mean(cross_entropy, batch)}, {
            keys.TD_ERROR: kl.clamp(min=0.0),
            "q_mean": mean,
            "target_mean": wanted,
        }

    @torch.no_grad()
    def target(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Tensor:
        """Return the probabilities that the action's atoms should have, ``[*, atoms]``."""
        nxt: Any = batch[keys.NEXT]
        logits, support = self.target_qvalue.logits(nxt), self.target_qvalue.support
        probs = self.qvalue.at(logits, self.next_action(nxt, logits)).to(support.dtype).softmax(-1)
        # after a terminal step all atoms are the reward, whatever the network says of the observation there
        probs = torch.where(nxt[keys.TERMINATED].unsqueeze(-1), 1 / len(support), probs)
        return categorical_projection(self.moved(batch, support), probs, support)


class QRDQNLoss(DistributionalLoss):
    r"""Q-learning by quantile regression: each action's return is N equally probable atoms :math:`\theta_i`, which move.

    .. math::
        y_j &= r + \gamma (1 - terminated) \, \theta'_j(s', a^*) \\
        loss\_value &= E[w \sum_i \frac{1}{N} \sum_j \rho^\kappa_{\tau_i}(y_j - \theta_i(s, a))]

    with the quantile Huber loss :math:`\rho` at the middles :math:`\tau_i` of N equal parts; :math:`a^*` as in
    :class:`C51Loss`.

    Args:
        qvalue: the learnt quantiles; trained by ``loss_value``.
        gamma: discount, in [0, 1]. A batch of n-step returns brings its own ``discount``.
        double: double Q-learning.
        kappa: where the Huber loss becomes linear, in units of return, not negative.

    A batch is that of :class:`~rlbook.losses.DQNLoss`.

    Returns (from a call): ``loss_value``, ``loss``; diagnostics ``q_mean``, ``target_mean``, and ``td_error`` ``[*]``, the
    distance of the means.

    Source: Dabney et al. 2018, "Distributional Reinforcement Learning with Quantile Regression", algorithm 1.

    Example:
        >>> from rlbook import MLP, CartPole
        >>> from rlbook.modules import QuantileQValueActor
        >>> env = CartPole(num_envs=4, seed=0)
        >>> loss_fn = QRDQNLoss(QuantileQValueActor(MLP(2 * 10), env.action_spec, quantiles=10))
        >>> loss_fn(env.rollout(32))["loss"].backward()
    """

    learns = "QuantileQValueActor"

    def __init__(self, qvalue: QValueActor, *, gamma: float = 0.99, double: bool = False, kappa: float = 1.0):
        super().__init__(qvalue, gamma=gamma, double=double)
        if not kappa >= 0:
            raise ConfigError(explain("kappa", "0 or more", repr(kappa), "Pass kappa=1.0"))
        self.kappa = kappa

    def terms(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Terms:
        """See the class."""
        all_quantiles, tau = self.predict(batch, noise)
        quantiles, target = self.qvalue.pick(all_quantiles, batch[keys.ACTION]), self.target(batch, noise)
        loss = weighted_mean(quantile_huber_loss(quantiles, target, tau, self.kappa), batch)
        value, wanted = quantiles.mean(-1), target.mean(-1)
        return {"loss_value": loss}, {
            keys.TD_ERROR: (wanted - value).abs(),
            "q_mean": value.mean(),
            "target_mean": wanted.mean(),
        }

    def predict(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return quantiles of each action, ``[*, A, N]``, and the probabilities below them, ``[N]`` or ``[*, N]``."""
        qvalue: Any = self.qvalue
        return qvalue.quantiles(batch), qvalue.tau

    @torch.no_grad()
    def target(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Tensor:
        """Return atoms of the return that the action should have, ``[*, N]``."""
        nxt: Any = batch[keys.NEXT]
        quantiles = self.target_qvalue.outputs(nxt)
        return self.moved(batch, self.qvalue.at(quantiles, self.next_action(nxt, quantiles)))


class IQNLoss(QRDQNLoss):
    r"""Q-learning of implicit quantiles: as :class:`QRDQNLoss`, at quantiles that are drawn anew for every row.

    .. math::
        y_j &= r + \gamma (1 - terminated) \, \theta'(s', a^*, \tau'_j), \qquad \tau_i, \tau'_j \sim U(0, 1) \\
        loss\_value &= E[w \sum_i \frac{1}{N'} \sum_j \rho^\kappa_{\tau_i}(y_j - \theta(s, a, \tau_i))]

    Args:
        qvalue: the learnt quantile function; trained by ``loss_value``.
        gamma: discount, in [0, 1]. A batch of n-step returns brings its own ``discount``.
        double: double Q-learning.
        kappa: where the Huber loss becomes linear, in units of return, not negative.
        quantiles: N, how many are learnt per row.
        target_quantiles: N', how many they learn from.

    A batch and the results are those of :class:`QRDQNLoss`.

    Source: Dabney et al. 2018, "Implicit Quantile Networks for Distributional Reinforcement Learning", equations 2 and 3.

    Example:
        >>> from rlbook import MLP, CartPole
        >>> from rlbook.modules import ImplicitQuantileNet, ImplicitQValueActor
        >>> env = CartPole(num_envs=4, seed=0)
        >>> qvalue = ImplicitQValueActor(ImplicitQuantileNet(MLP(16, 4), MLP(2, 16), 16), env.action_spec)
        >>> IQNLoss(qvalue, quantiles=8, target_quantiles=8)(env.rollout(32))["loss"].backward()
    """

    learns = "ImplicitQValueActor"
    qvalue: ImplicitQValueActor
    target_qvalue: ImplicitQValueActor

    def __init__(
        self,
        qvalue: QValueActor,
        *,
        gamma: float = 0.99,
        double: bool = False,
        kappa: float = 1.0,
        quantiles: int = 64,
        target_quantiles: int = 64,
    ):
        super().__init__(qvalue, gamma=gamma, double=double, kappa=kappa)
        counts = {"quantiles": quantiles, "target_quantiles": target_quantiles}
        self.counts = tuple(check_count(name, count, example=64) for name, count in counts.items())

    def draw(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Draw the probabilities of the quantiles, those learnt and those of the targets."""
        tau, target_tau = (torch.rand(*batch.batch_size, count, device=self.device) for count in self.counts)
        return {"tau": tau, "target_tau": target_tau}

    def predict(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the drawn quantiles of each action, ``[*, A, N]``, and their probabilities, ``[*, N]``."""
        return self.qvalue.quantiles(batch, noise["tau"]), noise["tau"]

    @torch.no_grad()
    def target(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Tensor:
        """Return atoms of the return that the action should have, ``[*, N']``."""
        nxt: Any = batch[keys.NEXT]
        quantiles = self.target_qvalue.quantiles(nxt, noise["target_tau"])
        return self.moved(batch, self.qvalue.at(quantiles, self.next_action(nxt)))
