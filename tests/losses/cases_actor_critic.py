"""Cases of the off-policy actor-critic losses."""

from __future__ import annotations

from losses.casekit import CONTINUOUS, DISCRETE, Case, actor, deterministic, net, qvalue, qvalue_actor, transitions, value
from losses.cases_value import apart
from torch import nn

from rlbook import (
    MLP,
    QValueHead,
    SACLoss,
    ensemble,
)
from rlbook.losses import (
    CrossQLoss,
    DDPGLoss,
    DiscreteSACLoss,
    Loss,
    MPOLoss,
    REDQLoss,
    SACv1Loss,
    TD3Loss,
    TQCLoss,
)
from rlbook.modules import BatchRenorm, QuantileQValueHead

SOFT = {"loss_actor", "loss_value", "loss_alpha"}
ENTROPY = {"gamma": (0.5, "loss_value"), "target_entropy": (1.0, "loss_alpha")}


def critics(members: int, **layers) -> QValueHead:
    """Critics of an observation of 4 numbers and an action of 2, with special layers."""
    return QValueHead(ensemble(MLP(1, 6, [16], **layers), members))


def quantile_critics(members: int = 3, quantiles: int = 4) -> QuantileQValueHead:
    return QuantileQValueHead(ensemble(net(quantiles, 6), members), quantiles)


def case(make, terms: set[str], hyper: dict[str, tuple[float, str]], spec=CONTINUOUS) -> Case:
    return Case(lambda: apart(make()), lambda: transitions(spec), terms, hyper)


def moved(loss: Loss) -> Loss:
    """Move a policy from where it was when its target was copied, so that the two diverge."""
    for parameter in loss.actor.parameters():
        parameter.data.mul_(1.2)
    return loss


def slow_renorm(size: int) -> BatchRenorm:
    """Batch renormalisation whose running statistics stay where they are while a test calls a loss again and again."""
    return BatchRenorm(size, momentum=1e-9, warm_up=0)


CASES: dict[str, Case] = {
    "SACLoss": case(lambda: SACLoss(actor(CONTINUOUS), qvalue(2), alpha=0.3), SOFT, ENTROPY),
    "SACLoss-fixed_alpha": case(
        lambda: SACLoss(actor(CONTINUOUS), qvalue(2), alpha=0.3, learn_alpha=False),
        {"loss_actor", "loss_value"},
        {"gamma": (0.5, "loss_value"), "log_alpha": (0.0, "loss_actor")},
    ),
    "SACv1Loss": case(
        lambda: SACv1Loss(actor(CONTINUOUS), qvalue(2), value(), alpha=0.3, learn_alpha=True),
        {*SOFT, "loss_state_value"},
        ENTROPY,
    ),
    "SACv1Loss-fixed_alpha": case(
        lambda: SACv1Loss(actor(CONTINUOUS), qvalue(), value(), alpha=0.3),
        {"loss_actor", "loss_value", "loss_state_value"},
        {"gamma": (0.5, "loss_value"), "log_alpha": (0.0, "loss_state_value")},
    ),
    "DiscreteSACLoss": case(
        lambda: DiscreteSACLoss(actor(DISCRETE), qvalue_actor(2), alpha=0.3),
        SOFT,
        {"gamma": (0.5, "loss_value"), "target_entropy": (0.1, "loss_alpha")},
        DISCRETE,
    ),
    "DDPGLoss": case(lambda: DDPGLoss(deterministic(), qvalue()), {"loss_actor", "loss_value"}, {"gamma": (0.5, "loss_value")}),
    "TD3Loss": case(
        lambda: TD3Loss(deterministic(), qvalue(2), noise_scale=1.0),
        {"loss_actor", "loss_value"},
        {"gamma": (0.5, "loss_value"), "noise_scale": (0.1, "loss_value"), "noise_clip": (0.01, "loss_value")},
    ),
    "REDQLoss": case(lambda: REDQLoss(actor(CONTINUOUS), qvalue(4), alpha=0.3), SOFT, ENTROPY),
    "REDQLoss-droq": case(
        lambda: REDQLoss(actor(CONTINUOUS), critics(2, norm=nn.LayerNorm, dropout=0.2), subset=None, alpha=0.3), SOFT, ENTROPY
    ),
    "CrossQLoss": case(
        lambda: CrossQLoss(actor(CONTINUOUS), critics(2, norm=slow_renorm, norm_input=True), alpha=0.3), SOFT, ENTROPY
    ),
    "TQCLoss": case(lambda: TQCLoss(actor(CONTINUOUS), quantile_critics(), drop=1, alpha=0.3), SOFT, ENTROPY),
    "MPOLoss": case(
        lambda: moved(MPOLoss(actor(CONTINUOUS), qvalue(2), samples=5, temperature=0.5)),
        {"loss_actor", "loss_value", "loss_temperature", "loss_alpha"},
        {
            "gamma": (0.5, "loss_value"),
            "epsilon": (0.5, "loss_temperature"),
            "epsilon_mean": (0.5, "loss_alpha"),
            "epsilon_std": (0.5, "loss_alpha"),
        },
    ),
}
