"""Stacked pictures, with every frame stored once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, MissingKeyError, SpecError, explain
from rlbook.replay.images import EncodedStorage
from rlbook.replay.storages import Layout
from rlbook.typing import Key


class FrameStorage(EncodedStorage):
    """Rows in memory in which every frame of stacked pictures is stored once.

    The stacks under ``key`` and ``("next", key)`` are ``2k`` frames per row, of which one is new. So frames are kept in a pool,
    and a row holds the numbers of its frames there. A frame that comes again (in the next stack, in the next row, as the repeated
    first frame of an episode, as the zeros before it, in another environment) is found by its hash among the last ``recent``
    ones, compared byte by byte, and not stored again; one that no row holds any more makes room. So a sample is what was written,
    whatever the frames are and wherever episodes begin and end: nothing is assumed of them, and every row can be sampled.

    Args:
        capacity: how many rows.
        key: the entry with the stack, ``[k, H, W]``: frames first.
        recent: how many frames are looked through; there must be room for a few steps of all environments.

    Raises:
        ConfigError: ``capacity`` or ``recent`` is not a positive integer.
        MissingKeyError: the first data have no entry ``key``.

    Source: the hash is the multilinear one of Carter and Wegman 1979, "Universal Classes of Hash Functions".
    """

    def __init__(self, capacity: int, key: Key = keys.PIXELS, *, recent: int = 65_536):
        if not isinstance(recent, int) or recent < 1:
            raise ConfigError(explain("recent", "a positive integer", repr(recent), "Pass for example 65_536"))
        self.key, self.recent = key, recent
        super().__init__(capacity)

    def is_picture(self, key: Key, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
        return keys.as_tuple(key) in (keys.as_tuple(self.key), (keys.NEXT, *keys.as_tuple(self.key)))

    def _make(self, layout: Layout) -> None:
        stacks = {key: shape for key, (shape, dtype) in layout.items() if self.is_picture(key, shape, dtype)}
        if self.key not in stacks:
            got, fix = (
                f"the keys {sorted(map(keys.pretty, layout))}",
                "Name the entry with the stacks: FrameStorage(capacity, key)",
            )
            raise MissingKeyError(explain("The first data", f"data with {keys.pretty(self.key)!r}", got, fix))
        if len({layout[key] for key in stacks}) > 1 or len(stacks[self.key]) < 2:
            want, fix = "stacks [k, H, W] of one shape and dtype", "Stack frames along a new first dimension"
            raise SpecError(explain(keys.pretty(self.key), want, f"{stacks}", fix))
        super()._make(layout)

    def begin(self) -> None:
        if not self.pictures:
            self.pool = torch.empty(0)
            return
        (stack, *frame), dtype = self.pictures[self.key]
        self.stack, self.frame_bytes = stack, prod(frame) * dtype.itemsize
        size = self.capacity + self.capacity // 32 + 4 * stack  # enough for long episodes; it grows for short ones
        self.pool = torch.empty(size, *frame, dtype=dtype)  # memory that is not used yet costs nothing
        self.numbers = torch.full((self.capacity, len(self.pictures) * stack), -1, dtype=torch.int32)
        self._uses = np.zeros(size, np.int64)  # how many places of all stacks hold a frame
        self._hashes = np.zeros(size, np.uint64)
        self._free: list[int] = []
        self._fresh = 0  # the first number that was never used
        self._found: OrderedDict[int, int] = OrderedDict()  # from hashes to numbers
        words = -(-self.frame_bytes // 8)
        self._multipliers = np.random.default_rng(0).integers(1, 2**64 - 1, words, np.uint64) | np.uint64(1)

    def put(self, rows: NDArray[np.int64], pictures: dict[Key, NDArray[Any]]) -> None:
        frames = np.concatenate(list(pictures.values()), 1)
        new = self._keep(as_bytes(frames, self.frame_bytes)).reshape(len(rows), -1)
        numbers = self.numbers.numpy()
        old = numbers[rows]
        numbers[rows] = new
        np.add.at(self._uses, new, 1)
        np.subtract.at(self._uses, old[old >= 0], 1)
        for number in np.unique(old[old >= 0]).tolist():
            if not self._uses[number]:
                self._drop(number)

    def _keep(self, frames: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the numbers in the pool ``[m]`` of frames ``[m, bytes]``; store those that are new."""
        numbers = []
        hashes = self._hash(frames).tolist()
        for value, frame in zip(hashes, frames, strict=True):
            number = self._found.get(value)
            if number is None:
                number = self._store(value, frame)
            else:
                self._found.move_to_end(value)
            numbers.append(number)
        found = np.array(numbers, np.int64)
        for n in (self._bytes[found] != frames).any(1).nonzero()[0]:  # another frame of the same hash
            found[n] = self._store(hashes[n], frames[n])
        return found

    def _hash(self, frames: NDArray[np.uint8]) -> NDArray[np.uint64]:
        """Return the products of frames, as vectors of 64-bit words, and random odd numbers."""
        padding = -frames.shape[1] % 8
        words = np.pad(frames, ((0, 0), (0, padding))) if padding else frames
        return words.view(np.uint64) @ self._multipliers

    def _store(self, value: int, frame: NDArray[np.uint8]) -> int:
        if self._free:
            number = self._free.pop()
        else:
            number, self._fresh = self._fresh, self._fresh + 1
            if number == len(self.pool):
                self._grow()
        self._bytes[number], self._hashes[number], self._found[value] = frame, value, number
        if len(self._found) > self.recent:
            self._found.popitem(last=False)
        return number

    def _drop(self, number: int) -> None:
        value = int(self._hashes[number])
        if self._found.get(value) == number:
            del self._found[value]
        self._free.append(number)

    def _grow(self) -> None:
        more = len(self.pool) // 4 + 1
        self.pool = torch.cat((self.pool, self.pool.new_empty(more, *self.pool.shape[1:])))
        self._uses, self._hashes = (np.concatenate((x, np.zeros(more, x.dtype))) for x in (self._uses, self._hashes))

    @property
    def _bytes(self) -> NDArray[np.uint8]:
        return as_bytes(self.pool.numpy(), self.frame_bytes)

    def get(self, key: Key, rows: Tensor) -> Tensor:
        at = list(self.pictures).index(key) * self.stack
        return self.pool.index_select(0, self.numbers[rows, at : at + self.stack].flatten())

    @property
    def picture_bytes(self) -> int:
        return (self._fresh - len(self._free)) * self.frame_bytes + self.numbers.nbytes if self.pictures else 0

    @property
    def raw_bytes(self) -> int:
        return int((self.numbers >= 0).sum()) * self.frame_bytes

    def check_valid(self) -> None:
        if not self.pictures:
            return
        numbers = self.numbers.numpy()
        uses = np.bincount(numbers[numbers >= 0], minlength=len(self.pool))
        free = sorted([*self._free, *range(self._fresh, len(self.pool))])
        if not np.array_equal(uses, self._uses) or free != (uses == 0).nonzero()[0].tolist():
            fix = "Clear the buffer, and report this as a bug"
            raise ConfigError(explain("The pool's counts of uses", "those of the stacks", "others", fix))

    def state_dict(self, size: int) -> dict[str, Any]:
        used, numbers = self._numbers(size).unique(return_inverse=True)
        frames = self.pool[used.long()]
        return {**super().state_dict(size), "stacks": dict(self.pictures), "frames": frames, "numbers": numbers.to(torch.int32)}

    def _numbers(self, size: int) -> Tensor:
        return self.numbers[:size] if self.pictures else torch.empty(0, 0, dtype=torch.int32)

    def described(self, state: Mapping[str, Any]) -> tuple[Layout, int]:
        layout, size = super().described(state)
        stacks = {key: (tuple(shape), dtype) for key, (shape, dtype) in state["stacks"].items()}
        return {**layout, **stacks}, max(size, len(state["numbers"]))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.begin()
        if not len(state["numbers"]):
            return
        for frame in as_bytes(state["frames"].numpy(), self.frame_bytes):
            self._store(int(self._hash(frame[None])[0]), frame)
        saved = list(state["stacks"])  # in the order in which its entries were met
        columns = [saved.index(key) * self.stack + k for key in self.pictures for k in range(self.stack)]
        numbers = state["numbers"].numpy()[:, columns]
        self.numbers.numpy()[: len(numbers)] = numbers
        np.add.at(self._uses, numbers, 1)


def as_bytes(frames: NDArray[Any], size: int) -> NDArray[np.uint8]:
    """View frames ``[*, H, W]`` of ``size`` bytes each as ``[m, size]``."""
    return np.ascontiguousarray(frames).view(np.uint8).reshape(-1, size)
