"""Policy-gradient terms: hand-worked values and gradients, and where no gradient goes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from rlbook.errors import ConfigError, SpecError
from rlbook.functional import approx_kl, clip_fraction, clipped_value_loss, importance_ratio, ppo_clip_loss, reinforce_loss


def leaf(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, requires_grad=True)


def test_importance_ratio():
    log_prob, old = leaf(math.log(0.6), math.log(0.1)), leaf(math.log(0.3), math.log(0.4))
    ratio = importance_ratio(log_prob, old)
    assert_close(ratio, torch.tensor([2.0, 0.25]))
    ratio.sum().backward()
    assert_close(log_prob.grad, torch.tensor([2.0, 0.25]))  # d exp(x) = exp(x)
    assert old.grad is None


def test_ppo_clip_loss():
    # Below, inside and above [0.8, 1.2], with a good action (A = 2) and a bad one (A = -2).
    ratio, advantage = leaf(0.5, 1.1, 1.5, 0.5, 1.1, 1.5), leaf(2.0, 2.0, 2.0, -2.0, -2.0, -2.0)
    loss = ppo_clip_loss(ratio, advantage, 0.2)
    # -min(r A, clip(r) A): min(1, 1.6), min(2.2, 2.2), min(3, 2.4); min(-1, -1.6), min(-2.2, -2.2), min(-3, -2.4)
    assert_close(loss, torch.tensor([-1.0, -2.2, -2.4, 1.6, 2.2, 3.0]))
    loss.sum().backward()
    assert_close(ratio.grad, torch.tensor([-2.0, -2.0, 0.0, 0.0, 2.0, 2.0]))  # none where it would go on outwards
    assert advantage.grad is None


def test_reinforce_loss():
    log_prob, weight = leaf(-1.0, -2.0), leaf(3.0, -0.5)
    loss = reinforce_loss(log_prob, weight)
    assert_close(loss, torch.tensor([3.0, -1.0]))
    loss.sum().backward()
    assert_close(log_prob.grad, torch.tensor([-3.0, 0.5]))
    assert weight.grad is None


def test_reinforce_and_ppo_have_one_gradient_at_the_old_policy():
    log_prob, other, weight = leaf(-1.0, -2.0), leaf(-1.0, -2.0), torch.tensor([3.0, -0.5])
    reinforce_loss(log_prob, weight).sum().backward()
    ppo_clip_loss(importance_ratio(other, other.detach()), weight, 0.2).sum().backward()
    assert_close(log_prob.grad, other.grad)


def test_clipped_value_loss():
    # V_old = 0, eps = 0.5. V = 0.2 is inside; V = 1 is clipped to 0.5, further from G = 2 than V is, and nearer to G = -1.
    value, old, target = leaf(0.2, 1.0, 1.0), leaf(0.0, 0.0, 0.0), leaf(1.0, 2.0, -1.0)
    loss = clipped_value_loss(value, old, target, 0.5)
    assert_close(loss, torch.tensor([0.64, 2.25, 4.0]))  # max(0.8^2, 0.8^2), max(1, 1.5^2), max(2^2, 1.5^2)
    loss.sum().backward()
    assert_close(value.grad, torch.tensor([-1.6, 0.0, 4.0]))  # 2 (V - G), and 0 where the clipped branch is the larger
    assert old.grad is None
    assert target.grad is None


def test_clipped_value_loss_is_the_squared_error_in_a_wide_range():
    value, old, target = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    assert_close(clipped_value_loss(value, old, target, 100.0), (value - target).square())


def test_approx_kl():
    log_ratio = leaf(0.0, math.log(2.0), -math.log(2.0))
    kl = approx_kl(log_ratio)
    assert_close(kl, torch.tensor([0.0, 1.0 - math.log(2.0), math.log(2.0) - 0.5]))
    kl.sum().backward()
    assert_close(log_ratio.grad, torch.tensor([0.0, 1.0, -0.5]))  # r - 1


def test_approx_kl_is_unbiased_and_keeps_small_numbers():
    old, new = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.4, 0.2])
    exact = (old * (old / new).log()).sum()
    assert_close((old * approx_kl((new / old).log())).sum(), exact)
    assert_close(approx_kl(torch.tensor([1e-3])), torch.tensor([5.0017e-7]), rtol=1e-3, atol=0.0)  # x^2/2 + x^3/6


def test_clip_fraction():
    ratio = leaf(0.7, 0.9, 1.0, 1.1, 1.3)
    fraction = clip_fraction(ratio, 0.2)
    assert_close(fraction, torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0]))
    assert not fraction.requires_grad


def test_clip_range_may_be_a_tensor():
    x, y = torch.randn(2, 10, generator=torch.Generator().manual_seed(0)).unbind(0)
    for term in (lambda eps: ppo_clip_loss(x.exp(), y, eps), lambda eps: clip_fraction(x.exp(), eps)):
        assert_close(term(torch.tensor(0.2)), term(0.2))
    assert_close(clipped_value_loss(x, y, -y, torch.tensor(0.2)), clipped_value_loss(x, y, -y, 0.2))


def test_compiles_fullgraph():
    def terms(log_prob, old_log_prob, advantage):
        ratio = importance_ratio(log_prob, old_log_prob)
        value = clipped_value_loss(log_prob, old_log_prob, advantage, 0.2) + reinforce_loss(log_prob, advantage)
        return ppo_clip_loss(ratio, advantage, 0.2) + value + clip_fraction(ratio, 0.2) + approx_kl(log_prob - old_log_prob)

    inputs = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    assert_close(torch.compile(terms, fullgraph=True, backend="aot_eager")(*inputs), terms(*inputs))


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda x: importance_ratio(x, x[:, None]),
            r"old_log_prob must be of the shape of log_prob, \[4\]; got \[4, 1\].*squeeze",
        ),
        (
            lambda x: ppo_clip_loss(x, x[:, None], 0.2),
            r"advantage must be of the shape of ratio, \[4\]; .*advantage.squeeze\(-1\)",
        ),
        (lambda x: reinforce_loss(x, x[:2]), r"weight must be of the shape of log_prob, \[4\]; got \[2\]"),
        (lambda x: clipped_value_loss(x[:, None], x, x, 0.2), r"old_value must be .*; got \[4\]. .*: value.squeeze\(-1\)"),
    ],
)
def test_shapes_that_would_broadcast_are_explained(call, message):
    with pytest.raises(SpecError, match=message):
        call(torch.ones(4))


def test_wrong_clip_range_is_explained():
    x = torch.ones(4)
    calls = [lambda: ppo_clip_loss(x, x, 0.0), lambda: clipped_value_loss(x, x, x, -1.0), lambda: clip_fraction(x, 0.0)]
    for call in calls:
        with pytest.raises(ConfigError, match="clip_eps must be positive; got"):
            call()
