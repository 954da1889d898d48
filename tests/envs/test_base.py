"""The contract: what users may call when, what a rollout looks like, and which policies it takes."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn

import rlbook.envs
from rlbook import keys
from rlbook.envs import CartPole, Env, GridWorld, Loop, Pendulum
from rlbook.errors import ConfigError, EnvError, MissingKeyError, NonFiniteError, PolicyError, SpecError
from rlbook.specs import Bounded, Categorical, Composite, Unbounded

torch.set_num_threads(1)


class Counting(Env):
    """Environment i ends its episodes after ``lengths[i]`` steps; step t (from 1) pays 100 t + i and shows ``[i, t]``."""

    def __init__(self, lengths=(2, 3), entries=("observation",), **kwargs):
        self.lengths = torch.tensor(lengths)
        self.t = torch.zeros_like(self.lengths)
        self.entries = entries
        spec = Composite({key: Bounded(0, 10, (2,)) for key in entries})
        num_envs = self.lengths.shape[0] if self.lengths.ndim else None
        super().__init__(spec, Categorical(3), num_envs=num_envs, seed=0, **kwargs)

    def _look(self):
        row = torch.arange(self.num_envs).reshape(self.batch_size)
        return {key: torch.stack((row, self.t), -1).float() for key in self.entries}

    def _reset(self, mask):
        self.t = self.t.masked_fill(torch.ones(self.batch_size, dtype=torch.bool) if mask is None else mask, 0)
        return self._look()

    def _step(self, action):
        self.t = self.t + 1
        reward = 100.0 * self.t + torch.arange(self.num_envs).reshape(self.batch_size)
        return {**self._look(), "reward": reward, "terminated": self.t == self.lengths}


def act(env, td, action=None):
    """Step with a random action, or the given one."""
    return env.step(td.set("action", env.random_actions() if action is None else action))


# ---- reset and step --------------------------------------------------------------------------------------------------------
def test_layout_of_one_step():
    env = Counting()
    root = env.reset()
    assert set(root.keys()) == {"observation", "done", "terminated", "truncated"}
    assert root.batch_size == (2,)
    td = act(env, root)
    assert td is root
    assert set(td.keys()) == {"observation", "action", "next", *keys.FLAGS}
    assert set(td["next"].keys()) == {"observation", "reward", *keys.FLAGS}
    assert td["next", "reward"].tolist() == [100, 101]
    assert td["next", "observation"].tolist() == [[0, 1], [1, 1]]
    assert td["next", "truncated"].tolist() == [False, False]  # an environment without time limit need not report it


def test_step_and_reset_keeps_the_final_observation():
    env = Counting()
    root = env.reset()
    step, root = env.step_and_reset(act(env, root).exclude("next"))
    assert step["next", "observation"].tolist() == [[0, 2], [1, 2]]
    assert step["next", "done"].tolist() == [True, False]
    assert root["observation"].tolist() == [[0, 0], [1, 2]]
    assert not root["done"].any()
    assert "reward" not in root.keys()


def test_tensordicts_already_returned_do_not_change():
    env = CartPole(num_envs=2, seed=0)
    root = env.reset()
    first = act(env, root)
    kept = first.clone()
    env.step_and_reset(first["next"].exclude("reward").set("action", env.random_actions()))
    env.reset()
    assert all(torch.equal(value, kept[key]) for key, value in first.items(True, True))


def test_partial_reset():
    env = Counting((5, 5, 5))
    root = act(env, env.reset())["next"].exclude("reward")
    fresh = env.reset(root, mask=torch.tensor([False, True, False]))
    assert fresh["observation"].tolist() == [[0, 1], [1, 0], [2, 1]]
    assert act(env, fresh)["next", "observation"].tolist() == [[0, 2], [1, 1], [2, 2]]


def test_partial_reset_leaves_the_finished_finished():
    env = Counting((1, 1))
    td = act(env, env.reset())
    root = env.reset(td["next"].exclude("reward"), mask=torch.tensor([True, False]))
    with pytest.raises(EnvError, match="1 of 2 done"):
        act(env, root)


def test_seed_at_reset():
    env = CartPole(num_envs=3)
    first = env.reset(seed=5)["observation"]
    assert torch.equal(first, env.reset(seed=5)["observation"])
    assert not torch.equal(first, env.reset()["observation"])
    assert torch.equal(first[1], CartPole(seed=6).reset()["observation"])


def test_default_seed_follows_torch():
    torch.manual_seed(3)
    first = CartPole().reset()["observation"]
    torch.manual_seed(3)
    assert torch.equal(first, CartPole().reset()["observation"])
    assert not torch.equal(first, CartPole().reset()["observation"])


def test_random_actions_do_not_depend_on_the_batch():
    batched = Pendulum(num_envs=4, seed=0).random_actions(6)
    assert batched.shape == (6, 4, 1)
    alone = Pendulum(seed=2)
    drawn = torch.stack([alone.random_actions() for _ in range(6)])
    assert torch.equal(drawn, batched[:, 2])
    assert Pendulum(seed=2).action_spec.contains(batched)


@pytest.mark.parametrize(
    "action, error, message",
    [
        (None, MissingKeyError, r"must be one with an 'action'; got .*Set td\['action'\]"),
        (torch.tensor([0.0, 1.0]), SpecError, r"action must be of dtype torch.int64; got torch.float32. Convert it"),
        (torch.tensor([0, 7]), SpecError, r"action must be one of the integers 0 to 2; got 7 at index \[1\]"),
        (torch.tensor(1), SpecError, r"action must be of shape \[2\]; got \[\]"),
        (torch.tensor([0, 1, 1]), SpecError, r"action must be of shape \[2\]; got \[3\]"),
        (torch.tensor([[0], [1]]), SpecError, r"action must be of shape \[2\]; got \[2, 1\]"),
        ([0, 1], SpecError, r"action must be a tensor; got list"),
    ],
)
def test_bad_actions(action, error, message):
    env = Counting()
    td = env.reset()
    if action is not None:
        td = {"action": action, **td} if isinstance(action, list) else TensorDict({"action": action}, [])
    with pytest.raises(error, match=message):
        env.step(td)


def test_continuous_actions_without_their_dimension():
    env = Pendulum(num_envs=2)
    env.reset()
    with pytest.raises(SpecError, match=r"action must be of shape \[.*1\]; got \[2\]"):
        env.step(TensorDict({"action": torch.zeros(2)}, []))


def test_step_before_reset_and_after_done():
    env = Counting((1,))
    with pytest.raises(EnvError, match=r"must be reset and not done; got never reset. Call env.reset\(\) first"):
        env.step(TensorDict({"action": torch.tensor([0])}, [1]))
    td = act(env, env.reset())
    with pytest.raises(EnvError, match="must be reset and not done; got 1 of 1 done"):
        act(env, td)
    assert act(env, env.reset())["next", "reward"].item() == 100


@pytest.mark.parametrize(
    "call",
    [
        lambda env: env.reset(),
        lambda env: env.step(TensorDict({"action": torch.tensor([0, 0])}, [2])),
        lambda env: env.rollout(3),
        lambda env: env.render(),
    ],
)
def test_closed_environment(call):
    env = CartPole(num_envs=2)
    env.reset()
    with env:
        pass
    env.close()  # twice is fine
    with pytest.raises(EnvError, match=r"This CartPole is closed. Make a new one"):
        call(env)


@pytest.mark.parametrize(
    "mask, message",
    [
        (torch.tensor(True), r"mask must be bool \[2\]; got torch.bool \[\]"),
        (torch.tensor([1, 0]), r"mask must be bool \[2\]; got torch.int64 \[2\]"),
        (torch.tensor([True, False, True]), r"mask must be bool \[2\]; got torch.bool \[3\]"),
    ],
)
def test_bad_masks(mask, message):
    env = Counting()
    with pytest.raises(SpecError, match=message):
        env.reset(env.reset(), mask=mask)


def test_a_partial_reset_needs_a_root():
    env = Counting()
    with pytest.raises(EnvError, match="A partial reset needs the current step"):
        env.reset(mask=torch.tensor([True, False]))


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "0", True])
def test_bad_seeds(seed):
    with pytest.raises(ConfigError, match=r"seed must be an integer in \[0, 2\*\*32\); got"):
        Counting().reset(seed=seed)


@pytest.mark.parametrize("num_envs", [0, -3, 2.0, "4"])
def test_bad_num_envs(num_envs):
    with pytest.raises(EnvError, match="num_envs must be None or a positive integer; got"):
        CartPole(num_envs=num_envs)


def test_no_picture():
    with pytest.raises(EnvError, match=r"Counting cannot render: it does not define _render\(index\)"):
        Counting().render()


def test_repr_names_the_specs():
    text = repr(CartPole(num_envs=3))
    assert text.startswith("CartPole(num_envs=3, device=cpu")
    assert "Categorical(2)" in text


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'Cartpole'"):
        rlbook.envs.Cartpole  # noqa: B018


# ---- rollouts --------------------------------------------------------------------------------------------------------------
def check_layout(data, env):
    """Check what holds in every rollout."""
    nxt, done = data["next"], data["next", "done"]
    assert torch.equal(done, nxt["terminated"] | nxt["truncated"])
    assert not (data["done"] | data["terminated"] | data["truncated"]).any()
    for key in (keys.REWARD, *keys.FLAGS):
        assert nxt[key].shape == data.batch_size
    goes_on = ~done[..., :-1]
    for key in env.observation_spec.leaves():
        assert torch.equal(data[key][..., 1:, :][goes_on], nxt[key][..., :-1, :][goes_on])


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("lengths", [3, [3], [2, 3, 9]])
def test_shape_of_a_rollout(lengths, steps):
    env = Counting(lengths)
    data = env.rollout(steps, break_when_any_done=False)
    assert data.batch_size == (*env.batch_size, steps)
    assert data["observation"].shape == (*env.batch_size, steps, 2)
    check_layout(data, env)


def test_golden_rollout():
    data = Counting((2, 3)).rollout(6)
    assert data["observation"][..., 1].tolist() == [[0, 1, 0, 1, 0, 1], [0, 1, 2, 0, 1, 2]]
    assert data["next", "observation"][..., 1].tolist() == [[1, 2, 1, 2, 1, 2], [1, 2, 3, 1, 2, 3]]
    assert data["next", "reward"].tolist() == [[100, 200, 100, 200, 100, 200], [101, 201, 301, 101, 201, 301]]
    assert data["next", "done"].tolist() == [[False, True] * 3, [False, False, True] * 2]


def test_where_a_rollout_stops():
    assert Counting(3).rollout(9).batch_size == (3,)  # one environment: at the end of the episode
    assert Counting(3).rollout(9, break_when_any_done=False).batch_size == (9,)
    assert Counting((4, 3)).rollout(9).batch_size == (2, 9)  # a batch resets itself
    stopped = Counting((4, 3)).rollout(9, break_when_any_done=True)
    assert stopped.batch_size == (2, 3)
    assert stopped["next", "done"].tolist() == [[False] * 3, [False, False, True]]


def test_both_endings_are_told_apart():
    env = CartPole(num_envs=8, seed=0, max_steps=12)
    data = env.rollout(60)
    check_layout(data, env)
    assert data["next", "terminated"].any()
    assert data["next", "truncated"].any()
    ended = data["next", "done"][..., :-1]
    assert (data["observation"][:, 1:][ended].abs() <= 0.05).all()  # a fresh start, while next keeps what ended:
    fell = data["next", "terminated"]
    outside = data["next", "observation"][fell].abs() > torch.tensor([2.4, torch.inf, 0.2094, torch.inf])
    assert outside.any(-1).all()


def test_same_seed_same_rollout():
    env = CartPole(num_envs=3)
    one, two, other = (env.rollout(40, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(value, two[key]) for key, value in one.items(True, True))
    assert not torch.equal(one["observation"], other["observation"])


@pytest.mark.parametrize("steps", [0, -1, 2.0])
def test_bad_lengths(steps):
    with pytest.raises(EnvError, match="max_steps must be a positive integer; got"):
        Counting().rollout(steps)


def test_the_loop_goes_on_where_it_stopped():
    loop = Loop(Counting((2, 3)), None, 4)
    first = loop.run().clone()
    second = loop.run()
    assert first["observation"][..., 1].tolist() == [[0, 1, 0, 1], [0, 1, 2, 0]]
    assert second["observation"][..., 1].tolist() == [[0, 1, 0, 1], [1, 2, 0, 1]]


def test_the_loop_starts_anew_when_something_else_moved_the_environment():
    env = Counting((9, 9))
    loop = Loop(env, None, 2)
    loop.run()
    env.reset()
    assert loop.run()["observation"][..., 1].tolist() == [[0, 1]] * 2
    native = CartPole(num_envs=2, seed=0)
    loop = Loop(native, None, 2)
    loop.run()
    native.set_state(native.state)
    assert (loop.run()["observation"][:, 0].abs() <= 0.05).all()


def test_the_loop_writes_into_the_same_memory():
    loop = Loop(CartPole(num_envs=2, seed=0), None, 5)
    one, two = loop.run(), None
    address = one["observation"].data_ptr()
    two = loop.run()
    assert two["observation"].data_ptr() == address


# ---- policies --------------------------------------------------------------------------------------------------------------
class Push(nn.Module):
    def forward(self, observation):
        return (observation[..., 2] > 0).long()


class PushNamed(nn.Module):
    def forward(self, td):
        td["action"] = (td["observation"][..., 2] > 0).long()
        td["score"] = td["observation"][..., 0]
        return td


class PushActor:
    """The hot loop's own protocol."""

    def draw_noise(self, shape, device=None):
        self.shape = tuple(shape)
        return torch.zeros(*shape)

    def act(self, leaves, noise):
        assert noise.shape == self.shape[1:]
        return {"action": (leaves["observation"][..., 2] + noise > 0).long(), "action_log_prob": noise}


POLICIES = {
    "function": lambda observation: (observation[..., 2] > 0).long(),
    "function of any one argument": lambda x: (x[..., 2] > 0).long(),
    "function of a TensorDict": lambda td: (td["observation"][..., 2] > 0).long(),
    "function that writes": lambda td: td.update({"action": (td["observation"][..., 2] > 0).long()}),
    "dictionary": lambda observation: {"action": (observation[..., 2] > 0).long()},
    "module": Push(),
    "module of a TensorDict": PushNamed(),
    "TensorDictModule": TensorDictModule(Push(), in_keys=["observation"], out_keys=["action"]),
    "actor": PushActor(),
}


@pytest.mark.parametrize("num_envs", [None, 3])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_anything_callable_is_a_policy(policy, num_envs):
    env = CartPole(num_envs, seed=0)
    data = env.rollout(30, policy, break_when_any_done=False)
    assert torch.equal(data["action"], (data["observation"][..., 2] > 0).long())
    check_layout(data, env)


def test_what_else_a_policy_returns_is_kept():
    data = CartPole(num_envs=2, seed=0).rollout(4, PushNamed())
    assert torch.equal(data["score"], data["observation"][..., 0])
    data = CartPole(num_envs=2, seed=0).rollout(4, PushActor())
    assert data["action_log_prob"].shape == (2, 4)


def test_a_function_gets_the_entries_that_it_names():
    seen = []

    def policy(right, left):
        seen.append((right[0, 0].item(), left[0, 0].item()))
        return torch.zeros(2, dtype=torch.int64)

    env = Counting((9, 9), entries=("left", "right", "observation"))
    env.rollout(2, policy)
    assert seen == [(0, 0), (0, 0)]
    env.rollout(2, lambda whatever: torch.zeros(2, dtype=torch.int64))  # several entries: the one called observation
    nested = Counting((9, 9), entries=(("arm", "joint"), "goal"))
    nested.rollout(2, lambda arm_joint: torch.zeros(2, dtype=torch.int64))


def test_a_function_of_no_entry():
    with pytest.raises(PolicyError, match=r"must be observation entries; got \(x\). Name its arguments after .*: left, right"):
        Counting(entries=("left", "right")).rollout(2, lambda x: x)


def test_plain_python_actions():
    assert GridWorld(seed=0).rollout(3, lambda observation: 2, break_when_any_done=False)["action"].tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "policy, error, message",
    [
        (3, PolicyError, "A policy must be callable; got int. Pass an Actor"),
        (lambda td: td.set("actions", td["observation"]), PolicyError, r"must be an action, or have the key 'action'; got"),
        (lambda observation: {"logits": observation}, PolicyError, r"key 'action'; got the keys \['logits'\]. Rename its output"),
        (lambda td: td["pixels"], MissingKeyError, r"What the policy reads .*must be an observation entry; got the keys"),
        (lambda td: 3, PolicyError, "must be a TensorDict or a tensor; got int"),
        (lambda observation: observation[..., 0], PolicyError, "does not take. action must be of dtype torch.int64"),
        (lambda observation: torch.zeros(3, 1, dtype=torch.int64), PolicyError, r"action must be of shape \[.*\]; got \[3, 1\]"),
        (lambda observation: torch.tensor(1), PolicyError, r"action must be of shape \[3\]; got \[\]"),
        (lambda observation: torch.full((3,), 5), PolicyError, "action must be one of the integers 0 to 1; got 5"),
    ],
)
def test_bad_policies(policy, error, message):
    with pytest.raises(error, match=message):
        CartPole(num_envs=3).rollout(4, policy)


def test_an_actor_with_a_bad_action():
    class Bad(PushActor):
        def act(self, leaves, noise):
            return {"act": noise}

    with pytest.raises(PolicyError, match="or have the key 'action'"):
        CartPole(num_envs=3).rollout(4, Bad())


def test_a_policy_that_changes_its_mind():
    calls = []

    def policy(observation):
        calls.append(1)
        return torch.zeros((3,) if len(calls) < 3 else (3, 1), dtype=torch.int64)

    with pytest.raises(PolicyError, match=r"action must be of shape"):
        CartPole(num_envs=3).rollout(4, policy)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_reward_that_is_not_finite(value):
    class Bad(Counting):
        def _step(self, action):
            out = super()._step(action)
            return {**out, "reward": torch.where((self.t == 2) & (torch.arange(2) == 1), value, out["reward"])}

    with pytest.raises(NonFiniteError, match=rf"reward must be finite; got {value} at index \[1, 1\] of \[\*batch, time\]"):
        Bad((9, 9)).rollout(4)


def test_rewards_of_both_infinities_are_seen():
    class Bad(Counting):
        def _step(self, action):
            return {**super()._step(action), "reward": torch.tensor([torch.inf, -torch.inf])}

    with pytest.raises(NonFiniteError, match="reward must be finite"):
        Bad((9, 9)).rollout(4)


def test_an_observation_outside_its_spec():
    with pytest.raises(SpecError, match="observation must be between 0 and 10; got 11"):
        Counting((20,)).rollout(15)


def test_an_observation_of_the_wrong_shape():
    class Bad(Counting):
        def _look(self):
            return {"observation": torch.zeros(2, 1)}

    with pytest.raises(SpecError, match=r"Bad._reset: observation must be of shape \[2, 2\]; got \[2, 1\]. .*check_env"):
        Bad().rollout(3)


def test_an_environment_that_forgets_its_reward():
    class Bad(Counting):
        def _step(self, action):
            out = super()._step(action)
            del out["reward"]
            return out

    with pytest.raises(MissingKeyError, match=r"What Bad._step returns must be a dictionary with 'reward'"):
        Bad().rollout(3)


def test_composite_actions():
    class Two(Counting):
        def __init__(self):
            super().__init__((9, 9))
            self.action_spec = Composite({"gear": Categorical(3), "gas": Unbounded(2)})

        def _step(self, action):
            assert action["gear"].shape == (2,)
            return super()._step(action)

    env = Two()
    data = env.rollout(4)
    assert data["action", "gas"].shape == (2, 4, 2)
    td = env.reset().set("action", env.random_actions())
    assert env.step(td)["next", "reward"].shape == (2,)
