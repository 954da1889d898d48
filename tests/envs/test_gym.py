"""GymEnv: every kind of space, every way to be vectorised, and the same numbers as Gymnasium itself."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tensordict import TensorDictBase

from rlbook import keys
from rlbook.envs import GymEnv, check_env
from rlbook.envs.libs._gym_backends import PerEnv, Vector
from rlbook.errors import ConfigError, EnvError, PolicyError, SpecError, UnknownEnvError
from rlbook.specs import decode, encode

torch.set_num_threads(1)

VECTOR = spaces.Box(-1, 1, (3,), np.float32)


class Toy(gymnasium.Env):
    """Random observations of any space; an episode lasts three steps or is cut after two; the actions taken are kept."""

    def __init__(self, observation_space=VECTOR, action_space=None, length=3, limit=None, render_mode=None):
        self.observation_space = observation_space
        self.action_space = action_space or spaces.Discrete(2)
        self.length, self.limit, self.render_mode = length, limit, render_mode
        self.actions, self.closed = [], False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {"time": 0, "position": np.zeros(2)}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.t += 1
        self.actions.append(action)
        over, cut = self.t == self.length, self.t == self.limit
        return self.observation_space.sample(), 0.5 * self.t, over, cut, {"time": self.t, "position": np.full(2, self.t / 4)}

    def render(self):
        return np.full((4, 6, 3), self.t, np.uint8)

    def close(self):
        self.closed = True


SPACES = {
    "box": VECTOR,
    "float64 box": spaces.Box(-np.inf, np.inf, (2,), np.float64),
    "image": spaces.Box(0, 255, (5, 4, 3), np.uint8),
    "discrete": spaces.Discrete(5),
    "discrete from 3": spaces.Discrete(5, start=3),
    "multi-discrete": spaces.MultiDiscrete([2, 3, 4]),
    "multi-discrete from 1": spaces.MultiDiscrete([2, 3], start=[1, 5]),
    "multi-binary": spaces.MultiBinary(4),
    "tuple": spaces.Tuple((spaces.Discrete(4, start=2), spaces.Box(-1, 1, (2,)))),
    "dict": spaces.Dict({"camera": spaces.Box(0, 255, (2, 2), np.uint8), "arm": spaces.Dict({"joint": spaces.Box(-1, 1, (2,))})}),
}
each_space = pytest.mark.parametrize("name", SPACES)
each_size = pytest.mark.parametrize("num_envs", [None, 1, 3])


def space_of(name):
    """Return a copy: a space has a random generator of its own."""
    import copy

    return copy.deepcopy(SPACES[name])


def same(one, other):
    """Compare two samples of a space."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return np.array_equal(one, other)


def flat(value):
    """Return a value of a spec as a dictionary of leaves."""
    return dict(value.items(True, True)) if isinstance(value, TensorDictBase) else {keys.OBSERVATION: value}


# ---- spaces ----------------------------------------------------------------------------------------------------------------
@each_size
@each_space
def test_observation_spaces_keep_the_contract(name, num_envs):
    assert "keeps the contract" in check_env(GymEnv(lambda: Toy(space_of(name)), num_envs), 20)


@each_size
@each_space
def test_observations_are_gymnasiums(name, num_envs):
    env = GymEnv(lambda: Toy(space_of(name), limit=2), num_envs)
    data = env.rollout(5, seed=7, break_when_any_done=False)
    for i in range(env.num_envs):
        row = data if num_envs is None else data[i]
        theirs = Toy(space_of(name), limit=2)
        observation, _ = theirs.reset(seed=7 + i)
        for t in range(5):
            for key, value in flat(encode(observation, theirs.observation_space)).items():
                assert torch.equal(row[t].get(key), value), (key, t)
            observation, reward, over, cut, _ = theirs.step(0)
            for key, value in flat(encode(observation, theirs.observation_space)).items():
                assert torch.equal(row[t]["next"].get(key), value), (key, t)
            assert (row["next", "reward"][t], row["next", "terminated"][t], row["next", "truncated"][t]) == (reward, over, cut)
            if over or cut:
                observation, _ = theirs.reset()
    assert data["next", "truncated"].any()


@each_size
@each_space
def test_actions_arrive_as_gymnasium_has_them(name, num_envs):
    made = []

    def make():
        made.append(Toy(action_space=space_of(name)))
        return made[-1]

    env = GymEnv(make, num_envs)
    data = env.rollout(6, break_when_any_done=False)
    for i, theirs in enumerate(made):
        row = data if num_envs is None else data[i]
        assert len(theirs.actions) == 6
        for t, taken in enumerate(theirs.actions):
            given = row[t].get("action")
            want = decode(given, theirs.action_space)
            assert same(taken, want), (taken, want)


def test_a_space_without_tensors():
    with pytest.raises(SpecError, match=r"must be a Box, Discrete, .*; got Text"):
        GymEnv(Toy(spaces.Text(5)))


@pytest.mark.parametrize(
    "value, message",
    [
        (np.zeros((3, 1), np.float32), r"The environment's observation must be of shape \[3\]; got \[3, 1\]"),
        (np.zeros(3, np.complex64), r"The environment's observation must be of dtype float32; got complex64"),
    ],
)
def test_an_environment_that_breaks_its_space(value, message):
    class Bad(Toy):
        def reset(self, *, seed=None, options=None):
            return value, super().reset(seed=seed)[1]

    with pytest.raises(SpecError, match=message):
        GymEnv(Bad()).reset()


def test_an_environment_that_forgets_an_entry():
    class Bad(Toy):
        def reset(self, *, seed=None, options=None):
            return {"camera": np.zeros((2, 2), np.uint8), "arm": np.zeros(2)}, super().reset(seed=seed)[1]

    with pytest.raises(SpecError, match=r"observation must be a dictionary or tuple with the entry 'joint'; got array.*declares"):
        GymEnv(Bad(space_of("dict"))).reset()


# ---- the same numbers as Gymnasium -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "Taxi-v4", "MountainCarContinuous-v0"])
def test_equals_a_loop_over_gymnasium(name):
    env = GymEnv(name, num_envs=2, vectorization="per_env")
    data = env.rollout(60, seed=11)
    for i in range(2):
        theirs = gymnasium.make(name)
        observation, _ = theirs.reset(seed=11 + i)
        for t in range(60):
            assert torch.equal(data["observation"][i, t], encode(observation, theirs.observation_space))
            observation, reward, over, cut, _ = theirs.step(decode(data["action"][i, t], theirs.action_space))
            assert torch.equal(data["next", "observation"][i, t], encode(observation, theirs.observation_space))
            assert data["next", "reward"][i, t] == np.float32(reward)
            assert (data["next", "terminated"][i, t], data["next", "truncated"][i, t]) == (over, cut)
            if over or cut:
                observation, _ = theirs.reset()


def test_batched_equals_alone():
    batched = GymEnv("CartPole-v1", num_envs=3, vectorization="per_env").rollout(50, seed=4)
    alone = GymEnv("CartPole-v1").rollout(50, seed=6, break_when_any_done=False)
    assert all(torch.equal(value, batched[2].get(key)) for key, value in alone.items(True, True))


# ---- vector environments ---------------------------------------------------------------------------------------------------
def test_which_backend_is_chosen():
    assert isinstance(GymEnv("CartPole-v1", num_envs=6).backend, Vector)
    assert isinstance(GymEnv("CartPole-v1", num_envs=5).backend, PerEnv)  # faster so
    assert isinstance(GymEnv("CartPole-v1", num_envs=2, vectorization="entry_point").backend, Vector)
    assert isinstance(GymEnv("CartPole-v1", num_envs=8, vectorization="per_env").backend, PerEnv)
    assert isinstance(GymEnv("CartPole-v1").backend, PerEnv)
    assert isinstance(GymEnv("Pendulum-v1", num_envs=2).backend, PerEnv)


def test_cartpole_entry_point_resets_in_the_same_step():
    env = GymEnv("CartPole-v1", num_envs=6)
    data = env.rollout(80, seed=0)
    ended = data["next", "done"][:, :-1]
    assert ended.sum() > 10
    assert (data["observation"][:, 1:][ended].abs() <= 0.05).all()  # the next root is a reset one
    after = data["next", "observation"]
    over = (after[..., 0].abs() > 2.4) | (after[..., 2].abs() > 12 * torch.pi / 180)
    assert torch.equal(over, data["next", "terminated"])  # and next is the true last observation
    assert (data["next", "reward"] == 1).all()
    # every transition is CartPole's own, the one after a reset included
    theirs = gymnasium.make("CartPole-v1").unwrapped
    theirs.reset()
    for t in range(0, 80, 7):
        theirs.state = data["observation"][1, t].double().numpy()
        theirs.steps_beyond_terminated = None
        observation, _, over, _, _ = theirs.step(data["action"][1, t].item())
        torch.testing.assert_close(after[1, t], torch.from_numpy(observation), rtol=1e-5, atol=1e-6)
        assert data["next", "terminated"][1, t] == over


def test_cartpole_entry_point_truncates():
    env = GymEnv("CartPole-v1", num_envs=2, vectorization="entry_point")
    data = env.rollout(505, lambda observation: (observation[..., 2] + 0.3 * observation[..., 3] > 0).long(), seed=0)
    assert data["next", "truncated"].nonzero().tolist() == [[0, 499], [1, 499]]
    assert not data["next", "terminated"].any()


def test_cartpole_entry_point_partial_reset():
    env = GymEnv("CartPole-v1", num_envs=6)
    root = env.reset(seed=0)
    for _ in range(4):
        _, root = env.step_and_reset(root.set("action", torch.ones(6, dtype=torch.int64)))
    mask = torch.tensor([True, False, True, False, False, False])
    fresh = env.reset(root, mask=mask)
    assert torch.equal(fresh["observation"][~mask], root["observation"][~mask])
    assert (fresh["observation"][mask].abs() <= 0.05).all()
    assert (root["observation"][:, 1] > 0.5).all()  # the row that was kept and the one that was left had moved
    data = env.step(fresh.set("action", torch.zeros(6, dtype=torch.int64)))  # what was handed out is where it goes on from
    x, speed = fresh["observation"][:, :2].unbind(-1)
    torch.testing.assert_close(data["next", "observation"][:, 0], x + 0.02 * speed)  # 0.02 s a step


def test_cartpole_entry_point_refuses_an_action_it_does_not_have():
    env = GymEnv("CartPole-v1", num_envs=6)
    t = iter(range(10))
    with pytest.raises(PolicyError, match=r"an action that the environment does not take. action must be .*got 2"):
        env.rollout(6, lambda observation: torch.full((6,), 2 if next(t) == 3 else 1))


def test_entry_point_where_there_is_none():
    with pytest.raises(EnvError, match=r"'Pendulum-v1' has no vector entry point. Leave vectorization=\"auto\""):
        GymEnv("Pendulum-v1", num_envs=2, vectorization="entry_point")


def sync(mode, name="box", count=3):
    makers = [lambda: Toy(space_of(name), limit=2), lambda: Toy(space_of(name)), lambda: Toy(space_of(name), length=1)]
    return SyncVectorEnv(makers[:count], autoreset_mode=mode)


@pytest.mark.parametrize("name", ["box", "image", "discrete", "discrete from 3", "tuple", "dict"])
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_vector_instances_equal_single_environments(mode, name):
    env = GymEnv(sync(mode, name))
    assert env.batch_size == (3,)
    data = env.rollout(7, seed=5)
    for i in range(3):
        theirs = Toy(space_of(name), length=1 if i == 2 else 3, limit=2 if i == 0 else None)
        alone = GymEnv(theirs).rollout(7, seed=5 + i, break_when_any_done=False)
        for key, value in alone.exclude("action").items(True, True):
            assert torch.equal(value, data[i].get(key)), key


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_vector_instances_keep_the_contract(mode):
    env = GymEnv(sync(mode, count=2))
    assert "keeps the contract" in check_env(env, 20, partial_reset=mode is AutoresetMode.DISABLED)


def test_partial_reset_of_a_vector_that_resets_by_itself():
    env = GymEnv(sync(AutoresetMode.SAME_STEP))
    root = env.reset()
    with pytest.raises(EnvError, match="This vector environment resets by itself"):
        env.reset(root, mask=torch.tensor([True, False, False]))
    for _ in range(2):  # the third environment ends at every step, the first one at the second
        _, root = env.step_and_reset(root.set("action", env.random_actions()))
    _, root = env.step_and_reset(root.set("action", env.random_actions()))
    with pytest.raises(EnvError, match="This vector environment resets by itself"):
        env.reset(root, mask=torch.tensor([True, False, False]))


def test_a_finish_is_forgotten_after_the_next_step():
    env = GymEnv(SyncVectorEnv([lambda: Toy(length=2), lambda: Toy(length=9)], autoreset_mode=AutoresetMode.SAME_STEP))
    root = env.reset()
    for _ in range(3):
        _, root = env.step_and_reset(root.set("action", env.random_actions()))
    with pytest.raises(EnvError, match="This vector environment resets by itself"):
        env.reset(root, mask=torch.tensor([True, False]))


def test_next_step_resets_are_refused():
    with pytest.raises(EnvError, match=r"must be SAME_STEP or DISABLED; got .*NEXT_STEP.* Make it with autoreset_mode"):
        GymEnv(sync(AutoresetMode.NEXT_STEP))


# ---- info entries and pictures -----------------------------------------------------------------------------------------------
@each_size
def test_info_entries(num_envs):
    env = GymEnv(Toy, num_envs, info=("time", "position"))
    data = env.rollout(4, break_when_any_done=False)
    row = data if num_envs is None else data[0]
    assert row["time"].tolist() == [0, 1, 2, 0]
    assert row["next", "time"].tolist() == [1, 2, 3, 1]
    assert row["time"].dtype == torch.int64
    assert row["next", "position"].tolist() == [[0.25, 0.25], [0.5, 0.5], [0.75, 0.75], [0.25, 0.25]]
    assert row["position"].dtype == torch.float32


def test_info_entries_of_a_library_environment():
    data = GymEnv("FrozenLake-v1", info=["prob"]).rollout(5, seed=0, break_when_any_done=False)
    assert data["prob"][0] == 1
    torch.testing.assert_close(data["next", "prob"], torch.full((5,), 1 / 3))


def test_unknown_info_entry():
    with pytest.raises(ConfigError, match=r"info must be among \['position', 'time'\]; got \['speed'\]"):
        GymEnv(Toy, info=["speed"])


def test_render():
    env = GymEnv(lambda: Toy(render_mode="rgb_array"), num_envs=2)
    td = env.reset()
    assert env.render().shape == (4, 6, 3)
    env.step(td.set("action", env.random_actions()))
    assert env.render(1).max() == 1
    assert env.render(1).dtype == np.uint8


def test_render_of_a_library_environment():
    env = GymEnv("CartPole-v1", render_mode="rgb_array")
    env.reset()
    assert env.render().ndim == 3
    env.close()


def test_render_without_pictures():
    env = GymEnv("CartPole-v1")
    env.reset()
    with pytest.raises(EnvError, match=r'made without pictures. Make it with GymEnv\(..., render_mode="rgb_array"\)'):
        env.render()


# ---- names, instances, errors ------------------------------------------------------------------------------------------------
def test_an_instance_or_a_function():
    assert GymEnv(Toy()).rollout(2).batch_size == (2,)
    assert GymEnv(Toy, num_envs=2).rollout(2).batch_size == (2, 2)
    with pytest.raises(EnvError, match=r"an id or a function when num_envs > 1; got one instance. Pass for example lambda"):
        GymEnv(Toy(), num_envs=2)
    with pytest.raises(EnvError, match=r'an id, a gymnasium.Env or a function that makes one; got 3. Pass for example "Cart'):
        GymEnv(3)


@pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")
@pytest.mark.parametrize("num_envs", [None, 2])
@pytest.mark.parametrize(
    "name, message",
    [
        ("CartPol-v1", r"must be a registered Gymnasium id; got 'CartPol-v1'. Did you mean CartPole-v1"),
        ("Zzzzzz", r"got 'Zzzzzz'. List the ids with gymnasium.pprint_registry\(\)"),
        ("Taxi-v3", r"got 'Taxi-v3'. Did you mean .*Taxi-v4"),
    ],
)
def test_unknown_ids(name, message, num_envs):
    with pytest.raises(UnknownEnvError, match=message):
        GymEnv(name, num_envs=num_envs)


def test_unknown_vectorization():
    with pytest.raises(ConfigError, match=r"vectorization must be one of .*; got 'async'"):
        GymEnv("CartPole-v1", num_envs=2, vectorization="async")


def test_arguments_reach_gymnasium():
    env = GymEnv("FrozenLake-v1", is_slippery=False, map_name="8x8")
    assert env.observation_spec["observation"].n == 64
    right = GymEnv("FrozenLake-v1", is_slippery=False).rollout(3, lambda observation: 2)
    assert right["next", "observation"].tolist() == [1, 2, 3]


def test_close_reaches_every_environment():
    made = []

    def make():
        made.append(Toy())
        return made[-1]

    with GymEnv(make, num_envs=3):
        assert not any(env.closed for env in made)
    assert all(env.closed for env in made)


def test_seed_waits_for_a_full_reset():
    env = GymEnv(Toy, num_envs=2)
    root = env.reset(seed=1)
    want = root["observation"].clone()
    env.seed(1)
    env.reset(root, mask=torch.tensor([True, False]))
    assert torch.equal(env.reset()["observation"], want)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    env = GymEnv("CartPole-v1", num_envs=4, device="cuda")
    data = env.rollout(30, seed=0)
    assert data["observation"].is_cuda
    want = GymEnv("CartPole-v1", num_envs=4).rollout(30, seed=0)
    assert torch.equal(data["observation"].cpu(), want["observation"])


class Own(gymnasium.Env):
    """Keeps its last action and changes the one it gets."""

    observation_space, action_space = spaces.Box(-9, 9, (2,), np.float32), spaces.Box(-1, 1, (1,), np.float32)
    wrong = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.last = np.zeros(1, np.float32)
        return np.zeros(2, np.float32), {"reward": 5.0}

    def step(self, action):
        seen = np.concatenate((action, self.last))
        self.last = action
        action *= 0.5
        reward = 0.0 if self.wrong != "reward" else np.zeros(1)
        return seen if self.wrong != "observation" else seen[:1], reward, False, False, {"reward": 5.0}


@pytest.mark.parametrize("num_envs", [None, 2])
def test_an_environment_cannot_reach_the_actions_of_a_rollout(num_envs):
    env = GymEnv(Own, num_envs)
    data = env.rollout(4, lambda observation: torch.full((*env.batch_size, 1), 1.0))
    assert (data["action"] == 1).all()
    assert (data["next", "observation"][..., 1:, :] == torch.tensor([1.0, 0.5])).all()


@pytest.mark.parametrize("wrong", ["observation", "reward"])
def test_the_first_step_is_looked_at(wrong):
    env = Own()
    env.wrong = wrong
    with pytest.raises(SpecError, match=f"The environment's {wrong} must be .*; got "):
        GymEnv(env).rollout(3)


def test_options_that_do_not_go_together():
    with pytest.raises(ConfigError, match=r"The info entries to keep must be none that rollouts have already; got \['reward'\]"):
        GymEnv(Own, info="reward")
    with pytest.raises(ConfigError, match=r"Arguments of an environment that is made must be none; got \['foo'\]"):
        GymEnv(Own(), foo=3)
    with pytest.raises(ConfigError, match="num_envs must be a positive integer; got -1"):
        GymEnv("CartPole-v1", -1)
    with pytest.raises(ConfigError, match='vectorization="entry_point" must be an id and num_envs'):
        GymEnv("CartPole-v1", vectorization="entry_point")
    vector = gymnasium.make_vec("CartPole-v1", 3, vectorization_mode="vector_entry_point")
    with pytest.raises(ConfigError, match="The environments of a VectorEnv must be as they are, without info"):
        GymEnv(vector, num_envs=8)
    space = vector.single_observation_space
    wrapped = gymnasium.wrappers.vector.TransformObservation(vector, lambda x: x + 100, single_observation_space=space)
    with pytest.raises(EnvError, match="autoreset mode"):
        GymEnv(wrapped)
    for name in ("Cart Pole!", "CartPoll-v1"):
        with pytest.raises(UnknownEnvError, match="Did you mean CartPole"):
            GymEnv(name)
    with pytest.raises(EnvError, match="needs a module that is not there"):
        GymEnv("nomod:Foo-v0")
