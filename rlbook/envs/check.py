"""``check_env``: does an environment keep the contract? One clear error for whatever it breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.envs.base import Env
from rlbook.envs.loop import align
from rlbook.envs.native.base import NativeEnv
from rlbook.errors import EnvError, MissingKeyError, NonFiniteError, SpecError, explain
from rlbook.specs import Composite, Spec
from rlbook.typing import Leaves

RESERVED = (keys.ACTION, keys.REWARD, *keys.FLAGS, keys.NEXT)
OUTCOME = (keys.REWARD, keys.TERMINATED)


def check_env(env: Env, steps: int = 100, *, seed: int = 0, partial_reset: bool = True) -> str:
    """Play an environment at random and check what everything else in rlbook relies on.

    Specs; keys, shapes, dtypes, devices and ranges of what ``_reset`` and ``_step`` return; finite rewards; the same seed gives
    the same rollout; ``next`` keeps the last observation of an episode; resetting one environment leaves the others alone;
    nothing writes into TensorDicts that were already handed out; a closed environment says so. For a
    :class:`~rlbook.envs.NativeEnv` also that its functions are pure and that each row is computed as if it were alone.

    Args:
        env: the environment; it is reset with ``seed`` at the end and stays usable.
        steps: length of each of the rollouts.
        seed: seed of those rollouts.
        partial_reset: False for an environment that can only be reset as a whole.

    Returns:
        One line that says what was seen.

    Raises:
        EnvError, SpecError, MissingKeyError, NonFiniteError: the first fault, and how to mend it.

    Example:
        >>> from rlbook import CartPole, check_env
        >>> print(check_env(CartPole(num_envs=2)))
        CartPole keeps the contract: 100 steps, batch size [2], 8 episodes ended.
    """
    if not isinstance(env, Env):
        fix = "Wrap a Gymnasium environment in GymEnv(env)"
        raise EnvError(explain("What check_env takes", "an rlbook Env", type(env).__name__, fix))
    _check_specs(env)
    env.seed(seed)
    _check_reset(env)
    _check_steps(env, steps)
    if isinstance(env, NativeEnv):
        _check_native(env)
    data = _check_seeding(env, steps, seed)
    _check_endings(env, data)
    _check_memory(env, seed)
    if partial_reset:
        _check_partial_reset(env, steps, seed)
    _check_closed(env)
    env.reset(seed=seed)
    ended = int(data[keys.NEXT, keys.DONE].sum())
    return f"{_name(env)} keeps the contract: {steps} steps, batch size {list(env.batch_size)}, {ended} episodes ended."


def _name(env: Env) -> str:
    return type(env).__name__


def _check_specs(env: Env) -> None:
    """Check that the specs are there and describe tensors of this device under free names."""
    for name in ("observation_spec", "action_spec", "reward_spec"):
        spec = getattr(env, name, None)
        if not isinstance(spec, Composite if name == "observation_spec" else Spec):
            want = "a Composite" if name == "observation_spec" else "a Spec"
            raise EnvError(explain(f"{_name(env)}.{name}", want, type(spec).__name__, "Pass it to super().__init__(...)"))
    leaves = env.observation_spec.leaves()
    taken = [keys.pretty(key) for key in leaves if keys.as_tuple(key)[0] in RESERVED]
    if taken or not leaves:
        got = f"{taken}" if taken else "none"
        fix = "Name them differently, for example 'observation'"
        raise EnvError(explain("The names of observation entries", f"at least one, none of {RESERVED}", got, fix))


def _check_reset(env: Env) -> None:
    """Check what a reset returns, from the author's method and from the user's."""
    _check_leaves(env, "_reset", env._reset(None))
    root = env.reset()
    if root.batch_size != env.batch_size:
        raise EnvError(
            explain(
                "The batch size after reset", f"{list(env.batch_size)}", f"{list(root.batch_size)}", "Keep Env.reset as it is"
            )
        )
    for key in keys.FLAGS:
        if root[key].dtype != torch.bool or root[key].any():
            raise EnvError(explain(f"{key} after reset", "False everywhere", f"{root[key]}", "Keep Env.reset as it is"))


def _check_steps(env: Env, steps: int) -> None:
    """Check every step of a random rollout, at the level an author writes."""
    for _ in range(steps):
        action = env.random_actions()
        env.check_action(action)
        leaves = env._step(action)
        _check_leaves(env, "_step", leaves, OUTCOME)
        done = leaves[keys.TERMINATED] | leaves.get(keys.TRUNCATED, torch.zeros_like(leaves[keys.TERMINATED]))
        if done.any():
            fresh = env._reset(done)
            _check_leaves(env, "_reset", {key: value[done] for key, value in fresh.items()}, batch=(int(done.sum()),))


def _check_leaves(env: Env, method: str, leaves: Any, outcome: Iterable[str] = (), batch: tuple[int, ...] | None = None) -> None:
    """Check the entries that ``_reset`` or ``_step`` returned."""
    name, batch = f"{_name(env)}.{method}", tuple(env.batch_size) if batch is None else batch
    if not isinstance(leaves, dict):
        fix = "Return for example {'observation': x}"
        raise EnvError(explain(f"What {name} returns", "a dictionary of tensors", type(leaves).__name__, fix))
    specs = env.observation_spec.leaves()
    for key in (*specs, *outcome):
        if key not in leaves:
            fix = f"Return {keys.pretty(key)!r} as well" + (", or take it out of observation_spec" if key in specs else "")
            raise MissingKeyError(
                explain(f"What {name} returns", f"a dictionary with {keys.pretty(key)!r}", f"{sorted(map(str, leaves))}", fix)
            )
    for key, value in leaves.items():
        if key in specs:
            _inside(name, key, specs[key], value, batch)
        elif key == keys.REWARD:
            _finite(name, value)
            _inside(name, key, env.reward_spec, value, batch)
        elif outcome and key in (keys.TERMINATED, keys.TRUNCATED):  # without a time limit truncated may be left out
            if not isinstance(value, Tensor) or value.dtype != torch.bool or tuple(value.shape) != batch:
                got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                fix = "Compute it with a comparison, one flag per environment"
                raise SpecError(explain(f"{name}: {key}", f"bool {list(batch)}", got, fix))
        else:
            fix = "Add it to observation_spec, or leave it out"
            raise EnvError(explain(f"What {name} returns", "the entries of observation_spec", f"also {keys.pretty(key)!r}", fix))


def _inside(name: str, key: Any, spec: Spec, value: Any, batch: tuple[int, ...]) -> None:
    try:
        spec.check(value, key, batch)
    except SpecError as error:
        raise SpecError(f"{name}: {error} If the value is right, change its spec.") from error


def _finite(name: str, reward: Any) -> None:
    if isinstance(reward, Tensor) and not torch.isfinite(reward).all():
        fix = "Look for a division by zero or a logarithm of 0 in it: training on it would turn every parameter into NaN"
        raise NonFiniteError(explain(f"{name}: reward", "finite", f"{reward}", fix))


def _check_seeding(env: Env, steps: int, seed: int) -> TensorDict:
    """Check that the same seed gives the same rollout, and return it."""
    first = env.rollout(steps, seed=seed, break_when_any_done=False)
    env.rollout(min(steps, 10), seed=seed + 1, break_when_any_done=False)  # leaves traces, if anything does
    second = env.rollout(steps, seed=seed, break_when_any_done=False)
    key = _first_difference(first, second)
    if key is not None:
        fix = (
            "Draw its random numbers from self._keys (rlbook.seeding) or seed its generator in _seed, "
            "and start everything anew in _reset. "
            "(A transform that learns, such as VecNorm, must be frozen to be checked.)"
        )
        got = f"different values of {key!r}"
        raise EnvError(explain(f"Two rollouts of {_name(env)} with the same seed", "the same, bit for bit", got, fix))
    return second


def _check_endings(env: Env, data: TensorDict) -> None:
    """Check that ``next`` holds the last observation of an episode, not the first one of the next episode."""
    done = data[keys.NEXT, keys.DONE]
    if not torch.equal(done, data[keys.NEXT, keys.TERMINATED] | data[keys.NEXT, keys.TRUNCATED]):
        raise EnvError(explain("next.done", "terminated | truncated", "something else", "Let the base class compute it"))
    ended = done[..., :-1]
    same, still = torch.ones_like(ended), torch.ones_like(ended)  # what next holds equals the following root; this root
    for key in env.observation_spec.leaves():
        root, after = (part.get(key).movedim(ended.ndim - 1, 0) for part in (data, data.get(keys.NEXT)))
        same &= _equal_rows(after[:-1], root[1:], ended.ndim)
        still &= _equal_rows(after[:-1], root[:-1], ended.ndim)
    if not (same | ended).all():
        raise EnvError(
            "The observation under next differs from the one the following step begins with. Return the same one from _step."
        )
    if ended.any() and same[ended].all() and not still[~ended].all():
        what = f"What {_name(env)}._step returns when an episode ends"
        fix = "Do not reset inside _step: the caller does that, with _reset(mask)"
        raise EnvError(explain(what, "its last observation", "the first observation of the next episode", fix))


def _check_memory(env: Env, seed: int) -> None:
    """Check that a step changes neither its input nor what earlier steps returned."""
    root = env.reset(seed=seed)
    root[keys.ACTION] = env.random_actions()
    given = root.clone()
    step, root = env.step_and_reset(root)
    _unchanged(f"What {_name(env)}.step is given", given, step.exclude(keys.NEXT), "Copy the action before changing it in place")
    earlier = TensorDict({"step": step, "root": root}, env.batch_size)
    kept = earlier.clone()
    for _ in range(3):
        root = root.clone()
        root[keys.ACTION] = env.random_actions()
        _, root = env.step_and_reset(root)
    _unchanged(
        f"A TensorDict that {_name(env)} has returned", kept, earlier, "Return copies of buffers that the environment writes into"
    )


def _unchanged(what: str, before: TensorDictBase, after: TensorDictBase, fix: str) -> None:
    key = _first_difference(before, after)
    if key is not None:
        raise EnvError(explain(what, "left as it is by later steps", f"a changed {key!r}", fix))


def _check_partial_reset(env: Env, steps: int, seed: int) -> None:
    """Check that resetting one environment leaves the future of the others as it was.

    At one moment alone the others may happen to stand where a reset puts them, so several rows are tried at many moments.
    """
    steps = max(steps // 4, 2)
    expected = _play(env, steps, seed)
    probes = ((0, range(steps // 2, steps)), (-1, range(steps // 4, steps, 3)), (env.num_envs // 2, [steps // 2]))
    for row, moments in probes:
        mask = torch.zeros(env.batch_size, dtype=torch.bool, device=env.device)
        if env.num_envs > 1:
            mask[row] = True
        _compare_rows(expected[moments[0] :], _play(env, steps, seed, mask, moments)[moments[0] :], ~mask)


def _compare_rows(expected: list[TensorDictBase], got: list[TensorDictBase], compared: Tensor) -> None:
    """Compare steps in the environments that are ``True`` in ``compared``, each up to the end of its episode."""
    for before, after in zip(expected, got, strict=True):
        for key, value in before.items(True, True):
            if ((value != after[key]) & align(compared, value)).any():
                fix = "Change only the rows of the mask in _reset(mask)"
                raise EnvError(
                    explain("A partial reset", "without effect on the other environments", f"another {keys.pretty(key)}", fix)
                )
        compared = compared & ~before[keys.DONE]


def _play(env: Env, steps: int, seed: int, mask: Tensor | None = None, moments: Sequence[int] = ()) -> list[TensorDictBase]:
    """Play at random, and reset the masked environments before the steps at ``moments``. Return what came of each step."""
    root, outcomes = env.reset(seed=seed), []
    for t in range(steps):
        if t in moments:
            root = env.reset(root, mask=mask)
        root[keys.ACTION] = env.random_actions()
        step, root = env.step_and_reset(root)
        outcomes.append(step[keys.NEXT])
    return outcomes


def _check_closed(env: Env) -> None:
    """Check that a closed environment refuses to be used."""
    root = env.reset()
    root[keys.ACTION] = env.random_actions()
    uses: dict[str, Callable[[], Any]] = {"reset": env.reset, "step": lambda: env.step(root)}
    env._closed = True
    try:
        for name, use in uses.items():
            try:
                use()
            except EnvError:
                continue
            raise EnvError(explain(f"{_name(env)}.{name} after close()", "an EnvError", "a result", f"Do not override {name}"))
    finally:
        env._closed = False


def _check_native(env: NativeEnv) -> None:
    """Check that the author's functions are pure, keep the state's layout, and treat every row alone."""
    env.reset()
    state, action = env.state, env.random_actions()
    given = state.clone()
    after, leaves = env.functional_step(state, action)
    name = f"{_name(env)}._dynamics"
    for key, value in state.items():
        if after[key].shape != value.shape or after[key].dtype != value.dtype:
            want, got = f"{value.dtype} {list(value.shape)}", f"{after[key].dtype} {list(after[key].shape)}"
            raise SpecError(explain(f"{name}: state[{key!r}]", want, got, "Return it as _initial does"))
    _unchanged(f"What {name} is given", given, state, "Compute new tensors instead of changing the state in place")
    _unchanged("The environment's own state", given, env.state, "functional_step must not write to self")
    env._step(action)
    key = _first_difference(after, env.state)
    if key is not None:
        fix = "Clone an entry of state that becomes another one: entries are written one after the other"
        raise EnvError(explain(f"state[{key!r}] after {_name(env)}._step", "what _dynamics returned", "something else", fix))
    for i in range(len(state) if env.batch_size else 0):
        row, row_leaves = env.functional_step(state[i], action[i])
        alone: Leaves = {**dict(row.items()), **row_leaves}
        for key, value in {**dict(after.items()), **leaves}.items():
            if not torch.equal(value[i], alone[key]):
                fix = "Use operations that treat every row alone, along the last dimensions only"
                what = f"{keys.pretty(key)} of environment {i} in a batch"
                raise EnvError(explain(what, "what it is alone, bit for bit", f"{value[i]} instead of {alone[key]}", fix))


def _equal_rows(one: Tensor, other: Tensor, ndim: int) -> Tensor:
    """Compare time-major ``[T, *batch, ...]`` values row by row: bool ``[*batch, T]``; ``ndim`` counts ``[*batch, T]``."""
    return (one == other).reshape(*one.shape[:ndim], -1).all(-1).movedim(0, -1)


def _first_difference(one: TensorDictBase, other: TensorDictBase) -> str | None:
    """Name the first entry of ``one`` that is not the same in ``other``."""
    for key, value in one.items(True, True):
        if value.shape != other[key].shape or not torch.equal(value, other[key]):
            return keys.pretty(key)
    return None
