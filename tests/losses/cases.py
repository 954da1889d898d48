"""One case for each exported loss, which the conformance suite runs through. A new loss adds its line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from tensordict import TensorDict

from rlbook import MLP, Actor, PPOLoss, ValueHead
from rlbook.losses import Loss
from rlbook.specs import Bounded, Categorical, Spec

DISCRETE, CONTINUOUS = Categorical(3), Bounded(-2.0, 2.0, (2,))


class Case(NamedTuple):
    """How to build a loss and a batch for it, and what must hold."""

    make: Callable[[], Loss]
    batch: Callable[[], TensorDict]
    routing: dict[str, set[str]]
    """Each term, and the modules of the loss that its gradient reaches."""
    hyper: dict[str, tuple[float, str]]
    """Each hyper-parameter, another value for it, and an entry of the result that the value changes."""


def actor(spec: Spec) -> Actor:
    return Actor(MLP(3 if isinstance(spec, Categorical) else 4, 4, [16], activation=torch.nn.Tanh), spec)


def value() -> ValueHead:
    return ValueHead(MLP(1, 4, [16], activation=torch.nn.Tanh))


def on_policy_batch(spec: Spec, rows: int = 12) -> TensorDict:
    """A batch as an estimator leaves it, from a policy that is not the learnt one."""
    batch = TensorDict({"observation": torch.randn(rows, 4)}, [rows])
    actor(spec)(batch)
    return batch.detach().update({"advantage": torch.randn(rows), "value_target": torch.randn(rows)})


PPO_HYPER = {"clip_eps": (0.01, "loss_actor"), "entropy_coef": (0.5, "loss_entropy"), "value_coef": (2.0, "loss_value")}
PPO_ROUTING = {"loss_actor": {"actor"}, "loss_entropy": {"actor"}, "loss_value": {"value"}}


def ppo(spec: Spec) -> Case:
    return Case(lambda: PPOLoss(actor(spec), value()), lambda: on_policy_batch(spec), PPO_ROUTING, PPO_HYPER)


CASES: dict[str, Case] = {
    "PPOLoss": ppo(DISCRETE),
    "PPOLoss-continuous": ppo(CONTINUOUS),
    "PPOLoss-no_critic": Case(
        lambda: PPOLoss(actor(DISCRETE)),
        lambda: on_policy_batch(DISCRETE),
        {"loss_actor": {"actor"}, "loss_entropy": {"actor"}},
        {name: PPO_HYPER[name] for name in ("clip_eps", "entropy_coef")},
    ),
}
