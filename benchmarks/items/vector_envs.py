"""Several environments, random actions: rollouts as TensorDicts, reset in the same step, true last observations kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from benchmarks import peers
from benchmarks.harness import Case, Make, Target, Task, faster

SERIAL, WRAPPED, SB3 = "torchrl (SerialEnv)", "torchrl (GymWrapper of SyncVectorEnv)", "sb3 (DummyVecEnv)"
NOTE = (
    "rlbook and TorchRL return whole rollouts; SB3 only steps, with actions drawn beforehand. TorchRL's worker processes "
    "(`ParallelEnv`, `GymEnv(num_envs=...)`) are slower than both lines here, and would not count as CPU time of this process."
)


def rollout_of(make: Callable[[], Any], steps: int) -> Make:
    """Return what prepares rollouts of an environment of rlbook or TorchRL."""

    def prepare() -> Task:
        env = make()
        return lambda: env.rollout(steps, break_when_any_done=False)

    return prepare


def sb3_steps(name: str, num_envs: int, steps: int) -> Make:
    """Return what prepares steps of SB3's vector environment."""

    def prepare() -> Task:
        env = peers.sb3_envs(name, num_envs)
        actions = [[env.action_space.sample() for _ in range(num_envs)] for _ in range(steps)]
        env.reset()

        def run() -> None:
            for action in actions:
                env.step(action)

        return run

    return prepare


def gymnasium_steps(name: str, num_envs: int, steps: int) -> Make:
    """Return what prepares bare steps of Gymnasium's own vector environment."""

    def prepare() -> Task:
        import gymnasium

        env = gymnasium.make_vec(name, num_envs)
        actions = [env.action_space.sample() for _ in range(steps)]
        env.reset()

        def run() -> None:
            for action in actions:
                env.step(action)

        return run

    return prepare


def case(name: str, num_envs: int, steps: int, how: str, targets: list[Target]) -> Case:
    """Return the comparison for one environment id and number."""

    def rlbook() -> Any:
        from rlbook import GymEnv

        return GymEnv(name, num_envs, vectorization=how, seed=0)

    return Case(
        name=f"{name}, {num_envs} environments, rlbook's vectorization={how!r}",
        unit="steps",
        work=num_envs * steps,
        contenders={
            "rlbook": rollout_of(rlbook, steps),
            SERIAL: rollout_of(lambda: peers.torchrl_serial(name, num_envs), steps),
            WRAPPED: rollout_of(lambda: peers.torchrl_wrapped(name, num_envs), steps),
            SB3: sb3_steps(name, num_envs, steps),
            "gymnasium make_vec, bare": gymnasium_steps(name, num_envs, steps),
        },
        targets=targets,
        note=NOTE,
    )


def targets(torchrl: float, sb3: float) -> list[Target]:
    """Against what TorchRL's users write, against the fastest that TorchRL can do in one process, and against SB3."""
    return [faster("rlbook", torchrl, SERIAL), faster("rlbook", torchrl, SERIAL, WRAPPED), faster("rlbook", sb3, SB3)]


def cases(size: str = "full") -> Iterator[Case]:
    steps = 4 if size == "tiny" else 256
    yield case("CartPole-v1", 8, steps, "per_env", targets(15, 0.9))
    yield case("CartPole-v1", 64, steps, "auto", targets(100, 8))
    if find_spec("mujoco"):
        mujoco: Any = import_module("mujoco")
        mujoco.set_mju_user_warning(lambda text: None)  # one line per environment about the model's XML
        yield case("HalfCheetah-v5", 8, steps, "auto", targets(4, 0.95))
