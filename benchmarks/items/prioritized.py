"""Prioritized replay: draw 256 transitions, then set their priorities, in a full buffer; alpha 0.6, beta 0.4.

Transitions are those of the item ``replay``. TorchRL 0.14.1 cannot take part with torch 2.13: its prioritized sampler needs the
compiled extension of its wheel, which does not load there. Nothing stands in for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.harness import Case, Make, Task, Unavailable, faster
from benchmarks.items.replay import ACT, OBS, arrays, cpprb_row, tensordict

SIZE = 256
TORCHRL, TIANSHOU, CPPRB = "torchrl", "tianshou PrioritizedReplayBuffer", "cpprb PrioritizedReplayBuffer"


def errors() -> Callable[[], np.ndarray]:
    """Return what makes new priorities ``[256]``, a thousand different ones in turn."""
    table = np.abs(np.random.default_rng(1).normal(size=(1000, SIZE))).astype(np.float32)
    at = iter(np.tile(np.arange(1000), 10_000))
    return lambda: table[next(at)]


def rlbook_with(capacity: int, backend: Any) -> Make:
    """Return what prepares our buffer, on one backend of the sum tree."""

    def prepare() -> Task:
        import torch

        from rlbook.replay import PrioritizedSampler, ReplayBuffer
        from rlbook.replay.trees import SumTree

        sampler = PrioritizedSampler(0.6, 0.4)
        buffer = ReplayBuffer(capacity, sampler=sampler, seed=0)
        sampler.tree = SumTree(capacity, backend=backend)
        rows, new = tensordict(min(capacity, 10_000)), errors()
        while len(buffer) < capacity:
            buffer.extend(rows)
        buffer.update_priority(torch.arange(capacity), torch.rand(capacity))

        def run() -> None:
            batch = buffer.sample(SIZE)
            buffer.update_priority(batch["index"], torch.from_numpy(new()))

        return run

    return prepare


def torchrl_with(capacity: int) -> Make:
    """Return what prepares TorchRL's buffer, where its extension loads."""

    def prepare() -> Task:
        import torch
        from torchrl.data import LazyTensorStorage, TensorDictPrioritizedReplayBuffer

        storage = LazyTensorStorage(capacity)
        try:
            buffer = TensorDictPrioritizedReplayBuffer(alpha=0.6, beta=0.4, storage=storage, batch_size=SIZE)
        except RuntimeError as error:
            raise Unavailable(f"its compiled extension does not load with torch {torch.__version__}") from error
        rows, new = tensordict(min(capacity, 10_000)), errors()
        for _ in range(max(1, capacity // len(rows))):
            buffer.extend(rows)

        def run() -> None:
            batch = buffer.sample()
            buffer.update_priority(batch["index"], torch.from_numpy(new()))

        return run

    return prepare


def tianshou_with(capacity: int) -> Make:
    """Return what prepares Tianshou's buffer (NumPy, and a tree of numba kernels)."""

    def prepare() -> Task:
        from tianshou.data import Batch, PrioritizedReplayBuffer

        buffer, new = PrioritizedReplayBuffer(capacity, alpha=0.6, beta=0.4), errors()
        row = {"obs": np.zeros(OBS, np.float32), "act": np.zeros(ACT, np.float32), "obs_next": np.zeros(OBS, np.float32)}
        buffer.add(Batch(**row, rew=np.float32(0), terminated=False, truncated=False, info={}))
        filled: Any = buffer  # filled directly: adding a million rows one by one takes minutes
        filled._size = capacity
        random = np.random.default_rng(0)
        for name in ("obs", "act", "obs_next"):
            filled._meta[name][:] = random.normal(size=filled._meta[name].shape)
        filled.weight[np.arange(capacity)] = random.random(capacity) ** 0.6

        def run() -> None:
            _, rows = buffer.sample(SIZE)
            buffer.update_weight(rows, new())

        return run

    return prepare


def cpprb_with(capacity: int) -> Make:
    """Return what prepares cpprb's buffer (C++)."""

    def prepare() -> Task:
        from cpprb import PrioritizedReplayBuffer

        observation = {"shape": OBS}
        shapes = {"obs": observation, "act": {"shape": ACT}, "next_obs": observation, "rew": {}, "done": {"dtype": np.bool_}}
        buffer, new = PrioritizedReplayBuffer(capacity, shapes, alpha=0.6), errors()
        rows = cpprb_row(arrays(min(capacity, 10_000)))
        while buffer.get_stored_size() < capacity:
            buffer.add(**rows)
        buffer.update_priorities(np.arange(capacity), np.random.default_rng(0).random(capacity))

        def run() -> None:
            batch = buffer.sample(SIZE, 0.4)
            buffer.update_priorities(batch["indexes"], new())

        return run

    return prepare


def cases(size: str = "full") -> Iterator[Case]:
    capacity = 1_000 if size == "tiny" else 1_000_000
    yield Case(
        name=f"sample 256 of {capacity:,} rows and update their priorities",
        unit="rows",
        work=SIZE,
        contenders={
            "rlbook": rlbook_with(capacity, "auto"),
            "rlbook, numpy": rlbook_with(capacity, "numpy"),
            TORCHRL: torchrl_with(capacity),
            TIANSHOU: tianshou_with(capacity),
            CPPRB: cpprb_with(capacity),
        },
        targets=[
            faster("rlbook", 4, TORCHRL),
            faster("rlbook", 1.5, TIANSHOU),
            faster("rlbook, numpy", 2.5, TORCHRL),
        ],
        note="`numpy` is the fallback where numba does not work. Tianshou's weights are exact, cpprb's are computed in C++.",
    )
