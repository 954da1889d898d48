"""Pictures in another form than a tensor of them all: compressed one by one."""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, explain
from rlbook.replay.storages import Layout, Rows, TensorStorage
from rlbook.typing import Key, Leaves

CHUNK = 256
"""Rows whose pictures are encoded together."""


class EncodedStorage(TensorStorage):
    """Rows in memory, of which some entries, the pictures, are kept in another form than a tensor of them all."""

    pictures: Layout

    def __init__(self, capacity: int):
        self.pictures = {}
        super().__init__(capacity)

    @abstractmethod
    def is_picture(self, key: Key, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
        """Return whether an entry is kept in the other form."""

    @abstractmethod
    def begin(self) -> None:
        """Forget all pictures; make room for those that :attr:`pictures` describe."""

    @abstractmethod
    def put(self, rows: NDArray[np.int64], pictures: dict[Key, NDArray[Any]]) -> None:
        """Store pictures ``{key: [n, *shape]}`` in different rows ``[n]``."""

    @abstractmethod
    def get(self, key: Key, rows: Tensor) -> Tensor:
        """Return pictures of the rows ``[n]``, ``[n, *shape]``."""

    @property
    def keys(self) -> tuple[Key, ...]:
        return (*self.columns, *self.pictures)

    @property
    def layout(self) -> Layout:
        return {**super().layout, **self.pictures}

    def forget(self) -> None:
        self.pictures = {}
        super().forget()
        self.begin()

    def clear(self) -> None:
        self.begin()

    def _make(self, layout: Layout) -> None:
        pictures = {key: entry for key, entry in layout.items() if self.is_picture(key, *entry)}
        super()._make({key: entry for key, entry in layout.items() if key not in pictures})
        self.pictures = pictures
        for key, (shape, dtype) in pictures.items():
            self._expected[key] = (torch.empty(0, dtype=dtype).numpy().dtype if self._as_array else dtype, shape)
        self.begin()

    def write(self, target: Rows, batch: dict[Key, Any], source: Rows) -> None:
        super().write(target, {key: value for key, value in batch.items() if key in self.columns}, source)
        targets, sources = as_numbers(target), as_numbers(source)
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            self.put(targets[part], {key: np.asarray(batch[key][sources[part]]) for key in self.pictures})

    def read(self, rows: Tensor, extra: Leaves | None = None) -> TensorDict:
        pictures = {key: self._pictures(key, rows) for key in self.pictures}
        return super().read(rows, {**pictures, **(extra or {})})

    def entry(self, key: Key, rows: Tensor) -> Tensor | None:
        return self._pictures(key, rows) if key in self.pictures else super().entry(key, rows)

    def _pictures(self, key: Key, rows: Tensor) -> Tensor:
        return self.get(key, rows.flatten()).view(*rows.shape, *self.pictures[key][0])

    def describe(self) -> list[str]:
        shapes = {key: f"{str(dtype).removeprefix('torch.')} {list(shape)}" for key, (shape, dtype) in self.pictures.items()}
        return [*super().describe(), *(f"{keys.pretty(key)}: {shape}, {self.saving()}" for key, shape in shapes.items())]

    def saving(self) -> str:
        """Say how much less memory the pictures take."""
        size = self.picture_bytes
        return f"{self.raw_bytes / size:.1f}x smaller" if size else "none yet"

    @property
    @abstractmethod
    def picture_bytes(self) -> int:
        """Bytes that the pictures take."""

    @property
    @abstractmethod
    def raw_bytes(self) -> int:
        """Bytes that they would take in a tensor."""

    @property
    def nbytes(self) -> int:
        return super().nbytes + self.picture_bytes


class CompressedStorage(EncodedStorage):
    """Rows in memory whose pictures, entries of uint8 with two or more dimensions, are compressed without loss, one by one.

    Writing a picture takes a few times as long as copying it, and so does reading one; other entries cost what they always do.
    ``print(buffer)`` says how many times smaller the pictures are.

    Args:
        capacity: how many rows.
        level: of zlib, from 1 (fastest) to 9 (smallest).

    Raises:
        ConfigError: an argument is out of range.

    Source: P. Deutsch 1996, RFC 1950 and 1951 (zlib and deflate).
    """

    def __init__(self, capacity: int, level: int = 1):
        if level not in range(1, 10):
            raise ConfigError(explain("level", "in [1, 9]", repr(level), "1 is fastest, 9 makes pictures smallest"))
        self.level = level
        super().__init__(capacity)

    def is_picture(self, key: Key, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
        return dtype is torch.uint8 and len(shape) >= 2

    def begin(self) -> None:
        self._packed: dict[Key, list[bytes]] = {key: [b""] * self.capacity for key in self.pictures}
        self._bytes = self._raw = 0

    def put(self, rows: NDArray[np.int64], pictures: dict[Key, NDArray[Any]]) -> None:
        for key, values in pictures.items():
            for row, value in zip(rows.tolist(), values, strict=True):
                self._set(key, row, zlib.compress(value.tobytes(), self.level))

    def _set(self, key: Key, row: int, packed: bytes) -> None:
        before = self._packed[key][row]
        self._packed[key][row] = packed
        self._bytes += len(packed) - len(before)
        self._raw += 0 if before else prod(self.pictures[key][0])

    def get(self, key: Key, rows: Tensor) -> Tensor:
        packed = self._packed[key]
        raw = bytearray().join(zlib.decompress(packed[row]) for row in rows.tolist())
        return torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)

    @property
    def picture_bytes(self) -> int:
        return self._bytes

    @property
    def raw_bytes(self) -> int:
        return self._raw

    def check_valid(self) -> None:
        size = sum(len(one) for packed in self._packed.values() for one in packed)
        if size != self._bytes:
            fix = "Clear the buffer, and report this as a bug"
            raise ConfigError(explain("The count of bytes", f"{size}, those of the pictures", str(self._bytes), fix))

    def state_dict(self, size: int) -> dict[str, Any]:
        pictures = {}
        for key, packed in self._packed.items():
            lengths = torch.tensor([len(one) for one in packed[:size]], dtype=torch.int64)
            raw = torch.from_numpy(np.frombuffer(bytearray().join(packed[:size]), np.uint8))
            pictures[key] = {"shape": self.pictures[key][0], "lengths": lengths, "zlib": raw}
        return {**super().state_dict(size), "pictures": pictures}

    def described(self, state: Mapping[str, Any]) -> tuple[Layout, int]:
        layout, size = super().described(state)
        for key, value in state["pictures"].items():
            layout, size = {**layout, key: (tuple(value["shape"]), torch.uint8)}, len(value["lengths"])
        return layout, size

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.begin()
        for key, value in state["pictures"].items():
            ends, raw = value["lengths"].cumsum(0).tolist(), value["zlib"].numpy().tobytes()
            for row, (start, end) in enumerate(zip([0, *ends][:-1], ends, strict=True)):
                self._set(key, row, raw[start:end])


def as_numbers(rows: Rows) -> NDArray[np.int64]:
    """Return rows as their numbers."""
    return np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows.numpy()
