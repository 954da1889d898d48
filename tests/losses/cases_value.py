"""Cases of the losses that learn the values of discrete actions."""

from __future__ import annotations

from typing import Any

import torch
from losses.casekit import DISCRETE, Case, net, qvalue_actor, transitions
from tensordict import TensorDict

from rlbook import DQNLoss, QValueActor
from rlbook.losses import C51Loss, IQNLoss, Loss, MunchausenIQNLoss, MunchausenLoss, PQNLoss, QRDQNLoss, R2D2Loss
from rlbook.losses.targets import target_pairs
from rlbook.modules import GRU, CategoricalQValueActor, ImplicitQuantileNet, ImplicitQValueActor, QuantileQValueActor


def apart(loss: Loss) -> Loss:
    """Move the targets away from what they follow, so that it matters which of the two is read."""
    for _, target in target_pairs(loss):
        for tensor in (*target.parameters(), *target.buffers()):
            if tensor.ndim == 2:  # weights: not the grid of a distribution
                tensor.data.mul_(1.5)
    return loss


def categorical() -> CategoricalQValueActor:
    return CategoricalQValueActor(net(3 * 7), DISCRETE, v_min=-3.0, v_max=3.0, atoms=7)


def quantile() -> QuantileQValueActor:
    return QuantileQValueActor(net(3 * 5), DISCRETE, quantiles=5)


def implicit() -> ImplicitQValueActor:
    return ImplicitQValueActor(ImplicitQuantileNet(net(8), net(3, 8), 8, cosines=6), DISCRETE, quantiles=4)


def of_transitions(make, **hyper: float) -> Case:
    live = {name: (number, "loss_value") for name, number in {"gamma": 0.5, **hyper}.items()}
    return Case(lambda: apart(make()), lambda: transitions(DISCRETE), {"loss_value"}, live)


def targets() -> TensorDict:
    return transitions(DISCRETE).update({"value_target": torch.randn(12)})


def sequences() -> TensorDict:
    """Three sequences of four steps, with the state that acting has left and some padding."""
    batch = transitions(DISCRETE).reshape(3, 4)
    return batch.update({("recurrent", "qvalue"): torch.randn(3, 4, 1, 8), "mask": torch.arange(12).reshape(3, 4) % 4 != 3})


def recurrent() -> QValueActor:
    return QValueActor(GRU(3, 4, 8), DISCRETE)


IQN: dict[str, Any] = {"quantiles": 3, "target_quantiles": 6}
MUNCHAUSEN = {"alpha": 0.5, "tau": 0.3}
CASES: dict[str, Case] = {
    "DQNLoss": of_transitions(lambda: DQNLoss(qvalue_actor())),
    "DQNLoss-single": of_transitions(lambda: DQNLoss(qvalue_actor(), double=False, distance="l2")),
    "C51Loss": of_transitions(lambda: C51Loss(categorical())),
    "C51Loss-double": of_transitions(lambda: C51Loss(categorical(), double=True)),
    "QRDQNLoss": of_transitions(lambda: QRDQNLoss(quantile())),
    "QRDQNLoss-double": of_transitions(lambda: QRDQNLoss(quantile(), double=True, kappa=0.0)),
    "IQNLoss": of_transitions(lambda: IQNLoss(implicit(), **IQN)),
    "IQNLoss-double": of_transitions(lambda: IQNLoss(implicit(), double=True, **IQN)),
    "MunchausenLoss": of_transitions(lambda: MunchausenLoss(qvalue_actor(), distance="l2"), **MUNCHAUSEN),
    "MunchausenIQNLoss": of_transitions(lambda: MunchausenIQNLoss(implicit(), **IQN), **MUNCHAUSEN),
    "R2D2Loss": Case(lambda: apart(R2D2Loss(recurrent(), n=2)), sequences, {"loss_value"}, {"gamma": (0.5, "loss_value")}),
    "R2D2Loss-burn-in": Case(
        lambda: apart(R2D2Loss(recurrent(), burn_in=1, squash=False, double=False)),
        sequences,
        {"loss_value"},
        {"gamma": (0.5, "loss_value")},
    ),
    "PQNLoss": Case(lambda: PQNLoss(qvalue_actor()), targets, {"loss_value"}, {}),
}
