"""One function from a name to an environment."""

from __future__ import annotations

import ast
from typing import Any

from rlbook.envs.base import Env
from rlbook.errors import ConfigError, explain


def make_env(name: str, num_envs: int | None = None, **kwargs: Any) -> Env:
    """Make a native environment (``"CartPole"``) or a Gymnasium one (``"CartPole-v1"``).

    Args:
        name: the class of a native environment, or a Gymnasium id. Arguments may follow in brackets, so that a recipe or a
            command line can name a variant: ``"TMaze(length=5)"``.
        num_envs: None for one environment without batch dimension.
        **kwargs: passed on, for example ``seed`` and ``device``.

    Raises:
        UnknownEnvError: there is no such environment; the message names the nearest ones.
        ConfigError: what is in the brackets are no keyword arguments with literal values.

    Example:
        >>> make_env("TMaze(length=5)", num_envs=4).length
        5
    """
    from rlbook.envs import native

    name, arguments = _split(name)
    kwargs = arguments | kwargs
    found = getattr(native, name, None)
    if isinstance(found, type) and issubclass(found, native.NativeEnv) and found is not native.NativeEnv:
        return found(num_envs=num_envs, **kwargs)
    from rlbook.envs.libs.gym import GymEnv

    return GymEnv(name, num_envs, **kwargs)


def _split(name: str) -> tuple[str, dict[str, Any]]:
    """Split ``"TMaze(length=5)"`` into the name and its arguments."""
    short, bracket, rest = name.partition("(")
    if not bracket:
        return name, {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError
        return short, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as error:
        fix = 'Write them like "TMaze(length=5)"'
        raise ConfigError(explain("The arguments in an environment's name", "keywords with literals", repr(name), fix)) from error
