"""Checks of what the pure functions are given. They read shapes and dtypes only: a microsecond, and no wait for a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from rlbook.errors import ConfigError, SpecError, explain

FLAGS = ("terminated", "done", "greedy")


def check_aligned(**tensors: Tensor) -> None:
    """Raise SpecError unless all tensors have the shape of the first, which is floating, and the flags among them are bool."""
    shape = None
    for name, x in tensors.items():
        if shape is None:
            shape = x.shape
            if not x.is_floating_point():
                raise SpecError(explain(name, "floating", describe(x), f"Convert it: {name}.float()"))
        elif x.shape != shape:
            raise SpecError(_explain_shape(name, x, *next(iter(tensors.items()))))
        elif name in FLAGS and x.dtype is not torch.bool:
            raise SpecError(explain(name, "bool", describe(x), f"Convert it: {name}.bool()"))


def check_time(reward: Tensor) -> None:
    """Raise SpecError unless the reward has a time dimension."""
    if reward.ndim == 0:
        fix = "Stack the steps of a rollout first: torch.stack(rewards, -1)"
        raise SpecError(explain("reward", "[*, T], with time last", describe(reward), fix))


def check_fraction(**fractions: float | Tensor) -> None:
    """Raise ConfigError unless every number is in [0, 1]; a tensor is not looked at, as compiled code cannot branch on it."""
    for name, x in fractions.items():
        if not isinstance(x, Tensor) and not 0.0 <= x <= 1.0:
            raise ConfigError(explain(name, "in [0, 1]", repr(x), f"Pass for example {name}=0.95"))


def check_factor(reward: Tensor, **factors: float | Tensor) -> None:
    """Raise unless every factor is a number in [0, 1] or a tensor, one for all or one per step, that broadcasts to the reward."""
    for name, x in factors.items():
        if isinstance(x, Tensor):
            if x.ndim and not broadcasts(x, reward):
                raise SpecError(_explain_shape(name, x, "reward", reward))
        elif not 0.0 <= x <= 1.0:
            check_fraction(**{name: x})


def broadcasts(x: Tensor, like: Tensor) -> bool:
    """Return whether ``x`` broadcasts to the shape of ``like`` without enlarging it."""
    return x.ndim <= like.ndim and all(m in (1, n) for m, n in zip(reversed(x.shape), reversed(like.shape), strict=False))


def check_positive(**numbers: float | Tensor) -> None:
    """Raise ConfigError unless every number is positive; a tensor is not looked at, as compiled code cannot branch on it."""
    for name, x in numbers.items():
        if not isinstance(x, Tensor) and not x > 0:
            raise ConfigError(explain(name, "positive", repr(x), f"Pass for example {name}=1"))


def check_interval(x: Tensor, level: float, rows: str = "Episodes") -> int:
    """Return how many rows there are; raise ConfigError unless they and the level make an interval."""
    if len(x) < 2:
        raise ConfigError(explain(f"{rows} for an interval", "at least 2", str(len(x)), f"Collect more {rows.lower()}"))
    if not 0 < level < 1:
        raise ConfigError(explain("level", "in (0, 1)", repr(level), "Pass for example level=0.95"))
    return len(x)


def describe(x: Tensor) -> str:
    return f"{x.dtype} {list(x.shape)}"


def _explain_shape(name: str, x: Tensor, reference: str, like: Tensor) -> str:
    if x.shape == (*like.shape, 1):
        fix = f"Drop the trailing 1: {name}.squeeze(-1)"
    elif like.shape == (*x.shape, 1):
        fix = f"Drop the trailing 1: {reference}.squeeze(-1)"
    elif x.ndim > 1 and x.mT.shape == like.shape:
        fix = f"Put time last: {name}.mT"
    else:
        fix = f"Give one number for each of {reference}, with no further dimension"
    return explain(name, f"of the shape of {reference}, {list(like.shape)}", str(list(x.shape)), fix)
