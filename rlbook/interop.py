"""To TorchRL's layout and back.

Both libraries store a step the same way (TED) but for one thing: a number per step has shape ``[*batch]`` here and ``[*batch,
1]`` there. Nothing is copied: the results share memory with what they were made from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase

from rlbook import keys
from rlbook.errors import SpecError, explain

PER_STEP = (
    keys.REWARD,
    *keys.FLAGS,
    keys.VALUE,
    keys.ADVANTAGE,
    keys.VALUE_TARGET,
    keys.STEP_COUNT,
    keys.EPISODE_RETURN,
)
"""The entries that TorchRL gives a trailing dimension, at the root and under ``next`` (log-probabilities have none)."""


def to_torchrl(td: TensorDictBase, *, one_hot: int | None = None, per_step: Iterable[str] = PER_STEP) -> TensorDict:
    """Return a rollout or batch as TorchRL's modules and losses expect it.

    Args:
        td: in our layout, ``[*]``.
        one_hot: number of actions, to turn an integer ``action`` ``[*]`` into the one-hot ``[*, n]`` that TorchRL's GymEnv uses
            by default.
        per_step: names of the entries that get a trailing 1.

    Raises:
        SpecError: an entry of ``per_step`` does not have the batch shape, or ``action`` is not one integer per step.
    """

    def convert(name: str, value: torch.Tensor) -> torch.Tensor:
        if name not in per_step:
            return value
        if value.shape != td.batch_size:
            fix = "Is this already TorchRL's layout?"
            raise SpecError(explain(f"td[{name!r}]", f"of shape {list(td.batch_size)}", f"{list(value.shape)}", fix))
        return value.unsqueeze(-1)

    out = _map(td, convert)
    if one_hot is not None:
        action = out.get(keys.ACTION, None)
        if action is None:
            raise SpecError(explain("td", "one with an action", f"{list(td.keys())}", "Leave one_hot out"))
        if action.dtype.is_floating_point or action.shape != td.batch_size:
            got = f"{action.dtype} {list(action.shape)}"
            raise SpecError(explain("action", f"integer {list(td.batch_size)}", got, "Leave one_hot out for this action"))
        if action.numel() and not 0 <= int(action.min()) <= int(action.max()) < one_hot:
            fix = f"Pass one_hot={int(action.max()) + 1} or more"
            raise SpecError(explain("action", f"in [0, {one_hot})", f"{int(action.min())} to {int(action.max())}", fix))
        out[keys.ACTION] = torch.nn.functional.one_hot(action.long(), one_hot)
    return out


def from_torchrl(td: TensorDictBase, *, categorical: bool = True, per_step: Iterable[str] = PER_STEP) -> TensorDict:
    """Return a TorchRL rollout or batch in our layout.

    Args:
        td: with numbers per step of shape ``[*, 1]``.
        categorical: turn a one-hot ``action`` (bool or integer ``[*, n]``) into integers ``[*]``. Say False where actions are
            several flags, which may be one-hot by chance.
        per_step: names of the entries that lose their trailing 1.

    Raises:
        SpecError: an entry of ``per_step`` is not ``[*, 1]``.
    """

    def convert(name: str, value: torch.Tensor) -> torch.Tensor:
        if name not in per_step:
            return value
        if value.shape != (*td.batch_size, 1):
            fix = "Is this already rlbook's layout?"
            raise SpecError(explain(f"td[{name!r}]", f"of shape {[*td.batch_size, 1]}", f"{list(value.shape)}", fix))
        return value.squeeze(-1)

    out = _map(td, convert)
    action = out.get(keys.ACTION, None)
    whole = action is not None and not action.dtype.is_floating_point and action.ndim == td.batch_dims + 1
    if categorical and whole and action.shape[-1] > 1:
        index = action.long().argmax(-1)
        if torch.equal(action.long(), torch.nn.functional.one_hot(index, action.shape[-1])):
            out[keys.ACTION] = index
    return out


def _map(td: TensorDictBase, convert: Callable[[str, torch.Tensor], torch.Tensor]) -> TensorDict:
    """Apply ``convert(name, tensor)`` to the entries of the root and of ``next``; deeper ones stay."""
    out = TensorDict({}, td.batch_size, td.device)
    name: str
    value: Any
    for name, value in td.items():
        if name == keys.NEXT:
            out[name] = _map(value, convert)
        else:
            out[name] = value if isinstance(value, TensorDictBase) else convert(name, value)
    return out
