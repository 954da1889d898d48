"""A buffer that several processes write to."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from rlbook.errors import ConfigError, explain
from rlbook.replay.buffer import ReplayBuffer
from rlbook.replay.memmap import MemmapStorage
from rlbook.replay.storages import Rows
from rlbook.replay.trajectories import Trajectories
from rlbook.typing import DeviceLike

SHARED_MEMORY = Path("/dev/shm")


def in_turn(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let no other process read or write while the method runs."""

    @wraps(method)
    def call(self: SharedReplayBuffer, *args: Any, **options: Any) -> Any:
        with self.turn():
            return method(self, *args, **options)

    return call


class SharedReplayBuffer(ReplayBuffer):
    """A ring of rows that processes share: each may ``extend`` it, and sample what all of them have written.

    Hand it to a process as an argument, whether that is spawned or forked. What arrives there is the same rows; sampler,
    transforms and seed stay with the process that made the buffer, and elsewhere sampling is uniform. Processes take turns with a
    lock that the system opens when its holder dies. Rows that the dead one was just writing do not appear; if the ring was full,
    rows get new numbers then, and the sampler starts anew, without priorities.

    Args:
        storage: an integer is the capacity of rows in shared memory, freed when this process ends (not when it is killed: see
            ``/dev/shm/rlbook-*``); or rows on disk.
        **options: see :class:`ReplayBuffer`.

    Raises:
        ConfigError: the storage is none on disk, or the writer no ring.

    Example:
        >>> from rlbook import CartPole
        >>> buffer = SharedReplayBuffer(10_000, batch_size=32)
        >>> process = torch.multiprocessing.get_context("fork").Process(
        ...     target=lambda: buffer.extend(CartPole(num_envs=4, seed=0).rollout(100))
        ... )
        >>> process.start(), process.join()
        (None, None)
        >>> len(buffer)
        400
    """

    storage: MemmapStorage

    def __init__(self, storage: MemmapStorage | int, **options: Any):
        if isinstance(storage, int):
            memory = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
            folder = tempfile.mkdtemp(prefix="rlbook-", dir=memory)
            weakref.finalize(self, remove, folder, os.getpid())
            storage = MemmapStorage(storage, Path(folder) / "rows")
        if not isinstance(storage, MemmapStorage):
            fix = "Pass a capacity, or MemmapStorage(capacity, path)"
            raise ConfigError(explain("The storage to share", "a MemmapStorage", type(storage).__name__, fix))
        storage.share()
        self._inside, self._seen = False, (0, 0)
        super().__init__(storage, **options)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the lock, with all that was written before; several calls in one turn see the same rows."""
        with self._lock:
            if self._inside:
                yield
                return
            with self.storage.turn():
                self._inside = True
                try:
                    self._catch_up()
                    yield
                finally:
                    self._inside = False
                    self._seen = self._now()

    def _now(self) -> tuple[int, int]:
        """Return in which numbering, and how many, rows were ever written."""
        return (0 if self.storage.map is None else self.storage.map.now.epoch), self.writer.total

    def _catch_up(self) -> None:
        """Tell the sampler of the rows that others wrote."""
        (epoch, total), (now, end) = self._seen, self._now()
        writer: Any = self.writer
        if now != epoch:
            self.sampler.clear()
            Trajectories.forget(self)
            total = 0
        if end > total:
            new = torch.arange(max(total, end - writer.size), end)
            self.sampler.on_write(new % writer.rows)

    @in_turn
    def extend(self, data: Any, batch_size: Sequence[int] | None = None) -> list[Rows]:
        written = super().extend(data, batch_size)
        self.storage.map.commit()
        return written

    add = extend
    sample = in_turn(ReplayBuffer.sample)
    update_priority = in_turn(ReplayBuffer.update_priority)
    clear = in_turn(ReplayBuffer.clear)
    flush = in_turn(ReplayBuffer.flush)
    in_order = in_turn(ReplayBuffer.in_order)
    state_dict = in_turn(ReplayBuffer.state_dict)
    load_state_dict = in_turn(ReplayBuffer.load_state_dict)
    save = in_turn(ReplayBuffer.save)
    load = in_turn(ReplayBuffer.load)
    check_valid = in_turn(ReplayBuffer.check_valid)
    __getitem__ = in_turn(ReplayBuffer.__getitem__)
    __len__ = in_turn(ReplayBuffer.__len__)
    __repr__ = in_turn(ReplayBuffer.__repr__)

    def __reduce__(self) -> Any:
        return join, (self.storage, self.batch_size, self.device)


def join(storage: MemmapStorage, batch_size: int | None, device: DeviceLike) -> SharedReplayBuffer:
    """Return, in another process, a buffer with the same rows."""
    return SharedReplayBuffer(storage, batch_size=batch_size, device=device)


def remove(folder: str, process: int) -> None:
    """Free shared memory, in the process that took it."""
    if process == os.getpid():
        shutil.rmtree(folder, ignore_errors=True)
