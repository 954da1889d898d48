"""Cases of the on-policy losses."""

from __future__ import annotations

from typing import Any

import torch
from losses.casekit import CONTINUOUS, DISCRETE, Case, actor, net, on_policy_batch, value
from tensordict import TensorDict
from torch import nn

from rlbook import (
    A2CLoss,
    Actor,
    PPGAuxiliaryLoss,
    PPOKLLoss,
    PPOLoss,
    ReinforceLoss,
    TRPOLoss,
    ValueHead,
    VTraceLoss,
)
from rlbook.losses.on_policy import OnPolicyLoss
from rlbook.specs import Spec

TERMS = {"loss_actor", "loss_entropy", "loss_value"}
COMMON = {"entropy_coef": (0.5, "loss_entropy"), "value_coef": (2.0, "loss_value")}
PPO_HYPER = {"clip_eps": (0.01, "loss_actor"), **COMMON}
KL_HYPER = {"kl_coef": (20.0, "loss_actor"), **COMMON}


def whole_batch(spec: Spec, rows: int = 12) -> TensorDict:
    """A batch with all that an on-policy loss may read: what the values were, and the whole policy that acted."""
    batch = on_policy_batch(spec, rows)
    batch["state_value"] = torch.randn(rows)
    batch["action_params"] = torch.randn(rows, 3 if spec is DISCRETE else 4)
    return batch


def case(loss: type[OnPolicyLoss], spec: Spec, hyper: dict[str, tuple[float, str]], batch: Any = None, **options: Any) -> Case:
    """A case with a critic and a bonus for entropy."""

    def make() -> OnPolicyLoss:
        return loss(actor(spec), value(), entropy_coef=0.01, **options)

    return Case(make, lambda: (batch or on_policy_batch)(spec), TERMS, hyper)


def ppg(spec: Spec) -> Case:
    """The policy and the auxiliary head share a trunk."""

    def make() -> PPGAuxiliaryLoss:
        trunk = nn.Sequential(nn.Linear(4, 16), nn.Tanh())
        policy = Actor(nn.Sequential(trunk, nn.Linear(16, 3 if spec is DISCRETE else 4)), spec)
        return PPGAuxiliaryLoss(policy, ValueHead(nn.Sequential(trunk, nn.Linear(16, 1))), ValueHead(net(1)))

    terms = {"loss_auxiliary", "loss_clone", "loss_value"}
    return Case(make, lambda: whole_batch(spec), terms, {"clone_coef": (3.0, "loss_clone")})


def without_critic(loss: type[OnPolicyLoss], hyper: dict[str, tuple[float, str]]) -> Case:
    return Case(
        lambda: loss(actor(DISCRETE), entropy_coef=0.01),
        lambda: on_policy_batch(DISCRETE),
        {"loss_actor", "loss_entropy"},
        {name: hyper[name] for name in hyper if name != "value_coef"},
    )


CASES: dict[str, Case] = {
    "PPOLoss": case(PPOLoss, DISCRETE, PPO_HYPER),
    "PPOLoss-continuous": case(PPOLoss, CONTINUOUS, PPO_HYPER),
    "PPOLoss-no_critic": without_critic(PPOLoss, PPO_HYPER),
    "PPOLoss-dual_clip": case(PPOLoss, DISCRETE, PPO_HYPER, dual_clip=1.1),
    "PPOLoss-value_clip": case(PPOLoss, DISCRETE, {**PPO_HYPER, "value_clip": (5.0, "loss_value")}, whole_batch, value_clip=0.1),
    "PPOKLLoss": case(PPOKLLoss, DISCRETE, KL_HYPER, whole_batch),
    "PPOKLLoss-continuous": case(PPOKLLoss, CONTINUOUS, KL_HYPER, whole_batch),
    "PPOKLLoss-sampled": case(PPOKLLoss, DISCRETE, KL_HYPER),
    "ReinforceLoss": case(ReinforceLoss, DISCRETE, COMMON),
    "ReinforceLoss-continuous": case(ReinforceLoss, CONTINUOUS, COMMON),
    "ReinforceLoss-no_critic": without_critic(ReinforceLoss, COMMON),
    "A2CLoss": case(A2CLoss, DISCRETE, COMMON),
    "A2CLoss-continuous": case(A2CLoss, CONTINUOUS, COMMON),
    "VTraceLoss": case(VTraceLoss, DISCRETE, COMMON),
    "VTraceLoss-continuous": case(VTraceLoss, CONTINUOUS, COMMON),
    "TRPOLoss": case(TRPOLoss, DISCRETE, COMMON),
    "TRPOLoss-continuous": case(TRPOLoss, CONTINUOUS, COMMON),
    "PPGAuxiliaryLoss": ppg(DISCRETE),
    "PPGAuxiliaryLoss-continuous": ppg(CONTINUOUS),
}
