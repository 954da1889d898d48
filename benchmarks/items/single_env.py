"""One environment, random actions: a rollout of CartPole-v1 as a TensorDict, episodes one after another."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import peers
from benchmarks.harness import Case, Task, faster

NAME = "CartPole-v1"


def cases(size: str = "full") -> Iterator[Case]:
    steps = 8 if size == "tiny" else 1000

    def rlbook() -> Task:
        from rlbook import GymEnv

        env = GymEnv(NAME, seed=0)
        return lambda: env.rollout(steps, break_when_any_done=False)

    def torchrl() -> Task:
        from torchrl.envs import GymEnv

        env = GymEnv(NAME, categorical_action_encoding=True)
        return lambda: env.rollout(steps, break_when_any_done=False)

    def sb3() -> Task:
        env = peers.sb3_envs(NAME, 1)
        env.reset()

        def run() -> None:
            for _ in range(steps):
                env.step([env.action_space.sample()])

        return run

    def bare() -> Task:
        import gymnasium

        env = gymnasium.make(NAME)
        env.reset()

        def run() -> None:
            for _ in range(steps):
                *_, terminated, truncated, _ = env.step(env.action_space.sample())
                if terminated or truncated:
                    env.reset()

        return run

    yield Case(
        name=f"{NAME}, one environment",
        unit="steps",
        work=steps,
        contenders={"rlbook": rlbook, "torchrl": torchrl, "sb3 (DummyVecEnv)": sb3, "gymnasium, bare": bare},
        targets=[faster("rlbook", 10, "torchrl")],
        note="rlbook and TorchRL return a rollout with every observation, action, reward and flag; the other two only step.",
    )
