"""TRPO's step: it is the natural one, it stays within the KL, it improves the objective, and it trains the value."""

from __future__ import annotations

import copy

import pytest
import torch
from losses.casekit import CONTINUOUS, DISCRETE, actor, net, on_policy_batch, value
from tensordict import TensorDict
from torch import nn
from torch.testing import assert_close

from rlbook import Actor, TRPOLoss, TRPOUpdate, ValueHead
from rlbook.errors import ConfigError, NonFiniteError
from rlbook.specs import Categorical

both = pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])


def own_batch(policy: Actor, spec, rows: int = 200) -> TensorDict:
    """A batch of the policy itself, where advantages depend on what was done."""
    torch.manual_seed(1)
    batch = on_policy_batch(spec, rows)
    policy(batch)
    batch = batch.detach()
    action = batch["action"].float()
    score = action if spec is DISCRETE else action.sum(-1)
    batch["advantage"] = score * batch["observation"][:, 0]
    return batch


def kl_to(old: Actor, new: Actor, batch: TensorDict) -> torch.Tensor:
    return old.dist(batch).kl(new.dist(batch)).mean()


def adam(loss_fn: TRPOLoss, lr: float = 1e-2) -> torch.optim.Adam:
    assert loss_fn.value is not None
    return torch.optim.Adam(loss_fn.value.parameters(), lr=lr)


class Tilted(nn.Module):
    """Three logits of a bandit from two parameters, in float64."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ torch.stack((self.weight[0], self.weight[1], self.weight.sum())).unsqueeze(0)


def test_the_step_is_the_exact_fisher_solve():
    # logits = x (w1, w2, w1 + w2): the Fisher matrix and the gradient follow from p alone.
    policy = Actor(Tilted(), Categorical(3))
    x = torch.tensor([[0.5], [1.0], [-2.0], [1.5]], dtype=torch.float64)
    action, advantage = torch.tensor([0, 1, 2, 0]), torch.tensor([1.0, -0.5, 2.0, 0.3], dtype=torch.float64)
    batch = TensorDict({"observation": x, "action": action, "advantage": advantage}, [4])
    batch["action_log_prob"] = policy.dist(batch).log_prob(action).detach()
    jacobian = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    p = policy.dist(batch).probs.detach()
    fisher, gradient = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for i in range(4):
        design = jacobian * x[i]
        fisher += design.T @ (torch.diag(p[i]) - torch.outer(p[i], p[i])) @ design / 4
        gradient += advantage[i] * design.T @ (nn.functional.one_hot(action[i], 3) - p[i]) / 4
    for damping in (0.0, 0.1):
        start, damped = policy.net.weight.detach().clone(), fisher + damping * torch.eye(2, dtype=torch.float64)
        direction = torch.linalg.solve(damped, gradient)
        step = (2 * 1e-4 / (direction @ damped @ direction)).sqrt() * direction
        moved = copy.deepcopy(policy)
        out = TRPOUpdate(TRPOLoss(moved, normalize_advantage=False), max_kl=1e-4, damping=damping)(batch)
        assert out["step_scale"] >= 0.64  # the KL is its quadratic model but for terms of third order
        assert_close(moved.net.weight.detach() - start, out["step_scale"].double() * step, rtol=1e-5, atol=1e-9)
        assert_close(out["grad_norm"], gradient.norm())


@both
@pytest.mark.parametrize("max_kl", [1e-3, 1e-2, 0.1])
def test_keeps_the_bound_and_improves(spec, max_kl):
    policy = actor(spec)
    before, batch = copy.deepcopy(policy), own_batch(policy, spec)
    loss_fn = TRPOLoss(policy)
    was = loss_fn(batch)["loss_actor"].item()
    out = TRPOUpdate(loss_fn, max_kl=max_kl)(batch)
    kl = kl_to(before, policy, batch)
    assert 0.05 * max_kl < kl <= max_kl
    assert_close(out["kl"], kl.detach())
    now = loss_fn(batch)["loss_actor"].item()
    assert now < was
    assert_close(out["improvement"].item(), was - now, rtol=1e-4, atol=1e-6)
    assert_close(out["loss_actor"].item(), was)


def test_a_gradient_step_of_the_same_kl_gains_less():
    policy = actor(DISCRETE)
    with torch.no_grad():
        policy.net[0].weight[:, 0] *= 10  # badly scaled, as real observations are
        policy.net[-1].bias += torch.tensor([3.0, 0.0, 0.0])
    plain, before, batch = copy.deepcopy(policy), copy.deepcopy(policy), own_batch(policy, DISCRETE)
    natural = TRPOUpdate(TRPOLoss(policy), max_kl=1e-3, damping=1e-4)(batch)
    loss_fn = TRPOLoss(plain)
    was = loss_fn(batch)["loss_actor"]
    grads = torch.autograd.grad(was, list(plain.parameters()))
    low, high = 0.0, 100.0
    for _ in range(60):  # how far along the gradient the same KL is
        rate = (low + high) / 2
        with torch.no_grad():
            for p, start, grad in zip(plain.parameters(), before.parameters(), grads, strict=True):
                p.copy_(start - rate * grad)
        low, high = (rate, high) if kl_to(before, plain, batch) < natural["kl"] else (low, rate)
    gain = was - loss_fn(batch)["loss_actor"]
    assert gain > 0
    assert natural["improvement"] > 1.2 * gain


def test_no_good_step_leaves_the_policy_alone():
    policy = actor(DISCRETE)
    batch = own_batch(policy, DISCRETE)
    batch["advantage"] = torch.ones(200)  # nothing is better than anything: the gradient is one of rounding
    before = copy.deepcopy(policy.state_dict())
    out = TRPOUpdate(TRPOLoss(policy, normalize_advantage=True))(batch)
    assert out["step_scale"] == out["kl"] == out["improvement"] == 0
    assert_close(policy.state_dict(), before, rtol=0, atol=0)


@both
def test_the_value_is_trained_and_the_policy_is_not_by_it(spec):
    policy, critic = actor(spec), value()
    batch = own_batch(policy, spec)
    batch["value_target"] = batch["observation"].sum(-1)
    loss_fn, alone = TRPOLoss(policy, critic), copy.deepcopy(policy)
    update = TRPOUpdate(loss_fn, adam(loss_fn), value_epochs=5, value_size=64)
    first = update(batch)["loss_value"]
    TRPOUpdate(TRPOLoss(alone))(batch)
    assert_close(policy.state_dict(), alone.state_dict())  # the step is that of the policy alone
    for _ in range(5):
        last = update(batch)["loss_value"]
    assert last < 0.2 * first
    weight = policy.net[0].weight.detach().clone()
    assert update.value_update is not None
    update.value_update(batch)
    assert_close(policy.net[0].weight, weight, rtol=0, atol=0)


def test_a_saved_policy_is_loaded_into_the_update_again():
    policy, batch = actor(DISCRETE), own_batch(actor(DISCRETE), DISCRETE)
    update = TRPOUpdate(TRPOLoss(policy))
    saved = copy.deepcopy(policy.state_dict())
    one = update(batch)["improvement"]
    assert not torch.equal(policy.state_dict()["net.0.weight"], saved["net.0.weight"])
    policy.load_state_dict(saved)
    assert_close(update(batch)["improvement"], one)


def test_broken_numbers_are_refused():
    policy = actor(DISCRETE)
    batch, before = own_batch(policy, DISCRETE), copy.deepcopy(policy.state_dict())
    batch["observation"][3, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="The loss and the natural step must be finite"):
        TRPOUpdate(TRPOLoss(policy))(batch)
    assert_close(policy.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_kl": 0.0}, "max_kl must be positive; got 0.0"),
        ({"damping": -1.0}, "damping must be not negative; got -1.0"),
        ({"iterations": 0}, "iterations must be positive; got 0"),
        ({"shrink": 1.0}, r"shrink must be in \(0, 1\); got 1.0"),
        ({"max_grad_norm": -1.0, "optimizer": True}, "max_grad_norm must be positive or None"),
    ],
)
def test_bad_settings_are_explained(options, match):
    loss_fn = TRPOLoss(actor(DISCRETE), value())
    optimizer = adam(loss_fn) if options.pop("optimizer", False) else None
    with pytest.raises(ConfigError, match=match):
        TRPOUpdate(loss_fn, optimizer, **options)


def test_parameters_must_be_apart():
    loss_fn = TRPOLoss(actor(DISCRETE), value())
    with pytest.raises(ConfigError, match=r"over parameters of loss_fn.value; got one that holds others"):
        TRPOUpdate(loss_fn, torch.optim.Adam(loss_fn.parameters()))
    trunk = net(8)
    shared = TRPOLoss(Actor(nn.Sequential(trunk, nn.Linear(8, 3)), DISCRETE), ValueHead(nn.Sequential(trunk, nn.Linear(8, 1))))
    with pytest.raises(ConfigError, match=r"actor and value must be apart; got two that share parameters"):
        TRPOUpdate(shared)
