"""The errors rlbook raises. Each says what was wrong, what was expected, what came, and how to put it right."""

from __future__ import annotations

from typing import Any


def explain(what: str, expected: str, got: str, fix: str) -> str:
    """Compose a message in the one shape all our errors have: "*what* must be *expected*; got *got*. *fix*."."""
    return f"{what} must be {expected}; got {got}. {fix.rstrip('.')}."


class RLBookError(Exception):
    """Base of every error that rlbook raises on purpose."""

    def __str__(self) -> str:  # KeyError would print its repr, with quotes and escaped newlines
        return self.args[0] if self.args else ""


class SpecError(RLBookError, ValueError):
    """A value leaves its spec: wrong shape, dtype, device or range, or a wrong description of one."""


class MissingKeyError(RLBookError, KeyError):
    """An entry that a component reads is not in the TensorDict it was given."""


class EnvError(RLBookError, RuntimeError):
    """An environment was used wrongly (closed, not reset) or broke its contract."""


class UnknownEnvError(EnvError, ValueError):
    """No environment is registered under the given id."""


class PolicyError(RLBookError, ValueError):
    """A policy did not return an action that the environment takes."""


class NonFiniteError(RLBookError, ValueError):
    """A number that training depends on (a reward, a loss, a gradient) is NaN or infinite."""


class ConfigError(RLBookError, ValueError):
    """An argument is out of range or contradicts another one."""


class MissingExtraError(RLBookError, ImportError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(f'{purpose} needs the package {package!r}. Install it with: pip install "rlbook[{extra}]"')


def check_count(name: str, value: Any, least: int = 1, *, example: int) -> int:
    """Return ``value``, an integer of at least ``least``.

    Raises:
        ConfigError: it is anything else; a bool too.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        expected = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise ConfigError(explain(name, expected, repr(value), f"Pass for example {name}={example}"))
    return value
