"""One integer seeds everything, and every environment of a batch has its own stream.

Native environments and random policies draw from a *counter-based* generator: the n-th number of stream ``key`` is a hash of
``(key, n)``. There is no hidden state to share between rows, so environment ``i`` of a batch sees the same numbers as the same
environment alone, on any device, inside or outside ``torch.compile``.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

from rlbook.errors import ConfigError, explain

_MASK = 0xFFFFFFFF


def seed_everything(seed: int) -> torch.Generator:
    """Seed Python, NumPy and torch (all devices) from one integer; return a CPU generator with the same seed.

    Raises:
        ConfigError: ``seed`` is not an integer in ``[0, 2**32)``.
    """
    seed = check_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def check_seed(seed: int) -> int:
    """Return ``seed`` if NumPy, torch and Gymnasium all take it, else raise ConfigError."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= _MASK:
        raise ConfigError(explain("seed", "an integer in [0, 2**32)", repr(seed), "Pass for example seed=0"))
    return int(seed)


def env_keys(seed: int, num_envs: int, device: torch.device | str | None = None) -> Tensor:
    """Return the stream keys of ``num_envs`` environments, int64 ``[N]``: environment ``i`` has the key of ``seed + i``."""
    return (torch.arange(num_envs, dtype=torch.int64, device=device) + check_seed(seed)) & _MASK


def _mix(x: Tensor) -> Tensor:
    """Scramble 32 bits held in int64. Source: the constants of C. Wellons' ``lowbias32`` integer hash."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def counter_uniform(key: Tensor, counter: Tensor | int, size: int, salt: int = 0) -> Tensor:
    """Return uniform numbers in ``[0, 1)`` that depend on ``(key, counter, salt)`` only.

    Args:
        key: stream of each row, int64 ``[*]`` in ``[0, 2**32)``.
        counter: position in the stream, int or int64 broadcastable with ``key``.
        size: how many numbers to draw at that position.
        salt: separates the uses of one stream (resets, actions, noise).

    Returns:
        float32 ``[*, size]``, multiples of 2**-24.
    """
    lane = torch.arange(size, dtype=torch.int64, device=key.device)
    stream = _mix(_mix(key + 0x9E3779B9 * (salt + 1) & _MASK) + counter & _MASK)
    return (_mix(stream.unsqueeze(-1) + 0x85EBCA6B * (lane + 1) & _MASK) >> 8).float() * 2.0**-24
