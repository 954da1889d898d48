"""The replay buffer: storage, sampler, writer and transforms put together."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from rlbook import keys
from rlbook.errors import ConfigError, SpecError, explain
from rlbook.replay.lists import plain, unplain
from rlbook.replay.prefetch import Mover, Prefetcher
from rlbook.replay.samplers import Sampler, UniformSampler
from rlbook.replay.storages import Arrays, Rows, Storage, TensorStorage
from rlbook.replay.trajectories import Trajectories
from rlbook.replay.writers import RingWriter, Writer
from rlbook.seeding import check_seed
from rlbook.typing import DeviceLike

SampleTransform = Callable[..., Any]
"""``transform(batch, rows, buffer) -> batch``: what is done to every sample; ``batch["index"]`` are its rows too."""


class ReplayBuffer:
    """Rows of experience: a writer places them in a storage, a sampler draws them, transforms finish a sample.

    Args:
        storage: where the rows lie; an integer is the capacity of a :class:`TensorStorage`.
        sampler: which rows a sample is made of; uniform by default.
        writer: which rows new data go to; by default the newest replace the oldest.
        transforms: ``transform(batch, rows, buffer)``, applied to every sample in order.
        batch_size: rows of a sample (sequences, for samplers of slices).
        device: where samples go; they stay where the storage is by default. To a GPU they go through pinned memory.
        seed: seed of the sampling; torch's global generator by default.
        prefetch: how many samples of ``batch_size`` a thread prepares ahead. They show the buffer, and its priorities, as it was
            so many samples before. With a ``seed`` they are the same in every run. :meth:`close` ends the thread.

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> from rlbook import CartPole, ReplayBuffer
        >>> buffer = ReplayBuffer(10_000, batch_size=32)
        >>> _ = buffer.extend(CartPole(num_envs=4, seed=0).rollout(100))
        >>> buffer.sample()["next", "observation"].shape
        torch.Size([32, 4])
    """

    def __init__(
        self,
        storage: Storage | int,
        *,
        sampler: Sampler | None = None,
        writer: Writer | None = None,
        transforms: SampleTransform | Sequence[SampleTransform] = (),
        batch_size: int | None = None,
        device: DeviceLike = None,
        seed: int | None = None,
        prefetch: int = 0,
    ):
        self.storage = storage if isinstance(storage, Storage) else TensorStorage(storage)
        self.sampler, self.writer = sampler or UniformSampler(), writer or RingWriter()
        if batch_size is not None:
            check_positive("batch_size", batch_size)
        if isinstance(prefetch, bool) or not isinstance(prefetch, int) or prefetch < 0 or (prefetch and batch_size is None):
            fix = "Pass for example batch_size=256, prefetch=2"
            got = f"prefetch={prefetch!r}, batch_size={batch_size!r}"
            raise ConfigError(explain("prefetch", "an integer >= 0, beside a batch_size", got, fix))
        if prefetch and self.storage.shared:
            raise ConfigError(explain("prefetch", "0 where processes share rows", str(prefetch), "Leave it out"))
        self.writer.bind(self.storage.capacity)
        self.sampler.bind(self.storage.capacity)
        self.storage.attach(self.writer)
        if self.writer.size:  # rows on disk, from before
            self.sampler.on_write(slice(0, self.writer.size))
        self.transforms: list[SampleTransform] = [transforms] if callable(transforms) else list(transforms)
        self.batch_size = batch_size
        self.device = None if device is None else torch.device(device)
        self.generator = None if seed is None else torch.Generator().manual_seed(check_seed(seed))
        self._lock = threading.RLock()
        self._mover = None if self.device is None else Mover(self.device)
        self._ahead = Prefetcher(prefetch) if prefetch else None

    def _settled(self) -> Any:
        """Return the lock for what changes the buffer: it is taken when the thread has drawn all it was asked for."""
        return self._lock if self._ahead is None else self._ahead.settled(self._lock)

    # ---- writing -------------------------------------------------------------------------------------------------------------
    def extend(self, data: Any, batch_size: Sequence[int] | None = None) -> list[Rows]:
        """Copy data into the buffer.

        Args:
            data: a TensorDict ``[]``, ``[T]`` or ``[N, T]`` (one step of N environments is ``[N, 1]``: a single dimension is
                time); or a dictionary of tensors, arrays and numbers, which is one row and costs less than a TensorDict in a
                loop that adds step by step.
            batch_size: of a dictionary that is not one row, ``[T]`` or ``[N, T]``.

        Returns:
            The rows they went to, as slices or int64 tensors, in the order of time.

        Raises:
            ConfigError, MissingKeyError, SpecError: the data do not fit what is stored; nothing is written.
        """
        if batch_size is not None:
            data = Arrays(data, batch_size)
        with self._settled():
            fresh = not self.writer.total and not self.storage.keys
            try:
                batch, count, streams = self.storage.pack(data)
                written: list[Rows] = []
                for source, target in self.writer.place(batch, count, streams):
                    self.storage.write(target, batch, source)
                    self.sampler.on_write(target)
                    written.append(target)
            except Exception:
                if fresh and not self.writer.total:
                    self.storage.forget()
                raise
            return written

    add = extend
    """The same, for one transition."""

    def update_priority(self, rows: Tensor, priority: Tensor) -> None:
        """Set the priorities of rows (``batch["index"]``), for example to ``|TD error|``, both ``[B]``.

        Raises:
            SpecError: the shapes differ, a priority is not finite, or a row holds no data, as after :meth:`clear`.
        """
        rows, priority = torch.as_tensor(rows), torch.as_tensor(priority)
        with self._settled():
            if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
                got, fix = f"{int(rows.min())} to {int(rows.max())}", "Update before the buffer is cleared, with batch['index']"
                raise SpecError(explain("rows", f"in [0, {len(self)}), those that hold data", got, fix))
            self.sampler.update_priority(rows, priority)

    def clear(self) -> None:
        """Forget all rows, and what was sampled ahead."""
        with self._settled():
            before = self.writer.state_dict()
            self.writer.clear()
            try:
                self.storage.clear()
            except ConfigError:  # either may refuse: then nothing is forgotten
                self.writer.load_state_dict(before)
                raise
            self.sampler.clear()
            Trajectories.forget(self)
            if self._ahead is not None:
                self._ahead.forget()

    def flush(self) -> None:
        """Return when the rows are safe from the death of this process, if the storage is on disk; others do nothing."""
        with self._settled():
            self.storage.flush()

    def close(self) -> None:
        """End the thread that samples ahead; its samples are dropped."""
        if self._ahead is not None:
            self._ahead.close()

    # ---- reading -------------------------------------------------------------------------------------------------------------
    def sample(self, batch_size: int | None = None) -> Any:
        """Draw a TensorDict ``[B]`` (``[B, T]`` from samplers of slices); its entry ``index`` holds the rows.

        Raises:
            ConfigError: no batch size was given, or the buffer is empty.
        """
        size = self.batch_size if batch_size is None else batch_size
        if self._ahead is None or size != self.batch_size or self._ahead.inside:
            with self._settled():
                batch = self._sample(size)
        else:
            batch = self._ahead.next(lambda: self._sample(size))
        return self._received(batch)

    def _sample(self, size: Any) -> Any:
        """Draw a batch; with a device, begin to copy it there."""
        check_positive("batch_size", size)
        with self._lock:
            if not self.writer.size:
                raise ConfigError(explain("A buffer to sample from", "filled", "an empty one", "Call buffer.extend(data) first"))
            rows, extra = self.sampler.sample(self, size)
            batch = self.storage.read(rows, {keys.INDEX: rows, **extra})
            for transform in self.transforms:
                batch = transform(batch, rows, self)
        return self._sent(batch)

    def _sent(self, batch: Any) -> Any:
        return batch if self._mover is None else self._mover.send(batch)

    def _received(self, batch: Any) -> Any:
        return batch if self._mover is None else self._mover.receive(batch)

    def __getitem__(self, rows: Any) -> Any:
        """Copy rows out, without transforms: an index, a slice, or int64 ``[*]``; counted as ``index`` counts them."""
        with self._lock:
            return self.storage.read(torch.arange(len(self))[rows])

    def in_order(self) -> Tensor:
        """Return all rows from the oldest to the newest, int64 ``[len]``."""
        return self.writer.in_time_order()

    def __iter__(self) -> Iterator[Any]:
        """Yield all rows once, oldest first, in batches of ``batch_size``."""
        for rows in self.in_order().split(self.batch_size or 1):
            yield self[rows]

    def __len__(self) -> int:
        return self.writer.size

    # ---- keeping -------------------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Return everything that sampling depends on; tensors are views of the rows, not copies."""
        with self._settled():
            return {"storage": self.storage.state_dict(self.writer.size), **self._books()}

    def _books(self) -> dict[str, Any]:
        """Return what is known of the rows."""
        return {
            "writer": self.writer.state_dict(),
            "sampler": self.sampler.state_dict(),
            "generator": None if self.generator is None else self.generator.get_state(),
            "ahead": [] if self._ahead is None else [plain(self._received(sample)) for sample in self._ahead.drawn()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned.

        Raises:
            ConfigError, SpecError: the rows do not fit this buffer, which stays as it is.
        """
        with self._settled():
            books = deepcopy({"writer": self.writer.state_dict(), "sampler": self.sampler.state_dict()})
            try:
                self.writer.load_state_dict(state["writer"])
                self.sampler.load_state_dict(state["sampler"])
                self.storage.load_state_dict(state["storage"])
            except Exception as error:
                self.writer.load_state_dict(books["writer"])
                self.sampler.load_state_dict(books["sampler"])
                if not isinstance(error, KeyError):
                    raise
                fix = "Make this buffer with the same storage, sampler and writer"
                raise ConfigError(explain("A state to load", "of a buffer like this one", f"one without {error}", fix)) from error
            Trajectories.forget(self)
            if self.generator is not None and state["generator"] is not None:
                self.generator.set_state(state["generator"])
            if self._ahead is not None:
                self._ahead.restore([self._sent(unplain(sample)) for sample in state.get("ahead", ())])
            self.storage.flush()

    def save(self, path: str | Path) -> None:
        """Write everything that sampling depends on to a folder; :meth:`load` takes it back, also in another process.

        The file appears when it is whole: who is interrupted keeps the one that was there before.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{FILE}.{os.getpid()}.part"
        try:
            with self._settled():  # the state views rows that another thread may write to
                torch.save(tree_map(compact, self.state_dict()), part)
            os.replace(part, folder / FILE)
        finally:
            part.unlink(missing_ok=True)

    def load(self, path: str | Path) -> ReplayBuffer:
        """Take back what :meth:`save` wrote of a buffer that was made with the same arguments; return this buffer.

        Raises:
            ConfigError, SpecError: there is nothing to load, or it does not fit; this buffer stays as it is.
        """
        file = Path(path) / FILE
        if not file.is_file():
            raise ConfigError(explain("path", f"a folder with {FILE}", str(path), "Write one with buffer.save(path)"))
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except (UnpicklingError, RuntimeError, EOFError) as error:
            fix = "Store tensors, numbers, text, lists and dictionaries: other objects cannot be loaded without running code"
            raise ConfigError(explain(str(file), "tensors and plain objects", str(error).split("\n")[0][:200], fix)) from error
        self.load_state_dict(state)
        return self

    def check_valid(self) -> None:
        """Raise when the books contradict each other: a bug, or memory that something else wrote to."""
        with self._settled():
            self.writer.check_valid()
            self.sampler.check_valid()
            self.storage.check_valid()

    def __repr__(self) -> str:
        filled = f"{len(self):,} of {self.storage.capacity:,} rows, {self.storage.nbytes / 2**20:.1f} MiB"
        parts = [type(self.storage).__name__, repr(self.sampler), type(self.writer).__name__]
        lines = [f"ReplayBuffer({filled}; {', '.join(parts)})", *(f"    {line}" for line in self.storage.describe())]
        return "\n".join(lines)


FILE = "buffer.pt"


def check_positive(name: str, value: Any) -> None:
    """Raise unless ``value`` is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        fix = f"Pass it here, or to the buffer: ReplayBuffer(..., {name}=256)"
        raise ConfigError(explain(name, "a positive integer", repr(value), fix))


def compact(value: Any) -> Any:
    """Copy a tensor that is a small part of its memory, all of which would be saved."""
    if isinstance(value, Tensor) and value.untyped_storage().nbytes() > value.nbytes:
        return value.clone(memory_format=torch.contiguous_format)
    return value
