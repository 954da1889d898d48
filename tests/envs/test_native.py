"""Native environments: Gymnasium's dynamics, one stream per row, a functional state, one graph."""

from __future__ import annotations

import math
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch

from rlbook import keys
from rlbook.envs import (
    LQR,
    Acrobot,
    Breakout,
    CartPole,
    Catch,
    GridWorld,
    MountainCar,
    MountainCarContinuous,
    NativeEnv,
    Pendulum,
    ProbeBoth,
    ProbeDelay,
    TMaze,
)
from rlbook.errors import ConfigError, EnvError, MissingExtraError, MissingKeyError, SpecError
from rlbook.specs import Bounded, Categorical, Composite

torch.set_num_threads(1)

MAKERS = {
    "cartpole": CartPole,
    "pendulum": Pendulum,
    "frozen_lake": lambda **kwargs: GridWorld.frozen_lake("4x4", **kwargs),
    "cliff": lambda **kwargs: GridWorld.cliff_walking(**kwargs),
    "acrobot": Acrobot,
    "mountain_car": MountainCar,
    "mountain_car_continuous": MountainCarContinuous,
    "lqr": LQR,
    "catch": Catch,
    "breakout": Breakout,
    "tmaze": TMaze,
    "probe_delay": ProbeDelay,
    "probe_both": lambda **kwargs: ProbeBoth(continuous=True, **kwargs),
}
every_env = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


# ---- the same as Gymnasium ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cartpole_equals_gymnasium(seed):
    theirs = gymnasium.make("CartPole-v1").unwrapped
    ours = CartPole()
    theirs.reset(seed=seed)
    theirs.action_space.seed(seed)
    endings = 0
    for _ in range(400):
        state = ours.state
        state["physics"] = torch.tensor(theirs.state, dtype=torch.float32)
        ours.set_state(state)
        action = theirs.action_space.sample()
        observation, reward, terminated, _, _ = theirs.step(action)
        got = ours._step(torch.tensor(action))
        torch.testing.assert_close(got[keys.OBSERVATION], torch.from_numpy(observation), rtol=1e-5, atol=1e-5)
        assert got[keys.TERMINATED].item() == terminated
        assert got[keys.REWARD].item() == reward == 1.0
        if terminated:
            endings += 1
            theirs.reset()
    assert endings > 5


def test_cartpole_stays_with_gymnasium():
    theirs = gymnasium.make("CartPole-v1").unwrapped
    theirs.reset(seed=7)
    ours = CartPole(seed=0)
    state, _ = ours.functional_reset(ours.state)
    state["physics"] = torch.tensor(theirs.state, dtype=torch.float32)
    for _ in range(100):  # an unstable system: rounding errors grow e-fold every 12 steps or so
        angle, spin = theirs.state[2:]
        action = int(angle + 0.5 * spin > 0)  # a controller that balances
        observation, _, terminated, _, _ = theirs.step(action)
        state, got = ours.functional_step(state, torch.tensor(action))
        torch.testing.assert_close(got[keys.OBSERVATION], torch.from_numpy(observation), rtol=0, atol=5e-3)
        assert not terminated
        assert not got[keys.TERMINATED]


def test_pendulum_equals_gymnasium():
    theirs = gymnasium.make("Pendulum-v1").unwrapped
    theirs.reset(seed=0)
    theirs.action_space.seed(0)
    ours = Pendulum()
    for _ in range(400):
        state = ours.state
        angle, speed = theirs.state
        state["angle"], state["speed"] = torch.tensor(angle).float(), torch.tensor(speed).float()
        ours.set_state(state)
        action = 1.5 * theirs.action_space.sample()  # also beyond the bounds, where both clip
        observation, reward, _, _, _ = theirs.step(action)
        got = ours._step(torch.from_numpy(action))
        torch.testing.assert_close(got[keys.OBSERVATION], torch.from_numpy(observation), rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(got[keys.REWARD].item(), float(reward), rtol=1e-5, atol=1e-4)
        assert not got[keys.TERMINATED]


@pytest.mark.parametrize(
    "env", [CartPole(seed=0, num_envs=2), Pendulum(seed=0, num_envs=2), GridWorld.frozen_lake("8x8", 2, seed=0)]
)
def test_time_limit_is_gymnasiums(env):
    name = {CartPole: "CartPole-v1", Pendulum: "Pendulum-v1", GridWorld: "FrozenLake8x8-v1"}[type(env)]
    limit = gymnasium.spec(name).max_episode_steps
    root = env.reset()
    state = env.state
    state[keys.STEP_COUNT] = torch.tensor([limit - 2, 0])
    env.set_state(state)
    flags = []
    for _ in range(2):
        root[keys.ACTION] = env.random_actions()
        step, root = env.step_and_reset(root)
        flags.append(step[keys.NEXT, keys.TRUNCATED].tolist())
    assert flags == [[False, False], [True, False]]
    assert env.state[keys.STEP_COUNT].tolist() == [0, 2]


def _gymnasium_model(env):
    count, actions = env.observation_space.n, env.action_space.n
    P, R, terminal = torch.zeros(count, actions, count), torch.zeros(count, actions), torch.zeros(count, dtype=torch.bool)
    for state, table in env.P.items():
        for action, outcomes in table.items():
            for probability, target, reward, terminated in outcomes:
                P[state, action, target] += probability
                R[state, action] += probability * reward
                if terminated:
                    terminal[target] = True
    return P, R, terminal


@pytest.mark.parametrize("slippery", [True, False])
@pytest.mark.parametrize("size", ["4x4", "8x8"])
def test_frozen_lake_has_gymnasiums_transition_table(size, slippery):
    theirs = gymnasium.make("FrozenLake-v1", map_name=size, is_slippery=slippery).unwrapped
    model = GridWorld.frozen_lake(size, slippery=slippery).transition_model()
    torch.testing.assert_close(tuple(model), _gymnasium_model(theirs))


@pytest.mark.parametrize("slippery", [True, False])
def test_cliff_walking_has_gymnasiums_transition_table(slippery):
    theirs = gymnasium.make("CliffWalking-v1", is_slippery=slippery).unwrapped
    env = GridWorld.cliff_walking(slippery=slippery)
    P, R, terminal = env.transition_model()
    want_P, want_R, want_terminal = _gymnasium_model(theirs)
    alive = ~terminal  # Gymnasium's table lets the walker go on from the goal, where no episode ever is
    torch.testing.assert_close((P[alive], R[alive], terminal), (want_P[alive], want_R[alive], want_terminal))
    torch.testing.assert_close(env.start_distribution, torch.from_numpy(theirs.initial_state_distrib).float())
    assert env.max_steps is None


def test_grid_world_moves_as_its_model_says():
    env = GridWorld(["S.W", "H.G"], num_envs=4000, slip=0.3, step_reward=-0.1, hole_reward=-1, seed=0)
    P, R, terminal = env.transition_model()
    torch.testing.assert_close(P.sum(-1), torch.ones(6, 4))
    state = env.state
    state["cell"] = torch.full((4000,), 1)
    for action in range(4):
        env.set_state(state)
        got = env._step(torch.full((4000,), action))
        frequency = torch.bincount(got[keys.OBSERVATION], minlength=6) / 4000
        torch.testing.assert_close(frequency, P[1, action], rtol=0, atol=0.03)  # four standard deviations of 0.0072
        torch.testing.assert_close(got[keys.REWARD].mean(), R[1, action], rtol=0, atol=0.03)
        assert torch.equal(got[keys.TERMINATED], terminal[got[keys.OBSERVATION]])


def test_grid_world_golden():
    # 0 1 2     S . W      from 1: left 0, down 4, right is the wall: stay, up is the border: stay
    # 3 4 5     C . G      from 4: left is the cliff: back to 0 for -5; right is the goal
    env = GridWorld("S.W C.G", step_reward=-1, goal_reward=10, cliff_reward=-5)
    P, R, terminal = env.transition_model()
    assert P[1].argmax(-1).tolist() == [0, 4, 1, 1]
    assert P[4].argmax(-1).tolist() == [0, 4, 5, 1]
    assert R[1].tolist() == [-1, -1, -1, -1]
    assert R[4].tolist() == [-5, -1, 10, -1]
    assert P[5].argmax(-1).tolist() == [5] * 4
    assert R[5].tolist() == [0] * 4
    assert terminal.tolist() == [False] * 5 + [True]


def test_grid_world_starts_on_every_start():
    env = GridWorld(["S.S", "..G", "..S"], num_envs=3000, seed=0)
    frequency = torch.bincount(env.reset()[keys.OBSERVATION], minlength=9) / 3000
    torch.testing.assert_close(frequency, env.start_distribution, rtol=0, atol=0.035)
    torch.testing.assert_close(env.start_distribution[[0, 2, 8]], torch.full((3,), 1 / 3))


def test_value_iteration_finds_the_known_optimum_of_frozen_lake():
    P, R, _ = GridWorld.frozen_lake().transition_model()
    value = torch.zeros(16)
    for _ in range(2000):
        value = (R + P @ value).amax(-1)
    torch.testing.assert_close(value[0].item(), 14 / 17, rtol=1e-3, atol=1e-3)  # the undiscounted optimum, known to be 0.8235


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"map": ["S.", "G"]}, "rows of equal length"),
        ({"map": []}, "rows of equal length"),
        ({"map": ["SX"]}, r"letters S .*got \['X'\]"),
        ({"map": ["..G"]}, "one with a start S"),
        ({"slip": 1.5}, r"slip must be a probability in \[0, 1\]; got 1.5"),
        ({"actions": "LRUD"}, "opposite ones two apart; got 'LRUD'"),
        ({"actions": "LDR"}, "the letters L, D, R, U"),
    ],
)
def test_grid_world_errors(arguments, message):
    with pytest.raises(ConfigError, match=message):
        GridWorld(**arguments)


def test_frozen_lake_of_unknown_size():
    with pytest.raises(ConfigError, match="size must be one of"):
        GridWorld.frozen_lake("5x5")


# ---- one stream per row ------------------------------------------------------------------------------------------------------
@every_env
@pytest.mark.parametrize("num_envs", [2, 5, 37])
def test_row_equals_the_environment_alone_bit_for_bit(make, num_envs):
    batched = make(num_envs=num_envs, seed=3).rollout(60)
    for i in {0, 1, num_envs - 1}:
        for alone in (
            make(seed=3 + i).rollout(60, break_when_any_done=False),
            make(num_envs=1, seed=3 + i).rollout(60)[0],
        ):
            for key, value in alone.items(True, True):
                assert torch.equal(value, batched[i][key]), (i, key)


def test_row_equals_the_environment_alone_with_a_policy():
    def policy(observation):
        return (observation[..., 2] + 0.3 * observation[..., 3] > 0).long()

    batched = CartPole(num_envs=6, seed=0, max_steps=30).rollout(100, policy)
    for i in range(6):
        alone = CartPole(seed=i, max_steps=30).rollout(100, policy, break_when_any_done=False)
        assert torch.equal(alone[keys.NEXT, keys.OBSERVATION], batched[i][keys.NEXT, keys.OBSERVATION])
    assert batched[keys.NEXT, keys.TRUNCATED].any()


def test_first_states_do_not_depend_on_how_the_episodes_went():
    one, other = CartPole(seed=0), CartPole(seed=0)
    for episode in range(3):
        td = one.reset()
        assert torch.equal(td[keys.OBSERVATION], other.reset()[keys.OBSERVATION]), episode
        one.rollout(1 + episode)  # resets as well: keep them level
        other.reset()


def test_initial_states_cover_their_range():
    start = CartPole(num_envs=4000, seed=0).reset()[keys.OBSERVATION]
    assert start.abs().max() <= 0.05
    torch.testing.assert_close(start.mean(0), torch.zeros(4), rtol=0, atol=0.002)
    torch.testing.assert_close(start.std(0), torch.full((4,), 0.1 / math.sqrt(12)), rtol=0.03, atol=0)
    start = Pendulum(num_envs=4000, seed=0)
    start.reset()
    assert start.state["angle"].abs().max() <= math.pi
    assert start.state["speed"].abs().max() <= 1


# ---- functional state --------------------------------------------------------------------------------------------------------
@every_env
def test_functional_step_is_pure_and_equals_step(make):
    env = make(num_envs=3, seed=0)
    env.reset()
    state, action = env.state, env.random_actions()
    before = state.clone()
    after, leaves = env.functional_step(state, action)
    again, _ = env.functional_step(state, action)
    assert all(torch.equal(value, before[key]) for key, value in state.items())
    assert all(torch.equal(value, before[key]) for key, value in env.state.items())
    assert all(torch.equal(value, again[key]) for key, value in after.items())
    stepped = env._step(action)
    assert all(torch.equal(value, stepped[key]) for key, value in leaves.items())
    assert all(torch.equal(value, env.state[key]) for key, value in after.items())


@every_env
def test_functional_step_takes_any_batch(make):
    env = make(num_envs=3, seed=0)
    env.reset()
    actions = env.random_actions(7)
    state = env.state
    many, leaves = env.functional_step(state.expand(7, 3), actions)
    assert many.batch_size == (7, 3)
    assert leaves[keys.REWARD].shape == (7, 3)
    one, _ = env.functional_step(state, actions[4])
    for key, value in one.items():
        torch.testing.assert_close(value, many[4][key], rtol=0, atol=0)


@every_env
def test_going_back_to_a_state_repeats_the_future(make):
    env = make(num_envs=4, seed=0)
    root = env.reset()
    state, actions = env.state, env.random_actions(40)

    def future():
        td, rewards = root.clone(), []
        for action in actions:
            td[keys.ACTION] = action
            step, td = env.step_and_reset(td)
            rewards.append(step[keys.NEXT].clone())
        return torch.stack(rewards)

    first = future()
    env.set_state(state)
    second = future()
    for key, value in first.items():
        assert torch.equal(value, second[key])


def test_functional_reset_of_some_rows():
    env = CartPole(num_envs=3, seed=0)
    env.reset()
    env._step(env.random_actions())
    state = env.state
    fresh, leaves = env.functional_reset(state, torch.tensor([False, True, False]))
    assert torch.equal(fresh["physics"][[0, 2]], state["physics"][[0, 2]])
    assert fresh[keys.STEP_COUNT].tolist() == [1, 0, 1]
    assert fresh["episode"].tolist() == [0, 1, 0]
    assert torch.equal(leaves[keys.OBSERVATION], fresh["physics"])
    assert env.state["episode"].tolist() == [0, 0, 0]


def test_state_errors():
    env = CartPole(num_envs=2)
    env.reset()
    with pytest.raises(MissingKeyError, match="none called \\['physics'\\]"):
        env.set_state(env.state.exclude("physics"))
    state = env.state
    state["physics"] = state["physics"].double()
    with pytest.raises(SpecError, match=r"state\['physics'\] must be torch.float32 \[2, 4\]; got torch.float64"):
        env.set_state(state)


def test_set_state_revives_a_finished_environment():
    env = CartPole(seed=0)
    td = env.reset()
    state = env.state
    while True:
        td[keys.ACTION] = torch.tensor(1)
        td = env.step(td)
        if td[keys.NEXT, keys.DONE]:
            break
        td = td[keys.NEXT].exclude(keys.REWARD)
    with pytest.raises(EnvError, match="1 of 1 done"):
        env.step(td)
    env.set_state(state)
    assert not env.step(td)[keys.NEXT, keys.DONE]


def test_environment_errors_of_an_author():
    class Wrong(NativeEnv):
        reset_uniforms = 1

        def __init__(self, entries, num_envs=2, **kwargs):
            self.entries = entries
            super().__init__(Composite({"observation": Bounded(0, 1, ())}), Categorical(2), num_envs=num_envs, **kwargs)

        def _initial(self, u):
            return self.entries(u)

        def _dynamics(self, state, action, u):
            raise NotImplementedError

        def _observe(self, state):
            raise NotImplementedError

    with pytest.raises(EnvError, match="returns 'episode', a name NativeEnv uses itself"):
        Wrong(lambda u: {"episode": u})
    with pytest.raises(EnvError, match=r"Wrong._initial\(u\)\['x'\] must be of shape \[2, '...'\]; got \[1\]"):
        Wrong(lambda u: {"x": torch.zeros(1)})
    with pytest.raises(EnvError, match="max_steps must be None or a positive integer; got 0"):
        Wrong(lambda u: {"x": u}, max_steps=0)


# ---- one graph ---------------------------------------------------------------------------------------------------------------
@every_env
@pytest.mark.parametrize("num_envs", [None, 4])
def test_step_and_reset_compile_to_one_graph(make, num_envs):
    torch._dynamo.reset()
    env, plain = make(num_envs=num_envs, seed=0), make(num_envs=num_envs, seed=0)

    @torch.no_grad()
    def cycle(env, action):
        leaves = env._step(action)
        done = leaves[keys.TERMINATED] | leaves[keys.TRUNCATED]
        fresh = env._reset(done)
        return leaves, fresh

    compiled = torch.compile(cycle, fullgraph=True, backend="aot_eager")
    env._reset(None)
    plain._reset(None)
    addresses = [value.data_ptr() for value in env._state.values()]
    for action in plain.random_actions(40):
        (leaves, fresh), (want, want_fresh) = compiled(env, action), cycle(plain, action)
        for key, value in want.items():
            torch.testing.assert_close(leaves[key], value)
        torch.testing.assert_close(fresh[keys.OBSERVATION], want_fresh[keys.OBSERVATION])
    assert [value.data_ptr() for value in env._state.values()] == addresses
    for key, value in plain.state.items():
        torch.testing.assert_close(env.state[key], value)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_env
def test_a_cuda_graph_replays_steps(make):
    env, plain = make(num_envs=8, seed=0, device="cuda"), make(num_envs=8, seed=0)
    with torch.no_grad():
        env._reset(None)
        plain._reset(None)
        static = env.random_actions()
        start = env.state
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())

        def cycle():
            leaves = env._step(static)
            return leaves, env._reset(leaves[keys.TERMINATED] | leaves[keys.TRUNCATED])

        with torch.cuda.stream(stream):
            for _ in range(3):
                cycle()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            leaves, _ = cycle()
        env.set_state(start)
        for action in plain.random_actions(30):
            static.copy_(action)
            graph.replay()
            want = plain._step(action)
            plain._reset(want[keys.TERMINATED] | want[keys.TRUNCATED])
            torch.testing.assert_close(leaves[keys.OBSERVATION].cpu(), want[keys.OBSERVATION], rtol=1e-3, atol=1e-3)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_env
def test_cuda_draws_the_same_numbers(make):
    here, there = make(num_envs=16, seed=0), make(num_envs=16, seed=0, device="cuda")
    assert torch.equal(here.random_actions(5), there.random_actions(5).cpu())
    torch.testing.assert_close(here.reset()[keys.OBSERVATION], there.reset()[keys.OBSERVATION].cpu())


# ---- pictures ----------------------------------------------------------------------------------------------------------------
@every_env
@pytest.mark.parametrize("num_envs", [None, 2])
def test_render(make, num_envs):
    env = make(num_envs=num_envs, seed=0)
    env.reset()
    before = env.render()
    assert before.dtype == np.uint8
    assert before.ndim == 3
    assert before.shape[2] == 3
    assert len(np.unique(before.reshape(-1, 3), axis=0)) > 3
    for action in (1, 0, 2, 1, 0, 2):  # one of them moves a walker; what ends after one step begins anew
        outcome = env._step(env.action_spec.zero(env.batch_size) + min(action, getattr(env.action_spec, "n", 3) - 1))
        if outcome["terminated"].all():
            env.reset()
        if not np.array_equal(before, env.render()):
            return
    pytest.fail("no step changed the picture")


def test_render_shows_where_things_are():
    env = CartPole()
    state = env.state
    state["physics"] = torch.tensor([1.2, 0.0, 0.0, 0.0])
    env.set_state(state)
    picture = env.render()
    assert picture.shape == (200, 300, 3)
    blue = np.argwhere((picture == (0x3D, 0x6F, 0xB6)).all(-1))
    assert abs(blue[:, 1].mean() - (150 + 65)) < 2  # half way to the right limit


def test_render_without_pillow(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r'needs the package .pillow.. Install it with: pip install "rlbook\[lab\]"'):
        CartPole().render()


def test_native_environments_need_no_gymnasium():
    code = (
        "import sys, rlbook.envs.native, rlbook.envs.check, rlbook.transforms\n"
        "assert not {'gymnasium', 'PIL', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
