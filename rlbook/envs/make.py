"""One function from a name to an environment."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from rlbook.envs.base import Env
from rlbook.errors import ConfigError, UnknownEnvError, explain

OUTSIDE = ("num_envs", "device", "seed")
"""What is said beside a name, not in its brackets."""


def make_env(name: str, num_envs: int | None = None, **kwargs: Any) -> Env:
    """Make a native environment (``"CartPole"``) or a Gymnasium one (``"CartPole-v1"``).

    Args:
        name: the class of a native environment, or a Gymnasium id. Arguments may follow in brackets, so that a recipe or a
            command line can name a variant: ``"TMaze(length=5)"``.
        num_envs: None for one environment without batch dimension.
        **kwargs: passed on, for example ``seed`` and ``device``.

    Raises:
        UnknownEnvError: there is no such environment; the message names the nearest ones.
        ConfigError: ``name`` is no text, or what is in its brackets are no keyword arguments with literal values, or none that
            the environment takes.

    Example:
        >>> make_env("TMaze(length=5)", num_envs=4).length
        5
    """
    from rlbook.envs import native

    if not isinstance(name, str):
        fix = 'Pass for example "CartPole"'
        raise ConfigError(explain("The name of an environment", "a text", repr(name), fix))
    name, arguments = _split(name)
    classes = {each: getattr(native, each) for each in native.__all__ if each != "NativeEnv"}
    natives = {each: found for each, found in classes.items() if issubclass(found, native.NativeEnv)}
    if found := natives.get(name):
        _check(arguments, name, set(inspect.signature(found).parameters))
        return found(num_envs=num_envs, **arguments | kwargs)
    from rlbook.envs.libs.gym import GymEnv

    _check(arguments, name, None)
    try:
        return GymEnv(name, num_envs, **arguments | kwargs)
    except UnknownEnvError as error:
        known = {each.lower(): each for each in natives}
        near = [known[each] for each in difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.75)]
        hint = f"Or did you mean the native {near[0]}?" if near else f"Native ones are {', '.join(sorted(natives))}."
        raise UnknownEnvError(f"{error} {hint}") from None
    except TypeError as error:  # how Gymnasium says that the environment does not know an argument
        if not arguments:
            raise
        fix = "Look up what its id takes in the documentation of the environment"
        raise ConfigError(explain(f"The arguments of {name!r}", "some that it takes", str(error), fix)) from error


def _check(arguments: Mapping[str, Any], name: str, known: set[str] | None) -> None:
    """Raise ConfigError where a name's brackets hold what they cannot: ``known`` are the arguments of the environment."""
    for argument in arguments:
        if argument in OUTSIDE:
            fix = "Set it outside: it is an argument of make_env, and a setting of every recipe"
            raise ConfigError(explain(f"{name}(...)", f"arguments other than {', '.join(OUTSIDE)}", argument, fix))
        if known is not None and argument not in known:
            able = ", ".join(sorted(known - set(OUTSIDE))) or "none"
            raise ConfigError(explain(f"An argument of {name}", f"one of: {able}", repr(argument), "Correct its name"))


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
