"""What the cases of the losses are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from tensordict import TensorDict

from rlbook import MLP, Actor, QValueActor, QValueHead, ValueHead, ensemble
from rlbook.losses import Loss
from rlbook.specs import Bounded, Categorical, Spec

DISCRETE, CONTINUOUS = Categorical(3), Bounded(-2.0, 2.0, (2,))


class Case(NamedTuple):
    """How to build a loss and a batch for it, and what must hold."""

    make: Callable[[], Loss]
    batch: Callable[[], TensorDict]
    """A batch of 12 rows."""
    terms: set[str]
    """The terms it has. The modules that their gradients reach are those of the class's table ``trains``."""
    hyper: dict[str, tuple[float, str]]
    """Each hyper-parameter, another value for it, and an entry of the result that the value changes."""


def net(outputs: int, inputs: int = 4, activation: type[torch.nn.Module] = torch.nn.Tanh) -> MLP:
    return MLP(outputs, inputs, [16], activation=activation)


def actor(spec: Spec) -> Actor:
    return Actor(net(3 if isinstance(spec, Categorical) else 4), spec)


def deterministic() -> Actor:
    return Actor(net(2), CONTINUOUS)


def value() -> ValueHead:
    return ValueHead(net(1))


def qvalue(members: int | None = None) -> QValueHead:
    """Critics of an observation of 4 numbers and an action of 2."""
    return QValueHead(net(1, 6) if members is None else ensemble(net(1, 6), members))


def qvalue_actor(members: int | None = None) -> QValueActor:
    return QValueActor(net(3) if members is None else ensemble(net(3), members), DISCRETE)


def on_policy_batch(spec: Spec, rows: int = 12) -> TensorDict:
    """A batch as an estimator leaves it, from a policy that is not the learnt one."""
    batch = TensorDict({"observation": torch.randn(rows, 4)}, [rows])
    actor(spec)(batch)
    return batch.detach().update({"advantage": torch.randn(rows), "value_target": torch.randn(rows)})


def transitions(spec: Spec, rows: int = 12) -> TensorDict:
    """A batch of transitions as a replay buffer with priorities and n-step returns gives it; every third one terminates."""
    nxt = {
        "observation": torch.randn(rows, 4),
        "reward": torch.randn(rows),
        "terminated": torch.arange(rows) % 3 == 0,
        "done": torch.arange(rows) % 3 == 0,
    }
    entries = {
        "observation": torch.randn(rows, 4),
        "action": spec.rand((rows,)),
        "weight": torch.rand(rows) + 0.5,
        "next": nxt,
    }
    return TensorDict(entries, [rows])


def reshaped(
    batch: TensorDict, shape: tuple[int, ...], noise: dict[str, torch.Tensor]
) -> tuple[TensorDict, dict[str, torch.Tensor]]:
    """Give rows other batch dimensions, and the noise that belongs to rows too."""
    rows = (len(batch),)
    return batch.reshape(shape), {k: x.reshape(*shape, *x.shape[1:]) if x.shape[:1] == rows else x for k, x in noise.items()}
