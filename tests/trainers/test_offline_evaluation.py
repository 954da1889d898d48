"""Judging a policy from stored data: exact values by dynamic programming, the table of estimators, and what is explained."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor, nn
from torch.testing import assert_close

from rlbook import MLP, Actor, GridWorld, Pendulum
from rlbook.errors import ConfigError, MissingKeyError, NonFiniteError, SpecError
from rlbook.modules import make_actor
from rlbook.specs import Categorical, Unbounded
from rlbook.trainers import evaluate_offline, fitted_q_evaluation

GAMMA = 0.9
WORLD = GridWorld(["S..", ".H.", "..G"], slip=0.2, hole_reward=-1.0, step_reward=-0.1)


class Table(nn.Module):
    """An action value for each state and action."""

    def __init__(self, states: int, actions: int = 4):
        super().__init__()
        self.q = nn.Parameter(torch.zeros(states, actions, dtype=torch.float64))

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return self.q[state, action]


def policy(logits: Tensor) -> Actor:
    return Actor(lambda state: logits[state], Categorical(logits.shape[-1]))


def right_and_down(temperature: float = 1.0) -> Actor:
    return policy(torch.tensor([0.0, 1.0, 1.0, 0.0]).div(temperature).expand(9, 4))


def solve(env: GridWorld, actor: Actor, gamma: float = GAMMA) -> tuple[Tensor, Tensor]:
    """Return the exact ``Q`` and ``V`` of an actor by solving Bellman's equation."""
    P, R, terminal = (x.double() if x.is_floating_point() else x for x in env.transition_model())
    probs = actor.dist({"observation": torch.arange(len(R))}).probs.double()
    goes_on = torch.where(terminal, 0.0, 1.0).double()
    Pi, r = torch.einsum("sa,sat->st", probs, P) * goes_on, (probs * R).sum(-1)
    v = torch.linalg.solve(torch.eye(len(R)) - gamma * Pi, r)
    return R + gamma * (P * goes_on) @ v, v


def transitions(**entries: list) -> TensorDict:
    """Return TED data from lists; ``s``, ``a``, ``r``, ``then``, ``terminated``, ``done`` and optionally ``log_prob``."""
    x = {key: torch.tensor(value) for key, value in entries.items()}
    nxt = {"observation": x["then"], "reward": x["r"], "terminated": x["terminated"], "done": x["done"]}
    root = {"observation": x["s"], "action": x["a"], "next": nxt}
    if "log_prob" in x:
        root["action_log_prob"] = x["log_prob"]
    return TensorDict(root, x["s"].shape)


newton = partial(torch.optim.LBFGS, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-15)
exactly = {"batch_size": None, "steps": 1, "optimizer": newton}


def collect(seed: int) -> TensorDict:
    """Return episodes of a policy that goes right and down more often than left and up."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        env = GridWorld(WORLD.map, 32, slip=0.2, hole_reward=-1.0, step_reward=-0.1, seed=seed)
        return env.rollout(60, right_and_down())


WORLD_DATA = collect(seed=0)

# ---------------------------------------------------------------- fitted Q evaluation


def test_fqe_is_dynamic_programming_where_every_transition_was_seen():
    env = GridWorld(["S.", ".G"], step_reward=-0.1)
    P, R, terminal = env.transition_model()
    s, a = (x.flatten() for x in torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"))
    keep = ~terminal[s]
    s, a = s[keep], a[keep]
    then = P.argmax(-1)[s, a]
    over = terminal[then]
    data = TensorDict({"observation": s, "action": a}, s.shape)
    data["next"] = TensorDict({"observation": then, "reward": R[s, a], "terminated": over, "done": over}, s.shape)
    actor = policy(torch.randn(4, 4))
    table = Table(4)
    fitted = fitted_q_evaluation(data, actor, table, GAMMA, iterations=250, **exactly)
    q, v = solve(env, actor)
    assert_close(table.q[~terminal], q[~terminal], rtol=0.0, atol=1e-6)
    assert_close(fitted.state_value({"observation": torch.arange(3)}), v[:3], rtol=0.0, atol=1e-6)
    assert fitted.history[-1]["loss"] < 1e-9
    assert len(fitted.history) == 250


def test_fqe_from_random_data_of_a_slippery_world():
    env = GridWorld(WORLD.map, 16, slip=0.2, hole_reward=-1.0, step_reward=-0.1, seed=0)
    actor = right_and_down(0.5)
    data = env.rollout(500)
    fitted = fitted_q_evaluation(data, actor, Table(9), GAMMA, iterations=40, **exactly)
    _, v = solve(env, actor)
    assert abs(fitted.estimate.value - v[0]) < 0.05
    assert abs(fitted.estimate.value - solve(env, policy(torch.zeros(9, 4)))[1][0]) > 0.1  # not that of the policy that acted
    assert_close(fitted.state_value({"observation": torch.tensor([0])}).item(), fitted.estimate.value)


def test_fqe_goes_on_after_a_time_out_unless_told():
    # One state that pays 1 and never ends, cut after 3 steps: worth 1 / (1 - 0.5) = 2.
    # Cut where done, one step in three has no future: Q = 1 + 0.5 * 2/3 Q, Q = 1.5.
    forever = [[0] * 3] * 2
    data = transitions(
        s=forever, a=forever, then=forever, r=[[1.0] * 3] * 2, terminated=[[False] * 3] * 2, done=[[False, False, True]] * 2
    )
    for bootstrap, want in ((True, 2.0), (False, 1.5)):
        fitted = fitted_q_evaluation(
            data, policy(torch.zeros(1, 1)), Table(1, 1), 0.5, iterations=40, bootstrap=bootstrap, **exactly
        )
        assert_close(fitted.estimate.value, want, rtol=0.0, atol=1e-6)


def test_fqe_with_continuous_actions():
    # A bandit that pays -(a - 1)^2; the policy is a normal with mean 0.5 and deviation 0.1: worth -(0.25 + 0.01).
    action = torch.randn(400, 1)
    data = TensorDict({"observation": torch.zeros(400, 1), "action": action}, (400,))
    over = torch.ones(400, dtype=torch.bool)
    reward = -(action.squeeze(-1) - 1).square()
    data["next"] = TensorDict({"observation": torch.zeros(400, 1), "reward": reward, "terminated": over, "done": over}, (400,))
    actor = Actor(lambda x: torch.tensor([0.5, math.log(0.1)]).expand(len(x), 2), Unbounded(1))

    class Quadratic(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 1)

        def forward(self, observation: Tensor, action: Tensor) -> Tensor:
            return self.linear(torch.cat([action, action.square()], -1))

    fitted = fitted_q_evaluation(data, actor, Quadratic(), 0.9, iterations=3, action_samples=64, **exactly)
    assert abs(fitted.estimate.value + 0.26) < 0.01
    assert fitted.estimate.low < -0.26 < fitted.estimate.high


@settings(max_examples=10, deadline=None)
@given(st.floats(-1e6, 1e6), st.integers(0, 8))
def test_what_follows_a_terminal_step_is_not_read(junk, state):
    data = WORLD_DATA.clone()
    over = data["next", "terminated"]
    assert over.any()
    data["next", "observation"][over] = state
    actor, fits = right_and_down(), []
    for version in (WORLD_DATA, data):
        table = Table(9)
        fits.append(fitted_q_evaluation(version, actor, table, GAMMA, iterations=2, **exactly))
    assert fits[0].estimate == fits[1].estimate


# ---------------------------------------------------------------- the table


@pytest.fixture(scope="module")
def fitted():
    other = collect(seed=1000)
    return fitted_q_evaluation(other, right_and_down(0.7), Table(9), GAMMA, iterations=40, **exactly)


def test_every_estimator_finds_the_value(fitted):
    truth = solve(WORLD, fitted.policy)[1][0].item()
    result = evaluate_offline(WORLD_DATA, fitted.policy, GAMMA, fitted=fitted)
    assert set(result.estimates) == {"behavior", "IS", "WIS", "PDIS", "WPDIS", "DR", "WDR", "FQE"}
    for name, (value, low, high) in result.estimates.items():
        assert low < value < high or name == "FQE"  # there is one initial state
        if name != "behavior":
            assert abs(value - truth) < 0.15, name
            assert name == "FQE" or low < truth < high, name
    behaviour = solve(WORLD, right_and_down())[1][0]
    assert result.estimates["behavior"].low < behaviour < result.estimates["behavior"].high
    width = {name: high - low for name, (_, low, high) in result.estimates.items()}
    assert width["DR"] < 0.8 * min(width["PDIS"], width["IS"])
    assert 1 < result.effective_sample_size[-1] < len(result.contributions["IS"].per_episode)
    assert_close(result.mean_ratio[0].item(), 1.0, rtol=0.1, atol=0.0)
    for name in result.estimates:
        assert f"\n{name} " in str(result)
    assert "90% interval" in str(evaluate_offline(WORLD_DATA, fitted.policy, GAMMA, level=0.9))


def test_what_completes_an_episode_is_no_return_of_the_data(fitted):
    """The tail of a truncated episode is the target policy's value: no part of what the behaviour policy was paid."""
    data = WORLD_DATA[:, :40].clone()
    data["next", "truncated"][:, -1] = data["next", "done"][:, -1] = True
    without = evaluate_offline(data, fitted.policy, GAMMA)
    result = evaluate_offline(data, fitted.policy, GAMMA, fitted=fitted)
    assert result.estimates["behavior"] == without.estimates["behavior"]
    assert result.estimates["WPDIS"] != without.estimates["WPDIS"]


def test_the_policy_that_acted_has_the_mean_return_of_the_data():
    result = evaluate_offline(WORLD_DATA, right_and_down(), GAMMA, interval="student-t")
    assert_close(result.mean_ratio, torch.ones_like(result.mean_ratio), rtol=0.0, atol=1e-5)
    for estimate in result.estimates.values():
        assert_close(torch.tensor(estimate), torch.tensor(result.estimates["behavior"]), rtol=0.0, atol=1e-4)


def test_flat_data_and_rows_of_episodes_agree():
    whole = WORLD_DATA.clone()
    whole["next", "done"][:, -1] = True  # so that no row goes on in the next one
    a, b = (evaluate_offline(x, right_and_down(0.7), GAMMA) for x in (whole, whole.reshape(-1)))
    assert a.estimates == b.estimates


def test_a_given_behaviour_replaces_the_stored_log_probabilities():
    want = evaluate_offline(WORLD_DATA, right_and_down(0.7), GAMMA)
    got = evaluate_offline(WORLD_DATA.exclude("action_log_prob"), right_and_down(0.7), GAMMA, behavior=right_and_down())
    for name, estimate in want.estimates.items():
        assert_close(torch.tensor(got.estimates[name]), torch.tensor(estimate), rtol=1e-4, atol=1e-4)


def test_what_an_episode_is_worth_after_it_is_cut():
    # Rewards 1; rows: terminated, truncated by the clock, cut off by the data (with one whole episode first). Q is 10 everywhere.
    data = transitions(
        s=[[0, 0], [0, 0], [0, 0]],
        a=[[0, 0], [0, 0], [0, 0]],
        then=[[0, 0], [0, 0], [0, 0]],
        r=[[1.0, 1.0]] * 3,
        terminated=[[False, True], [False, False], [True, False]],
        done=[[False, True], [False, True], [True, False]],
        log_prob=[[0.0, 0.0]] * 3,
    )
    actor, table = policy(torch.zeros(1, 1)), Table(1, 1)
    fitted = fitted_q_evaluation(data, actor, table, 0.5, iterations=1, **exactly)
    table.q.data.fill_(10.0)
    result = evaluate_offline(data, actor, 0.5, fitted=fitted)
    assert_close(result.contributions["IS"].per_episode, torch.tensor([1.5, 1.5 + 0.25 * 10, 1.0, 1.0 + 0.5 * 10]).double())
    assert_close(result.contributions["FQE"].per_episode, torch.full((4,), 10.0).double())
    assert_close(evaluate_offline(data, actor, 0.5).contributions["IS"].per_episode, torch.tensor([1.5, 1.5, 1.0]).double())


def test_continuous_actions():
    env = Pendulum(num_envs=8, seed=0)
    torch.manual_seed(0)
    behaviour, target = make_actor(env), make_actor(env)
    data = env.rollout(20, behaviour)
    fitted = fitted_q_evaluation(data, target, MLP(out_features=1, num_cells=16), 0.9, iterations=3, steps=10)
    result = evaluate_offline(data, target, 0.9, fitted=fitted)
    assert len(result.contributions["DR"].per_episode) == 8
    assert all(math.isfinite(x) for estimate in result.estimates.values() for x in estimate)


# ---------------------------------------------------------------- mistakes


def test_mistakes_are_explained(fitted):
    actor, data = fitted.policy, WORLD_DATA
    with pytest.raises(MissingKeyError, match=r"action_log_prob, or with a behavior; .*behaviour cloning.*pass behavior=actor"):
        evaluate_offline(data.exclude("action_log_prob"), actor, GAMMA)
    with pytest.raises(MissingKeyError, match=r"transitions with \['next.reward'\]"):
        evaluate_offline(data.exclude(("next", "reward")), actor, GAMMA)
    with pytest.raises(ConfigError, match=r"policy must be one with dist\(td\); got Greedy"):
        evaluate_offline(data, actor.greedy, GAMMA)
    with pytest.raises(SpecError, match=r"\[N, T\] or \[T\], not empty; got \[\]"):
        evaluate_offline(data[0, 0], actor, GAMMA)
    with pytest.raises(ConfigError, match=r"fitted must be of the same policy and gamma=0.5; got one of gamma=0.9"):
        evaluate_offline(data, actor, 0.5, fitted=fitted)
    with pytest.raises(ConfigError, match="got one of another policy"):
        evaluate_offline(data, right_and_down(), GAMMA, fitted=fitted)
    with pytest.raises(ConfigError, match='interval must be "bca", "percentile" or "student-t"; got \'normal\''):
        evaluate_offline(data, actor, GAMMA, interval="normal")
    with pytest.raises(ConfigError, match="at least 2 whole episodes; got none that is done"):
        evaluate_offline(data[:, :1], actor, GAMMA)
    certain = policy(torch.tensor([0.0, -math.inf, -math.inf, -math.inf]).expand(9, 4))
    with pytest.raises(NonFiniteError, match="rules out an action that was taken"):
        evaluate_offline(data, actor, GAMMA, behavior=certain)
    broken = data.clone()
    broken["next", "reward"][0, 0] = math.nan
    with pytest.raises(NonFiniteError, match=r"next.reward must be finite; got 1 of 1920 that are not"):
        fitted_q_evaluation(broken, actor, Table(9), GAMMA)


def test_mistakes_in_the_fit_are_explained():
    actor, data = right_and_down(), WORLD_DATA
    with pytest.raises(SpecError, match=r"The output of qvalue must be \[1\] or \[1, 1\]; got \[1, 4\].*gather"):
        fitted_q_evaluation(data, actor, _AllActions(), GAMMA)
    with pytest.raises(ConfigError, match="iterations must be a positive integer; got 0"):
        fitted_q_evaluation(data, actor, Table(9), GAMMA, iterations=0)
    with pytest.raises(ConfigError, match=r"gamma must be in \[0, 1\]; got 99"):
        fitted_q_evaluation(data, actor, Table(9), 99)
    with pytest.raises(NonFiniteError, match=r"The loss of fitted Q evaluation must be finite; .*Lower the learning rate"):
        fitted_q_evaluation(data, actor, Table(9), GAMMA, optimizer=partial(torch.optim.SGD, lr=1e30))


class _AllActions(nn.Linear):
    def __init__(self):
        super().__init__(1, 4)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return super().forward(state.unsqueeze(-1).float())


def test_the_data_stay_as_they_are():
    data, actor = WORLD_DATA.clone(), right_and_down(0.7)
    data["next", "reward"] = data["next", "reward"].double().contiguous()
    data["next", "terminated"] = torch.zeros_like(data["next", "terminated"])  # every end is bootstrapped
    before = data.clone()
    table = Table(16, 4)
    fitted = fitted_q_evaluation(data, actor, table, GAMMA, iterations=1, **exactly)
    table.q.data.fill_(10.0)
    first, second = (evaluate_offline(data, actor, GAMMA, fitted=fitted).estimates for _ in range(2))
    assert torch.equal(data["next", "reward"], before["next", "reward"])
    assert first == second
    with pytest.raises(SpecError, match=r"The data must be a TensorDict; got list. Read the rows of a dataset first"):
        evaluate_offline([data], actor, GAMMA)
