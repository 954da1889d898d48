"""The canonical names of every entry in a rollout or a batch.

Components never rename keys: an entry has one name everywhere, so that code, lessons and errors agree.
The layout is TorchRL's (TED): what the agent saw stands at the root, what came of it under ``next``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OBSERVATION = "observation"
ACTION = "action"
LOG_PROB = "action_log_prob"
ACTION_PARAMS = "action_params"
REWARD = "reward"
TERMINATED = "terminated"
TRUNCATED = "truncated"
DONE = "done"
NEXT = "next"

VALUE = "state_value"
ADVANTAGE = "advantage"
VALUE_TARGET = "value_target"
ACTION_VALUE = "action_value"
RECURRENT = "recurrent"
STATE_ACTION_VALUE = "state_action_value"
TD_ERROR = "td_error"

INDEX = "index"
WEIGHT = "weight"
MASK = "mask"
DISCOUNT = "discount"

STEP_COUNT = "step_count"
EPISODE_RETURN = "episode_reward"
ACTION_MASK = "action_mask"
PIXELS = "pixels"

LOSS = "loss"
LOSS_PREFIX = "loss_"

FLAGS = (DONE, TERMINATED, TRUNCATED)

AGENTS = "agents"
"""The name of a TensorDict's dimension that counts the agents of a group."""


def as_tuple(key: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return a key as a tuple: ``"a"`` becomes ``("a",)``, ``("next", "a")`` stays."""
    return (key,) if isinstance(key, str) else tuple(key)


def pretty(key: str | tuple[str, ...]) -> str:
    """Return a key as a reader writes it: ``("next", "reward")`` becomes ``next.reward``."""
    return ".".join(as_tuple(key))


def nest(leaves: Mapping[Any, Any]) -> dict[str, Any]:
    """Turn a flat dictionary with tuple keys into a nested one: ``{("a", "b"): x}`` becomes ``{"a": {"b": x}}``."""
    out: dict[str, Any] = {}
    for key, value in leaves.items():
        *path, last = as_tuple(key)
        inner = out
        for name in path:
            inner = inner.setdefault(name, {})
        inner[last] = value
    return out
