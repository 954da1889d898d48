"""Generalised advantage estimation: advantages and value targets of a rollout with episode ends, float32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Case, Make, Prepared, Target, Task, fact_below, faster

GAMMA, LAMBDA = 0.99, 0.95
LIMITS = {(128, 8): (25, 2), (2048, 8): (100, 15), (2048, 256): (25, 2.5)}
"""``(T, N)``: how many times TorchRL's speed the kernel and the torch code shall reach."""

LOOP, VECTORISED = "torchrl generalized_advantage_estimate", "torchrl vec_generalized_advantage_estimate"


@dataclass
class Rollout:
    """Numbers ``[N, T]``, views of time-major memory as a collector hands them out."""

    reward: Tensor
    value: Tensor
    next_value: Tensor
    terminated: Tensor
    done: Tensor

    @classmethod
    def random(cls, steps: int, num_envs: int) -> Rollout:
        generator = torch.Generator().manual_seed(0)
        reward, value, u = torch.rand(3, steps, num_envs, generator=generator)
        terminated, truncated = u < 0.02, u > 0.995
        next_value = torch.cat((value[1:], torch.rand(1, num_envs, generator=generator)))
        return cls(*(x.T for x in (reward, value, next_value, terminated, terminated | truncated)))

    def exact(self) -> Tensor:
        """Return the advantages by the definition, step by step in float64."""
        reward, value, next_value = (x.double() for x in (self.reward, self.value, self.next_value))
        delta = reward + GAMMA * next_value * ~self.terminated - value
        advantage, after = torch.zeros_like(delta), torch.zeros_like(delta[:, 0])
        for t in reversed(range(delta.shape[1])):
            advantage[:, t] = after = delta[:, t] + GAMMA * LAMBDA * after * ~self.done[:, t]
        return advantage


def rlbook_with(backend: Literal["auto", "torch"], data: Rollout) -> Make:
    """Return what prepares rlbook's function; its error is measured beside its time."""

    def prepare() -> Prepared:
        from rlbook.functional import generalized_advantage

        def run() -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                return generalized_advantage(
                    data.reward, data.value, data.next_value, data.terminated, data.done, GAMMA, LAMBDA, backend=backend
                )

        error = (run()[0].double() - data.exact()).abs().max().item()
        return Prepared(run, facts={"largest error": error})

    return prepare


def torchrl_with(function: str, data: Rollout) -> Make:
    """Return what prepares one of TorchRL's two functions, on contiguous ``[N, T, 1]`` as it lays data out."""

    def prepare() -> Task:
        from torchrl.objectives.value import functional

        gae = getattr(functional, function)
        tensors = (data.value, data.next_value, data.reward, data.done, data.terminated)
        value, next_value, reward, done, terminated = (x.contiguous().unsqueeze(-1) for x in tensors)

        def run() -> None:
            with torch.no_grad():
                gae(GAMMA, LAMBDA, value, next_value, reward, done, terminated)

        return run

    return prepare


def sb3_with(data: Rollout) -> Make:
    """Return what prepares SB3's rollout buffer (a NumPy loop over time; it knows no truncation here)."""

    def prepare() -> Task:
        from gymnasium.spaces import Box
        from stable_baselines3.common.buffers import RolloutBuffer

        num_envs, steps = data.reward.shape
        space = Box(-1, 1, (1,))
        buffer = RolloutBuffer(steps, space, space, "cpu", gae_lambda=LAMBDA, gamma=GAMMA, n_envs=num_envs)
        buffer.rewards[:], buffer.values[:] = data.reward.T.numpy(), data.value.T.numpy()
        buffer.episode_starts[1:] = data.done.T.numpy()[:-1]
        last, done = data.next_value[:, -1], data.done[:, -1].numpy().astype(np.float32)
        return lambda: buffer.compute_returns_and_advantage(last, done)

    return prepare


def cases(size: str = "full") -> Iterator[Case]:
    for (steps, num_envs), (kernel, plain) in LIMITS.items():
        data = Rollout.random(steps if size != "tiny" else 8, num_envs if size != "tiny" else 2)
        targets: list[Target] = []
        for name, times in (("rlbook", kernel), ("rlbook, torch", plain)):
            targets += [faster(name, times, LOOP, VECTORISED), fact_below(name, "largest error", 1e-5)]
        yield Case(
            name=f"T = {steps}, N = {num_envs}",
            unit="calls",
            work=1,
            contenders={
                "rlbook": rlbook_with("auto", data),
                "rlbook, torch": rlbook_with("torch", data),
                LOOP: torchrl_with("generalized_advantage_estimate", data),
                VECTORISED: torchrl_with("vec_generalized_advantage_estimate", data),
                "sb3 RolloutBuffer": sb3_with(data),
            },
            targets=targets,
        )
