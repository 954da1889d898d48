"""Cases of the losses that learn the values of discrete actions."""

from __future__ import annotations

from losses.casekit import DISCRETE, Case, qvalue_actor, transitions

from rlbook import DQNLoss
from rlbook.losses import Loss


def apart(loss: Loss) -> Loss:
    """Move the targets away from what they follow, so that it matters which of the two is read."""
    for name, weight in loss.named_buffers():
        if name.startswith("target_"):
            weight.mul_(1.5)
    return loss


def of_transitions(make) -> Case:
    return Case(lambda: apart(make()), lambda: transitions(DISCRETE), {"loss_value"}, {"gamma": (0.5, "loss_value")})


CASES: dict[str, Case] = {
    "DQNLoss": of_transitions(lambda: DQNLoss(qvalue_actor())),
    "DQNLoss-single": of_transitions(lambda: DQNLoss(qvalue_actor(), double=False, distance="l2")),
}
