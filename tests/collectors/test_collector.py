"""Collectors: what they hand out is what happened, in order, once; eager or compiled."""

from __future__ import annotations

import gymnasium
import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close
from toys import Clock, clock_rollout

from rlbook import (
    MLP,
    Actor,
    CartPole,
    Collector,
    Compose,
    GridWorld,
    GymEnv,
    Pendulum,
    RewardSum,
    StepCounter,
    TransformedEnv,
    seed_everything,
)
from rlbook.errors import ConfigError, EnvError, PolicyError
from rlbook.modules import make_actor
from rlbook.trainers import evaluate

MAKERS = {
    "CartPole": lambda: CartPole(4, max_steps=12),
    "Pendulum": lambda: Pendulum(4, max_steps=10),
    "GridWorld": lambda: GridWorld.frozen_lake(num_envs=4),
    "GymEnv": lambda: GymEnv("CartPole-v1", num_envs=4, vectorization="entry_point"),
    "GymEnv-per_env": lambda: GymEnv("Pendulum-v1", num_envs=2, vectorization="per_env", max_episode_steps=12),
    "transformed": lambda: TransformedEnv(CartPole(4, max_steps=12), Compose(StepCounter(), RewardSum())),
    "transformed-GymEnv": lambda: TransformedEnv(
        GymEnv("CartPole-v1", num_envs=2, vectorization="entry_point"), Compose(StepCounter(), RewardSum())
    ),
}
COMPILED = ("CartPole", "Pendulum", "GridWorld", "transformed")


def assert_is_clock(data, rows: int, start: int, stop: int) -> None:
    for key, expected in clock_rollout(rows, start, stop).items():
        assert torch.equal(data[key].reshape(expected.shape), expected), key


# ---- what it hands out -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("num_envs", [None, 1, 4])
@pytest.mark.parametrize("steps", [1, 7])
def test_every_step_once_and_in_order_across_batches(num_envs, steps):
    rows = num_envs or 1
    collector = Collector(Clock(num_envs), frames_per_batch=rows * steps, total_frames=rows * steps * 5)
    for i, data in enumerate(collector):
        assert data.shape == (*Clock(num_envs).batch_size, steps)
        assert_is_clock(data, rows, i * steps, (i + 1) * steps)
    assert i == 4


def test_the_policy_sees_what_is_stored():
    def policy(observation):
        return (observation[..., 1] % 2).long()  # the time

    for data in Collector(Clock(4), policy, frames_per_batch=20, total_frames=60):
        assert torch.equal(data["action"], (data["observation"][..., 1] % 2).long())


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_finished_episodes_are_reset_in_the_same_step(make):
    env = make()
    collector = Collector(env, frames_per_batch=30 * env.num_envs)
    data = torch.cat([collector.collect().clone() for _ in range(2)], -1)
    done = data["next", "done"][:, :-1]
    assert done.any()
    for key in env.observation_spec.leaves():
        after, root = data["next", key][:, :-1], data[key][:, 1:]
        assert torch.equal(after[~done], root[~done])
    assert torch.equal(data["next", "done"], data["next", "terminated"] | data["next", "truncated"])
    assert not data["done"].any()
    if "step_count" in data.keys():
        assert not data["step_count"][:, 1:][done].any()
        assert torch.equal(data["next", "step_count"], data["step_count"] + 1)
        assert_close(data["next", "episode_reward"], data["episode_reward"] + data["next", "reward"])


def test_the_memory_is_reused_and_clones_are_kept():
    collector = Collector(Clock(2), frames_per_batch=10)
    first = collector.collect()
    kept = first.clone()
    second = collector.collect()
    assert torch.equal(first["next", "reward"], second["next", "reward"])
    assert second["next", "reward"].data_ptr() == first["next", "reward"].data_ptr()
    assert_is_clock(kept, 2, 0, 5)


def test_what_the_user_adds_or_changes_stays_with_its_batch():
    collector = Collector(Clock(2), frames_per_batch=10)
    data = collector.collect()
    data["advantage"] = data["next", "advantage"] = torch.zeros(2, 5)
    del data["action"]
    data["observation"].zero_()
    data["next", "observation"].zero_()
    data = collector.collect()
    assert "advantage" not in {*data.keys(), *data["next"].keys()}
    assert "action" in data.keys()
    assert_is_clock(data, 2, 5, 10)


@pytest.mark.parametrize(("total", "batches"), [(None, None), (1, 1), (8, 1), (9, 2), (24, 3)])
def test_length(total, batches):
    collector = Collector(Clock(2), frames_per_batch=8, total_frames=total)
    if total is None:
        with pytest.raises(TypeError, match="no end"):
            len(collector)
        return
    assert len(collector) == batches == sum(1 for _ in collector)
    assert collector.frames == 8 * batches
    assert repr(collector) == f"Collector(Clock, frames={8 * batches}/{total}, 8 per batch)"


def test_a_loop_that_was_left_goes_on():
    collector = Collector(Clock(2), frames_per_batch=8, total_frames=24)
    for _ in collector:
        break
    assert [data["observation"][0, 0, 1].item() for data in collector] == [4, 8]


# ---- other hands on the environment ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "move",
    [
        lambda env: env.rollout(3),
        lambda env: env.reset(),
        lambda env: env.step(env.reset().set("action", torch.zeros(2, dtype=torch.int64))),
        lambda env: evaluate(env, None, 2),
        lambda env: Collector(env, frames_per_batch=6).collect(),
        lambda env: env.seed(7),
    ],
    ids=["rollout", "reset", "step", "evaluate", "collector", "seed"],
)
def test_an_environment_that_was_used_in_between_starts_anew(move):
    env = Clock(2)
    collector = Collector(env, frames_per_batch=10)
    collector.collect()
    move(env)
    assert_is_clock(collector.collect(), 2, 0, 5)
    assert_is_clock(collector.collect(), 2, 5, 10)


def test_an_interrupted_batch_starts_anew():
    calls = []

    def policy(observation):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return torch.zeros(2, dtype=torch.int64)

    collector = Collector(Clock(2), policy, frames_per_batch=10)
    collector.collect()
    with pytest.raises(KeyboardInterrupt):
        collector.collect()
    assert collector.frames == 10
    assert_is_clock(collector.collect(), 2, 0, 5)


@pytest.mark.parametrize("name", ["CartPole", "GymEnv", "GymEnv-per_env", "transformed"])
def test_a_new_seed_starts_the_stream_of_that_seed(name):
    env = MAKERS[name]()
    collector = Collector(env, frames_per_batch=25 * env.num_envs)
    collector.collect()
    env.seed(3)
    again = collector.collect()
    fresh = Collector(MAKERS[name](), frames_per_batch=25 * env.num_envs, seed=3).collect()
    assert torch.equal(again["observation"], fresh["observation"])


@pytest.mark.parametrize("name", ["GymEnv", "GymEnv-per_env", "transformed-GymEnv"])
def test_a_new_seed_waits_for_a_full_reset(name):
    env = MAKERS[name]()
    root = env.reset()
    first = torch.arange(env.num_envs) == 0
    env.seed(3)
    partly = env.reset(root, mask=first)
    assert torch.equal(partly["observation"][1:], root["observation"][1:])
    assert torch.equal(env.reset()["observation"], MAKERS[name]().reset(seed=3)["observation"])


# ---- reproducibility ---------------------------------------------------------------------------------------------------------
def collected(make, seed: int, batches: int = 3, random: bool = False, **options):
    seed_everything(seed)
    env = make()
    policy = None if random else make_actor(env)
    collector = Collector(env, policy, frames_per_batch=16 * env.num_envs, seed=seed, **options)
    return torch.cat([collector.collect().clone() for _ in range(batches)], -1)


@pytest.mark.parametrize("random", [True, False], ids=["random", "actor"])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_same_seed_gives_the_same_data_bit_for_bit(make, random):
    first, second, other = (collected(make, seed, random=random) for seed in (5, 5, 6))
    for key, value in first.items(True, True):
        assert torch.equal(value, second[key]), key
    assert not torch.equal(first["action"], other["action"])


# ---- compiled ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_equals_eager(name, quick_compile):
    eager, compiled = (collected(MAKERS[name], 5, compile=compile) for compile in (False, True))
    assert eager["next", "done"][:, 16:].any()
    for key, value in eager.items(True, True):
        if value.is_floating_point():
            assert_close(compiled[key], value, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(compiled[key], value), key


def test_compiled_collectors_do_not_share_their_code(quick_compile):
    def lengths(max_steps: int) -> set[int]:
        env = TransformedEnv(Pendulum(2, max_steps=max_steps, seed=0), StepCounter())
        collector = Collector(env, frames_per_batch=48, compile=True)
        data = [collector.collect() for _ in range(2)][-1]
        return set(data["next", "step_count"][data["next", "done"]].tolist())

    assert lengths(4) == {4}
    assert lengths(6) == {6}


def test_compiled_code_follows_the_weights(quick_compile):
    env = CartPole(2, seed=0)
    actor = Actor(MLP(2, 4), env.action_spec)
    collector = Collector(env, actor, frames_per_batch=8, compile=True)
    for _ in range(2):
        collector.collect()
    with torch.no_grad():
        actor.net[-1].bias.copy_(torch.tensor([-100.0, 100.0]))
    assert collector.collect()["action"].all()


def test_a_policy_that_cannot_be_compiled_runs_eagerly_and_says_why(quick_compile):
    def policy(observation):
        return (observation[..., 2] > 0).long() if observation.sum() > -1e9 else None

    collector = Collector(CartPole(2, seed=0), policy, frames_per_batch=8, compile=True)
    collector.collect()
    with pytest.warns(UserWarning, match=r"The collection from CartPole runs eagerly: .*[Dd]ata-dependent"):
        collector.collect()
    data = collector.collect()  # says it once
    assert torch.equal(data["action"], (data["observation"][..., 2] > 0).long())


@pytest.mark.parametrize("policy", ["actor", "function", "tensordict"])
def test_of_other_environments_the_policy_is_compiled(policy, quick_compile):
    def collected(compile: bool):
        seed_everything(5)
        env = GymEnv("CartPole-v1", num_envs=4)
        actor = make_actor(env)
        way = {
            "actor": actor,
            "function": lambda observation: actor.net(observation).argmax(-1),
            "tensordict": lambda td: td.set("action", actor.net(td["observation"]).argmax(-1)),
        }[policy]
        collector = Collector(env, way, frames_per_batch=80, seed=5, compile=compile)
        batches = [collector.collect().clone()]
        with torch.no_grad():
            actor.net[-1].bias.add_(torch.tensor([0.5, -0.5]))  # compiled code reads the weights anew
        return torch.cat([*batches, collector.collect()], -1), collector

    (eager, _), (compiled, collector) = collected(False), collected(True)
    assert collector._loop._compiled is not None
    assert eager["next", "done"].any()
    for key, value in eager.items(True, True):
        assert_close(compiled[key], value, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor imports torch.jit
def test_machine_code_of_a_policy_equals_eager():
    (eager, compiled) = (collected(MAKERS["GymEnv"], 5, compile=compile) for compile in (False, True))
    for key, value in eager.items(True, True):
        assert_close(compiled[key], value, rtol=1e-5, atol=1e-5)


def test_a_policy_that_branches_runs_eagerly_in_other_environments_too(quick_compile):
    def policy(observation):
        return (observation[..., 2] > 0).long() if observation.sum() > -1e9 else None

    collector = Collector(GymEnv("CartPole-v1", num_envs=2), policy, frames_per_batch=8, compile=True)
    with pytest.warns(UserWarning, match=r"The policy that steps GymEnv runs eagerly: .*[Dd]ata-dependent"):
        collector.collect()
    data = collector.collect()  # says it once
    assert torch.equal(data["action"], (data["observation"][..., 2] > 0).long())


class Noisy:
    """A policy whose random numbers are no tensor."""

    def draw_noise(self, shape, device=None):
        return TensorDict({"u": torch.rand(shape)}, shape)

    def act(self, leaves, noise):
        return {"action": (noise["u"] > 0.5).long()}


def test_other_arguments_than_tensors_are_not_compiled(quick_compile):
    collector = Collector(GymEnv("CartPole-v1", num_envs=4), Noisy(), frames_per_batch=80, compile=True)
    with pytest.warns(UserWarning, match=r"GymEnv runs eagerly: .*other arguments than tensors"):
        collector.collect()
    assert 0 < collector.collect()["action"].float().mean() < 1


# ---- errors --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"frames_per_batch": 10}, "positive multiple of num_envs=4; got 10. Pass for example 8"),
        ({"frames_per_batch": 0}, "positive multiple of num_envs=4; got 0. Pass for example 4"),
        ({"frames_per_batch": -4}, "positive multiple of num_envs=4; got -4"),
        ({"frames_per_batch": 8.0}, "positive multiple of num_envs=4; got 8.0. Pass for example 8"),
        ({"total_frames": 0}, "total_frames must be a positive integer or None; got 0"),
        ({"total_frames": 1e6}, "total_frames must be a positive integer or None; got 1000000.0"),
        ({"seed": -1}, "seed must be an integer in"),
    ],
)
def test_bad_settings(options, match):
    with pytest.raises(ConfigError, match=match):
        Collector(Clock(4), **{"frames_per_batch": 8, **options})


def test_an_environment_of_another_library_is_explained():
    with pytest.raises(EnvError, match=r"env must be an rlbook Env; got .*Wrap a Gymnasium environment in GymEnv\(env\)"):
        Collector(gymnasium.make("CartPole-v1"), frames_per_batch=8)


# ---- on a GPU ------------------------------------------------------------------------------------------------------------------
@pytest.mark.cuda
@pytest.mark.parametrize("compile", [False, True])
def test_cuda_collects_what_the_cpu_does(compile):
    def data(device):
        env = TransformedEnv(CartPole(16, device=device, seed=0), RewardSum())
        collector = Collector(env, frames_per_batch=16 * 32, compile=compile)
        return torch.cat([collector.collect().clone() for _ in range(2)], -1)

    gpu, cpu = data("cuda"), data("cpu")
    assert gpu.device.type == "cuda"
    for key, value in cpu.items(True, True):
        assert gpu[key].device.type == "cuda"
        assert_close(gpu[key].cpu(), value, rtol=1e-3, atol=1e-3)


def test_a_state_in_memory_does_not_change():
    collector = Collector(CartPole(num_envs=2, seed=0), frames_per_batch=8)
    collector.collect()
    state = collector.state_dict()
    first = collector.collect().clone()
    collector.load_state_dict(state)
    assert torch.equal(first["observation"], collector.collect()["observation"])


@pytest.mark.parametrize("kind", ["flag", "lost"])
def test_what_a_policy_may_not_return(kind):
    match = {"flag": r"none of the environment's entries; got \['done'\]", "lost": "the same entries"}[kind]
    calls = []

    def policy(observation):
        calls.append(1)
        out = {"action": torch.zeros(2, dtype=torch.long)}
        if kind == "flag":
            return out | {"done": torch.ones(2, dtype=torch.bool)}
        return out | {"value": torch.zeros(2)} if len(calls) == 1 else out

    with pytest.raises(PolicyError, match=match):
        CartPole(num_envs=2, seed=0).rollout(5, policy)
