"""Cases of the off-policy actor-critic losses."""

from __future__ import annotations

from losses.casekit import CONTINUOUS, Case, actor, qvalue, transitions
from losses.cases_value import apart

from rlbook import SACLoss

CASES: dict[str, Case] = {
    "SACLoss": Case(
        lambda: apart(SACLoss(actor(CONTINUOUS), qvalue(2), alpha=0.3)),
        lambda: transitions(CONTINUOUS),
        {"loss_actor", "loss_value", "loss_alpha"},
        {"gamma": (0.5, "loss_value"), "target_entropy": (1.0, "loss_alpha")},
    ),
    "SACLoss-fixed_alpha": Case(
        lambda: apart(SACLoss(actor(CONTINUOUS), qvalue(2), alpha=0.3, learn_alpha=False)),
        lambda: transitions(CONTINUOUS),
        {"loss_actor", "loss_value"},
        {"gamma": (0.5, "loss_value"), "log_alpha": (0.5, "loss_actor")},
    ),
}
