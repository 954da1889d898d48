"""TD(0), TD(lambda) and V-trace on rollouts, and what all estimators share: groups of agents and normalised values."""

from __future__ import annotations

import pytest
import torch
from reference import returns as reference
from tensordict import TensorDict
from torch.testing import assert_close
from toys import Clock, Constant

from rlbook import GAE, MLP, TD0, Actor, CartPole, QValueActor, TDLambda, ValueHead, VTrace
from rlbook.errors import ConfigError, MissingKeyError, SpecError
from rlbook.estimators import QLambda
from rlbook.functional import n_step_return
from rlbook.modules import PopArt, RunningValueNorm, make_actor, make_value
from rlbook.specs import Categorical

GAMMA, LAMBDA = 0.9, 0.8


@pytest.fixture
def env() -> CartPole:
    return CartPole(3, max_steps=15, seed=0)


def arrays_of(data, value) -> list:
    """What a reference reads: both values by whole forward passes."""
    nxt, values = data["next"], (value.value(data), value.value(data["next"]))
    return [x.detach().numpy() for x in (nxt["reward"], *values, nxt["terminated"], nxt["done"])]


# ---- each against its definition -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("td_lambda", [0.0, 0.8, 1.0])
def test_td_lambda_equals_the_slow_reference(td_lambda, env):
    data, value = env.rollout(40), make_value(env)
    reward, v, next_v, terminated, done = arrays_of(data, value)
    expected = torch.from_numpy(reference.td_lambda_return(reward, next_v, terminated, done, GAMMA, td_lambda)).float()
    out = TDLambda(value, GAMMA, td_lambda)(data)
    assert_close(out["value_target"], expected, rtol=1e-4, atol=1e-4)
    assert_close(out["advantage"], expected - torch.from_numpy(v), rtol=1e-4, atol=1e-4)


def test_td0_is_td_lambda_of_zero_and_td_lambda_is_gae(env):
    data, value = env.rollout(40), make_value(env)
    for one, other in (
        (TD0(value, GAMMA), TDLambda(value, GAMMA, 0.0)),
        (TDLambda(value, GAMMA, LAMBDA), GAE(value, GAMMA, LAMBDA)),
    ):
        for key in ("state_value", "advantage", "value_target"):
            assert_close(one(data)[key], other(data)[key], rtol=1e-4, atol=1e-4)


def test_v_trace_equals_the_slow_reference(env):
    acting, learnt, value = make_actor(env), make_actor(env), make_value(env)
    torch.nn.init.normal_(learnt.net[-1].weight)
    data = env.rollout(40, acting)
    log_prob = learnt.dist(data).log_prob(data["action"]) - data["action_log_prob"]
    ratio = log_prob.exp().detach()
    assert ratio.max() > 1.5
    assert ratio.min() < 0.7
    advantage, target = reference.v_trace(*arrays_of(data, value), ratio.numpy(), GAMMA, 1.2, 0.9, LAMBDA)
    out = VTrace(learnt, value, GAMMA, rho_clip=1.2, c_clip=0.9, td_lambda=LAMBDA)(data)
    assert_close(out["advantage"], torch.from_numpy(advantage).float(), rtol=1e-4, atol=1e-4)
    assert_close(out["value_target"], torch.from_numpy(target).float(), rtol=1e-4, atol=1e-4)
    assert not out["advantage"].requires_grad


def test_v_trace_of_the_acting_policy_is_the_n_step_return(env):
    actor, value = make_actor(env), make_value(env)
    data = env.rollout(40, actor)
    nxt, out = data["next"], VTrace(actor, value, GAMMA)(data)
    n_step = n_step_return(nxt["reward"], value.value(nxt), nxt["terminated"], nxt["done"], GAMMA, 40)
    assert_close(out["value_target"], n_step.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [TD0, lambda v, g: TDLambda(v, g, 0.7)], ids=["TD0", "TDLambda"])
def test_a_constant_reward_is_worth_one_over_one_minus_gamma(make):
    right = ValueHead(lambda x: torch.full_like(x, 10.0))
    assert_close(make(right, 0.9)(Constant(2).rollout(23))["value_target"], torch.full((2, 23), 10.0))
    mistaken = make(right, 0.9)(Constant(2, terminates=True).rollout(23))["value_target"]
    assert mistaken[:, 4].eq(1.0).all()


# ---- groups of agents ------------------------------------------------------------------------------------------------------
def team(data: TensorDict, agents: int = 3) -> TensorDict:
    """The rollout as seen by agents that all observe the same, times their number."""
    scale = torch.arange(1.0, agents + 1)
    for root in (data, data["next"]):
        observation = root["observation"].unsqueeze(2) * scale.view(agents, 1)
        mask = torch.rand(*root.batch_size, agents, 2) < 0.6  # some allow nothing
        root["agents"] = TensorDict({"observation": observation, "action_mask": mask}, root.batch_size)
    data["agents", "action"] = data["action"].unsqueeze(2).expand(-1, -1, agents)
    data["agents", "action_log_prob"] = torch.full((*data.batch_size, agents), -1.0)
    return data


def of_one(data: TensorDict, agent: int) -> TensorDict:
    """The rollout of one agent by itself."""
    own = data.exclude("agents", ("next", "agents"))
    for root, source in ((own, data), (own["next"], data["next"])):
        root["observation"] = source["agents", "observation"][:, :, agent]
        root["action_mask"] = source["agents", "action_mask"][:, :, agent]
    own["action_log_prob"] = data["agents", "action_log_prob"][:, :, agent]
    if ("next", "agents", "reward") in data.keys(True):
        own["next", "reward"] = data["next", "agents", "reward"][:, :, agent]
    return own


@pytest.mark.parametrize("own_reward", [False, True])
@pytest.mark.parametrize("name", ["GAE", "TD0", "TDLambda", "VTrace", "QLambda", "Watkins"])
def test_a_group_is_estimated_as_its_agents_are(name, own_reward):
    data, value = team(Clock(4).rollout(20)), ValueHead(MLP(1, 3))
    actor, qvalue = (kind(MLP(2, 3), Clock().action_spec) for kind in (Actor, QValueActor))
    if own_reward:
        data["next", "agents", "reward"] = torch.randn(4, 20, 3)
    make = {
        "GAE": lambda **group: GAE(value, GAMMA, LAMBDA, **group),
        "TD0": lambda **group: TD0(value, GAMMA, **group),
        "TDLambda": lambda **group: TDLambda(value, GAMMA, LAMBDA, **group),
        "VTrace": lambda **group: VTrace(actor, value, GAMMA, **group),
        "QLambda": lambda **group: QLambda(qvalue, GAMMA, LAMBDA, **group),
        "Watkins": lambda **group: QLambda(qvalue, GAMMA, LAMBDA, watkins=True, **group),
    }[name]
    out = make(group="agents")(data)
    assert out["agents"].batch_size == (4, 20, 3)
    for agent in range(3):
        alone = make()(of_one(data, agent))
        for key in ("state_value", "advantage", "value_target"):
            assert alone[key].isfinite().all()
            assert_close(out["agents", key][..., agent], alone[key], rtol=1e-4, atol=1e-3)
    assert "advantage" not in out
    assert "advantage" not in data["agents"]
    assert data["agents"].batch_size == (4, 20)


def test_a_critic_of_the_whole_state_serves_every_agent():
    data, value = team(Clock(4).rollout(20)), ValueHead(MLP(1, 4), ["observation", "state"])
    data["state"], data["next", "state"] = data["observation"][..., :1], data["next", "observation"][..., :1]
    out = GAE(value, GAMMA, LAMBDA, group="agents")(data)
    inputs = data["agents", "observation"][:, :, 1], data["state"]
    assert_close(out["agents", "state_value"][..., 1], value.net(*inputs).squeeze(-1).detach())


def test_a_group_that_is_not_there_is_explained():
    with pytest.raises(MissingKeyError, match="group must be an entry that holds entries of agents; got 'team'"):
        GAE(ValueHead(MLP(1, 3)), group="team")(Clock(4).rollout(5))


def test_an_entry_without_agents_is_explained():
    data = team(Clock(4).rollout(5))
    data["next", "agents", "reward"] = data["next", "reward"]
    with pytest.raises(SpecError, match=r"next.agents.reward must be of shape \[4, 5, 3\]"):
        GAE(ValueHead(MLP(1, 3)), group="agents")(data)


# ---- normalised values -----------------------------------------------------------------------------------------------------
def scaled(env) -> TensorDict:
    data = env.rollout(40)
    data["next", "reward"] = data["next", "reward"] * 100 + 3
    return data


@pytest.mark.parametrize("name", ["PopArt", "RunningValueNorm"])
def test_returns_are_estimated_in_units_of_the_reward(name, env):
    data, value = scaled(env), make_value(env)
    norm = PopArt(value, beta=0.5) if name == "PopArt" else RunningValueNorm(beta=0.5)
    norm.update(torch.tensor([50.0, 400.0]))
    unnormalised = ValueHead(lambda x: norm.denormalize(value.net(x)))
    expected = GAE(unnormalised, GAMMA, LAMBDA)(data)
    mean, std = norm.mean.clone(), norm.std.clone()
    out = GAE(value, GAMMA, LAMBDA, value_norm=norm)(data)
    assert_close(out["advantage"], expected["advantage"], rtol=1e-4, atol=1e-2)
    assert_close(norm.denormalize(out["value_target"]), expected["value_target"], rtol=1e-4, atol=1e-2)
    assert norm.mean != mean
    assert norm.std != std
    if name == "PopArt":  # the critic says the same in the new units: its loss is that of the normalised error
        assert_close(value.value(data), out["state_value"], rtol=1e-4, atol=1e-4)


def test_the_first_targets_have_mean_zero_and_deviation_one(env):
    norm = RunningValueNorm()
    target = GAE(None, GAMMA, 1.0, value_norm=norm)(
        ValueHead(lambda x: x[..., :1] * 0)(scaled(env)).detach().clone().update({"next": {"state_value": torch.zeros(3, 40)}})
    )["value_target"]
    assert_close(target.mean(), torch.zeros(()), atol=1e-5, rtol=0)
    assert_close(target.std(unbiased=False), torch.ones(()), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: TD0(None, gamma=2.0), r"gamma must be in \[0, 1\]"),
        (lambda: TDLambda(None, td_lambda=-1.0), r"td_lambda must be in \[0, 1\]"),
        (lambda: VTrace(MLP(2, 3), None), "actor must be an Actor; got MLP"),
        (lambda: VTrace(Actor(MLP(2, 3), Clock().action_spec), None, rho_clip=0.0), "rho_clip must be positive"),
        (lambda: GAE(None, value_norm=MLP(1, 3)), "value_norm must be a RunningValueNorm or None; got MLP"),
    ],
)
def test_errors(make, match):
    with pytest.raises(ConfigError, match=match):
        make()


def test_rollouts_of_another_layout_are_explained(env):
    data, value = env.rollout(5), make_value(env)
    for change, match in (
        (("reward", "terminated", "done"), r"reward must be of shape \[3, 5\], .* got \[3, 5, 1\]\. Drop a trailing 1"),
        (("done",), r"done must be of the shape of reward.*Drop the trailing 1: done.squeeze\(-1\)"),
    ):
        other = data.clone()
        for key in change:
            other["next", key] = other["next", key].unsqueeze(-1)
        for estimator in (GAE(value), TDLambda(value)):
            with pytest.raises(SpecError, match=match):
                estimator(other)
    with pytest.raises(SpecError, match=r"reward must be of shape \[3, 0\], with at least one step"):
        GAE(value)(data[:, :0])
    masked = data.clone()
    masked["action_mask"] = torch.ones(3, 5, 2, dtype=torch.bool)
    with pytest.raises(MissingKeyError, match=r"A rollout for QLambda must be one with \['next.action_mask'\]"):
        QLambda(QValueActor(MLP(2, 4), env.action_spec))(masked)


def test_a_missing_log_probability_is_explained(env):
    with pytest.raises(MissingKeyError, match=r"A rollout for VTrace must be one with \['action_log_prob'\]"):
        VTrace(make_actor(env), make_value(env))(env.rollout(5))


@pytest.mark.parametrize("watkins", [False, True])
def test_q_lambda_bootstraps_with_the_best_allowed_action(watkins):
    qvalue, allowed = QValueActor(MLP(3, 4), Categorical(3)), torch.tensor([True, False, False]).expand(2, 5, 3)
    flags = torch.zeros(2, 5, dtype=torch.bool)
    nxt = {"observation": torch.randn(2, 5, 4), "action_mask": allowed, "reward": torch.zeros(2, 5)}
    nxt |= {"terminated": flags, "done": flags.clone()}
    here = torch.cat([torch.randn(2, 1, 4), nxt["observation"][:, :-1]], 1)
    data = TensorDict({"observation": here, "action_mask": allowed, "action": flags.long(), "next": nxt}, [2, 5])
    out = QLambda(qvalue, GAMMA, 0.0, watkins=watkins)(data)
    assert_close(out["state_value"], qvalue.values(data)[..., 0].detach())
    assert_close(out["value_target"], GAMMA * qvalue.values(data["next"])[..., 0].detach())
