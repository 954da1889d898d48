"""What every estimator shares: it checks a rollout, finds the values on both sides of each step, and writes the results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, MissingKeyError, SpecError, explain
from rlbook.functional._checks import check_aligned
from rlbook.modules.recurrent import Carrying
from rlbook.modules.value_norm import RunningValueNorm
from rlbook.replay.minibatches import flat_rows
from rlbook.typing import Key


class Estimator(ABC):
    """Add ``state_value``, ``advantage`` and ``value_target`` to a rollout ``[*, T]``.

    Args:
        value: a :class:`~rlbook.modules.ValueHead` (anything with ``value(leaves)`` and ``in_keys``). None to use the rollout's
            own ``state_value``.
        gamma: discount, in [0, 1].
        value_norm: the critic's numbers are normalised: they are turned into returns before anything is estimated, the statistics
            then learn from the new targets, and ``state_value`` and ``value_target`` are written in the units that the critic
            learns in. Advantages keep the units of the reward.
        group: the name of a group of agents. Entries under it, such as ``("agents", "observation")``, have an agent dimension
            behind the batch's: ``[*, T, agents, ...]``. What the group lacks (a shared reward, the flags, a global state) is that
            of the whole environment, the same for every agent. The results are written under the group as ``[*, T, agents]``,
            and the group's own TensorDict gets that batch size, so that it can go to a loss by itself; for a loss whose networks
            have a memory, :func:`by_agent` makes sequences of it.
    """

    value: Any
    gamma: float

    def __init__(
        self,
        value: Any,
        gamma: float,
        *,
        value_norm: RunningValueNorm | None = None,
        group: str | None = None,
        **fractions: float,
    ):
        for name, number in {"gamma": gamma, **fractions}.items():
            if not 0 <= number <= 1:
                raise ConfigError(explain(name, "in [0, 1]", repr(number), f"Pass for example {name}=0.95"))
        if value is not None and not hasattr(value, "value"):
            raise ConfigError(explain("value", "a ValueHead or None", type(value).__name__, "Wrap the network: ValueHead(net)"))
        if value_norm is not None and not isinstance(value_norm, RunningValueNorm):
            fix = "Pass PopArt(value) or RunningValueNorm()"
            raise ConfigError(explain("value_norm", "a RunningValueNorm or None", type(value_norm).__name__, fix))
        self.value, self.gamma, self.value_norm, self.group = value, gamma, value_norm, group

    def state_dict(self) -> dict[str, Any]:
        """Return what to save: the statistics of ``value_norm``."""
        return {} if self.value_norm is None else self.value_norm.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from saved statistics."""
        if self.value_norm is not None:
            self.value_norm.load_state_dict(state)

    @abstractmethod
    def estimate(
        self, data: TensorDictBase, reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the advantage and the value target, ``[*, T]`` both.

        Args:
            data: the rollout ``[*, T]``.
            reward, value, next_value, terminated, done: ``[*, T]``, values in the units of the reward; see
                :func:`rlbook.functional.generalized_advantage`.
        """

    @torch.no_grad()
    def __call__(self, data: TensorDictBase) -> TensorDictBase:
        """Return the rollout ``[*, T]`` with the new entries; ``data`` itself and its tensors are left as they are.

        Raises:
            MissingKeyError: the rollout lacks an entry.
            SpecError: it has no time dimension or no steps, or rewards and flags are of another shape.
        """
        if not data.batch_dims:
            name, fix = f"A rollout for {type(self).__name__}", "Pass what env.rollout returns"
            raise SpecError(explain(name, "[*, T], with time last", "one step, []", fix))
        out = data.copy()
        if self.group is None:
            out.update(self._results(data))
            return out
        agents = by_agent(data, self.group, self._reads())
        inner: Any = out[self.group]
        if inner.batch_dims == data.batch_dims:
            inner.batch_size = (*data.batch_size, agents.batch_size[-2])
        inner.names = [*inner.names[:-1], keys.AGENTS]  # else a recurrent network would take them for the time
        inner.update({key: value.transpose(-1, -2) for key, value in self._results(agents).items()})
        return out

    def _results(self, data: TensorDictBase) -> dict[str, Tensor]:
        try:
            nxt: Any = data[keys.NEXT]
            reward, terminated, done = nxt[keys.REWARD], nxt[keys.TERMINATED], nxt[keys.DONE]
            check_aligned(reward=reward, terminated=terminated, done=done)
            if reward.shape != data.batch_size or not reward.numel():
                want, fix = f"of shape {list(data.batch_size)}, with at least one step", "Drop a trailing 1: reward.squeeze(-1)"
                raise SpecError(explain("reward", want, f"{list(reward.shape)}", fix))
            value, next_value = self._values(data, terminated, done)
            if self.value_norm is not None:
                value, next_value = self.value_norm.denormalize(value), self.value_norm.denormalize(next_value)
            advantage, target = self.estimate(data, reward, value, next_value, terminated, done)
        except KeyError as error:
            optional = () if keys.ACTION_MASK in data.keys() else (keys.ACTION_MASK, (keys.NEXT, keys.ACTION_MASK))
            missing = [keys.pretty(key) for key in self._reads() if key not in optional and data.get(key, None) is None]
            if not missing:
                raise
            got = f"the keys {sorted(keys.pretty(k) for k in data.keys(True, True))}"
            fix = (
                "Collect it with env.rollout or a Collector" if self.value else "Pass a ValueHead, or write both values yourself"
            )
            if getattr(self.value, "state_key", None) in self._reads() and data.get(self.value.state_key, None) is None:
                fix = "Collect with the policy Carry(actor, value), which keeps the critic's state"
            raise MissingKeyError(explain(f"A rollout for {type(self).__name__}", f"one with {missing}", got, fix)) from error
        if self.value_norm is not None:
            self.value_norm.update(target)
            value, target = self.value_norm.normalize(value), self.value_norm.normalize(target)
        return {keys.VALUE: value, keys.ADVANTAGE: advantage, keys.VALUE_TARGET: target}

    def _reads(self) -> list[Key]:
        """Return the entries of a rollout that this estimator reads."""
        roots = (keys.VALUE,) if self.value is None else self.value.in_keys
        observed = roots if self.value is None else observations(self.value)
        masks = (keys.ACTION_MASK,) if hasattr(self.value, "allowed") else ()  # read where there are any
        outcomes = ((keys.NEXT, *keys.as_tuple(key)) for key in (keys.REWARD, keys.TERMINATED, keys.DONE, *observed, *masks))
        return list(dict.fromkeys((*roots, *masks, *outcomes)))

    def _values(self, data: TensorDictBase, terminated: Tensor, done: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values of the observations and of the true next observations, ``[*, T]`` both.

        The next observation of a step is the observation of the following one, except where an episode or the rollout ends: only
        those rows need a second forward pass. A recurrent critic runs once over the whole rollout, from the state that is stored
        at its first step; the second pass starts from the states after the steps.
        """
        after: Any = None
        state_key: Any = getattr(self.value, "state_key", None)
        # a Q-value actor's value is that of the best allowed action
        masks = (keys.ACTION_MASK,) if hasattr(self.value, "allowed") and keys.ACTION_MASK in data.keys() else ()
        if self.value is None:
            value = data[keys.VALUE]
        elif state_key is not None:
            rollout = data if data.batch_dims > 1 else data.unsqueeze(0)
            steps = Carrying({key: rollout[key] for key in (*self.value.in_keys, *masks)})
            value = self.value.value(steps).reshape(data.batch_size)
            after = steps[keys.NEXT, *state_key].reshape(*data.batch_size, *self.value.net.state_shape)
        else:
            value = unflatten(self.value.value(flat_rows(data, (*self.value.in_keys, *masks))), data.batch_size)
        next_value = torch.empty_like(value)
        next_value[..., :-1] = value[..., 1:]
        last = done.clone()
        last[..., -1] = True
        need = last & ~terminated
        if self.value is None:
            next_value[last] = data[keys.NEXT, keys.VALUE][last]
            return value, next_value
        next_value[last] = 0.0
        if bool(need.any()):
            read = (*observations(self.value), *masks)
            rows: dict[Any, Tensor] = {key: data[(keys.NEXT, *keys.as_tuple(key))][need] for key in read}
            if after is not None:
                rows[state_key] = after[need]
            next_value[need] = self.value.value(rows)
        return value, next_value


def observations(module: Any) -> tuple[Key, ...]:
    """Return the observations that an actor or a critic reads; the rest of its ``in_keys`` has to do with its memory."""
    return getattr(module, "obs_keys", module.in_keys)


def unflatten(rows: Tensor, batch: torch.Size) -> Tensor:
    """Undo ``flat_rows``: time-major rows back to ``[*, T]``."""
    return rows.reshape(tuple(reversed(batch))).permute(*reversed(range(len(batch))))


def by_agent(data: TensorDictBase, group: str, reads: Sequence[Key]) -> TensorDict:
    """Return the rollouts of a group's agents, ``[*, agents, T]``, of a rollout ``[*, T]`` of all.

    Networks with a memory learn from these: time is the last dimension again.

    Args:
        data: the rollout; the entries of the group have the agents behind the time.
        group: the name of the group.
        reads: entries to return, such as ``loss_fn.in_keys``. What the group lacks is that of the whole environment, the same for
            every agent; what neither has is left out.

    Raises:
        MissingKeyError: there is no such group.
        SpecError: an entry of the group lacks the agent dimension.
    """
    inner = data.get(group, None)
    if not isinstance(inner, TensorDictBase) or inner.is_empty():
        got, fix = f"the keys {sorted(data.keys())}", "Name the entry that holds the agents' observations"
        raise MissingKeyError(explain("group", "an entry that holds entries of agents", f"{group!r} and {got}", fix))
    batch = data.batch_size
    agents = next(iter(inner.values(True, True))).shape[len(batch) : len(batch) + 1]
    found: dict[Key, Tensor] = {}
    for key in reads:
        *prefix, last = keys.as_tuple(key)
        inside = ("next", group, *prefix[1:], last) if prefix[:1] == ["next"] else (group, *prefix, last)
        value, shared = data.get(inside, None), data.get(key, None)
        if value is not None:
            if not agents or value.shape[: len(batch) + 1] != (*batch, *agents):
                want, fix = f"of shape {[*batch, *(agents or ['agents'])]} and what follows", "Stack the agents behind the time"
                raise SpecError(explain(keys.pretty(inside), want, f"{list(value.shape)}", fix))
        elif shared is not None:
            value = shared.unsqueeze(len(batch))
            value = value.expand(*batch, *agents, *value.shape[len(batch) + 1 :])
        else:
            continue
        found[key] = value.transpose(len(batch) - 1, len(batch))
    return TensorDict(keys.nest(found), (*batch[:-1], *agents, batch[-1]))
