"""Hindsight experience replay: what was reached instead is taken for the goal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from tensordict import TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, MissingKeyError, SpecError, explain
from rlbook.replay.trajectories import Trajectories
from rlbook.typing import Key

if TYPE_CHECKING:
    from rlbook.replay.buffer import ReplayBuffer

Strategy = Literal["future", "final", "episode", "random"]
GoalFunction = Callable[[Tensor, Tensor], Any]
"""``f(achieved, goal)``, both ``[*, G]``, returns a tensor or an array ``[*]``."""


class HER:
    """Replace the goals of a share of the sample by goals that were achieved, and compute the rewards again.

    A failed attempt at one goal is a successful one at the goal it reached. The new goal of a step is what was achieved at

    * ``"future"``: this or a later step of its trajectory;
    * ``"final"``: the last step of its trajectory;
    * ``"episode"``: any step of its trajectory;
    * ``"random"``: any step in the buffer,

    drawn uniformly from the steps that are stored, also while the episode is not finished. The paper's k new goals per old one
    are ``ratio = k / (k + 1)``. The steps of a sequence ``[T]`` share one goal, chosen for its last step.

    Args:
        reward_fn: ``reward_fn(achieved, goal)``, both ``[*, G]``, returns the rewards ``[*]``. For Gymnasium's goal environments
            ``lambda achieved, goal: env.unwrapped.compute_reward(achieved.numpy(), goal.numpy(), {})``.
        strategy: where new goals come from.
        ratio: the share of steps (of sequences) with a new goal, in [0, 1].
        terminated_fn: ``terminated_fn(achieved, goal)`` returns whether an episode is over, bool ``[*]``, where success ends it.
            By default ``next.terminated`` stays as it was.
        achieved_key: the goal that a step achieved.
        goal_key: the goal, at the root; where it stands under ``next`` too it is replaced in both places.

    Raises:
        ConfigError: an argument is out of range, or rewards were summed over several steps before (NStep).
        MissingKeyError: rows lack one of the entries.
        SpecError: ``reward_fn`` or ``terminated_fn`` returns another shape.

    Source: Andrychowicz et al. 2017, "Hindsight Experience Replay", algorithm 1 and section 4.5.

    Example:
        >>> def reward_fn(achieved, goal):
        ...     return -(torch.linalg.vector_norm(achieved - goal, dim=-1) > 0.05).float()
        >>> HER(reward_fn, ratio=0.8)
        HER('future', ratio=0.8)
    """

    def __init__(
        self,
        reward_fn: GoalFunction,
        strategy: Strategy = "future",
        ratio: float = 0.8,
        *,
        terminated_fn: GoalFunction | None = None,
        achieved_key: Key = (keys.NEXT, "achieved_goal"),
        goal_key: Key = "desired_goal",
    ):
        if strategy not in get_args(Strategy):
            raise ConfigError(
                explain("strategy", f"one of {get_args(Strategy)}", repr(strategy), "Pass 'future', the paper's best")
            )
        if not 0 <= ratio <= 1:
            raise ConfigError(explain("ratio", "in [0, 1]", repr(ratio), "Pass for example ratio=0.8"))
        self.reward_fn, self.terminated_fn = reward_fn, terminated_fn
        self.strategy, self.ratio = strategy, ratio
        self.achieved_key, self.goal_key = keys.as_tuple(achieved_key), keys.as_tuple(goal_key)

    def __call__(self, batch: TensorDictBase, rows: Tensor, buffer: ReplayBuffer) -> TensorDictBase:
        """Return the batch with new goals, rewards and, with ``terminated_fn``, ends."""
        self._check(batch)
        one = rows if rows.ndim == 1 else rows[:, -1]  # the step that stands for the sequence
        chosen = torch.rand(len(one), generator=buffer.generator) < self.ratio
        achieved_later = buffer.storage.entry(self.achieved_key, self.goal_rows(one, buffer))
        assert achieved_later is not None
        chosen = chosen.to(achieved_later.device)
        if rows.ndim == 2:
            chosen, achieved_later = chosen.unsqueeze(1).expand(rows.shape), achieved_later.unsqueeze(1)
        return self.relabel(batch, chosen, achieved_later)

    def goal_rows(self, rows: Tensor, buffer: ReplayBuffer) -> Tensor:
        """Draw the rows ``[B]`` where the new goals of ``rows [B]`` were achieved."""
        if self.strategy == "random":
            return torch.randint(len(buffer), rows.shape, generator=buffer.generator)
        trajectories = Trajectories.of(buffer)
        before, after = trajectories.span(rows)
        if self.strategy == "final":
            return trajectories.shift(rows, after)
        low = -before if self.strategy == "episode" else torch.zeros_like(before)
        share = torch.rand(rows.shape, dtype=torch.float64, generator=buffer.generator)
        return trajectories.shift(rows, low + (share * (after - low + 1)).long())

    def relabel(self, batch: TensorDictBase, chosen: Tensor, goal: Tensor) -> TensorDictBase:
        """Take ``goal [*, G]`` for the goal of the ``chosen [*]`` steps."""
        goal = goal.where(chosen.reshape(*chosen.shape, *[1] * (goal.ndim - chosen.ndim)), batch[self.goal_key])
        achieved = batch[self.achieved_key]
        batch[self.goal_key] = goal
        if (keys.NEXT, *self.goal_key) in batch.keys(True):
            batch[keys.NEXT, *self.goal_key] = goal
        reward = batch[keys.NEXT, keys.REWARD]
        batch[keys.NEXT, keys.REWARD] = self._call("reward_fn", achieved, goal, reward).where(chosen, reward)
        if self.terminated_fn is not None:
            old = batch[keys.NEXT, keys.TERMINATED]
            batch[keys.NEXT, keys.TERMINATED] = new = self._call("terminated_fn", achieved, goal, old).where(chosen, old)
            batch[keys.NEXT, keys.DONE] = new | batch[keys.NEXT, keys.TRUNCATED]
        return batch

    def _call(self, name: str, achieved: Tensor, goal: Tensor, like: Tensor) -> Tensor:
        """Call a user's function; return what it says as a tensor like ``like``."""
        value = torch.as_tensor(getattr(self, name)(achieved, goal))
        if value.shape != like.shape:
            fix = "Reduce the last dimension of the goals, for example with .norm(dim=-1)"
            raise SpecError(
                explain(f"What {name} returns", f"{list(like.shape)}, a number per step", f"{list(value.shape)}", fix)
            )
        return value.to(like)

    def _check(self, batch: TensorDictBase) -> None:
        if keys.DISCOUNT in batch.keys():
            fix = "Use one of NStep and HER: a sum of rewards cannot be computed again from one step"
            raise ConfigError(explain("Steps for HER", "single ones", "the sums that NStep makes", fix))
        wanted = [self.achieved_key, self.goal_key, (keys.NEXT, keys.REWARD)]
        wanted += [(keys.NEXT, flag) for flag in (keys.TERMINATED, keys.TRUNCATED) if self.terminated_fn is not None]
        if missing := [keys.pretty(key) for key in wanted if key not in batch.keys(True)]:
            got = f"{sorted(keys.pretty(key) for key in batch.keys(True, True))}"
            fix = "Store steps of a goal environment, or name its entries: HER(..., achieved_key=..., goal_key=...)"
            raise MissingKeyError(explain("Rows for HER", f"with {missing}", got, fix))

    def __repr__(self) -> str:
        return f"HER({self.strategy!r}, ratio={self.ratio})"
