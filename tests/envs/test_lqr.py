"""LQR: the stated optimum is the one that simulation, gradient descent and the invariant subspace find."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlbook import keys
from rlbook.envs import LQR, check_env
from rlbook.errors import ConfigError, SpecError

torch.set_num_threads(1)


def _random_system(n, m, seed=0):
    g = torch.Generator().manual_seed(seed)
    A, B = 0.5 * torch.randn(n, n, generator=g), torch.randn(n, m, generator=g)
    root, weight = torch.randn(n, n, generator=g), torch.randn(m, m, generator=g)
    return {"A": A, "B": B, "Q": root @ root.mT / n, "R": weight @ weight.mT / m + torch.eye(m)}


SYSTEMS = {
    "double integrator": {},
    "3 by 2": _random_system(3, 2),
    "6 by 1": _random_system(6, 1),
    "1 by 1": _random_system(1, 1),
}
every_system = pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)


def test_golden_step():
    env = LQR()
    env.reset()
    state = env.state
    state["x"] = torch.tensor([1.0, -2.0])
    env.set_state(state)
    leaves = env._step(torch.tensor([2.0]))
    # position 1 - 0.25 * 2 + 0.25**2 / 2 * 2 = 0.5625, velocity -2 + 0.25 * 2 = -1.5; cost 0.1 (1 + 4) + 0.1 * 4 = 0.9
    torch.testing.assert_close(leaves[keys.OBSERVATION], torch.tensor([0.5625, -1.5]))
    torch.testing.assert_close(leaves[keys.REWARD].item(), -0.9)
    beyond = env._step(torch.tensor([99.0]))
    torch.testing.assert_close(beyond[keys.REWARD].item(), -0.1 * (0.5625**2 + 1.5**2) - 0.1 * 9)  # taken as 3
    with pytest.raises(SpecError, match="action must be between -3 and 3; got 99"):
        env.functional_step(state, torch.tensor([99.0]))
    with pytest.raises(SpecError, match=r"action must be of shape \[\.\.\., 1\]; got \[2\]"):
        env.functional_step(state.expand(2), torch.tensor([1.0, -1.0]))


def test_only_the_symmetric_part_of_the_costs_counts():
    skew = LQR(Q=torch.tensor([[0.1, 0.1], [0.0, 0.1]]), max_action=None)
    even = LQR(Q=[[0.1, 0.05], [0.05, 0.1]], max_action=None)
    torch.testing.assert_close(skew.solve(), even.solve())
    torch.testing.assert_close(skew.optimal_return, even.optimal_return)


def test_an_endless_lqr():
    env = LQR(max_steps=None)
    env.reset()
    assert env.render().shape == (200, 300, 3)
    torch.testing.assert_close(env.optimal_return, -env._expect(env.solve(1.0)[1].double()))
    with pytest.raises(ConfigError, match="max_steps must be a number, for a sum over an episode; got None"):
        env.return_of(env.solve()[0])


def test_one_number_by_hand():
    # x' = x + u, cost x^2 + u^2: P = 1 + P - P^2 / (1 + P), so P^2 = P + 1: the golden ratio; K = P / (1 + P) = 1 / P
    one = torch.ones(1, 1)
    K, P = LQR(A=one, B=one, Q=one, R=one).solve(gamma=1.0)
    golden = (1 + 5**0.5) / 2
    torch.testing.assert_close((K.item(), P.item()), (1 / golden, golden))
    # two steps: the last action is 0 and P = 1; the one before halves the state: K = 1 / 2, P = 1 + 1 - 1 / 2
    K, P = LQR(A=one, B=one, Q=one, R=one).solve(gamma=1.0, steps=2)
    torch.testing.assert_close((K.item(), P.item()), (0.5, 1.5))


def _invariant_subspace(A, B, Q, R):
    """Solve Riccati's equation without iterating: its solution spans the stable eigenvectors of the symplectic matrix."""
    G, back = B @ np.linalg.solve(R, B.T), np.linalg.inv(A).T
    values, vectors = np.linalg.eig(np.block([[A + G @ back @ Q, -G @ back], [-back @ Q, back]]))
    upper, lower = np.split(vectors[:, abs(values) < 1], 2)
    return (lower @ np.linalg.inv(upper)).real


@every_system
@pytest.mark.parametrize("gamma", [0.8, 0.99])
def test_riccati_without_iteration(system, gamma):
    env = LQR(**system)
    A, B, Q, R = (matrix.double().numpy() for matrix in (env.A, env.B, env.Q, env.R))
    want = _invariant_subspace(gamma**0.5 * A, gamma**0.5 * B, Q, R)  # the discount in the dynamics
    torch.testing.assert_close(env.solve(gamma)[1], torch.from_numpy(want).float(), rtol=1e-5, atol=1e-6)


@every_system
def test_values_solve_the_bellman_optimality_equation(system):
    gamma, env = 0.95, LQR(num_envs=200, max_action=None, seed=0, **system)
    x = env.reset()[keys.OBSERVATION]
    best = env.optimal_action(x, gamma)

    def lookahead(action):
        leaves = env.functional_step(env.state, action)[1]
        return leaves[keys.REWARD] + gamma * env.optimal_value(leaves[keys.OBSERVATION], gamma)

    value = env.optimal_value(x, gamma)
    torch.testing.assert_close(value, lookahead(best), rtol=1e-4, atol=1e-4)
    for _ in range(5):
        aside = torch.nn.functional.normalize(torch.randn_like(best), dim=-1)
        assert (lookahead(best + 0.3 * aside) < value).all()


@every_system
def test_returns_are_those_of_simulation(system):
    env = LQR(num_envs=20_000, max_action=None, max_steps=15, seed=0, **system)
    K = env.solve(0.9)[0]
    for gain in (K, 0.5 * K):
        rewards = env.rollout(15, lambda observation, gain=gain: -observation @ gain.mT)[keys.NEXT, keys.REWARD]
        for gamma in (1.0, 0.9):
            returns = (rewards * gamma ** torch.arange(15.0)).sum(-1)
            within = 5 * (returns.std() / len(returns) ** 0.5).item()
            assert abs(returns.mean().item() - env.return_of(gain, gamma)) < within


@every_system
def test_no_policy_beats_the_optimal_return(system):
    env = LQR(max_action=None, **system)
    best = env.optimal_return
    gains = [env.solve(gamma)[0] for gamma in (0.5, 0.9, 0.99, 1.0)]
    returns = [env.return_of(gain) for gain in gains]
    assert max(returns) <= best
    # the time-varying optimum itself, simulated from the corners by superposition: x0^T P x0 is its cost
    x = env.start * torch.eye(len(env.A), dtype=torch.float64)
    total = torch.zeros(len(env.A), dtype=torch.float64)
    for left in range(env.horizon, 0, -1):
        gain = env.solve(1.0, left)[0].double()
        u = -x @ gain.mT
        total -= ((x @ env.Q.double()) * x).sum(-1) + ((u @ env.R.double()) * u).sum(-1)
        x = x @ env.A.double().mT + u @ env.B.double().mT
    torch.testing.assert_close(total.sum().item() / 3, best, rtol=1e-5, atol=1e-6)


def test_the_default_optimum_never_reaches_the_bound():
    for gamma in (0.9, 0.99, 1.0):
        env = LQR(num_envs=4, seed=0)
        env.reset()
        state = env.state
        state["x"] = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])  # the action is linear: corners suffice
        env.set_state(state)
        for _ in range(env.horizon):
            action = env.optimal_action(env.state["x"], gamma)
            assert action.abs().max() < 2.5
            env._step(action)
        assert env.state["x"].abs().max() < 0.15


def test_the_best_policy_is_found_by_gradient_descent():
    env, gamma = LQR(num_envs=1, seed=0), 0.8
    gain = torch.zeros(1, 2, requires_grad=True)
    optimizer = torch.optim.LBFGS([gain], line_search_fn="strong_wolfe")

    def cost():
        optimizer.zero_grad()
        x, total = torch.eye(2), torch.zeros(())
        for t in range(80):
            u = -x @ gain.mT
            total = total + gamma**t * 0.1 * (x.square().sum() + u.square().sum())
            x = x @ env.A.mT + u @ env.B.mT
        total.backward()
        return total

    optimizer.step(cost)
    torch.testing.assert_close(gain.detach(), env.solve(gamma)[0], rtol=1e-3, atol=1e-3)


def test_errors():
    with pytest.raises(ConfigError, match=r"A, B, Q and R must be of shape .*got \[\[2, 2\], \[2, 1\], \[3, 3\], \[1, 1\]\]"):
        LQR(Q=torch.eye(3))
    with pytest.raises(ConfigError, match=r"The cost of the best policy must be finite; got none for gamma=1.0"):
        LQR(A=2 * torch.eye(1), B=torch.zeros(1, 1), Q=torch.eye(1), R=torch.eye(1)).solve(gamma=1.0)


@every_system
@pytest.mark.parametrize("num_envs", [None, 1, 7])
@pytest.mark.parametrize("max_action", [None, 0.5])
def test_systems_keep_the_contract_and_draw_themselves(system, num_envs, max_action):
    env = LQR(num_envs, max_action=max_action, **system)
    assert "keeps the contract" in check_env(env, 30)
    assert env.render().shape == (200, 300, 3)
