"""How Gymnasium environments are driven: one after another, or through a vector environment. Both write into fixed buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from rlbook import keys
from rlbook.errors import ConfigError, EnvError, SpecError, explain
from rlbook.specs import Spec, Unbounded
from rlbook.typing import Key

OUTCOME = frozenset({keys.REWARD, keys.TERMINATED, keys.TRUNCATED})
Arrays = dict[Key, np.ndarray]
"""One row per environment: observation entries, and after a step ``reward``, ``terminated`` and ``truncated``."""


class PerEnv:
    """Environments that step one after another in this process."""

    def __init__(self, envs: list[Any], info: tuple[str, ...]):
        self.envs, self.info, self.num_envs = envs, info, len(envs)
        self.observation_space, self.action_space = envs[0].observation_space, envs[0].action_space
        self.to_actions = action_converter(self.action_space, rows=True)
        self._steps = [env.step for env in envs]
        self._starts = starts_of(self.observation_space)
        self._plain = not info and not isinstance(self.observation_space, spaces.Dict | spaces.Tuple)

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
        rows = range(self.num_envs) if mask is None else np.flatnonzero(mask).tolist()
        for i in rows:
            observation, info = self.envs[i].reset(seed=None if seed is None else seed + i)
            self._write(i, observation, info, root, careful=True)
        for key, start in self._starts.items():
            root[key][rows] -= start

    def step(self, action: Any, nxt: Arrays) -> np.ndarray | None:
        """Step every environment into its row of ``nxt``; return what is done, None where nothing is."""
        reward, terminated, truncated = nxt[keys.REWARD], nxt[keys.TERMINATED], nxt[keys.TRUNCATED]
        plain, any_done = nxt[keys.OBSERVATION] if self._plain else None, False
        for i, act in enumerate(self.to_actions(action)):
            observation, reward[i], over, cut, info = self._steps[i](act)
            terminated[i], truncated[i] = over, cut
            any_done = any_done or over or cut
            if plain is None:
                self._write(i, observation, info, nxt)
            else:
                plain[i] = observation
        for key, start in self._starts.items():
            nxt[key] -= start
        return terminated | truncated if any_done else None

    def _write(self, i: int, observation: Any, info: dict[str, Any], arrays: Arrays, careful: bool = False) -> None:
        for key, array in arrays.items():
            if key in OUTCOME:
                continue
            value = info.get(key, 0) if key in self.info else follow(observation, keys.as_tuple(key))
            if careful and key not in self.info:
                check_value(key, np.asarray(value), array)
            array[i] = value

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
        self.partial_reset = PARTIAL_RESETS.get(type(self._bare).__name__)
        if self.partial_reset is None and mode not in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
            fix = "Make it with autoreset_mode=AutoresetMode.SAME_STEP (next-step resets waste a step that teaches nothing)"
            raise EnvError(explain("The autoreset mode of a VectorEnv", "SAME_STEP or DISABLED", str(mode), fix))
        self._same_step = self.partial_reset is None and mode == AutoresetMode.SAME_STEP
        self._finished = np.zeros(self.num_envs, bool)
        self._starts = starts_of(self.observation_space)

    def info_specs(self) -> dict[str, Spec]:
        """A vector environment's ``info`` is not kept."""
        return {}

    def reset(self, mask: np.ndarray | None, seed: int | None, root: Arrays) -> None:
        """Reset the masked rows of ``root``."""
        if mask is None:
            observation, _ = self.env.reset(seed=seed)
        elif self.partial_reset is not None:
            return self.partial_reset(self._bare, np.flatnonzero(mask), root[keys.OBSERVATION])
        elif self._same_step:
            if (mask & ~self._finished).any():
                raise EnvError("This vector environment resets by itself, when an episode ends: reset all of it, or none.")
            observation = self._after_reset
        else:
            observation, _ = self.env.reset(options={"reset_mask": mask})
        rows = slice(None) if mask is None else mask
        for key, array in root.items():
            array[rows] = follow(observation, keys.as_tuple(key))[rows]
        for key, start in self._starts.items():
            root[key][rows] -= start

    def step(self, action: Any, nxt: Arrays) -> np.ndarray | None:
        """Step all rows at once; return what is done, None where nothing is."""
        observation, reward, terminated, truncated, info = self.env.step(self.to_actions(action))
        nxt[keys.REWARD][:], nxt[keys.TERMINATED][:], nxt[keys.TRUNCATED][:] = reward, terminated, truncated
        for key, array in nxt.items():
            if key not in OUTCOME:
                array[:] = follow(observation, keys.as_tuple(key))
        done = self._finished = terminated | truncated
        any_done = np.count_nonzero(done)  # several times faster than done.any()
        if any_done and self._same_step:  # what came back is the reset observation: put the final one into its place
            self._after_reset, final = observation, info["final_obs"]
            for key, array in nxt.items():
                for i in np.flatnonzero(done) if key not in OUTCOME else ():
                    path = keys.as_tuple(key)
                    array[i] = follow(final, path)[i] if isinstance(final, dict) else follow(final[i], path)
        for key, start in self._starts.items():
            nxt[key] -= start
        return done if any_done else None

    def render(self, index: int) -> Any:
        """Return a picture of one row, or None."""
        frames = self.env.render() if self.env.render_mode else None
        return None if frames is None else frames[index]

    def close(self) -> None:
        """Close the vector environment."""
        self.env.close()


def follow(value: Any, path: tuple[str, ...]) -> Any:
    """Look up an entry of a nested observation; a plain array is itself."""
    for name in path:
        if isinstance(value, dict):
            value = value[name]
        elif isinstance(value, tuple):
            value = value[int(name)]
    return value


def starts_of(space: Any, path: tuple[str, ...] = ()) -> dict[Key, Any]:
    """Return where the discrete entries of an observation space start, if not at 0: specs count from 0."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.items() if isinstance(space, spaces.Dict) else enumerate(space)
        return {key: start for name, part in parts for key, start in starts_of(part, (*path, str(name))).items()}
    start = getattr(space, "start", 0)
    key: Key = path if len(path) > 1 else path[0] if path else keys.OBSERVATION
    return {key: start} if np.any(start) else {}


def check_value(key: Key, value: np.ndarray, array: np.ndarray) -> None:
    """Raise SpecError when a value does not fit its buffer (assignment would broadcast or cast it without a word)."""
    name = keys.pretty(key)
    fix = "Make the environment return what its observation_space declares"
    if value.shape != array.shape[1:]:
        raise SpecError(explain(f"The environment's {name}", f"of shape {list(array.shape[1:])}", f"{list(value.shape)}", fix))
    if not np.can_cast(value.dtype, array.dtype, "same_kind"):
        raise SpecError(explain(f"The environment's {name}", f"of dtype {array.dtype}", f"{value.dtype}", fix))


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
        return lambda action: action.astype(dtype, copy=False)
    return lambda action: action.astype(dtype, copy=False) + start


def _reset_cartpole(env: Any, rows: np.ndarray, root: np.ndarray) -> None:
    """Reset rows of Gymnasium's ``CartPoleVectorEnv`` now; by itself it would, one step later."""
    fresh = env.np_random.uniform(env.low, env.high, size=(4, len(rows)))
    env.state[:, rows] = fresh
    env.steps[rows] = 0
    env.prev_done[rows] = False
    root[rows] = fresh.T


PARTIAL_RESETS: dict[str, Callable[[Any, np.ndarray, np.ndarray], None]] = {"CartPoleVectorEnv": _reset_cartpole}
