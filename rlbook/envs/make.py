"""One function from a name to an environment."""

from __future__ import annotations

from typing import Any

from rlbook.envs.base import Env


def make_env(name: str, num_envs: int | None = None, **kwargs: Any) -> Env:
    """Make a native environment (``"CartPole"``) or a Gymnasium one (``"CartPole-v1"``).

    Args:
        name: the class of a native environment, or a Gymnasium id.
        num_envs: None for one environment without batch dimension.
        **kwargs: passed on, for example ``seed`` and ``device``.

    Raises:
        UnknownEnvError: there is no such environment; the message names the nearest ones.
    """
    from rlbook.envs import native

    found = getattr(native, name, None)
    if isinstance(found, type) and issubclass(found, native.NativeEnv) and found is not native.NativeEnv:
        return found(num_envs=num_envs, **kwargs)
    from rlbook.envs.libs.gym import GymEnv

    return GymEnv(name, num_envs, **kwargs)
