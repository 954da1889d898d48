"""Policy-gradient terms: hand-worked values and gradients, and where no gradient goes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from rlbook.errors import ConfigError, SpecError
from rlbook.functional import (
    adapted_kl_coef,
    approx_kl,
    categorical_entropy,
    categorical_kl,
    clip_fraction,
    clipped_value_loss,
    discrete_sac_actor_loss,
    dpg_loss,
    importance_ratio,
    ppo_clip_loss,
    ppo_dual_clip_loss,
    ppo_kl_loss,
    reinforce_loss,
    sac_actor_loss,
    sampled_entropy,
    soft_value,
    temperature_loss,
)


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


def test_ppo_dual_clip_loss():
    # A = -1: S = min(r A, clip(r) A) = -r above the range, bounded at r = 3. A = 1: as PPO.
    ratio, advantage = leaf(2.0, 5.0, 5.0, 1.1), leaf(-1.0, -1.0, 1.0, 1.0)
    loss = ppo_dual_clip_loss(ratio, advantage, 0.2, dual_clip=3.0)
    assert_close(loss, torch.tensor([2.0, 3.0, -1.2, -1.1]))
    loss.sum().backward()
    assert_close(ratio.grad, torch.tensor([1.0, 0.0, 0.0, -1.0]))
    assert advantage.grad is None
    assert_close(ppo_dual_clip_loss(ratio, advantage, 0.2, dual_clip=1e6), ppo_clip_loss(ratio, advantage, 0.2))


def test_ppo_kl_loss():
    ratio, advantage, kl = leaf(1.5), leaf(2.0), leaf(0.1)
    for coef in (3.0, torch.tensor(3.0)):
        assert_close(ppo_kl_loss(ratio, advantage, kl, coef), torch.tensor([-2.7]))  # 3 * 0.1 - 1.5 * 2
    ppo_kl_loss(ratio, advantage, kl, 3.0).sum().backward()
    assert_close(ratio.grad, torch.tensor([-2.0]))
    assert_close(kl.grad, torch.tensor([3.0]))
    assert advantage.grad is None


def test_adapted_kl_coef():
    coef = leaf(1.0)[0]
    kls = torch.tensor([0.006, 0.007, 0.01, 0.014, 0.016])  # 0.01 / 1.5 = 0.0067, 0.01 * 1.5 = 0.015
    assert_close(adapted_kl_coef(coef, kls, 0.01), torch.tensor([0.5, 1.0, 1.0, 1.0, 2.0]))
    assert not adapted_kl_coef(coef, kls, 0.01).requires_grad


def test_categorical_kl():
    old, new = leaf(math.log(0.5), math.log(0.5)), leaf(math.log(0.25), math.log(0.75))
    kl = categorical_kl(old, new)
    assert_close(kl, torch.tensor(0.5 * math.log(4 / 3)))  # 0.5 log 2 + 0.5 log(2/3)
    kl.backward()
    assert_close(new.grad, torch.tensor([-0.5, -0.5]))
    assert old.grad is None


def test_kl_is_least_and_flat_at_the_old_policy():
    logits = leaf(0.3, -1.0, 2.0)
    kl = categorical_kl(logits.log_softmax(-1), logits.log_softmax(-1))
    assert_close(kl, torch.tensor(0.0))
    kl.backward()
    assert_close(logits.grad, torch.zeros(3))


def test_categorical_entropy():
    probs = torch.tensor([0.25, 0.75])
    log_probs = leaf(*probs.log())
    entropy = categorical_entropy(log_probs)
    assert_close(entropy, torch.tensor(-0.25 * math.log(0.25) - 0.75 * math.log(0.75)))
    entropy.backward()
    assert_close(log_probs.grad, -probs * (probs.log() + 1.0))


def test_masked_actions_add_nothing():
    logits, old = leaf(0.3, -math.inf, 1.0), torch.tensor([1.0, -math.inf, 0.0]).log_softmax(-1)
    some, old_some = logits[[0, 2]].log_softmax(-1), old[[0, 2]]
    values = torch.tensor([1.0, 9.0, 2.0])
    log_probs = logits.log_softmax(-1)
    assert_close(categorical_kl(old, log_probs), categorical_kl(old_some, some))
    assert_close(categorical_entropy(log_probs), categorical_entropy(some))
    assert_close(discrete_sac_actor_loss(log_probs, values, 0.5), discrete_sac_actor_loss(some, values[[0, 2]], 0.5))
    total = categorical_kl(old, log_probs) + categorical_entropy(log_probs) + discrete_sac_actor_loss(log_probs, values, 0.5)
    assert torch.autograd.grad(total, logits)[0].isfinite().all()


def test_sampled_entropy_has_the_gradient_of_the_entropy():
    log_prob = leaf(-2.0, -0.5)
    entropy = sampled_entropy(log_prob)
    assert_close(entropy, torch.tensor([2.0, 0.5]))
    entropy.sum().backward()
    assert_close(log_prob.grad, torch.tensor([2.0, 0.5]))  # -log pi
    logits, other = leaf(0.3, -1.0, 2.0), leaf(0.3, -1.0, 2.0)
    log_probs = logits.log_softmax(-1)
    expected = (log_probs.exp().detach() * sampled_entropy(log_probs)).sum()  # the mean over actions drawn from the policy
    exact = categorical_entropy(other.log_softmax(-1))
    assert_close(expected, exact)
    expected.backward()
    exact.backward()
    assert_close(logits.grad, other.grad)


def test_dpg_loss():
    action, gradient = leaf(1.0, 2.0), leaf(3.0, 4.0)
    loss = dpg_loss(action, gradient)
    assert_close(loss, torch.tensor(-11.0))
    loss.backward()
    assert_close(action.grad, torch.tensor([-3.0, -4.0]))
    assert gradient.grad is None
    for clip, scale in ((1.0, 0.2), (10.0, 1.0)):  # the norm is 5
        action.grad = None
        dpg_loss(action, gradient, clip).backward()
        assert_close(action.grad, torch.tensor([-3.0, -4.0]) * scale)
    assert_close(dpg_loss(torch.ones(2, 3), torch.zeros(2, 3), 1.0), torch.zeros(2))


def test_sac_actor_loss():
    log_prob, value, alpha = leaf(-1.0, 2.0), leaf(2.0, 1.0), leaf(0.5)[0]
    loss = sac_actor_loss(log_prob, value, alpha)
    assert_close(loss, torch.tensor([-2.5, 0.0]))
    gradients = torch.autograd.grad(loss.sum(), (log_prob, value, alpha), allow_unused=True)
    assert_close(gradients[:2], (torch.tensor([0.5, 0.5]), torch.tensor([-1.0, -1.0])))
    assert gradients[2] is None


def test_discrete_sac_actor_loss():
    probs = torch.tensor([0.25, 0.75])
    log_probs, values, alpha = leaf(*probs.log()), leaf(1.0, 2.0), leaf(0.5)[0]
    loss = discrete_sac_actor_loss(log_probs, values, alpha)
    assert_close(loss, 0.5 * (0.25 * math.log(0.25) + 0.75 * math.log(0.75)) - torch.tensor(1.75))
    gradients = torch.autograd.grad(loss, (log_probs, values, alpha), allow_unused=True)
    assert_close(gradients[0], probs * (0.5 * (probs.log() + 1.0) - values.detach()))
    assert gradients[1:] == (None, None)


def test_discrete_sac_is_least_at_the_soft_greedy_policy():
    values = torch.tensor([1.0, 2.0, -1.0])
    logits = (values / 0.5).requires_grad_()
    loss = discrete_sac_actor_loss(logits.log_softmax(-1), values, 0.5)
    assert_close(loss, -soft_value(values, 0.5))
    loss.backward()
    assert_close(logits.grad, torch.zeros(3))


def test_temperature_loss():
    alpha, log_prob = leaf(2.0)[0], leaf(-1.0, -3.0)
    loss = temperature_loss(alpha, log_prob, -2.0)
    assert_close(loss, torch.tensor([6.0, 10.0]))  # -2 (-1 - 2), -2 (-3 - 2)
    gradients = torch.autograd.grad(loss.sum(), (alpha, log_prob), allow_unused=True)
    assert_close(gradients[0], torch.tensor(8.0))  # entropy 2 is above the target -2: gradient descent lowers alpha
    assert gradients[1] is None


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

    def more(log_probs, old_log_probs, values, coef):
        ratio, advantage, kl = log_probs.exp(), values, categorical_kl(old_log_probs, log_probs)
        losses = ppo_dual_clip_loss(ratio, advantage, coef) + ppo_kl_loss(ratio, advantage, old_log_probs, coef)
        losses = losses + sac_actor_loss(log_probs, values, coef) + temperature_loss(coef, log_probs, -2.0)
        others = discrete_sac_actor_loss(log_probs, values, coef) + sampled_entropy(log_probs).sum(-1)
        return losses, others + categorical_entropy(log_probs) + dpg_loss(log_probs, values, 1.0), adapted_kl_coef(coef, kl, 0.01)

    both = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1)).log_softmax(-1).unbind(0)
    coef = torch.tensor(0.3)
    assert_close(torch.compile(more, fullgraph=True, backend="aot_eager")(*both, coef), more(*both, coef))
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
        (lambda x: ppo_kl_loss(x, x, x[:, None], 1.0), r"kl must be of the shape of ratio, \[4\]; got \[4, 1\]"),
        (lambda x: categorical_kl(x, x[:2]), r"log_probs must be of the shape of old_log_probs"),
        (lambda x: sac_actor_loss(x, x[:, None], 0.1), r"action_value must be of the shape of log_prob, \[4\]; got \[4, 1\]"),
        (lambda x: dpg_loss(x, x[:2]), r"action_gradient must be of the shape of action"),
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


def test_other_wrong_coefficients_are_explained():
    x = torch.ones(4)
    with pytest.raises(ConfigError, match="dual_clip must be more than 1; got 0"):
        ppo_dual_clip_loss(x, x, 0.2, dual_clip=0.5)
    with pytest.raises(ConfigError, match="clip must be positive; got 0"):
        dpg_loss(x, x, 0)
    with pytest.raises(ConfigError, match="target must be positive; got 0"):
        adapted_kl_coef(x[0], x[0], 0)


@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
def test_a_huge_ratio_has_no_gradient_instead_of_none_at_all(advantage):
    log_prob = torch.tensor([0.0, 0.1], requires_grad=True)
    ratio = importance_ratio(log_prob, torch.tensor([-95.0, 0.0]))
    for loss in (ppo_clip_loss, lambda *args: ppo_dual_clip_loss(*args, 3.0)):
        value = loss(ratio, torch.full((2,), advantage), 0.2)
        (gradient,) = torch.autograd.grad(value.mean(), log_prob, retain_graph=True)
        assert value.isfinite().all()
        assert gradient.isfinite().all()
        assert gradient[0] == 0
