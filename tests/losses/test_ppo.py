"""PPO's numbers: worked by hand, against a slow reference, and against TorchRL."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from losses.cases import CASES, DISCRETE, actor, on_policy_batch, value
from reference import ppo as reference
from tensordict import TensorDict
from torch import nn
from torch.testing import assert_close

from rlbook import MLP, Actor, PPOLoss, ValueHead
from rlbook.errors import ConfigError
from rlbook.specs import Categorical


class Table(nn.Module):
    """A network whose outputs are its parameters, one row for each row of the batch."""

    def __init__(self, rows: torch.Tensor):
        super().__init__()
        self.rows = nn.Parameter(rows)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rows


def test_golden_values_and_gradients():
    # Two rows, both choices equally likely now. Row 0: ratio 1, A = 1, so -min(1, 1) = -1. Row 1: its choice once had probability
    # 1/4, so the ratio is 2; A = -1, and -min(-2, -1.2) = 2: the worse of the two counts. Mean 1/2.
    logits, values = Table(torch.zeros(2, 2)), Table(torch.zeros(2, 1))
    loss = PPOLoss(Actor(logits, Categorical(2)), ValueHead(values), entropy_coef=0.1, normalize_advantage=False)
    out = loss(
        TensorDict(
            {
                "observation": torch.zeros(2, 1),
                "action": torch.tensor([0, 1]),
                "action_log_prob": torch.tensor([0.5, 0.25]).log(),
                "advantage": torch.tensor([1.0, -1.0]),
                "value_target": torch.tensor([1.0, 3.0]),
            },
            [2],
        )
    )
    log2 = math.log(2)
    expected = {
        "loss_actor": 0.5,
        "loss_entropy": -0.1 * log2,
        "loss_value": 0.5 * (1 + 9) / 2,
        "entropy": log2,
        "approx_kl": (1 - log2) / 2,  # row 0: 0; row 1: 2 - 1 - log 2
        "clip_fraction": 0.5,
        "loss": 0.5 - 0.1 * log2 + 2.5,
    }
    assert_close(dict(out.items()), {name: torch.tensor(number) for name, number in expected.items()})
    out["loss"].backward()
    # d ratio / d logits = ratio (chosen - p): row 0: -1 (1/2, -1/2) / 2; row 1: 2 (-1/2, 1/2) / 2. The entropy is at its top.
    assert_close(logits.rows.grad, torch.tensor([[-0.25, 0.25], [-0.5, 0.5]]))
    assert_close(values.rows.grad, torch.tensor([[-0.5], [-1.5]]))  # 2 c_v (V - G) / 2


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_slow_reference(normalize, seed):
    generator = torch.Generator().manual_seed(seed)
    logits, values, advantage, target, noise = (
        torch.randn(40, *shape, dtype=torch.float64, generator=generator) for shape in ((3,), (1,), (), (), ())
    )
    action = torch.randint(3, (40,), generator=generator)
    old = logits.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1) + 0.3 * noise
    coefficients = {"clip_eps": 0.25, "entropy_coef": 0.125, "value_coef": 0.75}  # exact in float32, which the buffers are
    policy, critic = Table(logits), Table(values)
    loss = PPOLoss(Actor(policy, Categorical(3)), ValueHead(critic), normalize_advantage=normalize, **coefficients)
    data = {"action": action, "action_log_prob": old, "advantage": advantage, "value_target": target}
    out = loss(TensorDict({"observation": torch.zeros(40, 1), **data}, [40]))
    out["loss"].backward()
    arrays = [x.detach().numpy() for x in (logits, values.squeeze(-1), action, old, advantage, target)]
    expected, grad_logits, grad_value = reference.ppo(*arrays, normalize=normalize, **coefficients)
    assert 0.1 < expected["clip_fraction"] < 0.9
    for name, number in expected.items():
        assert_close(out[name].item(), number, rtol=1e-6, atol=1e-8)
    assert_close(policy.rows.grad, torch.from_numpy(grad_logits), rtol=1e-6, atol=1e-8)
    assert_close(critic.rows.grad.squeeze(-1), torch.from_numpy(grad_value), rtol=1e-6, atol=1e-8)


def test_nothing_is_learnt_beyond_the_clip_range():
    logits = Table(torch.zeros(1, 2))
    loss = PPOLoss(Actor(logits, Categorical(2)), clip_eps=0.2, entropy_coef=0.0, normalize_advantage=False)
    for old, advantage, moves in ((0.25, 1.0, False), (0.25, -1.0, True), (0.99, 1.0, True), (0.99, -1.0, False)):
        logits.rows.grad = None
        data = {"action": [0], "action_log_prob": [math.log(old)], "advantage": [advantage]}
        batch = TensorDict({"observation": torch.zeros(1, 1), **{key: torch.tensor(x) for key, x in data.items()}}, [1])
        loss(batch)["loss"].backward()
        assert bool(logits.rows.grad.any()) == moves, (old, advantage)


def test_the_actor_that_collected_has_ratio_one():
    policy, batch = actor(DISCRETE), on_policy_batch(DISCRETE)
    out = PPOLoss(policy)(policy(batch).detach())
    assert out["approx_kl"] == 0
    assert out["clip_fraction"] == 0


def test_a_shared_trunk_is_trained_by_both():
    trunk = MLP(8, 4)
    loss = PPOLoss(
        Actor(nn.Sequential(trunk, nn.Tanh(), nn.Linear(8, 3)), DISCRETE),
        ValueHead(nn.Sequential(trunk, nn.Tanh(), nn.Linear(8, 1))),
    )
    out = loss(on_policy_batch(DISCRETE))
    parts = [
        torch.autograd.grad(out[name], trunk[0].weight, retain_graph=True)[0]
        for name in ("loss_actor", "loss_entropy", "loss_value")
    ]
    assert all(part.any() for part in parts)
    assert_close(torch.autograd.grad(out["loss"], trunk[0].weight)[0], sum(parts))


def test_bare_networks_are_explained():
    with pytest.raises(ConfigError, match=r"actor must be an Actor; got MLP. .*Actor\(net, env.action_spec\)"):
        PPOLoss(MLP(2, 4))
    with pytest.raises(ConfigError, match=r"value must be a ValueHead; got MLP. .*ValueHead\(net\)"):
        PPOLoss(actor(DISCRETE), MLP(1, 4))


def test_equals_torchrl():
    pytest.importorskip("torchrl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensordict.nn import TensorDictModule
        from torchrl.modules import ProbabilisticActor, ValueOperator
        from torchrl.objectives import ClipPPOLoss

        from rlbook.interop import to_torchrl

        policy, critic, batch = actor(DISCRETE), value(), on_policy_batch(DISCRETE)
        theirs = ClipPPOLoss(
            ProbabilisticActor(
                TensorDictModule(policy.net, ["observation"], ["logits"]),
                in_keys=["logits"],
                distribution_class=torch.distributions.Categorical,
                return_log_prob=True,
            ),
            ValueOperator(critic.net, in_keys=["observation"]),
            clip_epsilon=0.2,
            entropy_coeff=0.01,
            critic_coeff=0.5,
            loss_critic_type="l2",
            normalize_advantage=False,
        )
        expected = theirs(to_torchrl(batch))
    ours = PPOLoss(policy, critic, clip_eps=0.2, entropy_coef=0.01, value_coef=0.5, normalize_advantage=False)(batch)
    for name, other in {"loss_actor": "loss_objective", "loss_value": "loss_critic", "loss_entropy": "loss_entropy"}.items():
        assert_close(ours[name], expected[other])
    for name in ("entropy", "clip_fraction"):
        assert_close(ours[name], expected[name])
    parameters = [*policy.parameters(), *critic.parameters()]
    their_loss = sum(expected[name] for name in ("loss_objective", "loss_critic", "loss_entropy"))
    flat = [*theirs.actor_network_params.flatten_keys().values(), *theirs.critic_network_params.flatten_keys().values()]
    their_grads = torch.autograd.grad(their_loss, [p for p in flat if p.requires_grad])
    our_grads = torch.autograd.grad(ours["loss"], parameters)
    for ours_one, theirs_one in zip(sorted(our_grads, key=_size), sorted(their_grads, key=_size), strict=True):
        assert_close(ours_one, theirs_one)


def _size(x: torch.Tensor) -> tuple[int, float]:
    return x.numel(), x.norm().item()


def test_every_ppo_case_runs():
    assert all(case.make()(case.batch())["loss"].isfinite() for case in CASES.values())
