"""Bad input: one clear error that names the mistake and the fix; nothing hangs, and no process is left behind."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from toys import Clock

from leaks import left_behind
from rlbook import MLP, Actor, CartPole, Collector, Env, GymEnv, Pendulum, PPOLoss, RewardSum, TransformedEnv, ValueHead
from rlbook.envs.make import make_env
from rlbook.errors import (
    EnvError,
    MissingKeyError,
    NonFiniteError,
    PolicyError,
    SpecError,
    UnknownEnvError,
)
from rlbook.specs import Bounded, Categorical, Composite
from rlbook.trainers import evaluate

ENVS: dict[str, Callable[[], Env]] = {
    "native": lambda: CartPole(2, seed=0),
    "gym_alone": lambda: GymEnv("CartPole-v1", seed=0),
    "gym_vector": lambda: GymEnv("CartPole-v1", num_envs=2, seed=0, vectorization="entry_point"),
    "gym_per_env": lambda: GymEnv("CartPole-v1", num_envs=2, seed=0, vectorization="per_env"),
    "transformed": lambda: TransformedEnv(GymEnv("CartPole-v1", num_envs=2, seed=0, vectorization="entry_point"), RewardSum()),
    "toy": lambda: Clock(2),
}
each_env = pytest.mark.parametrize("make", ENVS.values(), ids=ENVS)
DRIVERS: dict[str, Callable] = {
    "rollout": lambda env, policy: env.rollout(8, policy, break_when_any_done=False),
    "collector": lambda env, policy: Collector(env, policy, frames_per_batch=8 * env.num_envs).collect(),
    "evaluate": lambda env, policy: evaluate(env, policy, 2),
}
each_way = pytest.mark.parametrize("drive", DRIVERS.values(), ids=DRIVERS)


@pytest.fixture(autouse=True)
def nothing_hangs_and_no_process_is_left() -> Iterator[None]:
    def stop(*_):
        raise TimeoutError("this test hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    assert not left_behind()


# ---- actions -----------------------------------------------------------------------------------------------------------------
BAD_ACTIONS: dict[str, tuple[Callable[[tuple[int, ...]], torch.Tensor], str]] = {
    "trailing_one": (lambda batch: torch.zeros(*batch, 1, dtype=torch.int64), r"got \[.*1\]"),
    "too_many": (lambda batch: torch.zeros(5, dtype=torch.int64), r"got \[5\]"),
    "float": (lambda batch: torch.zeros(batch), r"of dtype torch.int64; got torch.float32. Convert it with .to\(torch.int64\)"),
    "out_of_range": (lambda batch: torch.full(batch, 2), "one of the integers 0 to 1; got 2.*spec.project"),
}
bad_action = pytest.mark.parametrize(("action", "match"), BAD_ACTIONS.values(), ids=BAD_ACTIONS)


@each_env
@bad_action
def test_step_with_a_bad_action(make, action, match):
    env = make()
    td = env.reset()
    td["action"] = torch.zeros(env.batch_size, dtype=torch.int64)
    bad = action(tuple(env.batch_size))
    td = TensorDict(dict(td.items()), []).set("action", bad)
    with pytest.raises(SpecError, match=f"^action must be .*{match}"):
        env.step(td)


@each_env
@each_way
@bad_action
def test_a_policy_with_a_bad_action(make, drive, action, match):
    env = make()
    with pytest.raises(
        PolicyError, match=f"The policy returned an action that the environment does not take. action must .*{match}"
    ):
        drive(env, lambda observation: action(tuple(env.batch_size)))


@each_way
def test_a_policy_that_goes_wrong_later(drive):
    actor = Actor(MLP(2, 3), Bounded(-2.0, 2.0, (1,)))
    env = Pendulum(2, seed=0)
    env.rollout(2, actor)
    with torch.no_grad():
        actor.net[-1].bias.fill_(float("nan"))
    with pytest.raises(PolicyError, match=r"action must be free of NaN.*diverged network"):
        drive(env, actor)

    calls = []

    def weakening(observation):
        calls.append(1)
        return torch.zeros(2, 1) if len(calls) < 4 else torch.zeros(2, 1, 1) if len(calls) < 5 else None

    with pytest.raises(PolicyError, match="action"):
        drive(env, weakening)


def test_a_network_that_diverges_between_batches():
    env = Pendulum(2, seed=0)
    actor = Actor(MLP(2, 3), env.action_spec)
    collector = Collector(env, actor, frames_per_batch=16)
    collector.collect()
    with torch.no_grad():
        actor.net[-1].bias.fill_(float("nan"))
    with pytest.raises(PolicyError, match=r"action must be free of NaN.*diverged network"):
        collector.collect()


# ---- policies ----------------------------------------------------------------------------------------------------------------
@each_env
@each_way
def test_a_policy_with_the_wrong_key(make, drive):
    env = make()
    act = torch.zeros(env.batch_size, dtype=torch.int64)
    for policy in (
        lambda observation: {"act": act},
        lambda td: td.set("act", act),
        TensorDictModule(lambda observation: act, ["observation"], ["act"]),
    ):
        with pytest.raises(PolicyError, match=r"What a policy returns must be an action, .*'action'; got the keys .*act.*Rename"):
            drive(env, policy)


@each_way
def test_a_policy_that_reads_the_wrong_key(drive):
    env = CartPole(2, seed=0)
    for policy in (Actor(MLP(2), env.action_spec, in_keys=["obs"]), TensorDictModule(MLP(2), ["obs"], ["action"])):
        with pytest.raises(MissingKeyError, match=r"(?s)(?=.*'observation')(?=.*'obs').*in_keys"):
            drive(env, policy)


@pytest.mark.parametrize(
    ("policy", "match"), [(3, "callable; got int"), (lambda td: "left", "a TensorDict or a tensor; got str")]
)
def test_what_is_no_policy(policy, match):
    with pytest.raises(PolicyError, match=match):
        CartPole(2).rollout(3, policy)


# ---- environments ------------------------------------------------------------------------------------------------------------
class Broken(gymnasium.Env):
    """An environment that goes wrong in its third step."""

    def __init__(self, fault: str):
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.fault, self.t = fault, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        observation, reward = np.zeros(2, np.float32), 1.0
        if self.t == 3:
            observation[1] = {"high": 7.0, "nan": np.nan}.get(self.fault, 0.0)
            reward = {"reward_nan": np.nan, "reward_inf": np.inf}.get(self.fault, 1.0)
        return observation, reward, False, self.t >= 6, {}


class BrokenTensors(Env):
    """The same in tensors."""

    def __init__(self, fault: str):
        self.broken = Broken(fault)
        super().__init__(Composite({"observation": Bounded(-1.0, 1.0, (2,))}), Categorical(2), num_envs=2)

    def _reset(self, mask):
        self.broken.reset()
        return {"observation": torch.zeros(2, 2)}

    def _step(self, action):
        observation, reward, over, cut, _ = self.broken.step(0)
        rows = {"observation": observation, "reward": np.float32(reward), "terminated": over, "truncated": cut}
        return {key: torch.stack([torch.as_tensor(value)] * 2) for key, value in rows.items()}


FAULTS = {
    "high": (SpecError, "observation must be between -1 and 1; got 7 at index"),
    "nan": (SpecError, "observation must be free of NaN; got NaN at index"),
    "reward_nan": (NonFiniteError, r"reward must be finite; got nan at index \[.*2\] of .*time\]. Mend the environment's reward"),
    "reward_inf": (NonFiniteError, r"reward must be finite; got inf at index \[.*2\]"),
}


@each_way
@pytest.mark.parametrize(("fault", "error", "match"), [(name, *rest) for name, rest in FAULTS.items()], ids=FAULTS)
@pytest.mark.parametrize(
    "make",
    [
        lambda fault: GymEnv(Broken(fault)),
        lambda fault: GymEnv(lambda: Broken(fault), num_envs=2),
        BrokenTensors,
        lambda fault: TransformedEnv(GymEnv(lambda: Broken(fault), num_envs=2), RewardSum()),
    ],
    ids=["gym_alone", "gym_per_env", "tensors", "transformed"],
)
def test_an_environment_that_leaves_its_spec(make, drive, fault, error, match):
    with pytest.raises(error, match=match):
        drive(make(fault), None)


def test_an_environment_that_goes_wrong_can_be_looked_at():
    data = Collector(GymEnv(Broken("reward_nan")), frames_per_batch=5, check=False).collect()
    assert data["next", "reward"].isnan().tolist() == [False, False, True, False, False]


class Misfit(Clock):
    """A Clock that returns what does not fit."""

    def __init__(self, change: Callable[[dict], dict]):
        super().__init__(2)
        self.change = change

    def _step(self, action):
        return self.change(super()._step(action))


@each_way
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (
            lambda out: {**out, "observation": out["observation"][0]},
            SpecError,
            r"_step: observation must be of shape \[2, 3\]; got \[3\]",
        ),
        (lambda out: {**out, "reward": out["reward"][0]}, SpecError, r"_step: reward must be of shape \[2\]; got \[\]"),
        (lambda out: {**out, "reward": out["reward"].unsqueeze(-1)}, SpecError, r"reward must be of shape \[2\]; got \[2, 1\]"),
        (lambda out: {k: v for k, v in out.items() if k != "reward"}, MissingKeyError, "Misfit._step returns .*'reward'; got"),
    ],
)
def test_what_does_not_fit_is_not_broadcast(drive, change, error, match):
    with pytest.raises(error, match=f"{match}.*check_env"):
        drive(Misfit(change), None)


@each_env
@each_way
def test_a_closed_environment(make, drive):
    env = make()
    drive(env, None)
    env.close()
    env.close()  # twice is fine
    with pytest.raises(EnvError, match=f"This {type(env).__name__} is closed. Make a new one"):
        drive(env, None)


@each_env
def test_a_closed_environment_by_hand(make):
    with make() as env:
        td = env.reset().set("action", torch.zeros(env.batch_size, dtype=torch.int64))
    for use in (env.reset, lambda: env.step(td), env.render):
        with pytest.raises(EnvError, match="is closed"):
            use()


def test_an_environment_that_is_closed_between_batches():
    env = CartPole(2)
    collector = Collector(env, frames_per_batch=8)
    collector.collect()
    env.close()
    with pytest.raises(EnvError, match="is closed"):
        next(iter(collector))


@pytest.mark.parametrize("make", [GymEnv, lambda name: GymEnv(name, num_envs=2), make_env, lambda name: make_env(name, 2)])
@pytest.mark.parametrize(
    ("name", "near"), [("CartPole-v9", "CartPole-v1"), ("Cartpole-v1", "CartPole-v1"), ("HalfCheeta-v5", "HalfCheetah-v5")]
)
def test_an_unknown_environment(make, name, near):
    with pytest.raises(UnknownEnvError, match=f"env must be a registered Gymnasium id; got '{name}'. Did you mean .*{near}"):
        make(name)


@each_env
def test_stepping_out_of_turn(make):
    env = make()
    td = TensorDict({"action": torch.zeros(env.batch_size, dtype=torch.int64)}, env.batch_size)
    with pytest.raises(EnvError, match=r"reset and not done; got never reset. Call env.reset\(\) first"):
        env.step(td)
    env.reset()
    with pytest.raises(MissingKeyError, match=r"one with an 'action'; got keys \['observation'.*Set td\['action'\]"):
        env.step(env.reset())


def test_stepping_a_row_that_is_still_done():
    env = Clock(4)
    root = env.reset()
    for _ in range(2):
        step = env.step(root.set("action", torch.zeros(4, dtype=torch.int64)))
        root = step["next"].exclude("reward")
    assert root["done"].tolist() == [True, False, False, False]
    none = torch.zeros(4, dtype=torch.bool)
    root = env.reset(root, mask=none).set("action", torch.zeros(4, dtype=torch.int64))
    with pytest.raises(EnvError, match="reset and not done; got 1 of 4 done"):
        env.step(root)
    env.step(env.reset(root, mask=~none).set("action", torch.zeros(4, dtype=torch.int64)))


# ---- training ----------------------------------------------------------------------------------------------------------------
def test_a_rollout_without_advantages():
    env = CartPole(2, seed=0)
    actor = Actor(MLP(2, 4), env.action_spec)
    with pytest.raises(MissingKeyError, match=r"one with 'value_target'; got the keys .*GAE\(value, gamma=0.99"):
        PPOLoss(actor, ValueHead(MLP(1, 4)))(env.rollout(4, actor))


def test_a_rollout_of_another_policy():
    env = CartPole(2, seed=0)
    data = env.rollout(4).set("advantage", torch.zeros(2, 4))
    with pytest.raises(MissingKeyError, match=r"one with 'action_log_prob'.*Collect with the actor that is trained"):
        PPOLoss(Actor(MLP(2, 4), env.action_spec))(data)


@pytest.mark.parametrize(
    ("out", "match"), [(None, "got None. Look for a missing return"), ("left", "got 'left'"), (..., "got Ellipsis")]
)
def test_what_is_no_action(out, match):
    with pytest.raises(PolicyError, match=r"What a policy returns must be an action, Categorical\(2\); " + match):
        CartPole().rollout(3, lambda observation: out)


def test_a_policy_of_one_environment_on_many():
    def balance(observation):
        _, _, angle, _ = observation
        return int(angle > 0)

    CartPole().rollout(3, balance)
    with pytest.raises(ValueError, match="too many values") as caught:
        CartPole(num_envs=10).rollout(3, balance)
    assert "observation is [10, 4] here, all 10 environments at once" in caught.value.__notes__[0]
