"""Whole episodes from rollouts that cut them anywhere, for methods that learn from returns alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase

from rlbook import keys
from rlbook.functional import reward_to_go
from rlbook.replay.minibatches import flat_rows


class WholeEpisodes:
    """Take successive rollouts; return the steps of the episodes that end in each, with their returns.

    Steps of an episode that is under way are kept until it ends. So every step is returned once, and what an episode is worth
    does not decide whether it is: leaving out what is unfinished would leave out the good ones, where long is good.

    Args:
        gamma: discount, in [0, 1].

    Example:
        >>> from rlbook import CartPole, Collector
        >>> episodes = WholeEpisodes(gamma=0.99)
        >>> for data in Collector(CartPole(num_envs=8, seed=0), frames_per_batch=400, total_frames=1200):
        ...     batch = episodes(data)
        >>> batch["value_target"].shape == batch.batch_size
        True
    """

    def __init__(self, gamma: float):
        self.gamma = gamma
        self._open: TensorDictBase | None = None

    def __call__(self, data: TensorDictBase) -> TensorDict:
        """Take the next rollout ``[*, T]`` of a collector; return rows ``[B]`` with the return ``value_target``, maybe none."""
        data = data.copy()
        data[keys.MASK] = torch.ones_like(data[keys.NEXT, keys.DONE])
        if self._open is not None:  # on the CPU, where a checkpoint was read
            data = torch.cat([self._open.to(data[keys.MASK].device), data], dim=-1)  # type: ignore[arg-type,call-overload]
        nxt: Any = data[keys.NEXT]
        done, new = nxt[keys.DONE], data[keys.MASK]
        ended = reward_to_go(done.float(), done, 1.0) > 0  # the episode of this step ends in these data
        data[keys.VALUE_TARGET] = reward_to_go(nxt[keys.REWARD], done, self.gamma)
        rows = flat_rows(data, [key for key in data.keys(True, True) if key != keys.MASK])
        keep = flat_rows(TensorDict({"keep": ended & new}, data.batch_size), ["keep"])["keep"]
        unfinished = (~ended).flatten(0, -2).any(0) if data.batch_dims > 1 else ~ended
        data[keys.MASK] = ~ended
        first = int((~unfinished).sum())  # unfinished steps are the last
        self._open = data.exclude(keys.VALUE_TARGET)[..., first:].clone()
        return TensorDict(keys.nest({key: value[keep] for key, value in rows.items()}), (int(keep.sum()),))

    def drop(self) -> None:
        """Forget the episodes under way: they will not be finished."""
        self._open = None

    def state_dict(self) -> dict[str, Any]:
        """Return the steps of the episodes under way."""
        if self._open is None:
            return {}
        return {"shape": list(self._open.batch_size), "steps": dict(self._open.items(True, True))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        steps = {key: value.clone() for key, value in state["steps"].items()} if state else {}
        self._open = TensorDict(keys.nest(steps), state["shape"]) if state else None
