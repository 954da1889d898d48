"""Cases of the on-policy losses."""

from __future__ import annotations

from losses.casekit import CONTINUOUS, DISCRETE, Case, actor, on_policy_batch, value

from rlbook import PPOLoss
from rlbook.specs import Spec

PPO_HYPER = {"clip_eps": (0.01, "loss_actor"), "entropy_coef": (0.5, "loss_entropy"), "value_coef": (2.0, "loss_value")}


def ppo(spec: Spec) -> Case:
    terms = {"loss_actor", "loss_entropy", "loss_value"}
    return Case(lambda: PPOLoss(actor(spec), value()), lambda: on_policy_batch(spec), terms, PPO_HYPER)


CASES: dict[str, Case] = {
    "PPOLoss": ppo(DISCRETE),
    "PPOLoss-continuous": ppo(CONTINUOUS),
    "PPOLoss-no_critic": Case(
        lambda: PPOLoss(actor(DISCRETE)),
        lambda: on_policy_batch(DISCRETE),
        {"loss_actor", "loss_entropy"},
        {name: PPO_HYPER[name] for name in ("clip_eps", "entropy_coef")},
    ),
}
