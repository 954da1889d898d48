"""Generalised advantage estimation on a rollout."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, MissingKeyError, SpecError, explain
from rlbook.functional import generalized_advantage
from rlbook.functional.scan import Backend
from rlbook.replay.minibatches import flat_rows
from rlbook.typing import Key


class GAE:
    r"""Add ``state_value``, ``advantage`` and ``value_target`` to a rollout.

    .. math::
        \delta_t &= r_t + \gamma (1 - terminated_t) V(s_{t+1}) - V(s_t) \\
        A_t &= \delta_t + \gamma \lambda (1 - done_t) A_{t+1}

    Time-outs bootstrap from the true last observation; the value target is :math:`A_t + V(s_t)`.

    Args:
        value: a :class:`~rlbook.modules.ValueHead` (anything with ``value(leaves)`` and ``in_keys``). None to use the rollout's
            own ``state_value``.
        gamma: discount, in [0, 1].
        gae_lambda: :math:`\lambda` in [0, 1]: 0 trusts the values, 1 the rewards.
        backend: of the scan, see :func:`rlbook.functional.reverse_scan`.

    Source: Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage Estimation", equation 16.

    Example:
        >>> from rlbook import CartPole
        >>> from rlbook.modules import make_actor, make_value
        >>> env = CartPole(num_envs=4, seed=0)
        >>> data = GAE(make_value(env), gamma=0.99, gae_lambda=0.95)(env.rollout(32, make_actor(env)))
        >>> data["advantage"].shape
        torch.Size([4, 32])
    """

    def __init__(self, value: Any, gamma: float = 0.99, gae_lambda: float = 0.95, backend: Backend = "auto"):
        for name, number in (("gamma", gamma), ("gae_lambda", gae_lambda)):
            if not 0 <= number <= 1:
                raise ConfigError(explain(name, "in [0, 1]", repr(number), f"Pass for example {name}=0.95"))
        if value is not None and not hasattr(value, "value"):
            raise ConfigError(explain("value", "a ValueHead or None", type(value).__name__, "Wrap the network: ValueHead(net)"))
        self.value, self.gamma, self.gae_lambda = value, gamma, gae_lambda
        self.backend: Backend = backend

    @torch.no_grad()
    def __call__(self, data: TensorDictBase) -> TensorDictBase:
        """Return the rollout ``[*, T]`` with the new entries; ``data`` itself and its tensors are left as they are.

        Raises:
            MissingKeyError: the rollout lacks an entry.
            SpecError: it has no time dimension.
        """
        if not data.batch_dims:
            raise SpecError(
                explain("A rollout for GAE", "[*, T], with time last", "one step, []", "Pass what env.rollout returns")
            )
        out = data.copy()
        try:
            nxt: Any = data[keys.NEXT]
            reward, terminated, done = nxt[keys.REWARD], nxt[keys.TERMINATED], nxt[keys.DONE]
            value, next_value = self._values(data, terminated, done)
        except KeyError as error:
            missing = [keys.pretty(key) for key in self._reads() if data.get(key, None) is None]
            if not missing:
                raise
            got = f"the keys {sorted(keys.pretty(k) for k in data.keys(True, True))}"
            fix = (
                "Collect it with env.rollout or a Collector" if self.value else "Pass a ValueHead, or write both values yourself"
            )
            raise MissingKeyError(explain("A rollout for GAE", f"one with {missing}", got, fix)) from error
        advantage, target = generalized_advantage(
            reward, value, next_value, terminated, done, self.gamma, self.gae_lambda, backend=self.backend
        )
        out.update({keys.VALUE: value, keys.ADVANTAGE: advantage, keys.VALUE_TARGET: target})
        return out

    def _reads(self) -> list[Key]:
        """Return the entries of a rollout that this estimator reads."""
        roots = (keys.VALUE,) if self.value is None else self.value.in_keys
        outcomes = (keys.REWARD, keys.TERMINATED, keys.DONE, *roots)
        return [*roots, *((keys.NEXT, *keys.as_tuple(key)) for key in outcomes)]

    def _values(self, data: TensorDictBase, terminated: Tensor, done: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values of the observations and of the true next observations, ``[*, T]`` both.

        The next observation of a step is the observation of the following one, except where an episode or the rollout ends: only
        those rows need a second forward pass.
        """
        batch = data.batch_size
        if self.value is None:
            value = data[keys.VALUE]
        else:
            value = _unflatten(self.value.value(flat_rows(data, self.value.in_keys)), batch)
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
            rows = {key: data[(keys.NEXT, *keys.as_tuple(key))][need] for key in self.value.in_keys}
            next_value[need] = self.value.value(rows)
        return value, next_value


def _unflatten(rows: Tensor, batch: torch.Size) -> Tensor:
    """Undo ``flat_rows``: time-major rows back to ``[*, T]``."""
    return rows.reshape(tuple(reversed(batch))).permute(*reversed(range(len(batch))))
