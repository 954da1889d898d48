"""The off-policy actor-critic losses: numbers worked by hand, what makes each of them different, and bad arguments."""

from __future__ import annotations

import math

import pytest
import torch
from losses.casekit import CONTINUOUS, actor, deterministic, net, qvalue, qvalue_actor, transitions, value
from losses.cases_actor_critic import CASES, critics, quantile_critics
from tensordict import TensorDict
from torch import Tensor, nn

from rlbook import MLP, Actor, QValueActor, QValueHead, ValueHead, ensemble
from rlbook.errors import ConfigError
from rlbook.losses import (
    CrossQLoss,
    DDPGLoss,
    DiscreteSACLoss,
    MPOLoss,
    REDQLoss,
    SACLoss,
    SACv1Loss,
    SoftUpdate,
    TD3Loss,
    TQCLoss,
    compile_update,
)
from rlbook.losses.targets import target_pairs
from rlbook.modules import BatchRenorm, Ensemble, QuantileQValueHead
from rlbook.specs import Bounded, Categorical, Unbounded

LOG_2PI = math.log(2 * math.pi)


def assert_close(actual, expected) -> None:
    """Compare numbers of either kind in single precision, which the losses work in."""
    torch.testing.assert_close(torch.as_tensor(actual).float(), torch.as_tensor(expected).float())


class Scale(nn.Module):
    """A critic ``k a + b`` of one action, for each of its outputs."""

    def __init__(self, *k: float, b: float = 0.0):
        super().__init__()
        self.k, self.b = nn.Parameter(torch.tensor(k)), b

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.k * action + self.b


class Constant(nn.Module):
    """A network with the same outputs in every state, its parameters."""

    def __init__(self, *outputs: float):
        super().__init__()
        self.outputs = nn.Parameter(torch.tensor(outputs))

    def forward(self, observation: Tensor) -> Tensor:
        return self.outputs.expand(*observation.shape[:-1], len(self.outputs))


def one_row(action: Tensor, reward: float = 1.0, terminated: bool = False) -> TensorDict:
    state = torch.zeros(1, 1)
    nxt = {"observation": state, "reward": torch.tensor([reward]), "terminated": torch.tensor([terminated])}
    return TensorDict({"observation": state, "action": action, "next": nxt}, [1])


def gaussian(mean: float, log_std: float = 0.0) -> Actor:
    return Actor(Constant(mean, log_std), Unbounded(1))


def zeros(**noise: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name, shape in noise.items()}


# ---- DDPG and TD3 ------------------------------------------------------------------------------------------------------------
def test_golden_ddpg():
    policy, critic = Actor(Constant(0.5), Unbounded(1)), Scale(2.0)
    out = DDPGLoss(policy, QValueHead(critic), gamma=0.5)(one_row(torch.tensor([[3.0]])))
    # y = 1 + 0.5 * 2 * 0.5 = 1.5; Q = 6; the actor's action is worth 1
    assert_close(out["loss_value"].item(), 4.5**2)
    assert_close(out["loss_actor"].item(), -1.0)
    assert_close(out["td_error"], torch.tensor([4.5]))
    out["loss"].backward()
    assert_close(critic.k.grad, torch.tensor([2 * 4.5 * 3]))  # 2 (Q - y) a, and nothing from the actor's term
    assert_close(policy.net.outputs.grad, torch.tensor([-2.0]))  # -dQ/da


def test_golden_td3():
    policy = Actor(Constant(0.0), Bounded(-2.0, 2.0, (1,)))  # tanh(0) is the middle
    pair = Ensemble([Scale(1.0), Scale(1.0, b=-0.25)])
    loss = TD3Loss(policy, QValueHead(pair), gamma=1.0, noise_scale=0.2, noise_clip=0.5)
    batch = one_row(torch.tensor([[1.0]]), reward=0.0)
    # half the range is 2: 0.2 * 1 * 2 = 0.4 of noise, and the lower critic says 0.15; the critics say 1 and 0.75 of the action
    assert_close(loss(batch, {"next_action": torch.ones(1, 1)})["loss_value"].item(), 0.85**2 + 0.6**2)
    # 10 standard deviations: clipped at 0.5 * 2 = 1, of which the lower critic says 0.75
    assert_close(loss(batch, {"next_action": 10 * torch.ones(1, 1)})["loss_value"].item(), 0.25**2)
    policy.net.outputs.data.fill_(100.0)  # at the bound already: 2 (the target network has its own weights)
    loss.target_actor.net.outputs.fill_(100.0)
    assert_close(loss(batch, {"next_action": torch.ones(1, 1)})["loss_value"].item(), 0.75**2 + 1)
    out = loss(batch, {"next_action": torch.zeros(1, 1)})
    assert_close(out["loss_actor"].item(), -2.0)  # the first critic's value, not the lower one


def test_td3_delays_the_actor_and_all_targets():
    loss = TD3Loss(deterministic(), qvalue(2))
    optimizer = torch.optim.Adam([{"params": part.parameters()} for part in (loss.actor, loss.qvalue)], lr=0.01)
    target = SoftUpdate(loss, 0.5, every=2)
    update = compile_update(loss, optimizer, every={"loss_actor": 2}, target=target, compile=False)
    state = lambda: {name: x.clone() for name, x in loss.state_dict().items()}  # noqa: E731
    before = state()
    for step in range(1, 5):
        out = update(transitions(CONTINUOUS))
        after = state()
        changed = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
        every = {"actor", "qvalue", "target_actor", "target_qvalue"}
        assert changed == ({"qvalue"} if step % 2 else every)
        assert ("loss_actor" in out.keys()) == (step % 2 == 0)
        before = after


# ---- SAC ---------------------------------------------------------------------------------------------------------------------
def test_golden_sac():
    policy, pair = gaussian(0.5), Ensemble([Scale(2.0), Scale(3.0)])
    loss = SACLoss(policy, QValueHead(pair), gamma=0.5, alpha=0.5, target_entropy=1.0)
    out = loss(one_row(torch.tensor([[1.0]])), zeros(action=(1, 1), next_action=(1, 1)))
    log_prob = -LOG_2PI / 2  # of a standard normal at its mean
    y = 1 + 0.5 * (min(1.0, 1.5) - 0.5 * log_prob)
    assert_close(out["loss_value"].item(), (2 - y) ** 2 + (3 - y) ** 2)
    assert_close(out["loss_actor"].item(), 0.5 * log_prob - 1.0)
    assert_close(out["loss_alpha"].item(), math.log(0.5) * (-log_prob - 1.0))
    assert_close(out["entropy"].item(), -log_prob)
    assert_close(out["alpha"].item(), 0.5)
    out["loss"].backward()
    assert_close(policy.net.outputs.grad, torch.tensor([-2.0, -0.5]))  # -dQ_1/da; -alpha, for log_prob is -log_std + const
    assert_close([critic.k.grad.item() for critic in pair], [2 * (2 - y), 2 * (3 - y)])
    assert_close(loss.log_alpha.grad.item(), -log_prob - 1.0)


def test_golden_first_version_of_sac():
    policy, state_value = gaussian(0.5), Constant(4.0)
    loss = SACv1Loss(policy, QValueHead(Scale(2.0)), ValueHead(state_value), gamma=0.5, alpha=0.5)
    out = loss(one_row(torch.tensor([[1.0]])), zeros(action=(1, 1)))
    log_prob = -LOG_2PI / 2
    assert_close(out["loss_value"].item(), (2 - (1 + 0.5 * 4)) ** 2)
    error = 4 - (1.0 - 0.5 * log_prob)
    assert_close(out["loss_state_value"].item(), error**2)
    assert "loss_alpha" not in out.keys()
    out["loss"].backward()
    assert_close(state_value.outputs.grad, torch.tensor([2 * error]))
    assert_close(policy.net.outputs.grad, torch.tensor([-2.0, -0.5]))  # the value's term does not reach the policy


def test_golden_discrete_sac():
    policy, pair = Actor(Constant(0.0, 0.0), Categorical(2)), Ensemble([Constant(1.0, 4.0), Constant(2.0, 3.0)])
    values = QValueActor(pair, Categorical(2))
    loss = DiscreteSACLoss(policy, values, gamma=0.5, alpha=0.5, target_entropy=0.25)
    out = loss(one_row(torch.tensor([1])))
    entropy = math.log(2)
    soft_value = (1 + 3) / 2 + 0.5 * entropy  # the least of each action: 1 and 3
    y = 1 + 0.5 * soft_value
    assert_close(out["loss_value"].item(), (4 - y) ** 2 + (3 - y) ** 2)
    assert_close(out["loss_actor"].item(), -soft_value)
    assert_close(out["loss_alpha"].item(), math.log(0.5) * (entropy - 0.25))
    out["loss"].backward()
    # d/dlogit_a = p_a (alpha log p_a - Q_a - sum_b p_b (alpha log p_b - Q_b)) = 1/2 (-1 + 2), 1/2 (-3 + 2)
    assert_close(policy.net.outputs.grad, torch.tensor([0.5, -0.5]))


# ---- REDQ, DroQ, CrossQ ------------------------------------------------------------------------------------------------------
def test_redq_takes_the_least_of_those_drawn_and_the_mean_of_all():
    four = QValueHead(Ensemble([Scale(1.0), Scale(2.0), Scale(3.0), Scale(6.0)]))
    loss = REDQLoss(gaussian(1.0), four, subset=2, gamma=1.0, alpha=1e-9)
    noise = zeros(action=(1, 1), next_action=(1, 1)) | {"critics": torch.tensor([2, 3])}
    out = loss(one_row(torch.tensor([[0.0]]), reward=0.0), noise)
    assert_close(out["loss_value"].item(), 4 * 3.0**2)  # every critic says 0, the target is the less of 3 and 6
    assert_close(out["loss_actor"].item(), -3.0)  # the mean of 1, 2, 3, 6
    seen = {tuple(sorted(loss.draw(transitions(CONTINUOUS))["critics"].tolist())) for _ in range(200)}
    assert seen == {(i, j) for i in range(4) for j in range(i + 1, 4)}  # all pairs, never one critic twice


def test_droq_draws_new_masks_for_each_batch():
    loss = REDQLoss(actor(CONTINUOUS), critics(2, norm=nn.LayerNorm, dropout=0.5), subset=None)
    batch = transitions(CONTINUOUS)
    noise = loss.prepare(batch)
    assert "critics" not in noise
    first, same = loss(batch, noise)["loss_value"], loss(batch, noise)["loss_value"]
    assert first == same
    loss.prepare(batch)
    assert loss(batch, noise)["loss_value"] != first


def test_crossq_has_no_targets_and_learns_the_statistics_of_both_states():
    policy = Actor(net(4), CONTINUOUS)
    head = QValueHead(ensemble(MLP(1, 6, [16], norm=BatchRenorm, norm_input=True), 2))
    loss, batch = CrossQLoss(policy, head), transitions(CONTINUOUS)
    assert not [name for name, _ in loss.named_buffers() if name.startswith("target_q")]
    noise = loss.prepare(batch)
    loss(batch, noise)["loss"].backward()
    norm = head.net[0][0]
    next_action = policy.dist(batch["next"]).sample(noise["next_action"])
    now, nxt = ((batch["observation"], batch["action"]), (batch["next", "observation"], next_action))
    both = torch.cat((torch.cat(now, -1), torch.cat(nxt, -1)))
    assert_close(norm.running_mean, norm.momentum * both.mean(0))
    assert norm.steps == 1  # once for both states; the actor's term goes by the running statistics
    with pytest.raises(ConfigError, match="target networks"):
        SoftUpdate(loss)


# ---- TQC ---------------------------------------------------------------------------------------------------------------------
def test_golden_tqc():
    # Two critics of two atoms each: at a' = 1 they say (1, 2) and (0, 9). Of the pool 0, 1, 2, 9 the upper half is dropped.
    pair = QuantileQValueHead(Ensemble([Scale(1.0, 2.0), Scale(0.0, 9.0)]), 2)
    loss = TQCLoss(gaussian(1.0), pair, drop=1, gamma=1.0, alpha=1e-9)
    out = loss(one_row(torch.tensor([[0.0]]), reward=0.0), zeros(action=(1, 1), next_action=(1, 1)))
    # all atoms are 0 at a = 0: for tau 1/4 and 3/4 the errors are 0 and 1, Huber 0 and 1/2, so mean 1/16 and 3/16; over two
    # quantiles 1/8 for each of two critics
    assert_close(out["loss_value"].item(), 0.25)
    assert_close(out["loss_actor"].item(), -3.0)  # the mean of 1, 2, 0, 9: nothing is dropped
    terminal = loss(one_row(torch.tensor([[0.0]]), reward=0.0, terminated=True), zeros(action=(1, 1), next_action=(1, 1)))
    assert_close(terminal["loss_value"].item(), 0.0)


# ---- MPO ---------------------------------------------------------------------------------------------------------------------
def test_golden_mpo():
    loss = MPOLoss(gaussian(0.0), QValueHead(Scale(1.0)), gamma=0.5, samples=2, temperature=1.0, epsilon=0.1)
    draws = torch.tensor([[[0.0], [math.log(3.0)]]])  # worth 0 and log 3: weights 1/4 and 3/4
    out = loss(one_row(torch.tensor([[2.0]])), {"actions": draws, "next_actions": draws})
    y = 1 + 0.5 * math.log(3) / 2
    assert_close(out["loss_value"].item(), (2 - y) ** 2)
    assert_close(out["loss_temperature"].item(), 0.1 + math.log((1 + 3) / 2))
    fit = 0.75 * math.log(3) ** 2 / 2 + LOG_2PI / 2
    assert_close(out["loss_actor"].item(), 2 * fit)  # of the mean and of the deviation; the policy is its target: no divergence
    assert_close(out["loss_alpha"].item(), 10 * 0.01 + 100 * 1e-4)
    assert out["kl_mean"] == out["kl_std"] == 0
    out["loss"].backward()
    # d/dmean = -sum q z; d/dlog_std = 1 - sum q z^2
    assert_close(loss.actor.net.outputs.grad, torch.tensor([-0.75 * math.log(3), 1 - 0.75 * math.log(3) ** 2]))


def test_mpo_pulls_back_a_policy_that_has_gone_too_far():
    loss = MPOLoss(gaussian(0.0), QValueHead(Scale(0.0)), samples=4, epsilon_mean=0.01)
    loss.actor.net.outputs.data[0] = 1.0  # KL 1/2 from its target
    draws = torch.tensor([[[-1.0], [1.0], [-1.0], [1.0]]])
    out = loss(one_row(torch.tensor([[0.0]])), {"actions": draws, "next_actions": draws})
    assert_close(out["kl_mean"].item(), 0.5)
    out["loss"].backward()
    assert loss.dual_mean.grad < 0  # descent raises the multiplier
    assert loss.dual_std.grad > 0
    assert loss.actor.net.outputs.grad[0] > 0  # descent moves the mean back


# ---- the update --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", CASES)
def test_a_compiled_update_equals_the_eager_one(name, quick_compile):
    batches = [CASES[name].batch() for _ in range(4)]

    def learnt(compile: bool) -> dict[str, Tensor]:
        torch.manual_seed(1)
        loss = CASES[name].make()
        parts = [getattr(loss, part) for trained in loss.trains.values() for part in trained]
        owned = [part.parameters() if isinstance(part, nn.Module) else [part] for part in parts if not is_buffer(part)]
        optimizer = torch.optim.Adam([{"params": parameters} for parameters in owned], lr=0.01, eps=1e-3)
        target = SoftUpdate(loss, 0.5, every=2) if target_pairs(loss) else None
        update = compile_update(loss, optimizer, target=target, every={"loss_actor": 2}, compile=compile)
        for batch in batches:
            update(batch)
        assert update.compiled == compile
        return {key: x.clone() for key, x in loss.state_dict().items()}

    eager, compiled = learnt(False), learnt(True)
    for key, x in eager.items():  # to 1 % of a step; without that eps Adam would make a gradient of mere rounding as large as any
        torch.testing.assert_close(compiled[key], x, rtol=1e-4, atol=1e-4)
    torch.manual_seed(1)
    start = CASES[name].make().state_dict()
    assert not torch.equal(start["actor.net.0.weight"], eager["actor.net.0.weight"])


def is_buffer(part: object) -> bool:
    """Whether what a term would train stays as it is: a temperature that is not learnt."""
    return isinstance(part, Tensor) and not isinstance(part, nn.Parameter)


# ---- bad arguments -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: SACLoss(net(4), qvalue()), r"actor must be an Actor; got MLP. Wrap the network: Actor\(net, env.action_spec\)"),
        (lambda: SACLoss(actor(CONTINUOUS), net(1, 6)), r"qvalue must be a QValueHead; got MLP. Wrap the network: QValueHead"),
        (lambda: DDPGLoss(deterministic(), qvalue_actor()), "got QValueActor. For discrete actions use another loss"),
        (lambda: SACLoss(actor(CONTINUOUS), qvalue(), alpha=0.0), "alpha must be positive; got 0.0"),
        (lambda: SACv1Loss(actor(CONTINUOUS), qvalue(), net(1)), r"value must be a ValueHead; got MLP. .*ValueHead\(net\)"),
        (lambda: SACv1Loss(actor(CONTINUOUS), qvalue(), qvalue()), "value must be a ValueHead; got QValueHead"),
        (lambda: DiscreteSACLoss(net(3), qvalue_actor()), "actor must be an Actor; got MLP"),
        (lambda: DiscreteSACLoss(actor(Categorical(3)), qvalue()), "must be a QValueActor; got QValueHead.*use SACLoss"),
        (lambda: REDQLoss(actor(CONTINUOUS), qvalue(3), subset=4), r"subset must be in 1 .. 3, the number of critics; got 4"),
        (lambda: TQCLoss(actor(CONTINUOUS), qvalue(2)), "must be a QuantileQValueHead; got QValueHead. make_qvalue"),
        (lambda: TQCLoss(actor(CONTINUOUS), quantile_critics(), drop=4), r"drop must be an integer in 0 .. 3; got 4"),
        (lambda: MPOLoss(actor(CONTINUOUS), qvalue(), samples=1), "samples must be an integer of at least 2; got 1"),
        (lambda: MPOLoss(actor(CONTINUOUS), qvalue(), epsilon=0.0), "epsilon must be positive; got 0.0"),
        (
            lambda: MPOLoss(deterministic(), qvalue())(transitions(CONTINUOUS)),
            r"The policy of MPO must be normal, squashed or not; got Delta. .*make_actor\(env, std=\"state\"\)",
        ),
    ],
)
def test_bad_arguments_are_explained(make, match):
    with pytest.raises(ConfigError, match=match):
        make()


def test_a_state_value_reads_its_own_entries():
    head = ValueHead(net(1), in_keys=["state"])
    loss = SACv1Loss(actor(CONTINUOUS), qvalue(), head)
    assert {"state", ("next", "state")} <= set(loss.in_keys)
    assert {"state", "observation"} <= {key for key in loss.in_keys if isinstance(key, str)}
    assert set(loss.in_keys) - set(SACLoss(actor(CONTINUOUS), qvalue()).in_keys) == {"state", ("next", "state")}
    assert isinstance(value(), ValueHead)
