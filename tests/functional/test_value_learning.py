"""Targets and losses for action values: hand-worked values and gradients, identities, and where no gradient goes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import value_learning as reference
from torch.testing import assert_close

from rlbook.errors import ConfigError, SpecError
from rlbook.functional import (
    boltzmann_probs,
    chosen_value,
    clipped_double_value,
    double_q_target,
    epsilon_greedy_probs,
    expected_sarsa_target,
    expected_value,
    huber_loss,
    munchausen_target,
    q_learning_error,
    q_learning_target,
    sarsa_target,
    smoothed_action,
    soft_clipped_value,
    soft_expected_value,
    soft_q_target,
    soft_value,
    squared_loss,
    subset_value,
    td0_target,
)

VALUES = torch.tensor([[1.0, 3.0, 2.0], [0.0, -1.0, 4.0]])
ACTION = torch.tensor([2, 0])
REWARD = torch.tensor([1.0, 2.0])
TERMINATED = torch.tensor([False, True])


def leaf(x) -> torch.Tensor:
    return torch.as_tensor(x, dtype=torch.float32).clone().requires_grad_()


def random_step(seed: int = 0, batch: int = 16, actions: int = 5, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values, next_values = torch.randn(2, batch, actions, generator=generator, dtype=dtype)
    action = torch.randint(actions, (batch,), generator=generator)
    reward = torch.randn(batch, generator=generator, dtype=dtype)
    terminated = torch.rand(batch, generator=generator) < 0.3
    return {"reward": reward, "values": values, "action": action, "next_values": next_values, "terminated": terminated}


# ---------------------------------------------------------------- values of a state


def test_chosen_value():
    values = leaf(VALUES)
    chosen = chosen_value(values, ACTION)
    assert_close(chosen, torch.tensor([2.0, 0.0]))
    chosen.sum().backward()
    assert_close(values.grad, torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))
    members = torch.stack([VALUES, VALUES + 10.0])
    assert_close(chosen_value(members, ACTION), torch.tensor([[2.0, 0.0], [12.0, 10.0]]))


def test_expected_value():
    values, probs = leaf(VALUES), leaf([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]])
    result = expected_value(values, probs)
    assert_close(result, torch.tensor([1.75, 4.0]))  # 0.5 + 0.75 + 0.5
    result.sum().backward()
    assert_close(values.grad, probs.detach())
    assert_close(probs.grad, VALUES)


def test_soft_value():
    values, alpha = leaf([[0.0, math.log(3.0)]]), leaf(1.0)
    result = soft_value(values, alpha)
    assert_close(result, torch.tensor([math.log(4.0)]))  # log(1 + 3)
    result.sum().backward()
    assert_close(values.grad, torch.tensor([[0.25, 0.75]]))  # the soft-greedy policy
    assert_close(alpha.grad, torch.tensor(math.log(4.0) - 0.75 * math.log(3.0)))  # its entropy


def test_soft_expected_value():
    values, probs = leaf([[1.0, 2.0]]), torch.tensor([[0.25, 0.75]])
    log_probs = leaf(probs.log())
    result = soft_expected_value(values, log_probs, 0.5)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert_close(result, torch.tensor([1.75 + 0.5 * entropy]))
    result.sum().backward()
    assert_close(values.grad, probs)
    assert_close(log_probs.grad, probs * (values.detach() - 0.5 * (probs.log() + 1.0)))  # d p (Q - alpha l) / dl, with p = e^l


def test_a_masked_action_counts_nothing():
    logits = leaf([[0.3, -math.inf, 1.0]])
    values = torch.tensor([[1.0, 5.0, 2.0]])
    for alpha in (0.1, 100.0):
        result = soft_expected_value(values, logits.log_softmax(-1), alpha)
        assert_close(result, soft_expected_value(values[:, [0, 2]], logits[:, [0, 2]].log_softmax(-1), alpha))
        gradient = torch.autograd.grad(result.sum(), logits)[0]
        assert gradient.isfinite().all()


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.floats(0.05, 5.0))
def test_soft_value_is_that_of_the_best_policy(seed, alpha):
    values, other = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    best = soft_value(values, alpha)
    assert_close(best, soft_expected_value(values, boltzmann_probs(values, alpha).log(), alpha))
    assert (soft_expected_value(values, other.log_softmax(-1), alpha) <= best + 1e-9).all()
    assert ((best >= values.amax(-1) - 1e-9) & (best <= values.amax(-1) + alpha * math.log(6) + 1e-9)).all()


def test_ensembles():
    members, log_prob, alpha = leaf([[1.0, 5.0], [2.0, 4.0], [3.0, 6.0]]), leaf([-1.0, -2.0]), leaf(0.5)
    assert_close(clipped_double_value(members), torch.tensor([1.0, 4.0]))
    assert_close(subset_value(members, torch.tensor([1, 2])), torch.tensor([2.0, 4.0]))
    result = soft_clipped_value(members, log_prob, alpha)
    assert_close(result, torch.tensor([1.5, 5.0]))  # 1 + 0.5 * 1, 4 + 0.5 * 2
    result.sum().backward()
    assert_close(members.grad, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    assert_close(log_prob.grad, torch.tensor([-0.5, -0.5]))
    assert_close(alpha.grad, torch.tensor(3.0))


# ---------------------------------------------------------------- targets


def test_q_learning():
    values, next_values = leaf(VALUES), leaf(VALUES.flip(0))
    target = q_learning_target(REWARD, next_values, TERMINATED, 0.5)
    assert_close(target, torch.tensor([3.0, 2.0]))  # 1 + 0.5 * 4; terminal
    error = q_learning_error(values, ACTION, REWARD, next_values, TERMINATED, 0.5)
    assert_close(error, torch.tensor([1.0, 2.0]))
    error.sum().backward()
    assert_close(values.grad, torch.tensor([[0.0, 0.0, -1.0], [-1.0, 0.0, 0.0]]))
    assert_close(next_values.grad, torch.tensor([[0.0, 0.0, 0.5], [0.0, 0.0, 0.0]]))


def test_double_q():
    next_values, selector = leaf(VALUES), leaf([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    target = double_q_target(REWARD, next_values, selector, torch.tensor([False, False]), 0.5)
    assert_close(target, torch.tensor([2.0, 2.0]))  # 1 + 0.5 * 2 (action 2, though 1 is worth more); 2 + 0.5 * 0 (action 0)
    target.sum().backward()
    assert_close(next_values.grad, torch.tensor([[0.0, 0.0, 0.5], [0.5, 0.0, 0.0]]))
    assert selector.grad is None


def test_sarsa():
    next_values = leaf(VALUES)
    target = sarsa_target(REWARD, next_values, ACTION, TERMINATED, 0.5)
    assert_close(target, torch.tensor([2.0, 2.0]))  # 1 + 0.5 * 2; terminal
    target.sum().backward()
    assert_close(next_values.grad, torch.tensor([[0.0, 0.0, 0.5], [0.0, 0.0, 0.0]]))


def test_expected_sarsa():
    next_values, probs = leaf(VALUES), leaf([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])
    target = expected_sarsa_target(REWARD, next_values, probs, TERMINATED, 0.5)
    assert_close(target, torch.tensor([1.875, 2.0]))  # 1 + 0.5 * 1.75; terminal
    target.sum().backward()
    assert_close(next_values.grad, torch.tensor([[0.25, 0.125, 0.125], [0.0, 0.0, 0.0]]))
    assert_close(probs.grad, torch.tensor([[0.5, 1.5, 1.0], [0.0, 0.0, 0.0]]))


def test_soft_q():
    next_values = leaf([[0.0, math.log(3.0)], [1.0, 1.0]])
    target = soft_q_target(REWARD, next_values, TERMINATED, 0.5, 1.0)
    assert_close(target, torch.tensor([1.0 + 0.5 * math.log(4.0), 2.0]))
    target.sum().backward()
    assert_close(next_values.grad, torch.tensor([[0.125, 0.375], [0.0, 0.0]]))


def test_munchausen():
    # tau = 1: pi = (1/4, 3/4) in row 1. The second action of row 2 has log pi = log(1 / (1 + e^3)) = -3.05: clipped to -1.
    values, next_values = leaf([[0.0, math.log(3.0)], [3.0, 0.0]]), leaf([[0.0, 0.0], [0.0, 0.0]])
    target = munchausen_target(REWARD, values, torch.tensor([1, 1]), next_values, TERMINATED, 0.5, alpha=0.5, tau=1.0)
    assert_close(target, torch.tensor([1.0 + 0.5 * math.log(0.75) + 0.5 * math.log(2.0), 2.0 - 0.5]))
    target.sum().backward()
    assert_close(values.grad, torch.tensor([[-0.125, 0.125], [0.0, 0.0]]))  # alpha (1{a} - pi); none where clipped
    assert_close(next_values.grad, torch.tensor([[0.25, 0.25], [0.0, 0.0]]))  # gamma pi'


@pytest.mark.parametrize("tau", [0.03, 0.5, 3.0])
def test_munchausen_is_its_definition(tau):
    step = random_step()
    want = reference.munchausen_target(**step, gamma=0.9, alpha=0.9, tau=tau, clip=-1.0)
    assert_close(munchausen_target(**step, gamma=0.9, alpha=0.9, tau=tau), torch.from_numpy(want))


def test_identities_of_targets():
    step = random_step()
    reward, next_values, terminated = step["reward"], step["next_values"], step["terminated"]
    greedy = q_learning_target(reward, next_values, terminated, 0.9)
    best = next_values.argmax(-1)
    assert_close(double_q_target(reward, next_values, next_values, terminated, 0.9), greedy)
    assert_close(sarsa_target(reward, next_values, best, terminated, 0.9), greedy)
    one_hot = torch.nn.functional.one_hot(best, 5).double()
    assert_close(expected_sarsa_target(reward, next_values, one_hot, terminated, 0.9), greedy)
    assert_close(soft_q_target(reward, next_values, terminated, 0.9, 1e-9), greedy)
    soft = soft_q_target(reward, next_values, terminated, 0.9, 0.5)
    assert_close(munchausen_target(**step, gamma=0.9, alpha=0.0, tau=0.5), soft)
    # A discount per row is what n-step returns need; terminal rows do not read what follows, whatever it holds.
    discount = torch.where(reward > 0, 0.9, 0.81)
    per_row = q_learning_target(reward, next_values, terminated, discount)
    assert_close(per_row, td0_target(reward, next_values.amax(-1), terminated, discount))
    broken = torch.where(terminated.unsqueeze(-1), torch.nan, next_values)
    assert_close(q_learning_target(reward, broken, terminated, 0.9), greedy)
    assert_close(soft_q_target(reward, broken, terminated, 0.9, 0.5), soft)


def test_smoothed_action():
    action, noise = leaf([[0.0, 0.9, -0.9, 0.1]]), leaf([[1.0, 1.0, -10.0, 10.0]])
    result = smoothed_action(action, noise, -1.0, 1.0, scale=0.2, clip=0.5)
    assert_close(result, torch.tensor([[0.2, 1.0, -1.0, 0.6]]))
    result.sum().backward()
    assert_close(action.grad, torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
    bounds = torch.tensor([-2.0, -2.0, -2.0, -2.0]), torch.tensor([0.1, 2.0, 2.0, 2.0])
    assert_close(smoothed_action(action, noise, *bounds), torch.tensor([[0.1, 1.1, -1.4, 0.6]]))


# ---------------------------------------------------------------- losses


def test_squared_loss():
    pred, target, weight = leaf([1.0, 4.0]), leaf([3.0, 3.0]), leaf([0.5, 2.0])
    loss = squared_loss(pred, target, weight)
    assert_close(loss, torch.tensor([2.0, 2.0]))
    loss.sum().backward()
    assert_close(pred.grad, torch.tensor([-2.0, 4.0]))
    assert target.grad is None
    assert weight.grad is None
    assert_close(squared_loss(pred, target), torch.tensor([4.0, 1.0]))


def test_huber_loss():
    # errors -0.5, 3, -3 with delta 2: 0.5 * 0.25, 2 * (3 - 1), 2 * (3 - 1); gradient: the error, clipped to +-2
    pred, target, weight = leaf([1.0, 4.0, -2.0]), leaf([1.5, 1.0, 1.0]), leaf([1.0, 1.0, 0.5])
    for delta in (2.0, torch.tensor(2.0)):
        pred.grad = None
        loss = huber_loss(pred, target, delta, weight)
        assert_close(loss, torch.tensor([0.125, 4.0, 2.0]))
        loss.sum().backward()
        assert_close(pred.grad, torch.tensor([-0.5, 2.0, -1.0]))
        assert target.grad is None
        assert weight.grad is None


def test_losses_of_ensembles_share_target_and_weight():
    generator = torch.Generator().manual_seed(0)
    members, target = torch.randn(3, 5, generator=generator), torch.randn(5, generator=generator)
    weight = torch.rand(5, generator=generator)
    for loss in (squared_loss, huber_loss):
        want = torch.stack([loss(member, target, weight=weight) for member in members])
        assert_close(loss(members, target, weight=weight), want)


def test_huber_is_half_the_square_in_a_wide_range():
    pred, target = torch.randn(2, 10, generator=torch.Generator().manual_seed(0))
    assert_close(huber_loss(pred, target, 100.0), 0.5 * squared_loss(pred, target))


# ---------------------------------------------------------------- compilation and errors


def test_compiles_fullgraph():
    def everything(reward, values, action, next_values, terminated, gamma, delta):
        targets = [
            q_learning_target(reward, next_values, terminated, gamma),
            double_q_target(reward, next_values, values, terminated, gamma),
            sarsa_target(reward, next_values, action, terminated, gamma),
            expected_sarsa_target(reward, next_values, values.softmax(-1), terminated, gamma),
            soft_q_target(reward, next_values, terminated, gamma, delta),
            munchausen_target(reward, values, action, next_values, terminated, gamma),
            soft_clipped_value(torch.stack([reward, -reward]), reward, delta),
        ]
        pred = chosen_value(values, action)
        losses = [f(pred, t, weight=reward.exp()) for t in targets for f in (squared_loss, huber_loss)]
        losses += [huber_loss(pred, reward, delta), soft_expected_value(values, next_values.log_softmax(-1), delta)]
        return torch.stack(losses), smoothed_action(values, next_values, -1.0, 1.0)

    step, gamma, delta = random_step(dtype=torch.float32), torch.tensor(0.9), torch.tensor(0.7)
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    assert_close(compiled(**step, gamma=gamma, delta=delta), everything(**step, gamma=gamma, delta=delta))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda v: chosen_value(v, torch.ones(4)), r"action must be int64 \[4\], .*; got torch.float32 \[4\]. .*argmax"),
        (lambda v: chosen_value(v, torch.ones(4, 1).long()), r"action must be int64 \[4\], .*; got torch.int64 \[4, 1\]"),
        (lambda v: expected_value(v, v[:, :2]), r"probs must be of the shape of values, \[4, 3\]; got \[4, 2\]"),
        (lambda v: soft_expected_value(v, v[0], 1.0), r"log_probs must be of the shape of values"),
        (
            lambda v: q_learning_target(v[:2, 0], v, v[:2, 0] > 9, 0.9),
            r"next_value must be of the shape of reward, \[2\]; got \[4\]",
        ),
        (lambda v: double_q_target(v[:, 0], v, v.mT, v[:, 0] > 9, 0.9), r"selector_values must be of the shape of next_values"),
        (lambda v: squared_loss(v, v[:, :1]), r"target must be of the shape of pred, \[4, 3\]; got \[4, 1\]"),
        (lambda v: huber_loss(v, v, 1.0, v[:, 0]), r"weight must be of the shape of pred, \[4, 3\]; got \[4\]"),
        (lambda v: soft_clipped_value(v, v[0, :1], 1.0), r"log_prob must be of the shape of value, \[3\]; got \[1\]"),
        (lambda v: smoothed_action(v, v[0], -1.0, 1.0), r"noise must be of the shape of action"),
    ],
)
def test_shapes_that_would_broadcast_are_explained(call, message):
    with pytest.raises(SpecError, match=message):
        call(torch.ones(4, 3))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda v: soft_value(v, 0.0), "alpha must be positive; got 0.0"),
        (lambda v: huber_loss(v, v, -1.0), "delta must be positive; got -1.0"),
        (lambda v: smoothed_action(v, v, -1.0, 1.0, clip=0.0), "clip must be positive"),
        (lambda v: q_learning_target(v[:, 0], v, v[:, 0] > 9, 1.1), r"gamma must be in \[0, 1\]; got 1.1"),
    ],
)
def test_wrong_coefficients_are_explained(call, message):
    with pytest.raises(ConfigError, match=message):
        call(torch.ones(4, 3))


def test_the_value_of_a_masked_action_counts_nothing():
    values = torch.tensor([1.0, 2.0, -math.inf])
    probs = epsilon_greedy_probs(values, 0.1)
    target = expected_sarsa_target(torch.zeros(()), values, probs, torch.tensor(False), 0.9)
    assert_close(target, torch.tensor(0.9 * (0.05 * 1 + 0.95 * 2)))
    soft = soft_expected_value(values, torch.tensor([0.5, 0.5, 0.0]).log(), 0.1)
    assert_close(soft, torch.tensor(1.5 + 0.1 * math.log(2)))


def test_a_temperature_for_each_row():
    values, alpha = torch.randn(3, 3), torch.tensor([0.1, 1.0, 2.0])
    expected = torch.stack([soft_value(row, one) for row, one in zip(values, alpha, strict=True)])
    assert_close(soft_value(values, alpha), expected)
    log_probs = torch.randn(3, 3).log_softmax(-1)
    expected = torch.stack([soft_expected_value(*row) for row in zip(values, log_probs, alpha, strict=True)])
    assert_close(soft_expected_value(values, log_probs, alpha), expected)


def test_a_target_of_another_precision():
    pred = torch.randn(4, requires_grad=True)
    huber_loss(pred, torch.randn(4).double()).mean().backward()
    assert pred.grad.isfinite().all()
