"""How Gymnasium environments are driven: one after another, or through a vector environment. Both write into fixed buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from rlbook import keys
from rlbook.errors import ConfigError, EnvError, SpecError, explain
from rlbook.specs import Spec, Unbounded
from rlbook.typing import Key

Arrays = dict[Key, np.ndarray]
"""One row per environment: observation entries, and after a step ``reward``, ``terminated`` and ``truncated``."""

FIX = "Make the environment return what its observation_space declares"


class Observations:
    """Writes Gymnasium's observations into arrays, entry by entry of their space; specs count discrete values from 0."""

    def __init__(self, space: Any):
        self.entries = list(entries_of(space))
        self.plain = not any(path or start is not None for _, path, start in self.entries)

    def write(
        self, observation: Any, arrays: Arrays, rows: Any = slice(None), *, batched: bool = False, check: bool = False
    ) -> None:
        """Write an observation into ``rows`` of ``arrays``; of a ``batched`` one, which has all rows, the same rows are taken."""
        for key, path, start in self.entries:
            value = follow(observation, path)
            if check:
                check_value(key, np.asarray(value), arrays[key])
            if batched:
                value = value[rows]
            arrays[key][rows] = value if start is None else value - start


class PerEnv:
    """Environments that step one after another in this process."""

    def __init__(self, envs: list[Any], info: tuple[str, ...]):
        self.envs, self.info, self.num_envs = envs, info, len(envs)
        self.observation_space, self.action_space = envs[0].observation_space, envs[0].action_space
        self.to_actions = action_converter(self.action_space, rows=True)
        self._steps = [env.step for env in envs]
        self._observations = Observations(self.observation_space)
        self._plain = not info and self._observations.plain
        self._checked = False  # the first step is looked at

    def info_specs(self) -> dict[str, Spec]:
        """Look at one reset and one random step to learn the shape of the ``info`` entries."""
        if not self.info:
            return {}
        env = self.envs[0]
        seen = dict(env.reset(seed=0)[1])
        env.action_space.seed(0)
        seen.update(env.step(env.action_space.sample())[4])
        missing = [name for name in self.info if name not in seen]
        if missing:
            raise ConfigError(explain("info", f"among {sorted(seen)}", f"{missing}", "Ask for entries that reset or step report"))
        values = {name: torch.as_tensor(np.asarray(seen[name])) for name in self.info}
        dtypes = {name: torch.float32 if value.dtype == torch.float64 else value.dtype for name, value in values.items()}
        return {name: Unbounded(tuple(value.shape), dtype=dtypes[name]) for name, value in values.items()}

    def reset(self, mask: np.ndarray | None, seed: int | None, root: Arrays) -> None:
        """Reset the masked environments into their rows of ``root``."""
        for i in range(self.num_envs) if mask is None else mask.nonzero()[0].tolist():
            observation, info = self.envs[i].reset(seed=None if seed is None else seed + i)
            self._write(i, observation, info, root, check=True)

    def step(self, action: Any, nxt: Arrays) -> np.ndarray | None:
        """Step every environment into its row of ``nxt``; return what is done, None where nothing is."""
        reward, terminated, truncated = nxt[keys.REWARD], nxt[keys.TERMINATED], nxt[keys.TRUNCATED]
        plain, any_done = nxt[keys.OBSERVATION] if self._plain else None, False
        if not self._checked:
            self._checked = True
            return self._first_step(action, nxt)
        for i, act in enumerate(self.to_actions(action)):
            observation, reward[i], over, cut, info = self._steps[i](act)
            terminated[i], truncated[i] = over, cut
            any_done = any_done or over or cut
            if plain is None:
                self._write(i, observation, info, nxt)
            else:
                plain[i] = observation
        return terminated | truncated if any_done else None

    def _first_step(self, action: Any, nxt: Arrays) -> np.ndarray | None:
        """Step every environment, and check what comes back: assignment would broadcast it without a word."""
        for i, act in enumerate(self.to_actions(action)):
            observation, reward, nxt[keys.TERMINATED][i], nxt[keys.TRUNCATED][i], info = self._steps[i](act)
            if np.ndim(reward):
                got = f"of shape {list(np.shape(reward))}"
                raise SpecError(explain("The environment's reward", "one number", got, "Return float(reward)"))
            nxt[keys.REWARD][i] = reward
            self._write(i, observation, info, nxt, check=True)
        done = nxt[keys.TERMINATED] | nxt[keys.TRUNCATED]
        return done if done.any() else None

    def _write(self, i: int, observation: Any, info: dict[str, Any], arrays: Arrays, check: bool = False) -> None:
        self._observations.write(observation, arrays, i, check=check)
        for name in self.info:
            arrays[name][i] = info.get(name, 0)

    def render(self, index: int) -> Any:
        """Return a picture of one environment, or None."""
        return self.envs[index].render() if self.envs[index].render_mode else None

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()


class Vector:
    """A Gymnasium ``VectorEnv``, whatever its way to reset, brought to ours: same step, ``next`` keeps the final observation."""

    def __init__(self, env: Any):
        self.env, self.num_envs = env, env.num_envs
        self.observation_space, self.action_space = env.single_observation_space, env.single_action_space
        self.to_actions = action_converter(self.action_space, rows=False)
        mode = env.metadata.get("autoreset_mode")
        self._bare = env.unwrapped
        # a wrapper would not see such a reset
        self.partial_reset = PARTIAL_RESETS.get(type(self._bare).__name__) if env is self._bare else None
        if self.partial_reset is None and mode not in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
            fix = "Make it with autoreset_mode=AutoresetMode.SAME_STEP (next-step resets waste a step that teaches nothing)"
            raise EnvError(explain("The autoreset mode of a VectorEnv", "SAME_STEP or DISABLED", str(mode), fix))
        self._same_step = self.partial_reset is None and mode == AutoresetMode.SAME_STEP
        self._finished = np.zeros(self.num_envs, bool)
        self._observations = Observations(self.observation_space)

    def info_specs(self) -> dict[str, Spec]:
        """A vector environment's ``info`` is not kept."""
        return {}

    def reset(self, mask: np.ndarray | None, seed: int | None, root: Arrays) -> None:
        """Reset the masked rows of ``root``."""
        if mask is None:
            observation, _ = self.env.reset(seed=seed)
        elif self.partial_reset is not None:
            return self.partial_reset(self._bare, mask.nonzero()[0], root[keys.OBSERVATION])
        elif self._same_step:
            if (mask & ~self._finished).any():
                raise EnvError("This vector environment resets by itself, when an episode ends: reset all of it, or none.")
            observation = self._after_reset
        else:
            observation, _ = self.env.reset(options={"reset_mask": mask})
        self._observations.write(observation, root, slice(None) if mask is None else mask, batched=True)

    def step(self, action: Any, nxt: Arrays) -> np.ndarray | None:
        """Step all rows at once; return what is done, None where nothing is."""
        observation, reward, terminated, truncated, info = self.env.step(self.to_actions(action))
        nxt[keys.REWARD][:], nxt[keys.TERMINATED][:], nxt[keys.TRUNCATED][:] = reward, terminated, truncated
        self._observations.write(observation, nxt, batched=True)
        done = self._finished = terminated | truncated
        if not np.count_nonzero(done):  # several times faster than done.any()
            return None
        if self._same_step:  # what came back is the reset observation: put the final one into its place
            self._after_reset, final = observation, info["final_obs"]
            if isinstance(final, dict):
                self._observations.write(final, nxt, done, batched=True)
            else:
                for i in done.nonzero()[0]:
                    self._observations.write(final[i], nxt, i)
        return done

    def render(self, index: int) -> Any:
        """Return a picture of one row, or None."""
        frames = self.env.render() if self.env.render_mode else None
        return None if frames is None else frames[index]

    def close(self) -> None:
        """Close the vector environment."""
        self.env.close()


def entries_of(space: Any, name: tuple[str, ...] = (), path: tuple[Any, ...] = ()) -> Iterator[tuple[Key, tuple[Any, ...], Any]]:
    """List (key of the entry, path to it in an observation, first discrete value if not 0) of an observation space."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        for key, part in space.items() if isinstance(space, spaces.Dict) else enumerate(space):
            yield from entries_of(part, (*name, str(key)), (*path, key))
    else:
        start = getattr(space, "start", 0)
        yield name if len(name) > 1 else name[0] if name else keys.OBSERVATION, path, start if np.any(start) else None


def follow(observation: Any, path: tuple[Any, ...]) -> Any:
    """Look up an entry of a nested observation; of a plain one it is the whole."""
    for name in path:
        try:
            observation = observation[name]
        except (KeyError, IndexError, TypeError) as error:
            want = f"a dictionary or tuple with the entry {name!r}"
            raise SpecError(explain("The environment's observation", want, repr(observation), FIX)) from error
    return observation


def check_value(key: Key, value: np.ndarray, array: np.ndarray) -> None:
    """Raise SpecError when a value does not fit its buffer (assignment would broadcast or cast it without a word)."""
    name = keys.pretty(key)
    if value.shape != array.shape[1:]:
        raise SpecError(explain(f"The environment's {name}", f"of shape {list(array.shape[1:])}", f"{list(value.shape)}", FIX))
    if not np.can_cast(value.dtype, array.dtype, "same_kind"):
        raise SpecError(explain(f"The environment's {name}", f"of dtype {array.dtype}", f"{value.dtype}", FIX))


def action_converter(space: Any, rows: bool) -> Callable[[Any], Any]:
    """Return a function from a batched action (array, or dictionary of arrays) to what Gymnasium takes.

    Args:
        space: the action space of one environment.
        rows: whether the result is iterated, one action per environment, or given whole to a vector environment.
    """
    if isinstance(space, spaces.Dict | spaces.Tuple):
        named = dict(space.items()) if isinstance(space, spaces.Dict) else {str(i): sub for i, sub in enumerate(space)}
        parts = {name: action_converter(sub, rows) for name, sub in named.items()}
        pack: Callable[[Any], Any] = (
            dict if isinstance(space, spaces.Dict) else (lambda pairs: tuple(value for _, value in pairs))
        )

        def convert(action: Any) -> Any:
            whole = {name: part(action[name]) for name, part in parts.items()}
            if not rows:
                return pack(whole.items())
            return [pack(zip(whole, row, strict=True)) for row in zip(*whole.values(), strict=True)]

        return convert
    dtype, start = space.dtype, getattr(space, "start", None)
    if start is None or not np.any(start):
        # what an environment keeps or changes is its own: copies, but for the numbers that iteration makes
        copy = not (rows and isinstance(space, spaces.Discrete))
        return lambda action: action.astype(dtype, copy=copy)
    return lambda action: action.astype(dtype, copy=False) + start


def _reset_cartpole(env: Any, rows: np.ndarray, root: np.ndarray) -> None:
    """Reset rows of Gymnasium's ``CartPoleVectorEnv`` now; by itself it would, one step later."""
    fresh = env.np_random.uniform(env.low, env.high, size=(4, len(rows)))
    env.state[:, rows] = fresh
    env.steps[rows] = 0
    env.prev_done.fill(False)  # whatever is done is reset before it steps again
    root[rows] = fresh.T


PARTIAL_RESETS: dict[str, Callable[[Any, np.ndarray, np.ndarray], None]] = {"CartPoleVectorEnv": _reset_cartpole}
