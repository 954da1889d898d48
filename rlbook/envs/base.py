"""The environment contract: two methods to write, one layout to read.

An environment author writes ``_reset(mask)`` and ``_step(action)`` on plain dictionaries of tensors; everything else
(TensorDicts, checks, rollouts, partial resets) is here, once, for every environment.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.errors import EnvError, MissingKeyError, SpecError, explain
from rlbook.seeding import check_seed, counter_uniform, env_keys
from rlbook.specs import Bounded, Composite, Spec
from rlbook.typing import DeviceLike, Leaves

RESET_SALT, ACTION_SALT = 0, 1
"""One stream per environment, used twice: for its resets and for its random actions."""


class Env(ABC):
    """One environment, or ``num_envs`` of them that step together.

    The data of a step is a TensorDict in TED layout: ``observation`` (or several entries), ``action`` and the flags at the root;
    the true next observation, ``reward``, ``terminated``, ``truncated`` and ``done = terminated | truncated`` under ``next``. An
    environment that is done is reset in the same step: the reset observation stands at the root of the *next* step, ``next``
    keeps the last one.

    Specs describe **one** environment, whatever ``num_envs`` is.

    Args:
        observation_spec: what ``_reset`` returns.
        action_spec: what ``_step`` takes.
        reward_spec: a number per step; any float by default.
        num_envs: None for one environment without batch dimension (batch size ``[]``), or N (batch size ``[N]``).
        device: where the tensors live.
        seed: the seed of environment 0; environment ``i`` has ``seed + i``. By default drawn from torch's global generator.

    Example:
        >>> from rlbook import CartPole
        >>> env = CartPole(num_envs=4, seed=0)
        >>> td = env.reset()
        >>> td["action"] = env.action_spec.rand(env.batch_size)
        >>> td, td_next = env.step_and_reset(td)
        >>> td["next", "reward"]
        tensor([1., 1., 1., 1.])
    """

    def __init__(
        self,
        observation_spec: Composite,
        action_spec: Spec,
        reward_spec: Spec | None = None,
        num_envs: int | None = None,
        device: DeviceLike = None,
        seed: int | None = None,
    ):
        if num_envs is not None and (not isinstance(num_envs, int) or num_envs < 1):
            raise EnvError(explain("num_envs", "None or a positive integer", repr(num_envs), "Pass for example num_envs=8"))
        self.device = torch.device(device or "cpu")
        self.batch_size = torch.Size(() if num_envs is None else (num_envs,))
        self.observation_spec = observation_spec.to(self.device)
        self.action_spec = action_spec.to(self.device)
        self.reward_spec = (reward_spec or Bounded(-torch.inf, torch.inf, ())).to(self.device)
        self._closed = False
        self._done: Tensor | None = None  # None: never reset
        self._driver: object = None  # the loop whose memory holds the current step; None once anything else moved the environment
        self.seed(int(torch.randint(2**31, ()).item()) if seed is None else seed)

    steps_in_numpy = False
    """Whether the environment writes NumPy arrays (``_step_arrays``, ``_reset_arrays``): spares making tensors at every step."""

    # ---- for authors -------------------------------------------------------------------------------------------------------
    @abstractmethod
    def _reset(self, mask: Tensor | None) -> Leaves:
        """Reset the environments in ``mask`` (bool ``[*batch]``; None: all); return the observation entries ``[*batch, ...]``.

        Rows outside the mask are not read.
        """

    @abstractmethod
    def _step(self, action: Any) -> Leaves:
        """Take ``action``; return the next observations, ``reward``, ``terminated`` and ``truncated``, ``[*batch, ...]``."""

    def _seed(self, seed: int) -> None:  # noqa: B027  most environments draw from self._keys and need nothing here
        """Seed a generator of the environment's own."""

    def _close(self) -> None:  # noqa: B027
        """Release what the environment holds."""

    def _render(self, index: int) -> np.ndarray:
        raise EnvError(f"{type(self).__name__} cannot render: it does not define _render(index). Plot its observations instead.")

    # ---- for users ---------------------------------------------------------------------------------------------------------
    @property
    def num_envs(self) -> int:
        """How many environments step together (1 without batch dimension)."""
        return self.batch_size.numel()

    def seed(self, seed: int) -> None:
        """Seed environment ``i`` with ``seed + i``, for episodes that begin from now on (Gymnasium: from the next full reset)."""
        self._seed_value, self._driver = check_seed(seed), None
        self._keys = env_keys(seed, self.num_envs, self.device).reshape(self.batch_size)
        self._actions_drawn = 0
        self._seed(seed)

    @torch.no_grad()
    def reset(self, td: TensorDictBase | None = None, *, mask: Tensor | None = None, seed: int | None = None) -> TensorDict:
        """Start new episodes and return the root of their first step.

        Args:
            td: with ``mask``, the current root: its rows outside the mask are kept.
            mask: which environments to reset, bool ``[*batch]``; all by default.
            seed: reseed first.

        Raises:
            EnvError: the environment is closed, or ``mask`` comes without ``td``.
            SpecError: ``mask`` has the wrong shape or dtype.
        """
        self._check_open()
        if seed is not None:
            self.seed(seed)
        self._driver = None
        if mask is None:
            return self._wrap_root(self._reset(None))
        mask = torch.as_tensor(mask, device=self.device)
        if mask.shape != self.batch_size or mask.dtype != torch.bool:
            got = f"{mask.dtype} {list(mask.shape)}"
            raise SpecError(
                explain("mask", f"bool {list(self.batch_size)}", got, "Pass one flag per environment, such as td['done']")
            )
        if td is None or self._done is None:
            raise EnvError("A partial reset needs the current step: call env.reset() first, then env.reset(td, mask=mask).")
        still_done = self._done & ~mask
        fresh = self._wrap_root(self._reset(mask))
        self._done = still_done
        return fresh.where(mask, td.select(*fresh.keys(True, True)))

    @torch.no_grad()
    def step(self, td: TensorDictBase) -> TensorDictBase:
        """Take ``td["action"]`` and return ``td`` with the outcome under ``next``. A finished environment is *not* reset here.

        Raises:
            MissingKeyError: ``td`` has no action.
            SpecError: the action leaves its spec (shape, dtype, device, range).
            EnvError: the environment is closed, was never reset, or is done.
        """
        self._check_open()
        if self._done is None or self._done.any():
            state = "never reset" if self._done is None else f"{int(self._done.sum())} of {self.num_envs} done"
            fix = "Call env.reset() first, or use env.step_and_reset(td), which resets finished environments by itself"
            raise EnvError(explain("An environment that steps", "reset and not done", state, fix))
        action = td.get(keys.ACTION, None)
        if action is None:
            raise MissingKeyError(
                explain("The TensorDict given to step", "one with an 'action'", f"keys {list(td.keys())}", "Set td['action']")
            )
        self.check_action(action)
        self._driver = None
        nxt = self._step(action)
        nxt.setdefault(keys.TRUNCATED, torch.zeros_like(nxt[keys.TERMINATED]))
        self._done = nxt[keys.TERMINATED] | nxt[keys.TRUNCATED]
        remembered = td.get((keys.NEXT, keys.RECURRENT), None)  # a policy's state after its action
        td[keys.NEXT] = TensorDict(keys.nest({**nxt, keys.DONE: self._done}), self.batch_size, self.device).clone()
        if remembered is not None:
            td[keys.NEXT, keys.RECURRENT] = remembered
        return td

    def step_and_reset(self, td: TensorDictBase) -> tuple[TensorDictBase, TensorDictBase]:
        """Step, then reset what is done; return the step and the root of the next one (TorchRL: ``step_and_maybe_reset``)."""
        td = self.step(td)
        nxt: Any = td[keys.NEXT]
        root = nxt.exclude(keys.REWARD)
        done: Any = self._done
        if not bool(done.any()):
            return td, root
        remembered = root.get(keys.RECURRENT, None)
        root = self.reset(root, mask=done)
        if remembered is not None:  # an episode begins with zeros
            root[keys.RECURRENT] = torch.zeros_like(remembered).where(done, remembered)
        return td, root

    def check_action(self, action: Any, batch_size: torch.Size | None = None) -> None:
        """Raise SpecError unless ``action`` is inside the action spec, one per environment, or for each of ``batch_size``."""
        expected = self.batch_size if batch_size is None else batch_size
        self.action_spec.check(action, keys.ACTION)
        batch = (
            action.shape if isinstance(self.action_spec, Composite) else action.shape[: action.ndim - len(self.action_spec.shape)]
        )
        if batch != expected:
            want, got = [*expected, *self.action_spec.shape], list(action.shape)
            fix = f"Return one action for each of the {expected.numel()} environments"
            raise SpecError(explain("action", f"of shape {want}", f"{got}", fix))

    def random_actions(self, *time: int) -> Any:
        """Draw uniform actions ``[*time, *batch, ...]``, each row from the stream of its own environment."""
        steps = int(np.prod(time)) if time else 1
        counter = torch.arange(self._actions_drawn, self._actions_drawn + steps, device=self.device)
        self._actions_drawn += steps
        counter = counter.reshape(steps, *[1] * len(self.batch_size))
        u = counter_uniform(self._keys, counter, self.action_spec.num_uniform, ACTION_SALT)
        return self.action_spec.from_uniform(u.reshape(*time, *self.batch_size, -1))

    def rollout(
        self, max_steps: int, policy: Any = None, *, break_when_any_done: bool | None = None, seed: int | None = None
    ) -> TensorDict:
        """Reset, then run ``policy`` for up to ``max_steps`` steps.

        Args:
            max_steps: number of steps, at least 1.
            policy: anything callable (see :func:`rlbook.envs.policy.as_policy`); uniform random actions by default.
            break_when_any_done: stop at the first done. By default true for one environment and false for a batch, which resets
                itself.
            seed: reseed first.

        Returns:
            TensorDict ``[*batch, T]``.
        """
        from rlbook.envs.loop import Loop

        self._check_open()
        if not isinstance(max_steps, int) or max_steps < 1:
            raise EnvError(explain("max_steps", "a positive integer", repr(max_steps), "Pass for example max_steps=100"))
        if seed is not None:
            self.seed(seed)
        if break_when_any_done is None:
            break_when_any_done = not self.batch_size
        return Loop(self, policy, max_steps).run(break_when_any_done=break_when_any_done)

    def render(self, index: int = 0) -> np.ndarray:
        """Return a picture of environment ``index``, uint8 ``[H, W, 3]``."""
        self._check_open()
        if not -self.num_envs <= index < self.num_envs:
            raise EnvError(explain("index", f"below {self.num_envs}, the number of environments", f"{index}", "Pass 0"))
        return self._render(index)

    def close(self) -> None:
        """Release the environment's resources. Closing twice is fine; anything else afterwards is an error."""
        if not self._closed:
            self._closed = True
            self._close()

    def __enter__(self) -> Env:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        batch = f"num_envs={self.batch_size[0]}, " if self.batch_size else ""
        return (
            f"{type(self).__name__}({batch}device={self.device},\n    observation_spec={self.observation_spec},\n"
            f"    action_spec={self.action_spec})"
        )

    # ---- shared ------------------------------------------------------------------------------------------------------------
    def _check_open(self) -> None:
        if self._closed:
            raise EnvError(f"This {type(self).__name__} is closed. Make a new one, or call close() later.")

    def _wrap_root(self, leaves: Leaves) -> TensorDict:
        """Make the root TensorDict of a first step: the observation entries, and flags that are all false."""
        self._done = torch.zeros(self.batch_size, dtype=torch.bool, device=self.device)
        flags: Leaves = {key: torch.zeros_like(self._done) for key in keys.FLAGS}
        return TensorDict(keys.nest({**leaves, **flags}), self.batch_size, self.device).clone()
