"""Any Gymnasium environment, alone or many together."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.envs.base import Env
from rlbook.envs.check import RESERVED
from rlbook.errors import ConfigError, EnvError, UnknownEnvError, check_count, explain
from rlbook.specs import Binary, Composite
from rlbook.specs.gym import from_gym
from rlbook.typing import DeviceLike, Leaves

if TYPE_CHECKING:
    from rlbook.envs.libs._gym_backends import Arrays, PerEnv, Vector

VECTORIZATION = ("auto", "entry_point", "per_env")
VECTOR_FROM = 6
"""From how many on ``"auto"`` takes CartPole's vector environment: with 2, 4, 6, 8 and 64 it took 2.4, 1.3, 1, 0.8 and 0.2 times
what single ones took."""


class GymEnv(Env):
    """A Gymnasium environment (id, instance, or function that makes one), with Gymnasium's own rules for rewards and endings.

    With ``num_envs`` the library's own vector implementation is used where it has one whose rows can be reset one by one;
    otherwise the environments run one after another in this process. So do fewer than six CartPoles, which are faster so: a NumPy
    call takes as long for one row as for fifty. Box observations of float64 become float32.

    Args:
        env: an id such as ``"CartPole-v1"``, a ``gymnasium.Env`` or ``VectorEnv``, or a function that returns an environment.
        num_envs: None for one environment without batch dimension.
        info: names of ``info`` entries to keep beside the observations (zero where a step does not report them).
        vectorization: ``"auto"``, ``"entry_point"`` (the library's vector environment, or an error) or ``"per_env"``.
        device: where the tensors go; the environment itself runs on the CPU.
        seed: seed of environment 0; environment ``i`` has ``seed + i`` (a vector implementation takes one seed for all).
        **kwargs: passed to ``gymnasium.make``, for example ``render_mode="rgb_array"``.

    Raises:
        UnknownEnvError: no such id; the message names the nearest ones.
        SpecError: an observation or action space that tensors cannot hold.
        EnvError: a missing package, or one instance for several environments.
        ConfigError: options that do not go together, or a name in ``info`` that rollouts have already.

    Example:
        >>> from rlbook import GymEnv
        >>> GymEnv("CartPole-v1", num_envs=8).rollout(100).shape
        torch.Size([8, 100])
    """

    def __init__(
        self,
        env: Any,
        num_envs: int | None = None,
        *,
        info: Sequence[str] = (),
        vectorization: str = "auto",
        device: DeviceLike = None,
        seed: int | None = None,
        **kwargs: Any,
    ):
        import gymnasium

        from rlbook.envs.libs._gym_backends import PerEnv, Vector

        if vectorization not in VECTORIZATION:
            raise ConfigError(explain("vectorization", f"one of {VECTORIZATION}", repr(vectorization), 'Leave it out for "auto"'))
        if num_envs is not None:
            check_count("num_envs", num_envs, example=8)
        info = (info,) if isinstance(info, str) else tuple(info)
        vector = env if isinstance(env, gymnasium.vector.VectorEnv) else None
        made = vector is not None or isinstance(env, gymnasium.Env)
        if vector is not None and (info or num_envs not in (None, vector.num_envs)):
            want, got = "as they are, without info", f"info={info}, num_envs={num_envs} for {vector.num_envs}"
            raise ConfigError(explain("The environments of a VectorEnv", want, got, "Pass an id or a function instead"))
        if made and kwargs:
            fix = "Give them to what makes it"
            raise ConfigError(explain("Arguments of an environment that is made", "none", f"{sorted(kwargs)}", fix))
        if vectorization == "entry_point" and (info or not num_envs or not isinstance(env, str)):
            want, got = "an id and num_envs, without info", f"{env!r}, num_envs={num_envs}, info={info}"
            raise ConfigError(explain('GymEnv with vectorization="entry_point"', want, got, "Leave vectorization out"))
        if vector is not None:
            num_envs = vector.num_envs
        elif isinstance(env, str) and num_envs and vectorization != "per_env" and not info:
            vector = _make_vector(env, num_envs, vectorization == "entry_point", kwargs)
        self.backend: PerEnv | Vector = (
            Vector(vector) if vector is not None else PerEnv(_make_envs(env, num_envs or 1, kwargs), info)
        )
        spec = from_gym(self.backend.observation_space)
        entries = dict(spec.items()) if isinstance(spec, Composite) else {keys.OBSERVATION: spec}
        if clash := [name for name in info if name in (*RESERVED, *entries)]:
            fix = "Rename them in a wrapper of the environment"
            raise ConfigError(explain("The info entries to keep", "none that rollouts have already", f"{clash}", fix))
        entries.update(self.backend.info_specs())
        super().__init__(Composite(entries), from_gym(self.backend.action_space), num_envs=num_envs, device=device, seed=seed)
        outcome = {keys.REWARD: self.reward_spec, keys.TERMINATED: Binary((), torch.bool), keys.TRUNCATED: Binary((), torch.bool)}
        leaves = {**Composite(entries).leaves(), **outcome}
        self._arrays = {key: spec.to("cpu").zero((self.num_envs,)).numpy() for key, spec in leaves.items()}
        self._root = {key: array for key, array in self._arrays.items() if key not in outcome}

    def _seed(self, seed: int) -> None:
        self._pending_seed: int | None = seed

    @property
    def steps_in_numpy(self) -> bool:
        """On the CPU the loop's memory is written by the environments themselves."""
        return self.device.type == "cpu"

    def _reset(self, mask: Tensor | None) -> Leaves:
        self._reset_arrays(None if mask is None else mask.reshape(-1).cpu().numpy(), self._root)
        return self._tensors(self._root)

    def _step(self, action: Any) -> Leaves:
        self._step_arrays(_arrays(action, self.num_envs, len(self.batch_size)), self._arrays)
        return self._tensors(self._arrays)

    def _reset_arrays(self, mask: np.ndarray | None, root: Arrays) -> None:
        seed = None
        if mask is None:  # a seed waits for a full reset
            seed, self._pending_seed = self._pending_seed, None
        self.backend.reset(mask, seed, root)

    def _step_arrays(self, action: Any, nxt: Arrays) -> np.ndarray | None:
        return self.backend.step(action, nxt)

    def _tensors(self, arrays: Arrays) -> Leaves:
        tensors = {key: torch.from_numpy(array.copy()) for key, array in arrays.items()}
        return {key: value.reshape((*self.batch_size, *value.shape[1:])).to(self.device) for key, value in tensors.items()}

    def _render(self, index: int) -> np.ndarray:
        frame = self.backend.render(index)
        if frame is None:
            raise EnvError('This environment was made without pictures. Make it with GymEnv(..., render_mode="rgb_array").')
        return np.asarray(frame)

    def _close(self) -> None:
        self.backend.close()


def _arrays(action: Any, num_envs: int, batch_dims: int) -> Any:
    """View an action ``[*batch, ...]`` as an array ``[num_envs, ...]``, a TensorDict as a dictionary of them."""
    if isinstance(action, TensorDictBase):
        return {name: _arrays(part, num_envs, batch_dims) for name, part in action.items()}
    return action.cpu().numpy().reshape(num_envs, *action.shape[batch_dims:])


def _make_envs(env: Any, count: int, kwargs: dict[str, Any]) -> list[Any]:
    """Make ``count`` Gymnasium environments."""
    import gymnasium

    if isinstance(env, gymnasium.Env):
        if count > 1:
            raise EnvError(
                explain("env", "an id or a function when num_envs > 1", "one instance", "Pass for example lambda: MyEnv()")
            )
        return [env]
    make: Callable[[], Any] = (lambda: gymnasium.make(env, disable_env_checker=True, **kwargs)) if isinstance(env, str) else env
    if not callable(make):
        raise EnvError(
            explain("env", "an id, a gymnasium.Env or a function that makes one", repr(env), 'Pass for example "CartPole-v1"')
        )
    try:
        return [make() for _ in range(count)]
    except gymnasium.error.DependencyNotInstalled as error:
        raise EnvError(f"{env!r} needs a package that is not installed. {error}") from error
    except gymnasium.error.Error as error:
        if not isinstance(env, str):
            raise
        raise _unknown(env) from error
    except ModuleNotFoundError as error:
        if not isinstance(env, str):
            raise
        raise EnvError(f"{env!r} needs a module that is not there. {error}. Install the package that has it.") from error


def _unknown(name: str) -> UnknownEnvError:
    import gymnasium

    near = difflib.get_close_matches(name, gymnasium.registry, n=3, cutoff=0.5)
    fix = f"Did you mean {' or '.join(near)}?" if near else "List the ids with gymnasium.pprint_registry()."
    hint = "An id of another package needs its package imported first (import ale_py; gymnasium.register_envs(ale_py))"
    return UnknownEnvError(explain("env", "a registered Gymnasium id", repr(name), f"{fix} {hint}"))


def _trust(action: Any) -> bool:
    return True


def _make_vector(name: str, num_envs: int, required: bool, kwargs: dict[str, Any]) -> Any | None:
    """Make the library's own vector environment, or return None where none resets row by row or is worth it."""
    import gymnasium
    from gymnasium.envs.registration import load_env_creator

    from rlbook.envs.libs._gym_backends import PARTIAL_RESETS

    try:
        spec = gymnasium.spec(name)
    except gymnasium.error.Error as error:
        raise _unknown(name) from error
    entry, reason = spec.vector_entry_point, "has no vector entry point"
    if entry is not None and not spec.additional_wrappers:
        try:
            creator = load_env_creator(entry) if isinstance(entry, str) else entry
        except ImportError as error:
            creator, reason = None, f"has a vector entry point that cannot be imported ({error})"
        if creator is not None:
            reason = "has a vector entry point whose rows cannot be reset one by one"
            if "autoreset_mode" in inspect.signature(creator).parameters:
                kwargs = {**kwargs, "autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
            known = getattr(creator, "__name__", "") in PARTIAL_RESETS
            if known and num_envs < VECTOR_FROM and not required:
                return None
            if "autoreset_mode" in kwargs or known:
                vector: Any = gymnasium.make_vec(name, num_envs, vectorization_mode="vector_entry_point", **kwargs)
                if known:  # its assertion is a tenth of its step; the loop checks the actions of a whole rollout at once
                    vector.unwrapped.action_space.contains = _trust
                return vector
    if required:
        raise EnvError(
            f'{name!r} {reason}. Leave vectorization="auto", which then runs {num_envs} environments one after another.'
        )
    return None
