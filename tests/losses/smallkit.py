"""Losses over networks that are small enough to write down, in double precision, and their comparison with the slow reference."""

from __future__ import annotations

from collections.abc import Callable

import torch
from reference.actor_critic import gradient
from tensordict import TensorDict
from torch import Tensor, nn
from torch.testing import assert_close

from rlbook import Actor, QValueActor, QValueHead, ValueHead
from rlbook.losses import Loss
from rlbook.modules import BatchRenorm, Ensemble, QuantileQValueHead
from rlbook.specs import Bounded, Categorical

STATE, ACTION, ROWS = 3, 2, 6
BOUNDS = (-1.0, 3.0)
SPEC = Bounded(*BOUNDS, (ACTION,), dtype=torch.float64)


class Bilinear(nn.Module):
    """A critic ``p . s + r . a + s' M a + c`` for each output; with ``norm`` of its inputs in their batch's units."""

    def __init__(self, outputs: int = 1, norm: bool = False):
        super().__init__()
        shapes = {"p": (outputs, STATE), "r": (outputs, ACTION), "m": (outputs, STATE, ACTION), "c": (outputs,)}
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape, dtype=torch.float64)))
        self.norm = BatchRenorm(STATE + ACTION, momentum=0.25, dtype=torch.float64) if norm else None

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        if self.norm is not None:
            s, a = self.norm(torch.cat((s, a), -1)).split((STATE, ACTION), -1)
        return s @ self.p.T + a @ self.r.T + torch.einsum("...i,kij,...j->...k", s, self.m, a) + self.c


def linear(outputs: int, inputs: int = STATE) -> nn.Linear:
    return nn.Linear(inputs, outputs, dtype=torch.float64)


def small_actor(deterministic: bool = False) -> Actor:
    return Actor(linear(ACTION if deterministic else 2 * ACTION), SPEC)


def small_choice(actions: int = 3) -> Actor:
    return Actor(linear(actions), Categorical(actions))


def small_critics(n: int, norm: bool = False) -> QValueHead:
    return QValueHead(Ensemble(Bilinear(norm=norm) for _ in range(n)))


def small_quantiles(n: int, quantiles: int) -> QuantileQValueHead:
    return QuantileQValueHead(Ensemble(Bilinear(quantiles) for _ in range(n)), quantiles)


def small_values(n: int, actions: int = 3) -> QValueActor:
    return QValueActor(Ensemble(linear(actions) for _ in range(n)), Categorical(actions))


def small_state_value() -> ValueHead:
    return ValueHead(linear(1))


def small_batch(discrete: bool = False) -> TensorDict:
    """Transitions with weights and discounts of their own; every third one terminates."""
    randn = lambda *shape: torch.randn(shape, dtype=torch.float64)  # noqa: E731
    nxt = {"observation": randn(ROWS, STATE), "reward": randn(ROWS), "terminated": torch.arange(ROWS) % 3 == 0}
    entries = {
        "observation": randn(ROWS, STATE),
        "action": torch.randint(3, (ROWS,)) if discrete else SPEC.rand((ROWS,)),
        "weight": torch.rand(ROWS, dtype=torch.float64) + 0.5,
        "discount": torch.rand(ROWS, dtype=torch.float64),
        "next": nxt,
    }
    return TensorDict(entries, [ROWS])


def apart(loss: Loss) -> Loss:
    """Draw the targets anew, so that it matters which network is read."""
    for name, buffer in loss.named_buffers():
        if name.startswith("target_") and name != "target_entropy":
            buffer.copy_(0.6 * torch.randn_like(buffer))
    return loss


def assert_equals_reference(loss: Loss, batch: TensorDict, reference: Callable[..., dict[str, float]], **settings) -> None:
    """Compare each term, and the gradient of each in each parameter that it trains."""
    noise = {name: x.double() if x.is_floating_point() else x for name, x in loss.prepare(batch).items()}
    w = {name: value.detach().double().numpy().copy() for name, value in loss.state_dict().items()}
    data = {
        "s": batch["observation"].numpy(),
        "a": batch["action"].numpy(),
        "next": batch["next", "observation"].numpy(),
        "reward": batch["next", "reward"].numpy(),
        "terminated": batch["next", "terminated"].numpy(),
        "weight": batch["weight"].numpy(),
        "discount": batch["discount"].numpy(),
    }
    arrays = {name: x.numpy() for name, x in noise.items()}
    out = loss(batch, noise)
    expected = reference(w, w, data, arrays, **settings)
    assert set(expected) == {name for name in out.keys() if name.startswith("loss_")}
    for term, number in expected.items():
        assert_close(out[term].item(), float(number), rtol=1e-6, atol=1e-9)
        names = [name for name, _ in loss.named_parameters() if name.split(".")[0] in loss.trains[term]]
        grads = torch.autograd.grad(out[term], [loss.get_parameter(name) for name in names], retain_graph=True)
        for name, grad in zip(names, grads, strict=True):
            slow = gradient(lambda v, term=term: reference(v, w, data, arrays, **settings)[term], w, name)
            assert_close(grad.double(), torch.from_numpy(slow).reshape(grad.shape), rtol=1e-5, atol=1e-7, msg=f"{term}: {name}")
