"""Several buffers behind one: offline data with online data, demonstrations with experience."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, explain
from rlbook.replay.buffer import ReplayBuffer, check_positive

SOURCE = "source"


class MixedBuffer:
    """Samples that hold a fixed share of rows from each of several buffers, in the entries that all have.

    A batch of 256 with ``weights=[1, 1]`` is 128 rows of each (the symmetric sampling of Ball et al. 2023, "Efficient Online
    Reinforcement Learning with Offline Data", section 4.1). The entry ``source`` says where a row comes from; ``index`` counts
    through all buffers, so that :meth:`update_priority` finds the right one.

    Args:
        buffers: what to draw from; write to them directly.
        weights: their shares, in any unit; equal by default. May be changed at any time.
        batch_size: rows of a sample.

    Raises:
        ConfigError: an argument does not fit.

    Example:
        >>> from rlbook import CartPole, ReplayBuffer
        >>> offline, online = ReplayBuffer(100), ReplayBuffer(100)
        >>> for buffer in (offline, online): _ = buffer.extend(CartPole(seed=0).rollout(10))
        >>> mixed = MixedBuffer([offline, online], weights=[0.25, 0.75], batch_size=8)
        >>> mixed.sample()["source"]
        tensor([0, 0, 1, 1, 1, 1, 1, 1])
    """

    def __init__(self, buffers: Sequence[ReplayBuffer], weights: Sequence[float] | None = None, *, batch_size: int | None = None):
        if not buffers or not all(isinstance(buffer, ReplayBuffer) for buffer in buffers):
            raise ConfigError(explain("buffers", "a list of ReplayBuffers", repr(buffers)[:80], "Pass [offline, online]"))
        self.buffers, self.batch_size = list(buffers), batch_size
        self.weights = [1.0] * len(buffers) if weights is None else list(weights)
        self.offsets = torch.tensor([0, *(buffer.storage.capacity for buffer in buffers)]).cumsum(0)
        self.shares(len(buffers))

    def shares(self, size: int) -> list[int]:
        """Return how many of ``size`` rows come from each buffer: rounded so that they add up, the largest remainders first."""
        weights = torch.tensor(self.weights, dtype=torch.float64)
        if len(weights) != len(self.buffers) or not (weights >= 0).all() or not 0 < weights.sum() < torch.inf:
            fix = "Pass for example weights=[0.5, 0.5]"
            raise ConfigError(explain("weights", f"{len(self.buffers)} numbers >= 0, not all 0", repr(self.weights), fix))
        exact = size * weights / weights.sum()
        counts = exact.floor().long()
        counts[(exact - counts).argsort(descending=True, stable=True)[: size - int(counts.sum())]] += 1
        return counts.tolist()

    def sample(self, batch_size: int | None = None) -> TensorDict:
        """Draw a TensorDict ``[B]``: first the rows of the first buffer, and so on.

        Raises:
            ConfigError: no batch size was given, or a buffer with a share is empty.
        """
        size: Any = self.batch_size if batch_size is None else batch_size
        check_positive("batch_size", size)
        parts: list[Any] = []
        for number, (buffer, count) in enumerate(zip(self.buffers, self.shares(size), strict=True)):
            if count:
                part = buffer.sample(count)
                part[keys.INDEX] = part[keys.INDEX] + self.offsets[number]
                part[SOURCE] = torch.full(part.batch_size, number, dtype=torch.int64)
                if keys.WEIGHT not in part.keys():
                    part[keys.WEIGHT] = torch.ones(part.batch_size)
                parts.append(part)
        common = set.intersection(*(set(part.keys(True, True)) for part in parts))
        return torch.cat([part.select(*common) for part in parts])  # type: ignore[return-value]

    def update_priority(self, rows: Tensor, priority: Tensor) -> None:
        """Set the priorities of rows, ``batch["index"]`` ``[B]`` or ``[B, T]``, in buffers that have them; others keep none."""
        first = rows if rows.ndim == 1 else rows[:, 0].contiguous()
        source = torch.bucketize(first, self.offsets[1:], right=True)
        for number, buffer in enumerate(self.buffers):
            own = source == number
            if own.any() and buffer.sampler.priority(rows[own][:1] - self.offsets[number]) is not None:
                buffer.update_priority(rows[own] - self.offsets[number], priority[own])

    def __len__(self) -> int:
        return sum(len(buffer) for buffer in self.buffers)

    def __repr__(self) -> str:
        inner = "\n".join(f"  {weight:g} x {buffer!r}" for weight, buffer in zip(self.weights, self.buffers, strict=True))
        return f"MixedBuffer(\n{inner}\n)"
