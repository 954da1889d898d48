"""Evaluation: the returns of whole episodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.envs.base import Env
from rlbook.envs.loop import Loop
from rlbook.errors import ConfigError, EnvError, explain


class EpisodeReturns:
    """Add up the rewards of successive rollouts and return the sums of the episodes that end in each.

    Those are the sums that :class:`~rlbook.transforms.RewardSum` keeps, made once per rollout, not at every step. It must see
    every rollout of a collector, from the first one on.

    Example:
        >>> from rlbook import CartPole, Collector
        >>> finished = EpisodeReturns()
        >>> for data in Collector(CartPole(num_envs=8, seed=0), frames_per_batch=800, total_frames=1600):
        ...     returns = finished(data)
    """

    def __init__(self) -> None:
        self._running: Tensor | float = 0.0

    def __call__(self, data: TensorDictBase) -> list[float]:
        """Take the next rollout ``[*, T]``; return the returns of the episodes that end in it, in the order of their ends."""
        nxt: Any = data[keys.NEXT]
        reward, done = (nxt[key].movedim(-1, 0).reshape(nxt.shape[-1], -1) for key in (keys.REWARD, keys.DONE))
        running = torch.as_tensor(self._running, device=reward.device)  # a checkpoint's is on the CPU
        total = reward.double().cumsum(0) + running
        before = torch.zeros_like(total[0])
        returns = []
        for t, i in done.nonzero().tolist():
            returns.append((total[t, i] - before[i]).item())
            before[i] = total[t, i]
        self._running = total[-1] - before
        return returns

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of the episodes under way."""
        return {"running": self._running}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self._running = state["running"]

    def drop(self) -> None:
        """Forget the episodes under way: they will not be finished."""
        self._running = 0.0


class EpisodeScore:
    """The mean return of the last ``window`` episodes of training.

    Where rewards were changed on their way (scaled, normalised) a :class:`~rlbook.transforms.RewardSum` before that keeps the
    environment's own sums in ``episode_reward``, and those count; otherwise the rewards of a rollout are added up here.

    Args:
        window: how many episodes.

    Attributes:
        returns: their returns, oldest first.
    """

    def __init__(self, window: int = 100):
        self.finished, self.returns = EpisodeReturns(), deque[float](maxlen=window)

    def __call__(self, data: TensorDictBase) -> float:
        """Take the next rollout ``[*, T]``; return the mean, NaN before the first episode has ended."""
        nxt: Any = data[keys.NEXT]
        if nxt.get(keys.EPISODE_RETURN, None) is None:
            self.returns.extend(self.finished(data))
        else:
            sums, done = (nxt[key].movedim(-1, 0) for key in (keys.EPISODE_RETURN, keys.DONE))
            self.returns.extend(sums[done].tolist())
        return self.mean

    @property
    def mean(self) -> float:
        """The mean of what there is."""
        return sum(self.returns) / len(self.returns) if self.returns else float("nan")

    @property
    def full(self) -> bool:
        """Whether ``window`` episodes have ended."""
        return len(self.returns) == self.returns.maxlen

    def state_dict(self) -> dict[str, Any]:
        """Return the returns, and the sums of the episodes under way."""
        return {"returns": list(self.returns), "finished": self.finished.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.returns.clear()
        self.returns.extend(state["returns"])
        self.finished.load_state_dict(state["finished"])


def evaluate(env: Env, policy: Any, episodes: int = 100, *, max_steps: int = 100_000, seed: int | None = None) -> Tensor:
    """Run ``policy`` for ``episodes`` whole episodes and return their returns, float32 ``[episodes]``.

    Every environment of the batch contributes the same number of its first episodes: taking whichever end first would favour
    short ones.

    Args:
        env: a batched environment that reset itself; many environments make the evaluation fast.
        policy: anything callable, for example ``actor.greedy``.
        episodes: how many, rounded up to a multiple of ``env.num_envs``.
        max_steps: give up after so many steps of the batch.
        seed: reseed the environment first, for a repeatable score.

    Raises:
        EnvError: an episode does not end within ``max_steps``.
        ConfigError: ``episodes`` is not positive.
    """
    if episodes < 1:
        raise ConfigError(explain("episodes", "positive", str(episodes), "Pass for example episodes=100"))
    if seed is not None:
        env.seed(seed)
    each = -(-episodes // env.num_envs)
    finished: list[list[float]] = [[] for _ in range(env.num_envs)]
    total = torch.zeros(env.num_envs)
    loop = Loop(env, policy, num_steps=64)
    for _ in range(0, max_steps, 64):
        nxt: Any = loop.run()[keys.NEXT].cpu()
        reward, done = (nxt[key].reshape(env.num_envs, -1) for key in (keys.REWARD, keys.DONE))
        for t in range(reward.shape[1]):
            total += reward[:, t]
            for i in done[:, t].nonzero().flatten().tolist():
                finished[i].append(total[i].item())
                total[i] = 0.0
        if min(map(len, finished)) >= each:
            return torch.tensor([value for row in finished for value in row[:each]])
    slow = sum(len(row) < each for row in finished)
    fix = "Give the environment a step limit with StepCounter(max_steps=...), or raise max_steps"
    raise EnvError(explain("Every episode", f"over within max_steps={max_steps}", f"{slow} environments that did not end", fix))
