"""The hot loop: policy, environment, write. Its memory is allocated once and every step writes into it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.envs.policy import as_policy, check_output
from rlbook.errors import MissingKeyError, NonFiniteError, PolicyError, SpecError, explain
from rlbook.typing import Key, Leaves

if TYPE_CHECKING:
    from rlbook.envs.base import Env


class Loop:
    """Fill a preallocated rollout ``[*batch, T]``, continuing where the last call ended.

    The memory is time-major (``[T, *batch, ...]``), so that one step is one contiguous row; what users see is the ``[*batch, T]``
    view. Observations have a row more: row T is the root of the next rollout. So has what a policy remembers (the state of a
    recurrent network): it reads the row of its step, and what it returns is the row of the next one, zero where an episode ended.

    Args:
        env: the environment.
        policy: anything callable.
        num_steps: T.
        check: raise on a reward that is not finite and on an observation outside its spec, once per rollout.
    """

    def __init__(self, env: Env, policy: Any, num_steps: int, check: bool = True):
        self.env, self.policy, self.num_steps, self.check = env, as_policy(policy, env), num_steps, check
        self.memory = allocate(env, num_steps)
        remembered = {key: stack_rows(value, num_steps + 1) for key, value in self.policy.initial_state().items()}
        self.memory.update(remembered)
        self._states = rows_of(remembered)
        self._roots = rows_of({key: self.memory[key] for key in (*env.observation_spec.leaves(), *remembered)})
        self._outs: list[Leaves] | None = None
        self._writer = (ArrayWriter if env.steps_in_numpy else TensorWriter)(env, self.memory)
        self._at = 0  # the row that holds the current root
        self._token = object()  # see Env._driver

    @torch.no_grad()
    def run(self, break_when_any_done: bool = False) -> TensorDict:
        """Collect ``num_steps`` steps (fewer when told to break) and return the rollout, a view of this loop's own memory.

        Raises:
            PolicyError: the policy returned no valid action.
            NonFiniteError, SpecError: the environment returned a reward or an observation that it must not.
        """
        self._begin()
        noise = self.policy.noise(self.num_steps)
        if self.policy.open_loop:  # the actions depend on nothing: write them all at once
            self._allocate_outputs(self.policy(self._roots[0], noise[0]))
            self.memory[keys.ACTION].copy_(noise)
        for t in range(self.num_steps):
            if not self.policy.open_loop:
                self._act(t, None if noise is None else noise[t])
            any_done = self._writer.step(t)
            if any_done and self._states:
                clear_(self._states[t + 1], self.memory["flags"][t].any(dim=0))
            if break_when_any_done and any_done:
                break
        self.policy.give_back((self.num_steps - t - 1) * self.env.num_envs)
        return self._finish(t + 1)

    @property
    def root(self) -> Leaves | None:
        """The observations that the next rollout begins with, ``[*batch, ...]``; None if it begins with a reset."""
        return self._roots[self._at] if self.env._driver is self._token else None

    def continue_from(self, root: Leaves) -> None:
        """Let the next rollout begin with ``root``, the observations of the state that the environment is in."""
        for key, row in self._roots[0].items():
            row.copy_(root[key])
        self._at, self.env._driver = 0, self._token

    def _begin(self) -> None:
        """Put the current root into row 0: the end of the last rollout, or a reset if anything else has moved the environment."""
        self.env._check_open()
        if self.env._driver is not self._token:
            self._writer.reset(0)
            for row in self._states[0].values() if self._states else ():
                row.zero_()
        elif self._at:
            for key, row in self._roots[0].items():
                row.copy_(self._roots[self._at][key])
        self.env._driver = None  # until this rollout is whole

    def _allocate_outputs(self, out: Leaves) -> None:
        """Allocate memory for what the policy returns, the first time it does."""
        if self._outs is None:
            check_output(out, self.env)
            self._action_shape = out[keys.ACTION].shape
            if clash := [keys.pretty(key) for key in out if key in self.memory and key not in self._roots[0]]:
                fix = "Give them other names"
                raise PolicyError(explain("What a policy returns", "none of the environment's entries", f"{clash}", fix))
            new = {key: stack_rows(value, self.num_steps) for key, value in out.items() if key not in self._roots[0]}
            self.memory.update(new)
            self._outs = rows_of(new)
            for t, state in enumerate(self._states[1:]):
                self._outs[t].update(state)
            self._writer.take_actions(self.memory[keys.ACTION])
            self.data = view(self.memory, self.env.batch_size, self.num_steps, self.env.device)

    def _act(self, t: int, noise: Any) -> None:
        """Ask the policy for step ``t`` and write what it returns into row ``t``."""
        out = self.policy(self._roots[t], noise)
        if self._outs is None:
            self._allocate_outputs(out)
        assert self._outs is not None
        shape = out[keys.ACTION].shape
        if shape != self._action_shape:
            raise PolicyError(
                explain("action", f"of shape {list(self._action_shape)} at every step", f"{list(shape)}", "Mend the policy")
            )
        try:
            for key, row in self._outs[t].items():
                row.copy_(out[key])
        except (KeyError, RuntimeError) as error:
            want, got = "the same entries of the same shapes at every step", f"{sorted(map(keys.pretty, out))} ({error})"
            raise PolicyError(explain("What a policy returns", want, got, "Mend the policy")) from error

    def _finish(self, steps: int) -> TensorDict:
        """Fill in what follows from the rest, check, and hand the rollout out."""
        torch.any(self.memory["flags"], dim=1, out=self.memory[keys.NEXT, keys.DONE])
        self._at, self.env._driver = steps, self._token
        data = (
            self.data.copy() if steps == self.num_steps else self.data[..., :steps]
        )  # what the user adds stays with this rollout
        if self.check:
            check_rollout(data, self.env)
        return data


class TensorWriter:
    """Steps an environment of tensors and writes the outcome into the memory."""

    def __init__(self, env: Env, memory: dict[Key, Tensor]):
        self.env = env
        self.roots = rows_of({key: memory[key] for key in env.observation_spec.leaves()})
        self.outcomes = rows_of(outcome_of(env, memory))
        self.flags = memory["flags"].unbind(0)
        self.checked = False  # the first step is looked at

    def take_actions(self, actions: Any) -> None:
        """Learn where the actions are written, ``[T, *batch, ...]``."""
        self.actions = actions.unbind(0)

    def reset(self, t: int) -> None:
        """Reset everything and write the root of step ``t``."""
        fresh = self.env._reset(None)
        check_fit(fresh, self.roots[t], f"{type(self.env).__name__}._reset")
        for key, row in self.roots[t].items():
            row.copy_(fresh[key])

    def step(self, t: int) -> bool:
        """Take action ``t``, write its outcome and the root of step ``t + 1``; return whether anything is done."""
        nxt = self.env._step(self.actions[t])
        if not self.checked:
            check_fit(nxt, self.outcomes[t], f"{type(self.env).__name__}._step")
            self.checked = True
        for key, row in self.outcomes[t].items():
            if key in nxt:
                row.copy_(nxt[key])
        any_done = bool(self.flags[t].any())
        if any_done:
            done = self.flags[t].any(dim=0)
            fresh = self.env._reset(done)
            nxt = {key: torch.where(align(done, nxt[key]), fresh[key], nxt[key]) for key in self.roots[t]}
        for key, row in self.roots[t + 1].items():
            row.copy_(nxt[key])
        return any_done


class ArrayWriter:
    """The same for environments of NumPy arrays, which write into the memory themselves: no tensor is made per step."""

    def __init__(self, env: Any, memory: dict[Key, Tensor]):
        self.env = env
        self.roots = rows_of({key: self._arrays(memory[key]) for key in env.observation_spec.leaves()})
        self.outcomes = rows_of({key: self._arrays(value) for key, value in outcome_of(env, memory).items()})

    def _arrays(self, value: Any) -> list[Any]:
        """View the rows of ``[T, *batch, ...]`` as arrays ``[num_envs, ...]``; those of a TensorDict as dictionaries of them."""
        if isinstance(value, TensorDictBase):
            return rows_of({name: self._arrays(part) for name, part in value.items()})
        return list(value.numpy().reshape(len(value), self.env.num_envs, *value.shape[1 + len(self.env.batch_size) :]))

    def take_actions(self, actions: Any) -> None:
        """Learn where the actions are written, ``[T, *batch, ...]``."""
        self.actions = self._arrays(actions)

    def reset(self, t: int) -> None:
        """Reset everything and write the root of step ``t``."""
        self.env._reset_arrays(None, self.roots[t])

    def step(self, t: int) -> bool:
        """Take action ``t``, write its outcome and the root of step ``t + 1``; return whether anything is done."""
        nxt, root = self.outcomes[t], self.roots[t + 1]
        done = self.env._step_arrays(self.actions[t], nxt)
        for key, row in root.items():
            row[...] = nxt[key]
        if done is None:
            return False
        self.env._reset_arrays(done, root)
        return True


# ---- memory ----------------------------------------------------------------------------------------------------------------
def allocate(env: Env, steps: int) -> dict[Key, Tensor]:
    """Allocate the time-major memory of a rollout, all but what the policy returns."""
    flag = torch.zeros(env.batch_size, dtype=torch.bool, device=env.device)
    memory: dict[Key, Tensor] = {}
    for key, spec in env.observation_spec.leaves().items():
        zero = spec.zero(env.batch_size)
        memory[key] = stack_rows(zero, steps + 1)
        memory[(keys.NEXT, *keys.as_tuple(key))] = stack_rows(zero, steps)
    memory[keys.NEXT, keys.REWARD] = stack_rows(env.reward_spec.zero(env.batch_size), steps)
    # both ways to end share one tensor, so that a step asks once whether anything ended
    memory["flags"] = stack_rows(torch.stack((flag, flag)), steps)
    memory[keys.NEXT, keys.TERMINATED], memory[keys.NEXT, keys.TRUNCATED] = memory["flags"].unbind(1)
    memory[keys.NEXT, keys.DONE] = stack_rows(flag, steps)
    never = stack_rows(flag, steps)  # what is done is reset before the next step begins
    return memory | {key: never.clone() for key in keys.FLAGS}


def outcome_of(env: Env, memory: dict[Key, Any]) -> dict[Key, Any]:
    """Return the part of the memory that a step of the environment writes, under the names the environment uses."""
    written = (*env.observation_spec.leaves(), keys.REWARD, keys.TERMINATED, keys.TRUNCATED)
    return {key: memory[(keys.NEXT, *keys.as_tuple(key))] for key in written}


def rows_of(values: dict[Key, Any]) -> list[dict[Key, Any]]:
    """Cut time-major values into one dictionary per step, once, so that the loop does not."""
    columns = [value if isinstance(value, list) else value.unbind(0) for value in values.values()]
    return [dict(zip(values, row, strict=True)) for row in zip(*columns, strict=True)]


def stack_rows(example: Any, steps: int) -> Any:
    """Allocate ``[steps, *example.shape]`` zeros."""
    if isinstance(example, TensorDictBase):
        return torch.zeros_like(example).unsqueeze(0).expand(steps, *example.shape).clone()
    return example.new_zeros((steps, *example.shape))


def view(memory: dict[Key, Any], batch: torch.Size, steps: int, device: torch.device) -> TensorDict:
    """Return time-major memory as a TensorDict ``[*batch, T]``."""
    time_last = [*range(1, len(batch) + 1), 0]

    def turned(value: Any) -> Any:
        return value[:steps].permute(*time_last, *range(len(batch) + 1, value.ndim))

    return TensorDict(keys.nest({key: turned(value) for key, value in memory.items() if key != "flags"}), (*batch, steps), device)


def clear_(rows: dict[Key, Tensor], flag: Tensor) -> None:
    """Fill rows ``[*batch, ...]`` with zeros where ``flag`` ``[*batch]`` holds."""
    for row in rows.values():
        row.masked_fill_(align(flag, row), 0)


def align(flag: Tensor, value: Tensor) -> Tensor:
    """View ``[*batch]`` as ``[*batch, 1, ...]``, to broadcast against ``value``."""
    return flag.reshape(flag.shape + (1,) * (value.ndim - flag.ndim))


def check_rollout(data: TensorDictBase, env: Env) -> None:
    """Raise when a reward is not finite, or an observation or action leaves its spec."""
    try:
        env.action_spec.check(data[keys.ACTION], keys.ACTION)
    except SpecError as error:
        raise PolicyError(f"The policy returned an action that the environment does not take. {error}") from error
    reward = data[keys.NEXT, keys.REWARD]
    if not torch.isfinite(reward).all():
        bad = (~torch.isfinite(reward)).nonzero()[0].tolist()
        fix = "Mend the environment's reward: one such number turns every parameter into NaN"
        raise NonFiniteError(explain("reward", "finite", f"{reward[tuple(bad)].item()} at index {bad} of [*batch, time]", fix))
    roots: tuple[Any, ...] = (data, data[keys.NEXT])
    for root in roots:
        for key, spec in env.observation_spec.leaves().items():
            spec.check(root[key], key)


def check_fit(leaves: Leaves, rows: dict[Key, Tensor], name: str) -> None:
    """Raise unless what an environment returned fits its rows of the memory, for ``copy_`` broadcasts without a word."""
    fix = "rlbook.check_env(env) checks the whole contract"
    for key, row in rows.items():
        if key in leaves and leaves[key].shape != row.shape:
            raise SpecError(
                explain(f"{name}: {keys.pretty(key)}", f"of shape {list(row.shape)}", f"{list(leaves[key].shape)}", fix)
            )
        if key not in leaves and key != keys.TRUNCATED:  # an environment without time limit need not report it
            want, got = f"a dictionary with {keys.pretty(key)!r}", f"{sorted(map(str, leaves))}"
            raise MissingKeyError(explain(f"What {name} returns", want, got, fix))
