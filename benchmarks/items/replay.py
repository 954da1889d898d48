"""Replay buffers: transitions with 17 observations and 6 actions, in float32, uniform sampling.

A row is observation, action, next observation, next reward and next terminated (165 bytes). Each library is given its natural
input: a TensorDict for TorchRL, NumPy arrays for SB3 and cpprb; rlbook is given both.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.harness import Case, Make, Prepared, Sample, Task, fact_below, faster

OBS, ACT = 17, 6
TORCHRL, SB3, CPPRB = "torchrl ReplayBuffer", "sb3 ReplayBuffer", "cpprb ReplayBuffer"
ARRAYS = "rlbook, arrays"
ADD_TARGETS = {1: 15, 8: 15, 256: 8}
"""Rows that come at once, and how many times TorchRL's speed they shall be stored."""


def arrays(*batch: int) -> dict[Any, np.ndarray]:
    """Return rows of random numbers ``[*batch, ...]``."""
    random = np.random.default_rng(0)
    shapes = {"observation": (OBS,), "action": (ACT,), ("next", "observation"): (OBS,), ("next", "reward"): ()}
    rows = {key: np.asarray(random.normal(size=(*batch, *shape)), np.float32) for key, shape in shapes.items()}
    return {**rows, ("next", "terminated"): np.zeros(batch, np.bool_)}


def tensordict(*batch: int) -> Any:
    """Return the same rows as a TensorDict."""
    import torch
    from tensordict import TensorDict

    from rlbook.keys import nest

    return TensorDict(nest({key: torch.as_tensor(value) for key, value in arrays(*batch).items()}), batch)


# ---- buffers ---------------------------------------------------------------------------------------------------------------
def rlbook_buffer(capacity: int) -> Any:
    from rlbook import ReplayBuffer

    return ReplayBuffer(capacity, batch_size=256)


def torchrl_buffer(capacity: int) -> Any:
    from torchrl import logger
    from torchrl.data import LazyTensorStorage, ReplayBuffer

    logger.setLevel("WARNING")
    return ReplayBuffer(storage=LazyTensorStorage(capacity), batch_size=256)


def sb3_buffer(capacity: int, num_envs: int = 1) -> Any:
    from gymnasium.spaces import Box
    from stable_baselines3.common.buffers import ReplayBuffer

    spaces = (Box(-np.inf, np.inf, (OBS,), np.float32), Box(-1.0, 1.0, (ACT,), np.float32))
    return ReplayBuffer(capacity, *spaces, "cpu", n_envs=num_envs, handle_timeout_termination=False)


def cpprb_buffer(capacity: int) -> Any:
    from cpprb import ReplayBuffer

    shapes = {"obs": {"shape": OBS}, "act": {"shape": ACT}, "next_obs": {"shape": OBS}, "rew": {}, "done": {"dtype": np.bool_}}
    return ReplayBuffer(capacity, shapes)


def cpprb_row(rows: dict[Any, np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip(("obs", "act", "next_obs", "rew", "done"), rows.values(), strict=True))


# ---- adding ----------------------------------------------------------------------------------------------------------------
def adding(capacity: int, count: int) -> dict[str, Make]:
    """Return what prepares the storing of ``count`` rows at once; they come from as many environments where a library asks."""
    batch = () if count == 1 else (count,)

    def rlbook() -> Task:
        buffer, rows = rlbook_buffer(capacity), tensordict(*batch)
        return lambda: buffer.extend(rows)

    def rlbook_arrays() -> Task:
        buffer, rows = rlbook_buffer(capacity), arrays(*batch)
        return (lambda: buffer.add(rows)) if count == 1 else (lambda: buffer.extend(rows, batch_size=batch))

    def torchrl() -> Task:
        buffer, rows = torchrl_buffer(capacity), tensordict(*batch)
        return (lambda: buffer.add(rows)) if count == 1 else (lambda: buffer.extend(rows))

    def sb3() -> Task:
        buffer = sb3_buffer(capacity, count)
        observation, action, after, reward, done = arrays(count).values()
        infos: list[dict[str, Any]] = [{} for _ in range(count)]
        return lambda: buffer.add(observation, after, action, reward, done, infos)

    def cpprb() -> Task:
        buffer, rows = cpprb_buffer(capacity), cpprb_row(arrays(*batch))
        return lambda: buffer.add(**rows)

    return {"rlbook": rlbook, ARRAYS: rlbook_arrays, TORCHRL: torchrl, SB3: sb3, CPPRB: cpprb}


# ---- sampling --------------------------------------------------------------------------------------------------------------
def sampling(capacity: int, batch_size: int) -> dict[str, Make]:
    """Return what prepares the sampling from a full buffer."""
    chunk = min(capacity, 10_000)

    def filled(make: Any, add: Any) -> Any:
        buffer = make(capacity)
        for _ in range(capacity // chunk):
            add(buffer)
        return buffer

    def rlbook() -> Task:
        buffer = filled(rlbook_buffer, lambda buffer: buffer.extend(tensordict(chunk)))
        return lambda: buffer.sample(batch_size)

    def torchrl() -> Task:
        buffer = filled(torchrl_buffer, lambda buffer: buffer.extend(tensordict(chunk)))
        return lambda: buffer.sample(batch_size)

    def sb3() -> Task:
        buffer = sb3_buffer(capacity)
        for memory in (buffer.observations, buffer.actions, buffer.next_observations, buffer.rewards, buffer.dones):
            memory[:] = 1  # touched, as if it were filled row by row
        buffer.full = True
        return lambda: buffer.sample(batch_size)

    def cpprb() -> Task:
        buffer = filled(cpprb_buffer, lambda buffer: buffer.add(**cpprb_row(arrays(chunk))))
        return lambda: buffer.sample(batch_size)

    return {"rlbook": rlbook, TORCHRL: torchrl, SB3: sb3, CPPRB: cpprb}


# ---- memory ----------------------------------------------------------------------------------------------------------------
MEMORY = """
import psutil
from benchmarks.items.replay import rlbook_buffer, tensordict
process, rows = psutil.Process(), tensordict({chunk})
warm = rlbook_buffer({chunk})
warm.extend(rows)
before = process.memory_info().rss
buffer = rlbook_buffer({capacity})
for _ in range({capacity} // {chunk}):
    buffer.extend(rows)
tensors = sum(value.nbytes for value in rows.values(True, True)) // {chunk} * {capacity}
print((process.memory_info().rss - before) / tensors)
"""


def memory(capacity: int) -> Make:
    """Return what measures, in a fresh process, the memory of a full buffer as a multiple of its numbers'."""

    def measure() -> Sample:
        code = MEMORY.format(capacity=capacity, chunk=min(10_000, capacity))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return Sample(0.0, {"memory / tensors": float(done.stdout)})

    return lambda: Prepared(measure)


def cases(size: str = "full") -> Iterator[Case]:
    capacity = 1_000 if size == "tiny" else 1_000_000
    for count, times in ADD_TARGETS.items():
        yield Case(
            name=f"add {count} row{'s' * (count > 1)} at once",
            unit="rows",
            work=count,
            contenders=adding(capacity, count),
            targets=[faster(ARRAYS, times, TORCHRL), faster("rlbook", times, TORCHRL), faster(ARRAYS, 0.4, SB3)],
            note="`arrays`: a dictionary of NumPy arrays, which is what SB3 and cpprb take, too.",
        )
    yield Case(
        name=f"sample 256 of {capacity:,} rows",
        unit="rows",
        work=256,
        contenders=sampling(capacity, 256),
        targets=[faster("rlbook", 5, TORCHRL), faster("rlbook", 2, SB3), faster("rlbook", 1.4, CPPRB)],
    )
    yield Case(
        name=f"memory of {capacity:,} rows",
        unit="buffers",
        work=1,
        contenders={"rlbook": memory(capacity)},
        targets=[fact_below("rlbook", "memory / tensors", 1.05)] if size != "tiny" else [],
        repeats=1,
        warm_up=0,
    )
