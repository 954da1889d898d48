"""PPO on CartPole-v1 until the mean return of the last 100 training episodes is 475, at the tuned settings of RL Baselines3 Zoo.

Every repeat is another seed. What is timed is training alone: environments and networks are made, and code is compiled, before.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import count, pairwise
from typing import Any

from benchmarks.harness import Case, Make, Outcome, Sample, Target, Task, fact_above, faster

GOAL, FRAMES, SEEDS = 475.0, 100_000, 5
NATIVE = "rlbook, compiled, on its native CartPole"


def rlbook_of(total_frames: int, compile: bool, env: str = "CartPole-v1") -> Make:
    """Return what prepares rlbook's recipe, whose defaults are the tuned settings."""

    def prepare() -> Task:
        from rlbook.recipes import PPO, PPOConfig

        for _ in PPO(PPOConfig(env=env, total_frames=512, compile=compile)).train():  # loads kernels, fills the compiler's cache
            pass

        def run(seed: int) -> Sample:
            agent = PPO(PPOConfig(env=env, seed=seed, total_frames=total_frames, stop_at=GOAL, compile=compile))
            clock, history = [time.process_time()], []
            for metrics in agent.train():
                clock.append(time.process_time())
                history.append(metrics)
            rounds, metrics = [after - before for before, after in pairwise(clock)], history[-1]
            seconds = sum(rounds)
            facts = {"solved": float(metrics["episode_reward"] >= GOAL), "frames": metrics["frames"]}
            if compile:  # the first two rounds compile; take them out, and put ordinary ones in their place
                facts["seconds to compile"] = sum(rounds[:2]) - 2 * statistics.median(rounds[2:])
                seconds -= facts["seconds to compile"]
            return Sample(seconds, facts)

        return each_seed(run)

    return prepare


def sb3_of(total_frames: int) -> Make:
    """Return what prepares SB3's PPO at the same settings, with the same rule to stop: asked after each round of updates."""

    def prepare() -> Task:
        from stable_baselines3 import PPO
        from stable_baselines3.common.callbacks import BaseCallback
        from stable_baselines3.common.env_util import make_vec_env

        class StopAtGoal(BaseCallback):
            """Stops the training when the last 100 episodes have reached the goal."""

            solved = False

            def _on_rollout_start(self) -> None:
                episodes = self.model.ep_info_buffer or []
                self.solved = len(episodes) == 100 and sum(episode["r"] for episode in episodes) / 100 >= GOAL

            def _on_step(self) -> bool:
                return not self.solved

        def run(seed: int) -> Sample:
            env = make_vec_env("CartPole-v1", 8, seed=seed)
            rollout: dict[str, Any] = {"n_steps": 32, "gamma": 0.98, "gae_lambda": 0.8}
            updates: dict[str, Any] = {"batch_size": 256, "n_epochs": 20, "ent_coef": 0.0}
            falling: dict[str, Any] = {"learning_rate": lambda left: 1e-3 * left, "clip_range": lambda left: 0.2 * left}
            agent = PPO("MlpPolicy", env, **rollout, **updates, **falling, seed=seed, device="cpu")
            stop = StopAtGoal()
            begin = time.process_time()
            agent.learn(total_frames, callback=stop)
            seconds = time.process_time() - begin
            stop._on_rollout_start()  # the last round may have done it
            return Sample(seconds, {"solved": float(stop.solved), "frames": agent.num_timesteps})

        return each_seed(run)

    return prepare


def each_seed(run: Callable[[int], Sample]) -> Task:
    """Return a task whose calls go through the seeds 0, 1, 2, ..."""
    seeds = count()
    return lambda: run(next(seeds))


def total_ratio(contender: str, peer: str, times: float) -> Target:
    """All seeds together."""

    def value(outcome: Outcome) -> float | None:
        own, other = outcome.seconds.get(contender), outcome.seconds.get(peer)
        return sum(other) / sum(own) if own and other else None

    return Target(f"{contender} at least {times:g}x {peer}, all seeds together", value, at_least=times)


def cases(size: str = "full") -> Iterator[Case]:
    total = 2048 if size == "tiny" else FRAMES
    contenders = {"rlbook": rlbook_of(total, False), "sb3": sb3_of(total)}
    if size != "tiny":
        contenders |= {"rlbook, compiled": rlbook_of(total, True), NATIVE: rlbook_of(total, True, "CartPole")}
    yield Case(
        name=f"CartPole-v1, {SEEDS} seeds",
        unit="runs",
        work=1,
        contenders=contenders,
        targets=[
            *(fact_above(name, "solved", 1) for name in contenders if name.startswith("rlbook")),
            faster("rlbook, compiled", 4, "sb3"),
            total_ratio("rlbook, compiled", "sb3", 4),
        ],
        note="SB3 counts what its `Monitor` records, rlbook what its recipe adds up. A run ends after 100,000 frames.",
        repeats={"full": SEEDS, "quick": 2, "tiny": 1}[size],
        warm_up=0,
    )
