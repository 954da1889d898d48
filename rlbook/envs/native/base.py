"""Environments written in torch: pure functions of a state, batched, on any device, inside or outside ``torch.compile``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.envs.base import RESET_SALT, Env
from rlbook.errors import EnvError, MissingKeyError, SpecError, explain
from rlbook.seeding import counter_uniform
from rlbook.specs import Composite, Spec
from rlbook.typing import DeviceLike, Leaves

State = dict[str, Tensor]
"""Everything that an environment's future depends on, each entry ``[*, ...]``: the author's entries and the three below."""

STEP_COUNT, EPISODE, STREAM = keys.STEP_COUNT, "episode", "stream"
"""Steps since the reset, number of the episode since the seed, key of the random stream: int64 ``[*]``."""

STEP_SALT = 2
_SPREAD = 0x9E3779B1  # 2**32 over the golden ratio: pairs (episode, step) fall on different counters for billions of steps


class NativeEnv(Env):
    """Dynamics as pure functions of tensors with any batch dimensions; this class keeps the state, the seeds and the time limit.

    Write three functions, none of which changes its arguments: ``_initial``, ``_dynamics`` and ``_observe``. The first is already
    called by ``super().__init__()``: set what it reads before. Randomness comes as uniform numbers that depend on nothing but the
    environment's own stream, episode and step, so an environment behaves the same alone or in a batch, bit for bit.

    The state lives in tensors that are allocated once and written in place, and no value decides which code runs: ``_step`` and
    ``_reset`` compile to one graph, and can be captured as a CUDA graph.

    Attributes:
        reset_uniforms: how many uniform numbers an initial state takes.
        step_uniforms: how many uniform numbers a step takes.

    Args:
        observation_spec, action_spec, reward_spec, num_envs, device, seed: as for :class:`~rlbook.envs.Env`.
        max_steps: an episode is truncated after this many steps; None for never.

    Example:
        >>> from rlbook import CartPole
        >>> env = CartPole(num_envs=2, seed=0)
        >>> state, _ = env.functional_reset(env.state)
        >>> state, outcome = env.functional_step(state, torch.tensor([0, 1]))      # env itself has not moved
        >>> outcome["reward"]
        tensor([1., 1.])
    """

    reset_uniforms: int = 0
    step_uniforms: int = 0
    _state: State = {}  # noqa: RUF012  replaced by the first seed()

    def __init__(
        self,
        observation_spec: Composite,
        action_spec: Spec,
        reward_spec: Spec | None = None,
        *,
        max_steps: int | None = None,
        num_envs: int | None = None,
        device: DeviceLike = None,
        seed: int | None = None,
    ):
        if max_steps is not None and (not isinstance(max_steps, int) or max_steps < 1):
            raise EnvError(explain("max_steps", "None or a positive integer", repr(max_steps), "Pass for example max_steps=500"))
        self.max_steps = max_steps
        self._no_numbers = torch.empty(0, device=device)
        super().__init__(observation_spec, action_spec, reward_spec, num_envs=num_envs, device=device, seed=seed)

    # ---- for authors -------------------------------------------------------------------------------------------------------
    @abstractmethod
    def _initial(self, u: Tensor) -> State:
        """Return initial states: entries ``[*, ...]`` made from uniform numbers ``u``, ``[*, reset_uniforms]``."""

    @abstractmethod
    def _dynamics(self, state: State, action: Any, u: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return the next state's entries, the reward ``[*]`` and terminated ``[*]``.

        ``u`` holds uniform numbers ``[*, step_uniforms]``; it is empty where that is 0. An entry that passes on another entry's
        numbers is a copy of it, not a view.
        """

    @abstractmethod
    def _observe(self, state: State) -> Leaves:
        """Return the observation entries of a state."""

    # ---- for planners and lessons: nothing here moves the environment ------------------------------------------------------
    @torch.no_grad()
    def functional_step(self, state: Mapping[str, Tensor] | TensorDictBase, action: Any) -> tuple[TensorDict, Leaves]:
        """Take ``action`` in ``state``; the environment itself stays where it is.

        Args:
            state: as :attr:`state`, with any batch dimensions: ``env.state.expand(9, *env.batch_size)`` tries 9 plans at once.
            action: ``[*, ...]``.

        Returns:
            The next state (never a reset one), and the observation entries, ``reward``, ``terminated`` and ``truncated``.

        Raises:
            SpecError: the action leaves its spec, or there is not one for each state.
        """
        if not torch.compiler.is_compiling():
            self.check_action(action, state[STREAM].shape)
        after, leaves = self._advance(dict(state.items()), action)
        return self._wrap_state(after), leaves

    @torch.no_grad()
    def functional_reset(
        self, state: Mapping[str, Tensor] | TensorDictBase, mask: Tensor | None = None
    ) -> tuple[TensorDict, Leaves]:
        """Return ``state`` with the rows in ``mask`` (bool ``[*]``; None: all) at their next start, and the observations."""
        after, leaves = self._restart(dict(state.items()), mask)
        return self._wrap_state(after), leaves

    @property
    def state(self) -> TensorDict:
        """A copy of the state ``[*batch]``, for :meth:`set_state` and :meth:`functional_step`."""
        return self._wrap_state(self._state).clone()

    @torch.no_grad()
    def set_state(self, state: Mapping[str, Tensor] | TensorDictBase) -> None:
        """Put the environment into ``state``, a (changed) copy of :attr:`state`; no environment counts as done then.

        Raises:
            MissingKeyError: an entry is missing.
            SpecError: an entry has another shape or dtype.
        """
        missing = [key for key in self._state if key not in state.keys()]
        if missing:
            fix = "Change a copy: state = env.state; state['...'] = ...; env.set_state(state)"
            raise MissingKeyError(explain("state", f"one with the entries {sorted(self._state)}", f"none called {missing}", fix))
        for key, value in self._state.items():
            new = state[key]
            if new.shape != value.shape or new.dtype != value.dtype:
                want, got = f"{value.dtype} {list(value.shape)}", f"{new.dtype} {list(new.shape)}"
                raise SpecError(explain(f"state[{key!r}]", want, got, "Give it the shape and dtype that it has in env.state"))
        self._write({key: state[key] for key in self._state})
        self._done, self._driver = torch.zeros(self.batch_size, dtype=torch.bool, device=self.device), None

    # ---- the contract ------------------------------------------------------------------------------------------------------
    def _step(self, action: Any) -> Leaves:
        after, leaves = self._advance(self._state, action)
        self._write(after)
        return leaves

    def _reset(self, mask: Tensor | None) -> Leaves:
        after, leaves = self._restart(self._state, mask)
        self._write(after)
        return leaves

    def _seed(self, seed: int) -> None:
        self._state = self._state or self._allocate()
        self._state[STREAM].copy_(self._keys)
        self._state[EPISODE].fill_(-1)  # the first reset begins episode 0

    # ---- how ---------------------------------------------------------------------------------------------------------------
    def _advance(self, state: State, action: Any) -> tuple[State, Leaves]:
        if self.step_uniforms:
            u = counter_uniform(state[STREAM], state[EPISODE] * _SPREAD + state[STEP_COUNT], self.step_uniforms, STEP_SALT)
        else:
            u = self._no_numbers
        entries, reward, terminated = self._dynamics(state, action, u)
        step_count = state[STEP_COUNT] + 1
        after = {**state, **entries, STEP_COUNT: step_count}
        truncated = torch.zeros_like(terminated) if self.max_steps is None else step_count >= self.max_steps
        return after, {**self._observe(after), keys.REWARD: reward, keys.TERMINATED: terminated, keys.TRUNCATED: truncated}

    def _restart(self, state: State, mask: Tensor | None) -> tuple[State, Leaves]:
        if mask is None:
            mask = torch.ones_like(state[STREAM], dtype=torch.bool)
        episode = state[EPISODE] + mask
        fresh = self._initial(counter_uniform(state[STREAM], episode, self.reset_uniforms, RESET_SALT))
        fresh = {**fresh, STEP_COUNT: torch.zeros_like(episode)}
        after = {key: torch.where(_like(mask, old), fresh[key], old) if key in fresh else old for key, old in state.items()}
        after[EPISODE] = episode
        return after, self._observe(after)

    def _write(self, after: State) -> None:
        for key, value in self._state.items():
            if after[key] is not value:
                value.copy_(after[key])

    def _allocate(self) -> State:
        """Make the state's tensors, with the shapes that ``_initial`` gives them."""
        entries = self._initial(torch.zeros(*self.batch_size, self.reset_uniforms, device=self.device))
        name, batch = type(self).__name__, list(self.batch_size)
        for key, value in entries.items():
            if key in (STEP_COUNT, EPISODE, STREAM):
                raise EnvError(f"{name}._initial returns {key!r}, a name NativeEnv uses itself. Give the entry another name.")
            if list(value.shape[: len(batch)]) != batch:
                fix = "Compute it from u, whose shape is [*batch, reset_uniforms]"
                raise EnvError(
                    explain(f"{name}._initial(u)[{key!r}]", f"of shape {[*batch, '...']}", f"{list(value.shape)}", fix)
                )
        counters = {
            key: torch.zeros(self.batch_size, dtype=torch.int64, device=self.device) for key in (STEP_COUNT, EPISODE, STREAM)
        }
        return {**{key: value.clone(memory_format=torch.contiguous_format) for key, value in entries.items()}, **counters}

    def _wrap_state(self, state: State) -> TensorDict:
        return TensorDict(dict(state), state[STREAM].shape, self.device)

    def _row(self, key: str, index: int) -> Tensor:
        """Return one environment's entry, for drawing it."""
        value = self._state[key]
        return value[index] if self.batch_size else value


def _like(mask: Tensor, value: Tensor) -> Tensor:
    """View ``[*]`` as ``[*, 1, ...]``, to broadcast against ``value``."""
    return mask.reshape(mask.shape + (1,) * (value.ndim - mask.ndim))
