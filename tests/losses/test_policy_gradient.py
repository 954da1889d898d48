"""REINFORCE, A2C, V-trace, TRPO's objective and PPO's variants: worked by hand, against a slow reference, against TorchRL."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import pytest
import torch
from losses.casekit import CONTINUOUS, DISCRETE, actor, net, on_policy_batch, value
from losses.cases_policy import whole_batch
from reference import policy_gradient as reference
from tensordict import TensorDict
from torch import nn
from torch.testing import assert_close

from rlbook import A2CLoss, Actor, PPGAuxiliaryLoss, PPOKLLoss, PPOLoss, ReinforceLoss, TRPOLoss, ValueHead, VTraceLoss
from rlbook.errors import ConfigError
from rlbook.specs import Categorical

LOG2 = math.log(2)


class Table(nn.Module):
    """A network whose outputs are its parameters, one row for each row of the batch."""

    def __init__(self, rows: torch.Tensor):
        super().__init__()
        self.rows = nn.Parameter(rows)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rows


def hand_made(loss, **options):
    """Two rows, both choices equally likely now; row 1's choice once had probability 1/4, so that its ratio is 2."""
    logits, values = Table(torch.zeros(2, 2)), Table(torch.zeros(2, 1))
    options = {"entropy_coef": 0.1, "normalize_advantage": False, **options}
    batch = {
        "observation": torch.zeros(2, 1),
        "action": torch.tensor([0, 1]),
        "action_log_prob": torch.tensor([0.5, 0.25]).log(),
        "action_params": torch.tensor([[0.0, 0.0], [math.log(3), 0.0]]),  # old probabilities (1/2, 1/2) and (3/4, 1/4)
        "advantage": torch.tensor([1.0, -1.0]),
        "value_target": torch.tensor([1.0, 3.0]),
        "state_value": torch.tensor([0.0, 2.0]),
    }
    return loss(Actor(logits, Categorical(2)), ValueHead(values), **options), TensorDict(batch, [2]), logits, values


@pytest.mark.parametrize(
    ("loss", "options", "actor_loss", "grad_logits"),
    [
        # -A log(1/2): log 2 and -log 2. Gradients -A (chosen - p) / 2 rows.
        (ReinforceLoss, {}, 0.0, [[-0.25, 0.25], [-0.25, 0.25]]),
        (A2CLoss, {}, 0.0, [[-0.25, 0.25], [-0.25, 0.25]]),
        (VTraceLoss, {}, 0.0, [[-0.25, 0.25], [-0.25, 0.25]]),
        # -r A: -1 and 2, mean 1/2; the gradient of row 1 counts twice.
        (TRPOLoss, {}, 0.5, [[-0.25, 0.25], [-0.5, 0.5]]),
        # and 4 KL, in row 1: 3/4 log(3/2) + 1/4 log(1/2); its gradient 4 (p - old) / 2 = (-1/2, 1/2).
        (PPOKLLoss, {"kl_coef": 4.0}, 0.5 + 2 * (0.75 * math.log(1.5) - 0.25 * LOG2), [[-0.25, 0.25], [-1.0, 1.0]]),
        # A bad action whose ratio 2 counts for 1.5 only, and without gradient.
        (PPOLoss, {"dual_clip": 1.5}, 0.25, [[-0.25, 0.25], [0.0, 0.0]]),
    ],
)
def test_golden_values_and_gradients(loss, options, actor_loss, grad_logits):
    loss_fn, batch, logits, values = hand_made(loss, **options)
    out = loss_fn(batch)
    assert_close(out["loss_actor"].item(), actor_loss, atol=1e-6, rtol=1e-6)
    assert_close(out["loss_entropy"].item(), -0.1 * LOG2)
    assert_close(out["loss_value"].item(), 0.5 * (1 + 9) / 2)
    out["loss"].backward()
    assert_close(logits.rows.grad, torch.tensor(grad_logits))
    assert_close(values.rows.grad, torch.tensor([[-0.5], [-1.5]]))


def test_golden_clipped_value():
    # V = 0. Row 0 was 0 and has not moved: (0 - 1)^2. Row 1 was 2 and may move to 1 only: (0 - 3)^2 is worse than (1 - 3)^2.
    loss_fn, batch, _, values = hand_made(PPOLoss, value_clip=1.0)
    assert_close(loss_fn(batch)["loss_value"].item(), 0.5 * (1 + 9) / 2)
    batch["value_target"] = torch.tensor([1.0, -1.0])  # now the moved value is nearer: (1 + 1)^2 counts, without gradient
    out = loss_fn(batch)
    assert_close(out["loss_value"].item(), 0.5 * (1 + 4) / 2)
    out["loss"].backward()
    assert_close(values.rows.grad, torch.tensor([[-0.5], [0.0]]))


def test_golden_auxiliary_phase():
    # Old policy (3/4, 1/4), now (1/2, 1/2): KL = 3/4 log(3/2) - 1/4 log 2. Heads at 0 with target 2: 4 / 2 each.
    logits, auxiliary, values = Table(torch.zeros(1, 2)), Table(torch.zeros(1, 1)), Table(torch.zeros(1, 1))
    loss_fn = PPGAuxiliaryLoss(Actor(logits, Categorical(2)), ValueHead(auxiliary), ValueHead(values), clone_coef=2.0)
    params = torch.tensor([[math.log(3), 0.0]])
    out = loss_fn(
        TensorDict({"observation": torch.zeros(1, 1), "action_params": params, "value_target": torch.tensor([2.0])}, [1])
    )
    kl = 0.75 * math.log(1.5) - 0.25 * LOG2
    expected = {"loss_auxiliary": 2.0, "loss_clone": 2 * kl, "loss_value": 2.0, "kl": kl, "loss": 4 + 2 * kl}
    assert_close(dict(out.items()), {name: torch.tensor(number) for name, number in expected.items()})
    out["loss"].backward()
    assert_close(logits.rows.grad, torch.tensor([[-0.5, 0.5]]))  # 2 (p - old)
    assert_close(auxiliary.rows.grad, torch.tensor([[-2.0]]))
    assert_close(values.rows.grad, torch.tensor([[-2.0]]))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", ["reinforce", "a2c", "v_trace", "trpo", "kl", "dual_clip", "value_clip"])
def test_equals_the_slow_reference(name, normalize):
    generator = torch.Generator().manual_seed(3)
    logits, old_logits, values, old_values, advantage, target = (
        torch.randn(40, *shape, dtype=torch.float64, generator=generator) for shape in ((3,), (3,), (1,), (), (), ())
    )
    action = torch.randint(3, (40,), generator=generator)
    old = old_logits.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)
    o = old.numpy()
    loss, options, row = {
        "reinforce": (ReinforceLoss, {}, reference.plain_row),
        "a2c": (A2CLoss, {}, reference.plain_row),
        "v_trace": (VTraceLoss, {}, reference.plain_row),
        "trpo": (TRPOLoss, {}, reference.ratio_row(o)),
        "kl": (PPOKLLoss, {"kl_coef": 0.5}, reference.kl_row(o, old_logits.numpy(), 0.5)),
        "dual_clip": (PPOLoss, {"clip_eps": 0.25, "dual_clip": 1.5}, reference.dual_row(o, 0.25, 1.5)),
        "value_clip": (PPOLoss, {"clip_eps": 0.25, "value_clip": 0.5}, reference.dual_row(o, 0.25, math.inf)),
    }[name]
    coefficients = {"entropy_coef": 0.125, "value_coef": 0.75}  # exact in float32, which the buffers are
    policy, critic = Table(logits), Table(values)
    options = {**options, **coefficients}
    loss_fn = loss(Actor(policy, Categorical(3)), ValueHead(critic), normalize_advantage=normalize, **options)
    data = {"action": action, "action_log_prob": old, "action_params": old_logits, "advantage": advantage}
    data |= {"value_target": target, "state_value": old_values, "observation": torch.zeros(40, 1)}
    out = loss_fn(TensorDict(data, [40]))
    out["loss"].backward()
    arrays = [x.detach().numpy() for x in (logits, values.squeeze(-1), action, advantage, target)]
    clip = {"old_value": old_values.numpy(), "value_clip": 0.5} if name == "value_clip" else {}
    expected, grad_logits, grad_value = reference.on_policy(*arrays, row, normalize=normalize, **coefficients, **clip)
    for term, number in expected.items():
        assert_close(out[term].item(), number, rtol=1e-6, atol=1e-8)
    assert_close(policy.rows.grad, torch.from_numpy(grad_logits), rtol=1e-6, atol=1e-8)
    assert_close(critic.rows.grad.squeeze(-1), torch.from_numpy(grad_value), rtol=1e-6, atol=1e-8)


# ---- identities --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_at_ratio_one_every_surrogate_has_the_policy_gradient(spec):
    policy = actor(spec)
    batch = policy(on_policy_batch(spec)).detach()  # acted by the policy that is learnt: every ratio is 1
    batch["action_params"] = policy.read(batch).detach()

    def gradient(loss_fn) -> list[torch.Tensor]:
        out = loss_fn(batch, only={"loss_actor"})
        return list(torch.autograd.grad(out["loss"], list(policy.parameters())))

    expected = gradient(A2CLoss(policy, normalize_advantage=True))
    assert any(grad.abs().max() > 1e-3 for grad in expected)
    for other in (
        PPOLoss(policy),
        PPOLoss(policy, dual_clip=3.0),
        PPOKLLoss(policy, kl_coef=100.0),  # the KL is 0 there, at its least
        TRPOLoss(policy),
        VTraceLoss(policy, normalize_advantage=True),
        ReinforceLoss(policy),
    ):
        assert_close(gradient(other), expected, rtol=1e-4, atol=1e-6)


def test_away_from_ratio_one_they_differ():
    policy, batch = actor(DISCRETE), on_policy_batch(DISCRETE)
    losses = (A2CLoss(policy, normalize_advantage=True), PPOLoss(policy), TRPOLoss(policy))
    grads = [torch.autograd.grad(loss(batch)["loss_actor"], policy.net[-1].weight)[0] for loss in losses]
    assert all((a - b).abs().max() > 1e-4 for a, b in pairwise(grads))


def test_a_sampled_kl_has_the_mean_gradient_of_the_exact_one():
    torch.manual_seed(0)
    old, policy = actor(DISCRETE), actor(DISCRETE)
    batch = TensorDict({"observation": torch.randn(1, 4).expand(40_000, 4)}, [40_000])
    old(batch)
    batch = batch.detach()
    batch["advantage"] = torch.zeros(40_000)
    loss_fn = PPOKLLoss(policy, kl_coef=1.0, entropy_coef=0.0, normalize_advantage=False)
    weight = policy.net[-1].weight
    (sampled,) = torch.autograd.grad(loss_fn(batch)["loss"], weight)
    batch["action_params"] = old.read(batch).detach()
    (exact,) = torch.autograd.grad(loss_fn(batch)["loss"], weight)
    assert_close(sampled, exact, rtol=0.05, atol=0.003)
    assert exact.abs().max() > 0.01


def test_the_penalty_follows_the_kl():
    loss_fn = PPOKLLoss(actor(DISCRETE), target_kl=0.01)
    for kl, expected in ((0.001, 0.5), (0.02, 1.0), (0.02, 2.0), (0.01, 2.0)):
        loss_fn.adapt(torch.tensor(kl))
        assert loss_fn.kl_coef == expected


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: A2CLoss(net(3)), r"actor must be an Actor; got MLP"),
        (lambda: A2CLoss(actor(DISCRETE), net(1)), r"value must be a ValueHead; got MLP"),
        (
            lambda: PPOLoss(actor(DISCRETE), dual_clip=1.0),
            r"dual_clip must be more than 1, or None; got 1.0",
        ),
        (lambda: PPOKLLoss(actor(DISCRETE), kl_coef=0.0), r"kl_coef must be positive; got 0.0"),
        (lambda: PPOKLLoss(actor(DISCRETE), target_kl=-1.0), r"target_kl must be positive; got -1.0"),
        (lambda: PPGAuxiliaryLoss(net(3), value(), value()), r"actor must be an Actor; got MLP"),
        (lambda: PPGAuxiliaryLoss(actor(DISCRETE), net(1), value()), r"auxiliary must be a ValueHead; got MLP"),
    ],
)
def test_mistakes_are_explained(make, match):
    with pytest.raises(ConfigError, match=match):
        make()


# ---- TorchRL -----------------------------------------------------------------------------------------------------------------
def torchrl_modules(policy: Actor, critic: ValueHead):
    from tensordict.nn import TensorDictModule
    from torchrl.modules import ProbabilisticActor, ValueOperator

    module = TensorDictModule(policy.net, ["observation"], ["logits"])
    kind = torch.distributions.Categorical
    theirs = ProbabilisticActor(module, in_keys=["logits"], distribution_class=kind, return_log_prob=True)
    return theirs, ValueOperator(critic.net, in_keys=["observation"])


@pytest.mark.parametrize("name", ["reinforce", "a2c", "kl"])
def test_equals_torchrl(name):
    pytest.importorskip("torchrl")
    policy, critic, batch = actor(DISCRETE), value(), whole_batch(DISCRETE)
    batch["action_log_prob"] = policy.dist_of(batch["action_params"]).log_prob(batch["action"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchrl.objectives import A2CLoss as TheirA2C
        from torchrl.objectives import KLPENPPOLoss
        from torchrl.objectives import ReinforceLoss as TheirReinforce

        from rlbook.interop import to_torchrl

        data = to_torchrl(batch)
        common = {"entropy_coeff": 0.01, "critic_coeff": 0.5, "loss_critic_type": "l2"}
        if name == "reinforce":
            theirs = TheirReinforce(*torchrl_modules(policy, critic), loss_critic_type="l2")
            ours = ReinforceLoss(policy, critic, value_coef=1.0, normalize_advantage=False)
            names = {"loss_actor": "loss_actor", "loss_value": "loss_value"}
        elif name == "a2c":
            theirs, ours = TheirA2C(*torchrl_modules(policy, critic), **common), A2CLoss(policy, critic)
            names = {"loss_actor": "loss_objective", "loss_value": "loss_critic", "loss_entropy": "loss_entropy"}
        else:
            ours = PPOKLLoss(policy, critic, kl_coef=0.5, normalize_advantage=False)
            options = {"beta": 0.5, "normalize_advantage": False, "dtarg": ours(batch)["kl"].item()}
            # With another target theirs adapts the weight at once, before the backward pass has read it.
            theirs = KLPENPPOLoss(*torchrl_modules(policy, critic), **options, **common)
            data["logits"] = batch["action_params"]
            names = {"loss_actor": "loss_objective", "loss_value": "loss_critic", "loss_entropy": "loss_entropy"}
        expected = theirs(data)
    out = ours(batch)
    for mine, other in names.items():
        assert_close(out[mine], expected[other])
    their_loss = sum(expected[other] for other in names.values())
    total = sum(out[mine] for mine in names)
    for module, params in ((policy, theirs.actor_network_params), (critic, theirs.critic_network_params)):
        flat = {".".join(key.split(".")[-2:]): p for key, p in params.flatten_keys(".").items()}
        for key, p in module.net.named_parameters():
            (mine,), (other,) = (torch.autograd.grad(x, y, retain_graph=True) for x, y in ((total, p), (their_loss, flat[key])))
            assert_close(mine, other)
