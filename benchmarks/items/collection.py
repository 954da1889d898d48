"""Collecting 2048 frames of CartPole with an actor of two hidden layers of 64 tanh units that samples its actions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks import peers
from benchmarks.harness import Case, Make, Task, faster

NAME = "CartPole-v1"
SERIAL, WRAPPED, SB3 = "torchrl (SerialEnv)", "torchrl (GymWrapper of SyncVectorEnv)", "sb3 collect_rollouts"
NOTE = (
    "SB3's `collect_rollouts` also evaluates its critic at every step and ends with the advantages: the line `rlbook, then GAE` "
    "does the same. `plain loop` is CleanRL's design, on tensors allocated beforehand, with the critic, without the advantages."
)


def rlbook_of(make: Callable[[], Any], frames: int, then_gae: bool = False, compile: bool = False) -> Make:
    """Return what prepares rlbook's collector, followed by its estimator if wanted."""

    def prepare() -> Task:
        from rlbook import GAE, Collector
        from rlbook.modules import make_actor, make_value

        env = make()
        collector = Collector(env, make_actor(env), frames_per_batch=frames, compile=compile)
        estimator = GAE(make_value(env))
        return (lambda: estimator(collector.collect())) if then_gae else collector.collect

    return prepare


def torchrl_of(make: Callable[[str, int], Any], num_envs: int, frames: int) -> Make:
    """Return what prepares TorchRL's single-process collector."""

    def prepare() -> Task:
        from torchrl.collectors import Collector

        policy = peers.torchrl_actor(peers.mlp(2))
        batches = iter(Collector(make(NAME, num_envs), policy, frames_per_batch=frames, total_frames=-1))
        return lambda: next(batches)

    return prepare


def sb3_of(num_envs: int, frames: int) -> Make:
    """Return what prepares the collecting half of SB3's PPO."""

    def prepare() -> Task:
        from stable_baselines3.common.callbacks import CallbackList

        env = peers.sb3_envs(NAME, num_envs)
        agent = peers.sb3_ppo(env, n_steps=frames // num_envs, batch_size=frames)
        callback = CallbackList([])
        callback.init_callback(agent)
        return lambda: agent.collect_rollouts(env, callback, agent.rollout_buffer, frames // num_envs)

    return prepare


def plain_of(num_envs: int, frames: int) -> Make:
    """Return what prepares the loop of CleanRL's PPO, written anew."""

    def prepare() -> Task:
        import gymnasium

        steps, agent = frames // num_envs, peers.PlainAgent()
        env = gymnasium.make_vec(NAME, num_envs, vectorization_mode="sync")
        memory = {key: torch.zeros(steps, num_envs) for key in ("action", "log_prob", "reward", "done", "value")}
        observations = torch.zeros(steps, num_envs, 4)
        state = {"observation": torch.tensor(env.reset(seed=0)[0]), "done": torch.zeros(num_envs)}

        def run() -> None:
            for t in range(steps):
                observations[t], memory["done"][t] = state["observation"], state["done"]
                with torch.no_grad():
                    action, log_prob, _, value = agent(state["observation"])
                memory["action"][t], memory["log_prob"][t], memory["value"][t] = action, log_prob, value
                observation, reward, terminated, truncated, _ = env.step(action.numpy())
                memory["reward"][t] = torch.tensor(reward)
                state.update(observation=torch.tensor(observation), done=torch.tensor(terminated | truncated).float())

        return run

    return prepare


def cases(size: str = "full") -> Iterator[Case]:
    frames = 128 if size == "tiny" else 2048

    def gym(num_envs: int, how: str = "auto") -> Callable[[], Any]:
        def make() -> Any:
            from rlbook import GymEnv

            return GymEnv(NAME, num_envs, vectorization=how, seed=0)

        return make

    def native() -> Any:
        from rlbook import CartPole

        return CartPole(num_envs=64, seed=0)

    per_env = {8: gym(8, "per_env"), 64: gym(64, "per_env")}
    for num_envs, torchrl, sb3 in ((8, 8, 1.8), (64, 12, 1.5)):
        yield Case(
            name=f"{NAME}, {num_envs} environments",
            unit="frames",
            work=frames,
            contenders={
                "rlbook": rlbook_of(per_env[num_envs], frames),
                "rlbook, policy compiled": rlbook_of(per_env[num_envs], frames, compile=size != "tiny"),
                "rlbook, then GAE": rlbook_of(per_env[num_envs], frames, then_gae=True),
                "rlbook, vector entry point": rlbook_of(gym(num_envs, "entry_point"), frames),
                SERIAL: torchrl_of(peers.torchrl_serial, num_envs, frames),
                WRAPPED: torchrl_of(peers.torchrl_wrapped, num_envs, frames),
                SB3: sb3_of(num_envs, frames),
                "plain loop": plain_of(num_envs, frames),
            },
            targets=[
                faster("rlbook", torchrl, SERIAL),
                faster("rlbook", torchrl, SERIAL, WRAPPED),
                faster("rlbook", sb3, SB3),
                faster("rlbook, then GAE", sb3, SB3),
            ],
            note=NOTE,
        )
    yield Case(
        name="rlbook's native CartPole, 64 environments, compiled",
        unit="frames",
        work=frames,
        contenders={
            "rlbook, compiled": rlbook_of(native, frames, compile=size != "tiny"),
            "rlbook, eager": rlbook_of(native, frames),
            SERIAL: torchrl_of(peers.torchrl_serial, 64, frames),
            WRAPPED: torchrl_of(peers.torchrl_wrapped, 64, frames),
        },
        targets=[faster("rlbook, compiled", 50, SERIAL), faster("rlbook, compiled", 50, SERIAL, WRAPPED)],
        note="The peers step Gymnasium's CartPole-v1, whose dynamics are the same. Compiling is done before the clock runs.",
    )
