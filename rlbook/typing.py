"""Types and the legend of shapes that every docstring uses.

===== ==============================================================
``N`` number of environments that step together
``T`` number of time steps; time is the last batch dimension
``B`` rows of a flat batch, for example a minibatch
``D`` features of a vector observation
``A`` dimensions of a continuous action, or number of discrete ones
``*`` any batch dimensions, or none
===== ==============================================================

A number per step (reward, done, value, log-probability, advantage) has exactly the batch shape: ``[N, T]``, never ``[N, T, 1]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

Key: TypeAlias = str | tuple[str, ...]
"""The name of an entry: ``"observation"``, or ``("next", "reward")`` for a nested one."""

Leaves: TypeAlias = dict[Key, Tensor]
"""Flat mapping of keys to tensors: what environments and transforms hand over in the hot loop (a TensorDict costs 3 us)."""

Shape: TypeAlias = torch.Size | tuple[int, ...]
DeviceLike: TypeAlias = torch.device | str | None
Info: TypeAlias = Mapping[str, Any]
Policy: TypeAlias = Callable[..., Any]
