"""Transforms change what passes between environment and agent: observations, rewards and flags outwards, actions inwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.envs.base import Env
from rlbook.errors import ConfigError, EnvError, MissingKeyError, explain
from rlbook.specs import Composite, Spec
from rlbook.typing import Key, Leaves, Shape


class Transform:
    """The identity; a subclass overrides the hooks it needs.

    Hooks receive plain dictionaries and return new ones: they never write into the tensors they are given. What a transform
    remembers per environment it allocates once, in ``bind`` (:meth:`remember`), and updates in place, without a Python branch on
    values: so transformed native environments still compile to one graph.
    """

    batch_size: torch.Size
    device: torch.device

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}
        self._bound = False

    # ---- for authors -------------------------------------------------------------------------------------------------------
    def bind(self, env: Env) -> None:
        """Take over the environment's batch size and device; called once, before the spec hooks. Allocate memory here.

        Raises:
            ConfigError: this transform already belongs to an environment.
        """
        if self._bound:
            fix = "Make a new one for each environment"
            raise ConfigError(explain(f"This {type(self).__name__}", "new", "one that another environment uses", fix))
        self._bound, self.batch_size, self.device = True, env.batch_size, env.device

    def remember(self, name: str, shape: Shape = (), dtype: torch.dtype = torch.float32) -> Tensor:
        """Allocate zeros ``[*batch, *shape]`` that are part of the environment's state."""
        self._memory[name] = torch.zeros((*self.batch_size, *shape), dtype=dtype, device=self.device)
        return self._memory[name]

    def transform_observation_spec(self, spec: Composite) -> Composite:
        """Return the observation spec that the agent sees; ``spec`` is what comes from the environment."""
        return spec

    def transform_action_spec(self, spec: Spec) -> Spec:
        """Return the spec of the actions that the agent gives; ``spec`` is what the environment takes."""
        return spec

    def transform_reward_spec(self, spec: Spec) -> Spec:
        """Return the reward spec that the agent sees."""
        return spec

    def on_reset(self, leaves: Leaves, mask: Tensor) -> Leaves:
        """Return the observation entries after a reset of the environments in ``mask``, bool ``[*batch]``.

        The other rows may hold anything: they must not change what the transform remembers; what it returns there is not read.
        """
        return leaves

    def on_step(self, leaves: Leaves) -> Leaves:
        """Return the next observation entries, ``reward``, ``terminated`` and ``truncated`` after a step."""
        return leaves

    def on_action(self, action: Any) -> Any:
        """Return the environment's action for the agent's."""
        return action

    # ---- what it remembers ---------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Tensor]:
        """Return what the transform has learnt (running statistics), to save it or to give it to another one; empty for most."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state_dict` returned."""

    def parts(self) -> list[Transform]:
        """Return the transforms this one consists of: itself."""
        return [self]


class Compose(Transform):
    """Several transforms, one after another: the first is next to the environment, the last next to the agent.

    Args:
        *transforms: in the order in which an observation passes them; an action passes them in the reverse order.

    Example:
        >>> from rlbook import Compose, GymEnv, RewardSum, StepCounter, TransformedEnv
        >>> env = TransformedEnv(GymEnv("Pendulum-v1"), Compose(StepCounter(), RewardSum()))
        >>> sorted(env.observation_spec.keys())
        ['episode_reward', 'observation', 'step_count']
    """

    def __init__(self, *transforms: Transform):
        super().__init__()
        for transform in transforms:
            if not isinstance(transform, Transform):
                got, fix = repr(transform), "Pass instances: Compose(StepCounter(), RewardSum())"
                raise ConfigError(explain("What Compose takes", "transforms", got, fix))
        self.transforms = transforms

    def bind(self, env: Env) -> None:
        """Bind every part."""
        super().bind(env)
        for transform in self.transforms:
            transform.bind(env)

    def transform_observation_spec(self, spec: Composite) -> Composite:
        """Pass the spec through all parts."""
        for transform in self.transforms:
            spec = transform.transform_observation_spec(spec)
        return spec

    def transform_action_spec(self, spec: Spec) -> Spec:
        """Pass the spec through all parts."""
        for transform in self.transforms:
            spec = transform.transform_action_spec(spec)
        return spec

    def transform_reward_spec(self, spec: Spec) -> Spec:
        """Pass the spec through all parts."""
        for transform in self.transforms:
            spec = transform.transform_reward_spec(spec)
        return spec

    def on_reset(self, leaves: Leaves, mask: Tensor) -> Leaves:
        """Pass the entries through all parts."""
        for transform in self.transforms:
            leaves = transform.on_reset(leaves, mask)
        return leaves

    def on_step(self, leaves: Leaves) -> Leaves:
        """Pass the entries through all parts."""
        for transform in self.transforms:
            leaves = transform.on_step(leaves)
        return leaves

    def on_action(self, action: Any) -> Any:
        """Pass the action through all parts, from the agent to the environment."""
        for transform in reversed(self.transforms):
            action = transform.on_action(action)
        return action

    def state_dict(self) -> dict[str, Tensor]:
        """Return the parts' statistics under ``"0.mean"`` and the like."""
        return {f"{i}.{name}": value for i, part in enumerate(self.transforms) for name, value in part.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Give every part its statistics."""
        for i, part in enumerate(self.transforms):
            part.load_state_dict({name.removeprefix(f"{i}."): value for name, value in state.items() if name.startswith(f"{i}.")})

    def parts(self) -> list[Transform]:
        """Return the innermost transforms, in order."""
        return [inner for part in self.transforms for inner in part.parts()]


class TransformedEnv(Env):
    """An environment seen through a transform.

    Args:
        env: the environment; it is reseeded, and from now on driven by this one only.
        transform: one transform, or several in a :class:`Compose`.

    Example:
        >>> from rlbook import CartPole, StepCounter, TransformedEnv
        >>> env = TransformedEnv(CartPole(num_envs=2), StepCounter())
        >>> env.rollout(3)["step_count"].tolist()
        [[0, 1, 2], [0, 1, 2]]
    """

    def __init__(self, env: Env, transform: Transform):
        if not isinstance(env, Env):
            fix = "Wrap a Gymnasium environment in GymEnv(env) first"
            raise EnvError(explain("What TransformedEnv takes", "an rlbook Env", type(env).__name__, fix))
        if not isinstance(transform, Transform):
            fix = "Pass an instance such as StepCounter(), several as Compose(StepCounter(), RewardSum())"
            raise ConfigError(explain("transform", "a Transform", repr(transform), fix))
        self.env, self.transform = env, transform
        transform.bind(env)
        try:
            specs = (
                transform.transform_observation_spec(env.observation_spec),
                transform.transform_action_spec(env.action_spec),
                transform.transform_reward_spec(env.reward_spec),
            )
        except Exception:
            for part in (transform, *transform.parts()):  # they may be mended, and tried again
                part._bound = False
            raise
        super().__init__(
            *specs,
            num_envs=env.num_envs if env.batch_size else None,
            device=env.device,
            seed=env._seed_value,
        )
        self._all = torch.ones(self.batch_size, dtype=torch.bool, device=self.device)

    @property
    def base_env(self) -> Env:
        """The environment inside all transforms."""
        return self.env.base_env if isinstance(self.env, TransformedEnv) else self.env

    @property
    def state(self) -> TensorDict:
        """A copy of the native environment's state and of what the transforms remember of the episodes, for :meth:`set_state`."""
        memory = {str(i): part._memory for i, part in enumerate(self.transform.parts())}
        return TensorDict({"env": _native(self.env).state, "transform": memory}, self.batch_size, self.device).clone()

    @torch.no_grad()
    def set_state(self, state: TensorDictBase) -> None:
        """Put the environment and its transforms into ``state``, a (changed) copy of :attr:`state`."""
        _native(self.env).set_state(state["env"])
        for i, part in enumerate(self.transform.parts()):
            for name, value in part._memory.items():
                value.copy_(state["transform", str(i), name])
        self._done, self._driver = torch.zeros_like(self._all), None

    def _reset(self, mask: Tensor | None) -> Leaves:
        return self.transform.on_reset(dict(self.env._reset(mask)), self._all if mask is None else mask)

    def _step(self, action: Any) -> Leaves:
        leaves = dict(self.env._step(self.transform.on_action(action)))
        leaves.setdefault(keys.TRUNCATED, torch.zeros_like(leaves[keys.TERMINATED]))
        return self.transform.on_step(leaves)

    def _seed(self, seed: int) -> None:
        self.env.seed(seed)

    def _render(self, index: int) -> np.ndarray:
        return self.env.render(index)

    def _close(self) -> None:
        self.env.close()


def _native(env: Env) -> Any:
    if not hasattr(env, "set_state"):
        name = type(env).__name__
        fix = "Use a native environment such as CartPole(), or save the actions and replay them"
        raise EnvError(explain("The environment whose state is read or set", "a native one", name, fix))
    return env


def find(spec: Composite, key: Key, reader: Transform) -> Spec:
    """Return the spec of an observation entry, or raise MissingKeyError naming those there are."""
    leaves = spec.leaves()
    if key not in leaves:
        what, got = (
            f"The entry {keys.pretty(key)!r} that {type(reader).__name__} reads",
            f"only {sorted(map(keys.pretty, leaves))}",
        )
        raise MissingKeyError(explain(what, "in the observation spec", got, "Name one of these"))
    return leaves[key]


def as_keys(given: str | Sequence[Key]) -> tuple[Key, ...]:
    """Return one name, or a sequence of keys, as a tuple of keys: ``"a"`` becomes ``("a",)``, ``[("a", "b")]`` one nested key."""
    return (given,) if isinstance(given, str) else tuple(given)
