"""R2D2's loss against one sequence taken step by step, and what its burn-in and mask do."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

from rlbook import MLP, QValueActor
from rlbook.errors import ConfigError
from rlbook.losses import R2D2Loss, compile_update
from rlbook.losses.targets import target_pairs
from rlbook.modules import GRU, LSTM, Carrying
from rlbook.specs import Categorical

GAMMA, N = 0.9, 3


def batch_of(rows: int = 4, steps: int = 9, size: int = 6) -> TensorDict:
    """Sequences in float64; episodes end inside, some by a time limit."""
    done = torch.rand(rows, steps) < 0.25
    nxt = {
        "observation": torch.randn(rows, steps, 3),
        "reward": 10 * torch.randn(rows, steps),
        "done": done,
        "terminated": done & (torch.rand(rows, steps) < 0.5),
    }
    entries = {
        "observation": torch.randn(rows, steps, 3),
        "action": torch.randint(2, (rows, steps)),
        "recurrent": {"qvalue": torch.randn(rows, steps, 1, size)},
        "next": nxt,
    }
    return TensorDict(entries, [rows, steps]).apply(lambda x: x.double() if x.is_floating_point() else x)


def loss_of(cell=GRU, **options) -> R2D2Loss:
    loss = R2D2Loss(QValueActor(cell(2, 3, 6 // cell.parts), Categorical(2)), gamma=GAMMA, n=N, **options).double()
    for _, target in target_pairs(loss):
        for parameter in target.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return loss


def values_of(qvalue: QValueActor, row: TensorDict) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of both observations of every step of a row ``[T]``, one step at a time."""
    state, here, after = row["recurrent", "qvalue"][0], [], []
    for t in range(len(row)):
        entries = Carrying({"observation": row["observation"][t], qvalue.state_key: state})
        here.append(qvalue.values(entries))
        state = entries["next", *qvalue.state_key]
        after.append(qvalue.values({"observation": row["next", "observation"][t], qvalue.state_key: state}))
        state = state * (not row["next", "done"][t])
    return torch.stack(here), torch.stack(after)


def squash(x: float) -> float:
    return (1 if x > 0 else -1) * ((abs(x) + 1) ** 0.5 - 1) + 1e-3 * x


def unsquash(y: float) -> float:
    low, high = -1e6, 1e6
    for _ in range(200):  # by bisection
        middle = (low + high) / 2
        low, high = (middle, high) if squash(middle) < y else (low, middle)
    return middle


def errors_by_hand(loss: R2D2Loss, batch: TensorDict, squashed: bool) -> torch.Tensor:
    """``Q_t - y_t`` as the paper has it, ``[B, T]``."""
    to, back = (squash, unsquash) if squashed else (float, float)
    errors = torch.zeros(batch.batch_size, dtype=torch.float64)
    for b, row in enumerate(batch.unbind(0)):
        values, chooser = values_of(loss.qvalue, row)
        _, nexts = values_of(loss.target_qvalue, row)
        for t in range(len(row)):
            total, last = 0.0, t
            for last in range(t, min(t + N, len(row))):
                total += GAMMA ** (last - t) * row["next", "reward"][last].item()
                if row["next", "done"][last]:
                    break
            best = chooser[last].argmax()
            if not row["next", "terminated"][last]:
                total += GAMMA ** (last - t + 1) * back(nexts[last, best].item())
            errors[b, t] = values[t, row["action"][t]].item() - to(total)
    return errors


@pytest.mark.parametrize("squashed", [True, False])
@pytest.mark.parametrize("cell", [GRU, LSTM])
def test_equals_the_definition_step_by_step(cell, squashed):
    loss, batch = loss_of(cell, squash=squashed, distance="l2"), batch_of()
    errors = errors_by_hand(loss, batch, squashed)
    out = loss(batch)
    assert_close(out["td_error"], errors.abs(), rtol=1e-6, atol=1e-6)
    assert_close(out["loss_value"], errors.square().mean(), rtol=1e-6, atol=1e-6)
    assert batch["next", "done"].any()


def test_burn_in_sends_no_gradient_and_learns_the_rest():
    loss, batch = loss_of(), batch_of()
    whole = loss(batch)["td_error"]
    loss.burn_in = 4
    out = loss(batch)
    assert out["td_error"].shape == (4, 9)
    assert (out["td_error"][:, :4] == 0).all()
    assert_close(out["td_error"][:, 4:], whole[:, 4:])  # weights are those of the burn-in: the state is the same
    batch["observation"].requires_grad_()
    (gradient,) = torch.autograd.grad(loss(batch)["loss"], batch["observation"])
    assert (gradient[:, :4] == 0).all()
    assert gradient[:, 4:].abs().max() > 0


def test_what_is_masked_is_not_learnt_from():
    loss, batch = loss_of(), batch_of()
    full = loss(batch)
    batch["mask"] = torch.ones(4, 9, dtype=torch.bool)
    assert_close(loss(batch)["loss"], full["loss"])
    batch["mask"][:, 6:] = False
    masked = loss(batch)
    assert (masked["td_error"][:, 6:] == 0).all()
    batch["next", "reward"][:, 8] += 1e3
    batch["action"][:, 6:] = 1 - batch["action"][:, 6:]
    again = loss(batch)
    assert_close(again["q_mean"], masked["q_mean"])
    assert_close(again["td_error"][:, :6], masked["td_error"][:, :6])
    batch["mask"][:] = False
    assert loss(batch)["loss"] == 0


@pytest.mark.usefixtures("quick_compile")
def test_a_compiled_update_equals_an_eager_one():
    def trained(compile: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        loss, batch = loss_of(burn_in=2).float(), batch_of().apply(lambda x: x.float() if x.is_floating_point() else x)
        update = compile_update(loss, torch.optim.Adam(loss.qvalue.parameters(), lr=1e-2), compile=compile)
        for _ in range(3):
            update(batch)
        return [parameter.detach().clone() for parameter in loss.qvalue.parameters()]

    for compiled, eager in zip(trained(True), trained(False), strict=True):
        assert_close(compiled, eager, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: R2D2Loss(QValueActor(MLP(2, 3), Categorical(2))), "qvalue must be a QValueActor with a recurrent network"),
        (lambda: loss_of(burn_in=-1), "burn_in must be an integer of at least 0; got -1"),
        (lambda: R2D2Loss(QValueActor(GRU(2, 3), Categorical(2)), n=0), "n must be a positive integer; got 0"),
        (lambda: loss_of(burn_in=9)(batch_of()), r"steps must be in \[0, 9\); got 9"),
    ],
)
def test_errors(make, match):
    with pytest.raises(ConfigError, match=match):
        make()


def test_what_pads_a_sequence_is_no_part_of_a_return():
    torch.manual_seed(0)
    loss, whole = loss_of(squash=False), batch_of(steps=5)
    whole["next", "done"].zero_()
    whole["next", "terminated"].zero_()
    padded = torch.cat([whole, *(3 * [whole[:, -1:]])], 1)  # as SliceSampler(pad=True) repeats the last step
    padded["mask"] = torch.tensor([True] * 5 + [False] * 3).expand(4, 8)
    out, expected = loss(padded), loss(whole)
    assert_close(out["loss_value"], expected["loss_value"])
    assert_close(out["td_error"], torch.nn.functional.pad(expected["td_error"], (0, 3)))
